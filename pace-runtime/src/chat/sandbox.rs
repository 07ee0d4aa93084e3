//! Rendering within bounds. The template engine's fuel bounds instructions and most memory; what it leaves open
//! is closed here: values nested deep enough to exhaust a stack, comparisons of lazily repeated lists that take
//! for ever, an endless output, and Python's string methods, which build their result before it is charged.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use minijinja::{Environment, Error, ErrorKind, Value, value::ValueKind};

use super::{ChatError, MAX_OUTPUT_BYTES, NAME, fault, python};

/// Instructions that a rendering may take; the engine also charges one for every 64 bytes that it creates, so
/// this bounds what a template keeps to 32 MiB.
const FUEL: u64 = 1 << 19;
/// The fuel lets a template nest a value some 100,000 levels deep; the engine needs less than 700 bytes of stack
/// for each when it prints, compares or frees such a value. Pages that are not touched cost nothing.
const STACK_BYTES: usize = 128 << 20;
/// Compiling and rendering take milliseconds; only a hostile template comes near this.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sets the engine's own limits and replaces the method call-back by a bounded one.
pub(super) fn limit(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(|state, value, method, args| {
        check_method(value, method, args)?;
        python::method(state, value, method, args)
    });
}

/// Compiles a template. Compiling folds constants, so it can take for ever as well.
pub(super) fn compile(
    mut environment: Environment<'static>,
    source: String,
) -> Result<Environment<'static>, ChatError> {
    on_thread(DEADLINE, move || {
        environment.add_template_owned(NAME, source).map_err(|error| fault(&error))?;
        Ok(environment)
    })
}

/// Renders the template. One that misses the deadline cannot be ended: its thread is left behind, and
/// `exhausted` refuses the template from then on, so that there is never a second.
pub(super) fn render(
    environment: &Arc<Environment<'static>>,
    context: Value,
    exhausted: &AtomicBool,
) -> Result<String, ChatError> {
    if exhausted.load(Ordering::Relaxed) {
        return Err(ChatError::Deadline);
    }
    let environment = Arc::clone(environment);
    let result = on_thread(DEADLINE, move || render_here(&environment, context));
    if matches!(result, Err(ChatError::Deadline)) {
        exhausted.store(true, Ordering::Relaxed);
    }
    result
}

/// Runs `work` on a thread of its own and waits for it until the deadline.
fn on_thread<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> Result<T, ChatError> + Send + 'static,
) -> Result<T, ChatError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("chat-template".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The receiver is gone if the deadline has passed.
            let _ = sender.send(work());
        })
        .map_err(ChatError::Thread)?;
    receiver.recv_timeout(deadline).unwrap_or_else(|error| match error {
        mpsc::RecvTimeoutError::Timeout => Err(ChatError::Deadline),
        mpsc::RecvTimeoutError::Disconnected => {
            Err(ChatError::Template { line: None, what: "the template engine failed".to_owned() })
        }
    })
}

fn render_here(environment: &Environment<'static>, context: Value) -> Result<String, ChatError> {
    let template = environment.get_template(NAME).map_err(|error| fault(&error))?;
    let mut output = Capped::default();
    let result = template.render_captured_to(context, &mut output).map(|_| ());
    match result {
        _ if output.full => Err(ChatError::OutputTooLong),
        Err(error) => Err(fault(&error)),
        Ok(()) => String::from_utf8(output.bytes)
            .map_err(|error| ChatError::Template { line: None, what: error.to_string() }),
    }
}

/// Collects at most [`MAX_OUTPUT_BYTES`], and then stops the rendering.
#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT_BYTES - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses the calls of Python's string methods whose result could be out of all proportion to their input.
fn check_method(value: &Value, method: &str, args: &[Value]) -> Result<(), Error> {
    let Some(text) = value.as_str() else { return Ok(()) };
    let bytes = match (method, args) {
        ("replace", [from, to, ..]) => {
            let (from, to) = (from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
            let places = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
            places.saturating_mul(to.len()).saturating_add(text.len())
        }
        ("join", [items, ..]) => items.len().unwrap_or(0).saturating_mul(text.len()),
        ("format", args) => {
            let longest = longest_field(text, args).ok_or_else(|| {
                let what =
                    "str.format: supported are strings and numbers in fields with a width of at most 999";
                Error::new(ErrorKind::InvalidOperation, what)
            })?;
            text.matches('{').count().saturating_mul(longest).saturating_add(text.len())
        }
        _ => 0,
    };
    if bytes > MAX_OUTPUT_BYTES {
        let what = format!("str.{method}: the result is longer than {MAX_OUTPUT_BYTES} bytes");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(())
}

/// The most bytes that a field of `str.format` can become; `None` where that is not known in advance: a nested
/// field, a wide one, or an argument that contains others.
fn longest_field(text: &str, args: &[Value]) -> Option<usize> {
    /// A number of the widest and most precise format, with some room.
    const NUMBER: usize = 2048;
    let (mut inside, mut digits) = (false, 0);
    for c in text.replace("{{", "").chars() {
        digits = if inside && c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 || (inside && c == '{') {
            return None;
        }
        inside = c == '{' || (inside && c != '}');
    }
    let mut values = args.to_vec();
    if let Some(named) = values.pop_if(|last| last.is_kwargs()) {
        for name in named.try_iter().ok()? {
            values.push(named.get_item(&name).ok()?);
        }
    }
    let mut longest = NUMBER;
    for value in values {
        match value.kind() {
            ValueKind::String => longest = longest.max(value.as_str().map_or(0, str::len)),
            ValueKind::Number | ValueKind::Bool | ValueKind::None => {}
            _ => return None,
        }
    }
    Some(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_end_misses_the_deadline() {
        let (release, wait) = mpsc::channel::<()>();
        let result = on_thread(Duration::from_millis(20), move || {
            let _ = wait.recv();
            Ok(())
        });
        assert!(matches!(result, Err(ChatError::Deadline)));
        drop(release);
    }

    #[test]
    fn an_exhausted_template_is_refused() {
        let environment = Arc::new(Environment::new());
        let result = render(&environment, Value::UNDEFINED, &AtomicBool::new(true));
        assert!(matches!(result, Err(ChatError::Deadline)));
    }
}
