//! The messages of a conversation, and JSON data as a template sees it.

use minijinja::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// The fields that a message's reasoning comes in. Templates read the first or the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One message of a conversation, in the form of chat APIs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said.
    #[serde(default, skip_serializing_if = "Content::is_absent")]
    pub content: Content,
    /// What else the template may read, such as `tool_calls`, `tool_call_id`, `name` or `reasoning_content`.
    #[serde(flatten)]
    pub fields: Map<String, Json>,
}

/// What a message says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// The message has no such field. Templates tell this from [`Content::Null`].
    #[default]
    #[serde(skip)]
    Absent,
    /// Nothing, beside a tool call.
    Null,
    /// Text.
    Text(String),
    /// Parts, such as `{"type": "text", "text": ".."}`.
    Parts(Vec<Json>),
}

impl Content {
    fn is_absent(&self) -> bool {
        *self == Self::Absent
    }

    /// The text, if the content is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Null | Self::Parts(_) => None,
        }
    }

    fn to_value(&self) -> Option<Value> {
        match self {
            Self::Absent => None,
            Self::Null => Some(Value::from(())),
            Self::Text(text) => Some(Value::from(text.as_str())),
            Self::Parts(parts) => Some(parts.iter().map(to_value).collect()),
        }
    }
}

impl<T: Into<String>> From<T> for Content {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

impl Message {
    /// A message of text only.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Content::Text(content.into()), fields: Map::new() }
    }

    /// Instructions for the model.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// The message as the template sees it. The reasoning is offered under both names that templates read, as HF
    /// does.
    pub(super) fn to_value(&self) -> Value {
        let reasoning =
            REASONING.iter().filter_map(|name| self.fields.get(*name)).find(|given| !given.is_null());
        let thinking = reasoning.map(|given| ("thinking", to_value(given)));
        let content = self.content.to_value().map(|content| ("content", content));
        let own = [("role", Value::from(self.role.as_str()))].into_iter().chain(content);
        let further = self.fields.iter().map(|(name, value)| (name.as_str(), to_value(value)));
        let content_of_reasoning = reasoning.map(|given| ("reasoning_content", to_value(given)));
        // A later value replaces an earlier one of the same name and keeps its place.
        Value::from_pairs(thinking.into_iter().chain(own).chain(further).chain(content_of_reasoning))
    }
}

/// JSON data as a template's value; objects keep the order of their keys.
pub(super) fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => number.as_i64().map(Value::from).unwrap_or_else(|| {
            number.as_u64().map_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN)), Value::from)
        }),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(name, value)| (name.as_str(), to_value(value))))
        }
    }
}
