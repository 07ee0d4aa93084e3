//! Chat templates render as in transformers, byte for byte. The fixtures are made by
//! `tools/reference/make_chat_fixtures.py`.

use std::{collections::BTreeMap, fs, path::PathBuf};

use pace_runtime::chat::{ChatError, ChatTemplate, Message, RenderOptions};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What a template is given.
#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    #[serde(default)]
    variables: Map<String, Value>,
    #[serde(default)]
    add_generation_prompt: bool,
}

/// What transformers made of it: one of the three.
#[derive(Deserialize)]
struct Rendered {
    text: Option<String>,
    /// The message of `raise_exception`.
    raises: Option<String>,
    #[serde(default)]
    fails: bool,
}

#[derive(Deserialize)]
struct Expressions {
    context: Conversation,
    cases: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    template: String,
    #[serde(flatten)]
    rendered: Rendered,
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures_chat", name].iter().collect()
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn read_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn render(template: &str, conversation: &Conversation) -> Result<String, ChatError> {
    let options = RenderOptions {
        add_generation_prompt: conversation.add_generation_prompt,
        tools: conversation.tools.clone(),
        documents: conversation.documents.clone(),
        variables: conversation.variables.clone(),
    };
    ChatTemplate::new(template, Some("<s>"), Some("</s>"))?.render_with(&conversation.messages, &options)
}

/// Puts today's date where the fixture has its format in angle brackets.
fn with_date(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, (format, after))) =
        rest.split_once('⟨').and_then(|(before, after)| Some((before, after.split_once('⟩')?)))
    {
        let date = ChatTemplate::new(&format!("{{{{ strftime_now('{format}') }}}}"), None, None)
            .and_then(|template| template.render(&[], false));
        out.push_str(before);
        out.push_str(&date.expect("a date"));
        rest = after;
    }
    out + rest
}

/// What is wrong with a rendering, or `None`.
fn fault(expected: &Rendered, actual: impl Fn() -> Result<String, ChatError>) -> Option<String> {
    let same = |result: &Result<String, ChatError>| match (&expected.text, &expected.raises, result) {
        (Some(text), _, Ok(actual)) => with_date(text) == *actual,
        (None, Some(message), Err(ChatError::Template { what, .. })) => what == message,
        (None, None, Err(_)) => expected.fails,
        _ => false,
    };
    let result = actual();
    // The day may end between the rendering and the expected date.
    if same(&result) || same(&actual()) {
        return None;
    }
    let wanted = expected.text.as_ref().or(expected.raises.as_ref());
    Some(format!("  transformers: {wanted:?}\n  here: {result:?}\n"))
}

fn assert_none(faults: &[String], cases: usize) {
    assert!(faults.is_empty(), "{} of {cases} cases differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_templates_of_the_families_render_as_in_transformers() {
    let conversations: BTreeMap<String, Conversation> = read_json("conversations.json");
    let (mut faults, mut texts, mut raised) = (Vec::new(), 0, 0);
    let mut templates = 0;
    for entry in fs::read_dir(path("templates")).expect("the templates") {
        let file = entry.expect("a template").file_name().into_string().expect("a name in ASCII");
        let name = file.strip_suffix(".jinja").expect("a template");
        let template = read(&format!("templates/{file}"));
        let rendered: BTreeMap<String, Rendered> = read_json(&format!("rendered/{name}.json"));
        assert_eq!(rendered.keys().collect::<Vec<_>>(), conversations.keys().collect::<Vec<_>>());
        for (conversation, expected) in &rendered {
            let result = fault(expected, || render(&template, &conversations[conversation]));
            faults.extend(result.map(|what| format!("{name}, {conversation}:\n{what}")));
            texts += usize::from(expected.text.is_some());
            raised += usize::from(expected.raises.is_some());
        }
        templates += 1;
    }
    assert_none(&faults, templates * conversations.len());
    assert!(templates >= 16 && texts >= 250 && raised >= 25, "{templates}, {texts}, {raised}");
}

#[test]
fn every_construct_renders_as_in_transformers() {
    let Expressions { context, cases } = read_json("expressions.json");
    let faults: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let result = fault(&case.rendered, || render(&case.template, &context));
            result.map(|what| format!("{}\n{what}", case.template))
        })
        .collect();
    assert_none(&faults, cases.len());
    assert!(cases.len() >= 500);
}
