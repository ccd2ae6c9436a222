//! Environment files in the syntax of systemd's `EnvironmentFile=` (systemd.exec(5)): quotes may
//! span lines, a backslash escapes, `#` and `;` begin a comment at the beginning of a line. `$` and
//! blanks within a value have no meaning, unlike in a shell.
//!
//! Written by hand because crates for `.env` files follow a shell or docker, which read the same
//! line differently. Values are those that systemd would set; a line that systemd would ignore, or
//! for which it would reject the file, is a problem.
//!
//! Problems show valid names only. Other text may be part of a secret, such as a key that was
//! pasted with its line breaks.

/// The white space around names and values (WHITESPACE in systemd's env-file.c).
const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];
/// More problems are not listed: a file of another kind has one per line.
const MAX_PROBLEMS: usize = 20;
/// Longer names are not shown in messages.
const MAX_SHOWN_CHARACTERS: usize = 60;

/// The contents of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// The variables, in the order of the file.
    pub(crate) assignments: Vec<Assignment>,
    /// What is wrong, in the order of the file.
    pub(crate) problems: Vec<Problem>,
}

/// A variable.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) name: String,
    pub(crate) value: String,
    /// The line of its name; the first line is 1.
    pub(crate) line: usize,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) line: usize,
    /// What was found, and what would be accepted.
    pub(crate) what: String,
}

/// The part of the file in which the parser is.
#[derive(Clone, Copy)]
enum Part {
    /// The beginning of a line, before a name.
    Start,
    /// A comment.
    Comment,
    /// A name.
    Name,
    /// Behind `=` or a closing quote.
    BeforeValue,
    /// A value without quotes. Its first `kept` bytes keep their trailing blanks: they were quoted
    /// or escaped.
    Value { kept: usize },
    /// A value in single or double quotes, which begin in line `since`.
    Quoted { quote: char, since: usize },
}

/// Parses a file.
pub(crate) fn parse(contents: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let text = match std::str::from_utf8(contents) {
        Ok(text) => text,
        Err(error) => {
            let line_feeds = contents[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            parsed.add_problem(1 + line_feeds, "expected UTF-8 text".to_owned());
            return parsed;
        }
    };
    let (text, has_mark) = match text.strip_prefix('\u{feff}') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if has_mark {
        let what = "a byte order mark, which systemd takes for a part of the line: save the file without it";
        parsed.add_problem(1, what.to_owned());
    }
    let mut line = 1;
    let mut part = Part::Start;
    let mut current = Assignment::default();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let ends_line = matches!(character, '\n' | '\r');
        // The line of the next character. An escaped line feed is counted where it is read.
        let escaped = if character == '\\' && part.has_escapes() { characters.next() } else { None };
        let next_line = line + usize::from(character == '\n' || escaped == Some('\n'));
        part = match part {
            Part::Start => match character {
                '#' | ';' => Part::Comment,
                _ if BLANKS.contains(&character) => Part::Start,
                _ => {
                    current = Assignment { line, ..Assignment::default() };
                    current.add_to_name(character)
                }
            },
            Part::Comment => match escaped {
                Some('\n' | '\r') => {
                    let what =
                        "the comment ends with a backslash, for which systemd before version 254 ignores the next line";
                    parsed.add_problem(line, what.to_owned());
                    Part::Start
                }
                _ if ends_line => Part::Start,
                _ => Part::Comment,
            },
            Part::Name if ends_line => {
                parsed.reject(&current);
                Part::Start
            }
            Part::Name => current.add_to_name(character),
            Part::BeforeValue | Part::Value { .. } if ends_line => {
                parsed.accept(std::mem::take(&mut current), part);
                Part::Start
            }
            Part::BeforeValue if character == '\'' || character == '"' => {
                Part::Quoted { quote: character, since: line }
            }
            Part::BeforeValue if BLANKS.contains(&character) => Part::BeforeValue,
            Part::BeforeValue | Part::Value { .. } if character == '\\' => {
                current.value.extend(escaped.filter(|escaped| !matches!(escaped, '\n' | '\r')));
                Part::Value { kept: current.value.len() }
            }
            Part::BeforeValue => {
                let kept = current.value.len();
                current.value.push(character);
                Part::Value { kept }
            }
            Part::Value { kept } => {
                current.value.push(character);
                Part::Value { kept }
            }
            Part::Quoted { quote, .. } if character == quote => Part::BeforeValue,
            Part::Quoted { quote: '"', since } if character == '\\' => {
                match escaped {
                    Some('\n') | None => {}
                    Some(plain @ ('"' | '\\' | '`' | '$')) => current.value.push(plain),
                    Some(other) => current.value.extend(['\\', other]),
                }
                Part::Quoted { quote: '"', since }
            }
            quoted @ Part::Quoted { .. } => {
                current.value.push(character);
                quoted
            }
        };
        line = next_line;
    }
    match part {
        Part::Start | Part::Comment => {}
        Part::Name => parsed.reject(&current),
        Part::BeforeValue | Part::Value { .. } => parsed.accept(current, part),
        Part::Quoted { since, .. } => {
            let name = shown(&current.name);
            parsed.add_problem(since, format!("{name}the quote does not end"));
        }
    }
    parsed
}

