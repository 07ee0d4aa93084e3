//! Chat templates: Jinja programs that do not compile, do not end, or explode.

use serde_json::json;

use super::case::{Case, Stage};
use super::sample::{Entry, GgufContents, Sample, TEMPLATE, TOKENIZER_CONFIG, text};

pub(crate) fn cases() -> Vec<Case> {
    let sources = syntax().into_iter().map(|(source, stage)| (source.to_owned(), stage));
    let sources = sources.chain(explosions()).map(|(source, stage)| {
        let sample = Sample::hf().fields(TOKENIZER_CONFIG, json!({"chat_template": source}));
        Case::new(format!("template: {source:.90}"), stage, sample, &["chat template"])
    });
    sources.chain(files()).collect()
}

fn syntax() -> Vec<(&'static str, Stage)> {
    vec![
        ("{% for m in %}", Stage::Open),
        ("{% if true %}", Stage::Open),
        ("{{ messages", Stage::Open),
        ("{% endfor %}", Stage::Open),
        ("{% bogus %}", Stage::Open),
        ("{{ messages | bogus }}", Stage::Render),
        ("{{ bogus(1) }}", Stage::Render),
        ("{{ bogus.field.of.nothing }}", Stage::Render),
        ("{% include '/etc/passwd' %}", Stage::Render),
        ("{% include 'chat template' %}", Stage::Render),
        ("{% import 'os' as os %}{{ os.system('id') }}", Stage::Render),
        ("{% extends 'base' %}", Stage::Render),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", Stage::Render),
        ("{{ 1 // 0 }}", Stage::Render),
        ("{{ raise_exception('only in \u{1b}[2J pairs') }}", Stage::Render),
        ("{{ messages[99999999999999999999].role }}", Stage::Render),
        ("{{ strftime_now('%Q') }}", Stage::Render),
    ]
}

fn explosions() -> Vec<(String, Stage)> {
    const N: &str = "range(100000)";
    let doubling = format!(
        "{{% set ns = namespace(s='aaaaaaaa') %}}{{% for i in {N} %}}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}"
    );
    let nested_list = format!(
        "{{% set ns = namespace(v=[]) %}}{{% for i in {N} %}}{{% set ns.v = [ns.v] %}}{{% endfor %}}{{% for i in {N} %}}{{{{ ns.v }}}}{{% endfor %}}"
    );
    [
        format!("{{% for a in {N} %}}{{% for b in {N} %}}{{% endfor %}}{{% endfor %}}"),
        "{% for i in range(20) %}{{ 'a' * 100000000 }}{% endfor %}".to_owned(),
        "{{ 'a' * 1000000000000 }}".to_owned(),
        "{{ [0] * 1000000000000 | length }}{{ [[0] * 100000000] * 100000000 }}".to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        doubling,
        nested_list,
        format!("{{% for i in {N} %}}0123456789abcdef0123456789abcdef{{% endfor %}}"),
        "{{ range(1000000000000) | list }}".to_owned(),
        "{{ 'a'.replace('', 'b' * 1000000) * 1000 }}".to_owned(),
        "{{ ('a' * 500000).replace('a', 'b' * 1000) }}".to_owned(),
        "{{ 'x'.join(range(100000000)) }}".to_owned(),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
        "{% if true %}".repeat(18_000),
    ]
    .into_iter()
    .map(|source| (source, Stage::Render))
    .collect()
}

fn files() -> Vec<Case> {
    let with = |entry| Sample::hf().with(TEMPLATE, entry);
    let rows = [
        ("a file of another encoding", with(Entry::Bytes(b"{{ '\xff' }}".to_vec())), TEMPLATE),
        ("a file of 257 KiB", with(Entry::Bytes(vec![b'x'; 257 << 10])), TEMPLATE),
        ("a file of 1 TiB", with(Entry::Sparse(Vec::new(), 1 << 40)), TEMPLATE),
        ("a directory", with(Entry::Directory), TEMPLATE),
        ("a FIFO", with(Entry::Fifo), TEMPLATE),
        ("a device", with(Entry::Link("/dev/zero".into())), TEMPLATE),
        ("a file that does not compile", with(Entry::Bytes(b"{% for %}".to_vec())), "chat template"),
        (
            "a source of 300 KiB",
            Sample::hf().fields(TOKENIZER_CONFIG, json!({"chat_template": "x".repeat(300 << 10)})),
            "chat template",
        ),
    ];
    let mut gguf = GgufContents::good();
    gguf.set("tokenizer.chat_template", text("{% for m in %}"));
    let gguf = Case::new("template: GGUF", Stage::Open, gguf.sample(), &["chat template"]);
    let rows = rows
        .map(|(label, sample, word)| Case::new(format!("template: {label}"), Stage::Open, sample, &[word]));
    rows.into_iter().chain([gguf]).collect()
}
