//! [`Part`]: a JSON value that stays small in memory.

use std::{cell::Cell, fmt};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values that one part of a file may hold; those of real models hold some hundred.
const MAX_VALUES: usize = 1 << 14;

/// A JSON value of at most 16,384 values in all, because each takes far more memory than it takes bytes in a file.
#[derive(Default)]
pub(super) struct Part(pub(super) Value);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Bounded { left: &Cell::new(MAX_VALUES) }.deserialize(deserializer).map(Self)
    }
}

/// Reads one value, and takes it and those inside it from what is left.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format!("more than {MAX_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            object.insert(name, entries.next_value_seed(self)?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_value_that_the_file_holds() {
        let text = r#"{"a": [1, -2, 0.5, "x", null, true, {}], "b": {"c": []}}"#;
        let part: Part = serde_json::from_str(text).expect("a small value");
        assert_eq!(part.0, serde_json::from_str::<Value>(text).expect("JSON"));
    }

    #[test]
    fn a_part_of_too_many_values_is_refused() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n - 2));
        assert!(serde_json::from_str::<Part>(&list(MAX_VALUES)).is_ok());
        let error = serde_json::from_str::<Part>(&list(MAX_VALUES + 1)).err().expect("too many values");
        assert!(error.to_string().contains("more than 16384 values"), "{error}");
    }
}
