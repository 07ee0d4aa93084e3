//! `pace-cli`: large language models on CPUs, from the command line.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod exit;
mod hub;
mod interrupt;
mod logging;
mod operators;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;
use pace_runtime::config::Env;

use crate::args::{Cli, Command};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(all(feature = "jemalloc", not(feature = "mimalloc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // A hostile tokenizer.json can make its library panic; that becomes an error that names the file.
        if !pace_runtime::tokenizer::panics_are_caught() {
            usual(info);
        }
    }));
    let cli = Cli::parse_from(args::spell_out(std::env::args_os()));
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let env = Env::read().map_err(pace_runtime::RuntimeError::from)?;
    logging::init(env.log_level);
    for (name, meant) in pace_runtime::config::unknown_names() {
        let advice = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        tracing::warn!("environment variable {name} means nothing{advice}");
    }
    match cli.command {
        Command::Generate(args) => commands::generate::run(&env, args),
        Command::Chat(args) => commands::chat::run(&env, args),
        Command::Score(args) => commands::score::run(&env, args),
        Command::Compare(args) => commands::compare::run(&env, args),
        Command::Imatrix(args) => commands::imatrix::run(&env, args),
        Command::Tokenize(args) => commands::tokenize::run(&env, args),
        Command::Detokenize(args) => commands::detokenize::run(&env, args),
        Command::Info(args) => commands::info::run(&env, &args),
        Command::Bench(args) => commands::bench::run(&env, args),
        Command::Throughput(args) => commands::throughput::run(&env, &args),
        Command::Ops(args) => commands::ops::run(&args),
        Command::Jit(args) => commands::jit::run(&env, &args),
        Command::Plan(args) => commands::plan::run(&env, &args),
        Command::Doctor(args) => commands::doctor::run(&env, &args),
        Command::Launch(args) => commands::launch::run(&env, &args),
        Command::Env(args) => commands::env::run(&args),
        Command::KvPlan(args) => commands::kv_plan::run(&env, &args),
        Command::Quantize(args) => commands::pack::quantize(&env, &args),
        Command::Pack(args) => commands::pack::run_floats(&env, &args),
        Command::Pull(args) => commands::pull::run(&env, &args),
        Command::List(args) => commands::list::run(&env, &args),
        Command::Show(args) => commands::show::run(&env, &args),
        Command::Rm(args) => commands::rm::run(&env, &args),
        Command::Completions(args) => commands::completions::run(&args),
        Command::Man(args) => commands::man::run(&args),
    }
}
