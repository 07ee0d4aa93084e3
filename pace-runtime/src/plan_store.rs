//! Measured plans of operators: made on the threads of an engine, kept in files, one for each machine and setting.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pace_kernels::Scratch;
use pace_ops::{OpCx, OpShape, Plan};
use serde::{Deserialize, Serialize};

use crate::profile::out_of_memory;
use crate::{EngineConfig, RuntimeError};

/// What a plan was measured with, and so what it is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanKey {
    /// The CPU's name, as `/proc/cpuinfo` has it.
    pub cpu: String,
    /// The name of the instruction sets in use.
    pub isa: String,
    /// Threads.
    pub threads: usize,
    /// Outputs in a panel of weights.
    pub panel_width: usize,
    /// Chunks of IMBPS, where they are set.
    pub imbps_chunks: Option<usize>,
    /// The version of this crate.
    pub version: String,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    key: PlanKey,
    plan: Plan,
}

impl PlanKey {
    /// The key of an engine with this configuration, on this machine.
    ///
    /// # Errors
    /// The CPU lacks the configuration's instruction sets.
    pub fn detect(config: &EngineConfig) -> Result<Self, RuntimeError> {
        let build = config.load.build_cx(config.kernels()?);
        Ok(Self {
            cpu: cpu_name(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            isa: config.isa.to_string(),
            threads: config.cpus.len(),
            panel_width: build.panel_width,
            imbps_chunks: build.imbps_chunks,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Where the plan lies in the folder `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.file_name())
    }

    fn file_name(&self) -> String {
        let chunks = self.imbps_chunks.map_or_else(String::new, |chunks| format!(" {chunks} chunks"));
        let Self { cpu, isa, threads, panel_width, version, .. } = self;
        let text = format!("{cpu} {isa} {threads} threads panels {panel_width}{chunks} {version}");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-") + ".json"
    }
}

/// The plan for `key` in the folder `dir`, if one was saved. A file that is damaged, or was made for something else, is
/// ignored; a warning names it.
pub fn load(dir: &Path, key: &PlanKey) -> Option<Plan> {
    let path = key.path(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("{}: {error}; going on without this plan", path.display());
            return None;
        }
    };
    match serde_json::from_str::<Stored>(&text) {
        Ok(stored) if stored.key == *key => Some(stored.plan),
        Ok(_) => {
            tracing::warn!("{}: a plan for something else; going on without it", path.display());
            None
        }
        Err(error) => {
            tracing::warn!("{}: no plan: {error}; going on without it", path.display());
            None
        }
    }
}

/// Saves `plan` for `key` in the folder `dir`, which is made if need be. Shapes that are saved already and not in `plan`
/// are kept: what the file has then is the result.
///
/// # Errors
/// The file cannot be written; the one before is as it was.
pub fn save(dir: &Path, key: &PlanKey, mut plan: Plan) -> Result<Plan, RuntimeError> {
    let path = key.path(dir);
    let kept = load(dir, key).unwrap_or_default().entries;
    let old: Vec<_> =
        kept.into_iter().filter(|old| plan.entries.iter().all(|new| new.shape != old.shape)).collect();
    plan.entries.extend(old);
    let stored = Stored { key: key.clone(), plan };
    serde_json::to_vec_pretty(&stored)
        .map_err(io::Error::from)
        .and_then(|bytes| write(dir, &path, &bytes))
        .map_err(|source| RuntimeError::PlanFile { path, source })?;
    Ok(stored.plan)
}

/// Times the backends of `shapes` on threads as the engine has them. `progress` gets the shapes done and their number.
///
/// # Errors
/// The CPU lacks the configuration's instruction sets, or there are no threads or no memory.
pub fn measure(
    config: &EngineConfig,
    shapes: &[OpShape],
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<Plan, RuntimeError> {
    let run = || {
        let (kernels, pool) = (config.kernels()?, config.pool(config.cpus.len())?);
        let (build, scratch) = (config.load.build_cx(kernels), Scratch::new());
        let cx = OpCx { kernels, par: pool.par(), scratch: &scratch, profile: None };
        Plan::measure(&cx, &build, shapes, progress)
            .map_err(|e| out_of_memory(e.bytes as u64, "to measure operators"))
    };
    // A thread of its own: the caller's is not to be pinned.
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(RuntimeError::Internal("an operator panicked while it was timed".to_owned())))
}

/// Whole or not at all, whoever writes at the same time.
fn write(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&part, path));
    if renamed.is_err() {
        // What failed before is what the caller has to know.
        let _ = fs::remove_file(&part);
    }
    renamed
}

/// The first CPU's name in the text of `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> String {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    };
    cpuinfo.lines().find_map(value).unwrap_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use pace_ops::{Backend, MClass, OpDType, Operator, PlanEntry};

    use super::*;

    fn key(threads: usize) -> PlanKey {
        PlanKey {
            cpu: "AMD EPYC 9654 96-Core Processor (rev. A/1)".to_owned(),
            isa: "avx512-bf16".to_owned(),
            threads,
            panel_width: 64,
            imbps_chunks: None,
            version: "0.1.0".to_owned(),
        }
    }

    fn plan(cols: usize, choice: Backend) -> Plan {
        let entry = |class| PlanEntry {
            shape: OpShape::row(Operator::Norm, OpDType::F32, cols),
            class,
            limit_seconds: 1e-6,
            candidates: Vec::new(),
            choice,
            why: "the fastest".to_owned(),
        };
        Plan { entries: MClass::ALL.map(entry).to_vec() }
    }

    fn choice(plan: &Plan, cols: usize) -> Option<Backend> {
        plan.choice(OpShape::row(Operator::Norm, OpDType::F32, cols)).map(|choice| choice.of(MClass::One))
    }

    #[test]
    fn a_plan_is_found_again_and_shapes_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let plans = dir.path().join("cache/plans");
        assert_eq!(load(&plans, &key(2)), None);
        save(&plans, &key(2), plan(64, Backend::Native)).unwrap();
        let path = key(2).path(&plans);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(
            name,
            "amd-epyc-9654-96-core-processor-rev-a-1-avx512-bf16-2-threads-panels-64-0-1-0.json"
        );
        assert_eq!(load(&plans, &key(2)), Some(plan(64, Backend::Native)));
        assert_eq!(load(&plans, &key(4)), None, "other threads, another plan");
        save(&plans, &key(2), plan(128, Backend::Native)).unwrap();
        let saved = save(&plans, &key(2), plan(64, Backend::Tpp)).unwrap();
        let all = load(&plans, &key(2)).unwrap();
        assert_eq!(saved, all);
        assert_eq!(all.entries.len(), 2 * MClass::ALL.len());
        assert_eq!((choice(&all, 64), choice(&all, 128)), (Some(Backend::Tpp), Some(Backend::Native)));
        assert_eq!(fs::read_dir(&plans).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn files_that_are_damaged_or_foreign_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &key(2), plan(64, Backend::Tpp)).unwrap();
        let path = key(2).path(dir.path());
        fs::copy(&path, key(4).path(dir.path())).unwrap();
        assert_eq!(load(dir.path(), &key(4)), None, "the key in the file counts");
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [&text[..text.len() / 2], "", "{}", "\u{0}"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(load(dir.path(), &key(2)), None);
        }
        save(dir.path(), &key(2), plan(64, Backend::Tpp)).unwrap();
        assert!(load(dir.path(), &key(2)).is_some(), "a damaged file is replaced");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = save(&file, &key(2), plan(64, Backend::Tpp)).unwrap_err();
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }

    #[test]
    fn the_cpu_s_name_is_that_of_the_first() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9654\n\nprocessor\t: 1\nmodel name\t: X\n";
        assert_eq!(cpu_name(text), "AMD EPYC 9654");
        assert!(cpu_name("").starts_with("unknown"));
    }
}
