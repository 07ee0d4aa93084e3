//! `generation_config.json` of a checkpoint: the model's own defaults, below what the user asks for.

use std::io;
use std::path::{Path, PathBuf};

use pace_models::ModelError;
use pace_models::file::{check_json_size, read_bytes};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::sampler::{GREEDY_TEMPERATURE, ParamError, SamplingParams};

/// Name of the file inside a checkpoint's directory.
const FILE_NAME: &str = "generation_config.json";
/// Longest file that is read, in bytes: real ones have some hundred.
const MAX_BYTES: u64 = 1 << 20;

/// What a checkpoint says about generation. A field that is absent or null in the file is `None`.
///
/// An absent filter is off, where transformers would still apply its own default of `top_k = 50`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether the model is meant to be sampled.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// The most tokens to make, if the request does not say.
    pub max_new_tokens: Option<usize>,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// The token that fills up a batch.
    pub pad_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`; `None` if there is no such file.
    ///
    /// Trailing commas are tolerated, a token id of -1 means none, and unknown fields are passed over.
    ///
    /// # Errors
    /// An unreadable file, a file that is not a JSON object, a field of the wrong type, or a sampling
    /// parameter outside its range. Each error names the file.
    pub fn read(dir: &Path) -> Result<Option<Self>, GenerationConfigError> {
        let path = dir.join(FILE_NAME);
        match read_bytes(&path, MAX_BYTES) {
            Ok(bytes) => Self::parse(&path, bytes).map(Some),
            Err(ModelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The tokens that end a sequence: sorted, each once, possibly none.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// The parameters of a request: the user's explicit values win over the file's, which win over the
    /// defaults.
    ///
    /// Whether to sample is decided by the first of these that speaks:
    /// 1. an explicit `do_sample`;
    /// 2. an explicit temperature: below [`GREEDY_TEMPERATURE`] greedy, otherwise sampling;
    /// 3. an explicit top-k, top-p or min-p that filters at all: sampling, at the file's temperature or 1;
    /// 4. the file's `do_sample`; without one, greedy.
    ///
    /// A seed or a penalty alone does not turn sampling on. The result is not validated:
    /// [`Sampler::new`](crate::sampler::Sampler::new) does that.
    pub fn apply(&self, overrides: &SamplingOverrides) -> SamplingParams {
        let base = SamplingParams::default();
        SamplingParams {
            do_sample: overrides.wants_sampling().or(self.do_sample).unwrap_or(base.do_sample),
            temperature: overrides.temperature.or(self.temperature).unwrap_or(base.temperature),
            top_k: overrides.top_k.or(self.top_k).unwrap_or(base.top_k),
            top_p: overrides.top_p.or(self.top_p).unwrap_or(base.top_p),
            min_p: overrides.min_p.or(self.min_p).unwrap_or(base.min_p),
            repetition_penalty: overrides
                .repetition_penalty
                .or(self.repetition_penalty)
                .unwrap_or(base.repetition_penalty),
            frequency_penalty: overrides.frequency_penalty.unwrap_or(base.frequency_penalty),
            presence_penalty: overrides.presence_penalty.unwrap_or(base.presence_penalty),
            seed: overrides.seed,
            min_new_tokens: overrides.min_new_tokens.unwrap_or(base.min_new_tokens),
        }
    }

    fn parse(path: &Path, mut bytes: Vec<u8>) -> Result<Self, GenerationConfigError> {
        check_json_size(path, &bytes)?;
        blank_trailing_commas(&mut bytes);
        let syntax = |reason: String| GenerationConfigError::Syntax { path: path.to_owned(), reason };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| syntax(error.to_string()))?;
        let Value::Object(map) = value else {
            return Err(syntax(format!("a JSON object was expected, but it is {}", describe(&value))));
        };
        let fields = Fields { path, map: &map };
        let config = Self {
            do_sample: fields.read("do_sample", "true or false", Value::as_bool)?,
            temperature: fields.number("temperature")?,
            top_k: fields.count("top_k")?,
            top_p: fields.number("top_p")?,
            min_p: fields.number("min_p")?,
            repetition_penalty: fields.number("repetition_penalty")?,
            max_new_tokens: fields.count("max_new_tokens")?,
            bos_token_id: fields.read("bos_token_id", "a token id", token_id)?.flatten(),
            pad_token_id: fields.read("pad_token_id", "a token id", token_id)?.flatten(),
            eos_token_ids: fields
                .read("eos_token_id", "a token id or a list of them", token_ids)?
                .unwrap_or_default(),
        };
        config
            .apply(&SamplingOverrides::default())
            .validate()
            .map_err(|source| GenerationConfigError::Param { path: path.to_owned(), source })?;
        Ok(config)
    }
}

/// What the user asks for explicitly, by flags or in a request; `None` leaves the choice to the model's file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOverrides {
    /// See [`SamplingParams::do_sample`]; usually left out, see [`GenerationConfig::apply`].
    pub do_sample: Option<bool>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// See [`SamplingParams::seed`].
    pub seed: Option<u64>,
    /// See [`SamplingParams::min_new_tokens`].
    pub min_new_tokens: Option<usize>,
}

impl SamplingOverrides {
    /// Whether the user's values ask for sampling or against it; `None` if they say nothing about it.
    fn wants_sampling(&self) -> Option<bool> {
        let filters = self.top_k.is_some_and(|k| k > 0)
            || self.top_p.is_some_and(|p| p < 1.0)
            || self.min_p.is_some_and(|p| p > 0.0);
        self.do_sample
            .or_else(|| self.temperature.map(|t| t >= GREEDY_TEMPERATURE))
            .or_else(|| filters.then_some(true))
    }
}

/// Why a `generation_config.json` cannot be used.
#[derive(Debug, Error)]
pub enum GenerationConfigError {
    /// A field has the wrong type.
    #[error("{}: {field} is {found}, but must be {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// What the field may hold.
        expected: &'static str,
        /// What it holds, shortened.
        found: String,
    },
    /// A sampling parameter is outside its range.
    #[error("{}: {source}", path.display())]
    Param {
        /// The file.
        path: PathBuf,
        /// The parameter, its value and its range.
        source: ParamError,
    },
    /// The file exists but cannot be read, is no regular file, or is too large.
    #[error(transparent)]
    File(#[from] ModelError),
    /// The file is not a JSON object.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
}

/// The fields of the file, with the path that errors name.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn read<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, GenerationConfigError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| GenerationConfigError::Field {
                path: self.path.to_owned(),
                field,
                expected,
                found: describe(value),
            }),
        }
    }

    fn number(&self, field: &'static str) -> Result<Option<f32>, GenerationConfigError> {
        self.read(field, "a number", |value| value.as_f64().map(|v| v as f32))
    }

    fn count(&self, field: &'static str) -> Result<Option<usize>, GenerationConfigError> {
        self.read(field, "an integer of at least 0", |value| value.as_u64()?.try_into().ok())
    }
}

/// A token id; `Some(None)` for -1, by which older checkpoints say that there is none.
fn token_id(value: &Value) -> Option<Option<u32>> {
    match value.as_i64()? {
        -1 => Some(None),
        id => u32::try_from(id).ok().map(Some),
    }
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let one = std::slice::from_ref(value);
    let list = value.as_array().map_or(one, Vec::as_slice);
    let ids: Option<Vec<Option<u32>>> = list.iter().map(token_id).collect();
    let mut ids: Vec<u32> = ids?.into_iter().flatten().collect();
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

/// The value as it stands in the file, cut to a length that an error message can hold.
fn describe(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Turns each comma between a value and a closing bracket into a space, so that positions in errors stay
/// right.
///
/// Strings are passed over. A comma that follows no value, as in `[,]` or `[1,,]`, is left for the parser
/// to refuse.
fn blank_trailing_commas(json: &mut [u8]) {
    let (mut in_string, mut escaped) = (false, false);
    let mut comma = None;
    let mut previous = b'[';
    for index in 0..json.len() {
        let byte = json[index];
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => continue,
            b',' => comma = (!matches!(previous, b'[' | b'{' | b',')).then_some(index),
            b']' | b'}' => {
                if let Some(at) = comma.take() {
                    json[at] = b' ';
                }
            }
            _ => {
                in_string = byte == b'"';
                comma = None;
            }
        }
        previous = byte;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<GenerationConfig, GenerationConfigError> {
        GenerationConfig::parse(Path::new("m/generation_config.json"), text.as_bytes().to_vec())
    }

    #[test]
    fn a_directory_without_the_file_has_no_config() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(GenerationConfig::read(dir.path()).expect("no error"), None);
        fs::write(dir.path().join(FILE_NAME), r#"{"top_k": 5, "eos_token_id": 2,}"#).expect("written");
        let config = GenerationConfig::read(dir.path()).expect("valid").expect("there");
        assert_eq!((config.top_k, config.eos_ids()), (Some(5), &[2u32][..]));
    }

    #[test]
    fn an_unreadable_file_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(FILE_NAME)).expect("made");
        let error = GenerationConfig::read(dir.path()).expect_err("a directory is no file");
        assert!(matches!(error, GenerationConfigError::File(_)), "{error}");
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }

    #[test]
    fn every_field_is_read() {
        let config = parse(
            r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05,
                "repetition_penalty": 1.1, "max_new_tokens": 2048, "bos_token_id": 1, "pad_token_id": -1,
                "eos_token_id": [128009, 128001, 128009], "transformers_version": "4.45.0", "x": {"a": [1]}}"#,
        )
        .expect("valid");
        let expected = GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            max_new_tokens: Some(2048),
            bos_token_id: Some(1),
            pad_token_id: None,
            eos_token_ids: vec![128_001, 128_009],
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn null_is_absent() {
        let text = r#"{"do_sample": null, "temperature": null, "top_k": null, "eos_token_id": null}"#;
        assert_eq!(parse(text).expect("valid"), GenerationConfig::default());
        assert_eq!(parse("{}").expect("valid"), GenerationConfig::default());
        assert_eq!(parse(r#"{"eos_token_id": -1}"#).expect("valid").eos_ids(), &[] as &[u32]);
    }

    #[test]
    fn wrong_types_and_ranges_name_the_file_and_the_field() {
        let cases = [
            (r#"{"do_sample": 1}"#, "do_sample is 1, but must be true or false"),
            (r#"{"temperature": "hot"}"#, "temperature is \"hot\", but must be a number"),
            (r#"{"temperature": -1}"#, "temperature is -1, but must be finite and at least 0"),
            (r#"{"temperature": 1e300}"#, "temperature is inf"),
            (r#"{"top_p": 1.5}"#, "top_p is 1.5, but must be above 0 and at most 1"),
            (r#"{"top_k": 2.5}"#, "top_k is 2.5, but must be an integer of at least 0"),
            (r#"{"top_k": -1}"#, "top_k is -1"),
            (r#"{"max_new_tokens": 99999999999999999999999}"#, "max_new_tokens is"),
            (r#"{"eos_token_id": [1, "2"]}"#, "eos_token_id is [1,\"2\"], but must be a token id or a list"),
            (r#"{"eos_token_id": [[1]]}"#, "eos_token_id is [[1]]"),
            (r#"{"eos_token_id": 4294967296}"#, "eos_token_id is 4294967296"),
            (r#"{"bos_token_id": -2}"#, "bos_token_id is -2, but must be a token id"),
            (r#"{"pad_token_id": {}}"#, "pad_token_id is {}"),
            ("[1]", "a JSON object was expected, but it is [1]"),
            ("{", "EOF while parsing"),
            ("", "EOF while parsing"),
            (r#"{"top_k": 1,, }"#, "line 1 column"),
            ("{,}", "line 1 column"),
            ("{\"a\": \"\u{7}\"}", "control character"),
        ];
        for (text, expected) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with("m/generation_config.json: "), "{error}");
            assert!(error.contains(expected), "{text}: {error}");
        }
        let not_utf8 = GenerationConfig::parse(Path::new("f"), b"{\"a\": \"\xff\"}".to_vec());
        assert!(matches!(not_utf8, Err(GenerationConfigError::Syntax { .. })));
    }

    #[test]
    fn a_long_value_is_shortened_in_the_message() {
        let error = parse(&format!(r#"{{"top_k": "{}"}}"#, "é".repeat(500))).expect_err("a string");
        assert!(error.to_string().chars().count() < 160, "{error}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse(&format!("{{\"a\": {}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn only_trailing_commas_outside_strings_are_blanked() {
        let cases = [
            ("{\"a\": [1, 2,],}", "{\"a\": [1, 2 ] }"),
            ("[1 , \n\t]", "[1   \n\t]"),
            (r#"[",]", ",}",]"#, r#"[",]", ",}" ]"#),
            (r#"["\",]",]"#, r#"["\",]" ]"#),
            (r#"["\\",]"#, r#"["\\" ]"#),
            ("[[],{},]", "[[],{} ]"),
            ("[1,,]", "[1,,]"),
            ("[,]", "[,]"),
            ("[1,2]", "[1,2]"),
        ];
        for (text, expected) in cases {
            let mut bytes = text.as_bytes().to_vec();
            blank_trailing_commas(&mut bytes);
            assert_eq!(String::from_utf8(bytes).expect("UTF-8"), expected);
        }
    }

    #[test]
    fn explicit_values_win_and_decide_whether_to_sample() {
        let none = SamplingOverrides::default;
        let sampled =
            GenerationConfig { do_sample: Some(true), temperature: Some(0.6), ..Default::default() };
        let greedy = GenerationConfig { do_sample: Some(false), ..sampled.clone() };
        let absent = GenerationConfig::default();
        let cases = [
            (&absent, none(), false, 1.0),
            (&greedy, none(), false, 0.6),
            (&sampled, none(), true, 0.6),
            (&absent, SamplingOverrides { temperature: Some(0.8), ..none() }, true, 0.8),
            (&greedy, SamplingOverrides { temperature: Some(0.8), ..none() }, true, 0.8),
            (&sampled, SamplingOverrides { temperature: Some(0.0), ..none() }, false, 0.0),
            (&sampled, SamplingOverrides { temperature: Some(0.0), top_k: Some(5), ..none() }, false, 0.0),
            (&greedy, SamplingOverrides { top_k: Some(5), ..none() }, true, 0.6),
            (&absent, SamplingOverrides { top_p: Some(0.9), ..none() }, true, 1.0),
            (&absent, SamplingOverrides { min_p: Some(0.1), ..none() }, true, 1.0),
            (
                &absent,
                SamplingOverrides { top_k: Some(0), top_p: Some(1.0), min_p: Some(0.0), ..none() },
                false,
                1.0,
            ),
            (
                &absent,
                SamplingOverrides { seed: Some(1), repetition_penalty: Some(1.2), ..none() },
                false,
                1.0,
            ),
            (&sampled, SamplingOverrides { do_sample: Some(false), top_k: Some(5), ..none() }, false, 0.6),
            (&absent, SamplingOverrides { do_sample: Some(true), ..none() }, true, 1.0),
        ];
        for (config, overrides, do_sample, temperature) in cases {
            let params = config.apply(&overrides);
            assert_eq!((params.do_sample, params.temperature), (do_sample, temperature), "{overrides:?}");
        }
    }

    #[test]
    fn values_are_taken_from_the_user_then_the_file_then_the_defaults() {
        let file = GenerationConfig { top_k: Some(20), repetition_penalty: Some(1.1), ..Default::default() };
        let user = SamplingOverrides {
            top_k: Some(3),
            frequency_penalty: Some(0.2),
            presence_penalty: Some(0.3),
            seed: Some(9),
            min_new_tokens: Some(4),
            ..Default::default()
        };
        let expected = SamplingParams {
            do_sample: true,
            temperature: 1.0,
            top_k: 3,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            presence_penalty: 0.3,
            seed: Some(9),
            min_new_tokens: 4,
        };
        assert_eq!(file.apply(&user), expected);
    }

    proptest! {
        #[test]
        fn valid_json_is_left_as_it_is(strings in prop::collection::vec("[\\[\\]{},\"\\\\ a]{0,8}", 0..6)) {
            let text = serde_json::to_string_pretty(&strings).expect("JSON");
            let mut bytes = text.clone().into_bytes();
            blank_trailing_commas(&mut bytes);
            prop_assert_eq!(bytes, text.into_bytes());
        }

        #[test]
        fn any_bytes_are_a_config_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // It must return, whatever the bytes are.
            drop(GenerationConfig::parse(Path::new("f"), bytes));
        }
    }
}
