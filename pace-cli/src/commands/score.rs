//! `pace-cli score`.

use std::io::IsTerminal;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pace_runtime::config::Env;
use pace_runtime::{ModelFiles, Score, ScoreRequest};
use serde_json::json;

use crate::args::{Format, ScoreArgs, ScoreTextArgs};
use crate::exit::Usage;
use crate::output;
use crate::session::{Session, encode, read_text};

pub(crate) fn run(env: &Env, args: ScoreArgs) -> Result<()> {
    let (session, (tokens, windows)) = Session::start(env, &args.engine, |files| {
        let (tokens, spec) = (ids(files, args.text)?, files.spec());
        let context = spec.max_positions;
        let windows = windows(tokens.len(), args.stride, args.window.unwrap_or(context), context)?;
        windows.iter().try_for_each(|&w| request(&tokens, w, args.top).check(spec))?;
        Ok((tokens, windows))
    })?;
    let scored = score(&session, &tokens, &windows, args.top)?;
    match args.format {
        Format::Json => output::json(&to_json(&tokens, &scored))?,
        Format::Text => output::stream(&to_text(&session.files, &tokens, &scored))?,
    }
    session.log_profile()
}

/// A part of the text that goes through the model at once: the tokens `begin..end`, of which `from..end` are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    begin: usize,
    from: usize,
    end: usize,
}

/// A score, and the perplexity over all windows.
struct Scored {
    score: Score,
    perplexity: Option<f64>,
}

/// The windows that HF's recipe for perplexity cuts `n` tokens into: `window` tokens each, `stride` apart. Without a
/// stride the text is one window.
fn windows(n: usize, stride: Option<usize>, window: usize, context: usize) -> Result<Vec<Window>> {
    let Some(stride) = stride else {
        if n > context {
            let what = format!("the text has {n} tokens, the model's context holds {context}: give --stride");
            return Err(Usage(what).into());
        }
        return Ok(vec![Window { begin: 0, from: 0, end: n }]);
    };
    if window > context {
        return Err(Usage(format!("--window {window}: the model's context holds {context} tokens")).into());
    }
    if stride == 0 || stride > window {
        return Err(Usage(format!("--stride {stride}: give 1 to the window's {window} tokens")).into());
    }
    let mut all = Vec::new();
    let mut from = 0;
    for begin in (0..n.max(1)).step_by(stride) {
        let end = n.min(begin + window);
        all.push(Window { begin, from, end });
        from = end;
        if end == n {
            break;
        }
    }
    Ok(all)
}

fn request(tokens: &[u32], w: Window, top: usize) -> ScoreRequest {
    ScoreRequest { tokens: tokens[w.begin..w.end].to_vec(), top, from: w.from - w.begin }
}

/// Scores window after window.
fn score(session: &Session, tokens: &[u32], windows: &[Window], top: usize) -> Result<Scored> {
    let bar = progress_bar(tokens.len());
    let mut score = Score { logprobs: Vec::with_capacity(tokens.len()), next: Vec::new() };
    let (mut nll, mut weight) = (0.0, 0.0);
    for &w in windows {
        let part = session
            .engine
            .score(request(tokens, w, top))?
            .wait(|done| bar.set_position((w.begin + done) as u64))?;
        let new = &part.logprobs[w.from - w.begin..];
        let known: Vec<f64> = new.iter().flatten().copied().collect();
        if !known.is_empty() {
            // HF's recipe: the mean over the window's new tokens, weighted by their number less one.
            let n = (new.len() - 1).max(usize::from(windows.len() == 1)) as f64;
            nll -= known.iter().sum::<f64>() / known.len() as f64 * n;
            weight += n;
        }
        score.logprobs.extend_from_slice(new);
        score.next = part.next;
    }
    bar.finish_and_clear();
    Ok(Scored { score, perplexity: (weight > 0.0).then(|| (nll / weight).exp()) })
}

/// On a terminal only.
fn progress_bar(tokens: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("scoring {bar:30} {pos}/{len} tokens, {per_sec}, {eta}");
    ProgressBar::new(tokens as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn ids(files: &ModelFiles, text: ScoreTextArgs) -> Result<Vec<u32>> {
    match text {
        ScoreTextArgs { tokens: Some(ids), .. } => Ok(ids),
        ScoreTextArgs { file: Some(path), .. } => encode(files, &read_text(&path)?, "--tokens"),
        ScoreTextArgs { text, .. } => encode(files, &text.unwrap_or_default(), "--tokens"),
    }
}

fn to_json(tokens: &[u32], scored: &Scored) -> serde_json::Value {
    let next: Vec<_> =
        scored.score.next.iter().map(|&(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
    json!({"tokens": tokens, "logprobs": scored.score.logprobs, "next": next, "perplexity": scored.perplexity})
}

fn to_text(files: &ModelFiles, tokens: &[u32], scored: &Scored) -> String {
    let piece = |id: u32| {
        let text = files.tokenizer().and_then(|t| t.decode(&[id], false).ok()).unwrap_or_default();
        format!("{id:>8}  {text:?}")
    };
    let score = &scored.score;
    let mut out = String::new();
    for (&id, logprob) in tokens.iter().zip(&score.logprobs) {
        let value = logprob.map_or_else(|| format!("{:>10}", "-"), |v| format!("{v:>10.4}"));
        out += &format!("{value} {}\n", piece(id));
    }
    if !score.next.is_empty() {
        out += "\nmost likely next tokens\n";
    }
    for &(id, logprob) in &score.next {
        out += &format!("{logprob:>10.4} {}\n", piece(id));
    }
    if let Some(perplexity) = scored.perplexity {
        out += &format!("\nperplexity {perplexity:.4} over {} tokens\n", tokens.len() - 1);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(n: usize, stride: usize, window: usize) -> Vec<(usize, usize, usize)> {
        let windows = windows(n, Some(stride), window, 100).unwrap();
        windows.into_iter().map(|w| (w.begin, w.from, w.end)).collect()
    }

    #[test]
    fn windows_are_those_of_hf() {
        assert_eq!(cut(10, 2, 4), [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]);
        assert_eq!(cut(9, 4, 4), [(0, 0, 4), (4, 4, 8), (8, 8, 9)]);
        assert_eq!(cut(3, 2, 4), [(0, 0, 3)]);
        assert!(windows(10, Some(5), 4, 100).is_err(), "a stride beyond the window leaves tokens out");
        assert!(windows(10, Some(0), 4, 100).is_err());
        assert!(windows(10, Some(4), 101, 100).is_err());
        assert!(windows(101, None, 100, 100).is_err());
        assert_eq!(windows(7, None, 100, 100).unwrap(), [Window { begin: 0, from: 0, end: 7 }]);
    }
}
