//! Whether the members of a group have the same destinations.
//!
//! ```text
//! equal ── a member has another digest ──▶ differing ── for a minute ──▶ reported
//!   ▲                                          │                            │
//!   └────────── all digests are equal ─────────┴────────────────────────────┘
//! ```
//! Members with different destinations divide the sources between them, so that no destination
//! receives everything. A changed configuration reaches one member after the other, hence the
//! minute. Members without a digest are not compared: they have no destinations, or are of a
//! version that does not send one.

use std::{collections::BTreeSet, time::Duration};

use sekiwake_record::Name;

use crate::{BootTime, wire::MAX_DIFFERING};

/// For how long destinations differ before it is reported.
pub const REPORT_DIFFERENCE_AFTER: Duration = Duration::from_secs(60);

/// Whether the members' digests are equal. Where there is no coordinator, each member has one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    differing_since: Option<BootTime>,
}

impl Agreement {
    /// Compares the digests of all members; 0 is none.
    pub fn compare(&mut self, now: BootTime, digests: impl Iterator<Item = u64>) {
        let mut digests = digests.filter(|digest| *digest != 0);
        let first = digests.next();
        let differ = digests.any(|digest| Some(digest) != first);
        self.differing_since = differ.then(|| self.differing_since.unwrap_or(now));
    }

    /// For how long the digests have differed; `None` if they are equal.
    pub fn differing_for(&self, now: BootTime) -> Option<Duration> {
        self.differing_since.map(|since| now - since)
    }

    /// Whether they have differed for long enough to be reported.
    pub fn is_reported(&self, now: BootTime) -> bool {
        self.differing_for(now).is_some_and(|time| time >= REPORT_DIFFERENCE_AFTER)
    }

    /// The labels of the members whose digests have differed from `own` for long enough to be
    /// reported, eight at most.
    pub fn others<'a>(&self, now: BootTime, own: u64, members: impl Iterator<Item = (u64, &'a Name)>) -> Vec<Name> {
        if own == 0 || !self.is_reported(now) {
            return Vec::new();
        }
        let differing = members.filter(|(digest, _)| ![0, own].contains(digest));
        let labels: BTreeSet<&Name> = differing.map(|(_, label)| label).collect();
        labels.into_iter().take(MAX_DIFFERING).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SECOND;

    fn at(seconds: u32) -> BootTime {
        BootTime::ZERO + seconds * SECOND
    }

    #[test]
    fn lasting_difference_is_reported_after_a_minute() {
        let mut agreement = Agreement::default();
        agreement.compare(at(0), [5, 5].into_iter());
        assert_eq!(agreement.differing_for(at(100)), None);
        agreement.compare(at(100), [5, 7].into_iter());
        assert_eq!(agreement.differing_for(at(110)), Some(10 * SECOND));
        // A third member, with either of the two or another one, does not begin the minute again.
        agreement.compare(at(130), [5, 7, 9].into_iter());
        assert!(!agreement.is_reported(at(159)) && agreement.is_reported(at(160)));
        agreement.compare(at(170), [7].into_iter());
        assert!(!agreement.is_reported(at(170)));
    }

    #[test]
    fn rolling_change_within_a_minute_is_not_reported() {
        let mut agreement = Agreement::default();
        let mut digests = [5; 4];
        for changed in 0..4 {
            agreement.compare(at(15 * changed), digests.into_iter());
            digests[changed as usize] = 7;
            agreement.compare(at(15 * changed), digests.into_iter());
            assert!(!agreement.is_reported(at(15 * changed + 14)), "after {changed}");
        }
        assert_eq!(agreement.differing_for(at(45)), None);
        // The next change has a minute of its own.
        digests[0] = 9;
        agreement.compare(at(70), digests.into_iter());
        assert!(!agreement.is_reported(at(129)) && agreement.is_reported(at(130)));
    }

    #[test]
    fn members_without_a_digest_are_not_compared() {
        let mut agreement = Agreement::default();
        agreement.compare(at(0), [0, 5, 0, 5].into_iter());
        assert_eq!(agreement.differing_for(at(100)), None);
        agreement.compare(at(0), [0, 0].into_iter());
        assert_eq!(agreement.differing_for(at(100)), None);
    }
}
