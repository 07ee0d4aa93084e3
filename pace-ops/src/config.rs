//! [`OperatorConfig`]: which backend computes which operator, as fields and as users write it.

use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

use crate::{Backend, ConfigError, Operator, UnknownName};

/// One backend per operator of a decoder. The default is [`Backend::Auto`] everywhere.
///
/// As text it is a JSON object, `{"norm": "native", "mlp": "auto"}`. Keys are those of AMD PACE, in any case: an
/// operator's [name](Operator::name), the name with `_backend` behind it, `qkv_proj` and `out_proj` for short, or
/// the members of `LLMOperatorType` (`QKVProjection`, `LLMOperatorType.LMHead`). Values are backends' names, in any
/// case, alone or as `LLMBackendType.TPP`.
///
/// ```
/// use pace_ops::{Backend, OperatorConfig};
///
/// // The example of AMD PACE's guide.
/// let config = OperatorConfig {
///     norm: Backend::Native,
///     qkv_projection: Backend::Tpp,
///     attention: Backend::Jit,
///     out_projection: Backend::Tpp,
///     mlp: Backend::Tpp,
///     lm_head: Backend::Native,
///     ..OperatorConfig::native()
/// };
/// assert_eq!(config.rope, Backend::Native);
///
/// let mut config = OperatorConfig::from_json(r#"{"norm_backend": "NATIVE"}"#)?;
/// config.set("LLMOperatorType.MLP", "LLMBackendType.NATIVE")?;
/// assert_eq!((config.norm, config.mlp, config.rope), (Backend::Native, Backend::Native, Backend::Auto));
/// # Ok::<(), pace_ops::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorConfig {
    /// RMSNorm and LayerNorm.
    pub norm: Backend,
    /// Fused query, key and value projection.
    pub qkv_projection: Backend,
    /// Rotary position embedding.
    pub rope: Backend,
    /// Attention over the KV cache.
    pub attention: Backend,
    /// The attention's output projection.
    pub out_projection: Backend,
    /// The feed-forward layer.
    pub mlp: Backend,
    /// The projection to logits.
    pub lm_head: Backend,
}

impl OperatorConfig {
    /// The operators that are configured, in the order of the fields. [`Operator::Linear`], a projection by itself, is
    /// no part of a decoder.
    pub const OPERATORS: [Operator; 7] = [
        Operator::Norm,
        Operator::QkvProjection,
        Operator::Rope,
        Operator::Attention,
        Operator::OutProjection,
        Operator::Mlp,
        Operator::LmHead,
    ];

    /// `backend` for every operator.
    pub const fn all(backend: Backend) -> Self {
        Self {
            norm: backend,
            qkv_projection: backend,
            rope: backend,
            attention: backend,
            out_projection: backend,
            mlp: backend,
            lm_head: backend,
        }
    }

    /// The reference path for every operator: the default of AMD PACE.
    pub const fn native() -> Self {
        Self::all(Backend::Native)
    }

