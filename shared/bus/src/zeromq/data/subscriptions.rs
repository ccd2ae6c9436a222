//! The subscribed prefixes, and the topics that they select. No socket.
//!
//! ZeroMQ accepts any bytes as a subscription. Only prefixes that can select a topic are kept and
//! forwarded: those of data topics, of which there are a few hundred, and a bounded number of those
//! of announcements, events and status. The bus's other reserved topics are signals from the relay
//! to publishers and cannot be subscribed to.

use std::collections::HashSet;

use sekiwake_record::{Announcement, Kind, Topic};

use crate::{EVENT_PREFIX, STATUS_PREFIX};

/// Maximum number of prefixes of reserved topics (`@...`), events and status.
const MAX_RESERVED: usize = 1_024;

/// The longest prefix of a reserved topic or event, bytes.
const MAX_RESERVED_BYTES: usize = 128;

/// The longest data topic, bytes: longer prefixes select none.
const MAX_TOPIC_BYTES: usize = "snmptrap/3f".len();

/// The result of a subscription or unsubscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The prefix is new.
    Added,
    /// The prefix was removed.
    Removed,
    /// The prefix was subscribed to before, or was not subscribed to and cannot be removed.
    Unchanged,
    /// The prefix selects no topic, or there are too many.
    Rejected,
}

/// The subscribed prefixes.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    prefixes: HashSet<Vec<u8>>,
    reserved: usize,
    /// How many prefixes select topics of status.
    status: usize,
    /// How many prefixes select each topic, by [`Topic::index`].
    selected_by: [u16; Topic::COUNT],
}

impl Default for Subscriptions {
    fn default() -> Subscriptions {
        Subscriptions { prefixes: HashSet::new(), reserved: 0, status: 0, selected_by: [0; Topic::COUNT] }
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
        if is_reserved(prefix) || selects_events(prefix) || is_of_status_only(prefix) {
            let is_topic = selects_announcements(prefix) || selects_events(prefix) || is_of_status_only(prefix);
            if self.reserved >= MAX_RESERVED || !is_topic {
                return Change::Rejected;
            }
            self.reserved += 1;
        } else {
            let mut topics = selected(prefix).peekable();
            if topics.peek().is_none() {
                return Change::Rejected;
            }
            topics.for_each(|topic| self.selected_by[topic.index()] += 1);
        }
        self.status += usize::from(selects_status(prefix));
        self.prefixes.insert(prefix.to_vec());
        Change::Added
    }

    fn remove(&mut self, prefix: &[u8]) -> Change {
        if !self.prefixes.remove(prefix) {
            return Change::Unchanged;
        }
        self.status -= usize::from(selects_status(prefix));
        if is_reserved(prefix) || selects_events(prefix) || is_of_status_only(prefix) {
            self.reserved -= 1;
        } else {
            selected(prefix).for_each(|topic| self.selected_by[topic.index()] -= 1);
        }
        Change::Removed
    }

    /// Whether this topic has a subscriber.
    pub(crate) fn wants(&self, topic: Topic) -> bool {
        self.selected_by[topic.index()] > 0
    }

    /// Whether a prefix selects status of any service.
    pub(crate) fn wants_status(&self) -> bool {
        self.status > 0
    }

    /// Whether a prefix selects the topic of this name. Compares all prefixes, so it is for rare
    /// messages only.
    pub(crate) fn selects(&self, topic: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| topic.starts_with(prefix))
    }

    /// How many topics of this kind have a subscriber.
    pub(crate) fn subscribed_topics(&self, kind: Kind) -> usize {
        Topic::all().filter(|&topic| topic.kind == kind && self.wants(topic)).count()
    }

    /// How many prefixes are subscribed.
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }
}

/// Whether a prefix selects events of all or some publishers. The empty prefix selects everything
/// and counts as a prefix of data topics.
fn selects_events(prefix: &[u8]) -> bool {
    let all = EVENT_PREFIX.as_bytes();
    prefix.len() <= MAX_RESERVED_BYTES && !prefix.is_empty() && (prefix.starts_with(all) || all.starts_with(prefix))
}

/// Whether a prefix selects status, perhaps beside other topics.
fn selects_status(prefix: &[u8]) -> bool {
    let all = STATUS_PREFIX.as_bytes();
    prefix.len() <= MAX_RESERVED_BYTES && (prefix.starts_with(all) || all.starts_with(prefix))
}

/// Whether a prefix selects status and nothing else. Publishers need not know of it, because the
/// proxy publishes status itself.
pub(crate) fn is_of_status_only(prefix: &[u8]) -> bool {
    selects_status(prefix) && !selects_data(prefix)
}

/// Whether a prefix selects data topics.
pub(crate) fn selects_data(prefix: &[u8]) -> bool {
    selected(prefix).next().is_some()
}

/// The data topics selected by a prefix.
fn selected(prefix: &[u8]) -> impl Iterator<Item = Topic> {
    let candidates = if prefix.len() <= MAX_TOPIC_BYTES { Topic::COUNT } else { 0 };
    Topic::all().take(candidates).filter(move |topic| topic.as_str().as_bytes().starts_with(prefix))
}

/// Whether a reserved prefix selects announcements of all or some streams.
fn selects_announcements(prefix: &[u8]) -> bool {
    let all = Announcement::TOPIC_PREFIX.as_bytes();
    prefix.len() <= MAX_RESERVED_BYTES && (prefix.starts_with(all) || all.starts_with(prefix))
}

