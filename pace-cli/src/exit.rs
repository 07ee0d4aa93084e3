//! Errors to exit codes: 2 usage, 3 model, 4 resources (memory, threads, disk), 5 CPU, 130 interrupted (128 and the signal), 1 anything else.

use std::io::{ErrorKind as IoErrorKind, Write};
use std::process::ExitCode;

use pace_runtime::{ErrorKind, RuntimeError};

use crate::hub::{Interrupted, NoSpace};
use crate::interrupt;

/// A command line that clap accepts and that still makes no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What another process of this program failed with.
#[derive(Debug)]
pub(crate) struct OfProcess {
    pub(crate) why: String,
    pub(crate) code: u8,
}

impl std::fmt::Display for OfProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for OfProcess {}

/// Prints `error` and gives its exit code. A closed pipe is no error: whoever reads has seen enough.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let broken_pipe = |e: &std::io::Error| e.kind() == IoErrorKind::BrokenPipe;
    if error.downcast_ref::<std::io::Error>().is_some_and(broken_pipe) {
        return ExitCode::SUCCESS;
    }
    // Nobody may be there to read it: then the code has to do.
    let _ = writeln!(std::io::stderr(), "error: {}", message(error));
    ExitCode::from(code(error))
}

/// The error and its causes, outermost first. A cause that the message before it already ends with is left out.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut all = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if all.is_empty() {
            all = cause;
        } else if !all.ends_with(&cause) {
            all = format!("{all}: {cause}");
        }
    }
    all
}

/// The exit code for `error`.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        return 2;
    }
    if let Some(other) = error.downcast_ref::<OfProcess>() {
        return other.code;
    }
    if error.is::<Interrupted>() {
        return interrupt::exit_code();
    }
    if error.is::<NoSpace>() || error.downcast_ref::<std::io::Error>().is_some_and(is_disk) {
        return 4;
    }
    match error.downcast_ref::<RuntimeError>().map(RuntimeError::kind) {
        Some(ErrorKind::Usage) => 2,
        Some(ErrorKind::Model) => 3,
        Some(ErrorKind::Resources) => 4,
        Some(ErrorKind::Cpu) => 5,
        Some(ErrorKind::Internal) | None => 1,
    }
}

/// Whether a disk is full, or broken.
fn is_disk(error: &std::io::Error) -> bool {
    let full = [IoErrorKind::StorageFull, IoErrorKind::QuotaExceeded, IoErrorKind::FileTooLarge];
    full.contains(&error.kind()) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_each_cause_once() {
        let gone = || std::io::Error::from(IoErrorKind::NotFound);
        let model = pace_models::ModelError::io(std::path::Path::new("m.gguf"), gone());
        let error = anyhow::Error::from(RuntimeError::from(model));
        assert_eq!(message(&error), "m.gguf: entity not found");
        assert_eq!(message(&error.context("while loading")), "while loading: m.gguf: entity not found");
        assert_eq!(message(&anyhow::Error::from(gone()).context("the pipe")), "the pipe: entity not found");
    }

    #[test]
    fn each_kind_of_error_has_its_code() {
        assert_eq!(code(&Usage("x".to_owned()).into()), 2);
        assert_eq!(code(&RuntimeError::EmptyPrompt.into()), 2);
        let model = pace_models::ModelError::file(std::path::Path::new("m.gguf"), "bad magic");
        assert_eq!(code(&RuntimeError::from(model).into()), 3);
        assert_eq!(code(&RuntimeError::from(pace_ops::KvError::OutOfMemory { bytes: 1 }).into()), 4);
        assert_eq!(code(&RuntimeError::Stopped.into()), 1);
        let disk = |code| {
            super::code(&anyhow::Error::from(std::io::Error::from_raw_os_error(code)).context("cannot write"))
        };
        let (eio, enospc, enoent) = (5, 28, 2);
        assert_eq!([eio, enospc, enoent].map(disk), [4, 4, 1]);
        let context = anyhow::Error::from(RuntimeError::EmptyPrompt).context("while generating");
        assert_eq!(code(&context), 2);
    }
}
