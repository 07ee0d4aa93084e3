//! `pace-cli compare`.

mod report;

use std::io::IsTerminal;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use pace_runtime::config::Env;
use pace_runtime::{
    Divergence, DivergenceError, EngineConfig, EngineHandle, ModelFiles, RuntimeError, ScoreRequest,
    check_memory,
};

use self::report::Report;
use crate::args::{CompareArgs, EngineArgs, Format, ScoreTextArgs};
use crate::exit::Usage;
use crate::output;
use crate::session::{self, Session, encode, read_text};

/// Tokens of a window, where the models' context allows it.
const WINDOW: usize = 512;

/// Bytes of the reference's logits that are held at a time, at most; a window that has more is computed in slices.
const HELD_BYTES: usize = 256 << 20;

pub(crate) fn run(env: &Env, args: CompareArgs) -> Result<()> {
    let [reference, model] = Side::open_both(env, &args)?;
    let tokens = tokens(&reference.files, &model.files, args.text)?;
    let specs = [reference.files.spec(), model.files.spec()];
    let window = window(args.window, specs.map(|spec| spec.max_positions))?;
    let windows = cut(tokens.len(), window, args.max_tokens)?;
    for (w, spec) in windows.iter().flat_map(|w| specs.map(|spec| (w, spec))) {
        ScoreRequest { tokens: tokens[w.clone()].to_vec(), top: 0, from: 0 }.check(spec)?;
    }
    let engines = (reference.start()?, model.start()?);
    let held = HELD_BYTES / size_of::<f32>() / specs[0].vocab_size;
    let divergence = compare(&engines.0, &engines.1, &tokens, &windows, held)?;
    let summary = divergence.summary().context("nothing was compared")?;
    let report = Report { window, summary, reference: &reference, model: &model, engines: &engines };
    match args.format {
        Format::Json => output::json(&report.to_json())?,
        Format::Text => output::stream(&report.to_text())?,
    }
    Ok(())
}

/// One of the two: an opened model, and how it is computed.
struct Side {
    files: Arc<ModelFiles>,
    config: EngineConfig,
}

impl Side {
    /// The reference and the model, checked as far as that goes without weights. Files that are named twice are opened once.
    fn open_both(env: &Env, args: &CompareArgs) -> Result<[Self; 2]> {
        let reference = args.reference_engine();
        let model_config = config(env, &args.engine)?;
        let reference_config = config(env, &reference)?;
        let files = Arc::new(session::open(env, args.engine.model.as_deref())?);
        let same = reference.model == args.engine.model;
        let reference_files =
            if same { Arc::clone(&files) } else { Arc::new(session::open(env, reference.model.as_deref())?) };
        let (own, other) = (reference_files.spec().vocab_size, files.spec().vocab_size);
        if own != other {
            return Err(Usage(format!(
                "the reference {} has a vocabulary of {own} tokens, the model {} of {other}: they must have the same",
                reference_files.name(),
                files.name()
            ))
            .into());
        }
        model_config.choose(&files)?;
        reference_config.choose(&reference_files)?;
        let reference = Self { files: reference_files, config: reference_config };
        Ok([reference, Self { files, config: model_config }])
    }

    fn start(&self) -> Result<EngineHandle> {
        Ok(Session::with(Arc::clone(&self.files), self.config.clone())?.engine)
    }
}

fn config(env: &Env, args: &EngineArgs) -> Result<EngineConfig> {
    args.platform.expect_one_instance()?;
    args.config(env)
}

/// The text's tokens, which must be the same for both. One of the two may lack a tokenizer.
fn tokens(reference: &Arc<ModelFiles>, model: &Arc<ModelFiles>, text: ScoreTextArgs) -> Result<Vec<u32>> {
    let text = match text {
        ScoreTextArgs { tokens: Some(ids), .. } => return Ok(ids),
        ScoreTextArgs { file: Some(path), .. } => read_text(&path)?,
        ScoreTextArgs { text, .. } => text.unwrap_or_default(),
    };
    if reference.tokenizer().is_none() {
        return encode(model, &text, "--tokens");
    }
    let ids = encode(reference, &text, "--tokens")?;
    if model.tokenizer().is_none() || Arc::ptr_eq(reference, model) {
        return Ok(ids);
    }
    let other = encode(model, &text, "--tokens")?;
    if ids == other {
        return Ok(ids);
    }
    let at = ids.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let id = |ids: &[u32]| ids.get(at).map_or_else(|| "the end".to_owned(), u32::to_string);
    Err(Usage(format!(
        "the tokenizers differ: token {at} of the text is {} for the reference {} and {} for the model {}; only models that \
         read a text as the same tokens can be compared",
        id(&ids),
        reference.name(),
        id(&other),
        model.name()
    ))
    .into())
}

