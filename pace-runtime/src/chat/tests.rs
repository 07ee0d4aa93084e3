use super::*;

/// The template of SmolLM2-Instruct, which adds a system prompt of its own.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn message(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

fn render(source: &str) -> Result<String, ChatError> {
    ChatTemplate::new(source, Some("<s>"), None)?.render(&[message("user", "Hi <b>\"é\"</b>")], true)
}

fn error(source: &str) -> String {
    render(source).expect_err("a template that must fail").to_string()
}

#[test]
fn smollm2_adds_its_system_prompt() {
    let template = ChatTemplate::new(SMOLLM2, None, Some("<|im_end|>")).expect("a valid template");
    let user = message("user", "What is the capital of France?");
    let prompt = template.render(std::slice::from_ref(&user), true).expect("a prompt");
    assert_eq!(
        prompt,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    let own = template.render(&[message("system", "Be brief."), user], false).expect("a prompt");
    assert_eq!(
        own,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    );
}

#[test]
fn the_environment_is_that_of_hf() {
    // Expected values are those of transformers' apply_chat_template.
    for (source, expected) in [
        ("{{ bos_token }}|{{ eos_token }}|{{ tools }}|{{ add_generation_prompt }}", "<s>||None|True"),
        ("{% if tools is none and documents is none and x is not defined %}yes{% endif %}", "yes"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{{ messages[0].content|tojson }}", "\"Hi <b>\\\"é\\\"</b>\""),
        ("{{ messages[0].content|tojson(ensure_ascii=true) }}", "\"Hi <b>\\\"\\u00e9\\\"</b>\""),
        ("{{ [1, none, {'a': [true]}]|tojson }}", "[1, null, {\"a\": [true]}]"),
        ("{{ [1, {'a': []}]|tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": []\n  }\n]"),
        ("{{ messages[0]['role'].upper() + ' x '.strip() }}", "USERx"),
        ("{{ 'a</think>b'.split('</think>')[-1] }}{{ messages[0].get('nope') is none }}", "bTrue"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{%- for m in messages -%} {%- generation -%} x {{ m.role }} {% endgeneration %}\ny{% endfor %}",
            "x user y",
        ),
        ("{{ 'a' if messages[0].content is string and messages is iterable else 'b' }}", "a"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('&') }}", "<&>"),
    ] {
        assert_eq!(render(source).as_deref().ok(), Some(expected), "{source}: {:?}", render(source));
    }
    assert!(
        render("{{ strftime_now('%Y-%m-%d') }}").is_ok_and(|date| date.len() == 10 && date.starts_with("20"))
    );
}

#[test]
fn errors_name_the_line() {
    assert_eq!(
        error("a\n{{ raise_exception('roles must alternate') }}"),
        "chat template: line 2: roles must alternate"
    );
    assert!(error("a\n\n{% if %}").starts_with("chat template: line 3: syntax error"));
    assert!(error("{{ messages|nope }}").contains("line 1: unknown filter"));
    assert!(error("\n{{ nope.nope }}").starts_with("chat template: line 2: undefined value"));
    assert!(error("{{ 1|tojson(indent=17) }}").contains("indent"));
    assert!(error("{{ strftime_now('%Q') }}").contains("`%Q`"));
}

