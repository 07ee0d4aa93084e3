//! `quantize`, `pack`, and what runs of what they write.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{Call, arg, copy, fixture, pace};
use crate::{cpus, ids, json, keys};

const WEIGHTS: &str = "model.pace.safetensors";

/// Packs `source` into a directory of its own, and gives the report.
fn packed(source: &str, flags: &[&str]) -> (tempfile::TempDir, PathBuf, Value) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("packed");
    let command = if flags.contains(&"--quant") { "quantize" } else { "pack" };
    let report = json(&pace(&[&[command, source, arg(&target), "--format", "json"], flags].concat()));
    (dir, target, report)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn generated(model: &str, flags: &[&str]) -> Vec<u32> {
    let args = ["generate", "-m", model, "--prompt-tokens", "1,2,3,4", "-n", "12", "--format", "json"];
    ids(&json(&pace(&[&args, flags].concat()))["tokens"])
}

#[test]
fn a_quantised_model_answers_as_its_source_with_the_same_flags() {
    let (dir, target, report) = packed("random:small", &["--quant", "int8:64", "--threads", "1"]);
    assert_eq!(keys(&report), ["model", "path", "files", "bytes", "formats", "losses", "seconds"]);
    assert_eq!((&report["model"], &report["path"]), (&"random:small".into(), &arg(&target).into()));
    assert_eq!(report["formats"][0]["format"], "int8:64");
    assert!(report["losses"][0]["relative_rms"].as_f64().unwrap() > 0.0);
    assert_eq!(names(&target), ["model.pace.safetensors", "pace.json"]);
    let on_disk: u64 = names(&target).iter().map(|name| target.join(name).metadata().unwrap().len()).sum();
    assert_eq!(report["bytes"], on_disk);
    let want = generated("random:small", &["--quant", "int8:64"]);
    for flags in [&[][..], &["--mmap"], &["--quant", "int8:64"]] {
        assert_eq!(generated(arg(&target), flags), want, "{flags:?}");
    }
    assert_eq!(names(dir.path()), ["packed"]);
}

