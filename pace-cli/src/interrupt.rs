//! Signals that ask the process to end: the one handler of them, and what it does at the moment.
//!
//! Ctrl-C (SIGINT), `kill` (SIGTERM) and a terminal that closes (SIGHUP) end work that has something to tidy up; an answer
//! in a conversation is stopped by Ctrl-C alone. Signals that were ignored when the process began, as `nohup` has it,
//! still are, where `/proc` tells.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::exit;
use crate::hub::Interrupted;

#[derive(Clone)]
struct Action {
    run: Arc<dyn Fn() + Send + Sync>,
    /// Whether it is for Ctrl-C alone.
    only_ctrl_c: bool,
}

/// What a signal does; nothing there: it ends the process. A signal has one handler in a process, hence one place.
static ACTION: Mutex<Option<Action>> = Mutex::new(None);

/// The latest signal.
static LATEST: AtomicI32 = AtomicI32::new(SIGINT);

/// While it lives, a signal does what was asked for.
pub(crate) struct Guard;

/// Makes Ctrl-C call `action`, on a thread of its own, until the guard goes. There is one guard at a time.
///
/// # Errors
/// The system does not let this process handle the signal.
pub(crate) fn on_ctrl_c(action: impl Fn() + Send + Sync + 'static) -> Result<Guard> {
    watch(Action { run: Arc::new(action), only_ctrl_c: true })
}

/// Makes everything that asks the process to end call `action`, as [`on_ctrl_c`].
///
/// # Errors
/// As [`on_ctrl_c`].
pub(crate) fn on_end(action: impl Fn() + Send + Sync + 'static) -> Result<Guard> {
    watch(Action { run: Arc::new(action), only_ctrl_c: false })
}

/// Ends the process as after [`Interrupted`].
pub(crate) fn leave() -> ! {
    exit::report(&Interrupted.into());
    std::process::exit(exit_code().into())
}

/// The code of a process that the latest signal ends: 130 for Ctrl-C.
pub(crate) fn exit_code() -> u8 {
    128 + LATEST.load(Ordering::Relaxed) as u8
}

impl Drop for Guard {
    fn drop(&mut self) {
        *ACTION.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn watch(action: Action) -> Result<Guard> {
    static HANDLER: OnceLock<Result<(), String>> = OnceLock::new();
    let installed = HANDLER.get_or_init(|| install().map_err(|error| error.to_string()));
    installed.clone().map_err(|error| anyhow!(error)).context("cannot watch for signals")?;
    *ACTION.lock().unwrap_or_else(PoisonError::into_inner) = Some(action);
    Ok(Guard)
}

fn install() -> io::Result<()> {
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = Signals::new(watched)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        signals.forever().for_each(handle);
    })?;
    Ok(())
}

/// The signals that a process ignores, the first one in the lowest bit, by its `/proc/self/status`.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn handle(signal: i32) {
    LATEST.store(signal, Ordering::Relaxed);
    // Not called under the lock: an action may take its time, and the guard must be able to go.
    let action = ACTION.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match action {
        Some(action) if signal == SIGINT || !action.only_ctrl_c => (action.run)(),
        _ if signal == SIGINT => leave(),
        // It ends the process; an error says that there is no such signal.
        _ => drop(emulate_default_handler(signal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_the_bits_of_a_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 1 << (SIGHUP - 1) | 1 << 12);
        assert_eq!(ignored(""), 0);
    }
}