    /// The configuration that a JSON object describes. Keys left out are [`Backend::Auto`].
    ///
    /// # Errors
    /// Those of [`apply_json`](Self::apply_json).
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.apply_json(json)?;
        Ok(config)
    }

    /// Replaces the backends that a JSON object names. After an error nothing is replaced.
    ///
    /// # Errors
    /// The text is no JSON object of texts, a key or value is unknown, an operator has no such backend, or an operator
    /// occurs twice with different backends.
    pub fn apply_json(&mut self, json: &str) -> Result<(), ConfigError> {
        let mut config = *self;
        let mut seen: Vec<(Operator, Backend)> = Vec::new();
        for (key, value) in object(json)? {
            let op = operator(&key)?;
            let Value::String(value) = value else {
                return Err(ConfigError::NotText { op, found: value.to_string() });
            };
            let second = backend(op, &value)?;
            if let Some(&(_, first)) = seen.iter().find(|&&(o, first)| o == op && first != second) {
                return Err(ConfigError::Conflict { op, first, second, key });
            }
            seen.push((op, second));
            config.replace(op, second);
        }
        *self = config;
        Ok(())
    }

    /// Replaces one backend; `key` and `value` are spelled as in JSON.
    ///
    /// # Errors
    /// The key or the value is unknown, or the operator has no such backend.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let op = operator(key)?;
        self.replace(op, backend(op, value)?);
        Ok(())
    }

    /// The backend of `op`. [`Operator::Linear`] is not configured: it is `Auto`.
    pub const fn get(&self, op: Operator) -> Backend {
        match op {
            Operator::Norm => self.norm,
            Operator::QkvProjection => self.qkv_projection,
            Operator::Rope => self.rope,
            Operator::Attention => self.attention,
            Operator::OutProjection => self.out_projection,
            Operator::Mlp => self.mlp,
            Operator::LmHead => self.lm_head,
            Operator::Linear => Backend::Auto,
        }
    }

    /// Every configured operator and its backend, in the order of [`OPERATORS`](Self::OPERATORS).
    pub fn iter(&self) -> impl Iterator<Item = (Operator, Backend)> {
        let config = *self;
        Self::OPERATORS.into_iter().map(move |op| (op, config.get(op)))
    }

    fn replace(&mut self, op: Operator, backend: Backend) {
        match op {
            Operator::Norm => self.norm = backend,
            Operator::QkvProjection => self.qkv_projection = backend,
            Operator::Rope => self.rope = backend,
            Operator::Attention => self.attention = backend,
            Operator::OutProjection => self.out_projection = backend,
            Operator::Mlp => self.mlp = backend,
            Operator::LmHead => self.lm_head = backend,
            Operator::Linear => {}
        }
    }
}

/// The operator that a key names.
fn operator(key: &str) -> Result<Operator, ConfigError> {
    let lower = key.to_ascii_lowercase();
    let name = lower.strip_prefix("llmoperatortype.").unwrap_or(&lower);
    match name.strip_suffix("_backend").unwrap_or(name) {
        "norm" => Ok(Operator::Norm),
        "qkv_projection" | "qkvprojection" | "qkv_proj" => Ok(Operator::QkvProjection),
        "rope" => Ok(Operator::Rope),
        "attention" => Ok(Operator::Attention),
        "out_projection" | "outprojection" | "out_proj" => Ok(Operator::OutProjection),
        "mlp" => Ok(Operator::Mlp),
        "lm_head" | "lmhead" => Ok(Operator::LmHead),
        _ => {
            let known = OperatorConfig::OPERATORS.map(Operator::name);
            Err(ConfigError::UnknownOperator(UnknownName::new(key, &known)))
        }
    }
}

/// The backend that a value names, if `op` has it.
fn backend(op: Operator, value: &str) -> Result<Backend, ConfigError> {
    let Ok(backend) = value.parse() else {
        let has = [Backend::Auto].iter().chain(op.backends());
        let known: Vec<_> = has.map(|b| b.name()).collect();
        return Err(ConfigError::UnknownBackend { op, name: UnknownName::new(value, &known) });
    };
    op.require(backend)?;
    Ok(backend)
}

