//! What Jinja under Python does and the template engine leaves open: tests, filters, methods of strings, and the
//! way in which numbers print.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, filters,
    value::{Kwargs, Tuple, ValueKind, from_args},
};

/// Replaces the engine's tests and filters that differ from Python's.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", to_float);
    environment.add_filter("string", string);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.set_formatter(format);
}

/// Calls a method of Python's strings, lists and dictionaries. The results of those written here are no longer than
/// the value itself.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        state.consume_fuel(1 + text.len() as u64 / 64)?;
        if let Some(result) = string_method(text, name, args) {
            return result;
        }
    }
    match (value.kind(), name, args) {
        (ValueKind::String, "split", [by, named]) if named.is_kwargs() => {
            let most = named.get_attr("maxsplit")?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, &[by.clone(), most])
        }
        // A template cannot change a value, so that it is a copy of itself.
        (ValueKind::Map | ValueKind::Seq, "copy", []) => Ok(value.clone()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// A float as Python's `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse().unwrap_or(0) {
        -4..=15 => format!("{value:?}"),
        exponent if exponent < 0 => format!("{digits}e-{:02}", -exponent),
        exponent => format!("{digits}e+{exponent:02}"),
    }
}

/// The value as a float, if it is one and no integer.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()).ok())?
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

/// `value|default(default_value='', boolean=false)`.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.map_or_else(|| named.get("default_value"), |given| Ok(Some(given)))?;
    let boolean = boolean.map_or_else(|| named.get::<Option<Value>>("boolean"), |given| Ok(Some(given)))?;
    named.assert_all_used()?;
    let missing = value.is_undefined() || (boolean.is_some_and(|flag| flag.is_true()) && !value.is_true());
    Ok(if missing { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// `value|int(default=0, base=10)`: the default for a text that is no number.
fn int(
    state: &State<'_, '_>,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = default.clone().map_or_else(|| named.get("default"), |given| Ok(Some(given)))?;
    match filters::int(state, value, default, base, named) {
        Err(_) if value.kind() == ValueKind::String => Ok(other.unwrap_or_else(|| Value::from(0))),
        result => result,
    }
}

/// `value|float(default=0.0)`, as [`int`].
fn to_float(
    state: &State<'_, '_>,
    value: &Value,
    default: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = default.clone().map_or_else(|| named.get("default"), |given| Ok(Some(given)))?;
    match filters::float(state, value, default, named) {
        Err(_) if value.kind() == ValueKind::String => Ok(other.unwrap_or_else(|| Value::from(0.0))),
        result => result,
    }
}

fn string(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    as_float(value).map_or_else(|| filters::string(state, value), |number| Ok(Value::from(float(number))))
}

fn escape(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let text = string(state, value)?;
    let text = text.as_str().unwrap_or_default();
    // Each character becomes at most five.
    state.consume_fuel(1 + text.len() as u64 / 12)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from(out))
}

fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match as_float(value) {
        Some(number) => out.write_str(&float(number)).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// The string methods that the engine lacks or does otherwise than Python; `None` for all others.
fn string_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "title" => from_args(args).map(|()| Value::from(title(text))),
        "index" | "rindex" => index(text, name, args),
        "removeprefix" => {
            from_args(args).map(|(affix,): (&str,)| text.strip_prefix(affix).unwrap_or(text).into())
        }
        "removesuffix" => {
            from_args(args).map(|(affix,): (&str,)| text.strip_suffix(affix).unwrap_or(text).into())
        }
        "partition" => separator(args).map(|by| {
            let (head, tail) = text.split_once(by).unwrap_or((text, ""));
            triple(head, if head.len() == text.len() { "" } else { by }, tail)
        }),
        "rpartition" => separator(args).map(|by| {
            let (head, tail) = text.rsplit_once(by).unwrap_or(("", text));
            triple(head, if tail.len() == text.len() { "" } else { by }, tail)
        }),
        "rsplit" => rsplit(text, args),
        _ => return None,
    })
}

/// Every letter after a character that is no letter becomes upper case, the others lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn index(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&str,) = from_args(args)?;
    let at = if name == "index" { text.find(what) } else { text.rfind(what) };
    at.map(|at| Value::from(text[..at].chars().count())).ok_or_else(|| fault("substring not found"))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok());
    let mut parts: Vec<&str> = match (by, most) {
        (None, None) => return Ok(text.split_whitespace().map(Value::from).collect()),
        (None, Some(_)) => return Err(fault("str.rsplit: a limit needs a separator")),
        (Some(""), _) => return Err(fault("empty separator")),
        (Some(by), Some(most)) => text.rsplitn(most.saturating_add(1), by).collect(),
        (Some(by), None) => text.rsplit(by).collect(),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    match from_args(args)? {
        ("",) => Err(fault("empty separator")),
        (by,) => Ok(by),
    }
}

fn triple(head: &str, by: &str, tail: &str) -> Value {
    Value::from(Tuple::from([head, by, tail].map(Value::from)))
}

fn fault(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (1e-4, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(value), expected);
        }
    }
}
