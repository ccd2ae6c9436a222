//! Found messages as they are shown: the line, or what the message says.

use std::io::{self, Write};

use sekiwake_archive::{Found, LineEncoder, LineFormat, Origin, Templates};
use sekiwake_decode::{Decoder, Style, write_rows};

/// How found messages are written. Templates of flows are kept for one search, within the decoder's
/// limit.
pub(crate) enum Show {
    /// A line of JSON.
    Line(Vec<u8>),
    /// The same as a line of text, as `SEKIWAKE_STORE_FORMAT=text` stores it.
    Text(Box<LineEncoder>, Vec<u8>),
    /// What the message says.
    Decoded(Style, Box<Decoder>),
}

impl Show {
    /// As the query and the reader want it.
    pub(crate) fn new(decode: bool, style: Style) -> Show {
        match (decode, style) {
            (true, style) => Show::Decoded(style, Box::default()),
            (false, Style::Json) => Show::Line(Vec::new()),
            (false, Style::Text) => Show::Text(Box::new(LineEncoder::new(LineFormat::Text)), Vec::new()),
        }
    }

    /// Which templates it needs.
    pub(crate) fn templates(&self) -> Templates {
        if let Show::Decoded(..) = self { Templates::OfStart } else { Templates::None }
    }

    /// Writes what a search found. Templates are learned.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&mut self, found: &Found<'_>, out: &mut impl Write) -> io::Result<()> {
        if let Show::Line(line) = self {
            line.clear();
            found.write_json(line);
            return out.write_all(line);
        }
        let Some(message) = found.message() else { return Err(io::Error::other("a found message is invalid")) };
        let record = message.record();
        match self {
            Show::Line(_) => Ok(()),
            Show::Text(encoder, text) => {
                text.clear();
                encoder.encode_message(&message, text);
                out.write_all(text)
            }
            Show::Decoded(_, decoder) if found.origin() != Origin::Selected => {
                decoder.decode(Some(message.kind), &record, |_| {});
                Ok(())
            }
            Show::Decoded(style, decoder) => {
                write_rows(out, *style, decoder, Some(message.kind), &record, u64::MAX).map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sekiwake_record::{Flags, Format, Kind, Record, Vlans};
    use serde_json::Value;

    use super::*;

    /// What a found message is shown as.
    fn shown(decode: bool, style: Style, format: Format, payload: &[u8]) -> String {
        let record = Record {
            captured_at_ns: 1_767_323_045_678_901_234,
            source: [198, 51, 100, 7].into(),
            source_port: 514,
            destination: [203, 0, 113, 1].into(),
            destination_port: 514,
            format,
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        };
        let mut line = Vec::new();
        LineEncoder::new(LineFormat::Json).encode(&record, &mut line);
        let mut out = Vec::new();
        let line = line.strip_suffix(b"\n").unwrap();
        Show::new(decode, style).write(&Found::line(LineFormat::Json, line), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn message_is_shown_as_stored_as_text_or_decoded() {
        let payload = b"<189>Jan  5 10:11:12 sw-1 sshd[42]: Accepted\x1b[2J";
        let line = shown(false, Style::Json, Format::Rfc3164, payload);
        assert!(line.starts_with("{\"captured_at\":\"2026-01-02T03:04:05.678901234Z\","), "{line}");
        let text = shown(false, Style::Text, Format::Rfc3164, payload);
        assert_eq!(
            text,
            "2026-01-02T03:04:05.678901234Z 198.51.100.7:514 203.0.113.1:514 local7.notice rfc3164 \
             <189>Jan  5 10:11:12 sw-1 sshd[42]: Accepted\\x1b[2J\n"
        );
        let row: Value = serde_json::from_str(&shown(true, Style::Json, Format::Rfc3164, payload)).unwrap();
        assert_eq!(
            ["kind", "source", "hostname", "app_name", "message"].map(|name| row[name].as_str().unwrap()),
            ["syslog", "198.51.100.7", "sw-1", "sshd", "Accepted\u{1b}[2J"]
        );
        let text = shown(true, Style::Text, Format::Rfc3164, payload);
        assert_eq!(
            text,
            "2026-01-02T03:04:05.678Z 198.51.100.7 rfc3164 local7.notice sw-1 sshd[42]: \"Accepted\\u{1b}[2J\"\n"
        );
    }

    proptest! {
        /// Any stored bytes are lines without control characters, at least one.
        #[test]
        fn any_bytes_are_lines(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            header in prop::sample::select(vec![&b""[..], b"<13>", b"<13>1 ", b"\0\x05\0\x01", b"\0\x0a", b"0"]),
        ) {
            let payload = [header, &payload].concat();
            let format = sekiwake_identify::identify(Some(Kind::Syslog), &payload);
            for style in [Style::Json, Style::Text] {
                let lines = shown(true, style, format, &payload);
                prop_assert!(lines.ends_with('\n'));
                for line in lines.lines() {
                    prop_assert!(!line.contains(char::is_control), "{line:?}");
                    if style == Style::Json {
                        prop_assert!(serde_json::from_str::<Value>(line).is_ok());
                    }
                }
            }
        }
    }
}
