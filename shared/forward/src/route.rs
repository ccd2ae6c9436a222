//! From one batch to the places of one destination: filter, rate, pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_runtime::Losses;

use crate::{
    Parcel,
    destination::Destination,
    health::Standing,
    metrics::{DestinationMetrics, DropReason, SkipReason},
    pool::{Seed, SourceHash, choose},
    queue::Intake,
    rate::TokenBucket,
    selection::{Chosen, Selection},
};

/// How often a member of a pool that is down is tried, with a copy of what another member gets: nothing is lost by trying.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How often a place that is down, or that did not get all, is sent all templates again.
const TEMPLATES_WHILE_DOWN_EVERY: Duration = Duration::from_secs(1);

/// The way to one destination.
pub(crate) struct Route<B> {
    destination: Destination,
    rate: Option<TokenBucket>,
    places: Vec<PlaceIntake<B>>,
    seeds: Vec<Seed>,
}

/// The way to one of its places.
pub(crate) struct PlaceIntake<B> {
    intake: Intake<B>,
    standing: Standing,
    dropped: Losses<DropReason>,
    skipped: [prometheus::IntCounter; SkipReason::NAMES.len()],
    /// Which of the engine's places it is, 0 to 63.
    slot: u32,
    probed_at: Option<Instant>,
    templates: TemplateTimes,
}

/// When a place is owed templates again.
#[derive(Clone, Copy, Debug)]
struct TemplateTimes {
    refresh: Option<Duration>,
    owed_at: Instant,
    was_down: bool,
    moves: u32,
}

impl<B> PlaceIntake<B> {
    pub(crate) fn new(
        intake: Intake<B>,
        metrics: &DestinationMetrics,
        slot: u32,
        refresh: Option<Duration>,
    ) -> PlaceIntake<B> {
        let moves = metrics.standing.moves();
        PlaceIntake {
            intake,
            standing: metrics.standing.clone(),
            dropped: metrics.dropped.clone(),
            skipped: metrics.skipped.clone(),
            slot,
            probed_at: None,
            templates: TemplateTimes { refresh, owed_at: Instant::now(), was_down: false, moves },
        }
    }

    /// Whether the place is owed all templates again: it may be another host, it has come back, it is down, which it may not be any more
    /// before that is known, it did not get all that was for it, or it is time.
    pub(crate) fn is_owed_templates(&mut self, now: Instant) -> bool {
        let (is_down, moves) = (self.standing.is_down(), self.standing.moves());
        let times = &mut self.templates;
        let since = now.saturating_duration_since(times.owed_at);
        let has_changed = std::mem::replace(&mut times.was_down, is_down) && !is_down
            || std::mem::replace(&mut times.moves, moves) != moves;
        let is_owed = has_changed
            || since >= TEMPLATES_WHILE_DOWN_EVERY && (is_down || self.standing.take_lost())
            || times.refresh.is_some_and(|refresh| since >= refresh);
        if is_owed {
            times.owed_at = now;
        }
        is_owed
    }

    fn skip(&self, reason: SkipReason, records: usize) {
        self.skipped[reason as usize].inc_by(records as u64);
    }
}

impl<B: AsRef<[u8]>> PlaceIntake<B> {
    /// Queues the selected records, or counts them as dropped.
    pub(crate) fn offer(&self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) {
        let records = selection.count(parcel.batch.len());
        if records > 0 && !self.intake.offer(parcel, selection, now) {
            self.standing.lost();
            self.dropped.add(DropReason::QueueFull, records as u64);
        }
    }

    /// Queues templates of our own. `false`: there is no room, and they are still owed.
    pub(crate) fn offer_own(&self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) -> bool {
        self.intake.offer(parcel, selection, now)
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.intake.is_behind()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.standing.is_down()
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }
}

