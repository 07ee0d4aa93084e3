//! What the user sees while the model is fetched, and the one place where an interrupt of it is noticed.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use indicatif::{DecimalBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The user stopped the download.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Bars on a terminal; elsewhere one plain line per step.
pub(crate) struct Progress {
    lines: Mutex<Box<dyn Write + Send>>,
    terminal: bool,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// Reports on stderr. Setting `interrupted` ends the step under way with [`Interrupted`].
    pub(crate) fn stderr(interrupted: Arc<AtomicBool>) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { lines: Mutex::new(Box::new(io::stderr())), terminal, interrupted }
    }

    /// What ends the step under way once it is set.
    pub(crate) const fn interrupted(&self) -> &Arc<AtomicBool> {
        &self.interrupted
    }

    /// Writes plain lines to `out`.
    #[cfg(test)]
    pub(crate) fn plain(out: impl Write + Send + 'static, interrupted: Arc<AtomicBool>) -> Self {
        Self { lines: Mutex::new(Box::new(out)), terminal: false, interrupted }
    }

    /// Reports one line.
    pub(crate) fn line(&self, text: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // A closed stderr is no reason to stop.
        let _ = writeln!(lines, "{text}");
    }

    /// Starts a step over `bytes` bytes (`None`: not known).
    pub(crate) fn step(&self, what: &str, bytes: Option<u64>) -> Step<'_> {
        if !self.terminal {
            let size = bytes.map_or_else(String::new, |bytes| format!(" ({})", DecimalBytes(bytes)));
            self.line(&format!("{what}{size}"));
            return Step { progress: self, bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
        let template = match bytes {
            Some(_) => "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
            None => "{msg} {decimal_bytes}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Step { progress: self, bar }
    }

    /// Fails with [`Interrupted`] once the user has asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    }
}

/// Asks a question on stderr that `y` answers with yes; anything else, and the end of the input, is no.
pub(crate) fn ask(question: &str) -> io::Result<bool> {
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// A step under way; its bar goes when this does.
pub(crate) struct Step<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
}

impl Step<'_> {
    /// `bytes` more are done.
    pub(crate) fn advance(&self, bytes: u64) -> Result<()> {
        self.bar.inc(bytes);
        self.progress.check()
    }

    /// Reports one line above the bar.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| self.progress.line(text));
    }

    /// `bytes` are done in all.
    pub(crate) fn set(&self, bytes: u64) -> Result<()> {
        self.bar.set_position(bytes);
        self.progress.check()
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