#[test]
fn a_packed_model_is_a_model_for_every_command() {
    let (_dir, target, report) = packed(arg(&fixture("gqa-tied")), &[]);
    assert_eq!(report["losses"], Value::Array(Vec::new()));
    let model = arg(&target);
    let info = json(&pace(&["info", model, "--format", "json"]));
    assert_eq!(info["packed"][0]["format"], "bf16");
    assert_eq!(info["pack"]["origin"], arg(&fixture("gqa-tied")));
    assert_eq!(info["pack"]["origin_files"][0]["name"], "model.safetensors");
    assert!(pace(&["info", model]).text().contains("packed from"));
    let show = json(&pace(&["show", model, "--verify", "--format", "json"]));
    assert!(show["verified_bytes"].as_u64().unwrap() > 0, "{show}");
    let files: Vec<&str> =
        show["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert!(files.contains(&"model.pace.safetensors") && files.contains(&"config.json"), "{files:?}");
    assert!(pace(&["show", model, "--verify"]).text().contains("checksums of pace.json"));
    let args = ["bench", "-m", model, "-p", "8", "-n", "4", "-r", "1", "-o", "json"];
    assert_eq!(pace(&args).code, Some(0));
    let tokens = ["--tokens", "1,2,3,4,5,6,7,8"];
    let score =
        |model: &str| json(&pace(&[&["score", "-m", model, "--format", "json"], &tokens[..]].concat()));
    assert_eq!(score(model), score(arg(&fixture("gqa-tied"))));
}

#[test]
fn a_gguf_file_keeps_its_integers_and_its_tokenizer() {
    let source = fixture("gguf-quant").join("model.gguf");
    let (_dir, target, report) = packed(arg(&source), &["--dtype", "auto"]);
    let info = json(&pace(&["info", arg(&source), "--format", "json"]));
    assert_eq!(report["formats"], info["packed"], "integers stay what they are");
    assert!(names(&target).contains(&"metadata.gguf.bin".to_owned()), "{:?}", names(&target));
    assert_eq!(generated(arg(&target), &[]), generated(arg(&source), &[]));
    let show = json(&pace(&["show", arg(&target), "--format", "json"]));
    assert_eq!(show["files"].as_array().unwrap().len(), 3);
}

#[test]
fn a_source_that_has_changed_is_refused() {
    let (source, dir) = (copy("gqa-tied"), tempfile::tempdir().unwrap());
    let target = dir.path().join("packed");
    std::fs::create_dir(dir.path().join(".packed.partial-1-0")).unwrap();
    let out = pace(&["pack", arg(source.path()), arg(&target)]);
    assert!(out.code == Some(0) && out.stderr.contains(".packed.partial-1-0: another run"), "{}", out.stderr);
    let info = || pace(&["info", arg(&target)]);
    for name in ["model.safetensors", "config.json"] {
        assert_eq!(info().code, Some(0));
        let file = std::fs::File::options().append(true).open(source.path().join(name)).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        info().assert_refused(3, &["pace.json", name, "has changed since it was packed", "--force"]);
        file.set_modified(before).unwrap();
    }
    std::fs::remove_file(source.path().join("config.json")).unwrap();
    assert_eq!(info().code, Some(0), "a pack does without its source");
}

#[test]
fn instances_of_a_packed_model_share_it() {
    let (_dir, target, _) = packed("random:small", &["--quant", "int4"]);
    let two = format!("{0};{0}", cpus()[0]);
    let run = |model: &str, flags: &[&str]| {
        let args = ["throughput", "-m", model, "--random", "--cores", &two, "--format", "json"];
        json(&pace(&[&args, flags].concat()))["requests"].clone()
    };
    let answers = |requests: Value| -> Vec<Value> {
        requests.as_array().unwrap().iter().map(|request| request["tokens"].clone()).collect()
    };
    let want = answers(run("random:small", &["--quant", "int4"]));
    for flags in [&["--processes"][..], &["--processes", "--mmap"], &["--mmap"]] {
        assert_eq!(answers(run(arg(&target), flags)), want, "{flags:?}");
    }
}

#[test]
fn what_is_packed_otherwise_than_asked_for_is_an_error_of_the_command_line() {
    let (_dir, target, _) = packed("random:small", &["--quant", "int8"]);
    let run =
        |flags: &[&str]| pace(&[&["generate", "-m", arg(&target), "--prompt-tokens", "1"], flags].concat());
    run(&["--quant", "int4"]).assert_refused(2, &["packed as int8", "int4:32", "pace-cli quantize"]);
    run(&["--dtype", "bf16"]).assert_refused(2, &["packed as int8", "bf16"]);
    run(&["--quant-lm-head", "int8:64"]).assert_refused(2, &["packed as int8", "int8:64"]);
    let (_dir, floats, _) = packed("random:small", &[]);
    let args = ["generate", "-m", arg(&floats), "--prompt-tokens", "1", "--op", "mlp=native"];
    pace(&args).assert_refused(2, &["panels of 64", "in rows"]);
    let args = ["generate", "-m", arg(&floats), "--prompt-tokens", "1"];
    let narrow = Call::new(&args).env("LIBXSMM_BLOCK_SIZE", "32").run();
    narrow.assert_refused(2, &["panels of 64", "panels of 32"]);
}

#[test]
fn targets_and_sources_that_make_no_sense_are_refused() {
    let (dir, target, _) = packed("random:tiny", &[]);
    let to = arg(&target);
    pace(&["pack", "random:tiny", to]).assert_refused(2, &["--force"]);
    pace(&["quantize", "random:tiny", to]).assert_refused(2, &["--quant"]);
    pace(&["quantize", "random:tiny", to, "--quant", "none"]).assert_refused(2, &["pace-cli pack"]);
    let again = arg(&dir.path().join("again")).to_owned();
    pace(&["pack", to, &again]).assert_refused(3, &["packed already", "random:tiny"]);
    pace(&["show", "random:tiny", "--verify"]).assert_refused(2, &["no packed model"]);
    assert_eq!(names(dir.path()), ["packed"]);
    assert_eq!(pace(&["pack", "random:tiny", to, "--force", "--dtype", "f32"]).code, Some(0));
    pace(&["generate", "-m", to, "--prompt-tokens", "1"]).assert_refused(2, &["--dtype f32"]);
    assert_eq!(names(dir.path()), ["packed"]);
}

#[test]
fn damage_is_found_by_show_and_an_old_layout_by_every_command() {
    let (_dir, target, _) = packed("random:tiny", &[]);
    let weights = target.join("model.pace.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    pace(&["show", arg(&target), "--verify"]).assert_refused(3, &["is damaged", "pace-cli pack"]);
    let manifest = std::fs::read_to_string(target.join("pace.json")).unwrap();
    std::fs::write(target.join("pace.json"), manifest.replace("\"layout\": 1", "\"layout\": 0")).unwrap();
    let run = pace(&["generate", "-m", arg(&target), "--prompt-tokens", "1"]);
    run.assert_refused(3, &["field `layout`", "is 0", "pace-cli pack"]);
}

/// Writes beyond so many blocks of 512 bytes fail, as on a full disk.
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" pack random:small \"$1\"";
    let packed = dir.path().join("packed");
    let args = ["-c", script, env!("CARGO_BIN_EXE_pace-cli"), arg(&packed)];
    let run = Command::new("sh").args(args).output().unwrap();
    let message = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(4), "{message}");
    assert!(message.contains("cannot write") && message.contains("model.pace.safetensors"), "{message}");
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[test]
fn a_signal_while_it_writes_leaves_nothing_behind() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("packed");
        let begun = || names(dir.path()).iter().any(|at| dir.path().join(at).join(WEIGHTS).exists());
        let start = Instant::now();
        let run = Call::new(&["pack", "random:small", arg(&target)]).run_with(true, |child| {
            while !begun() {
                assert!(start.elapsed() < Duration::from_secs(60), "it does not get that far");
                thread::sleep(Duration::from_micros(200));
            }
            // It may be ready already.
            let _ = kill_process(Pid::from_child(child), signal);
        });
        if run.code == Some(0) {
            assert_eq!(names(dir.path()), ["packed"]);
        } else {
            run.assert_refused(code, &["error: interrupted"]);
            assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
        }
    }
}

#[test]
fn a_source_that_cannot_be_loaded_leaves_nothing_behind() {
    let (source, dir) = (copy("gqa-tied"), tempfile::tempdir().unwrap());
    let weights = source.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let damaged = [&bytes[..header], &vec![0xff; bytes.len() - header]].concat();
    std::fs::write(&weights, damaged).unwrap();
    let target = dir.path().join("packed");
    pace(&["quantize", arg(source.path()), arg(&target), "--quant", "int8"])
        .assert_refused(3, &["model.safetensors", "finite"]);
    assert!(names(dir.path()).is_empty());
}