/// Tokens of a window.
fn window(asked: Option<usize>, contexts: [usize; 2]) -> Result<usize> {
    let context = contexts[0].min(contexts[1]);
    match asked {
        Some(n) if n < 2 => Err(Usage(format!("--window {n}: give 2 tokens or more")).into()),
        Some(n) if n > context => {
            Err(Usage(format!("--window {n}: the context holds {context} tokens")).into())
        }
        asked => Ok(asked.unwrap_or_else(|| WINDOW.min(context))),
    }
}

/// Windows of `n` tokens in which `most` tokens at most are compared.
fn cut(n: usize, window: usize, most: Option<usize>) -> Result<Vec<Range<usize>>> {
    if most == Some(0) {
        return Err(Usage("--max-tokens 0: give 1 or more".to_owned()).into());
    }
    let (mut left, mut windows) = (most.unwrap_or(n), Vec::new());
    for begin in (0..n).step_by(window) {
        let compared = window.min(n - begin).saturating_sub(1).min(left);
        if compared == 0 {
            break;
        }
        windows.push(begin..begin + compared + 1);
        left -= compared;
    }
    if windows.is_empty() {
        let what = format!("the text has too few tokens to compare ({n}): 2 are needed at least");
        return Err(Usage(what).into());
    }
    Ok(windows)
}

/// What both engines' threads work on in turns.
struct Held {
    vocab: usize,
    /// The reference's logits of a slice, `[rows, vocab]`.
    logits: Vec<f32>,
    divergence: Divergence,
    /// The first row that could not be compared: its token in the text, and why.
    failed: Option<(usize, DivergenceError)>,
}

impl Held {
    fn new(rows: usize, vocab: usize) -> Result<Self, RuntimeError> {
        let bytes = (rows * vocab * size_of::<f32>()) as u64;
        check_memory(bytes, || "logits of the reference".to_owned())?;
        let logits = Vec::with_capacity(rows * vocab);
        Ok(Self { vocab, logits, divergence: Divergence::default(), failed: None })
    }
}

/// A part of a window whose logits are held at a time.
struct Slice<'t> {
    /// The window's tokens, from its first to the last that is compared.
    tokens: &'t [u32],
    /// The first of `tokens` in the text.
    begin: usize,
    /// The rows of logits: row i is compared at `tokens[i + 1]`.
    rows: Range<usize>,
}

/// Runs both over all windows, one after the other: they have the same CPUs. At most `rows` rows of logits are held.
fn compare(
    reference: &EngineHandle,
    model: &EngineHandle,
    tokens: &[u32],
    windows: &[Range<usize>],
    rows: usize,
) -> Result<Divergence> {
    let longest = windows.iter().map(|w| w.len() - 1).max().unwrap_or(1);
    let rows = rows.clamp(1, longest);
    let held = Arc::new(Mutex::new(Held::new(rows, model.info().spec.vocab_size)?));
    let bar = progress_bar(windows.iter().map(|w| w.len() - 1).sum());
    for w in windows {
        for first in (0..w.len() - 1).step_by(rows) {
            let end = (first + rows).min(w.len() - 1);
            let slice = Slice { tokens: &tokens[w.start..=w.start + end], begin: w.start, rows: first..end };
            slice.run(reference, &bar, keep(&held))?;
            slice.run(model, &bar, add(&held, &slice))?;
            if let Some((token, error)) = lock(&held).failed {
                return Err(RuntimeError::from(error)).context(format!("token {token} of the text"));
            }
        }
    }
    bar.finish_and_clear();
    let divergence = std::mem::take(&mut lock(&held).divergence);
    Ok(divergence)
}

impl Slice<'_> {
    /// Computes the slice's logits for `read`.
    fn run(
        &self,
        engine: &EngineHandle,
        bar: &ProgressBar,
        read: impl FnMut(usize, &[f32]) + Send + 'static,
    ) -> Result<(), RuntimeError> {
        let tokens = self.tokens[..self.rows.end].to_vec();
        let request = ScoreRequest { tokens, top: 0, from: self.rows.start + 1 };
        let before = bar.position();
        let stream = engine.score_with(request, read)?;
        stream.wait(|position| bar.set_position(before + position.saturating_sub(self.rows.start) as u64))?;
        bar.set_position(before + self.rows.len() as u64);
        Ok(())
    }
}

