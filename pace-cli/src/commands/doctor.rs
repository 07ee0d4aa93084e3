//! `pace-cli doctor`: what costs speed here, and what to do about it.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use pace_kernels::WeightFormat;
use pace_models::LoadOptions;
use pace_ops::{Backend, OperatorConfig};
use pace_runtime::EngineConfig;
use pace_runtime::config::{self, Env};
use pace_runtime::doctor::{Report, Status, examine};
use pace_runtime::kv_cache::BmcGrowth;
use pace_runtime::platform::ThreadBudget;
use pace_runtime::platform::cores::Source;
use pace_runtime::platform::topology::format_cpu_list;
use serde_json::{Value, json};

use crate::args::{
    ActQuantChoice, DoctorArgs, EngineArgs, Format, HugePageChoice, NumaChoice, QuantArgs, RoundingChoice,
};
use crate::exit::Usage;
use crate::output::{self, bytes, table};
use crate::session::open;

/// A setting: its name, its value, and what decided it.
#[derive(Clone)]
struct Setting {
    name: &'static str,
    value: String,
    source: String,
}

/// The allocator that this program was built with, which no mapping shows; none is the system's.
const LINKED: Option<&str> = if cfg!(feature = "mimalloc") {
    Some("mimalloc")
} else if cfg!(feature = "jemalloc") {
    Some("jemalloc")
} else {
    None
};