impl<B: AsRef<[u8]>> Route<B> {
    pub(crate) fn new(destination: Destination, places: Vec<PlaceIntake<B>>, now: Instant) -> Route<B> {
        let rate = destination.options.rate.map(|rate| TokenBucket::new(rate, now));
        let seeds = destination.places.iter().map(|place| Seed::of(&place.to_string())).collect();
        Route { destination, rate, places, seeds }
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    pub(crate) fn places(&self) -> &[PlaceIntake<B>] {
        &self.places
    }

    pub(crate) fn places_mut(&mut self) -> &mut [PlaceIntake<B>] {
        &mut self.places
    }

    /// Whether it takes every record, so that none is left for nobody.
    pub(crate) fn takes_everything(&self) -> bool {
        self.destination.options.filter.is_open()
    }

    /// Decides where the records go: one selection for each place. What matches the filter is added to `matched`; what is not for
    /// this destination, or too much for it, is counted.
    pub(crate) fn select(&mut self, parcel: &Parcel<B>, matched: &mut Chosen, now: Instant) -> Vec<Selection> {
        let mut wanted = self.filter(parcel, matched);
        if self.rate.is_some() {
            wanted = self.limit(parcel, &wanted, now);
        }
        if self.places.len() == 1 { vec![wanted] } else { self.share_out(parcel, &wanted, now) }
    }

    fn filter(&self, parcel: &Parcel<B>, matched: &mut Chosen) -> Selection {
        let filter = &self.destination.options.filter;
        if filter.is_open() {
            return Selection::All;
        }
        let mut chosen = Chosen::none(parcel.batch.len());
        let mut skipped = [0; SkipReason::NAMES.len()];
        for (index, record) in parcel.batch.records().enumerate() {
            match filter.mismatch(&record) {
                None => {
                    chosen.add(index);
                    matched.add(index);
                }
                Some(mismatch) => skipped[SkipReason::from(mismatch) as usize] += 1,
            }
        }
        for place in &self.places {
            for (counter, count) in place.skipped.iter().zip(skipped).filter(|(_, count)| *count > 0) {
                counter.inc_by(count);
            }
        }
        Selection::Some(chosen)
    }

    /// What the rate lets through. Of a pool, what it does not is counted at the first place, and passed over at the others.
    fn limit(&mut self, parcel: &Parcel<B>, wanted: &Selection, now: Instant) -> Selection {
        let Some(bucket) = &mut self.rate else { return wanted.clone() };
        bucket.fill(now);
        let len = parcel.batch.len();
        let mut chosen = Chosen::none(len);
        for index in (0..len).filter(|&index| wanted.contains(index)) {
            if !bucket.take() {
                break;
            }
            chosen.add(index);
        }
        let selection = Selection::Some(chosen);
        let over = wanted.count(len) - selection.count(len);
        if over > 0
            && let [first, others @ ..] = &self.places[..]
        {
            first.dropped.add(DropReason::Rate, over as u64);
            others.iter().for_each(|place| place.skip(SkipReason::Pool, over));
        }
        selection
    }

    /// Gives each record to the member that has its source.
    fn share_out(&mut self, parcel: &Parcel<B>, wanted: &Selection, now: Instant) -> Vec<Selection> {
        let len = parcel.batch.len();
        let down: Vec<bool> = self.places.iter().map(PlaceIntake::is_down).collect();
        let mut chosen = vec![Chosen::none(len); self.places.len()];
        let mut known = None;
        for (index, record) in parcel.batch.records().enumerate().filter(|(index, _)| wanted.contains(*index)) {
            let member = match known {
                Some((source, member)) if source == record.source => member,
                _ => choose(SourceHash::of(record.source), &self.seeds, |member| !down[member]),
            };
            known = Some((record.source, member));
            chosen[member].add(index);
        }
        self.probe(&down, wanted, &mut chosen, now);
        let total = wanted.count(len);
        let selections: Vec<Selection> = chosen.into_iter().map(Selection::Some).collect();
        for (place, selection) in self.places.iter().zip(&selections) {
            let passed_over = total - selection.count(len);
            if passed_over > 0 {
                place.skip(SkipReason::Pool, passed_over);
            }
        }
        selections
    }

    /// Gives members that are down one record each, now and then, beside the member that has it.
    fn probe(&mut self, down: &[bool], wanted: &Selection, chosen: &mut [Chosen], now: Instant) {
        let Some(index) = chosen.iter().find_map(Chosen::first) else { return };
        debug_assert!(wanted.contains(index), "what is chosen was wanted");
        for (member, place) in self.places.iter_mut().enumerate().filter(|(member, _)| down[*member]) {
            if place.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY) {
                place.probed_at = Some(now);
                chosen[member].add(index);
            }
        }
    }
}
