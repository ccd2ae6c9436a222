//! The shards of a member: the phase of each, and how grants change it.

use std::collections::BTreeSet;

use sekiwake_record::{SHARDS, Shard};

use super::{Member, MemberOutput};
use crate::{
    BootTime, Stream,
    coverage::Coverage,
    wire::{Covered, Grant, Holding, Number, Phase, Role, StreamCoverage, StreamStarts},
};

/// What a member does with a shard, and in which generation. The module head draws the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    None,
    Preparing,
    Owned(u64),
    Releasing(u64),
    Released(u64),
}

impl Ownership {
    pub(super) fn generation(self) -> Option<u64> {
        match self {
            Ownership::Owned(generation) | Ownership::Releasing(generation) | Ownership::Released(generation) => {
                Some(generation)
            }
            Ownership::None | Ownership::Preparing => None,
        }
    }

    fn is_subscribed(self) -> bool {
        matches!(self, Ownership::Preparing | Ownership::Owned(_))
    }
}

impl<B> Member<B> {
    /// The shards that the member acts on while it has a lease, with their generations.
    pub fn owned(&self) -> impl Iterator<Item = (Shard, u64)> {
        self.ownership.iter().enumerate().filter_map(|(index, ownership)| match ownership {
            Ownership::Owned(generation) | Ownership::Releasing(generation) => {
                Some((Shard::new(index as u8)?, *generation))
            }
            _ => None,
        })
    }

    /// Whether the member owns every shard.
    pub fn owns_all(&self) -> bool {
        self.ownership.iter().all(|ownership| matches!(ownership, Ownership::Owned(_)))
    }

    /// The shards, as a renewal reports them.
    pub(super) fn holdings(&self) -> Vec<Holding> {
        let mut holdings = Vec::new();
        for (index, ownership) in self.ownership.iter().enumerate() {
            let phase = match ownership {
                Ownership::None => continue,
                Ownership::Preparing => Phase::Prepared,
                Ownership::Owned(_) | Ownership::Releasing(_) => Phase::Owned,
                Ownership::Released(_) => Phase::Released,
            };
            let Some(shard) = Shard::new(index as u8) else { continue };
            holdings.push(Holding { shard, generation: Number(ownership.generation().unwrap_or(0)), phase });
        }
        holdings
    }

    /// Does what a grant says of a shard; `None` where the grant does not list it.
    pub(super) fn apply(&mut self, now: BootTime, shard: usize, assignment: Option<(Role, u64)>) {
        let ownership = self.ownership[shard];
        match (ownership, assignment) {
            (Ownership::None, None) => {}
            (Ownership::Owned(own), Some((Role::Own, granted))) if own == granted => {}
            (Ownership::Owned(own), Some((Role::Release, granted))) if own == granted => {
                self.begin_release(now, shard, own)
            }
            (Ownership::Releasing(own), Some((Role::Own | Role::Release, granted))) if own == granted => {}
            (Ownership::Released(own), Some((Role::Own | Role::Release, granted))) if own == granted => {
                self.renewals.repeat_release(now);
            }
            (Ownership::Preparing, Some((Role::Prepare, _))) => {}
            (_, None) => self.forget(shard),
            (_, Some((Role::Own, generation))) if generation != self.retired[shard] => self.own(now, shard, generation),
            (_, Some((Role::Prepare, _))) => {
                self.forget(shard);
                self.ownership[shard] = Ownership::Preparing;
                self.outputs.push_back(MemberOutput::Subscribe(self.topic(shard)));
                self.renewals.schedule_soon(now);
            }
            // The member does not have the shard in this generation, or no longer: it reports it as
            // released.
            (_, Some((Role::Own | Role::Release, generation))) => {
                self.forget(shard);
                self.ownership[shard] = Ownership::Released(generation);
                self.renewals.schedule_soon(now);
            }
        }
    }

    fn own(&mut self, now: BootTime, shard: usize, generation: u64) {
        let topic = self.topic(shard);
        if self.ownership[shard] != Ownership::Preparing {
            self.forget(shard);
            self.outputs.push_back(MemberOutput::Subscribe(topic));
        }
        self.ownership[shard] = Ownership::Owned(generation);
        self.permit.set(topic.shard, generation);
        self.renewals.schedule_soon(now);
    }

