//! Which prefixes somebody has subscribed to, and which topics they select. No socket.
//!
//! ZeroMQ takes any bytes as a subscription. Only what can select something is kept and passed on: the prefixes of data
//! topics, of which there are a few hundred, and a bounded number of those of announcements and events. The bus's other topics are not
//! for subscribers: what the relay subscribes to there is a word to publishers.

use std::collections::HashSet;

use sekiwake_record::{Announcement, Kind, Topic};

use crate::events::EVENT_PREFIX;

/// How many prefixes of the bus's own topics are held.
const MAX_OWN: usize = 1_024;

/// The longest prefix of the bus's own topics, bytes.
const MAX_OWN_BYTES: usize = 128;

/// The longest name of a data topic, bytes: a longer prefix selects none.
const MAX_TOPIC_BYTES: usize = "snmptrap/3f".len();

/// What became of a subscription or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new.
    Added,
    /// It has gone.
    Removed,
    /// It was known before, or its end is that of one that was never held.
    Unchanged,
    /// It selects no topic of the bus, or there are too many.
    Refused,
}

/// The prefixes that are held.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    prefixes: HashSet<Vec<u8>>,
    own: usize,
    /// How many of the prefixes select each topic, by [`Topic::index`].
    selected_by: [u16; Topic::COUNT],
}

impl Default for Subscriptions {
    fn default() -> Subscriptions {
        Subscriptions { prefixes: HashSet::new(), own: 0, selected_by: [0; Topic::COUNT] }
    }
}

impl Subscriptions {
    pub(crate) fn change(&mut self, added: bool, prefix: &[u8]) -> Change {
        match added {
            true => self.add(prefix),
            false => self.remove(prefix),
        }
    }

    fn add(&mut self, prefix: &[u8]) -> Change {
        if self.prefixes.contains(prefix) {
            return Change::Unchanged;
        }
        if is_own(prefix) || selects_events(prefix) {
            if self.own >= MAX_OWN || !(selects_announcements(prefix) || selects_events(prefix)) {
                return Change::Refused;
            }
            self.own += 1;
        } else {
            let mut topics = selected(prefix).peekable();
            if topics.peek().is_none() {
                return Change::Refused;
            }
            topics.for_each(|topic| self.selected_by[topic.index()] += 1);
        }
        self.prefixes.insert(prefix.to_vec());
        Change::Added
    }

    fn remove(&mut self, prefix: &[u8]) -> Change {
        if !self.prefixes.remove(prefix) {
            return Change::Unchanged;
        }
        if is_own(prefix) || selects_events(prefix) {
            self.own -= 1;
        } else {
            selected(prefix).for_each(|topic| self.selected_by[topic.index()] -= 1);
        }
        Change::Removed
    }

    /// Whether somebody wants this topic.
    pub(crate) fn wants(&self, topic: Topic) -> bool {
        self.selected_by[topic.index()] > 0
    }

    /// Whether one of the prefixes selects the topic of this name. Looks at all of them: for what is rare.
    pub(crate) fn select(&self, topic: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| topic.starts_with(prefix))
    }

    /// How many topics of this kind somebody wants.
    pub(crate) fn wanted_topics(&self, kind: Kind) -> usize {
        Topic::all().filter(|&topic| topic.kind == kind && self.wants(topic)).count()
    }

    /// How many prefixes are held.
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }
}

/// Whether a prefix selects events, of all publishers or of some. The empty one selects everything, and is one of data topics.
fn selects_events(prefix: &[u8]) -> bool {
    let all = EVENT_PREFIX.as_bytes();
    prefix.len() <= MAX_OWN_BYTES && !prefix.is_empty() && (prefix.starts_with(all) || all.starts_with(prefix))
}

/// Whether a prefix selects data topics.
pub(crate) fn selects_data(prefix: &[u8]) -> bool {
    selected(prefix).next().is_some()
}

/// The data topics that a prefix selects.
fn selected(prefix: &[u8]) -> impl Iterator<Item = Topic> {
    let candidates = if prefix.len() <= MAX_TOPIC_BYTES { Topic::COUNT } else { 0 };
    Topic::all().take(candidates).filter(move |topic| topic.as_str().as_bytes().starts_with(prefix))
}

