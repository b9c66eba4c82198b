//! Standard output and standard error, which may be full or closed.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::CliError;

/// Writes a text and a line feed to standard output, at once.
pub(crate) fn print(text: impl Display) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::ClosedPipe,
        _ => CliError::file(Path::new("standard output"), error),
    })
}

/// Bytes of the line that an error is reported in, its line feed included.
const LINE: usize = 300;

/// Writes an error to standard error in one line. A text that is too long loses its middle. Nothing is left to report to where that fails.
pub(crate) fn report(message: &str) {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable: String = words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let line = without_middle(&format!("logits: {printable}"), LINE - 1);
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// A text in at most `most` bytes, with dots in place of its middle where it is longer.
pub(crate) fn without_middle(text: &str, most: usize) -> String {
    const DOTS: &str = "...";
    if text.len() <= most {
        return text.to_owned();
    }
    let half = most.saturating_sub(DOTS.len()) / 2;
    let is_boundary = |&at: &usize| text.is_char_boundary(at);
    let head = (0..=half).rev().find(is_boundary).unwrap_or(0);
    let tail = (text.len() - half..text.len()).find(is_boundary).unwrap_or(text.len());
    format!("{}{DOTS}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::without_middle;

    #[test]
    fn a_long_text_loses_its_middle() {
        assert_eq!(without_middle("abcdefghij", 10), "abcdefghij");
        assert_eq!(without_middle("abcdefghijk", 10), "abc...ijk");
        assert_eq!(without_middle("ééééééé", 10), "é...é");
    }
}
