//! A tokenizer from a HF model directory.

use std::{fmt, io, path::Path};

use pace_models::{ModelError, file::read_bytes};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    AddRule, Core, Specials, Templates, Tokenizer, TokenizerError, fault, file_fault, guard,
    library::Library, part::Part, validate::TokenizerFile,
};

/// The largest `tokenizer.json`; vocabularies of 256 Ki tokens take about 35 MiB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// The largest `tokenizer_config.json`, which may list every added token.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// The largest template in a file of its own.
const MAX_TEMPLATE_BYTES: u64 = 256 << 10;

/// Where a directory has its chat template, and the one for conversations with tools.
const DEFAULT_FILE: &str = "chat_template.jinja";
const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// Loads the directory's tokenizer, if it has one.
pub(super) fn load(dir: &Path) -> Result<Option<Tokenizer>, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let Some(json) = read(&path, MAX_TOKENIZER_BYTES)? else { return Ok(None) };
    let (file, size) = TokenizerFile::parse(&json, &path)?;
    let inner =
        guard::catch(|| tokenizers::Tokenizer::from_bytes(&json)).map_err(|what| file_fault(&path, what))?;
    drop(json);
    for token in file.added_tokens() {
        let given = inner.token_to_id(&token.content);
        if given != Some(token.id) && !token.content.is_empty() {
            let given = given.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let what = format!(
                "`{}` says id {}, but after the tokens before it its id is {given}",
                token.content, token.id
            );
            return Err(fault(&path, "added_tokens", what));
        }
    }
    let config_path = dir.join("tokenizer_config.json");
    let config = Config::load(&config_path)?;
    let specials = config.specials(&inner, !file.has_post_processor())?;
    let templates = templates(dir, &config)?;
    let library = guard::catch(|| Library::new(inner)).map_err(|what| fault(&path, "truncation", what))?;
    Tokenizer::build(Core::Library(Box::new(library)), size, specials, templates, &path).map(Some)
}

/// The chat templates: files of their own win over all in the configuration, as in transformers.
fn templates(dir: &Path, config: &Config<'_>) -> Result<Templates, TokenizerError> {
    let file = |name: &str| {
        let path = dir.join(name);
        read(&path, MAX_TEMPLATE_BYTES)?.map(|bytes| utf8(bytes, &path)).transpose()
    };
    let (default, tool_use) = (file(DEFAULT_FILE)?, file(TOOL_USE_FILE)?);
    Ok(match (default, tool_use) {
        (None, None) => config.templates()?,
        (None, tool_use) => Templates { tool_use, ..config.templates()? },
        (default, tool_use) => Templates { default, tool_use },
    })
}

/// `tokenizer_config.json`; empty where there is none.
struct Config<'p> {
    path: &'p Path,
    fields: Map<String, Value>,
}

impl<'p> Config<'p> {
    fn load(path: &'p Path) -> Result<Self, TokenizerError> {
        let Some(bytes) = read(path, MAX_CONFIG_BYTES)? else { return Ok(Self { path, fields: Map::new() }) };
        let fields: ConfigFields = serde_json::from_slice(&bytes)
            .map_err(|error| file_fault(path, format!("not a JSON object: {error}")))?;
        Ok(Self { path, fields: fields.0 })
    }

    fn specials(&self, inner: &tokenizers::Tokenizer, flags_rule: bool) -> Result<Specials, TokenizerError> {
        let bos = self.token("bos_token", inner)?;
        let eos = self.token("eos_token", inner)?;
        let (add_bos, add_eos) = (self.flag("add_bos_token")?, self.flag("add_eos_token")?);
        let rule = match flags_rule {
            true => AddRule::Flags { bos: add_bos, eos: add_eos },
            false => AddRule::PostProcessor,
        };
        Ok(Specials { bos, eos, ends: eos.into_iter().collect(), rule })
    }

    /// The id of a special token, given as a string or as an object with `content`.
    fn token(&self, field: &str, inner: &tokenizers::Tokenizer) -> Result<Option<u32>, TokenizerError> {
        let text = match self.fields.get(field) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => Some(text.as_str()),
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            Some(_) => None,
        };
        let text =
            text.ok_or_else(|| fault(self.path, field, "a string or an object with `content` is right"))?;
        let id = inner.token_to_id(text);
        if id.is_none() {
            tracing::warn!(
                "{}: `{field}` is `{text}`, which tokenizer.json does not know",
                self.path.display()
            );
        }
        Ok(id)
    }

    fn flag(&self, field: &str) -> Result<bool, TokenizerError> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(fault(self.path, field, "true or false is right")),
        }
    }

    /// The chat template: a string, or of a list of named ones `default` (or the only one) and `tool_use`.
    fn templates(&self) -> Result<Templates, TokenizerError> {
        let wrong =
            || fault(self.path, "chat_template", "a string, or a list of {\"name\", \"template\"} is right");
        let named = match self.fields.get("chat_template") {
            None | Some(Value::Null) => return Ok(Templates::default()),
            Some(Value::String(template)) => {
                return Ok(Templates { default: Some(template.clone()), tool_use: None });
            }
            Some(Value::Array(named)) => named,
            Some(_) => return Err(wrong()),
        };
        let mut templates = Templates::default();
        for entry in named {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).ok_or_else(wrong);
            let (name, template) = (text("name")?, text("template")?);
            if name == "default" || named.len() == 1 {
                templates.default = Some(template.to_owned());
            } else if name == "tool_use" {
                templates.tool_use = Some(template.to_owned());
            }
        }
        Ok(templates)
    }
}

/// The fields of `tokenizer_config.json` that are used; the others are not kept.
struct ConfigFields(Map<String, Value>);

impl<'de> Deserialize<'de> for ConfigFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ConfigVisitor)
    }
}

struct ConfigVisitor;

impl<'de> Visitor<'de> for ConfigVisitor {
    type Value = ConfigFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<ConfigFields, A::Error> {
        const USED: [&str; 5] = ["bos_token", "eos_token", "add_bos_token", "add_eos_token", "chat_template"];
        let mut fields = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if USED.contains(&name.as_str()) {
                fields.insert(name, entries.next_value::<Part>()?.0);
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(ConfigFields(fields))
    }
}

/// The bytes of a file of at most `limit` bytes; `None` if there is no such file.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TokenizerError> {
    match read_bytes(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ModelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String, TokenizerError> {
    String::from_utf8(bytes).map_err(|error| file_fault(path, format!("not UTF-8: {error}")))
}
