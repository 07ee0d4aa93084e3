//! Measured plans of operators: made on the threads of an engine, kept in files, one for each machine and setting.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pace_kernels::Scratch;
use pace_ops::{OpCx, OpShape, Plan};
use serde::{Deserialize, Serialize};

use crate::platform::topology;
use crate::profile::out_of_memory;
use crate::scheduler::check_memory;
use crate::{EngineConfig, RuntimeError};

/// What a plan was measured with, and so what it is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanKey {
    /// The CPU's name, as `/proc/cpuinfo` has it. Virtual machines show names that stand for several CPUs.
    pub cpu: String,
    /// The CPU's family, model and stepping, with dots between; empty where the system does not tell.
    pub model: String,
    /// Bytes of all third-level caches together, if the system tells.
    pub l3_bytes: Option<usize>,
    /// The name of the instruction sets in use.
    pub isa: String,
    /// Whether code can be generated.
    pub jit: bool,
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
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Self {
            cpu: cpu_name(&cpuinfo),
            model: cpu_model(&cpuinfo),
            l3_bytes: topology::l3_bytes(Path::new("/")),
            isa: config.isa.to_string(),
            jit: build.jit().is_ok(),
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
        let l3 = self.l3_bytes.map_or_else(String::new, |bytes| format!(" l3 {}k", bytes >> 10));
        let jit = if self.jit { " jit" } else { "" };
        let Self { cpu, model, isa, threads, panel_width, version, .. } = self;
        let text =
            format!("{cpu} {model}{l3} {isa}{jit} {threads} threads panels {panel_width}{chunks} {version}");
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
    let merge = || {
        let _lock = lock(dir)?;
        plan.complete(load(dir, key).unwrap_or_default());
        let stored = Stored { key: key.clone(), plan };
        write(dir, &path, &serde_json::to_vec_pretty(&stored)?)?;
        Ok(stored.plan)
    };
    merge().map_err(|source| RuntimeError::PlanFile { path: path.clone(), source })
}

/// Checks what [`measure`] and [`save`] are going to need for `shapes`, before that takes its time: memory, and that the
/// folder `dir` can be written to.
///
/// # Errors
/// There is too little memory, or no file can be made there.
pub fn check(config: &EngineConfig, dir: &Path, shapes: &[OpShape]) -> Result<(), RuntimeError> {
    let build = config.load.build_cx(config.kernels()?);
    check_memory(Plan::memory(&build, shapes) as u64, || "to measure operators".to_owned())?;
    let tried = lock(dir).and_then(|_lock| part_file(dir)).and_then(|(path, _file)| fs::remove_file(path));
    tried.map_err(|source| RuntimeError::PlanFile { path: dir.to_owned(), source })
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
        let cx = OpCx { kernels, par: pool.par(), scratch: &scratch, profile: None, inputs: None };
        Plan::measure(&cx, &build, shapes, progress)
            .map_err(|e| out_of_memory(e.bytes as u64, "to measure operators"))
    };
    // A thread of its own: the caller's is not to be pinned.
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(RuntimeError::Internal("an operator panicked while it was timed".to_owned())))
}

/// Makes the folder `dir` if need be, and waits until nobody else saves a plan in it. The lock ends with the file.
fn lock(dir: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(dir)?;
    let file = fs::File::options().create(true).truncate(false).write(true).open(dir.join(".lock"))?;
    if let Err(error) = file.lock() {
        // What another run saves at the same time may be lost then, but no more than that.
        tracing::warn!("{}: {error}; going on without a lock", dir.display());
    }
    Ok(file)
}

/// A new file of a name that there is no other of, to be renamed or removed.
fn part_file(dir: &Path) -> io::Result<(PathBuf, fs::File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        // Processes of other containers may have this one's number.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".plan-{}-{count}.part", std::process::id()));
        match fs::File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => return file.map(|file| (path, file)),
        }
    }
}

/// Whole or not at all.
fn write(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (part, mut file) = part_file(dir)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| fs::rename(&part, path));
    if renamed.is_err() {
        // What failed before is what the caller has to know.
        let _ = fs::remove_file(&part);
    }
    renamed
}

/// The first CPU's name in the text of `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> String {
    let name = field(cpuinfo, "model name").map(str::to_owned);
    name.unwrap_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH))
}

/// The first CPU's family, model and stepping: `25.17.1`.
fn cpu_model(cpuinfo: &str) -> String {
    let numbers = ["cpu family", "model", "stepping"].into_iter().filter_map(|name| field(cpuinfo, name));
    numbers.collect::<Vec<_>>().join(".")
}

/// The first value of a name in the text of `/proc/cpuinfo`.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use pace_ops::{Backend, MClass, OpDType, Operator, PlanEntry};

    use super::*;

    fn key(threads: usize) -> PlanKey {
        PlanKey {
            cpu: "AMD EPYC 9654 96-Core Processor (rev. A/1)".to_owned(),
            model: "25.17.1".to_owned(),
            l3_bytes: Some(32 << 20),
            isa: "avx512-bf16".to_owned(),
            jit: true,
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
            wrong: Vec::new(),
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
            "amd-epyc-9654-96-core-processor-rev-a-1-25-17-1-l3-32768k-avx512-bf16-jit-2-threads-panels-64-0-1-0.json"
        );
        assert_eq!(load(&plans, &key(2)), Some(plan(64, Backend::Native)));
        assert_eq!(load(&plans, &key(4)), None, "other threads, another plan");
        save(&plans, &key(2), plan(128, Backend::Native)).unwrap();
        let saved = save(&plans, &key(2), plan(64, Backend::Tpp)).unwrap();
        let all = load(&plans, &key(2)).unwrap();
        assert_eq!(saved, all);
        assert_eq!(all.entries.len(), 2 * MClass::ALL.len());
        assert_eq!((choice(&all, 64), choice(&all, 128)), (Some(Backend::Tpp), Some(Backend::Native)));
        let files = fs::read_dir(&plans).unwrap().map(|entry| entry.unwrap().file_name());
        let others: Vec<_> = files.filter(|other| other != name).collect();
        assert_eq!(others, [".lock"], "nothing is left over");
    }

    #[test]
    fn what_changes_measurements_changes_the_file() {
        let other = |change: &dyn Fn(&mut PlanKey)| {
            let mut other = key(2);
            change(&mut other);
            other.file_name()
        };
        let names = [
            key(2).file_name(),
            other(&|k| k.jit = false),
            other(&|k| k.model = "25.1.1".to_owned()),
            other(&|k| k.l3_bytes = None),
            other(&|k| k.imbps_chunks = Some(2)),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name}");
        }
    }

    #[test]
    fn nothing_is_lost_when_several_save_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let cols: Vec<usize> = (1..=16).map(|i| 64 * i).collect();
        std::thread::scope(|scope| {
            for &cols in &cols {
                let dir = &dir;
                scope.spawn(move || save(dir.path(), &key(2), plan(cols, Backend::Tpp)).unwrap());
            }
        });
        let saved = load(dir.path(), &key(2)).unwrap();
        assert!(cols.iter().all(|&cols| choice(&saved, cols) == Some(Backend::Tpp)), "{saved:?}");
        assert_eq!(saved.entries.len(), cols.len() * MClass::ALL.len());
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
        let text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654\nstepping\t: 1\n\n\
                    processor\t: 1\nmodel name\t: X\n";
        assert_eq!((cpu_name(text).as_str(), cpu_model(text).as_str()), ("AMD EPYC 9654", "25.17.1"));
        assert!(cpu_name("").starts_with("unknown"));
    }
}
