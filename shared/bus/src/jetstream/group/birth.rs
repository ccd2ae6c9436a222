//! Where a group begins that nobody has heard of: a place in the stream, and what each publisher
//! had sent by then.
//!
//! The place is read first. Records that a publisher has not sent when it makes an announcement
//! after that are stored behind the place. The newest announcement at that time may be from before,
//! and so may the next one, which was perhaps on its way. The second change after it is not.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sekiwake_group::{Stream, wire::MAX_STREAMS};
use sekiwake_lease::{Beginning, Birth, Position, value::MAX_BEGINNINGS};
use sekiwake_record::{Kind, Shard, Topic};
use sekiwake_sys::clock::wall_now_ns;

use super::{
    super::{
        connection::Nats,
        keys::Stored,
        reader::{Reader, Start},
        state::{AT, At, PROVE_WITHIN},
        streams::{STATE_STREAM, data_config, data_stream, data_subjects},
    },
    jobs::{Answer, created_ns},
};

/// How long to wait for the first message of a time in the past.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// How often announcements are read meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The changes after which an announcement is newer than the place.
const CHANGES: u32 = 2;

/// Finds where a group begins.
pub(super) async fn begin(nats: Nats, kind: Kind, start_age: Duration) -> Answer {
    Answer::Begun(find(&nats, kind, start_age).await)
}

async fn find(nats: &Nats, kind: Kind, start_age: Duration) -> Result<Birth, String> {
    let info = nats.ensure(&data_config(kind, &nats.settings)).await.map_err(|error| error.to_string())?;
    let mut sequence = info.state.last_sequence;
    if !start_age.is_zero() && info.state.messages > 0 {
        let age_ns = u64::try_from(start_age.as_nanos()).unwrap_or(u64::MAX);
        let start = Start::Time(wall_now_ns().saturating_sub(age_ns));
        let subjects = data_subjects(kind, &[String::new()]);
        let reader = Reader::open(nats, data_stream(kind), &subjects, start).await;
        let mut reader = reader.map_err(|error| error.to_string())?;
        let first = reader.next(FIRST_WITHIN).await.map_err(|error| error.to_string())?;
        if let Some(first) = first {
            sequence = first.stream_sequence.saturating_sub(1);
        }
    }
    let mut publishers = Publishers::new(announcements(nats).await?);
    let started = Instant::now();
    while !publishers.are_known() && started.elapsed() < PROVE_WITHIN {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Ok(stored) = announcements(nats).await {
            publishers.look(stored);
        }
    }
    let position = Position { created: created_ns(&info), sequence, progress: Vec::new() };
    Ok(publishers.birth(position, kind))
}

async fn announcements(nats: &Nats) -> Result<Vec<Stored>, String> {
    nats.multi_last(STATE_STREAM, &[format!("{AT}>")]).await.map_err(|error| error.to_string())
}

/// The publishers that are older than the group.
struct Publishers(BTreeMap<String, Publisher>);

struct Publisher {
    /// The sequence number of its newest announcement, and its contents.
    sequence: u64,
    at: At,
    changes: u32,
}

impl Publishers {
    fn new(stored: Vec<Stored>) -> Publishers {
        let decoded = stored.into_iter().filter_map(|Stored { subject, sequence, value }| {
            Some((subject, Publisher { sequence, at: At::decode(&value)?, changes: 0 }))
        });
        Publishers(decoded.take(MAX_STREAMS).collect())
    }

    /// Takes the announcements of a later time. Those of publishers that are new are not needed:
    /// the group is owed their streams from the first record.
    fn look(&mut self, stored: Vec<Stored>) {
        for Stored { subject, sequence, value } in stored {
            let Some(publisher) = self.0.get_mut(&subject).filter(|known| known.sequence < sequence) else { continue };
            let Some(at) = At::decode(&value) else { continue };
            *publisher = Publisher { sequence, at, changes: publisher.changes + 1 };
        }
    }

