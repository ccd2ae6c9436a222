//! The messages of the state stream: what publishers announce, and the destinations that captures
//! must not capture.
//!
//! ```text
//! sekiwake.state.at.<epoch>.<publisher>        every second, and at the end
//!   {"v":1, "name":"tap-1", "epoch":7, "ended":false, "at_ns":…, "stored_until_ns":…,
//!    "positions":{"syslog/0a":[next_sequence, stream_sequence], …},
//!    "sent":{"syslog/0a":next_sequence, …},
//!    "own":[["syslog-forwarder.default.host-1", incarnation, number], …]}
//! sekiwake.state.own.<incarnation>.<client>    every second while the client lives
//!   {"v":1, "client":"…", "incarnation":7, "number":3, "is_member":true, "udp":["198.51.100.7:514", …]}
//! ```
//!
//! `positions` says up to where records are acknowledged by the server, and with which sequence
//! number in the stream. `sent` has the topics with a message that is not acknowledged, and the
//! number of the record after it. What was captured before `stored_until_ns` is stored. Earlier
//! versions have neither. `own` lists the registrations that the capture leaves alone. A reader
//! that sees a subject unchanged for ten seconds by its own clock, while it can read others, takes
//! the publisher or client for dead. Members that a later version adds are ignored.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use sekiwake_group::MAX_NUMBER;
use sekiwake_record::{Name, Topic};
use serde_json::{Value, json};

use super::keys::Stored;

/// The beginning of the subjects of announcements.
pub(crate) const AT: &str = "sekiwake.state.at.";
/// The beginning of the subjects of registrations.
pub(crate) const OWN: &str = "sekiwake.state.own.";
/// How long a publisher or a client counts as alive after its last message.
pub(crate) const ALIVE_FOR: Duration = Duration::from_secs(10);
/// The same for one of which no change has been seen yet: its message may be old.
pub(crate) const PROVE_WITHIN: Duration = Duration::from_millis(3500);
/// How often announcements and registrations are repeated.
pub(crate) const REPEAT_EVERY: Duration = Duration::from_secs(1);

/// The largest message that is read, bytes.
const MAX_BYTES: usize = 256 << 10;
/// The most destinations of a registration.
const MAX_DESTINATIONS: usize = 1024;
/// The most registrations that are acknowledged or kept.
const MAX_CLIENTS: usize = 1024;
const VERSION: u64 = 1;

/// Up to where a topic's records are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The sequence number of the next record of the publisher.
    pub(crate) next_sequence: u64,
    /// The sequence number, in the stream, of the message with the record before it.
    pub(crate) stream_sequence: u64,
}

/// What a publisher announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) name: Name,
    pub(crate) epoch: u64,
    /// Nothing will follow.
    pub(crate) has_ended: bool,
    /// The publisher's clock, nanoseconds since 1970.
    pub(crate) at_ns: u64,
    /// What was captured before this time, nanoseconds since 1970, is stored or dropped, but for
    /// what is on its way to the publisher; `None` if that is not known.
    pub(crate) stored_until_ns: Option<u64>,
    /// By topic; topics without records are not listed.
    pub(crate) positions: BTreeMap<Topic, Position>,
    /// Of topics with a message that is not acknowledged: the sequence number of the record after
    /// it. `None` if that is not known.
    pub(crate) sent: Option<BTreeMap<Topic, u64>>,
    /// The registrations that it leaves alone.
    pub(crate) own: Vec<Registration>,
}

/// A registration, without its destinations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Registration {
    /// The client's name, such as that of a member with its group.
    pub(crate) client: String,
    /// The random number of its run.
    pub(crate) incarnation: u64,
    /// It rises with each change of the destinations.
    pub(crate) number: u64,
}

/// The destinations that a client registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) registration: Registration,
    /// Whether it is a member of a group; datagrams to destinations of others are counted.
    pub(crate) is_member: bool,
    pub(crate) udp: Vec<SocketAddr>,
}

impl At {
    /// The subject of a publisher's announcements.
    pub(crate) fn subject(name: &Name, epoch: u64) -> String {
        format!("{AT}{epoch:016x}.{}", super::streams::token(name))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let positions: BTreeMap<&str, [u64; 2]> =
            self.positions.iter().map(|(topic, at)| (topic.as_str(), [at.next_sequence, at.stream_sequence])).collect();
        let sent: Option<BTreeMap<&str, u64>> =
            self.sent.as_ref().map(|sent| sent.iter().map(|(topic, next)| (topic.as_str(), *next)).collect());
        let own: Vec<Value> = self.own.iter().map(|one| json!([one.client, one.incarnation, one.number])).collect();
        let message = json!({
            "v": VERSION, "name": self.name.as_str(), "epoch": self.epoch, "ended": self.has_ended,
            "at_ns": self.at_ns, "stored_until_ns": self.stored_until_ns, "positions": positions, "sent": sent,
            "own": own,
        });
        message.to_string().into_bytes()
    }

