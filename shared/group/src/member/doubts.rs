//! Records that a former owner of a shard may have handled, and that are no longer retained.
//!
//! ```text
//! covered ═══) gap, not retained, before the end of a doubt (═══ delivery goes on
//!              └ left behind ── the doubt is over ─▶ lost, if nobody has handled it
//! ```
//!
//! The coordinator knows the doubts, and each grant lists those about the member's shards.

use sekiwake_record::Topic;

use super::{GiveUp, Member, Ownership};
use crate::{
    BootTime, MAX_NUMBER, Stream,
    time::nanos,
    wire::{Doubt, Grant},
};

/// The doubts about the member's shards, as the newest grant lists them.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    list: Vec<Doubt>,
    at: BootTime,
}

impl Doubts {
    /// As a renewal reports them, for a coordinator that does not know them.
    pub(super) fn reported(&self, now: BootTime) -> Vec<Doubt> {
        let report = |doubt: &Doubt| {
            let age_ns = doubt.age_ns.saturating_add(nanos(now - self.at));
            Doubt { age_ns, ..doubt.clone() }
        };
        self.list.iter().map(report).collect()
    }

    /// Before where records are in doubt, or cannot be known.
    fn end(&self, stream: &Stream, topic: Topic, is_unknowable: bool) -> u64 {
        let about = self.list.iter().filter(|doubt| doubt.is_unknowable == is_unknowable);
        let ends = about.filter(|doubt| doubt.topics.contains(&topic)).map(|doubt| {
            let Some(listed) = doubt.ends.iter().find(|ends| ends.stream == *stream) else { return MAX_NUMBER };
            let end = listed.positions.iter().find(|position| position.topic == topic);
            end.map_or(0, |end| end.sequence.0)
        });
        ends.max().unwrap_or(0)
    }
}

impl<B> Member<B> {
    /// Takes the doubts of a grant, and counts what is missing where one is over.
    pub(super) fn take_doubts(&mut self, now: BootTime, grant: &Grant) {
        self.doubts = Doubts { list: grant.doubts.clone(), at: now };
        for index in 0..self.streams.len() {
            for shard in 0..self.ownership.len() {
                let before = self.streams[index].positions[shard].undecided;
                let Ownership::Owned(generation) = self.ownership[shard] else { continue };
                let topic = self.topic(shard);
                if before > 0 && self.doubts.end(&self.streams[index].stream, topic, false) < before {
                    self.streams[index].positions[shard].undecided = 0;
                    self.give_up_known(index, topic, generation, before, GiveUp::NotRetained);
                }
            }
        }
    }

    /// Gives up what is owed below `end`, except for what is in doubt: delivery goes on behind it.
    /// Returns whether there was anything.
    pub(super) fn give_up_known(
        &mut self,
        index: usize,
        topic: Topic,
        generation: u64,
        end: u64,
        reason: GiveUp,
    ) -> bool {
        let shard = topic.shard.index();
        let stream = &self.streams[index].stream;
        let [doubt, unknown] =
            [false, true].map(|is_unknowable| self.doubts.end(stream, topic, is_unknowable).min(end));
        let mut has_changed = false;
        if doubt > self.streams[index].positions[shard].undecided {
            has_changed = self.leave_in_doubt(index, topic, generation, doubt);
        }
        has_changed |= self.give_up(index, topic, generation, unknown, GiveUp::Unknown);
        has_changed | self.give_up(index, topic, generation, end, reason)
    }

    fn leave_in_doubt(&mut self, index: usize, topic: Topic, generation: u64, doubt: u64) -> bool {
        self.deliver_ready(index, topic, generation);
        let shard = topic.shard.index();
        let before = self.streams[index].positions[shard].in_doubt();
        loop {
            let position = &mut self.streams[index].positions[shard];
            let Some(gap) = position.gaps().next().filter(|gap| gap.from < doubt) else { break };
            if position.received() == Some(gap.from) {
                if !position.covered.has_room() {
                    // Too many gaps: this one is not left for later.
                    self.give_up(index, topic, generation, gap.to.min(doubt), GiveUp::Unknown);
                    continue;
                }
                position.leave_behind(gap.to.min(doubt));
            }
            position.undecided = gap.to.min(doubt);
            self.deliver_ready(index, topic, generation);
        }
        self.streams[index].positions[shard].in_doubt() > before
    }
}