impl Part {
    /// Whether a backslash applies to the next character.
    fn has_escapes(self) -> bool {
        match self {
            Part::Comment | Part::BeforeValue | Part::Value { .. } => true,
            Part::Quoted { quote, .. } => quote == '"',
            Part::Start | Part::Name => false,
        }
    }
}

impl Assignment {
    /// The next part of the file after this character of a name.
    fn add_to_name(&mut self, character: char) -> Part {
        if character == '=' {
            return Part::BeforeValue;
        }
        self.name.push(character);
        Part::Name
    }
}

impl Parsed {
    /// Keeps a complete assignment, if systemd would.
    fn accept(&mut self, mut assignment: Assignment, part: Part) {
        if let Part::Value { kept } = part {
            let unquoted = assignment.value[kept..].trim_end_matches(BLANKS);
            assignment.value.truncate(kept + unquoted.len());
        }
        assignment.name.truncate(assignment.name.trim_end_matches(BLANKS).len());
        let Assignment { name, value, line } = &assignment;
        if !is_name(name) {
            let hint = if name.starts_with("export ") { ", without export" } else { "" };
            self.add_problem(*line, format!("expected NAME=value, a name of letters, digits and _{hint}"));
        } else if value.chars().any(|character| character.is_control() && character != '\n' && character != '\t') {
            let name = shown(name);
            self.add_problem(*line, format!("{name}expected a value without control characters"));
        } else {
            self.assignments.push(assignment);
        }
    }

    /// A line without `=`.
    fn reject(&mut self, assignment: &Assignment) {
        self.add_problem(assignment.line, "expected NAME=value or a comment".to_owned());
    }

