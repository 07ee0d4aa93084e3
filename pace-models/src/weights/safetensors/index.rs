//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{BufReader, Read};
use std::path::{Component, Path};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::header::{MAX_TENSORS, Name};
use crate::ModelError;
use crate::file::{clip, open_regular};

/// Largest index that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Most shards: each stays open, and the usual limit on open files is 1024.
const MAX_SHARDS: usize = 512;

/// The shards and what each holds.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// File names beside the index, in the order of their first tensor.
    pub(super) shards: Vec<String>,
    /// Tensor names and positions in `shards`.
    pub(super) map: Vec<(String, u16)>,
}

/// Reads and checks the index at `path`.
pub(super) fn read(path: &Path) -> Result<Index, ModelError> {
    let (file, len) = open_regular(path)?;
    if len > MAX_BYTES {
        return Err(ModelError::file(path, format!("has {len} bytes; at most {MAX_BYTES} are read")));
    }
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(file.take(MAX_BYTES)));
    let parsed = TopSeed { failed: &mut failed }.deserialize(&mut json);
    let parsed = parsed.and_then(|index| json.end().map(|()| index));
    let index = parsed.map_err(|e| match failed {
        _ if e.is_io() => ModelError::io(path, e.into()),
        Some(tensor) => ModelError::field(path, format!("weight_map.{tensor}"), clip(&e.to_string())),
        None => ModelError::file(path, clip(&e.to_string())),
    })?;
    let fail = |what| Err(ModelError::field(path, "weight_map", what));
    let Some(index) = index else {
        return fail("is missing; it must be an object from tensor names to shards");
    };
    if index.map.is_empty() {
        return fail("is empty; it must name a shard for every tensor");
    }
    Ok(index)
}

/// The outermost object. Other fields (`metadata`) say nothing that the loader needs.
struct TopSeed<'a> {
    failed: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for TopSeed<'_> {
    type Value = Option<Index>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopSeed<'_> {
    type Value = Option<Index>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut index = None;
        while let Some(Name(field)) = map.next_key()? {
            if field != "weight_map" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let read = map.next_value_seed(MapSeed { failed: self.failed })?;
            if index.replace(read).is_some() {
                return Err(de::Error::duplicate_field("weight_map"));
            }
        }
        Ok(index)
    }
}

/// The object from tensor names to shards.
struct MapSeed<'a> {
    failed: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for MapSeed<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MapSeed<'_> {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`weight_map` as an object from tensor names to shards")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let (mut index, mut known) = (Index::default(), HashMap::new());
        while let Some(Name(tensor)) = map.next_key()? {
            if index.map.len() == MAX_TENSORS {
                return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let shard = map.next_value().and_then(|Name(shard)| index.shard(shard, &mut known));
            match shard {
                Ok(shard) => index.map.push((tensor, shard)),
                Err(e) => {
                    *self.failed = Some(tensor);
                    return Err(e);
                }
            }
        }
        let mut seen = HashSet::with_capacity(index.map.len());
        match index.map.iter().find(|(tensor, _)| !seen.insert(tensor.as_str())) {
            None => Ok(index),
            Some((tensor, _)) => {
                *self.failed = Some(tensor.clone());
                Err(de::Error::custom("appears twice"))
            }
        }
    }
}

impl Index {
    /// The position of the shard called `name`, which is added if it is new.
    fn shard<E: de::Error>(&mut self, name: String, known: &mut HashMap<String, u16>) -> Result<u16, E> {
        if let Some(&shard) = known.get(&name) {
            return Ok(shard);
        }
        let mut parts = Path::new(&name).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name.as_str());
        if !plain {
            return Err(E::custom(format!(
                "shard `{name}` must be the plain name of a file beside the index"
            )));
        }
        if self.shards.len() == MAX_SHARDS {
            return Err(E::custom(format!("more than {MAX_SHARDS} shards")));
        }
        let shard = self.shards.len() as u16;
        known.insert(name.clone(), shard);
        self.shards.push(name);
        Ok(shard)
    }
}
