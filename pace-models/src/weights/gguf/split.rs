//! Models that are split over several files, `NAME-00001-of-00003.gguf` and so on: finds the files and checks
//! that they belong together.
//!
//! Every file is a whole GGUF file with its own tensors and says in `split.no` (from 0) and `split.count` which of
//! how many it is; the first one has the metadata of the model. Source: ggml's `gguf-split`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::directory::Directory;
use crate::ModelError;
use crate::file::DataFile;

/// One file, open, and its header.
pub(super) struct Part {
    pub(super) file: DataFile,
    pub(super) directory: Directory,
}

impl Part {
    /// Opens `path` and reads its header.
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let (file, len) = DataFile::open(path)?;
        let directory = Directory::read(file.file(), file.path(), len)?;
        Ok(Self { file, directory })
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.directory.metadata.u64(key)
    }

    fn wrong(&self, key: &str, what: String) -> ModelError {
        ModelError::field(self.file.path(), key, what)
    }
}

/// Opens the model that `path` is, or is a part of: its first file and the others, in order.
pub(super) fn open(path: &Path) -> Result<(Part, Vec<Part>), ModelError> {
    let given = Part::open(path.to_path_buf())?;
    // A model put together again from its parts says 0.
    let count = given.number(COUNT)?.unwrap_or(0);
    if count <= 1 {
        return Ok((given, Vec::new()));
    }
    if count > MAX_PARTS {
        return Err(given.wrong(COUNT, format!("{count} files; at most {MAX_PARTS} are right")));
    }
    let names = Names::of(&given, count)?;
    names.check(&given, names.given)?;
    let mut given = Some(given);
    let mut part = |no| match given.take_if(|_| no == names.given) {
        Some(given) => Ok(given),
        None => names.open(no),
    };
    let first = part(0)?;
    let rest: Vec<_> = (1..count).map(part).collect::<Result<_, _>>()?;
    rest.iter().try_for_each(|part| agrees(&first, part))?;
    check_total(&first, &rest)?;
    Ok((first, rest))
}

/// Most files of one model; each stays open.
const MAX_PARTS: u64 = 512;
const COUNT: &str = "split.count";
const NO: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

/// What the files of one model are called.
struct Names {
    /// The file that was asked for.
    path: PathBuf,
    prefix: String,
    extension: String,
    count: u64,
    /// Which of the files was asked for, from 0.
    given: u64,
}

impl Names {
    /// Takes the name of `given`, which says that there are `count` files, apart.
    fn of(given: &Part, count: u64) -> Result<Self, ModelError> {
        let Some((prefix, no, named_count, extension)) = take_apart(given.file.path()) else {
            let what = format!(
                "the model is split over {count} files; then their names must end in -00001-of-{count:05}.gguf \
                 to -{count:05}-of-{count:05}.gguf"
            );
            return Err(given.wrong(COUNT, what));
        };
        if named_count != count {
            let what = format!("{count} files, but the name of this one says {named_count}");
            return Err(given.wrong(COUNT, what));
        }
        Ok(Self { path: given.file.path().to_path_buf(), prefix, extension, count, given: no })
    }

    fn path(&self, no: u64) -> PathBuf {
        let Self { prefix, extension, count, .. } = self;
        self.path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.{extension}", no + 1))
    }

    fn open(&self, no: u64) -> Result<Part, ModelError> {
        let path = self.path(no);
        let part = Part::open(path.clone()).map_err(|error| match error {
            ModelError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                let missing = path.display();
                let what = format!("the model is split over {} files, and {missing} is missing", self.count);
                ModelError::field(&self.path, COUNT, what)
            }
            error => error,
        })?;
        self.check(&part, no)?;
        Ok(part)
    }

    /// Whether a file is the one that its name says.
    fn check(&self, part: &Part, no: u64) -> Result<(), ModelError> {
        let wanted = [(COUNT, self.count), (NO, no)];
        for (key, wanted) in wanted {
            match part.number(key)? {
                Some(found) if found == wanted => {}
                Some(found) => {
                    let what = format!("{found}; {wanted} is right for a file of this name");
                    return Err(part.wrong(key, what));
                }
                None => {
                    let what = format!("missing; {wanted} is right for a file of this name");
                    return Err(part.wrong(key, what));
                }
            }
        }
        Ok(())
    }
}

/// Prefix, number from 0, count and extension of the name of a part.
fn take_apart(path: &Path) -> Option<(String, u64, u64, String)> {
    let number = |digits: &str| -> Option<u64> {
        let five = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        five.then(|| digits.parse().ok())?
    };
    let (stem, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (prefix, no) = stem.rsplit_once('-')?;
    let (no, count) = (number(no)?, number(count)?);
    let extension = path.extension()?.to_str()?;
    (1..=count).contains(&no).then(|| (prefix.to_owned(), no - 1, count, extension.to_owned()))
}

/// Whether the metadata of a later file, mostly none, say nothing else than those of the first.
fn agrees(first: &Part, part: &Part) -> Result<(), ModelError> {
    for (key, value) in part.directory.metadata.iter() {
        if matches!(key, NO | "general.alignment") {
            continue;
        }
        match first.directory.metadata.get(key) {
            Some(firsts) if firsts != value => {
                let what =
                    format!("contradicts the first file of the model, {}", first.file.path().display());
                return Err(part.wrong(key, what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether all tensors are there, by the count that every file may give.
fn check_total(first: &Part, rest: &[Part]) -> Result<(), ModelError> {
    let found: usize = [first].into_iter().chain(rest).map(|part| part.directory.tensors.len()).sum();
    for part in [first].into_iter().chain(rest) {
        match part.number(TENSORS)? {
            Some(wanted) if wanted != found as u64 => {
                let what = format!("{wanted} tensors, but the {} files hold {found}", rest.len() + 1);
                return Err(part.wrong(TENSORS, what));
            }
            _ => {}
        }
    }
    Ok(())
}
