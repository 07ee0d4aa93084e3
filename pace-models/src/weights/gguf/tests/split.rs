//! Models split over several files: which open, and which do not, and why.

use std::path::PathBuf;

use super::writer::{Contents, pair, string, tensor};
use super::*;

const U16: u32 = 2;
const I32: u32 = 5;

/// A part that is to be: what it says, and its tensors of one number each, the number being 10 * part + i.
#[derive(Clone)]
struct Part {
    name: String,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<String>,
    numbers: Vec<f32>,
}

fn u16_pair(key: &str, number: u16) -> Vec<u8> {
    pair(key, U16, &number.to_le_bytes())
}

fn total(n: i32) -> Vec<u8> {
    pair("split.tensors.count", I32, &n.to_le_bytes())
}

/// A right model of three files: the first has the metadata, and no tensor, as converters may leave it.
fn model() -> Vec<Part> {
    let part = |no: u16, tensors: &[&str]| Part {
        name: format!("m-of-x-{:05}-of-00003.gguf", no + 1),
        pairs: vec![u16_pair("split.no", no), u16_pair("split.count", 3), total(3)],
        tensors: tensors.iter().map(|name| (*name).to_owned()).collect(),
        numbers: (0..tensors.len()).map(|i| f32::from(no) * 10.0 + i as f32).collect(),
    };
    let mut parts = vec![part(0, &[]), part(1, &["a", "b"]), part(2, &["c"])];
    parts[0].pairs.push(pair("general.architecture", STRING, &string("llama")));
    parts
}

fn write(directory: &Path, parts: &[Part]) -> Vec<PathBuf> {
    let path = |part: &Part| {
        let tensors = part.tensors.iter().enumerate();
        let contents = Contents {
            pairs: part.pairs.clone(),
            tensors: tensors.map(|(i, name)| tensor(name, &[1], F32, i as u64 * 32)).collect(),
            data: part.numbers.iter().flat_map(|x| [&x.to_le_bytes()[..], &[0; 28]].concat()).collect(),
            ..Contents::default()
        };
        let path = directory.join(&part.name);
        std::fs::write(&path, contents.bytes()).unwrap();
        path
    };
    parts.iter().map(path).collect()
}

