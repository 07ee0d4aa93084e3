//! [`Env`]: the only reader of the environment (`PACE_ISA` apart, which `pace_kernels::Isa::from_env` reads).

use std::ffi::OsString;
use std::path::PathBuf;

/// What the environment says. Unset and empty variables are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// `PACE_LOG_LEVEL`: what goes to stderr.
    pub log_level: LogLevel,
    /// Where models are kept: `PACE_CACHE`, else `$XDG_CACHE_HOME/pace`, else `$HOME/.cache/pace`.
    pub cache_dir: Option<PathBuf>,
    /// The HF hub's own cache of repositories: `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `huggingface/hub` below
    /// `$XDG_CACHE_HOME` or `$HOME/.cache`.
    pub hf_cache: Option<PathBuf>,
    /// `HF_ENDPOINT`: another address of the HF hub.
    pub hf_endpoint: Option<String>,
    /// `HF_TOKEN`: sent to the hub.
    pub hf_token: Option<String>,
    /// `HF_HUB_OFFLINE`: do not ask the hub.
    pub hf_offline: bool,
    /// `NO_COLOR`: no colours, even on a terminal.
    pub no_color: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What takes how long.
    Profile,
    /// What happens.
    Info,
    /// What may be wrong.
    #[default]
    Warning,
    /// What is wrong.
    Error,
    /// Nothing.
    None,
}

/// An environment variable has a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {name}: `{value}` is none of: {known}")]
pub struct EnvError {
    /// The variable.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What would be right.
    pub known: &'static str,
}

impl Env {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// A variable has a value that means nothing.
    #[allow(clippy::disallowed_methods)]
    pub fn read() -> Result<Self, EnvError> {
        Self::from_lookup(&|name| std::env::var_os(name))
    }

    /// Reads variables through `lookup`.
    ///
    /// # Errors
    /// A variable has a value that means nothing.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, EnvError> {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let text = |name: &str| get(name).map(|v| v.to_string_lossy().into_owned());
        let path = |name: &str| get(name).map(PathBuf::from);
        let cache_dir = path("PACE_CACHE")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("pace")))
            .or_else(|| path("HOME").map(|p| p.join(".cache/pace")));
        let hf_cache = path("HF_HUB_CACHE")
            .or_else(|| path("HF_HOME").map(|p| p.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface/hub")))
            .or_else(|| path("HOME").map(|p| p.join(".cache/huggingface/hub")));
        Ok(Self {
            log_level: text("PACE_LOG_LEVEL").map(|v| LogLevel::parse(&v)).transpose()?.unwrap_or_default(),
            cache_dir,
            hf_cache,
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: text("HF_TOKEN"),
            hf_offline: switch("HF_HUB_OFFLINE", text("HF_HUB_OFFLINE"))?,
            no_color: get("NO_COLOR").is_some(),
        })
    }
}

impl LogLevel {
    const KNOWN: &str = "debug, profile, info, warning, error, none";

    fn parse(value: &str) -> Result<Self, EnvError> {
        match value.to_ascii_lowercase().as_str() {
            "debug" => Ok(Self::Debug),
            "profile" => Ok(Self::Profile),
            "info" => Ok(Self::Info),
            "warning" | "warn" => Ok(Self::Warning),
            "error" => Ok(Self::Error),
            "none" => Ok(Self::None),
            _ => Err(EnvError { name: "PACE_LOG_LEVEL", value: value.to_owned(), known: Self::KNOWN }),
        }
    }
}

/// On or off, in the spellings that the HF libraries take.
fn switch(name: &'static str, value: Option<String>) -> Result<bool, EnvError> {
    let Some(value) = value else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(EnvError { name, value, known: "1, on, yes, true, 0, off, no, false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Result<Env, EnvError> {
        Env::from_lookup(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_cache_follows_the_most_specific_variable() {
        let cache = |vars: &[(&str, &str)]| env(vars).unwrap().cache_dir;
        assert_eq!(cache(&[]), None);
        assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/pace".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/pace".into()));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("PACE_CACHE", "/p")]), Some("/p".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("PACE_CACHE", "")]), Some("/h/.cache/pace".into()));
    }

    #[test]
    fn the_hub_cache_is_where_other_tools_have_it() {
        let cache = |vars: &[(&str, &str)]| env(vars).unwrap().hf_cache;
        assert_eq!(cache(&[("PACE_CACHE", "/p")]), None);
        assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), Some("/f/hub".into()));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
    }

    #[test]
    fn levels_and_switches_are_checked() {
        assert_eq!(env(&[]).unwrap().log_level, LogLevel::Warning);
        assert_eq!(env(&[("PACE_LOG_LEVEL", "Profile")]).unwrap().log_level, LogLevel::Profile);
        let err = env(&[("PACE_LOG_LEVEL", "loud")]).unwrap_err().to_string();
        assert!(err.contains("PACE_LOG_LEVEL") && err.contains("loud") && err.contains("profile"), "{err}");
        assert!(env(&[("HF_HUB_OFFLINE", "1")]).unwrap().hf_offline);
        assert!(env(&[("HF_HUB_OFFLINE", "maybe")]).is_err());
    }
}
