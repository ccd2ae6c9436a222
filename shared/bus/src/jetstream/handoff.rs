//! Hand-off state: what the owner of a shard leaves for the next one, in a stream per group that
//! keeps the newest value of each key.
//!
//! ```text
//! sekiwake.handoff.<group>.<shard>.<key>    group with = for dots, shard and key in hexadecimal
//!   at_ns, 8 bytes, big endian ++ value     an empty value deletes the entry
//! ```

use std::fmt::Write as _;

use sekiwake_group::wire::{HandoffEntry, HandoffKey, HandoffValue};
use sekiwake_record::{Name, Shard};

use super::streams::token;

/// The longest key, bytes.
const MAX_KEY: usize = 64;
/// The largest value, bytes.
const MAX_VALUE: usize = 8 << 10;

/// The subjects of a group.
pub(crate) fn handoff_subjects(group: &Name) -> String {
    format!("sekiwake.handoff.{}.>", token(group))
}

/// The subject of an entry.
pub(crate) fn handoff_subject(group: &Name, shard: Shard, key: &[u8]) -> String {
    let mut subject = format!("sekiwake.handoff.{}.{:02x}.", token(group), shard.index());
    for byte in key {
        let _ = write!(subject, "{byte:02x}");
    }
    subject
}

/// The message of an entry.
pub(crate) fn encode_handoff(value: &[u8], at_ns: u64) -> Vec<u8> {
    [&at_ns.to_be_bytes(), value].concat()
}

/// The entry of a message; `None` for anything else.
pub(crate) fn decode_handoff(subject: &str, message: &[u8]) -> Option<HandoffEntry> {
    let mut tokens = subject.strip_prefix("sekiwake.handoff.")?.split('.').skip(1);
    let shard = tokens.next().filter(|text| text.len() == 2)?;
    let shard = Shard::new(u8::from_str_radix(shard, 16).ok()?)?;
    let key = tokens.next().filter(|text| text.len() <= 2 * MAX_KEY && text.len().is_multiple_of(2))?;
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let key: Vec<u8> = key.as_bytes().chunks(2).map(digits).collect::<Option<_>>()?;
    let (at_ns, value) = message.split_first_chunk()?;
    if tokens.next().is_some() || value.len() > MAX_VALUE {
        return None;
    }
    Some(HandoffEntry {
        shard,
        key: HandoffKey::new(&key)?,
        value: HandoffValue::new(value)?,
        at_ns: u64::from_be_bytes(*at_ns),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_decoded_as_it_was() {
        let group = Name::new("xflow-forwarder.a").unwrap();
        let shard = Shard::new(63).unwrap();
        let subject = handoff_subject(&group, shard, b"\x00k.");
        assert_eq!(subject, "sekiwake.handoff.xflow-forwarder=a.3f.006b2e");
        let entry = decode_handoff(&subject, &encode_handoff(b"value", 7)).unwrap();
        assert_eq!(
            (entry.shard, entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns),
            (shard, &b"\x00k."[..], &b"value"[..], 7)
        );
        for wrong in [
            "sekiwake.handoff.a.40.00",
            "sekiwake.handoff.a.00.0",
            "sekiwake.handoff.a.00.xx",
            "sekiwake.handoff.a.00.",
        ] {
            assert!(decode_handoff(wrong, &[0; 9]).is_none(), "{wrong}");
        }
        assert!(decode_handoff(&subject, &[0; 7]).is_none());
    }
}
