//! What a user can call a model: a path, a name of the catalogue, `hf:...` or `pypi:...`.
//!
//! Everything that becomes a path or a part of a URL is checked here, so a reference never leads out of a cache.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use super::catalogue::{self, Entry};
use crate::exit::Usage;

/// A model's name, understood.
#[derive(Debug)]
pub(crate) enum Reference {
    /// A path or `random:NAME`: nothing to fetch.
    Local(String),
    /// A name or an alias of the catalogue.
    Catalogue(&'static Entry),
    /// `hf:org/repo[@rev][/file]`.
    Hub(HubRef),
    /// `pypi:pkg==ver!path`.
    Wheel(WheelRef),
}

/// A repository on the HF hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubRef {
    /// `org/repo`.
    pub(crate) repo: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// One file, as a path inside the repository; `None` is the whole model.
    pub(crate) file: Option<String>,
}

/// A file or a directory in a Python wheel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WheelRef {
    /// The package.
    pub(crate) package: String,
    /// Its version, exactly.
    pub(crate) version: String,
    /// A path inside the wheel.
    pub(crate) member: String,
}

/// The branch that is meant where none is named.
pub(crate) const MAIN: &str = "main";

impl Reference {
    /// Reads what the user typed. What exists as a path is that path, whatever the catalogue says.
    ///
    /// # Errors
    /// `hf:` or `pypi:` with something else than their form behind it ([`Usage`]).
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return HubRef::parse(rest).map(Self::Hub).ok_or_else(|| {
                Usage(format!(
                    "'{text}' is not of the form hf:org/repo, hf:org/repo@revision or hf:org/repo/file"
                ))
                .into()
            });
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            return WheelRef::parse(rest).map(Self::Wheel).ok_or_else(|| {
                Usage(format!("'{text}' is not of the form pypi:package==version!path/in/the/wheel")).into()
            });
        }
        if !Path::new(text).exists()
            && let Some(entry) = catalogue::find(text)
        {
            return Ok(Self::Catalogue(entry));
        }
        Ok(Self::Local(text.to_owned()))
    }
}

impl HubRef {
    /// Reads `org/repo[@rev][/file]`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (org, rest) = text.split_once('/')?;
        let (name, file) = rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file)));
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let valid = is_name(org)
            && is_name(name)
            && is_name(revision)
            // The cache joins the two with `--`.
            && ![org, name].iter().any(|part| part.contains("--"))
            && file.is_none_or(is_path);
        valid.then(|| Self {
            repo: format!("{org}/{name}"),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl WheelRef {
    /// Reads `pkg==ver!path`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (requirement, member) = text.split_once('!')?;
        let (package, version) = requirement.split_once("==")?;
        (is_name(package) && is_name(version) && is_path(member)).then(|| Self {
            package: package.to_owned(),
            version: version.to_owned(),
            member: member.to_owned(),
        })
    }

    /// What pip is asked for, and the directory in the cache: `name==version`.
    pub(crate) fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

impl fmt::Display for WheelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}=={}!{}", self.package, self.version, self.member)
    }
}

/// One word that is the same in a path, a URL and a command line: no separator, no option, no hidden file.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
        && !text.contains("..")
}

/// A relative path that stays where it is joined to.
pub(crate) fn is_path(text: &str) -> bool {
    text.len() <= 512 && text.split('/').all(is_name)
}

/// The 40 hexadecimal digits of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_references_are_read_and_written() {
        for (text, repo, revision, file) in [
            ("a/b", "a/b", MAIN, None),
            ("a/b@v1.0", "a/b", "v1.0", None),
            ("a/b/c.gguf", "a/b", MAIN, Some("c.gguf")),
            ("a/b@dev/c/d.gguf", "a/b", "dev", Some("c/d.gguf")),
        ] {
            let read = HubRef::parse(text).unwrap();
            assert_eq!((&*read.repo, &*read.revision, read.file.as_deref()), (repo, revision, file));
            assert_eq!(read.to_string(), format!("hf:{text}"));
        }
    }

    #[test]
    fn references_that_lead_elsewhere_are_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/../b",
            "../a",
            "a/b/../c",
            "a/b//c",
            "a/b/",
            "a/b@",
            "a/b@../x",
            "a/b@-x",
            "a--b/c",
            "a/.git",
            "a/b/.hidden",
            "a/b?x=1",
            "a/b/c d",
            "a/b/c%2e",
            "a/b/c\\d",
            "a/b@x@y",
        ] {
            assert_eq!(HubRef::parse(text), None, "{text}");
            let error = Reference::parse(&format!("hf:{text}")).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains("hf:org/repo"), "{error}");
        }
        for text in
            ["", "a", "a==1", "a==1!", "a!b", "-r==1!x", "a==-1!x", "a==1!../x", "a==1!/x", "a==1 ;x!y"]
        {
            assert_eq!(WheelRef::parse(text), None, "{text}");
            assert!(Reference::parse(&format!("pypi:{text}")).unwrap_err().is::<Usage>());
        }
    }

    #[test]
    fn a_path_goes_before_the_catalogue() {
        let Reference::Catalogue(entry) = Reference::parse("SmolLM2").unwrap() else {
            panic!("it is a name of the catalogue")
        };
        assert_eq!(entry.name, "smollm2-135m");
        for text in ["random:tiny", "src", "./smollm2", "no-such-model"] {
            assert!(matches!(Reference::parse(text).unwrap(), Reference::Local(same) if same == text));
        }
    }

    #[test]
    fn wheels_are_read_and_written() {
        let read = WheelRef::parse("llm-x==0.1.2!dir/model.gguf").unwrap();
        assert_eq!(read.requirement(), "llm-x==0.1.2");
        assert_eq!(read.to_string(), "pypi:llm-x==0.1.2!dir/model.gguf");
    }
}
