//! Writing to stdout: streamed text, JSON, sizes.

use std::io::{self, IsTerminal, Write};

use pace_runtime::config::Env;
use serde_json::Value;

/// Writes `text` at once, so that an answer appears as it is made.
pub(crate) fn stream(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `text` and ends the line.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes one JSON value and ends the line.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Colours, where somebody sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// Colours if stdout is a terminal and `NO_COLOR` is not set.
    pub(crate) fn of_stdout(env: &Env) -> Self {
        Self { colours: io::stdout().is_terminal() && !env.no_color }
    }

    /// Text that is not the answer.
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap(text, "2")
    }

    /// Where to type.
    pub(crate) fn prompt(self, text: &str) -> String {
        self.wrap(text, "1;32")
    }

    fn wrap(self, text: &str, code: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A number of bytes for people: `98.4 MB`.
pub(crate) fn bytes(n: usize) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{n} B");
    }
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// A number of things for people: `134.5 M`.
pub(crate) fn count(n: usize) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// Rows with their columns one below the other.
pub(crate) fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        out.push_str(cells.collect::<String>().trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.50 kB");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(2_471_000_000), "2.47 GB");
        assert_eq!(count(134_515_008), "134.5 M");
        assert_eq!(count(42), "42");
    }

    #[test]
    fn columns_are_one_below_the_other() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(table(vec![row(["a", "b"]), row(["long", "c"])]), "a     b\nlong  c\n");
        assert_eq!(table(Vec::new()), "");
    }
}
