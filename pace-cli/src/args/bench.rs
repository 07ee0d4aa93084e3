//! The flags of `bench`, many of which take several values: everything is measured with everything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::quant::{ActQuantChoice, Quant};
use super::{EngineArgs, HugePageChoice, KindChoice, KvArgs, WeightChoice};

/// Tokens per second of prefill and decode, beside what the hardware gives.
///
/// -m, -p, -n, -pg, -d, -b, -t, --dtype, --quant, --act-quant, --op-config, --kv-cache, --bmc-splits, --hugepages and
/// --instances take several values, separated by commas or by giving the flag again (a model's commas separate unless there is a file of that name;
/// -pg and --op-config are given again), and every combination is measured. Tests are named as in llama-bench: pp512 is a prompt of 512 tokens, tg128 are 128
/// new tokens, tg128@d2048 the same after 2048 others.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pace-cli bench
  pace-cli bench -m random:llama-1b -p 512,2048 -n 64 -d 0,2048 -r 5 -t 1,2
  pace-cli bench -p 0 -n 128 -b 1,2,4,8 -o csv
  pace-cli bench -m random:llama-1b -p 512 -n 0 --op-config '{\"mlp\": \"tpp\"}' --op-config '{\"mlp\": \"jit\"}'
  pace-cli bench -pg 512,128 -t 2 --instances 1,2 -o json
  pace-cli bench -m random:tiny --trace trace.json")]
pub(crate) struct BenchArgs {
    /// Prompt tokens of the prefill tests; 0 leaves them out.
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub(crate) n_prompt: Vec<usize>,
    /// New tokens of the decode tests; 0 leaves them out.
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_value = "128")]
    pub(crate) n_gen: Vec<usize>,
    /// Also a test of P prompt tokens and N new ones together; may be written -pg.
    #[arg(long, value_name = "P,N", value_parser = prompt_and_answer)]
    pub(crate) pg: Vec<(usize, usize)>,
    /// Tokens that a sequence's cache holds before a test begins.
    #[arg(short = 'd', long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub(crate) n_depth: Vec<usize>,
    /// Sequences that run together; tokens per second are those of all of them.
    #[arg(short = 'b', long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: Vec<u32>,
    /// Engines that share one copy of the weights and divide the threads; tokens per second are those of all of them.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) instances: Vec<u32>,
    /// Counted runs of each test, after one that is not counted.
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,
    /// How results are written.
    #[arg(short = 'o', long, value_enum, default_value_t)]
    pub(crate) output: BenchFormat,
    /// Time every operator, and show after the results where the time of the counted runs went (of the first instance).
    #[arg(long)]
    pub(crate) profile: bool,
    /// Write the calls of each test's last run for chrome://tracing or ui.perfetto.dev; implies --profile.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engines: EngineSweep,
}

/// How a benchmark's results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchFormat {
    /// A Markdown table.
    #[default]
    Md,
    /// A header and a line for each test; what is no number or text is JSON.
    Csv,
    /// A JSON array, one object for each test.
    Json,
    /// One JSON object on a line for each test, as soon as it has been measured.
    Jsonl,
}

/// The flags of [`EngineArgs`], some of them with several values: every combination, models outermost.
#[derive(Clone, Debug)]
pub(crate) struct EngineSweep(pub(crate) Vec<EngineArgs>);

/// The flags that may be given again, and whether commas separate their values.
const SWEPT: [(&str, bool); 9] = [
    ("model", false),
    ("dtype", true),
    ("quant", true),
    ("act_quant", true),
    ("op_config", false),
    ("kv_cache", true),
    ("bmc_splits", true),
    ("hugepages", true),
    ("threads", true),
];

impl EngineSweep {
    fn several(command: Command) -> Command {
        SWEPT.iter().fold(command, |command, &(flag, commas)| {
            command.mut_arg(flag, |arg| {
                let arg = arg.action(ArgAction::Append);
                if commas { arg.value_delimiter(',') } else { arg }
            })
        })
    }
}