/// The members of a JSON object as they were written: a map would keep the last of two equal keys in silence.
fn object(json: &str) -> Result<Vec<(String, Value)>, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(json);
    let members = json.deserialize_map(Members).and_then(|members| json.end().map(|()| members));
    members.map_err(|e| ConfigError::Json(e.to_string()))
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(json: &str) -> String {
        OperatorConfig::from_json(json).expect_err(json).to_string()
    }

    fn assert_refused(json: &str, words: &[&str]) {
        let message = message(json);
        for word in words {
            assert!(message.contains(word), "{json}: `{word}` is not in: {message}");
        }
    }

    #[test]
    fn every_spelling_of_a_key_is_taken() {
        for (op, spellings) in [
            (Operator::Norm, &["norm", "Norm", "norm_backend", "LLMOperatorType.Norm", "NORM_BACKEND"][..]),
            (
                Operator::QkvProjection,
                &[
                    "qkv_projection",
                    "QKVProjection",
                    "qkv_projection_backend",
                    "qkv_proj_backend",
                    "qkv_proj",
                ],
            ),
            (Operator::Rope, &["rope", "RoPE", "rope_backend", "llmoperatortype.rope"]),
            (Operator::Attention, &["attention", "Attention", "attention_backend"]),
            (
                Operator::OutProjection,
                &["out_projection", "OutProjection", "out_projection_backend", "out_proj_backend"],
            ),
            (Operator::Mlp, &["mlp", "MLP", "mlp_backend", "LLMOperatorType.MLP"]),
            (Operator::LmHead, &["lm_head", "LMHead", "lm_head_backend", "LLMOperatorType.LMHead"]),
        ] {
            for key in spellings {
                for value in ["native", "NATIVE", "LLMBackendType.NATIVE"] {
                    let config = OperatorConfig::from_json(&format!(r#"{{"{key}": "{value}"}}"#)).unwrap();
                    for (other, backend) in config.iter() {
                        let want = if other == op { Backend::Native } else { Backend::Auto };
                        assert_eq!(backend, want, "{key} sets {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn keys_left_out_stay_as_they_are() {
        assert_eq!(OperatorConfig::from_json("{}").unwrap(), OperatorConfig::default());
        let mut config = OperatorConfig::native();
        config.apply_json(r#" {"mlp": "auto"} "#).unwrap();
        assert_eq!(config, OperatorConfig { mlp: Backend::Auto, ..OperatorConfig::native() });
        config.set("LMHead", "auto").unwrap();
        assert_eq!(
            (config.get(Operator::LmHead), config.get(Operator::Norm)),
            (Backend::Auto, Backend::Native)
        );
        assert!(config.apply_json(r#"{"norm": "auto", "nrm": "auto"}"#).is_err());
        assert_eq!(config.norm, Backend::Native, "after an error nothing is replaced");
    }

    #[test]
    fn unknown_names_are_errors_with_a_suggestion() {
        assert_refused(
            r#"{"mpl": "native"}"#,
            &["`mpl`", "norm, qkv_projection, rope", "did you mean `mlp`?"],
        );
        assert_refused(r#"{"LMHed": "native"}"#, &["`LMHed`", "did you mean `lm_head`?"]);
        assert_refused(r#"{"attn": "native"}"#, &["did you mean `attention`?"]);
        assert_refused(
            r#"{"mlp": "naitve"}"#,
            &["mlp", "`naitve`", "auto, native", "did you mean `native`?"],
        );
        assert_refused(r#"{"linear": "native"}"#, &["`linear`", "lm_head"]);
        for key in ["zzz", "", "linear", "embedding", "kv_cache"] {
            let message = message(&format!(r#"{{"{key}": "native"}}"#));
            assert!(!message.contains("did you mean"), "{message}");
        }
    }

    #[test]
    fn a_backend_that_the_operator_lacks_is_an_error_that_lists_what_it_has() {
        assert_refused(r#"{"norm": "imbps"}"#, &["norm has no backend `imbps`", "native"]);
        assert_refused(r#"{"rope": "LLMBackendType.FLASH"}"#, &["rope has no backend `flash`"]);
    }

    #[test]
    fn one_operator_has_one_backend() {
        let json = r#"{"MLP": "native", "mlp_backend": "auto"}"#;
        assert_refused(json, &["mlp is both `native` and `auto`", "`mlp_backend`"]);
        assert_refused(r#"{"mlp": "native", "mlp": "auto"}"#, &["mlp is both"]);
        let same = OperatorConfig::from_json(r#"{"MLP": "native", "mlp_backend": "NATIVE"}"#).unwrap();
        assert_eq!(same.mlp, Backend::Native);
    }

    #[test]
    fn what_is_no_object_of_texts_is_refused_with_its_place() {
        assert_refused("", &["JSON object", "line 1 column 0"]);
        assert_refused(r#"{"mlp": native}"#, &["line 1 column 10"]);
        assert_refused(r#"{"mlp": "native"} x"#, &["line 1 column 19"]);
        assert_refused(r#"["mlp"]"#, &["expected an object"]);
        assert_refused("\"tpp\"", &["expected an object"]);
        assert_refused(r#"{"mlp": 3}"#, &["mlp: 3 is no text"]);
        assert_refused(r#"{"mlp": null}"#, &["mlp: null"]);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in r#"(\{"[a-zA-Z_.]{0,20}": ?"[a-z]{0,9}"\}|.{0,40})"#) {
            if let Ok(config) = OperatorConfig::from_json(&text) {
                prop_assert!(config.iter().all(|(op, backend)| op.require(backend).is_ok()));
            }
        }
    }
}
