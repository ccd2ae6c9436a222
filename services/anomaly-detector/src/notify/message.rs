//! Formats an event for Alertmanager, for webhooks, and as a line of syslog.

use std::time::Duration;

use sekiwake_record::WallTime;
use serde_json::{Map, Value, json};

use crate::detect::{Event, EventKind, EventState, Reason};

/// The sender of notifications.
#[derive(Clone, Debug)]
pub struct About {
    /// The detector: `<group>/<member>`.
    pub detector: String,
    /// The host, for syslog.
    pub host: String,
    /// The length of an interval.
    pub interval: Duration,
}

/// A JSON object for webhooks and the bus. Its field names are a public interface. Incoming
/// webhooks of chats show its `text` (Slack, Mattermost, Rocket.Chat) or `content` (Discord), and
/// refuse objects without it.
pub(crate) fn object(event: &Event, about: &About) -> Value {
    let bands = event.bands;
    let text = chat_text(event, about);
    json!({
        "text": text,
        "content": text,
        "id": event.id,
        "status": status(event.state),
        "kind": event.kind.as_str(),
        "series": event.series,
        "source": event.source,
        "summary": summary(event),
        "description": description(event, about),
        "starts_at": time(event.since),
        "ends_at": (event.state == EventState::Resolved).then(|| time(event.start)),
        "reason": event.reason.map(|reason| match reason {
            Reason::Recovered => "recovered",
            Reason::NewLevel => "new_level",
            Reason::Forgotten => "forgotten",
            Reason::Reset => "reset",
        }),
        "interval_start": time(event.start),
        "interval_end": time(event.end),
        "interval_seconds": about.interval.as_secs_f64(),
        "count": event.count,
        "average": bands.map(|bands| bands.average),
        "lower": bands.map(|bands| bands.lower_shown()),
        "upper": bands.map(|bands| bands.upper),
        "usual_pause_seconds": event.usual_pause_seconds,
        "detector": about.detector,
    })
}

/// One line for people.
fn chat_text(event: &Event, about: &About) -> String {
    let summary = summary(event);
    let description = description(event, about);
    let is_the_same = summary == description;
    let state = status(event.state);
    if is_the_same { format!("[{state}] {summary}") } else { format!("[{state}] {summary}: {description}") }
}

/// An alert of Alertmanager's API v2. Its labels are its identity, the same for start and end.
pub(super) fn alert(event: &Event, about: &About, more: &[(String, String)], ends_at: WallTime) -> Value {
    let name = match event.kind {
        EventKind::High => "SyslogRateHigh",
        EventKind::Low => "SyslogRateLow",
        EventKind::SilentSource => "SyslogSourceSilent",
    };
    let mut labels = Map::new();
    let mut label = |name: &str, value: String| drop(labels.insert(name.to_owned(), Value::String(value)));
    label("alertname", name.to_owned());
    label("severity", "warning".to_owned());
    label("service", "sekiwake".to_owned());
    label("kind", event.kind.as_str().to_owned());
    label("series", event.series.clone());
    if let Some(source) = event.source {
        label("source", source.to_string());
    }
    more.iter().for_each(|(name, value)| label(name, value.clone()));
    let mut annotations = Map::new();
    let mut annotation = |name: &str, value: String| drop(annotations.insert(name.to_owned(), Value::String(value)));
    annotation("summary", summary(event));
    annotation("description", description(event, about));
    annotation("count", event.count.to_string());
    if let Some(bands) = event.bands {
        annotation("average", rounded(bands.average));
        annotation("lower", rounded(bands.lower_shown()));
        annotation("upper", rounded(bands.upper));
    }
    annotation("detector", about.detector.clone());
    json!({ "labels": labels, "annotations": annotations, "startsAt": time(event.since), "endsAt": time(ends_at) })
}

/// A line of RFC 5424 with structured data (32473 is the enterprise number for examples, RFC 5612;
/// Sekiwake has no number of its own).
pub(super) fn syslog(event: &Event, about: &About, priority: u8, now: WallTime) -> Vec<u8> {
    let mut elements = String::new();
    let mut element = |name: &str, value: &str| {
        let escaped: String = value
            .chars()
            .flat_map(|character| match character {
                '"' | '\\' | ']' => vec!['\\', character],
                character if character.is_control() => Vec::new(),
                character => vec![character],
            })
            .collect();
        elements.push_str(&format!(" {name}=\"{escaped}\""));
    };
    element("id", &event.id);
    element("status", status(event.state));
    element("kind", event.kind.as_str());
    element("series", &event.series);
    element("count", &event.count.to_string());
    if let Some(bands) = event.bands {
        element("average", &rounded(bands.average));
        element("lower", &rounded(bands.lower_shown()));
        element("upper", &rounded(bands.upper));
    }
    element("startsAt", &time(event.since));
    let host = if about.host.is_empty() { "-" } else { &about.host };
    // At most six digits of a second (RFC 5424 §6.2.3).
    let at = time(WallTime::from_nanos(now.as_nanos() / 1000 * 1000));
    let at = at.replace("000Z", "Z");
    let summary = summary(event);
    format!("<{priority}>1 {at} {host} sekiwake-anomaly-detector - - [sekiwake@32473{elements}] {summary}").into_bytes()
}

