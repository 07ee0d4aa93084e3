//! What is typed: entries of one or more lines, commands, settings.

use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::Result;
use pace_runtime::RuntimeError;
use pace_runtime::generation_config::{GenerationConfig, SamplingOverrides};

use crate::commands::answer::Options;
use crate::exit::Usage;

pub(super) const HELP: &str = "\
/set [NAME VALUE]  show or change how answers are made: /set temperature 0.7
/system [TEXT]     show or change the model's instructions
/save FILE         write the conversation as JSON
/load FILE         go on with a saved conversation
/stats             speed of the last answer, length of the conversation
/reset             forget the conversation
/help              this list
/quit              leave (also Ctrl-D)
A line that ends with \\ goes on in the next one; so does everything between two \"\"\".
Ctrl-C stops an answer.";

/// What an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input<'l> {
    Nothing,
    Help,
    Reset,
    Stats,
    Quit,
    Set(Option<&'l str>),
    System(Option<&'l str>),
    Save(&'l str),
    Load(&'l str),
    /// A command that does not exist or lacks its argument, and what to say about it.
    Wrong(String),
    Say(&'l str),
}

/// Reads one entry.
pub(super) fn parse(entry: &str) -> Input<'_> {
    let entry = entry.trim();
    if entry.is_empty() {
        return Input::Nothing;
    }
    if !entry.starts_with('/') {
        return Input::Say(entry);
    }
    let (command, rest) = entry.split_once(char::is_whitespace).unwrap_or((entry, ""));
    let argument = Some(rest.trim()).filter(|rest| !rest.is_empty());
    match (command, argument) {
        ("/help" | "/?", _) => Input::Help,
        ("/reset" | "/clear", _) => Input::Reset,
        ("/stats", _) => Input::Stats,
        ("/quit" | "/exit" | "/bye", _) => Input::Quit,
        ("/set", argument) => Input::Set(argument),
        ("/system", argument) => Input::System(argument),
        ("/save", Some(path)) => Input::Save(path),
        ("/load", Some(path)) => Input::Load(path),
        ("/save" | "/load", None) => Input::Wrong(format!("{command} needs a file.")),
        _ => Input::Wrong(format!("{command} is no command. /help lists them.")),
    }
}

/// An entry that may have several lines.
#[derive(Debug, Default)]
pub(super) struct Entry {
    lines: Vec<String>,
    quoted: bool,
}

impl Entry {
    const QUOTE: &str = "\"\"\"";

    /// Whether no line has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Takes the next line; gives the entry when it is complete.
    pub(super) fn push(&mut self, line: &str) -> Option<String> {
        let mut line = line;
        if self.lines.is_empty()
            && let Some(rest) = line.trim_start().strip_prefix(Self::QUOTE)
        {
            self.quoted = true;
            line = rest;
        }
        let (text, done) = if self.quoted {
            line.trim_end().strip_suffix(Self::QUOTE).map_or((line, false), |text| (text, true))
        } else {
            line.strip_suffix('\\').map_or((line, true), |text| (text, false))
        };
        self.lines.push(text.to_owned());
        done.then(|| self.lines.join("\n"))
    }
}

/// Changes one setting: `NAME VALUE`, or `NAME default`. Gives what to say.
pub(super) fn set(options: &mut Options, config: &GenerationConfig, text: &str) -> Result<String> {
    let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (name, value) = (name.replace('-', "_"), value.trim());
    if value.is_empty() {
        return Err(Usage(format!("/set {name} needs a value")).into());
    }
    let mut changed = options.clone();
    let s = &mut changed.sampling;
    match name.as_str() {
        "temperature" => s.temperature = number(&name, value)?,
        "top_k" => s.top_k = number(&name, value)?,
        "top_p" => s.top_p = number(&name, value)?,
        "min_p" => s.min_p = number(&name, value)?,
        "repetition_penalty" => s.repetition_penalty = number(&name, value)?,
        "frequency_penalty" => s.frequency_penalty = number(&name, value)?,
        "presence_penalty" => s.presence_penalty = number(&name, value)?,
        "seed" => s.seed = number(&name, value)?,
        "max_new_tokens" => {
            changed.max_new_tokens =
                number(&name, value)?.ok_or_else(|| Usage("max_new_tokens needs a number".to_owned()))?;
        }
        _ => return Err(Usage(format!("{name} is no setting; /set lists them")).into()),
    }
    config.apply(&changed.sampling).validate().map_err(RuntimeError::from)?;
    *options = changed;
    Ok(format!("{name} is {value}."))
}

/// Every setting and its value.
pub(super) fn settings(options: &Options) -> String {
    let SamplingOverrides {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        seed,
        ..
    } = &options.sampling;
    let mut out = String::new();
    let mut row = |name: &str, value: Option<String>| {
        let _ = writeln!(out, "{name:<20}{}", value.as_deref().unwrap_or("default"));
    };
    row("temperature", temperature.map(|v| v.to_string()));
    row("top_k", top_k.map(|v| v.to_string()));
    row("top_p", top_p.map(|v| v.to_string()));
    row("min_p", min_p.map(|v| v.to_string()));
    row("repetition_penalty", repetition_penalty.map(|v| v.to_string()));
    row("frequency_penalty", frequency_penalty.map(|v| v.to_string()));
    row("presence_penalty", presence_penalty.map(|v| v.to_string()));
    row("seed", seed.map(|v| v.to_string()));
    row("max_new_tokens", Some(options.max_new_tokens.to_string()));
    out.trim_end().to_owned()
}

/// A number, or nothing for `default`.
fn number<T: FromStr>(name: &str, value: &str) -> Result<Option<T>> {
    if value == "default" {
        return Ok(None);
    }
    let wrong = |_| Usage(format!("/set {name}: `{value}` is no number; `default` is the model's own"));
    Ok(Some(value.parse().map_err(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn options() -> Options {
        let Command::Chat(args) = Cli::parse_from(["pace-cli", "chat"]).command else {
            panic!("chat was asked for")
        };
        Options::new(&args.length, &args.sampling, 10)
    }

    #[test]
    fn entries_are_commands_or_messages() {
        assert_eq!(parse("  "), Input::Nothing);
        assert_eq!(parse("/help"), Input::Help);
        assert_eq!(parse(" /reset "), Input::Reset);
        assert_eq!(parse("/exit"), Input::Quit);
        assert_eq!(parse("/set"), Input::Set(None));
        assert_eq!(parse("/set temperature 0.7"), Input::Set(Some("temperature 0.7")));
        assert_eq!(parse("/system You are a\npirate."), Input::System(Some("You are a\npirate.")));
        assert_eq!(parse("/save a b.json"), Input::Save("a b.json"));
        assert!(matches!(parse("/load"), Input::Wrong(what) if what.contains("/load needs a file")));
        assert!(matches!(parse("/frob nicate"), Input::Wrong(what) if what.contains("/frob is no command")));
        assert_eq!(parse(" a/b "), Input::Say("a/b"));
    }

    #[test]
    fn an_entry_may_have_several_lines() {
        assert_eq!(Entry::default().push("one line").as_deref(), Some("one line"));
        let mut entry = Entry::default();
        assert_eq!(entry.push("first \\"), None);
        assert_eq!(entry.push("second").as_deref(), Some("first \nsecond"));
        let mut entry = Entry::default();
        assert_eq!(entry.push("\"\"\"def f():\\"), None);
        assert_eq!(entry.push("    pass"), None);
        assert_eq!(entry.push("\"\"\"").as_deref(), Some("def f():\\\n    pass\n"));
        assert_eq!(Entry::default().push("\"\"\"all in one\"\"\"").as_deref(), Some("all in one"));
    }

    #[test]
    fn settings_are_checked_before_they_count() {
        let (mut options, config) = (options(), GenerationConfig::default());
        set(&mut options, &config, "temperature 0.7").unwrap();
        set(&mut options, &config, "top-k 40").unwrap();
        set(&mut options, &config, "max_new_tokens 99").unwrap();
        assert_eq!((options.sampling.temperature, options.sampling.top_k), (Some(0.7), Some(40)));
        assert_eq!(options.max_new_tokens, 99);
        assert!(settings(&options).contains("temperature         0.7"));
        for wrong in
            ["temperature", "temperature warm", "temperature -1", "top_p 2", "colour 3", "max_new_tokens x"]
        {
            let error = set(&mut options, &config, wrong).unwrap_err().to_string();
            let name = wrong.split(' ').next().unwrap();
            assert!(error.contains(name), "{wrong}: {error}");
        }
        assert_eq!(options.sampling.temperature, Some(0.7), "what is wrong changes nothing");
        set(&mut options, &config, "temperature default").unwrap();
        assert_eq!(options.sampling.temperature, None);
    }
}