    /// Takes what a grant says of the owned shards: what the group has handled, and how far each
    /// stream has come. `before` is the ownership before the grant.
    pub(super) fn take_coverage(&mut self, now: BootTime, grant: &Grant, before: &[Ownership; SHARDS]) {
        let mut listed = BTreeSet::new();
        for StreamCoverage { stream, covered } in &grant.coverage {
            for covered in covered {
                listed.insert((stream, covered.topic));
                self.learn(now, stream, covered, before);
            }
        }
        for StreamStarts { stream, starts } in &grant.starts {
            for start in starts {
                if !listed.contains(&(stream, start.topic)) {
                    let covered = Covered::new(start.topic, &Coverage::up_to(start.sequence.0));
                    self.learn(now, stream, &covered, before);
                }
                let shard = start.topic.shard.index();
                if let Some(index) = self.find(stream).filter(|_| matches!(self.ownership[shard], Ownership::Owned(_)))
                {
                    // What the publisher had before it fell silent is missing even if it never
                    // announces it again.
                    self.counters.skipped += self.streams[index].positions[shard].announce(start.next.0);
                }
            }
        }
        for (shard, &former) in before.iter().enumerate() {
            let Ownership::Owned(generation) = self.ownership[shard] else { continue };
            for index in 0..self.streams.len() {
                self.deliver_ready(index, self.topic(shard), generation);
                let position = &self.streams[index].positions[shard];
                if former != self.ownership[shard] && position.covered.is_empty() || position.has_gap() {
                    self.streams[index].repair.schedule(now);
                }
            }
        }
    }

    /// Takes what others have handled of an owned shard. What the owner would have delivered is
    /// skipped, and counted.
    fn learn(&mut self, now: BootTime, stream: &Stream, covered: &Covered, before: &[Ownership; SHARDS]) {
        let (topic, shard) = (covered.topic, covered.topic.shard.index());
        let Ownership::Owned(_) = self.ownership[shard] else { return };
        if topic.kind != self.settings.kind {
            return;
        }
        let Some(index) = self.follow_answered(now, stream) else { return };
        let was_owner = before[shard] == self.ownership[shard];
        let position = &mut self.streams[index].positions[shard];
        let learnt = position.learn(&covered.coverage(), was_owner || covered.presenter.is_some());
        let Some(skipped) = learnt else { return };
        let beyond = position.received().unwrap_or(0).saturating_sub(position.announced);
        let skipped = if was_owner { skipped } else { 0 };
        self.counters.skipped += skipped;
        if skipped > 0 || (beyond > 0 && covered.presenter.is_some()) {
            self.outputs.push_back(MemberOutput::Skipped {
                stream: stream.clone(),
                topic,
                records: skipped + beyond,
                presenter: covered.presenter.clone(),
            });
        }
    }

    fn begin_release(&mut self, now: BootTime, shard: usize, generation: u64) {
        let topic = self.topic(shard);
        self.ownership[shard] = Ownership::Releasing(generation);
        self.clear_reorder_buffers(shard);
        self.outputs.push_back(MemberOutput::Unsubscribe(topic));
        self.release_if_idle(now, topic.shard, generation);
    }

    /// Ends the release of a shard when every delivery is handled.
    pub(super) fn release_if_idle(&mut self, now: BootTime, shard: Shard, generation: u64) {
        if self.streams.iter().all(|followed| followed.positions[shard.index()].is_idle()) {
            self.permit.set(shard, 0);
            self.ownership[shard.index()] = Ownership::Released(generation);
            self.renewals.schedule_soon(now);
        }
    }

    /// Stops acting on all shards at once. The next renewal reports them as released.
    pub(super) fn drop_all(&mut self) {
        for shard in 0..SHARDS {
            let topic = self.topic(shard);
            match self.ownership[shard] {
                Ownership::Owned(generation) | Ownership::Releasing(generation) => {
                    if self.ownership[shard].is_subscribed() {
                        self.outputs.push_back(MemberOutput::Unsubscribe(topic));
                    }
                    self.permit.set(topic.shard, 0);
                    self.clear_reorder_buffers(shard);
                    self.streams.iter_mut().for_each(|followed| followed.positions[shard].stop());
                    self.ownership[shard] = Ownership::Released(generation);
                }
                Ownership::Preparing => self.forget(shard),
                Ownership::None | Ownership::Released(_) => {}
            }
        }
    }

    /// Drops all state of the shard, except what is known of the streams.
    fn forget(&mut self, shard: usize) {
        let topic = self.topic(shard);
        let ownership = self.ownership[shard];
        self.permit.set(topic.shard, 0);
        if let Some(generation) = ownership.generation() {
            self.retired[shard] = generation;
        }
        if ownership.is_subscribed() {
            self.outputs.push_back(MemberOutput::Unsubscribe(topic));
        }
        self.ownership[shard] = Ownership::None;
        self.clear_reorder_buffers(shard);
        for followed in &mut self.streams {
            let position = &mut followed.positions[shard];
            self.outstanding_bytes -= position.outstanding_bytes();
            position.stop();
            *position = position.facts();
        }
    }

    fn clear_reorder_buffers(&mut self, shard: usize) {
        for followed in &mut self.streams {
            let position = &mut followed.positions[shard];
            self.reorder_bytes -= position.reorder_bytes;
            position.reorder.clear();
            position.reorder_bytes = 0;
        }
    }
}