/// Whether a prefix is one of the topics reserved for the bus itself.
fn is_reserved(prefix: &[u8]) -> bool {
    prefix.first() == Some(&b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribed(subscriptions: &Subscriptions) -> usize {
        Topic::all().filter(|&topic| subscriptions.wants(topic)).count()
    }

    #[test]
    fn prefix_selects_a_kind_a_shard_or_everything() {
        for (prefix, count) in
            [("", 192), ("s", 128), ("syslog/", 64), ("xflow/2", 16), ("xflow/2a", 1), ("@stream/", 0)]
        {
            let mut subscriptions = Subscriptions::default();
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert_eq!(subscribed(&subscriptions), count, "{prefix}");
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Unchanged, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Removed, "{prefix}");
            assert_eq!((subscribed(&subscriptions), subscriptions.len()), (0, 0), "{prefix}");
        }
    }

    #[test]
    fn topic_stays_selected_while_another_prefix_selects_it() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["syslog/", "syslog/00"] {
            subscriptions.change(true, prefix.as_bytes());
        }
        subscriptions.change(false, b"syslog/");
        assert_eq!(subscribed(&subscriptions), 1);
        assert_eq!(subscriptions.change(false, b"syslog/"), Change::Unchanged);
        assert_eq!(subscriptions.len(), 1);
    }

    #[test]
    fn prefix_that_selects_no_topic_is_rejected() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["syslog", "xflow/3f", "snmptrap/0"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added);
        }
        for prefix in ["syslog/40", "syslog/2A", "syslog/000", "nonsense", "\0", &"s".repeat(200)] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Rejected, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Unchanged, "{prefix}");
        }
        assert_eq!(subscriptions.len(), 3);
    }

    #[test]
    fn number_of_reserved_prefixes_is_bounded() {
        let mut subscriptions = Subscriptions::default();
        let changes: Vec<Change> = (0..MAX_RESERVED + 10)
            .map(|number| subscriptions.change(true, format!("@stream/{number}/").as_bytes()))
            .collect();
        assert_eq!(changes.iter().filter(|change| **change == Change::Added).count(), MAX_RESERVED);
        assert_eq!(changes[MAX_RESERVED..], [Change::Rejected; 10]);
        assert_eq!(subscriptions.change(true, b"syslog/"), Change::Added);
        assert_eq!(subscriptions.change(false, b"@stream/0/"), Change::Removed);
        assert_eq!(subscriptions.change(true, b"@stream/again/"), Change::Added);
        subscriptions.change(false, b"@stream/1/");
        let long = format!("@stream/{}", "x".repeat(MAX_RESERVED_BYTES));
        assert_eq!(subscriptions.change(true, long.as_bytes()), Change::Rejected);
    }

    #[test]
    fn event_prefixes_select_events_but_no_data() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["a", "anomaly", "anomaly/", "anomaly/watch-1/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert!(subscriptions.selects(b"anomaly/watch-1/") && !selects_data(prefix.as_bytes()), "{prefix}");
            assert_eq!(subscribed(&subscriptions), 0, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Removed, "{prefix}");
        }
        for prefix in ["anomalies", "anomaly/\0".repeat(20).as_str(), "b"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Rejected, "{prefix}");
        }
        assert_eq!(subscriptions.change(true, b""), Change::Added);
        assert!(subscriptions.selects(b"anomaly/watch-1/"));
        let changes: Vec<Change> = (0..MAX_RESERVED + 10)
            .map(|number| subscriptions.change(true, format!("anomaly/{number}/").as_bytes()))
            .collect();
        assert_eq!(changes[MAX_RESERVED..], [Change::Rejected; 10]);
    }

    #[test]
    fn status_is_wanted_while_a_prefix_selects_it() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["", "s", "st", "status/", "status/storer.default.m.00/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert!(subscriptions.wants_status(), "{prefix}");
            assert_eq!(is_of_status_only(prefix.as_bytes()), prefix.len() > 1, "{prefix}");
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Unchanged, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Removed, "{prefix}");
            assert!(!subscriptions.wants_status() && subscriptions.len() == 0, "{prefix}");
        }
        for prefix in ["syslog/", "sy", "xflow/", "anomaly/", "@stream/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
            assert!(!subscriptions.wants_status() && !is_of_status_only(prefix.as_bytes()), "{prefix}");
        }
        assert_eq!(subscriptions.change(true, b"statuses"), Change::Rejected);
        let long = format!("status/{}", "x".repeat(MAX_RESERVED_BYTES));
        assert_eq!(subscriptions.change(true, long.as_bytes()), Change::Rejected);
        let changes: Vec<Change> = (0..MAX_RESERVED + 10)
            .map(|number| subscriptions.change(true, format!("status/{number}").as_bytes()))
            .collect();
        assert_eq!(changes[MAX_RESERVED..], [Change::Rejected; 10]);
    }

    #[test]
    fn announcements_are_the_only_reserved_topics_to_subscribe_to() {
        let mut subscriptions = Subscriptions::default();
        for prefix in ["@", "@s", "@stream", "@stream/", "@stream/wire-1/"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Added, "{prefix}");
        }
        for prefix in ["@r", "@relay", "@relay/", "@relay/hold/", "@streams", "@@", "@\0"] {
            assert_eq!(subscriptions.change(true, prefix.as_bytes()), Change::Rejected, "{prefix}");
            assert_eq!(subscriptions.change(false, prefix.as_bytes()), Change::Unchanged, "{prefix}");
        }
        assert_eq!((subscriptions.len(), subscribed(&subscriptions)), (5, 0));
    }
}
