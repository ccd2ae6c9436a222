//! Events: anomalies that a service reports to any subscriber.
//!
//! Topic `anomaly/<publisher>/`, followed by one frame: a JSON object of at most 16 KiB. Events
//! have no sequence numbers and are neither retained nor retransmitted: a subscriber that is not
//! connected misses them.
//!
//! ```text
//! anomaly/<publisher>/ | {"…": …}        publisher: [A-Za-z0-9._-]{1,63}
//! ```

mod topic;

use sekiwake_record::Name;

use crate::status::is_status_topic;

pub use topic::EVENT_PREFIX;
pub(crate) use topic::{event_publisher, is_event_topic};

/// The largest event, bytes.
pub const MAX_EVENT_BYTES: usize = 16 << 10;

/// A received event, or a part of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `anomaly/<publisher>/`, or the topic of a status.
    pub topic: String,
    /// A JSON object on one line.
    pub json: String,
}

impl Event {
    /// The publisher of an event; `None` for a status.
    pub fn publisher(&self) -> Option<Name> {
        event_publisher(self.topic.as_bytes())
    }
}

/// The event of a message, unless it is malformed.
pub(crate) fn event(topic: &[u8], body: &[u8]) -> Option<Event> {
    if !(is_event_topic(topic) || is_status_topic(topic)) || body.len() > MAX_EVENT_BYTES {
        return None;
    }
    let topic = std::str::from_utf8(topic).ok()?.to_owned();
    // Serialised again, so that it is on one line.
    Some(Event { topic, json: serde_json::to_string(&object(body)?).ok()? })
}

/// The object that an event is.
pub(crate) fn object(json: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_an_object_on_one_line() {
        let text = |body: &[u8]| event(b"anomaly/w/", body).map(|event| event.json);
        assert_eq!(text(b"{ \"a\" :\n [1, \"\\n\\u001b\"]\r\n}").as_deref(), Some(r#"{"a":[1,"\n\u001b"]}"#));
        let deep = ["{\"a\":".repeat(1_000), "1".to_owned(), "}".repeat(1_000)].concat();
        for body in ["", "[]", "1", "null", "{", "{}{}", "{\"a\":\"\n\"}", "{\"a\":1e999}", &deep] {
            assert_eq!(text(body.as_bytes()), None, "{body}");
        }
        assert_eq!(text(b"{\"a\":\"\xff\"}"), None);
        assert_eq!(text(&[b"{}".as_slice(), &[b' '; MAX_EVENT_BYTES]].concat()), None);
        assert_eq!(event(b"anomaly//", b"{}"), None);
    }
}
