//! Rates: differences of counts over about ten seconds of the service's own clock.

use std::collections::VecDeque;

/// The time over which a rate is measured, nanoseconds.
const WINDOW_NS: u64 = 10_500_000_000;
/// The most samples: one per second, and one at each end.
const MAX_SAMPLES: usize = 12;
/// The most counts of a sample.
const MAX_COUNTS: usize = 64;

/// The counts of a part over the last seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    at_ns: u64,
    counts: Vec<(String, u64)>,
}

impl History {
    /// Adds the counts of this time. A time that does not follow the last one begins anew.
    pub(super) fn add(&mut self, at_ns: u64, mut counts: Vec<(String, u64)>) {
        if self.samples.back().is_some_and(|last| last.at_ns >= at_ns) {
            self.samples.clear();
        }
        counts.truncate(MAX_COUNTS);
        self.samples.push_back(Sample { at_ns, counts });
        while self.samples.len() > MAX_SAMPLES
            || self.samples.front().is_some_and(|first| at_ns - first.at_ns > WINDOW_NS)
        {
            self.samples.pop_front();
        }
    }

    /// The count of this name in the last sample.
    pub(super) fn last(&self, name: &str) -> u64 {
        self.samples.back().map_or(0, |sample| sample.get(name))
    }

    /// Per second; `None` with fewer than two samples, or if the count has fallen.
    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = (last.at_ns - first.at_ns) as f64 / 1e9;
        let more = last.get(name).checked_sub(first.get(name))?;
        (seconds > 0.0).then(|| more as f64 / seconds)
    }
}

impl Sample {
    fn get(&self, name: &str) -> u64 {
        self.counts.iter().find(|(other, _)| other == name).map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn counted(counts: &[(u64, u64)]) -> History {
        let mut history = History::default();
        for (at, count) in counts {
            history.add(*at, vec![("sent".to_owned(), *count)]);
        }
        history
    }

    #[test]
    fn rate_is_that_of_the_last_ten_seconds() {
        let counts: Vec<(u64, u64)> = (1..=60).map(|n| (n * SECOND, if n < 50 { 0 } else { (n - 50) * 100 })).collect();
        assert_eq!(counted(&counts).rate("sent"), Some(100.0));
        assert_eq!(counted(&counts[..30]).rate("sent"), Some(0.0));
        assert_eq!(counted(&counts).rate("other"), Some(0.0));
    }

    #[test]
    fn rate_needs_two_samples_in_order() {
        assert_eq!(counted(&[(SECOND, 1)]).rate("sent"), None);
        assert_eq!(counted(&[(2 * SECOND, 1), (SECOND, 2)]).rate("sent"), None);
        assert_eq!(counted(&[(SECOND, 2), (2 * SECOND, 1)]).rate("sent"), None);
        assert_eq!(counted(&[(SECOND, 2), (90 * SECOND, 3)]).rate("sent"), None);
    }
}