    fn add_problem(&mut self, line: usize, what: String) {
        match self.problems.len() {
            ..MAX_PROBLEMS => self.problems.push(Problem { line, what }),
            MAX_PROBLEMS => self.problems.push(Problem { line, what: "further problems are not listed".to_owned() }),
            _ => {}
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
    text.starts_with(is_letter) && text.chars().all(|character| is_letter(character) || character.is_ascii_digit())
}

/// The name with a colon, before what is wrong.
fn shown(name: &str) -> String {
    let name = name.trim_end_matches(BLANKS);
    if is_name(name) && name.len() <= MAX_SHOWN_CHARACTERS { format!("{name}: ") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(text: &str) -> Vec<(String, String)> {
        let parsed = parse(text.as_bytes());
        assert_eq!(parsed.problems, [], "{text}");
        parsed.assignments.into_iter().map(|one| (one.name, one.value)).collect()
    }

    fn problems(contents: &[u8]) -> Vec<String> {
        parse(contents).problems.into_iter().map(|Problem { line, what }| format!("{line}: {what}")).collect()
    }

    #[test]
    fn values_are_those_that_systemd_sets() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=b\n", "b"),
            ("A=b\r\n", "b"),
            ("  A \t= b c \t\n", "b c"),
            ("A=", ""),
            ("A= # no comment", "# no comment"),
            ("A=$HOME", "$HOME"),
            ("A=b=c", "b=c"),
            ("A=\"b c\" ", "b c"),
            ("A='b\\n$c'", "b\\n$c"),
            ("A=\"b\\\"\\$\\n\"", "b\"$\\n"),
            ("A=\" b \"' c '", " b  c "),
            ("A=\"b\" c ", "bc"),
            ("A=b\"c\"", "b\"c\""),
            ("A=b\\ \\\n c", "b  c"),
            ("A=b\\ ", "b "),
            ("A=\" \"b  ", " b"),
            ("A=\"b\nc\\\nd\"", "b\ncd"),
            ("A='b\nc'", "b\nc"),
            ("A=b\\\\", "b\\"),
            ("# x=y\n ; z\n\nA=b", "b"),
        ] {
            assert_eq!(values(text), [("A".to_owned(), value.to_owned())], "{text:?}");
        }
    }

    #[test]
    fn problems_name_the_line_and_what_is_expected() {
        for (contents, problem) in [
            (&b"A=b\nword\n"[..], "2: expected NAME=value or a comment"),
            (b"export A=b", "1: expected NAME=value, a name of letters, digits and _, without export"),
            (b"\n1A=b", "2: expected NAME=value, a name of letters, digits and _"),
            (b"=b", "1: expected NAME=value, a name of letters, digits and _"),
            (b"A =\"b\nc\\\nd\n", "1: A: the quote does not end"),
            (b"A=b\\\nc\nB='\n", "3: B: the quote does not end"),
            (b"A=b\n\nB=\x1b[1m\n", "3: B: expected a value without control characters"),
            (b"A=b\nB=\xff\n", "2: expected UTF-8 text"),
            (b"A\x00B", "1: expected NAME=value or a comment"),
        ] {
            assert_eq!(problems(contents), [problem], "{contents:?}");
        }
        assert!(problems("\u{feff}A=b".as_bytes())[0].contains("byte order mark"));
        assert!(problems(b"# a \\\nA=b")[0].starts_with("1: the comment ends with a backslash"));
        assert_eq!(problems(&b"word\n".repeat(1000)).len(), MAX_PROBLEMS + 1);
    }

    #[test]
    fn problems_show_no_part_of_a_pasted_key() {
        let pasted = b"KEY=-----BEGIN PRIVATE KEY-----\nMHcCAQEEIDNf\nsecret/+QQ==\n12secret=\nse cret=\"\n";
        let all = problems(pasted).join("\n");
        assert_eq!(all.lines().count(), 4, "{all}");
        assert!(!all.contains("cret") && !all.contains("MHc"), "{all}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_with_lines_of_the_file(contents in proptest::collection::vec(any::<u8>(), 0..200)) {
            let parsed = parse(&contents);
            let lines = 1 + contents.iter().filter(|byte| **byte == b'\n').count();
            let numbers = parsed.problems.iter().map(|one| one.line).chain(parsed.assignments.iter().map(|one| one.line));
            for number in numbers {
                prop_assert!((1..=lines).contains(&number));
            }
        }

        #[test]
        fn text_of_syntax_is_parsed(text in "[A=\"'\\\\\n\r #;$b]{0,60}") {
            let parsed = parse(text.as_bytes());
            prop_assert!(parsed.assignments.iter().all(|one| one.name.starts_with(['A', 'b'])));
        }

        #[test]
        fn quoted_values_are_read_as_written(value in "[^\\p{Cc}]{0,40}") {
            let doubled: String = value.chars().flat_map(|character| {
                let escape = matches!(character, '"' | '\\' | '`' | '$').then_some('\\');
                escape.into_iter().chain([character])
            }).collect();
            prop_assert_eq!(values(&format!("A=\"{doubled}\"\n")), [("A".to_owned(), value)]);
        }
    }
}
