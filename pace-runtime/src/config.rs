//! [`Env`]: the only reader of the environment (`PACE_ISA` apart, which `pace_kernels::Isa::from_env` reads).

mod variables;

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use pace_ops::{ConfigError, OperatorConfig};

use crate::platform::cores::parse_gomp_affinity;

pub use self::variables::{VARIABLES, Variable};

/// What the environment says. Unset and empty variables are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// `PACE_LOG_LEVEL`: what goes to stderr.
    pub log_level: LogLevel,
    /// Where models are kept: `PACE_CACHE`, else `$XDG_CACHE_HOME/pace`, else `$HOME/.cache/pace`.
    pub cache_dir: Option<PathBuf>,
    /// The HF hub's own cache of repositories: `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `huggingface/hub` below
    /// `$XDG_CACHE_HOME` or `$HOME/.cache`.
    pub hf_cache: Option<PathBuf>,
    /// The HF libraries' folder: `HF_HOME`, else `huggingface` below `$XDG_CACHE_HOME` or `$HOME/.cache`.
    pub hf_home: Option<PathBuf>,
    /// `HF_ENDPOINT`: another address of the HF hub.
    pub hf_endpoint: Option<String>,
    /// `HF_TOKEN`: an access token, sent to the hub. It comes before the one in [`hf_token_path`](Self::hf_token_path).
    pub hf_token: Option<Secret>,
    /// Where `hf auth login` leaves the token: `HF_TOKEN_PATH`, else `$HF_HOME/token`, else `huggingface/token` below
    /// `$XDG_CACHE_HOME` or `$HOME/.cache`.
    pub hf_token_path: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`: do not ask the hub.
    pub hf_offline: bool,
    /// `NO_COLOR`: no colours, even on a terminal.
    pub no_color: bool,
    /// `PACE_OP_CONFIG`: backends by operator, as [`OperatorConfig::from_json`] reads them.
    pub operators: OperatorConfig,
    /// `LIBXSMM_BLOCK_SIZE`: outputs of a panel of blocked weights, 32 or 64.
    pub panel_width: Option<usize>,
    /// `IMBPS_BLOCK_SIZE`: parts of the MLP's intermediate dimension, 1 to 1024.
    pub imbps_chunks: Option<usize>,
    /// `OMP_NUM_THREADS`: threads, 1 to 4096. Of a list, one number for each level of nesting, the first.
    pub omp_num_threads: Option<usize>,
    /// `GOMP_CPU_AFFINITY`: the CPUs of the threads, in their order.
    pub gomp_cpu_affinity: Option<Vec<usize>>,
    /// `LD_PRELOAD`: libraries that the dynamic linker loads first.
    pub ld_preload: Option<OsString>,
    /// `LD_LIBRARY_PATH`: folders that the dynamic linker searches first.
    pub ld_library_path: Vec<PathBuf>,
    /// `CONDA_PREFIX`: the conda environment in use.
    pub conda_prefix: Option<PathBuf>,
    /// `PACE_BMC_NUM_SPLITS`: allocations of a BMC cache, 1 to [`MAX_BMC_SPLITS`] and to the length of a sequence.
    pub bmc_splits: Option<usize>,
}

/// More splits than the longest sequences have tokens.
pub const MAX_BMC_SPLITS: usize = 1 << 20;

/// A text that must not be seen: nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What takes how long.
    Profile,
    /// What happens.
    Info,
    /// What may be wrong.
    #[default]
    Warning,
    /// What is wrong.
    Error,
    /// Nothing.
    None,
}

/// An environment variable has a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvError {
    /// It is none of a few words.
    #[error("environment variable {name}: `{value}` is none of: {known}")]
    Unknown {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        known: &'static str,
    },
    /// It is no integer of a range.
    #[error("environment variable {name}: `{value}` is no integer from {} to {}", .range.start(), .range.end())]
    OutOfRange {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        range: RangeInclusive<usize>,
    },
    /// It is no list of CPUs.
    #[error("environment variable {name}: `{value}` is no list of CPUs, such as `0-3` or `0 2 8-14:2`")]
    CpuList {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// `PACE_OP_CONFIG` describes no configuration of operators.
    #[error("environment variable PACE_OP_CONFIG: {0}")]
    Operators(#[from] ConfigError),
}

impl Env {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// A variable has a value that means nothing.
    #[allow(clippy::disallowed_methods)]
    pub fn read() -> Result<Self, EnvError> {
        Self::from_lookup(&|name| std::env::var_os(name))
    }

    /// Reads variables through `lookup`.
    ///
    /// # Errors
    /// A variable has a value that means nothing.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, EnvError> {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let text = |name: &str| get(name).map(|v| v.to_string_lossy().into_owned());
        let path = |name: &str| get(name).map(PathBuf::from);
        let cache_dir = path("PACE_CACHE")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("pace")))
            .or_else(|| path("HOME").map(|p| p.join(".cache/pace")));
        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface")))
            .or_else(|| path("HOME").map(|p| p.join(".cache/huggingface")));
        let in_hf_home = |name: &str| hf_home.as_ref().map(|home| home.join(name));
        let hf_cache = path("HF_HUB_CACHE").or_else(|| in_hf_home("hub"));
        let hf_token_path = path("HF_TOKEN_PATH").or_else(|| in_hf_home("token"));
        Ok(Self {
            log_level: text("PACE_LOG_LEVEL").map(|v| LogLevel::parse(&v)).transpose()?.unwrap_or_default(),
            cache_dir,
            hf_cache,
            hf_home,
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: text("HF_TOKEN").map(Secret::new),
            hf_token_path,
            hf_offline: switch("HF_HUB_OFFLINE", text("HF_HUB_OFFLINE"))?,
            no_color: get("NO_COLOR").is_some(),
            operators: text("PACE_OP_CONFIG")
                .map(|v| OperatorConfig::from_json(&v))
                .transpose()?
                .unwrap_or_default(),
            panel_width: text("LIBXSMM_BLOCK_SIZE").map(panel_width).transpose()?,
            imbps_chunks: integer("IMBPS_BLOCK_SIZE", text("IMBPS_BLOCK_SIZE"), 1..=1024)?,
            omp_num_threads: text("OMP_NUM_THREADS").map(omp_num_threads).transpose()?,
            gomp_cpu_affinity: text("GOMP_CPU_AFFINITY").map(gomp_cpu_affinity).transpose()?,
            ld_preload: get("LD_PRELOAD"),
            ld_library_path: get("LD_LIBRARY_PATH")
                .map(|paths| std::env::split_paths(&paths).filter(|p| p.is_absolute()).collect())
                .unwrap_or_default(),
            conda_prefix: path("CONDA_PREFIX"),
            bmc_splits: integer("PACE_BMC_NUM_SPLITS", text("PACE_BMC_NUM_SPLITS"), 1..=MAX_BMC_SPLITS)?,
        })
    }
}

/// Every variable of [`VARIABLES`] with what may be shown of its value; none if it is not set.
#[allow(clippy::disallowed_methods)]
pub fn values() -> Vec<(Variable, Option<String>)> {
    VARIABLES.iter().map(|variable| (*variable, variable.shown(&|name| std::env::var_os(name)))).collect()
}

/// Variables of the environment that begin with `PACE_` and mean nothing, each with the one that may have been meant.
pub fn unknown_names() -> Vec<(String, Option<&'static str>)> {
    variables::unknown(std::env::vars_os().map(|(name, _)| name))
}

impl Secret {
    /// Keeps `text`.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl LogLevel {
    /// Whether it says what takes how long.
    pub const fn profiles(self) -> bool {
        matches!(self, Self::Debug | Self::Profile)
    }

    const KNOWN: &str = "debug, profile, info, warning, error, none";

    fn parse(value: &str) -> Result<Self, EnvError> {
        match value.to_ascii_lowercase().as_str() {
            "debug" => Ok(Self::Debug),
            "profile" => Ok(Self::Profile),
            "info" => Ok(Self::Info),
            "warning" | "warn" => Ok(Self::Warning),
            "error" => Ok(Self::Error),
            "none" => Ok(Self::None),
            _ => {
                Err(EnvError::Unknown { name: "PACE_LOG_LEVEL", value: value.to_owned(), known: Self::KNOWN })
            }
        }
    }
}

/// On or off, in the spellings that the HF libraries take.
fn switch(name: &'static str, value: Option<String>) -> Result<bool, EnvError> {
    let Some(value) = value else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(EnvError::Unknown { name, value, known: "1, on, yes, true, 0, off, no, false" }),
    }
}

fn panel_width(value: String) -> Result<usize, EnvError> {
    match value.as_str() {
        "32" => Ok(32),
        "64" => Ok(64),
        _ => Err(EnvError::Unknown { name: "LIBXSMM_BLOCK_SIZE", value, known: "32, 64" }),
    }
}

/// OpenMP takes one number for each level of nested regions; here, nothing is nested.
fn omp_num_threads(value: String) -> Result<usize, EnvError> {
    const NAME: &str = "OMP_NUM_THREADS";
    let first = value.split(',').next().unwrap_or_default().trim().to_owned();
    match integer(NAME, Some(first), 1..=4096) {
        Ok(Some(threads)) => Ok(threads),
        _ => Err(EnvError::OutOfRange { name: NAME, value, range: 1..=4096 }),
    }
}

fn gomp_cpu_affinity(value: String) -> Result<Vec<usize>, EnvError> {
    parse_gomp_affinity(&value).ok_or(EnvError::CpuList { name: "GOMP_CPU_AFFINITY", value })
}

fn integer(
    name: &'static str,
    value: Option<String>,
    range: RangeInclusive<usize>,
) -> Result<Option<usize>, EnvError> {
    let Some(value) = value else { return Ok(None) };
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(EnvError::OutOfRange { name, value, range }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pace_ops::Backend;

    fn env(vars: &[(&str, &str)]) -> Result<Env, EnvError> {
        Env::from_lookup(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_cache_follows_the_most_specific_variable() {
        let cache = |vars: &[(&str, &str)]| env(vars).unwrap().cache_dir;
        assert_eq!(cache(&[]), None);
        assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/pace".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/pace".into()));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("PACE_CACHE", "/p")]), Some("/p".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("PACE_CACHE", "")]), Some("/h/.cache/pace".into()));
    }

    #[test]
    fn the_hub_cache_is_where_other_tools_have_it() {
        let cache = |vars: &[(&str, &str)]| env(vars).unwrap().hf_cache;
        assert_eq!(cache(&[("PACE_CACHE", "/p")]), None);
        assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), Some("/f/hub".into()));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
    }

    #[test]
    fn the_hub_token_is_where_the_login_leaves_it_and_never_printed() {
        let path = |vars: &[(&str, &str)]| env(vars).unwrap().hf_token_path;
        assert_eq!(path(&[]), None);
        assert_eq!(path(&[("HOME", "/h")]), Some("/h/.cache/huggingface/token".into()));
        assert_eq!(path(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/token".into()));
        // The cache's own variable moves the cache alone.
        assert_eq!(path(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/f/token".into()));
        assert_eq!(path(&[("HF_HOME", "/f"), ("HF_TOKEN_PATH", "/t")]), Some("/t".into()));
        let env = env(&[("HF_TOKEN", "hf_abc")]).unwrap();
        assert_eq!(env.hf_token.as_ref().unwrap().reveal(), "hf_abc");
        assert!(!format!("{env:?}").contains("abc"), "{env:?}");
    }

    #[test]
    fn levels_and_switches_are_checked() {
        assert_eq!(env(&[]).unwrap().log_level, LogLevel::Warning);
        assert_eq!(env(&[("PACE_LOG_LEVEL", "Profile")]).unwrap().log_level, LogLevel::Profile);
        assert!(LogLevel::Profile.profiles() && LogLevel::Debug.profiles() && !LogLevel::Info.profiles());
        let err = env(&[("PACE_LOG_LEVEL", "loud")]).unwrap_err().to_string();
        assert!(err.contains("PACE_LOG_LEVEL") && err.contains("loud") && err.contains("profile"), "{err}");
        assert!(env(&[("HF_HUB_OFFLINE", "1")]).unwrap().hf_offline);
        assert!(env(&[("HF_HUB_OFFLINE", "maybe")]).is_err());
    }

    #[test]
    fn operators_are_configured_as_json() {
        assert_eq!(env(&[]).unwrap().operators, OperatorConfig::default());
        let json = r#"{"norm_backend": "NATIVE"}"#;
        let want = OperatorConfig { norm: Backend::Native, ..OperatorConfig::default() };
        assert_eq!(env(&[("PACE_OP_CONFIG", json)]).unwrap().operators, want);
        for (json, word) in
            [("{", "line 1"), (r#"{"nrom": "native"}"#, "`norm`"), (r#"{"norm": "imbps"}"#, "imbps")]
        {
            let err = env(&[("PACE_OP_CONFIG", json)]).unwrap_err().to_string();
            assert!(err.contains("PACE_OP_CONFIG") && err.contains(word), "{err}");
        }
    }

    #[test]
    fn block_sizes_are_numbers_that_make_sense() {
        let sizes = |env: Env| (env.panel_width, env.imbps_chunks);
        assert_eq!(sizes(env(&[]).unwrap()), (None, None));
        let both = |panel, chunks| env(&[("LIBXSMM_BLOCK_SIZE", panel), ("IMBPS_BLOCK_SIZE", chunks)]);
        assert_eq!(sizes(both("32", "1").unwrap()), (Some(32), Some(1)));
        assert_eq!(sizes(both("64", "1024").unwrap()), (Some(64), Some(1024)));
        for panel in ["0", "48", "128", "x", "-32"] {
            let err = both(panel, "1").unwrap_err().to_string();
            assert!(
                err.contains("LIBXSMM_BLOCK_SIZE") && err.contains(panel) && err.contains("32, 64"),
                "{err}"
            );
        }
        for chunks in ["0", "1025", "-1", "2.5", "all"] {
            let err = both("", chunks).unwrap_err().to_string();
            assert!(
                err.contains("IMBPS_BLOCK_SIZE") && err.contains(chunks) && err.contains("1 to 1024"),
                "{err}"
            );
        }
    }

    #[test]
    fn openmp_s_variables_are_read_as_openmp_does() {
        let threads = |value| env(&[("OMP_NUM_THREADS", value)]).map(|env| env.omp_num_threads);
        assert_eq!([threads(""), threads("4"), threads("8, 2")], [Ok(None), Ok(Some(4)), Ok(Some(8))]);
        for bad in ["0", "-1", "4097", "x", ",2"] {
            let err = threads(bad).unwrap_err().to_string();
            assert!(err.contains("OMP_NUM_THREADS") && err.contains(bad) && err.contains("4096"), "{err}");
        }
        let cpus = |value| env(&[("GOMP_CPU_AFFINITY", value)]).map(|env| env.gomp_cpu_affinity);
        assert_eq!(cpus("0-4:2 1"), Ok(Some(vec![0, 2, 4, 1])));
        let err = cpus("0-").unwrap_err().to_string();
        assert!(err.contains("GOMP_CPU_AFFINITY") && err.contains("`0-`"), "{err}");
    }
}
