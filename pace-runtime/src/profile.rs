//! What the operators of an engine took: an engine that was started with `profile` on times every call.

use std::path::Path;

use pace_ops::{Limits, OpCx, Profile, ProfileReport, Trace};

use crate::platform::{MemoryLimit, topology};
use crate::{EngineHandle, RuntimeError};

/// Bytes to read for the bandwidth of memory, at least, where there are as many.
const MEMORY_BYTES: usize = 256 << 20;

impl EngineHandle {
    /// Where the time of all steps since the last [`reset_profile`](Self::reset_profile) went, beside the limits of
    /// the hardware, which are measured now on the engine's threads. `None` when the engine does not profile.
    ///
    /// # Errors
    /// The engine has stopped, or there is no memory to measure with.
    pub fn profile(&self) -> Result<Option<ProfileReport>, RuntimeError> {
        self.call(|cx| {
            let report = |profile: &Profile| Ok(profile.report(&measure_limits(cx)?));
            cx.profile.map(report).transpose()
        })?
    }

    /// What the hardware gives to the engine's threads, measured on them now: some tenths of a second, in which no
    /// request is computed.
    ///
    /// # Errors
    /// The engine has stopped, or there is no memory to measure with.
    pub fn limits(&self) -> Result<Limits, RuntimeError> {
        self.call(measure_limits)?
    }

    /// The single calls since the last reset, for [`write_traces`](crate::write_traces). `None` when the engine does
    /// not profile.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn trace(&self) -> Result<Option<Trace>, RuntimeError> {
        self.call(|cx| cx.profile.map(Profile::trace))
    }

    /// Forgets what was timed, a warm-up say.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn reset_profile(&self) -> Result<(), RuntimeError> {
        self.call(|cx| cx.profile.map(Profile::reset)).map(drop)
    }

    /// Forgets single calls; [`profile`](Self::profile) still counts them.
    ///
    /// # Errors
    /// The engine has stopped.
    pub fn reset_trace(&self) -> Result<(), RuntimeError> {
        self.call(|cx| cx.profile.map(Profile::reset_trace)).map(drop)
    }
}

fn measure_limits(cx: &OpCx<'_>) -> Result<Limits, RuntimeError> {
    Limits::measure(cx.kernels, cx.par, memory_bytes())
        .map_err(|e| out_of_memory(e.bytes as u64, "to measure memory"))
}

/// Four times all last-level caches, so that none holds a part that counts; at most half of the free memory.
pub(crate) fn memory_bytes() -> usize {
    let caches = topology::l3_bytes(Path::new("/")).unwrap_or(0);
    let free = MemoryLimit::detect().map_or(usize::MAX, |limit| limit.available as usize / 2);
    MEMORY_BYTES.max(caches.saturating_mul(4)).min(free)
}

/// There is no memory for `need` bytes more; `terms` says what they are for.
pub(crate) fn out_of_memory(need: u64, terms: &str) -> RuntimeError {
    let (available, source_of_limit) = MemoryLimit::detect()
        .map_or_else(|| (0, "the system".to_owned()), |limit| (limit.available, limit.source));
    RuntimeError::OutOfMemory { need, terms: terms.to_owned(), available, source_of_limit }
}