/// The message about a model, opened by its part `by`, after something was done to its files.
fn refused(by: usize, change: impl FnOnce(&mut Vec<Part>)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut parts = model();
    let path = directory.path().join(&parts[by].name);
    change(&mut parts);
    write(directory.path(), &parts);
    let error = GgufFile::open(&path).expect_err("a model that is not whole");
    assert!(matches!(error, ModelError::Field { .. } | ModelError::Tensor { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_model_opens_by_any_of_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let paths = write(directory.path(), &model());
    for path in &paths {
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.file_path(), paths[0]);
        assert_eq!(file.metadata().require_str("general.architecture").unwrap(), "llama");
        let names: Vec<_> = file.tensors().iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        for (name, at, want) in [("a", 1, 10.0), ("b", 1, 11.0), ("c", 2, 20.0)] {
            assert_eq!((file.path(name), read(&file, name, 0, 1)), (paths[at].as_path(), vec![want]));
        }
        assert_eq!(file.path("absent"), paths[0]);
    }
}

#[test]
fn a_model_of_one_part_or_put_together_again_is_one_file() {
    for count in [0, 1] {
        let contents = Contents {
            pairs: vec![u16_pair("split.no", 0), u16_pair("split.count", count)],
            tensors: vec![tensor("one", &[1], F32, 0)],
            data: vec![0; 4],
            ..Contents::default()
        };
        assert_eq!(read(&open(&contents.bytes()).1.unwrap(), "one", 0, 1), [0.0]);
    }
}

#[test]
fn links_are_followed_by_their_own_names() {
    // As in the hub's cache, where the files are called by their hashes.
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs");
    std::fs::create_dir(&blobs).unwrap();
    let paths = write(directory.path(), &model());
    for (i, path) in paths.iter().enumerate() {
        let blob = blobs.join(format!("{i}abc"));
        std::fs::rename(path, &blob).unwrap();
        std::os::unix::fs::symlink(&blob, path).unwrap();
    }
    assert_eq!(read(&GgufFile::open(&paths[0]).unwrap(), "c", 0, 1), [20.0]);
}

#[test]
fn missing_files_are_named() {
    for by in [0, 2] {
        let message = refused(by, |parts| drop(parts.remove(1)));
        let wanted =
            format!("x-0000{}-of-00003.gguf: field `split.count`: the model is split over 3", by + 1);
        assert!(message.contains(&wanted), "{message}");
        assert!(message.ends_with("x-00002-of-00003.gguf is missing"), "{message}");
    }
    let message = refused(2, |parts| drop(parts.remove(0)));
    assert!(message.ends_with("x-00001-of-00003.gguf is missing"), "{message}");
}

#[test]
fn files_that_are_not_the_parts_that_they_are_called_are_refused() {
    let set = |at: usize, pair: usize, bytes: Vec<u8>| {
        move |parts: &mut Vec<Part>| {
            parts[at].pairs[pair] = bytes;
        }
    };
    let no = "field `split.no`: ";
    let count = "field `split.count`: ";
    for (message, file, wanted) in [
        (refused(0, set(0, 0, u16_pair("split.no", 1))), 1, format!("{no}1; 0 is right for a file of this")),
        // Twice the same part.
        (refused(0, set(1, 0, u16_pair("split.no", 2))), 2, format!("{no}2; 1 is right for a file of this")),
        (refused(0, set(2, 0, u16_pair("split.none", 2))), 3, format!("{no}missing; 2 is right")),
        (refused(0, set(2, 0, pair("split.no", 7, &[1]))), 3, format!("{no}true is a truth value")),
        (
            refused(0, set(0, 1, u16_pair("split.count", 4))),
            1,
            format!("{count}4 files, but the name of this one says 3"),
        ),
        (refused(0, set(2, 1, u16_pair("split.count", 4))), 3, format!("{count}4; 3 is right")),
        (refused(0, set(2, 1, u16_pair("split.other", 3))), 3, format!("{count}missing; 3 is right")),
        (refused(2, set(0, 1, u16_pair("split.count", 0))), 1, format!("{count}0; 3 is right")),
        (
            refused(0, set(0, 1, u16_pair("split.count", 513))),
            1,
            format!("{count}513 files; at most 512 are right"),
        ),
    ] {
        let wanted = format!("x-0000{file}-of-00003.gguf: {wanted}");
        assert!(message.contains(&wanted), "{message}\nwanted: {wanted}");
    }
}

#[test]
fn contradictions_between_files_are_errors() {
    let count = "field `split.tensors.count`: ";
    for (message, file, wanted) in [
        (
            refused(0, |parts| parts.iter_mut().for_each(|part| part.pairs[2] = total(4))),
            1,
            format!("{count}4 tensors, but the 3 files hold 3"),
        ),
        (refused(0, |parts| parts[2].pairs[2] = total(4)), 3, format!("{count}contradicts the first file")),
        (
            refused(0, |parts| parts[1].pairs.push(pair("general.architecture", STRING, &string("phi")))),
            2,
            "field `general.architecture`: contradicts the first file of the model, ".to_owned(),
        ),
        (refused(1, |parts| parts[2].tensors[0] = "a".to_owned()), 3, "tensor `a`: is also in ".to_owned()),
    ] {
        let wanted = format!("x-0000{file}-of-00003.gguf: {wanted}");
        assert!(message.contains(&wanted), "{message}\nwanted: {wanted}");
    }
}

#[test]
fn names_that_do_not_tell_the_parts_are_errors() {
    for name in [
        "m.gguf",
        "m-00001-of-00003",
        "m-1-of-3.gguf",
        "m-+0001-of-00003.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "00001-of-00003.gguf",
        "m-00001-of-000003.gguf",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut parts = model();
        parts[0].name = name.to_owned();
        let path = &write(directory.path(), &parts)[0];
        let message = GgufFile::open(path).unwrap_err().to_string();
        let wanted =
            format!("{name}: field `split.count`: the model is split over 3 files; then their names");
        assert!(message.contains(&wanted), "{message}");
        assert!(message.contains("-00001-of-00003.gguf to -00003-of-00003.gguf"), "{message}");
    }
}

#[test]
fn a_part_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let paths = write(directory.path(), &model());
    std::fs::write(&paths[1], b"GGML").unwrap();
    let message = GgufFile::open(&paths[0]).unwrap_err().to_string();
    assert!(message.contains("x-00002-of-00003.gguf: header: the file starts with"), "{message}");
    std::fs::remove_file(&paths[1]).unwrap();
    std::fs::create_dir(&paths[1]).unwrap();
    let message = GgufFile::open(&paths[0]).unwrap_err().to_string();
    assert!(message.contains("x-00002-of-00003.gguf: is a directory"), "{message}");
}

#[test]
fn a_number_that_is_not_finite_names_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut parts = model();
    parts[2].numbers[0] = f32::NAN;
    let paths = write(directory.path(), &parts);
    let message = GgufFile::open(&paths[0]).unwrap().read_f32("c", 0, &mut [0.0]).unwrap_err().to_string();
    assert!(message.contains("x-00003-of-00003.gguf: tensor `c`: element 0 is NaN"), "{message}");
}