    /// `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<At> {
        let message = object(bytes)?;
        let mut positions = BTreeMap::new();
        for (topic, at) in message.get("positions")?.as_object()?.iter().take(Topic::COUNT) {
            let (Some(topic), [next_sequence, stream_sequence]) = (Topic::parse(topic.as_bytes()), numbers(at)?) else {
                continue;
            };
            positions.insert(topic, Position { next_sequence, stream_sequence });
        }
        let sent = message.get("sent").and_then(Value::as_object).map(|sent| {
            let read = sent.iter().take(Topic::COUNT).filter_map(|(topic, next)| {
                let next = next.as_u64().filter(|next| *next <= MAX_NUMBER)?;
                Some((Topic::parse(topic.as_bytes())?, next))
            });
            read.collect()
        });
        let own = message.get("own").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let own = own.iter().take(MAX_CLIENTS).filter_map(|one| {
            let [client, incarnation, number] = one.as_array()?.first_chunk()?;
            Some(Registration {
                client: client.as_str()?.to_owned(),
                incarnation: incarnation.as_u64()?,
                number: number.as_u64()?,
            })
        });
        Some(At {
            name: Name::new(message.get("name")?.as_str()?).ok()?,
            epoch: message.get("epoch")?.as_u64()?,
            has_ended: message.get("ended")?.as_bool()?,
            at_ns: message.get("at_ns")?.as_u64()?,
            stored_until_ns: message.get("stored_until_ns").and_then(Value::as_u64),
            positions,
            sent,
            own: own.collect(),
        })
    }

    /// The sequence number of the first record of a topic that had not been sent.
    pub(crate) fn next_unsent(&self, topic: Topic) -> u64 {
        let sent = self.sent.as_ref().and_then(|sent| sent.get(&topic)).copied();
        let stored = self.positions.get(&topic).map_or(0, |position| position.next_sequence);
        sent.unwrap_or(0).max(stored)
    }
}

impl Own {
    /// The subject of a client's registrations. `client` is a text without white space; dots are
    /// replaced, as in [`token`](super::streams::token).
    pub(crate) fn subject(client: &str, incarnation: u64) -> String {
        format!("{OWN}{incarnation:016x}.{}", client.replace('.', "="))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let udp: Vec<String> = self.udp.iter().map(SocketAddr::to_string).collect();
        let Registration { client, incarnation, number } = &self.registration;
        let message = json!({
            "v": VERSION, "client": client, "incarnation": incarnation, "number": number,
            "is_member": self.is_member, "udp": udp,
        });
        message.to_string().into_bytes()
    }

    /// `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Own> {
        let message = object(bytes)?;
        let client = message.get("client")?.as_str()?;
        let is_name = |part: &str| Name::new(part).is_ok();
        let udp = message.get("udp")?.as_array()?;
        if client.len() > 256 || !client.split('/').all(is_name) || udp.len() > MAX_DESTINATIONS {
            return None;
        }
        Some(Own {
            registration: Registration {
                client: client.to_owned(),
                incarnation: message.get("incarnation")?.as_u64()?,
                number: message.get("number")?.as_u64()?,
            },
            is_member: message.get("is_member")?.as_bool()?,
            udp: udp.iter().map(|one| one.as_str()?.parse().ok()).collect::<Option<_>>()?,
        })
    }
}

fn object(bytes: &[u8]) -> Option<serde_json::Map<String, Value>> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let message: serde_json::Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    (message.get("v")?.as_u64()? == VERSION).then_some(message)
}

fn numbers(value: &Value) -> Option<[u64; 2]> {
    let [next, stream] = value.as_array()?.first_chunk()?;
    let (next, stream) = (next.as_u64()?, stream.as_u64()?);
    (next <= MAX_NUMBER).then_some([next, stream])
}

/// Who is alive, by subject: whose newest message changes.
#[derive(Debug, Default)]
pub(crate) struct Living {
    seen: BTreeMap<String, Seen>,
    read_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    sequence: u64,
    since: Instant,
    /// It has changed, or appeared, while others were read.
    is_proven: bool,
}

