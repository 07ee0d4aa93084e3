//! Stop strings in streamed text: [`StopStrings`].

use super::TokenizerError;

/// Finds stop strings in text that arrives in pieces.
///
/// The text ends before the stop string that is complete first; of several that are complete at the same
/// character, before the longest. How the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What [`StopStrings::push`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopResult {
    /// Text that certainly precedes any stop string.
    pub emit: String,
    /// Whether a stop string was found, now or before. Nothing is emitted after it.
    pub stopped: bool,
}

impl StopStrings {
    /// A matcher for any of `stops`; an empty list matches nothing.
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self, TokenizerError> {
        if stops.iter().any(String::is_empty) {
            return Err(TokenizerError::EmptyStop);
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece and gives what may be shown.
    pub fn push(&mut self, text: &str) -> StopResult {
        if self.stopped {
            return StopResult { emit: String::new(), stopped: true };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_match() {
            self.held.truncate(start);
            self.stopped = true;
            return StopResult { emit: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = self.held.split_off(self.certain());
        StopResult { emit: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text still held back, at the end of the stream.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that is complete first begins.
    fn first_match(&self) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        matches.min().map(|(_, start)| start)
    }

    /// How many bytes of the held text cannot belong to a stop string.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .filter(|start| self.held.is_char_boundary(*start))
            .find(|start| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[String], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopStrings::new(stops.to_vec()).expect("no stop is empty");
        let mut out = String::new();
        for piece in pieces {
            out += &matcher.push(piece).emit;
        }
        let stopped = matcher.push("").stopped;
        (out + &matcher.flush(), stopped)
    }

    /// The definition: the first end of any stop string, and there the longest.
    fn by_definition(stops: &[String], text: &str) -> (String, bool) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let longest =
                stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
            if let Some(longest) = longest {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_trimmed() {
        let stops = ["\nUser:".to_owned()];
        assert_eq!(run(&stops, &["Paris.", "\n", "Us", "er: and more", "x"]), ("Paris.".to_owned(), true));
        assert_eq!(run(&stops, &["a\nUs", "es"]), ("a\nUses".to_owned(), false));
        assert_eq!(run(&stops, &["a\nUser"]), ("a\nUser".to_owned(), false));
        let mut matcher = StopStrings::new(stops.to_vec()).expect("no stop is empty");
        assert_eq!(matcher.push("a\nUs"), StopResult { emit: "a".to_owned(), stopped: false });
    }

    #[test]
    fn one_stop_is_find_and_no_stop_passes_everything() {
        assert_eq!(run(&["aab".to_owned()], &["a", "a", "a", "b", "c"]), ("a".to_owned(), true));
        assert_eq!(run(&[], &["a", "é"]), ("aé".to_owned(), false));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        let error = StopStrings::new(vec!["a".to_owned(), String::new()]).expect_err("an empty stop");
        assert!(matches!(error, TokenizerError::EmptyStop));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé🙂]{0,5}", 0..12),
        ) {
            let text = pieces.concat();
            let borrowed: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &borrowed), by_definition(&stops, &text));
            if let [stop] = stops.as_slice() {
                let found = text.find(stop.as_str());
                prop_assert_eq!(run(&stops, &[&text]), (text[..found.unwrap_or(text.len())].to_owned(), found.is_some()));
            }
        }
    }
}
