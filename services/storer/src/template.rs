//! The path of a file, as a template of what is in it.

use std::{fmt::Write, net::IpAddr};

use jiff::Timestamp;
use sekiwake_record::Kind;
use sekiwake_store::{Period, is_path};

/// The longest template, bytes: with an IPv6 address and a member's name in it a path stays well within what systems take.
const MAX_BYTES: usize = 200;

/// A path such as `{date}/{kind}`, below the store's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// A template that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a path below the directory, of letters, digits, dots, hyphens, underscores, slashes and \
     {{date}} {{year}} {{month}} {{day}} {{hour}} {{source}} {{kind}} {{member}} ({0})"
)]
pub struct TemplateError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A part of the time at which the period begins, as strftime has it.
    Time(&'static str),
    Source,
    Kind,
    Member,
}

impl Default for Template {
    fn default() -> Template {
        Template { pieces: vec![Piece::Time("%Y-%m-%d"), Piece::Text("/".to_owned()), Piece::Kind] }
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A placeholder that there is none of, or a path that would leave the directory, be hidden, or be no name on some system.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let wrong = |what: String| Err(TemplateError(what));
        if text.len() > MAX_BYTES {
            return wrong(format!("over {MAX_BYTES} bytes"));
        }
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else { return wrong("a { without its }".to_owned()) };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(match name {
                "date" => Piece::Time("%Y-%m-%d"),
                "year" => Piece::Time("%Y"),
                "month" => Piece::Time("%m"),
                "day" => Piece::Time("%d"),
                "hour" => Piece::Time("%H"),
                "source" => Piece::Source,
                "kind" => Piece::Kind,
                "member" => Piece::Member,
                _ => return wrong(format!("no such placeholder: {{{name}}}")),
            });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        let template = Template { pieces };
        // The worst that placeholders can bring: a member's name may begin with a dot, but is a name of its own then.
        let example = template.path(Period { start: 0, length: 1 }, IpAddr::from([0; 16]), Kind::Syslog, "x");
        if !is_path(&example) {
            return wrong(format!("{example:?} is no such path"));
        }
        if template.begins_a_name_with_the_member() {
            return wrong("a name may not begin with {member}, which may begin with a dot".to_owned());
        }
        Ok(template)
    }

    /// The path of this period and source.
    pub fn path(&self, period: Period, source: IpAddr, kind: Kind, member: &str) -> String {
        let seconds = i64::try_from(period.start).unwrap_or(i64::MAX);
        let start = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let mut path = String::new();
        for piece in &self.pieces {
            // A String takes whatever is written to it.
            let _ = match piece {
                Piece::Text(text) => path.write_str(text),
                Piece::Time(format) => write!(path, "{}", start.strftime(format)),
                Piece::Source => write!(path, "{}", source.to_canonical()),
                Piece::Kind => path.write_str(kind.as_str()),
                Piece::Member => path.write_str(member),
            };
        }
        // An IPv6 address may begin with a colon, which is a name like any other, and never with a dot.
        path
    }

    /// Whether each source has a path of its own.
    pub fn has_source(&self) -> bool {
        self.pieces.contains(&Piece::Source)
    }

    fn begins_a_name_with_the_member(&self) -> bool {
        let mut is_begin = true;
        for piece in &self.pieces {
            if is_begin && *piece == Piece::Member {
                return true;
            }
            is_begin = matches!(piece, Piece::Text(text) if text.ends_with('/'));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(template: &str) -> String {
        let period = Period::of(1_795_615_200_000_000_000, 3600);
        let template = Template::parse(template).unwrap();
        template.path(period, "2001:db8::7".parse().unwrap(), Kind::Syslog, "host1.example.net")
    }

    #[test]
    fn placeholders_are_filled_in() {
        assert_eq!(path("{date}/{kind}"), "2026-11-25/syslog");
        assert_eq!(path("{year}/{month}/{day}/{hour}/{source}"), "2026/11/25/14/2001:db8::7");
        assert_eq!(path("of-{member}/all"), "of-host1.example.net/all");
        assert_eq!(Template::parse("{date}/{kind}"), Ok(Template::default()));
    }

    #[test]
    fn a_path_that_leaves_the_directory_is_refused() {
        for wrong in [
            "",
            "/",
            "/etc/{kind}",
            "../{kind}",
            "a/../{kind}",
            "{kind}/..",
            "a//b",
            "a/",
            ".hidden",
            "a/.b",
            "{date",
            "{nope}",
            "a b",
            "a@b",
            "{}",
            "{member}",
            "a/{member}",
            "a\\b",
            "a\0b",
            "a\nb",
            "é",
            "{{date}}",
            &"x".repeat(300),
        ] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_in_the_directory(
            text in "([a-z./_-]|\\{(date|hour|source|kind|member)\\}){1,12}", source: IpAddr, start: u64, member in "[A-Za-z0-9._-]{1,63}",
        ) {
            if let Ok(template) = Template::parse(&text) {
                let path = template.path(Period { start, length: 60 }, source, Kind::Syslog, &member);
                prop_assert!(is_path(&path), "{}", path);
            }
        }
    }
}
