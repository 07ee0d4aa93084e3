//! The header of one safetensors file: eight bytes of length, then a JSON object from tensor names to
//! `{"dtype", "shape", "data_offsets"}`, then the data, which the offsets must cover without gap or overlap.
//!
//! The JSON is parsed from a stream and never held, so that what stays in memory is what [`Tensors`] keeps: below
//! 16 MiB for the longest legal header.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::dtype::Dtype;
use crate::ModelError;
use crate::file::clip;
use crate::weights::TensorInfo;

/// Most bytes of JSON that a header may have.
pub(super) const MAX_HEADER: u64 = 8 << 20;
/// Most tensors that a checkpoint may have, all shards together.
pub(super) const MAX_TENSORS: usize = 65_536;
/// Most bytes that a name may have.
pub(super) const MAX_NAME: usize = 256;
const MAX_RANK: usize = 8;
const MAX_METADATA: usize = 1024;
/// Bytes before the JSON.
const PREFIX: u64 = 8;

/// The tensors of all shards, in the order of the files.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub(super) infos: Vec<TensorInfo>,
    /// Where each of `infos` lies.
    pub(super) places: Vec<Place>,
    /// `__metadata__` of the first file.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Where the data of one tensor lies.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dtype: Dtype,
    pub(super) shard: u16,
    /// First byte, counted from the beginning of the shard's data section.
    pub(super) begin: u64,
    /// The byte after the last.
    pub(super) end: u64,
}

impl Tensors {
    /// Positions in `infos`, sorted by name.
    pub(super) fn sorted_by_name(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.infos.len() as u32).collect();
        order.sort_unstable_by_key(|&at| (self.infos[at as usize].name.as_str(), at));
        order
    }
}

/// Reads and checks the header of `file`, which has `len` bytes, and adds its tensors to `tensors`. Returns where
/// the data section begins.
pub(super) fn read(
    path: &Path,
    mut file: &File,
    len: u64,
    shard: u16,
    tensors: &mut Tensors,
) -> Result<u64, ModelError> {
    let header_len = read_length(path, &mut file, len)?;
    let data_start = PREFIX + header_len;
    let data_len = len - data_start;
    let first = tensors.infos.len();
    let mut failed = None;
    // The buffer is outermost: the parser takes single bytes, which only a `BufReader` hands out fast.
    let reader = BufReader::with_capacity(64 << 10, file.take(header_len));
    let mut json = serde_json::Deserializer::from_reader(reader);
    let seed = HeaderSeed { tensors: &mut *tensors, shard, data_len, failed: &mut failed };
    let parsed = seed.deserialize(&mut json).and_then(|()| json.end());
    parsed.map_err(|e| match failed {
        _ if e.is_io() => ModelError::io(path, e.into()),
        Some(name) => ModelError::tensor(path, name, clip(&e.to_string())),
        None => ModelError::file(path, format!("header: {}", clip(&e.to_string()))),
    })?;
    check_cover(path, &tensors.infos[first..], &tensors.places[first..], data_len)?;
    Ok(data_start)
}

fn read_length(path: &Path, reader: &mut impl Read, len: u64) -> Result<u64, ModelError> {
    let mut bytes = [0; PREFIX as usize];
    reader.read_exact(&mut bytes).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => ModelError::file(
            path,
            format!("has {len} bytes; a safetensors file begins with {PREFIX} of header length"),
        ),
        _ => ModelError::io(path, e),
    })?;
    let header_len = u64::from_le_bytes(bytes);
    let longest = MAX_HEADER.min(len.saturating_sub(PREFIX));
    if (2..=longest).contains(&header_len) {
        return Ok(header_len);
    }
    let what = format!(
        "header length is {header_len}; it must be from 2 to {MAX_HEADER} and fit into the file's {len} bytes (truncated, or not safetensors?)"
    );
    Err(ModelError::file(path, what))
}

/// Checks that the tensors cover the data section exactly.
fn check_cover(path: &Path, infos: &[TensorInfo], places: &[Place], data_len: u64) -> Result<(), ModelError> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_unstable_by_key(|&at| (places[at].begin, places[at].end));
    let mut covered = 0;
    for at in order {
        let place = &places[at];
        if place.begin != covered {
            let fault = if place.begin < covered {
                "overlaps the tensor before it"
            } else {
                "leaves a hole before it"
            };
            let what = format!("begins at byte {} and {fault}, which ends at {covered}", place.begin);
            return Err(ModelError::tensor(path, infos[at].name.as_str(), what));
        }
        covered = place.end;
    }
    if covered == data_len {
        return Ok(());
    }
    let what = format!("data section has {data_len} bytes, but the tensors in the header cover {covered}");
    Err(ModelError::file(path, what))
}

