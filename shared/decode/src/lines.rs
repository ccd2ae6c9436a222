//! Rows as lines: of JSON for programs, of text for people.

use std::io::{self, IsTerminal, Write};

use sekiwake_json::{timestamp, write_decoded};
use sekiwake_record::{Kind, Record};

use crate::{Decoder, Row};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `2026-01-02T03:04:05.678Z 198.51.100.7 netflow5 flow …`
    Text,
    /// One JSON object per line.
    Json,
}

impl Style {
    /// Text for a terminal, JSON for a file or a pipe.
    pub fn of(out: &impl IsTerminal) -> Style {
        if out.is_terminal() { Style::Text } else { Style::Json }
    }
}

impl std::str::FromStr for Style {
    type Err = String;

    fn from_str(text: &str) -> Result<Style, String> {
        match text {
            "text" => Ok(Style::Text),
            "json" => Ok(Style::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }
}

/// Decodes a record, and writes its rows, at most `most` lines. Returns the number of lines.
///
/// # Errors
/// Those of `out`.
pub fn write_rows(
    out: &mut impl Write,
    style: Style,
    decoder: &mut Decoder,
    kind: Option<Kind>,
    record: &Record<'_>,
    most: u64,
) -> io::Result<u64> {
    let mut lines = 0;
    let mut result = Ok(());
    let mut number = 0;
    decoder.decode(kind, record, |row| {
        if lines < most && result.is_ok() {
            lines += 1;
            result = match style {
                Style::Json => write_decoded(out, kind, record, number, row),
                Style::Text => write_text(out, record, row),
            };
        }
        number += 1;
    });
    result.map(|()| lines)
}

fn write_text(out: &mut impl Write, record: &Record<'_>, row: &Row<'_>) -> io::Result<()> {
    // Milliseconds are enough for a person.
    let time = timestamp(record.captured_at_ns);
    let seconds = time.get(..23).unwrap_or(&time);
    writeln!(out, "{seconds}Z {} {row}", record.source)
}
