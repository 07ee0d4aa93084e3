//! GGUF files as bytes, right or wrong as the test wants them.

/// A file to be: each pair and tensor already in bytes.
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) pairs: Vec<Vec<u8>>,
    pub(super) tensors: Vec<Vec<u8>>,
    /// Where the data start.
    pub(super) alignment: usize,
    pub(super) data: Vec<u8>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), alignment: 32, data: Vec::new() }
    }
}

impl Contents {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = preamble(self.version, self.tensors.len() as u64, self.pairs.len() as u64);
        bytes.extend(self.pairs.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(&self.data);
        bytes
    }
}

pub(super) fn preamble(version: u32, tensors: u64, pairs: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
}

pub(super) fn string(text: &str) -> Vec<u8> {
    raw_string(text.len() as u64, text.as_bytes())
}

/// A string that claims to have `len` bytes.
pub(super) fn raw_string(len: u64, bytes: &[u8]) -> Vec<u8> {
    [&len.to_le_bytes(), bytes].concat()
}

pub(super) fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value].concat()
}

pub(super) fn array(kind: u32, elements: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = raw_array(kind, elements.len() as u64);
    elements.iter().for_each(|element| bytes.extend(element.as_ref()));
    bytes
}

/// The start of an array that claims to have `count` elements.
pub(super) fn raw_array(kind: u32, count: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()
}

pub(super) fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = [string(name), (dims.len() as u32).to_le_bytes().to_vec()].concat();
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}
