//! Hostile model files: a table of handcrafted cases, each opened (and loaded, rendered or encoded with, where the
//! fault lies there) and measured. A case passes if it ends in a typed error that is the model's fault and names
//! what is wrong, within the limits below, without a panic, and leaves nothing behind.

#![allow(clippy::unwrap_used)]

mod case;
mod config;
mod corpus;
mod gguf;
mod index;
mod meter;
mod packed;
mod quantised;
mod safetensors;
mod sample;
mod targets;
mod template;
mod tokenizer;
mod weights;

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, Once};
use std::time::Duration;

use case::{Case, Stage};
use sample::{GgufContents, Sample};

/// Held by each test, because memory and threads are counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// Panics of the tokenizer library that the hook kept silent.
static SILENT_PANICS: AtomicUsize = AtomicUsize::new(0);

/// Something that happens to an open file.
type Change = fn(&File);

/// Panics stay visible unless the runtime catches them, as in the command-line program.
fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if pace_runtime::tokenizer::panics_are_caught() {
                SILENT_PANICS.fetch_add(1, Relaxed);
            } else {
                usual(info);
            }
        }));
    });
}

fn all() -> Vec<Case> {
    [
        config::cases(),
        config::generation_cases(),
        safetensors::cases(),
        index::cases(),
        weights::cases(),
        quantised::cases(),
        gguf::cases(),
        tokenizer::cases(),
        template::cases(),
        packed::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_case_is_refused_within_its_limits() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    install_hook();
    let cases = all();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let labels: HashSet<&str> = cases.iter().map(|case| case.label.as_str()).collect();
    assert_eq!(labels.len(), cases.len(), "labels repeat");
    let failures: Vec<String> = cases.iter().filter_map(|case| case.check().err()).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn what_the_cases_start_from_is_a_good_model() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    install_hook();
    let models = [
        ("HF", Sample::hf()),
        ("GGUF", GgufContents::good().sample()),
        ("packed", packed::good()),
        ("GPTQ", quantised::good()),
    ];
    for (label, sample) in models {
        for stage in [Stage::Open, Stage::Load, Stage::Render, Stage::Encode] {
            let dir = tempfile::tempdir().unwrap();
            sample.write(dir.path());
            stage.run(&sample.model(dir.path())).unwrap_or_else(|e| panic!("{label}, {stage:?}: {e}"));
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_loaded_is_an_error() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let shrinks = |file: &File| file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let grows = |file: &File| file.set_len(file.metadata().unwrap().len() + 1).unwrap();
    // The same length, other bytes: the second half of a copy, say.
    let is_written = |file: &File| {
        let later = file.metadata().unwrap().modified().unwrap() + Duration::from_millis(10);
        file.set_modified(later).unwrap();
    };
    let ways: [(&str, Change); 3] = [("shrinks", shrinks), ("grows", grows), ("is written", is_written)];
    for (label, change) in ways {
        let samples = [
            (Sample::hf(), sample::WEIGHTS),
            (GgufContents::good().sample(), sample::GGUF),
            (packed::good(), packed::WEIGHTS),
        ];
        for (sample, name) in samples {
            let dir = tempfile::tempdir().unwrap();
            sample.write(dir.path());
            let files = pace_runtime::ModelFiles::open(&sample.model(dir.path())).unwrap();
            let file = File::options().write(true).open(dir.path().join(name)).unwrap();
            // At the first weights that are packed.
            let once = Once::new();
            let progress = Box::new(move |_, _| once.call_once(|| change(&file)));
            let error = case::load(&files, false, progress).expect_err(label);
            let message = error.to_string();
            assert_eq!(error.kind(), pace_runtime::ErrorKind::Model, "{name} {label}: {message}");
            assert!(message.contains(name) && message.contains("changed"), "{name} {label}: {message}");
        }
    }
}

#[test]
fn damaged_numbers_are_loaded_on_request() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let damaged = weights::damaged();
    assert!(damaged.len() > 20);
    for (label, sample) in damaged {
        let dir = tempfile::tempdir().unwrap();
        sample.write(dir.path());
        let files = pace_runtime::ModelFiles::open(&sample.model(dir.path())).unwrap();
        case::load(&files, true, Box::new(|_, _| {})).unwrap_or_else(|e| panic!("{label}: {e}"));
    }
}

#[test]
fn a_panic_of_the_tokenizer_library_is_an_error_in_silence() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    install_hook();
    // The decoder strips both ends of a token, and takes the same letter for each.
    let strip = serde_json::json!({"type": "Strip", "content": "a", "start": 9, "stop": 9});
    let decoder = serde_json::json!({"decoder": null});
    let sample = Sample::hf().fields(sample::TOKENIZER, decoder);
    let sample = sample.fields(sample::TOKENIZER, serde_json::json!({"decoder": strip}));
    let dir = tempfile::tempdir().unwrap();
    sample.write(dir.path());
    let files = pace_runtime::ModelFiles::open(&sample.model(dir.path())).unwrap();
    let before = SILENT_PANICS.load(Relaxed);
    let error = files.require_tokenizer().unwrap().decode(&[0], false).unwrap_err().to_string();
    assert!(error.contains("the tokenizer library failed"), "{error}");
    assert_eq!(SILENT_PANICS.load(Relaxed), before + 1);
}
