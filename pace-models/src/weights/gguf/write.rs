//! Metadata back into bytes: a GGUF file without tensors.

use super::metadata::Metadata;
use super::value::{Array, Value};

impl Metadata {
    /// A GGUF file, version 3, with these pairs and no tensors, for weights that are stored elsewhere. Pairs that say how
    /// the model was split into several files are left out.
    pub fn to_gguf(&self) -> Vec<u8> {
        let pairs = || self.iter().filter(|(key, _)| !key.starts_with("split."));
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend((pairs().count() as u64).to_le_bytes());
        for (key, value) in pairs() {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        out
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A type and a value of it.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(n) => put(0, &n.to_le_bytes()),
        Value::I8(n) => put(1, &n.to_le_bytes()),
        Value::U16(n) => put(2, &n.to_le_bytes()),
        Value::I16(n) => put(3, &n.to_le_bytes()),
        Value::U32(n) => put(4, &n.to_le_bytes()),
        Value::I32(n) => put(5, &n.to_le_bytes()),
        Value::F32(n) => put(6, &n.to_le_bytes()),
        Value::Bool(b) => put(7, &[u8::from(*b)]),
        Value::String(text) => {
            put(8, &[]);
            put_string(out, text);
        }
        Value::Array(array) => {
            put(9, &[]);
            put_array(out, array);
        }
        Value::U64(n) => put(10, &n.to_le_bytes()),
        Value::I64(n) => put(11, &n.to_le_bytes()),
        Value::F64(n) => put(12, &n.to_le_bytes()),
    }
}

/// The type of the elements, their number, and they.
fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put<T>(out: &mut Vec<u8>, id: u32, items: &[T], put_item: impl Fn(&mut Vec<u8>, &T)) {
        out.extend(id.to_le_bytes());
        out.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| put_item(out, item));
    }
    match array {
        Array::U8(items) => put(out, 0, items, |out, n| out.push(*n)),
        Array::I8(items) => put(out, 1, items, |out, n| out.extend(n.to_le_bytes())),
        Array::U16(items) => put(out, 2, items, |out, n| out.extend(n.to_le_bytes())),
        Array::I16(items) => put(out, 3, items, |out, n| out.extend(n.to_le_bytes())),
        Array::U32(items) => put(out, 4, items, |out, n| out.extend(n.to_le_bytes())),
        Array::I32(items) => put(out, 5, items, |out, n| out.extend(n.to_le_bytes())),
        Array::F32(items) => put(out, 6, items, |out, n| out.extend(n.to_le_bytes())),
        Array::Bool(items) => put(out, 7, items, |out, b| out.push(u8::from(*b))),
        Array::String(items) => put(out, 8, items, |out, text| put_string(out, text)),
        Array::Array(items) => put(out, 9, items, put_array),
        Array::U64(items) => put(out, 10, items, |out, n| out.extend(n.to_le_bytes())),
        Array::I64(items) => put(out, 11, items, |out, n| out.extend(n.to_le_bytes())),
        Array::F64(items) => put(out, 12, items, |out, n| out.extend(n.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::WeightSource;
    use crate::weights::gguf::GgufFile;

    #[test]
    fn what_is_written_reads_as_it_was() {
        let mut metadata = Metadata::new(std::path::Path::new("a.gguf"));
        let texts = |texts: [&str; 2]| Array::String(texts.map(str::to_owned).to_vec());
        let pairs = [
            ("general.architecture", Value::String("llama".to_owned())),
            ("a.u8", Value::U8(200)),
            ("a.i8", Value::I8(-3)),
            ("a.u16", Value::U16(40_000)),
            ("a.i16", Value::I16(-300)),
            ("a.u32", Value::U32(1 << 31)),
            ("a.i32", Value::I32(-70_000)),
            ("a.f32", Value::F32(1e-5)),
            ("a.bool", Value::Bool(true)),
            ("a.u64", Value::U64(1 << 40)),
            ("a.i64", Value::I64(-1)),
            ("a.f64", Value::F64(0.1)),
            ("a.texts", Value::Array(texts(["", "Ġé"]))),
            ("a.nested", Value::Array(Array::Array(vec![Array::Bool(vec![true, false]), texts(["x", "y"])]))),
            ("a.numbers", Value::Array(Array::F32(vec![0.5, f32::MIN_POSITIVE]))),
            ("a.none", Value::Array(Array::I16(Vec::new()))),
        ];
        for (key, value) in pairs.clone() {
            metadata.insert(key, value).unwrap();
        }
        metadata.insert("split.count", Value::U16(3)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata");
        std::fs::write(&path, metadata.to_gguf()).unwrap();
        let read = GgufFile::open(&path).unwrap();
        assert!(read.tensors().is_empty());
        let read: Vec<_> = read.metadata().iter().map(|(key, value)| (key, value.clone())).collect();
        assert_eq!(read, pairs);
    }
}
