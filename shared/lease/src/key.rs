//! The names of a group's keys.
//!
//! ```text
//! <group>.<kind>.a                 the assignment
//! <group>.<kind>.m.<incarnation>   a member: 16 lower-case hexadecimal digits
//! ```
//!
//! Dots separate the tokens of a key, so those of a group's name are written as `=`.

use std::fmt;

use sekiwake_record::{Kind, Name};

/// A key of one group, without the group's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Who owns which shard.
    Assignment,
    /// The member of this incarnation.
    Member(u64),
}

impl Key {
    /// What all keys of a group begin with, and the dot after it.
    pub fn prefix(group: &Name, kind: Kind) -> String {
        format!("{}.{kind}.", group_token(group))
    }

    /// The key of this name, which follows the prefix; `None` for any other name.
    pub fn parse(name: &str) -> Option<Key> {
        if name == "a" {
            return Some(Key::Assignment);
        }
        let digits = name.strip_prefix("m.")?;
        let allowed = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(digits, 16).ok().filter(|_| allowed).map(Key::Member)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Assignment => f.write_str("a"),
            Key::Member(incarnation) => write!(f, "m.{incarnation:016x}"),
        }
    }
}

/// A group's name as one token of a key or subject.
pub fn group_token(group: &Name) -> String {
    group.as_str().replace('.', "=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in [Key::Assignment, Key::Member(0), Key::Member(u64::MAX), Key::Member(0x2a)] {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for foreign in ["", "A", "a.b", "m", "m.", "m.2a", "m.000000000000002A", "m.+00000000000002a", "x.0"] {
            assert_eq!(Key::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn dots_of_a_group_are_no_separators() {
        let group = Name::new("..syslog-forwarder.a_b.").unwrap();
        assert_eq!(Key::prefix(&group, Kind::Syslog), "==syslog-forwarder=a_b=.syslog.");
    }
}
