//! Which datagrams are on their way, and so from where to continue.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use sekiwake_record::WallTime;

/// A place in the selection: the datagrams from a capture time on, without the first few of exactly
/// that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) from: WallTime,
    pub(super) skip: u64,
}

impl Place {
    /// The place behind a datagram that is at this one and was captured at this time.
    pub(super) fn after(self, captured_at: WallTime) -> Place {
        let skip = if captured_at == self.from { self.skip + 1 } else { 1 };
        Place { from: captured_at, skip }
    }
}

/// As options of the command.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--from {}", time(self.from))?;
        if self.skip > 0 { write!(f, " --skip {}", self.skip) } else { Ok(()) }
    }
}

/// A capture time with all its digits.
pub(super) fn time(at: WallTime) -> String {
    match Timestamp::from_nanosecond(at.as_nanos().into()) {
        Ok(at) => format!("{at:.9}"),
        Err(_) => at.as_nanos().to_string(),
    }
}

/// The batches that some destination has yet to send. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Outstanding(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    next: u64,
    /// The first datagrams of the batches.
    places: BTreeMap<u64, Place>,
}

/// Lasts until every destination has sent the batch, or has counted it as dropped.
pub(super) struct OnItsWay {
    number: u64,
    all: Outstanding,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.all.lock().places.remove(&self.number);
    }
}

impl Outstanding {
    /// A batch that begins at this place is on its way.
    pub(super) fn add(&self, place: Place) -> OnItsWay {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.places.insert(number, place);
        OnItsWay { number, all: self.clone() }
    }

    /// The first datagram on its way.
    pub(super) fn first(&self) -> Option<Place> {
        self.lock().places.values().min().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().places.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_counts_datagrams_of_equal_time() {
        let at = WallTime::from_nanos;
        let mut place = Place { from: at(5), skip: 0 };
        for (captured_at, skip) in [(5, 1), (5, 2), (7, 1), (8, 1), (8, 2)] {
            place = place.after(at(captured_at));
            assert_eq!(place, Place { from: at(captured_at), skip });
        }
        let place = Place { from: at(1_795_615_200_000_000_001), skip: 2 };
        assert_eq!(place.to_string(), "--from 2026-11-25T14:00:00.000000001Z --skip 2");
    }

    #[test]
    fn first_place_on_its_way_is_where_to_continue() {
        let all = Outstanding::default();
        let place = |nanos| Place { from: WallTime::from_nanos(nanos), skip: 0 };
        let first = all.add(place(3));
        let second = all.add(place(4));
        drop(second);
        assert_eq!(all.first(), Some(place(3)));
        drop(first);
        assert!(all.is_empty() && all.first().is_none());
    }
}
