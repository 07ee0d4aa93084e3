//! The access token for the hub: of the environment, else the one that `hf auth login` has left.

use anyhow::Result;
use pace_models::file::read_bytes;
use pace_runtime::config::{Env, Secret};

use crate::exit::Usage;

/// A file of more holds no token.
const MAX_BYTES: u64 = 4096;

/// The token, if there is one. A file without a token that can be read is no error: public models need none.
///
/// # Errors
/// `HF_TOKEN` is no token ([`Usage`]); the message does not quote it.
pub(super) fn find(env: &Env) -> Result<Option<Secret>> {
    if let Some(token) = &env.hf_token {
        return parse(token.reveal()).map_err(|what| Usage(format!("HF_TOKEN {what}")).into());
    }
    let Some(path) = env.hf_token_path.as_ref().filter(|path| path.symlink_metadata().is_ok()) else {
        return Ok(None);
    };
    let read = read_bytes(path, MAX_BYTES).map_err(|error| error.to_string());
    let parsed = read.and_then(|bytes| {
        parse(&String::from_utf8_lossy(&bytes)).map_err(|what| format!("{} {what}", path.display()))
    });
    Ok(parsed.unwrap_or_else(|what| {
        tracing::warn!("the access token for the HF hub is left out: {what}");
        None
    }))
}

/// A token is one word of visible ASCII, as a header can hold it.
fn parse(text: &str) -> Result<Option<Secret>, &'static str> {
    let token = text.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds no access token: one word of ASCII is right");
    }
    Ok(Some(Secret::new(token.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn found(vars: &[(&str, &str)]) -> Result<Option<String>> {
        let get = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        let env = Env::from_lookup(&get).unwrap();
        Ok(find(&env)?.map(|token| token.reveal().to_owned()))
    }

    #[test]
    fn the_environment_comes_before_the_login() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let (hf_home, other) = (path("."), path("other"));
        let login = ("HF_HOME", &*hf_home);
        assert_eq!(found(&[login]).unwrap(), None);
        std::fs::write(path("token"), "hf_login\n").unwrap();
        std::fs::write(&other, " hf_other ").unwrap();
        assert_eq!(found(&[login]).unwrap().as_deref(), Some("hf_login"));
        assert_eq!(found(&[login, ("HF_TOKEN_PATH", &other)]).unwrap().as_deref(), Some("hf_other"));
        assert_eq!(found(&[login, ("HF_TOKEN", "hf_env")]).unwrap().as_deref(), Some("hf_env"));
        assert_eq!(found(&[login, ("HF_TOKEN", "")]).unwrap().as_deref(), Some("hf_login"));
        std::fs::write(path("token"), "\n").unwrap();
        assert_eq!(found(&[login]).unwrap(), None);
    }

    #[test]
    fn what_is_no_token_is_refused_without_quoting_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        let path = path.to_str().unwrap();
        for text in ["hf_a\nhf_b", "hf_\u{e9}", "hf_a b", "hf_\u{7f}"] {
            let error = found(&[("HF_TOKEN", text)]).unwrap_err();
            assert!(error.is::<Usage>());
            let message = error.to_string();
            assert!(message.contains("HF_TOKEN") && !message.contains("hf_"), "{message}");
            std::fs::write(path, text).unwrap();
            assert_eq!(found(&[("HF_TOKEN_PATH", path)]).unwrap(), None);
        }
        // Nor does a directory in its place, or a file that is too long, put public models out of reach.
        std::fs::write(path, "a".repeat(5000)).unwrap();
        assert_eq!(found(&[("HF_TOKEN_PATH", path)]).unwrap(), None);
        assert_eq!(found(&[("HF_TOKEN_PATH", home.path().to_str().unwrap())]).unwrap(), None);
    }
}
