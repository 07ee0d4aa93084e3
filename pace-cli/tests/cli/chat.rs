//! `chat` with a message, as an argument and from a pipe.

use super::common::{Call, Outcome, arg, fixture};
use super::{expected, ids, json};

fn chat(model: &str, args: &[&str], stdin: &str) -> Outcome {
    let path = fixture(model);
    let head = ["chat", "-m", arg(&path), "--dtype", "f32", "--temperature", "0", "-n", "16"];
    Call::new(&[&head, args].concat()).stdin(stdin).run()
}

#[test]
fn the_template_makes_the_prompt_of_transformers() {
    for (name, model) in [("gqa-tied", "gqa-tied"), ("gguf-bf16", "gguf-bf16/model.gguf")] {
        let expected = expected(name).chat.unwrap();
        let [system, user] = expected.messages.as_slice() else { panic!("a system and a user message") };
        assert_eq!((system.role.as_str(), user.role.as_str()), ("system", "user"));
        let flags = ["--system", &system.content, "--format", "json"];
        let typed = json(&chat(model, &[&flags[..], &[&user.content]].concat(), ""));
        assert_eq!(ids(&typed["prompt_tokens"]), expected.tokens, "{name}");
        assert!(["stop", "length"].contains(&typed["finish_reason"].as_str().unwrap()));
        let piped = json(&chat(model, &flags, &format!("{}\n", user.content)));
        for field in ["prompt_tokens", "tokens", "text", "finish_reason"] {
            assert_eq!(piped[field], typed[field], "{field}");
        }
    }
}

#[test]
fn an_answer_in_text_is_the_answer_and_nothing_else() {
    let text = chat("gqa-tied", &["What closed?"], "");
    let object = json(&chat("gqa-tied", &["What closed?", "--format", "json"], ""));
    assert_eq!(text.text(), format!("{}\n", object["text"].as_str().unwrap()));
    assert_eq!(text.stderr, "");
}

#[test]
fn an_empty_pipe_is_no_message() {
    chat("gqa-tied", &[], " \n").assert_refused(2, &["standard input is empty"]);
}

#[test]
fn a_pipe_that_is_no_text_is_refused() {
    let path = fixture("gqa-tied");
    let out = Call::new(&["chat", "-m", arg(&path)]).stdin([0x66, 0xff, 0xfe]).run();
    out.assert_refused(2, &["standard input", "UTF-8"]);
}
