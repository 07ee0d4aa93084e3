//! [`VARIABLES`]: every environment variable that means something to PACE.

use std::ffi::OsString;

/// A variable of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it says, in a line.
    pub meaning: &'static str,
    /// What holds where it is not set.
    pub default: &'static str,
    /// Its value must not be seen.
    pub secret: bool,
}

const fn variable(name: &'static str, meaning: &'static str, default: &'static str) -> Variable {
    Variable { name, meaning, default, secret: false }
}

/// Every variable, PACE's own first, then those of the performance guide, then others.
pub const VARIABLES: [Variable; 19] = [
    variable("PACE_LOG_LEVEL", "what is logged: debug, profile, info, warning, error, none", "warning"),
    variable(
        "PACE_CACHE",
        "where models and measured plans are kept",
        "$XDG_CACHE_HOME/pace or ~/.cache/pace",
    ),
    variable(
        "PACE_ISA",
        "caps the kernels' tier: scalar, avx2, avx512, avx512-vnni, avx512-bf16, amx",
        "what the CPU has",
    ),
    variable("PACE_OP_CONFIG", "backends by operator, as --op-config takes them", "auto for each"),
    variable(
        "PACE_BMC_NUM_SPLITS",
        "allocations of the BMC KV cache, 1 to the context's length",
        "a cost model",
    ),
    variable("OMP_NUM_THREADS", "threads, where --threads is not given", "one a physical core"),
    variable(
        "GOMP_CPU_AFFINITY",
        "CPUs of the threads, where neither --cores nor --numa-node is given",
        "the affinity mask",
    ),
    variable("LIBXSMM_BLOCK_SIZE", "outputs of a panel of blocked weights: 32 or 64", "what measures best"),
    variable(
        "IMBPS_BLOCK_SIZE",
        "parts of the MLP's intermediate dimension, 1 to 1024",
        "by rows and caches",
    ),
    variable("LD_PRELOAD", "libraries loaded first, such as an allocator; pace-cli launch sets it", "none"),
    variable("LD_LIBRARY_PATH", "where pace-cli launch looks for an allocator, too", "the system's folders"),
    variable("CONDA_PREFIX", "a conda environment, where pace-cli launch looks for an allocator", "none"),
    variable("HF_ENDPOINT", "another address of the HF hub", "https://huggingface.co"),
    Variable {
        secret: true,
        ..variable("HF_TOKEN", "an access token, sent to the hub and never shown", "HF_TOKEN_PATH's")
    },
    variable("HF_TOKEN_PATH", "a file with the token", "$HF_HOME/token"),
    variable("HF_HUB_OFFLINE", "1: do not ask the hub", "0"),
    variable("HF_HUB_CACHE", "where the HF hub's cache is", "$HF_HOME/hub"),
    variable("HF_HOME", "the HF libraries' folder", "$XDG_CACHE_HOME/huggingface or ~/.cache/huggingface"),
    variable("NO_COLOR", "no colours, even on a terminal", "colours on terminals"),
];

impl Variable {
    /// What may be shown of its value; none if it is not set.
    pub fn shown(&self, lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
        let value = lookup(self.name).filter(|value| !value.is_empty())?;
        Some(if self.secret { "(set)".to_owned() } else { value.to_string_lossy().into_owned() })
    }
}

/// The names among `names` that begin with `PACE_` and mean nothing, each with the variable that looks most like it.
pub(super) fn unknown(names: impl IntoIterator<Item = OsString>) -> Vec<(String, Option<&'static str>)> {
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    let known = |name: &str| VARIABLES.iter().any(|variable| variable.name == name);
    let mut unknown: Vec<String> = names.filter(|name| name.starts_with("PACE_") && !known(name)).collect();
    unknown.sort_unstable();
    unknown.into_iter().map(|name| (name.clone(), nearest(&name))).collect()
}

/// PACE's own variable that `name` may have been meant to be.
fn nearest(name: &str) -> Option<&'static str> {
    let rest = |name: &'static str| name.strip_prefix("PACE_");
    let found = name.strip_prefix("PACE_")?.to_ascii_uppercase();
    let likeness = |own: &str| {
        strsim::jaro_winkler(&found, own).max(strsim::normalized_damerau_levenshtein(&found, own))
    };
    let own = VARIABLES.iter().filter_map(|variable| Some((variable.name, likeness(rest(variable.name)?))));
    own.filter(|(_, likeness)| *likeness > 0.7).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Env;

    #[test]
    fn every_variable_that_is_read_is_in_the_table() {
        let asked = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            asked.borrow_mut().insert(name.to_owned());
            None
        };
        Env::from_lookup(&lookup).unwrap();
        // Everybody's own folders are not for PACE.
        let read: BTreeSet<String> =
            asked.into_inner().into_iter().filter(|n| n != "HOME" && n != "XDG_CACHE_HOME").collect();
        let listed: BTreeSet<String> = VARIABLES.iter().map(|v| v.name.to_owned()).collect();
        assert_eq!(read.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new());
        assert_eq!(listed.len(), VARIABLES.len(), "each is there once");
    }

    #[test]
    fn the_readme_has_every_variable() {
        let readme = include_str!("../../../README.md");
        for Variable { name, .. } in VARIABLES {
            assert!(readme.contains(&format!("`{name}`")), "README.md lacks {name}");
        }
    }

    #[test]
    fn names_that_mean_nothing_are_found_with_what_was_meant() {
        let names = [
            "PACE_CACHE",
            "PACE_LOGLEVEL",
            "PACE_BMC_SPLITS",
            "PACE_QQ",
            "PACES",
            "OMP_THREADS",
            "PACE_op_config",
        ];
        let found = unknown(names.map(OsString::from));
        let want = [
            ("PACE_BMC_SPLITS", Some("PACE_BMC_NUM_SPLITS")),
            ("PACE_LOGLEVEL", Some("PACE_LOG_LEVEL")),
            ("PACE_QQ", None),
            ("PACE_op_config", Some("PACE_OP_CONFIG")),
        ];
        assert_eq!(found, want.map(|(name, nearest)| (name.to_owned(), nearest)));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let token = VARIABLES.iter().find(|v| v.name == "HF_TOKEN").unwrap();
        assert_eq!(token.shown(&|_| Some("hf_abc".into())), Some("(set)".to_owned()));
        assert_eq!(token.shown(&|_| Some("".into())), None);
        assert_eq!(VARIABLES[0].shown(&|_| Some("info".into())), Some("info".to_owned()));
    }
}