/// Parses the whole header.
struct HeaderSeed<'a> {
    tensors: &'a mut Tensors,
    shard: u16,
    data_len: u64,
    /// The tensor whose entry is at fault, if it is one.
    failed: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to their entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_metadata = false;
        while let Some(Name(name)) = map.next_key()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(de::Error::custom("`__metadata__` appears twice"));
                }
                let Metadata(metadata) = map.next_value()?;
                // Of one file alone, so that many of them do not add up in memory.
                if self.shard == 0 {
                    self.tensors.metadata = metadata;
                }
                continue;
            }
            if self.tensors.infos.len() == MAX_TENSORS {
                return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let entry = map.next_value::<Entry>().and_then(|entry| entry.check(self.data_len));
            let Entry { dtype, shape, offsets: (begin, end) } = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    *self.failed = Some(name);
                    return Err(e);
                }
            };
            self.tensors.infos.push(TensorInfo { name, shape, format: dtype.name().to_owned() });
            self.tensors.places.push(Place { dtype, shard: self.shard, begin, end });
        }
        Ok(())
    }
}

/// What the header says of one tensor.
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    offsets: (u64, u64),
}

impl Entry {
    fn check<E: de::Error>(self, data_len: u64) -> Result<Self, E> {
        let (begin, end) = self.offsets;
        if begin > end || end > data_len {
            return Err(E::custom(format!(
                "data_offsets [{begin}, {end}] must be in order and within the data section of {data_len} bytes (truncated file?)"
            )));
        }
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        let Some(bytes) = elements.and_then(|n| self.dtype.bytes(n)) else {
            return Err(E::custom(format!(
                "shape {:?} has no size in whole bytes, or one beyond 64 bits",
                self.shape
            )));
        };
        if bytes != end - begin {
            return Err(E::custom(format!(
                "shape {:?} of {} needs {bytes} bytes, but data_offsets hold {}",
                self.shape,
                self.dtype.name(),
                end - begin
            )));
        }
        Ok(self)
    }
}

impl<'de> de::Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Dtype,
    Shape,
    DataOffsets,
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key()? {
            let repeated = match field {
                Field::Dtype => dtype.replace(map.next_value::<DtypeName>()?.0).map(|_| "dtype"),
                Field::Shape => shape.replace(map.next_value::<Shape>()?.0).map(|_| "shape"),
                Field::DataOffsets => offsets.replace(map.next_value()?).map(|_| "data_offsets"),
            };
            if let Some(field) = repeated {
                return Err(de::Error::duplicate_field(field));
            }
        }
        Ok(Entry {
            dtype: dtype.ok_or_else(|| de::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| de::Error::missing_field("shape"))?,
            offsets: offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?,
        })
    }
}

/// A name of bounded length and without control characters, because messages show it.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Name(pub(super) String);

impl<'de> de::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a name of at most {MAX_NAME} bytes")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Name, E> {
        if name.len() > MAX_NAME {
            return Err(E::custom(format!(
                "a name has {} bytes; at most {MAX_NAME} are allowed",
                name.len()
            )));
        }
        if name.chars().any(char::is_control) {
            return Err(E::custom(format!("the name {name:?} holds control characters")));
        }
        Ok(Name(name.to_owned()))
    }
}

struct DtypeName(Dtype);

impl<'de> de::Deserialize<'de> for DtypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Name::deserialize(deserializer)?.0;
        Dtype::from_name(&name)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("unknown dtype `{name}`; read are F32, F16 and BF16")))
    }
}

struct Shape(Vec<usize>);

impl<'de> de::Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {MAX_RANK} whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let (mut sizes, mut rank) = ([0; MAX_RANK], 0);
        while let Some(size) = seq.next_element()? {
            let slot = sizes
                .get_mut(rank)
                .ok_or_else(|| de::Error::custom(format!("shape has more than {MAX_RANK} dimensions")))?;
            *slot = size;
            rank += 1;
        }
        Ok(Shape(sizes[..rank].to_vec()))
    }
}

/// `__metadata__`: strings by name.
struct Metadata(BTreeMap<String, String>);

impl<'de> de::Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`__metadata__` as an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        let mut all = BTreeMap::new();
        while let Some(Name(key)) = map.next_key()? {
            let value = map.next_value()?;
            if all.len() == MAX_METADATA {
                return Err(de::Error::custom(format!(
                    "`__metadata__` has more than {MAX_METADATA} entries"
                )));
            }
            if all.contains_key(&key) {
                return Err(de::Error::custom(format!("`__metadata__` has `{key}` twice")));
            }
            all.insert(key, value);
        }
        Ok(Metadata(all))
    }
}
