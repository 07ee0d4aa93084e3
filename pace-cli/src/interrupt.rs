//! Ctrl-C: the one handler of the process, and what it does at the moment.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow};

use crate::exit;
use crate::hub::Interrupted;

type Action = Arc<dyn Fn() + Send + Sync>;

/// What Ctrl-C does; nothing there: it ends the process. A signal has one handler in a process, hence one place.
static ACTION: Mutex<Option<Action>> = Mutex::new(None);

/// While it lives, Ctrl-C does what was asked for.
pub(crate) struct Guard;

/// Makes Ctrl-C call `action`, on a thread of its own, until the guard goes. There is one guard at a time.
///
/// # Errors
/// The system does not let this process handle the signal.
pub(crate) fn on_ctrl_c(action: impl Fn() + Send + Sync + 'static) -> Result<Guard> {
    static HANDLER: OnceLock<Result<(), String>> = OnceLock::new();
    let installed = HANDLER.get_or_init(|| ctrlc::set_handler(handle).map_err(|error| error.to_string()));
    installed.clone().map_err(|error| anyhow!(error)).context("cannot watch for Ctrl-C")?;
    *ACTION.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(action));
    Ok(Guard)
}

/// Ends the process as after [`Interrupted`].
pub(crate) fn leave() -> ! {
    exit::report(&Interrupted.into());
    std::process::exit(exit::INTERRUPTED.into())
}

impl Drop for Guard {
    fn drop(&mut self) {
        *ACTION.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn handle() {
    // Not called under the lock: an action may take its time, and the guard must be able to go.
    let action = ACTION.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match action {
        Some(action) => action(),
        None => leave(),
    }
}
