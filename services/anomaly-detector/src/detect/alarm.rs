//! One alarm when it begins, one recovery when it is over, whatever number of intervals lies between.

use super::{EventKind, bands::Verdict};

/// What became of an alarm with one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It begins.
    Fired,
    /// It is over.
    Recovered,
}

/// The alarm of one series and kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Alarm {
    /// The interval with which it began, while it is on.
    since: Option<u64>,
    /// Intervals in a row that speak for a change.
    run: u32,
}

impl Alarm {
    /// The interval with which it began, while it is on.
    pub fn since(&self) -> Option<u64> {
        self.since
    }

    /// Takes the verdict of an interval. Intervals that were not judged say nothing, neither for nor against.
    pub fn take(&mut self, kind: EventKind, verdict: Verdict, interval: u64, consecutive: u32) -> Option<Change> {
        let anomalous = match verdict {
            Verdict::High => kind == EventKind::High,
            Verdict::Low => kind == EventKind::Low,
            Verdict::Normal => false,
            Verdict::WarmUp { .. } | Verdict::Unknown => return None,
        };
        if anomalous == self.since.is_some() {
            self.run = 0;
            return None;
        }
        self.run = self.run.saturating_add(1);
        if self.run < consecutive.max(1) {
            return None;
        }
        self.run = 0;
        if anomalous {
            self.since = Some(interval);
            return Some(Change::Fired);
        }
        self.since = None;
        Some(Change::Recovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(kind: EventKind, consecutive: u32, verdicts: &[Verdict]) -> Vec<(u64, Change)> {
        let mut alarm = Alarm::default();
        (0..).zip(verdicts).filter_map(|(at, &v)| alarm.take(kind, v, at, consecutive).map(|c| (at, c))).collect()
    }

    #[test]
    fn one_alarm_and_one_recovery() {
        use Verdict::{High, Normal};
        let got = changes(EventKind::High, 1, &[Normal, High, High, High, Normal, Normal]);
        assert_eq!(got, [(1, Change::Fired), (4, Change::Recovered)]);
    }

    #[test]
    fn consecutive_intervals_are_asked_both_ways() {
        use Verdict::{High, Normal, Unknown};
        let got = changes(EventKind::High, 2, &[High, Normal, High, Unknown, High, Normal, High, Normal, Normal]);
        assert_eq!(got, [(4, Change::Fired), (8, Change::Recovered)]);
    }

    #[test]
    fn from_high_to_low_is_a_recovery_and_an_alarm() {
        use Verdict::{High, Low};
        assert_eq!(changes(EventKind::High, 1, &[High, Low]), [(0, Change::Fired), (1, Change::Recovered)]);
        assert_eq!(changes(EventKind::Low, 1, &[High, Low]), [(1, Change::Fired)]);
    }
}