/// Keeps the reference's rows in place of those of the slice before.
fn keep(held: &Arc<Mutex<Held>>) -> impl FnMut(usize, &[f32]) + Send + 'static {
    let held = Arc::clone(held);
    lock(&held).logits.clear();
    move |_, row| lock(&held).logits.extend_from_slice(row)
}

/// Compares the model's rows with those that were kept.
fn add(held: &Arc<Mutex<Held>>, slice: &Slice<'_>) -> impl FnMut(usize, &[f32]) + Send + 'static {
    let (held, tokens) = (Arc::clone(held), slice.tokens.to_vec());
    let (begin, first) = (slice.begin, slice.rows.start);
    move |position, row| {
        let mut held = lock(&held);
        let Held { vocab, logits, divergence, failed } = &mut *held;
        let reference = &logits[(position - first) * *vocab..][..*vocab];
        if let Err(error) = divergence.add(reference, row, tokens[position + 1]) {
            failed.get_or_insert((begin + position + 1, error));
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bar over the `tokens` of both, on a terminal only.
fn progress_bar(tokens: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("comparing {bar:30} {percent:>3} %, {eta}");
    ProgressBar::new(2 * tokens as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pace_runtime::{DType, ModelRef};

    #[test]
    fn every_token_but_the_first_of_a_window_is_compared() {
        assert_eq!(cut(10, 4, None).unwrap(), [0..4, 4..8, 8..10]);
        // A window of one token has nothing to compare.
        assert_eq!(cut(9, 4, None).unwrap(), [0..4, 4..8]);
        assert_eq!(cut(7, 4, None).unwrap(), [0..4, 4..7]);
        for n in [0, 1] {
            assert!(cut(n, 4, None).unwrap_err().to_string().contains("too few tokens"));
        }
    }

    #[test]
    fn a_limit_counts_compared_tokens() {
        assert_eq!(cut(100, 4, Some(7)).unwrap(), [0..4, 4..8, 8..10]);
        assert_eq!(cut(100, 4, Some(6)).unwrap(), [0..4, 4..8]);
        assert_eq!(cut(6, 4, Some(100)).unwrap(), [0..4, 4..6]);
        assert!(cut(100, 4, Some(0)).is_err());
    }

    #[test]
    fn slices_of_a_window_give_what_the_whole_gives() {
        let files = Arc::new(ModelFiles::open(&ModelRef::Random("tiny".to_owned())).unwrap());
        let start = |dtype| {
            let config = EngineConfig::detect(dtype, Some(1)).unwrap();
            EngineHandle::start(&files, config, Box::new(|_, _| {})).unwrap()
        };
        let (reference, model) = (start(DType::F32), start(DType::Bf16));
        let tokens: Vec<u32> = (0..90).map(|i| (i * 53 + 11) % 259).collect();
        let of = |rows| {
            let divergence = compare(&reference, &model, &tokens, &[0..40, 40..90], rows).unwrap();
            divergence.summary().unwrap()
        };
        let whole = of(1000);
        assert!(whole.tokens == 39 + 49 && whole.mean_kl > 0.0, "{whole:?}");
        for rows in [0, 7, 39] {
            let slices = of(rows);
            assert_eq!((slices.tokens, slices.same_top1), (whole.tokens, whole.same_top1), "{rows} rows");
            assert!(
                (slices.mean_kl / whole.mean_kl - 1.0).abs() < 1e-2,
                "{rows} rows: {slices:?}, {whole:?}"
            );
            assert!((slices.model_perplexity / whole.model_perplexity - 1.0).abs() < 1e-4, "{rows} rows");
        }
    }

    #[test]
    fn a_window_fits_both_contexts() {
        assert_eq!(window(None, [2048, 4096]).unwrap(), WINDOW);
        assert_eq!(window(None, [4096, 100]).unwrap(), 100);
        assert_eq!(window(Some(100), [100, 4096]).unwrap(), 100);
        assert!(window(Some(101), [100, 4096]).is_err() && window(Some(1), [100, 100]).is_err());
    }
}
