//! The fate of every record.

use std::collections::BTreeMap;

/// How often each record was acted on and counted as lost, by publisher and shard.
#[derive(Default)]
pub(super) struct Ledger {
    records: BTreeMap<(usize, usize), Vec<Fate>>,
    pub(super) lost: u64,
}

#[derive(Clone, Copy, Default)]
struct Fate {
    acted: u16,
    lost: u16,
}

impl Ledger {
    /// Returns the first of the new records.
    pub(super) fn published(&mut self, publisher: usize, shard: usize, count: u32) -> u64 {
        let records = self.records.entry((publisher, shard)).or_default();
        let first = records.len();
        records.resize(first + count as usize, Fate::default());
        first as u64
    }

    /// The number of records published.
    pub(super) fn next(&self, publisher: usize, shard: usize) -> u64 {
        self.records.get(&(publisher, shard)).map_or(0, |records| records.len() as u64)
    }

    pub(super) fn acted(&mut self, publisher: usize, shard: usize, from: u64, to: u64) {
        self.each(publisher, shard, from, to, |fate| fate.acted += 1);
    }

    pub(super) fn lost(&mut self, publisher: usize, shard: usize, from: u64, to: u64) {
        self.lost += to - from;
        self.each(publisher, shard, from, to, |fate| fate.lost += 1);
    }

    fn each(&mut self, publisher: usize, shard: usize, from: u64, to: u64, mut change: impl FnMut(&mut Fate)) {
        let records = self.records.get_mut(&(publisher, shard)).expect("only published records are handled");
        records[from as usize..to as usize].iter_mut().for_each(&mut change);
    }

    /// Records acted on more than once, those of them that were acted on and counted as lost, and
    /// the first that was neither.
    pub(super) fn sums(&self) -> (u64, u64, Option<(usize, usize, usize)>) {
        let (mut doubled, mut both, mut missing) = (0, 0, None);
        for (&(publisher, shard), records) in &self.records {
            for (sequence, fate) in records.iter().enumerate() {
                doubled += u64::from(fate.acted.saturating_sub(1));
                both += u64::from(fate.acted > 0 && fate.lost > 0) + u64::from(fate.lost.saturating_sub(1));
                if fate.acted + fate.lost == 0 {
                    missing.get_or_insert((publisher, shard, sequence));
                }
            }
        }
        (doubled, both, missing)
    }
}
