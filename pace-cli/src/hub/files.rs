//! Which files make a model, in a directory and in a repository's list.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pace_models::weights::packed::{MANIFEST, METADATA, WEIGHTS};
use serde_json::Value;

use super::reference::is_path;

/// How a model lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory with `config.json` and safetensors.
    Safetensors,
    /// One GGUF file, or the first of several.
    Gguf,
    /// A directory that `pace-cli pack` or `pace-cli quantize` wrote.
    Packed,
}

/// A model on disk.
#[derive(Debug)]
pub(crate) struct OnDisk {
    /// The directory or the file.
    pub(crate) path: PathBuf,
    /// Which of the two.
    pub(crate) kind: Kind,
    /// All its files.
    pub(crate) files: Vec<PathBuf>,
}

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What a model may have beside its configuration and its weights.
pub(crate) const SMALL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.json",
];

/// An index of more is no index.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Directories below a snapshot or a wheel's directory that are looked into.
const DEPTH: usize = 3;
const MAX_PARTS: usize = 999;

impl Kind {
    /// The format's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
            Self::Packed => "packed",
        }
    }
}

impl OnDisk {
    /// Bytes of all its files; content with two names counts once.
    pub(crate) fn bytes(&self) -> u64 {
        let targets: BTreeSet<PathBuf> =
            self.files.iter().filter_map(|file| file.canonicalize().ok()).collect();
        targets.iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
    }
}

/// The complete models in a directory and the directories below it.
pub(crate) fn models_in(dir: &Path) -> Vec<OnDisk> {
    let mut models = Vec::new();
    collect(dir, DEPTH, &mut models);
    models
}

/// All files of a GGUF model of which `file` is one: itself, unless it ends in `-00001-of-00003.gguf`.
pub(crate) fn parts(file: &str) -> Vec<String> {
    let split = || {
        let stem = file.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (base, at) = rest.rsplit_once('-')?;
        let digits = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok())?;
        let (at, count) = (digits(at)?, digits(count)?);
        (1..=count.min(MAX_PARTS)).contains(&at).then_some((base, count))
    };
    match split() {
        Some((base, count)) => (1..=count).map(|at| format!("{base}-{at:05}-of-{count:05}.gguf")).collect(),
        None => vec![file.to_owned()],
    }
}

/// The shards that an index names.
///
/// # Errors
/// It is not an index, or it names files elsewhere.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let mut bytes = Vec::new();
    File::open(index)?.take(MAX_INDEX_BYTES).read_to_end(&mut bytes)?;
    let index: Value = serde_json::from_slice(&bytes).with_context(|| format!("{INDEX} is not JSON"))?;
    let map = index.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty());
    let map = map.with_context(|| format!("{INDEX} has no weight_map"))?;
    let mut shards = BTreeSet::new();
    for file in map.values() {
        match file.as_str() {
            Some(file) if is_path(file) && file.ends_with(".safetensors") => shards.insert(file.to_owned()),
            _ => bail!(
                "{INDEX} names {}, which is no .safetensors file",
                pace_models::file::clip(&file.to_string())
            ),
        };
    }
    Ok(shards)
}

fn collect(dir: &Path, depth: usize, models: &mut Vec<OnDisk>) {
    if let Some(files) = packed(dir) {
        models.push(OnDisk { path: dir.to_path_buf(), kind: Kind::Packed, files });
    } else if let Some(files) = checkpoint(dir) {
        models.push(OnDisk { path: dir.to_path_buf(), kind: Kind::Safetensors, files });
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            if depth > 0 {
                collect(&path, depth - 1, models);
            }
        } else if name.ends_with(".gguf") && path.is_file() {
            let parts = parts(name);
            let files: Vec<PathBuf> = parts.iter().map(|part| dir.join(part)).collect();
            if parts[0] == name && files.iter().all(|file| file.is_file()) {
                models.push(OnDisk { path, kind: Kind::Gguf, files });
            }
        }
    }
}

/// The files of the packed model in `dir`, if it is one and complete.
fn packed(dir: &Path) -> Option<Vec<PathBuf>> {
    let [manifest, weights] = [MANIFEST, WEIGHTS].map(|name| dir.join(name));
    if !manifest.is_file() || !weights.is_file() {
        return None;
    }
    let others = [CONFIG, METADATA].into_iter().chain(SMALL).map(|name| dir.join(name));
    Some([weights, manifest].into_iter().chain(others.filter(|file| file.is_file())).collect())
}

/// The files of the checkpoint in `dir`, if it is one and complete.
fn checkpoint(dir: &Path) -> Option<Vec<PathBuf>> {
    let mut names = vec![CONFIG.to_owned()];
    if dir.join(SINGLE).is_file() {
        names.push(SINGLE.to_owned());
    } else {
        names.extend(shards(&dir.join(INDEX)).ok()?);
        names.push(INDEX.to_owned());
    }
    let mut files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    if !files.iter().all(|file| file.is_file()) {
        return None;
    }
    files.extend(SMALL.iter().map(|name| dir.join(name)).filter(|file| file.is_file()));
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_split_gguf_are_named() {
        assert_eq!(parts("m.gguf"), ["m.gguf"]);
        assert_eq!(parts("d/m-00002-of-00002.gguf"), ["d/m-00001-of-00002.gguf", "d/m-00002-of-00002.gguf"]);
        for odd in
            ["m-00003-of-00002.gguf", "m-0001-of-0002.gguf", "m-00001-of-99999.safetensors", "-of-.gguf"]
        {
            assert_eq!(parts(odd), [odd]);
        }
    }

    #[test]
    fn only_complete_models_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), text).unwrap();
        };
        let found = || models_in(dir.path()).iter().map(|model| model.path.clone()).collect::<Vec<_>>();
        write("config.json", "{}");
        write(INDEX, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}"#);
        write("1.safetensors", "1");
        assert!(found().is_empty(), "a shard is missing");
        write("2.safetensors", "22");
        assert_eq!(found(), [dir.path()]);
        write("sub/m-00001-of-00002.gguf", "1");
        assert_eq!(found().len(), 1, "a part is missing");
        write("sub/m-00002-of-00002.gguf", "1");
        assert_eq!(found(), [dir.path().to_path_buf(), dir.path().join("sub/m-00001-of-00002.gguf")]);
        assert_eq!(models_in(dir.path())[1].bytes(), 2);
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        for (text, reason) in [
            (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "../x.safetensors"),
            (r#"{"weight_map": {"a": "/etc/x.safetensors"}}"#, "/etc/x"),
            (r#"{"weight_map": {"a": 1}}"#, "names 1"),
            (r#"{"weight_map": {"a": "x.bin"}}"#, "x.bin"),
            (r#"{"weight_map": {}}"#, "no weight_map"),
            ("[]", "no weight_map"),
            ("<html>", "not JSON"),
        ] {
            fs::write(&index, text).unwrap();
            let error = format!("{:#}", shards(&index).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
