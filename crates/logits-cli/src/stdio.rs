//! Standard output and standard error, which may be full or closed.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::CliError;

/// Writes `text` and a line feed to standard output at once, so that a reader of the first line
/// finds all of it written.
pub(crate) fn print(text: impl Display) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::ClosedPipe,
        _ => CliError::file(Path::new("standard output"), error),
    })
}

/// Prints `value` as JSON on one line, with 17 digits of each f64, which every language reads back
/// as the same number.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    struct SeventeenDigits;
    impl Formatter for SeventeenDigits {
        fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
            let text = format!("{value:.16e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            write!(writer, "{digits}e{sign}{exponent}")
        }
    }
    let mut text = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, SeventeenDigits));
    written.map_err(|error| CliError::file(Path::new("standard output"), error))?;
    print(String::from_utf8_lossy(&text))
}

/// The longest line on standard error, in bytes, line feed included.
const MAX_LINE_BYTES: usize = 300;

/// Writes `message` to standard error in one line, without its middle where it is too long. A
/// failure to write is ignored: there is nowhere left to report it.
pub(crate) fn report(message: &str) {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable: String =
        words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let line = without_middle(&format!("logits: {printable}"), MAX_LINE_BYTES - 1);
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Returns `text`, with dots in place of its middle where it is longer than `max_bytes`.
pub(crate) fn without_middle(text: &str, max_bytes: usize) -> String {
    const DOTS: &str = "...";
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let half = max_bytes.saturating_sub(DOTS.len()) / 2;
    let is_boundary = |&at: &usize| text.is_char_boundary(at);
    let head = (0..=half).rev().find(is_boundary).unwrap_or(0);
    let tail = (text.len() - half..text.len()).find(is_boundary).unwrap_or(text.len());
    format!("{}{DOTS}{}", &text[..head], &text[tail..])
}

/// Returns `value` as a JSON number. JSON has no NaN or infinity, so these are strings.
pub(crate) fn json_number(value: f64) -> serde_json::Value {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        value.into()
    }
}

/// A progress bar on standard error; hidden where that is no terminal.
pub(crate) fn progress(length: u64, unit: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!(
        "{{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{eta}}"
    ));
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
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
