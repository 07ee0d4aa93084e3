//! Calls into the `tokenizers` crate: a panic there becomes an error.
//!
//! A library must not replace the process's panic hook, and there is no hook for one thread. So the panic is
//! caught here, and the program that owns the hook asks [`panics_are_caught`] whether to stay silent.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread would now be caught and reported as a [`TokenizerError`](super::TokenizerError).
/// A program's panic hook calls it to print nothing in that case:
///
/// ```
/// let usual = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |info| {
///     if !pace_runtime::tokenizer::panics_are_caught() {
///         usual(info);
///     }
/// }));
/// ```
pub fn panics_are_caught() -> bool {
    CAUGHT.get()
}

/// The result of `call`, with its error or its panic as text.
pub(super) fn catch<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    let outer = CAUGHT.replace(true);
    // The crate's state is either built by this call and lost with the panic, or immutable; its thread-local
    // cache only ever gains finished entries.
    let result = catch_unwind(AssertUnwindSafe(call));
    CAUGHT.set(outer);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("the tokenizer library failed: {}", message(panic.as_ref()))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        let result = catch(|| -> tokenizers::Result<()> {
            assert!(panics_are_caught());
            panic!("index {} is too large", 7)
        });
        assert_eq!(result, Err("the tokenizer library failed: index 7 is too large".to_owned()));
        assert!(!panics_are_caught());
    }
}