#[test]
fn a_hostile_template_is_bounded() {
    assert!(
        error("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
            .contains("too long")
    );
    assert!(error("{% for i in range(20) %}{{ 'a' * 100000000 }}{% endfor %}").contains("too much memory"));
    let doubling = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    assert!(error(doubling).contains("too much memory"));
    assert!(matches!(render("{{ 'a' * 2000000 }}"), Err(ChatError::OutputTooLong)));
    assert!(render("{{ 'a' * 1048576 }}").is_ok_and(|text| text.len() == MAX_OUTPUT_BYTES));
    assert!(render(&format!("{{{{ {} }}}}", "(".repeat(100_000))).is_err());
    let nested =
        "{% set ns = namespace(x=[]) %}{% for i in range(60000) %}{% set ns.x = {'a': [ns.x]} %}{% endfor %}";
    for end in ["", "{{ ns.x }}", "{{ ns.x == ns.x }}", "{{ ns.x|tojson }}"] {
        let result = render(&format!("{nested}{end}"));
        assert!(result.is_ok() || result.is_err_and(|error| !error.to_string().is_empty()));
    }
    for source in [
        "{{ '{:>2000000000}'.format('x') }}",
        "{{ '{:.9999}'.format(1.5) }}",
        "{{ '{:{}}'.format('x', 2000000000) }}",
        "{{ '{}'.format(['x'] * 100000) }}",
        "{{ '{a}'.format(a=['x'] * 100000) }}",
        "{{ ('{0}' * 10000).format('x' * 10000) }}",
        "{{ ('{a}' * 10000).format(a='x' * 10000) }}",
        "{{ ('a' * 100000).replace('a', 'x' * 100000) }}",
        "{{ ('x' * 100000).join([1] * 100000) }}",
    ] {
        assert!(error(source).contains("chat template: line 1: str."), "{source}");
    }
    assert!(matches!(render(&"x".repeat(MAX_SOURCE_BYTES + 1)), Err(ChatError::SourceTooLong { .. })));
}

#[test]
fn many_parts_of_a_long_text_are_bounded() {
    let split = "{% set t = 'a,' * 400000 %}{% set ns = namespace(n=0) %}\
                 {% for i in range(100000) %}{% set ns.n = t.METHOD|length %}{% endfor %}";
    for method in ["rsplit(',')", "title()", "partition(',')", "split(',', maxsplit=9)"] {
        assert!(error(&split.replace("METHOD", method)).contains("too much memory"), "{method}");
    }
}

#[test]
fn messages_are_those_of_chat_apis() {
    let json = r#"[{"role":"user","content":"Hi","name":"Ann"},
        {"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":{"z":1,"a":0.5}}}]},
        {"role":"assistant"},{"role":"tool","content":[{"type":"text","text":"4"}],"tool_call_id":"1"}]"#;
    let messages: Vec<Message> = serde_json::from_str(json).expect("valid messages");
    assert_eq!(messages[0].content.as_text(), Some("Hi"));
    assert_eq!((&messages[1].content, &messages[2].content), (&Content::Null, &Content::Absent));
    assert_eq!(messages[3].fields["tool_call_id"], "1");
    let compact: String = json.lines().map(str::trim).collect();
    assert_eq!(serde_json::to_string(&messages).ok(), Some(compact));
    let template = ChatTemplate::new("{{ messages|tojson(separators=(',', ':')) }}", None, None);
    let rendered = template.expect("a valid template").render(&messages, false);
    assert_eq!(rendered.ok(), serde_json::to_string(&messages).ok());
    for wrong in [r#"{"content":"Hi"}"#, r#"{"role":"user","content":5}"#] {
        assert!(serde_json::from_str::<Message>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn variables_go_before_tokens_but_not_before_the_messages() {
    let variables =
        r#"{"bos_token":"<x>","messages":[],"tools":[1],"add_generation_prompt":true,"deep":{"b":[1]}}"#;
    let options = RenderOptions {
        documents: Some(vec![Json::from("d")]),
        variables: serde_json::from_str(variables).expect("an object"),
        ..RenderOptions::default()
    };
    let source = "{{ bos_token }}{{ eos_token }}{{ messages|length }}{{ tools }}{{ documents }}{{ deep }}\
                  {{ add_generation_prompt }}";
    let template = ChatTemplate::new(source, Some("<s>"), Some("</s>")).expect("a valid template");
    let rendered = template.render_with(&[message("user", "Hi")], &options);
    assert_eq!(rendered.ok().as_deref(), Some("<x></s>1None['d']{'b': [1]}False"));
}

#[test]
fn tools_choose_the_template_made_for_them() {
    let template = ChatTemplate::new("plain {{ bos_token }}", Some("<s>"), None);
    let template = template.and_then(|t| t.with_tool_use("{{ tools|length }} tools {{ bos_token }}"));
    let template = template.expect("valid templates");
    let rendered = |tools: Option<Vec<Json>>| {
        let options = RenderOptions { tools, ..RenderOptions::default() };
        template.render_with(&[message("user", "Hi")], &options).expect("a prompt")
    };
    assert_eq!(rendered(None), "plain <s>");
    assert_eq!(rendered(Some(vec![Json::from("t")])), "1 tools <s>");
    assert_eq!(rendered(Some(Vec::new())), "0 tools <s>", "an empty list is given, too");
    assert!(ChatTemplate::new("x", None, None).and_then(|t| t.with_tool_use("{% if %}")).is_err());
}

#[test]
fn a_long_conversation_renders() {
    let template = ChatTemplate::new(SMOLLM2, None, None).expect("a valid template");
    let messages: Vec<_> = (0..2000).map(|_| message("user", &"word ".repeat(80))).collect();
    let prompt = template.render(&messages, true).expect("a prompt");
    assert!(prompt.len() > 800_000);
}