fn status(state: EventState) -> &'static str {
    match state {
        EventState::Firing => "firing",
        EventState::Resolved => "resolved",
    }
}

fn subject(event: &Event) -> String {
    match event.series.split_once('/') {
        Some(("severity", "none")) => "syslog without a PRI".to_owned(),
        Some(("severity", severity)) => format!("syslog of severity {severity}"),
        Some((_, source)) => format!("syslog from {source}"),
        None => "syslog".to_owned(),
    }
}

fn summary(event: &Event) -> String {
    let subject = subject(event);
    match (event.state, event.kind, event.reason) {
        (EventState::Resolved, _, Some(Reason::Forgotten)) => {
            format!("{subject}: no longer tracked, evicted for other sources")
        }
        (EventState::Resolved, _, Some(Reason::Reset)) => {
            format!("{subject}: rate unknown, counting restarted with another interval")
        }
        (EventState::Resolved, _, Some(Reason::NewLevel)) => {
            format!("{subject}: rate has stayed at a new level, which is the usual one from now on")
        }
        (EventState::Firing, EventKind::High, _) => format!("more {subject} than usual"),
        (EventState::Firing, EventKind::Low, _) if event.count == 0 => format!("no {subject} received"),
        (EventState::Firing, EventKind::Low, _) => format!("less {subject} than usual"),
        (EventState::Firing, EventKind::SilentSource, _) => format!("no {subject} received: source is silent"),
        (EventState::Resolved, EventKind::SilentSource, _) => format!("{subject}: source is sending again"),
        (EventState::Resolved, ..) => format!("{subject}: rate is within the expected range again"),
    }
}

fn description(event: &Event, about: &About) -> String {
    if let Some(pause) = event.usual_pause_seconds {
        let seconds = (event.end - event.start).as_secs();
        return format!("silent for {seconds} s, longest recent pause {} s", rounded(pause));
    }
    let Some(bands) = event.bands else { return summary(event) };
    format!(
        "{} messages in {} s, expected {} to {}, average {}",
        event.count,
        rounded(about.interval.as_secs_f64()),
        rounded(bands.lower_shown()),
        rounded(bands.upper),
        rounded(bands.average)
    )
}

fn time(time: WallTime) -> String {
    sekiwake_json::timestamp(time.as_nanos())
}

/// With at most one decimal digit.
fn rounded(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Bands;

    fn event() -> Event {
        Event {
            id: "total/high/1".to_owned(),
            kind: EventKind::High,
            state: EventState::Firing,
            reason: None,
            series: "total".to_owned(),
            source: None,
            start: WallTime::from_nanos(1_795_615_200_000_000_000),
            end: WallTime::from_nanos(1_795_615_260_000_000_000),
            since: WallTime::from_nanos(1_795_615_200_000_000_000),
            count: 900,
            bands: Some(Bands { average: 100.25, lower: -3.0, upper: 110.0 }),
            usual_pause_seconds: None,
        }
    }

    fn about() -> About {
        About {
            detector: "anomaly-detector.default/a".to_owned(),
            host: "host1".to_owned(),
            interval: Duration::from_secs(60),
        }
    }

    #[test]
    fn syslog_line_conforms_to_rfc_5424() {
        let mut event = event();
        let now = WallTime::from_nanos(1_795_615_265_123_456_789);
        event.series = "sou\"rce]\n\\".to_owned();
        let line = String::from_utf8(syslog(&event, &about(), 28, now)).unwrap();
        assert!(
            line.starts_with(
                "<28>1 2026-11-25T14:01:05.123456Z host1 sekiwake-anomaly-detector - - [sekiwake@32473 id="
            ),
            "{line}"
        );
        assert!(line.contains("series=\"sou\\\"rce\\]\\\\\"") && !line.contains('\n'), "{line}");
        let data = sekiwake_identify::syslog::structured_data(line.as_bytes()).unwrap();
        assert!(line[data.end..].starts_with(" more "), "{line}");
    }

    #[test]
    fn alert_and_its_end_have_the_same_labels() {
        let more = [("site".to_owned(), "ams".to_owned())];
        let firing = alert(&event(), &about(), &more, WallTime::EPOCH);
        let resolved = Event { state: EventState::Resolved, reason: Some(Reason::Recovered), count: 100, ..event() };
        assert_eq!(firing["labels"], alert(&resolved, &about(), &more, WallTime::EPOCH)["labels"]);
        assert_eq!(firing["labels"]["alertname"], "SyslogRateHigh");
        assert_eq!(firing["labels"]["site"], "ams");
        assert_eq!(firing["annotations"]["description"], "900 messages in 60 s, expected 0 to 110, average 100.2");
        assert_eq!(firing["startsAt"], "2026-11-25T14:00:00.000000000Z");
    }

    #[test]
    fn object_has_the_documented_fields() {
        let object = object(&event(), &about());
        assert_eq!(
            (&object["status"], &object["kind"], &object["count"]),
            (&"firing".into(), &"high".into(), &900.into())
        );
        assert_eq!((&object["ends_at"], &object["lower"]), (&Value::Null, &0.0.into()));
        let text = "[firing] more syslog than usual: 900 messages in 60 s, expected 0 to 110, average 100.2";
        assert_eq!((&object["text"], &object["content"]), (&text.into(), &text.into()));
    }
}
