//! Templates for the paths of stored files.

use std::{fmt::Write, net::IpAddr};

use jiff::Timestamp;
use sekiwake_archive::{Period, is_path};
use sekiwake_record::Kind;

/// The longest template, bytes: with an IPv6 address and a member's name filled in, a path stays
/// well within the limits of file systems.
const MAX_BYTES: usize = 200;

/// A path such as `{date}/{kind}`, below the store's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// An invalid template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a path below the directory, of letters, digits, dots, hyphens, underscores, slashes and \
     {{date}} {{year}} {{month}} {{day}} {{hour}} {{source}} {{kind}} {{member}} ({0})"
)]
pub struct TemplateError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A part of the period's start, as a strftime format.
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
    /// Parses a template.
    ///
    /// # Errors
    /// An unknown placeholder, or a path that would leave the directory, be hidden, or not be a
    /// valid name on every system.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let invalid = |what: String| Err(TemplateError(what));
        if text.len() > MAX_BYTES {
            return invalid(format!("over {MAX_BYTES} bytes"));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else { return invalid("a { without a }".to_owned()) };
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
                _ => return invalid(format!("unknown placeholder {{{name}}}")),
            });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        let template = Template { pieces };
        // Check the template with placeholders filled in. The member is checked below, because only
        // its name may start with a dot.
        let example = template.path(Period { start: 0, length: 1 }, IpAddr::from([0; 16]), Kind::Syslog, "x");
        if !is_path(&example) {
            return invalid(format!("{example:?} is not such a path"));
        }
        if template.has_name_starting_with_member() {
            return invalid("a name must not start with {member}, which may start with a dot".to_owned());
        }
        Ok(template)
    }

    /// The path of this period and source.
    pub fn path(&self, period: Period, source: IpAddr, kind: Kind, member: &str) -> String {
        let seconds = i64::try_from(period.start).unwrap_or(i64::MAX);
        let start = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let mut path = String::new();
        for piece in &self.pieces {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => path.write_str(text),
                Piece::Time(format) => write!(path, "{}", start.strftime(format)),
                Piece::Source => write!(path, "{}", source.to_canonical()),
                Piece::Kind => path.write_str(kind.as_str()),
                Piece::Member => path.write_str(member),
            };
        }
        // An IPv6 address may start with a colon, which is allowed in names, but never with a dot.
        path
    }

    /// Whether each kind has a path of its own.
    pub fn has_kind(&self) -> bool {
        self.pieces.contains(&Piece::Kind)
    }

    /// Whether each source has a path of its own.
    pub fn has_source(&self) -> bool {
        self.pieces.contains(&Piece::Source)
    }

    fn has_name_starting_with_member(&self) -> bool {
        let mut is_start = true;
        for piece in &self.pieces {
            if is_start && *piece == Piece::Member {
                return true;
            }
            is_start = matches!(piece, Piece::Text(text) if text.ends_with('/'));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sekiwake_record::WallTime;

    use super::*;

    fn path(template: &str) -> String {
        let period = Period::of(WallTime::from_nanos(1_795_615_200_000_000_000), 3600);
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
    fn template_that_leaves_the_directory_is_rejected() {
        for invalid in [
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
            assert!(Template::parse(invalid).is_err(), "{invalid}");
        }
    }

    proptest! {
        #[test]
        fn accepted_template_stays_in_the_directory(
            text in "([a-z./_-]|\\{(date|hour|source|kind|member)\\}){1,12}", source: IpAddr, start: u64, member in "[A-Za-z0-9._-]{1,63}",
        ) {
            if let Ok(template) = Template::parse(&text) {
                let path = template.path(Period { start, length: 60 }, source, Kind::Syslog, &member);
                prop_assert!(is_path(&path), "{}", path);
            }
        }
    }
}
