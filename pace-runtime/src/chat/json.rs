//! The `tojson` filter as HF's templates expect it: Python's `json.dumps(x, ensure_ascii=False)`.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::python;

/// The longest step of indentation and the longest separator that are accepted, in bytes.
const MAX_INDENT: usize = 16;
/// The deepest nesting that is written: deeper, the stack would be at risk.
const MAX_DEPTH: usize = 64;
/// The longest text that is written, in bytes. An indented text can be far longer than its value.
const MAX_BYTES: usize = super::MAX_OUTPUT_BYTES;

/// `value|tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`, the last by name only. No HTML
/// escaping.
pub(super) fn tojson(
    value: &Value,
    ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let argument = |plain: Option<Value>, name| {
        let given = plain.map_or_else(|| named.get::<Option<Value>>(name), |given| Ok(Some(given)))?;
        Ok::<_, Error>(given.filter(|given| !given.is_none()))
    };
    let ascii = argument(ascii, "ensure_ascii")?.is_some_and(|flag| flag.is_true());
    let indent = argument(indent, "indent")?.map(|given| indentation(&given)).transpose()?;
    let separators = argument(separators, "separators")?.map(|given| pair(&given)).transpose()?;
    let sorted = argument(None, "sort_keys")?.is_some_and(|flag| flag.is_true());
    named.assert_all_used()?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, colon) = separators.unwrap_or_else(|| (item.to_owned(), ": ".to_owned()));
    let mut writer = Writer { out: String::new(), indent, item, colon, ascii, sorted, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

/// One step of indentation: a number of spaces, or the text itself.
fn indentation(given: &Value) -> Result<String, Error> {
    let text = match given.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(given.clone())?.min(MAX_INDENT + 1)),
    };
    if text.len() > MAX_INDENT {
        return Err(fault(&format!("an indent of more than {MAX_INDENT}")));
    }
    Ok(text)
}

/// The separators between items and after a key.
fn pair(given: &Value) -> Result<(String, String), Error> {
    let texts: Vec<_> = given.try_iter()?.take(3).collect();
    match texts.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
        [Some(item), Some(colon)] if item.len().max(colon.len()) <= MAX_INDENT => {
            Ok((item.to_owned(), colon.to_owned()))
        }
        _ => Err(fault(&format!("separators are two strings of at most {MAX_INDENT} bytes"))),
    }
}

struct Writer {
    out: String,
    /// One step; without it, all is on one line.
    indent: Option<String>,
    item: String,
    colon: String,
    ascii: bool,
    sorted: bool,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if self.out.len() > MAX_BYTES {
            return Err(fault("the text is too long"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.container(('[', ']'), items)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                let entries = keys.into_iter().map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    (Some(key), item)
                });
                self.container(('{', '}'), entries)?;
            }
            kind => return Err(fault(&format!("a value of type {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        (open, close): (char, char),
        entries: impl Iterator<Item = (Option<Value>, Value)>,
    ) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(fault(&format!("nested more than {MAX_DEPTH} deep")));
        }
        self.out.push(open);
        let mut empty = true;
        for (key, item) in entries {
            if !empty {
                self.out.push_str(&self.item);
            }
            empty = false;
            self.new_line();
            if let Some(key) = key {
                self.key(&key);
                self.out.push_str(&self.colon);
            }
            self.value(&item)?;
        }
        self.depth -= 1;
        if !empty {
            self.new_line();
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), self.depth));
        }
    }

    fn number(&mut self, value: &Value) {
        match python::as_float(value) {
            Some(number) if number.is_nan() => self.out.push_str("NaN"),
            Some(number) if number.is_infinite() => {
                self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
            }
            Some(number) => self.out.push_str(&python::float(number)),
            None => self.out.push_str(&value.to_string()),
        }
    }

    /// Keys are strings in JSON: others are written as the string of their JSON form.
    fn key(&mut self, key: &Value) {
        match key.kind() {
            ValueKind::None => self.string("null"),
            ValueKind::Bool => self.string(if key.is_true() { "true" } else { "false" }),
            _ => match python::as_float(key) {
                Some(number) => self.string(&python::float(number)),
                None => self.string(&key.to_string()),
            },
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn fault(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}
