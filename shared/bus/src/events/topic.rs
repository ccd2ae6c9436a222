//! The topics of events.

use sekiwake_record::Name;

/// The beginning of every event topic.
pub const EVENT_PREFIX: &str = "anomaly/";

/// Whether this is the topic of an event: the prefix, a name, and a slash.
pub(crate) fn is_event_topic(topic: &[u8]) -> bool {
    event_publisher(topic).is_some()
}

/// The publisher in an event topic.
pub(crate) fn event_publisher(topic: &[u8]) -> Option<Name> {
    let name = topic.strip_prefix(EVENT_PREFIX.as_bytes())?.strip_suffix(b"/")?;
    Name::new(std::str::from_utf8(name).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_topic_is_prefix_name_and_slash() {
        for topic in ["anomaly/watch-1/", "anomaly/a/", "anomaly/A._-9/"] {
            assert!(is_event_topic(topic.as_bytes()), "{topic}");
        }
        let long = format!("anomaly/{}/", "x".repeat(64));
        for topic in
            ["", "anomaly/", "anomaly//", "anomaly/a", "anomaly/a/b/", "anomaly/a b/", "Anomaly/a/", "syslog/00", &long]
        {
            assert!(!is_event_topic(topic.as_bytes()), "{topic}");
        }
        assert!(!is_event_topic(b"anomaly/\xff/"));
    }
}