impl Living {
    /// Takes what was read at once, and returns what belongs to the living. To be called at least
    /// every [`ALIVE_FOR`]; after a longer pause everybody is watched afresh, because the reader
    /// may have been the one that was cut off.
    pub(crate) fn update(&mut self, stored: Vec<Stored>, now: Instant) -> Vec<Stored> {
        let was_away = self.read_at.is_none_or(|at| now.duration_since(at) >= ALIVE_FOR / 3);
        if was_away {
            self.seen.clear();
        }
        self.read_at = Some(now);
        let mut seen = BTreeMap::new();
        let mut alive = Vec::new();
        for one in stored.into_iter().take(MAX_CLIENTS) {
            let known = self.seen.get(&one.subject).copied();
            let now_seen = match known {
                Some(known) if known.sequence == one.sequence => known,
                // New for this reader: with the first reading it may be old, later it is not.
                None => Seen { sequence: one.sequence, since: now, is_proven: !was_away },
                Some(_) => Seen { sequence: one.sequence, since: now, is_proven: true },
            };
            let limit = if now_seen.is_proven { ALIVE_FOR } else { PROVE_WITHIN };
            if now.duration_since(now_seen.since) < limit {
                alive.push(one.clone());
            }
            seen.insert(one.subject, now_seen);
        }
        self.seen = seen;
        alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> Registration {
        Registration { client: "syslog-forwarder.default/a.b".to_owned(), incarnation: u64::MAX, number: 2 }
    }

    #[test]
    fn messages_are_decoded_as_they_were() {
        let at = At {
            name: Name::new("tap.1").unwrap(),
            epoch: u64::MAX,
            has_ended: true,
            at_ns: 5,
            stored_until_ns: Some(4),
            positions: Topic::all()
                .map(|topic| (topic, Position { next_sequence: MAX_NUMBER, stream_sequence: u64::MAX }))
                .collect(),
            sent: Some(Topic::all().map(|topic| (topic, MAX_NUMBER)).collect()),
            own: vec![registration()],
        };
        assert_eq!(At::decode(&at.encode()).as_ref(), Some(&at));
        let earlier = r#"{"v":1,"name":"tap.1","epoch":9,"ended":false,"at_ns":5,"positions":{}}"#;
        let earlier = At::decode(earlier.as_bytes()).unwrap();
        assert_eq!((earlier.stored_until_ns, earlier.sent), (None, None));
        let own = Own {
            registration: registration(),
            is_member: true,
            udp: vec!["198.51.100.7:514".parse().unwrap(), "[2001:db8::7]:514".parse().unwrap()],
        };
        assert_eq!(Own::decode(&own.encode()), Some(own));
        assert_eq!(Own::subject("a.b", 255), "sekiwake.state.own.00000000000000ff.a=b");
    }

    #[test]
    fn other_contents_are_not_decoded() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"v":2,"name":"a","epoch":1,"ended":false,"at_ns":1,"positions":{}}"#,
            r#"{"v":1,"name":"a b","epoch":1,"ended":false,"at_ns":1,"positions":{}}"#,
            r#"{"v":1,"name":"a","epoch":-1,"ended":false,"at_ns":1,"positions":{}}"#,
            r#"{"v":1,"name":"a","epoch":1,"ended":false,"at_ns":1,"positions":{"syslog/00":[18446744073709551615,1]}}"#,
            r#"{"v":1,"client":"a b","incarnation":1,"number":1,"is_member":true,"udp":[]}"#,
            r#"{"v":1,"client":"a","incarnation":1,"number":1,"is_member":true,"udp":["x"]}"#,
        ] {
            assert_eq!((At::decode(text.as_bytes()), Own::decode(text.as_bytes())), (None, None), "{text}");
        }
    }

    #[test]
    fn living_are_those_whose_messages_change() {
        let stored = |subject: &str, sequence| Stored { subject: subject.to_owned(), sequence, value: Vec::new() };
        let start = Instant::now();
        let mut living = Living::default();
        let mut alive = |seconds: u64, stored: Vec<Stored>| {
            let alive = living.update(stored, start + Duration::from_secs(seconds));
            alive.into_iter().map(|one| one.subject).collect::<Vec<_>>()
        };
        assert_eq!(alive(0, vec![stored("old", 1), stored("a", 2)]), ["old", "a"]);
        assert_eq!(alive(2, vec![stored("old", 1), stored("a", 3)]), ["old", "a"]);
        assert_eq!(alive(4, vec![stored("old", 1), stored("a", 4), stored("new", 5)]), ["a", "new"]);
        for seconds in (6..=12).step_by(2) {
            assert_eq!(alive(seconds, vec![stored("a", 4), stored("new", 5)]), ["a", "new"], "{seconds}");
        }
        assert!(alive(14, vec![stored("a", 4), stored("new", 5)]).is_empty());
        // After an outage of its own, the reader knows nothing.
        assert_eq!(alive(60, vec![stored("a", 4)]), ["a"]);
    }
}