/// Whether a prefix of the bus's own topics selects announcements, of all streams or of some.
fn selects_announcements(prefix: &[u8]) -> bool {
    let all = Announcement::TOPIC_PREFIX.as_bytes();
    prefix.len() <= MAX_OWN_BYTES && (prefix.starts_with(all) || all.starts_with(prefix))
}

fn is_own(prefix: &[u8]) -> bool {
    prefix.first() == Some(&b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(subscriptions: &Subscriptions) -> usize {
        Topic::all().filter(|&topic| subscriptions.wants(topic)).count()
    }

    #[test]
    fn prefixes_select_a_kind_a_shard_or_everything() {
        for (prefix, count) in
            [("", 192), ("s", 128), ("syslog/", 64), ("xflow/2", 16), ("xflow/2a", 1), ("@stream/", 0)]
        {
            let mut subscriptions = Subscriptions::default();
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert_eq!(wanted(&subscriptions), count, "{prefix}");
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Unchanged, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Removed, "{prefix}");
            assert_eq!((wanted(&subscriptions), subscriptions.len()), (0, 0), "{prefix}");
        }
    }

    #[test]
    fn an_end_takes_away_only_what_no_other_prefix_selects() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["syslog/", "syslog/00"] {
            subscriptions.change(true, prefix.as_bytes());
        }
        subscriptions.change(false, b"syslog/");
        assert_eq!(wanted(&subscriptions), 1);
        assert_eq!(subscriptions.change(false, b"syslog/"), Change::Unchanged);
        assert_eq!(subscriptions.len(), 1);
    }

    #[test]
    fn what_selects_nothing_is_refused_and_costs_nothing() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["syslog", "xflow/3f", "snmptrap/0"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added);
        }
        for prefix in ["syslog/40", "syslog/2A", "syslog/000", "nonsense", "\0", &"s".repeat(200)] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Refused, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Unchanged, "{prefix}");
        }
        assert_eq!(subscriptions.len(), 3);
    }

    #[test]
    fn the_buss_own_topics_are_held_up_to_a_bound() {
        let mut subscriptions = Subscriptions::default();
        let changes: Vec<Change> = (0..MAX_OWN + 10)
            .map(|number| subscriptions.change(true, format!("@stream/{number}/").as_bytes()))
            .collect();
        assert_eq!(changes.iter().filter(|change| **change == Change::Added).count(), MAX_OWN);
        assert_eq!(changes[MAX_OWN..], [Change::Refused; 10]);
        assert_eq!(subscriptions.change(true, b"syslog/"), Change::Added);
        assert_eq!(subscriptions.change(false, b"@stream/0/"), Change::Removed);
        assert_eq!(subscriptions.change(true, b"@stream/again/"), Change::Added);
        subscriptions.change(false, b"@stream/1/");
        let long = format!("@stream/{}", "x".repeat(MAX_OWN_BYTES));
        assert_eq!(subscriptions.change(true, long.as_bytes()), Change::Refused);
    }

    #[test]
    fn events_can_be_subscribed_to_and_are_no_data() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["a", "anomaly", "anomaly/", "anomaly/watch-1/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert!(subscriptions.select(b"anomaly/watch-1/") && !selects_data(prefix.as_bytes()), "{prefix}");
            assert_eq!(wanted(&subscriptions), 0, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Removed, "{prefix}");
        }
        for prefix in ["anomalies", "anomaly/\0".repeat(20).as_str(), "b"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Refused, "{prefix}");
        }
        assert_eq!(subscriptions.change(true, b""), Change::Added);
        assert!(subscriptions.select(b"anomaly/watch-1/"));
        let changes: Vec<Change> = (0..MAX_OWN + 10)
            .map(|number| subscriptions.change(true, format!("anomaly/{number}/").as_bytes()))
            .collect();
        assert_eq!(changes[MAX_OWN..], [Change::Refused; 10]);
    }

    #[test]
    fn of_the_buss_own_topics_only_announcements_can_be_subscribed_to() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["@", "@s", "@stream", "@stream/", "@stream/wire-1/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
        }
        for prefix in ["@r", "@relay", "@relay/", "@relay/hold/", "@streams", "@@", "@\0"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Refused, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Unchanged, "{prefix}");
        }
        assert_eq!((subscriptions.len(), wanted(&subscriptions)), (5, 0));
    }
}
