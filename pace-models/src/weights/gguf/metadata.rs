//! [`Metadata`]: the key-value part of a GGUF file, with accessors whose errors name file and field.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::reader::{Fault, wrong};
use super::value::{Array, Value};
use crate::ModelError;

/// Metadata in the order of the file.
///
/// An accessor gives `None` where the key is absent, and an error where its value is of another type; the
/// `require_` forms make absence an error too.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    pairs: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), pairs: Vec::new(), by_key: HashMap::new() }
    }

    /// Appends a pair; a key that is there already is a fault.
    pub(super) fn insert(&mut self, key: &str, value: Value) -> Result<(), Fault> {
        if self.by_key.insert(key.to_owned(), self.pairs.len()).is_some() {
            return wrong("the key occurs twice; each may occur once");
        }
        self.pairs.push((key.to_owned(), value));
        Ok(())
    }

    /// The file that the metadata came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// All pairs, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&at| &self.pairs[at].1)
    }

    /// A string.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number of any integer type, not negative.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number of 0 or more", Value::as_u64)
    }

    /// A finite number of any type; a 64-bit integer is rounded.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a finite number", Value::as_f64)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of whole numbers of any integer type, borrowed where the file has 32-bit signed ones.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none, or a number does not fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>, ModelError> {
        self.typed(key, "an array of whole numbers that fit in 32 bits", |value| match value {
            Value::Array(Array::I32(numbers)) => Some(Cow::Borrowed(numbers.as_slice())),
            Value::Array(array) => array.to_i32s().map(Cow::Owned),
            _ => None,
        })
    }

    /// An array of 32-bit floats, as they are: NaN and infinities included.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the value is none.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, ModelError> {
        self.typed(key, "an array of 32-bit floats", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// A string that must be there.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the key is absent or its value is no string.
    pub fn require_str(&self, key: &str) -> Result<&str, ModelError> {
        self.required(key, "a string", self.str(key)?)
    }

    /// A whole number that must be there, not negative.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the key is absent or its value is no such number.
    pub fn require_u64(&self, key: &str) -> Result<u64, ModelError> {
        self.required(key, "a whole number of 0 or more", self.u64(key)?)
    }

    /// A finite number that must be there.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the key is absent or its value is no such number.
    pub fn require_f64(&self, key: &str) -> Result<f64, ModelError> {
        self.required(key, "a finite number", self.f64(key)?)
    }

    /// An array of strings that must be there.
    ///
    /// # Errors
    /// [`ModelError::Field`]: the key is absent or its value is no array of strings.
    pub fn require_strings(&self, key: &str) -> Result<&[String], ModelError> {
        self.required(key, "an array of strings", self.strings(key)?)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || {
            // A long text would drown the message.
            let shown: String = value.to_string().chars().take(80).collect();
            ModelError::field(&self.path, key, format!("{shown} is {}; {wanted} is right", value.type_name()))
        };
        convert(value).map(Some).ok_or_else(wrong)
    }

    fn required<T>(&self, key: &str, wanted: &str, found: Option<T>) -> Result<T, ModelError> {
        found.ok_or_else(|| ModelError::field(&self.path, key, format!("missing; {wanted} is right")))
    }
}
