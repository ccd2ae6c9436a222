//! What a publisher remembers of the groups: what each has handled of its stream.
//!
//! ```text
//! Notice ── what the coordinator knows of each group ──▶ union
//! Advertise ◀── groups of which the coordinator knows less, until it says otherwise
//! ```
//!
//! The publisher has the data, so it also has the positions: they survive as long as the data does.

use std::{collections::BTreeMap, time::Duration};

use sekiwake_record::{Name, Topic};

use crate::{
    BootTime, PUBLISHER_SILENT_AFTER,
    coverage::{Age, Coverage},
    time::nanos,
    wire::{Covered, GroupCoverage, MAX_GROUPS},
};

/// How long a group is remembered that the coordinator no longer lists: as long as there.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
pub(super) struct KnownGroups(BTreeMap<Name, KnownGroup>);

#[derive(Debug)]
struct KnownGroup {
    age: Age,
    covered: BTreeMap<Topic, Coverage>,
    /// When the coordinator last listed it.
    listed_at: BootTime,
    /// The coordinator knows less.
    is_presented: bool,
}

impl KnownGroups {
    /// Takes what the coordinator knows. Returns whether it knows less.
    pub(super) fn on_notice(&mut self, now: BootTime, listed: &[GroupCoverage]) -> bool {
        for known in self.0.values_mut() {
            known.is_presented = true;
        }
        for listed in listed {
            if !self.0.contains_key(&listed.group) && self.0.len() >= MAX_GROUPS {
                let oldest = self.0.iter().filter(|(_, known)| known.listed_at < now);
                let oldest = oldest.min_by_key(|(_, known)| known.listed_at).map(|(name, _)| name.clone());
                let Some(oldest) = oldest else { continue };
                self.0.remove(&oldest);
            }
            let known = self.0.entry(listed.group.clone()).or_insert_with(|| KnownGroup {
                age: Age::new(now),
                covered: BTreeMap::new(),
                listed_at: now,
                is_presented: false,
            });
            known.learn(now, listed);
        }
        self.0.retain(|_, known| now < known.listed_at + REMEMBER);
        self.0.values().any(|known| known.is_presented)
    }

    /// What the coordinator has not said to know.
    pub(super) fn presented(&self, now: BootTime) -> Vec<GroupCoverage> {
        let presented = self.0.iter().filter(|(_, known)| known.is_presented);
        let present = |(group, known): (&Name, &KnownGroup)| GroupCoverage {
            group: group.clone(),
            age_ns: known.age.nanos(now),
            covered: known.covered.iter().map(|(&topic, covered)| Covered::new(topic, covered)).collect(),
        };
        presented.map(present).collect()
    }

    /// What a group has handled of these topics.
    pub(super) fn covered(&self, group: &Name, topics: &[Topic]) -> Vec<Covered> {
        let Some(known) = self.0.get(group) else { return Vec::new() };
        let covered = topics.iter().filter_map(|topic| Some((*topic, known.covered.get(topic)?)));
        covered.map(|(topic, covered)| Covered::new(topic, covered)).collect()
    }
}

impl KnownGroup {
    fn learn(&mut self, now: BootTime, listed: &GroupCoverage) {
        // A coordinator that takes the group for a new one must hear that it is not.
        let is_older = self.age.nanos(now) > listed.age_ns.saturating_add(nanos(PUBLISHER_SILENT_AFTER));
        self.age.learn(now, listed.age_ns);
        self.listed_at = now;
        let mut topics = 0;
        let mut is_covered = true;
        for covered in &listed.covered {
            let theirs = covered.coverage();
            let known = self.covered.entry(covered.topic).or_default();
            is_covered &= theirs.contains(known);
            known.union(&theirs);
            topics += 1;
        }
        self.is_presented = is_older || !is_covered || topics < self.covered.len();
    }
}
