//! The fate of every record.

use std::collections::BTreeMap;

use crate::GiveUp;

/// How often each record was acted on, and whether it was given up.
#[derive(Default)]
pub(super) struct Ledger {
    /// By stream and topic, then by sequence.
    records: BTreeMap<(usize, usize), Vec<Fate>>,
    pub(super) given_up: u64,
}

#[derive(Clone, Copy, Default)]
struct Fate {
    acted: u16,
    /// Counted as lost, exactly.
    given_up: u16,
    /// Counted as `unknown`.
    unknown: u16,
}

/// The sums of a ledger.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) published: u64,
    pub(super) duplicates: u64,
    pub(super) lost: u64,
    pub(super) lost_silently: u64,
    pub(super) given_up_wrongly: u64,
    pub(super) given_up_twice: u64,
    pub(super) unknown: u64,
    /// Counted as `unknown`, and sent, or counted by another member before.
    pub(super) unknown_wrongly: u64,
}

impl Ledger {
    pub(super) fn published(&mut self, stream: usize, topic: usize, count: u64) {
        let records = self.records.entry((stream, topic)).or_default();
        records.resize(records.len() + count as usize, Fate::default());
    }

    pub(super) fn acted(&mut self, stream: usize, topic: usize, from: u64, to: u64) {
        self.each(stream, topic, from, to, |fate| fate.acted += 1);
    }

    pub(super) fn gave_up(&mut self, stream: usize, topic: usize, from: u64, to: u64, reason: GiveUp) {
        self.given_up += to - from;
        self.each(stream, topic, from, to, |fate| match reason {
            GiveUp::Unknown => fate.unknown += 1,
            GiveUp::NotRetained | GiveUp::StreamGone => fate.given_up += 1,
        });
    }

    fn each(&mut self, stream: usize, topic: usize, from: u64, to: u64, mut change: impl FnMut(&mut Fate)) {
        let records = self.records.get_mut(&(stream, topic)).expect("only published records are handled");
        records[from as usize..to as usize].iter_mut().for_each(&mut change);
    }

    /// The sums over the selected streams, and the worst record: lost and not given up, or else
    /// lost, or else sent twice.
    pub(super) fn sums(&self, counts: impl Fn(usize) -> bool) -> (Sums, Option<(usize, usize, usize)>) {
        let mut sums = Sums::default();
        let mut worst = None;
        for (&(stream, topic), records) in self.records.iter().filter(|((stream, _), _)| counts(*stream)) {
            for (sequence, fate) in records.iter().enumerate() {
                sums.published += 1;
                sums.duplicates += u64::from(fate.acted.saturating_sub(1));
                sums.lost += u64::from(fate.acted == 0);
                sums.lost_silently += u64::from(fate.acted == 0 && fate.given_up + fate.unknown == 0);
                sums.given_up_wrongly += u64::from(fate.acted > 0 && fate.given_up > 0);
                sums.given_up_twice += u64::from(fate.given_up > 1);
                sums.unknown += u64::from(fate.unknown > 0);
                sums.unknown_wrongly += u64::from(fate.unknown > 0 && fate.acted + fate.given_up + fate.unknown > 1);
                let severity = match (fate.acted, fate.given_up + fate.unknown) {
                    (0, 0) => 4,
                    (1.., 1..) | (_, 2..) => 3,
                    (0, 1) => 2,
                    (1, 0) => continue,
                    _ => 1,
                };
                if worst.is_none_or(|(worst, _)| severity > worst) {
                    worst = Some((severity, (stream, topic, sequence)));
                }
            }
        }
        (sums, worst.map(|(_, place)| place))
    }
}
