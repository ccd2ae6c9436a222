//! What became of the selected datagrams, for the last line.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Value, json};

use super::outstanding::Place;

/// The sums of a replay.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Stored datagrams examined.
    pub(super) read: u64,
    /// Those that the filters selected.
    pub(super) matched: u64,
    /// Of all destinations.
    pub(super) delivered: Delivered,
    /// Sent unchanged although `--shift-time` is set.
    pub(super) unshifted: u64,
    /// Sent at least 100 ms after their time.
    pub(super) late: u64,
    /// How much longer the replay took because the destinations did not take more.
    pub(super) delayed: Duration,
    /// How often a destination that answers with ICMP errors went down: some datagrams may be lost.
    pub(super) outages: u64,
    /// Damaged entries in the files, which were skipped.
    pub(super) damaged: u64,
    /// Files and folders that could not be read.
    pub(super) unreadable: u64,
    pub(super) elapsed: Duration,
    /// `None`: everything was sent or dropped.
    pub(super) next: Option<Place>,
}

/// What destinations did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) sent: u64,
    /// Left out by the filters of destinations.
    pub(super) filtered: u64,
    pub(super) dropped: BTreeMap<String, u64>,
}

impl Delivered {
    /// Adds what one destination did. What a stop left unsent is sent when the replay is continued.
    pub(super) fn add(&mut self, status: &Value) {
        let counts = |part: &str| status[part].as_object().into_iter().flatten();
        self.sent += status["sent"].as_u64().unwrap_or_default();
        self.filtered += counts("filtered_out").filter_map(|(_, count)| count.as_u64()).sum::<u64>();
        for (reason, count) in counts("dropped").filter(|(reason, _)| *reason != "shutdown") {
            *self.dropped.entry(reason.clone()).or_default() += count.as_u64().unwrap_or_default();
        }
    }

    fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl Account {
    /// Whether everything that was selected was sent, as far as that can be known.
    pub(super) fn is_complete(&self) -> bool {
        self.next.is_none()
            && self.delivered.dropped_in_all() == 0
            && self.damaged + self.unreadable + self.outages == 0
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "read": self.read,
            "matched": self.matched,
            "sent": self.delivered.sent,
            "filtered_out": self.delivered.filtered,
            "dropped": self.delivered.dropped_in_all(),
            "dropped_by_reason": self.delivered.dropped,
            "not_shifted": self.unshifted,
            "late": self.late,
            "delayed_seconds": self.delayed.as_secs_f64(),
            "outages": self.outages,
            "damaged": self.damaged,
            "unreadable": self.unreadable,
            "seconds": self.elapsed.as_secs_f64(),
            "continue": self.next.map(|next| next.to_string()),
        })
    }
}

/// The last line.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Account { read, matched, delivered, elapsed, .. } = self;
        write!(f, "read {read}, matched {matched}, sent {}, dropped {}", delivered.sent, delivered.dropped_in_all())?;
        if !delivered.dropped.is_empty() {
            let reasons: Vec<String> =
                delivered.dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            write!(f, " ({})", reasons.join(", "))?;
        }
        let others = [
            ("filtered out", delivered.filtered),
            ("not shifted", self.unshifted),
            ("late", self.late),
            ("outages", self.outages),
            ("damaged", self.damaged),
            ("unreadable", self.unreadable),
        ];
        for (name, count) in others.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, ", {name} {count}")?;
        }
        if !self.delayed.is_zero() {
            write!(f, ", delayed by {:.1} s", self.delayed.as_secs_f64())?;
        }
        write!(f, ", in {:.1} s; ", elapsed.as_secs_f64())?;
        match &self.next {
            Some(next) => write!(f, "continue with {next}"),
            None => f.write_str("complete"),
        }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_record::WallTime;

    use super::*;

    #[test]
    fn last_line_says_what_happened_and_where_to_continue() {
        let mut account =
            Account { read: 120, matched: 100, elapsed: Duration::from_millis(1500), ..Account::default() };
        account.delivered.add(&json!({ "sent": 100, "dropped": {}, "filtered_out": {} }));
        assert_eq!(account.to_string(), "read 120, matched 100, sent 100, dropped 0, in 1.5 s; complete");
        assert!(account.is_complete());
        account.delivered.add(&json!({
            "sent": 80, "dropped": { "too_big": 2, "refused": 1, "shutdown": 9 }, "filtered_out": { "source": 8 },
        }));
        account.next = Some(Place { from: WallTime::from_nanos(1_795_615_200_000_000_001), skip: 1 });
        assert_eq!(
            account.to_string(),
            "read 120, matched 100, sent 180, dropped 3 (refused 1, too_big 2), filtered out 8, in 1.5 s; \
             continue with --from 2026-11-25T14:00:00.000000001Z --skip 1"
        );
        assert!(!account.is_complete());
        assert_eq!(account.to_json()["continue"], "--from 2026-11-25T14:00:00.000000001Z --skip 1");
    }
}