    fn are_known(&self) -> bool {
        self.0.values().all(|publisher| publisher.at.has_ended || publisher.changes >= CHANGES)
    }

    fn birth(self, position: Position, kind: Kind) -> Birth {
        let older = self.0.values().map(Publisher::stream).collect();
        let mut beginnings: Vec<Beginning> =
            self.0.values().filter(|publisher| !publisher.at.has_ended).map(|one| one.beginning(kind)).collect();
        // The newest ones of those that are known, if there are too many.
        beginnings.sort_by_key(|one| std::cmp::Reverse((one.is_known, one.stream.epoch)));
        beginnings.truncate(MAX_BEGINNINGS);
        Birth { position, older, beginnings }
    }
}

impl Publisher {
    fn stream(&self) -> Stream {
        Stream::new(&self.at.name, self.at.epoch)
    }

    fn beginning(&self, kind: Kind) -> Beginning {
        let next = Shard::all().map(|shard| (shard, self.at.next_unsent(Topic { kind, shard })));
        Beginning {
            stream: self.stream(),
            // A publisher of an earlier version does not say what it has sent.
            is_known: self.changes >= CHANGES && self.at.sent.is_some(),
            next: next.filter(|(_, next)| *next > 0).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_lease::Owed;
    use sekiwake_record::Name;

    use super::{super::super::state::Position as Announced, *};

    fn topic(shard: u8) -> Topic {
        Topic { kind: Kind::Syslog, shard: Shard::new(shard).unwrap() }
    }

    /// Ten records of shard 1 are stored, and of shards 1 and 2 as many more are on their way.
    fn stored(name: &str, sequence: u64, more: u64, has_ended: bool) -> Stored {
        let at = At {
            name: Name::new(name).unwrap(),
            epoch: 1,
            has_ended,
            at_ns: 0,
            stored_until_ns: None,
            positions: BTreeMap::from([(topic(1), Announced { next_sequence: 10, stream_sequence: 7 })]),
            sent: Some(BTreeMap::from([(topic(1), 10 + more), (topic(2), more)])),
            own: Vec::new(),
        };
        Stored { subject: format!("{AT}{name}"), sequence, value: at.encode() }
    }

    #[test]
    fn beginning_is_what_was_sent_by_the_second_change() {
        let mut publishers = Publishers::new(vec![
            stored("live", 1, 1, false),
            stored("ended", 2, 0, true),
            stored("dead", 3, 5, false),
            stored("stops", 4, 0, false),
        ]);
        publishers.look(vec![stored("live", 5, 2, false), stored("dead", 3, 5, false), stored("stops", 6, 0, true)]);
        assert!(!publishers.are_known());
        publishers.look(vec![stored("live", 5, 2, false), stored("new", 7, 2, false)]);
        assert!(!publishers.are_known());
        publishers.look(vec![stored("live", 8, 3, false)]);
        let birth = publishers.birth(Position::default(), Kind::Syslog);
        assert_eq!(birth.older.len(), 4);
        let owed = |name: &str, shard: u8| {
            let beginning = birth.beginnings.iter().find(|beginning| &*beginning.stream.name == name)?;
            Some(beginning.owed(Shard::new(shard).unwrap()))
        };
        assert_eq!([1, 2, 3].map(|shard| owed("live", shard).unwrap()), [13, 3, 0].map(Owed::From));
        assert_eq!([1, 2, 3].map(|shard| owed("dead", shard).unwrap()), [15, 5, 0].map(Owed::AtMostFrom));
        assert_eq!((owed("ended", 1), owed("stops", 1)), (None, None));
    }

    #[test]
    fn nothing_is_waited_for_without_live_publishers() {
        assert!(Publishers::new(Vec::new()).are_known());
        assert!(Publishers::new(vec![stored("ended", 2, 0, true)]).are_known());
    }
}
