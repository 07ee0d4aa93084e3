//! Saved conversations: one JSON object, `{"model", "system", "messages": [{"role", "content"}]}`.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use pace_runtime::chat::Message;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Transcript {
    model: String,
    #[serde(default)]
    system: Option<String>,
    messages: Vec<Message>,
}

/// Writes the conversation to `path`, all or nothing.
pub(super) fn save(path: &Path, model: &str, system: &Option<String>, messages: &[Message]) -> Result<()> {
    let transcript =
        Transcript { model: model.to_owned(), system: system.clone(), messages: messages.to_vec() };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let write = || -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut file, &transcript)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot save to {}", path.display()))
}

/// Reads what [`save`] wrote: the system message and the rest.
pub(super) fn load(path: &Path) -> Result<(Option<String>, Vec<Message>)> {
    let read = || -> Result<Transcript> { Ok(serde_json::from_str(&fs::read_to_string(path)?)?) };
    let transcript = read().with_context(|| format!("cannot load {}", path.display()))?;
    Ok((transcript.system, transcript.messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json");
        let messages = vec![Message::user("Hi"), Message::assistant("Hello\n\"you\"")];
        save(&path, "m", &Some("Be brief.".to_owned()), &messages).unwrap();
        assert_eq!(load(&path).unwrap(), (Some("Be brief.".to_owned()), messages));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        fs::write(&path, "{\"model\": 1}").unwrap();
        let error = format!("{:#}", load(&path).unwrap_err());
        assert!(error.contains("talk.json") && error.contains("expected a string at line 1"), "{error}");
        assert!(save(&dir.path().join("no/such/dir.json"), "m", &None, &[]).is_err());
    }
}
