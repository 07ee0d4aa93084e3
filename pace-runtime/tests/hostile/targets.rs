//! What is done with bytes that may be anything: the fuzz targets, and the replay of their corpus. Each function
//! returns whatever the bytes are; what it asserts holds of every file that is accepted.

use std::path::Path;

use pace_models::Architecture;
use pace_models::config::HfConfig;
use pace_models::weights::WeightSource;
use pace_models::weights::gguf::GgufFile;
use pace_models::weights::safetensors::SafetensorsSource;
use pace_runtime::chat::{ChatTemplate, MAX_OUTPUT_BYTES, Message};
use pace_runtime::generation_config::GenerationConfig;
use pace_runtime::tokenizer::Tokenizer;

/// Most numbers that are read of one tensor.
const MOST_NUMBERS: usize = 1 << 12;

/// A target: takes any bytes.
pub(crate) type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub(crate) const ALL: [(&str, Target); 5] = [
    ("safetensors_header", safetensors_header),
    ("gguf", gguf),
    ("config", config),
    ("tokenizer", tokenizer),
    ("chat_template", chat_template),
];

/// A checkpoint file: header, layout, reading.
pub(crate) fn safetensors_header(data: &[u8]) {
    with_files(&["model.safetensors"], data, |dir| {
        if let Ok(source) = SafetensorsSource::open(dir) {
            read_all(&source);
        }
    });
}

/// A GGUF file: header, hyperparameters, tokenizer, template, reading.
pub(crate) fn gguf(data: &[u8]) {
    with_files(&["model.gguf"], data, |dir| {
        let Ok(file) = GgufFile::open(&dir.join("model.gguf")) else { return };
        read_all(&file);
        let metadata = file.metadata();
        if let Ok(architecture) = Architecture::from_gguf(metadata)
            && let Ok(spec) = architecture.spec_from_gguf(metadata, &file)
        {
            let _ = architecture.validate_shapes(&file, &spec);
        }
        if let Ok(Some(tokenizer)) = Tokenizer::from_gguf(metadata) {
            use_tokenizer(&tokenizer);
        }
    });
}

/// `config.json`, and the same bytes as `generation_config.json`.
pub(crate) fn config(data: &[u8]) {
    with_files(&["config.json", "generation_config.json"], data, |dir| {
        let _ = GenerationConfig::read(dir);
        let Ok(config) = HfConfig::read(dir) else { return };
        let _ = config.root().token_ids("eos_token_id");
        let Ok(architecture) = Architecture::from_hf(&config) else { return };
        if let Ok(spec) = architecture.spec_from_hf(&config) {
            // Sizes of an accepted configuration can be counted, however absurd they are.
            assert!(spec.weight_bytes(pace_kernels::WeightFormat::F32) >= spec.parameters());
            assert!(spec.kv_bytes_per_token(pace_kernels::DType::F32) > 0);
        }
    });
}

/// `tokenizer.json`, then encoding and decoding with what it makes.
pub(crate) fn tokenizer(data: &[u8]) {
    with_files(&["tokenizer.json"], data, |dir| {
        if let Ok(Some(tokenizer)) = Tokenizer::from_dir(dir) {
            use_tokenizer(&tokenizer);
        }
    });
}

/// A chat template, compiled and rendered.
pub(crate) fn chat_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) else { return };
    let messages = [Message::system("Be brief."), Message::user("Hello {{ 7 }}"), Message::assistant("")];
    for messages in [&messages[1..2], &messages] {
        if let Ok(text) = template.render(messages, true) {
            assert!(text.len() <= MAX_OUTPUT_BYTES);
        }
    }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    let size = tokenizer.vocab_size();
    for text in ["", "a", "ab abc <s>x</s>", " \t\r\n12345 it's", "é🙂\u{0}\u{feff}ﬀ"] {
        for special in [true, false] {
            let Ok(ids) = tokenizer.encode(text, special, special) else { continue };
            assert!(ids.iter().all(|&id| (id as usize) < size), "{ids:?} of {size}");
            let _ = tokenizer.decode(&ids, special);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, u32::MAX], false);
    let _ = ChatTemplate::from_tokenizer(tokenizer);
}

/// Reads the beginning of every tensor.
fn read_all(source: &dyn WeightSource) {
    let mut numbers = vec![0.0; MOST_NUMBERS];
    for info in source.tensors() {
        assert_eq!(source.info(&info.name), Some(info));
        let elements: usize = info.shape.iter().product();
        let row = info.shape.last().copied().unwrap_or(1).max(1);
        let wanted = elements.min(MOST_NUMBERS / row * row);
        if source.read_f32(&info.name, 0, &mut numbers[..wanted]).is_ok() {
            assert!(numbers[..wanted].iter().all(|x| x.is_finite()));
        }
        assert!(
            wanted == 0 || source.read_f32(&info.name, elements, &mut numbers[..row.min(wanted)]).is_err()
        );
    }
}

/// Calls `f` with a directory in which each of `names` holds `data`.
fn with_files(names: &[&str], data: &[u8], f: impl FnOnce(&Path)) {
    // In memory where the system has such a place: a fuzzer writes some thousand files a second.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a temporary directory");
    for name in names {
        std::fs::write(dir.path().join(name), data).expect("a file in a temporary directory");
    }
    f(dir.path());
}
