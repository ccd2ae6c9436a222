//! Destinations that may have lost the templates unnoticed get them again at an interval, ahead of
//! an exporter's next datagram. An exporter that has sent them itself in the meantime is left out:
//! each extra datagram is a step in its sequence numbers.

use std::{collections::BTreeMap, time::Duration};

use super::Exporters;

/// When each exporter's templates were last sent to each slot that gets them at an interval.
#[derive(Default)]
pub(super) struct Refreshed {
    /// By slot, then by the exporter's index.
    sent_at: BTreeMap<u32, Vec<Duration>>,
    /// These slots, one bit per slot.
    slots: u64,
}

impl Refreshed {
    /// The templates of the exporter at this index are sent to these slots.
    pub(super) fn sent(&mut self, slots: u64, index: u32, now: Duration) {
        if self.slots & slots == 0 {
            return;
        }
        let index = index as usize;
        for (_, times) in self.sent_at.iter_mut().filter(|(slot, _)| slots >> **slot & 1 == 1) {
            if times.len() <= index {
                times.resize(index + 1, now);
            }
            times[index] = now;
        }
    }
}

impl Exporters {
    /// The time from now on, on a clock that never steps. Its zero is of no importance.
    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    /// The destination in this slot, 0 to 63, gets templates at an interval: an exporter's are owed
    /// again if at least `after` has passed since they were last sent to it. With `counts_repeats`,
    /// it has received what the exporters themselves sent: then those that have sent all of their
    /// templates, and data of their options, since then are left out.
    pub fn refresh_slot(&mut self, slot: u32, after: Duration, counts_repeats: bool) {
        let Some(bit) = 1_u64.checked_shl(slot) else { return };
        let now = self.now;
        self.refreshed.slots |= bit;
        let times = self.refreshed.sent_at.entry(slot).or_default();
        for (index, exporter) in self.exporters.indexed_mut() {
            // Nothing is known of the slot before its first call: then nothing is due yet.
            if times.len() <= index {
                times.push(now);
            }
            let is_due = |at: Duration| now.saturating_sub(at) >= after;
            if exporter.sent & bit == 0 || !is_due(times[index]) {
                continue;
            }
            if !counts_repeats || exporter.repeated_at().is_none_or(is_due) {
                exporter.sent &= !bit;
            }
        }
    }
}