pub(crate) fn run(env: &Env, args: &DoctorArgs) -> Result<()> {
    args.engine.platform.expect_one_instance()?;
    let config = args.engine.config(env)?;
    let budget = ThreadBudget::for_request(&args.engine.platform.cores(env))
        .map_err(pace_runtime::RuntimeError::from)?;
    // Nothing is fetched for a report: without a name, there is no model.
    let files = args.engine.model.as_deref().map(|model| open(env, Some(model))).transpose()?;
    if let Some(files) = &files {
        config.kv_cache.check(files.spec().max_positions).map_err(|e| Usage(e.to_string()))?;
    }
    let weight_bytes = files.map(|files| files.packed_formats(&config.load).bytes(files.spec()) as u64);
    let mut report = examine(&config, &budget, weight_bytes)?;
    let room = report.machine.memory_available_bytes.map(|n| n.saturating_sub(weight_bytes.unwrap_or(0)));
    if let Some(allocator) = LINKED {
        report.machine.allocator = allocator;
        let check = report.checks.iter_mut().find(|check| check.id == "allocator");
        check.into_iter().for_each(|check| check.value = format!("{allocator} (linked in)"));
    }
    let settings = settings(env, &args.engine, &config, &budget, room);
    match args.format {
        Format::Json => output::json(&to_json(&report, &settings)?)?,
        Format::Text => output::stream(&to_text(&report, &settings))?,
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let (warn, fail) = (count(Status::Warn), count(Status::Fail));
    if fail > 0 || (args.strict && warn > 0) {
        bail!("{fail} checks failed, {warn} found what costs speed");
    }
    Ok(())
}

/// Every setting that has a say in speed, with what decided it. `room`: bytes that a model leaves to KV caches.
fn settings(
    env: &Env,
    args: &EngineArgs,
    config: &EngineConfig,
    budget: &ThreadBudget,
    room: Option<u64>,
) -> Vec<Setting> {
    [
        thread_settings(args, config, budget),
        memory_settings(args, config),
        quant_settings(&args.quant, &config.load),
        kv_settings(args, config, room),
        operator_settings(env, args, config),
        other_settings(env),
    ]
    .concat()
}

fn thread_settings(args: &EngineArgs, config: &EngineConfig, budget: &ThreadBudget) -> Vec<Setting> {
    let all = budget.cpus.len();
    let threads = |asked: Option<usize>| asked.unwrap_or(all).min(all);
    let decode_source = match (args.platform.decode_threads, budget.decode_threads) {
        (Some(_), _) => Source::Flag("--decode-threads"),
        (None, Some(_)) => Source::Quota,
        (None, None) => Source::Default,
    };
    let prefill_source = given(args.platform.prefill_threads.is_some(), "--prefill-threads");
    vec![
        setting("threads", budget.cpus.len(), budget.threads_source),
        setting("cpus", format_cpu_list(&budget.cpus), budget.cpus_source),
        setting("pin", budget.pin, budget.pin_source),
        setting("prefill_threads", threads(config.prefill_threads), prefill_source),
        setting("decode_threads", threads(config.decode_threads), decode_source),
    ]
}

fn memory_settings(args: &EngineArgs, config: &EngineConfig) -> Vec<Setting> {
    let numa = given(args.platform.numa_memory != NumaChoice::default(), "--numa-memory");
    let pages = given(args.platform.hugepages != HugePageChoice::default(), "--hugepages");
    vec![
        setting("numa_memory", config.numa_memory.name(), numa),
        setting("hugepages", format!("{:?}", config.load.placement.hugepages).to_lowercase(), pages),
        setting("mmap", config.load.mmap, given(args.mmap, "--mmap")),
    ]
}

fn quant_settings(args: &QuantArgs, load: &LoadOptions) -> Vec<Setting> {
    let stored = |format: WeightFormat| match load.own_formats {
        true => format!("as the files have integers, else {format}"),
        false => format.to_string(),
    };
    let head = load.lm_head.map_or_else(|| stored(load.weights), |format| format.to_string());
    let rounding = given(args.quant_rounding != RoundingChoice::default(), "--quant-rounding");
    let act_quant = given(args.act_quant != ActQuantChoice::default(), "--act-quant");
    let imatrix = args.imatrix.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    vec![
        setting("quant", stored(load.weights), given(args.quant.is_some(), "--quant")),
        setting("quant_lm_head", head, given(args.quant_lm_head.is_some(), "--quant-lm-head")),
        setting("quant_rounding", if load.search_scales { "search" } else { "nearest" }, rounding),
        setting("act_quant", format!("{:?}", load.act_quant).to_lowercase(), act_quant),
        setting("imatrix", imatrix, given(args.imatrix.is_some(), "--imatrix")),
    ]
}

fn kv_settings(args: &EngineArgs, config: &EngineConfig, room: Option<u64>) -> Vec<Setting> {
    let (kv, bmc) = (&args.kv, &config.kv_cache.bmc);
    let splits = match kv.bmc_splits {
        Some(_) => "--bmc-splits",
        None => given(bmc.splits.is_some(), "PACE_BMC_NUM_SPLITS"),
    };
    let memory = match (config.batching.kv_memory, room) {
        (Some(given), _) => bytes(given as usize),
        (None, Some(room)) => {
            format!("about {} (what is available once a model is loaded)", bytes(room as usize))
        }
        (None, None) => "unknown (what is available once a model is loaded)".to_owned(),
    };
    let (growth, growth_source) = match (bmc.growth, bmc.splits) {
        (Some(growth), _) => (growth.name(), "--bmc-growth"),
        // A number of parts without more is one of doublings.
        (None, Some(_)) => (BmcGrowth::default().name(), splits),
        (None, None) => ("auto", "default"),
    };
    let given_memory = given(args.kv_memory.is_some(), "--kv-memory");
    let given_chunk = given(args.prefill_chunk.is_some(), "--prefill-chunk");
    vec![
        setting("kv_cache", config.kv_cache.kind.name(), given(kv.kv_cache.is_some(), "--kv-cache")),
        setting("bmc_splits", auto(bmc.splits), splits),
        setting("bmc_growth", growth, growth_source),
        setting("bmc_grow", bmc.grow.name(), given(kv.bmc_grow.is_some(), "--bmc-grow")),
        setting("kv_memory", memory, given_memory),
        setting("prefill_chunk", config.batching.prefill_chunk, given_chunk),
    ]
}

fn operator_settings(env: &Env, args: &EngineArgs, config: &EngineConfig) -> Vec<Setting> {
    let operators = match (args.operators.is_given(), env.operators == OperatorConfig::default()) {
        (true, _) => "--op, --op-config",
        (false, false) => "PACE_OP_CONFIG",
        (false, true) => "default",
    };
    let load = &config.load;
    vec![
        setting("isa", config.isa, by_variable("PACE_ISA")),
        setting("dtype", load.activations, given(args.dtype.is_some(), "--dtype")),
        setting("kv_dtype", load.kv, given(args.kv_dtype.is_some(), "--kv-dtype")),
        setting("operators", requested(&load.operators), operators),
        setting("panel_width", auto(load.panel_width), by_variable("LIBXSMM_BLOCK_SIZE")),
        setting("imbps_chunks", auto(load.imbps_chunks), by_variable("IMBPS_BLOCK_SIZE")),
    ]
}

/// The variables that no other setting stands for.
fn other_settings(env: &Env) -> Vec<Setting> {
    let level = format!("{:?}", env.log_level).to_lowercase();
    let mut all = vec![setting("log_level", level, by_variable("PACE_LOG_LEVEL"))];
    for (variable, value) in config::values() {
        if !ELSEWHERE.contains(&variable.name) {
            let source = given(value.is_some(), variable.name);
            let value = value.or_else(|| folder(env, variable.name));
            all.push(setting(variable.name, value.unwrap_or_else(|| variable.default.to_owned()), source));
        }
    }
    all
}

/// The file or folder that a variable stands for, where there is one whether the variable is set or not.
fn folder(env: &Env, variable: &str) -> Option<String> {
    let path = match variable {
        "PACE_CACHE" => &env.cache_dir,
        "HF_HOME" => &env.hf_home,
        "HF_HUB_CACHE" => &env.hf_cache,
        "HF_TOKEN_PATH" => &env.hf_token_path,
        _ => &None,
    };
    path.as_ref().map(|path| path.display().to_string())
}

/// Variables whose effect is shown under another name.
const ELSEWHERE: [&str; 8] = [
    "PACE_LOG_LEVEL",
    "PACE_ISA",
    "PACE_OP_CONFIG",
    "PACE_BMC_NUM_SPLITS",
    "OMP_NUM_THREADS",
    "GOMP_CPU_AFFINITY",
    "LIBXSMM_BLOCK_SIZE",
    "IMBPS_BLOCK_SIZE",
];

/// The source of a setting that only a variable gives.
fn by_variable(name: &'static str) -> &'static str {
    given(config::values().iter().any(|(variable, value)| variable.name == name && value.is_some()), name)
}

fn auto(value: Option<usize>) -> String {
    value.map_or_else(|| "auto".to_owned(), |value| value.to_string())
}

fn setting(name: &'static str, value: impl ToString, source: impl ToString) -> Setting {
    Setting { name, value: value.to_string(), source: source.to_string() }
}

/// What decided a setting that `source` may have given.
const fn given(is_given: bool, source: &'static str) -> &'static str {
    if is_given { source } else { "default" }
}

/// The backends that are asked for: those that are not left to `auto`.
fn requested(operators: &OperatorConfig) -> String {
    let named = operators.iter().filter(|(_, backend)| *backend != Backend::Auto);
    let entries: Vec<_> = named.map(|(op, backend)| format!("{op}={backend}")).collect();
    if entries.is_empty() { "auto".to_owned() } else { entries.join(",") }
}

fn to_json(report: &Report, settings: &[Setting]) -> Result<Value> {
    let mut machine = serde_json::to_value(&report.machine)?;
    machine["isa"] = json!(report.isa);
    machine["limits"] = serde_json::to_value(report.limits)?;
    let setting = |s: &Setting| json!({"name": s.name, "value": s.value, "source": s.source});
    Ok(json!({
        "checks": report.checks,
        "settings": settings.iter().map(setting).collect::<Vec<_>>(),
        "machine": machine,
    }))
}

fn to_text(report: &Report, settings: &[Setting]) -> String {
    let Report { machine, limits, .. } = report;
    let known = |size: Option<usize>| size.map_or_else(|| "?".to_owned(), bytes);
    let mut out = format!(
        "{}, {}\n{} sockets, {} NUMA nodes, {} L3 groups, {} cores, {} CPUs\n\
         caches: L1d {} and L2 {} a core, L3 {} in all\n\
         measured: {:.1} GB/s from memory; GFLOP/s of f32 {:.0}, bf16 {:.0}, int8 {:.0}\n\n",
        machine.cpu,
        report.isa,
        machine.sockets,
        machine.numa_nodes,
        machine.l3_groups,
        machine.cores,
        machine.cpus,
        known(machine.l1d_bytes),
        known(machine.l2_bytes),
        known(machine.l3_bytes),
        limits.bytes / 1e9,
        limits.f32_flops / 1e9,
        limits.bf16_flops / 1e9,
        limits.int8_ops / 1e9,
    );
    for check in &report.checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "WARN",
            Status::Fail => "FAIL",
        };
        let _ = writeln!(out, "{status:<5}{:<12}{}", check.id, check.value);
        if !check.advice.is_empty() {
            let _ = writeln!(out, "{:<17}-> {}", "", check.advice);
        }
    }
    let mut rows = vec![["setting", "value", "from"].map(str::to_owned).to_vec()];
    rows.extend(settings.iter().map(|s| vec![s.name.to_owned(), s.value.clone(), s.source.clone()]));
    out.push('\n');
    out.push_str(&table(rows));
    out
}
