//! A Hugging Face `config.json`: [`HfConfig`] keeps the JSON object and hands out fields with their type and
//! range checked. What the fields mean is the business of [`arch`](crate::arch).
//!
//! Every error names the file, the field (dotted where nested) and what would be right. As in transformers, a
//! field that is `null` counts as absent.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::file::{check_json_size, clip, read_text};

/// Largest `config.json` that is read, in bytes: real ones have a few kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// The parsed `config.json` of a model directory.
#[derive(Clone, Debug)]
pub struct HfConfig {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl HfConfig {
    /// Reads `config.json` in the directory `dir`.
    ///
    /// # Errors
    /// The file cannot be read, is longer than 4 MiB or of more than 65,536 values, or is not a
    /// JSON object.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let text = read_text(&path, MAX_BYTES)?;
        check_json_size(&path, text.as_bytes())?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => Ok(Self { path, fields }),
            Ok(other) => {
                Err(ModelError::file(&path, format!("must be a JSON object, but is {}", shown(&other))))
            }
            Err(e) => Err(ModelError::file(&path, format!("is not JSON: {}", clip(&e.to_string())))),
        }
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The fields of the outermost object.
    pub fn root(&self) -> Section<'_> {
        Section { path: &self.path, prefix: String::new(), fields: &self.fields }
    }
}

/// One JSON object of a configuration: the outermost one, or one nested in it.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    path: &'a Path,
    /// What stands before a field's name in messages: empty, or `rope_scaling.`.
    prefix: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The field as it stands in the file; `None` if it is absent or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether the object has no field at all.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// The field is something else.
    pub fn usize(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ModelError> {
        self.typed(name, &format!("a whole number from {} to {}", range.start(), range.end()), |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n))
        })
    }

    /// As [`usize`](Self::usize), for a field that must be there.
    ///
    /// # Errors
    /// The field is absent or something else.
    pub fn require_usize(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, ModelError> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.usize(name, range)?.ok_or_else(|| self.missing(name, &expected))
    }

    /// A finite number.
    ///
    /// # Errors
    /// The field is something else.
    pub fn f64(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.typed(name, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// As [`f64`](Self::f64), for a field that must be there.
    ///
    /// # Errors
    /// The field is absent or something else.
    pub fn require_f64(&self, name: &str) -> Result<f64, ModelError> {
        self.f64(name)?.ok_or_else(|| self.missing(name, "a finite number"))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// The field is something else.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ModelError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// The field is something else.
    pub fn str(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// As [`str`](Self::str), for a field that must be there.
    ///
    /// # Errors
    /// The field is absent or something else.
    pub fn require_str(&self, name: &str) -> Result<&'a str, ModelError> {
        self.str(name)?.ok_or_else(|| self.missing(name, "a string"))
    }

    /// A token id or a list of them; none when the field is absent.
    ///
    /// # Errors
    /// The field is something else.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(name, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(id).collect::<Option<Vec<u32>>>(),
            // Some configurations write -1 for none.
            one if one.as_i64() == Some(-1) => Some(Vec::new()),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// A nested object.
    ///
    /// # Errors
    /// The field is something else.
    pub fn section(&self, name: &str) -> Result<Option<Self>, ModelError> {
        let fields = self.typed(name, "an object", Value::as_object)?;
        let nested = |fields| Self { path: self.path, prefix: format!("{}{name}.", self.prefix), fields };
        Ok(fields.map(nested))
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.fields.keys().map(String::as_str)
    }

    /// The error for field `name` of this object.
    pub fn error(&self, name: &str, what: impl Into<String>) -> ModelError {
        ModelError::field(self.path, format!("{}{name}", self.prefix), what)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.error(name, format!("must be {expected}, but is {}", shown(value)))),
        }
    }

    fn missing(&self, name: &str, expected: &str) -> ModelError {
        self.error(name, format!("is missing; it must be {expected}"))
    }
}

/// A value as a message shows it: short, whatever the file holds.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => clip(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HfConfig, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        HfConfig::read(dir.path())
    }

    #[test]
    fn fields_come_with_their_type_and_null_is_absent() {
        let config =
            read(r#"{"n": 3, "x": 2, "y": 1e-5, "b": true, "s": "silu", "o": {"n": 4}, "z": null}"#).unwrap();
        let root = config.root();
        assert_eq!(root.usize("n", 1..=3).unwrap(), Some(3));
        assert_eq!(root.f64("x").unwrap(), Some(2.0));
        assert_eq!(root.require_f64("y").unwrap(), 1e-5);
        assert_eq!(root.bool("b").unwrap(), Some(true));
        assert_eq!(root.require_str("s").unwrap(), "silu");
        assert_eq!(root.section("o").unwrap().unwrap().require_usize("n", 0..=9).unwrap(), 4);
        assert_eq!(root.usize("z", 1..=3).unwrap(), None);
        assert!(root.get("z").is_none() && root.get("gone").is_none());
        assert!(root.section("z").unwrap().is_none());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_file_and_what_would_be_right() {
        let config =
            read(r#"{"n": 30, "f": 1.5, "m": -1, "b": 1, "s": ["a"], "o": {"q": "1"}, "p": {}}"#).unwrap();
        let root = config.root();
        let nested = root.section("o").unwrap().unwrap();
        let cases = [
            (root.usize("n", 1..=8).unwrap_err(), "`n`: must be a whole number from 1 to 8, but is 30"),
            (root.usize("f", 1..=8).unwrap_err(), "`f`: must be a whole number from 1 to 8, but is 1.5"),
            (root.usize("m", 1..=8).unwrap_err(), "`m`: must be a whole number from 1 to 8, but is -1"),
            (root.usize("b", 2..=8).unwrap_err(), "`b`: must be a whole number from 2 to 8, but is 1"),
            (root.bool("b").unwrap_err(), "`b`: must be true or false, but is 1"),
            (root.str("s").unwrap_err(), "`s`: must be a string, but is an array"),
            (root.section("n").unwrap_err(), "`n`: must be an object, but is 30"),
            (root.f64("p").unwrap_err(), "`p`: must be a finite number, but is an object"),
            (root.require_usize("gone", 1..=8).unwrap_err(), "`gone`: is missing"),
            (root.require_f64("gone").unwrap_err(), "`gone`: is missing"),
            (root.require_str("gone").unwrap_err(), "`gone`: is missing; it must be a string"),
            (nested.f64("q").unwrap_err(), "`o.q`: must be a finite number, but is \"1\""),
            (nested.require_f64("gone").unwrap_err(), "`o.gone`: is missing"),
        ];
        for (error, expected) in cases {
            let message = error.to_string();
            assert!(message.contains("config.json: field ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn what_is_not_a_json_object_is_refused() {
        let deep = "[".repeat(100_000);
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_BYTES as usize));
        let cases = [
            ("", "is not JSON"),
            ("[]", "must be a JSON object, but is an array"),
            ("3", "must be a JSON object, but is 3"),
            ("{\"a\": 1", "is not JSON"),
            ("{\"a\": NaN}", "is not JSON"),
            ("{\"a\": 1e999}", "is not JSON"),
            ("{\"a\": 1} x", "is not JSON"),
            (&deep, "at most 65536 are read"),
            (&long, "at most 4194304 are read"),
        ];
        for (text, expected) in cases {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("config.json") && message.contains(expected), "{message}");
            assert!(message.len() < 600, "{}", message.len());
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(HfConfig::read(empty.path()), Err(ModelError::Io { .. })));
    }
}