impl Args for EngineSweep {
    fn augment_args(command: Command) -> Command {
        Self::several(EngineArgs::augment_args(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::several(EngineArgs::augment_args_for_update(command))
    }
}

impl FromArgMatches for EngineSweep {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // Of several values this takes the first.
        let mut all = vec![EngineArgs::from_arg_matches(matches)?];
        let models: Vec<String> =
            values::<String>(matches, "model").iter().flat_map(|m| split_models(m)).collect();
        all = each(&all, models, |args, model| args.model = Some(model));
        all = each(&all, values::<WeightChoice>(matches, "dtype"), |args, dtype| args.dtype = Some(dtype));
        all = each(&all, values::<Quant>(matches, "quant"), |args, quant| args.quant.quant = Some(quant));
        let act_quants = values::<ActQuantChoice>(matches, "act_quant");
        all = each(&all, act_quants, |args, choice| args.quant.act_quant = choice);
        let op_configs = values::<String>(matches, "op_config");
        all = each(&all, op_configs, |args, json| args.operators.op_config = Some(json));
        let kinds = values::<KindChoice>(matches, "kv_cache");
        let bmc = kinds.contains(&KindChoice::Bmc);
        all = each(&all, kinds, |args, kind| {
            // What is said about BMC's parts is for BMC, if that is among them.
            let own = if bmc && kind != KindChoice::Bmc { KvArgs::default() } else { args.kv.clone() };
            args.kv = KvArgs { kv_cache: Some(kind), ..own };
        });
        let splits = values::<usize>(matches, "bmc_splits");
        let divided = |args: &EngineArgs| {
            // Caches that have no parts are measured once.
            let own = if args.kv.bmc_splits.is_some() { splits.clone() } else { Vec::new() };
            each(std::slice::from_ref(args), own, |args, splits| args.kv.bmc_splits = Some(splits))
        };
        all = all.iter().flat_map(divided).collect();
        let pages = values::<HugePageChoice>(matches, "hugepages");
        all = each(&all, pages, |args, pages| args.platform.hugepages = pages);
        all = each(&all, values::<u16>(matches, "threads"), |args, threads| {
            args.platform.threads = Some(threads);
        });
        Ok(Self(all))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Command-line arguments as clap takes them: llama-bench's `-pg`, a short flag of two letters, becomes `--pg`.
pub(crate) fn spell_out(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut bench = false;
    args.enumerate().map(move |(i, arg)| {
        bench |= i == 1 && arg == "bench";
        if bench && arg == "-pg" { OsString::from("--pg") } else { arg }
    })
}

fn values<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, flag: &str) -> Vec<T> {
    matches.get_many::<T>(flag).map_or_else(Vec::new, |values| values.cloned().collect())
}

/// Each of `all` with each of `values`; unchanged if there are none.
fn each<T: Clone>(all: &[EngineArgs], values: Vec<T>, set: impl Fn(&mut EngineArgs, T)) -> Vec<EngineArgs> {
    if values.is_empty() {
        return all.to_vec();
    }
    let with = |args: &EngineArgs, value: T| {
        let mut args = args.clone();
        set(&mut args, value);
        args
    };
    all.iter().flat_map(|args| values.iter().map(|value| with(args, value.clone()))).collect()
}

fn split_models(models: &str) -> Vec<String> {
    if Path::new(models).exists() {
        return vec![models.to_owned()];
    }
    models.split(',').map(str::to_owned).collect()
}

fn prompt_and_answer(text: &str) -> Result<(usize, usize)> {
    const NEED: &str = "two numbers above 0 are needed: prompt tokens and new tokens, such as 512,128";
    let (prompt, answer) = text.split_once(',').context(NEED)?;
    let number = |text: &str| text.trim().parse().ok().filter(|&n: &usize| n > 0).context(NEED);
    Ok((number(prompt)?, number(answer)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(args: &[&str]) -> BenchArgs {
        let args = ["pace-cli", "bench"].iter().chain(args).map(OsString::from);
        let spelled: Vec<_> = spell_out(args).skip(1).collect();
        Program::try_parse_from(spelled).unwrap().bench
    }

    #[test]
    fn every_engine_meets_every_other_setting() {
        let args = parse(&["-m", "a,b", "-m", "c", "-t", "1,2", "--op", "mlp=native", "--dtype", "f32"]);
        let engines: Vec<_> =
            args.engines.0.iter().map(|e| (e.model.as_deref().unwrap(), e.platform.threads)).collect();
        let (one, two) = (Some(1), Some(2));
        assert_eq!(engines, [("a", one), ("a", two), ("b", one), ("b", two), ("c", one), ("c", two)]);
        assert!(
            args.engines.0.iter().all(|e| e.dtype == Some(WeightChoice::F32) && e.operators.op.len() == 1)
        );
        let none = parse(&[]);
        assert_eq!((none.engines.0.len(), none.engines.0[0].model.as_ref()), (1, None));
        let json = ["--op-config", r#"{"mlp": "tpp", "norm": "tpp"}"#, "--op-config", "{}"];
        assert_eq!(parse(&json).engines.0.len(), 2);
    }

    #[test]
    fn flags_of_bmc_leave_other_caches_alone() {
        let kv = |args: &[&str]| -> Vec<_> {
            parse(args).engines.0.iter().map(|e| (e.kv.kv_cache, e.kv.bmc_splits)).collect()
        };
        let both = kv(&["--kv-cache", "static,bmc", "--bmc-splits", "4"]);
        assert_eq!(both, [(Some(KindChoice::Static), None), (Some(KindChoice::Bmc), Some(4))]);
        let swept = kv(&["--kv-cache", "static,bmc", "--bmc-splits", "1,4"]);
        let bmc = |splits| (Some(KindChoice::Bmc), Some(splits));
        assert_eq!(swept, [(Some(KindChoice::Static), None), bmc(1), bmc(4)]);
        // A mistake that is told when the flags are checked.
        assert_eq!(kv(&["--kv-cache", "static", "--bmc-splits", "4"]), [(Some(KindChoice::Static), Some(4))]);
        assert_eq!(kv(&["--bmc-splits", "4"]), [(None, Some(4))]);
    }

    #[test]
    fn huge_pages_take_several_values() {
        let pages = |args: &[&str]| -> Vec<_> {
            parse(args).engines.0.iter().map(|e| e.platform.hugepages).collect()
        };
        assert_eq!(pages(&[]), [HugePageChoice::Auto]);
        let two = pages(&["--hugepages", "auto,never"]);
        assert_eq!(two, [HugePageChoice::Auto, HugePageChoice::Never]);
    }

    #[test]
    fn a_file_s_name_may_hold_a_comma() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,b.gguf");
        std::fs::write(&path, "").unwrap();
        let engines = parse(&["-m", path.to_str().unwrap(), "-m", "x,y"]).engines.0;
        let models: Vec<_> = engines.iter().map(|e| e.model.as_deref().unwrap()).collect();
        assert_eq!(models, [path.to_str().unwrap(), "x", "y"]);
    }

    #[test]
    fn tests_take_several_values_and_pg_two_letters() {
        let args = parse(&["-p", "0,8", "-p", "16", "-pg", "8,4", "-pg", "16,2", "-d", "0,32", "-b", "1,4"]);
        assert_eq!((args.n_prompt, args.n_gen), (vec![0, 8, 16], vec![128]));
        assert_eq!((args.pg, args.n_depth, args.batch), (vec![(8, 4), (16, 2)], vec![0, 32], vec![1, 4]));
        let other = spell_out(["pace-cli", "chat", "-pg"].map(OsString::from).into_iter());
        assert_eq!(other.last().unwrap(), "-pg");
        for bad in ["8", "8,", "0,4", "8,-1", "8,4,2"] {
            assert!(prompt_and_answer(bad).is_err(), "{bad}");
        }
    }
}
