//! From one batch to the endpoints of one destination: filter, rate, pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_runtime::Losses;

use super::{
    pool::{Seed, SourceHash, choose},
    rate::TokenBucket,
    selection::{RecordSet, Selection},
};
use crate::{
    Parcel,
    config::destination::Destination,
    metrics::{DestinationMetrics, DropReason, SkipReason},
    queue::Intake,
    status::EndpointStatus,
    udp::worker::Shortcut,
};

/// How often a pool member that is down is probed with a copy of a datagram for another member, so
/// that a probe cannot lose data.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How often an endpoint that is down, or that has missed records, is sent all templates again.
const TEMPLATES_WHILE_DOWN_EVERY: Duration = Duration::from_secs(1);

/// In how many steps of the refresh interval it is checked which templates are due.
const REFRESH_STEPS: u32 = 8;

/// The route to one destination.
pub(crate) struct Route<B> {
    destination: Destination,
    rate: Option<TokenBucket>,
    endpoints: Vec<EndpointIntake<B>>,
    seeds: Vec<Seed>,
}

/// The route to one of its endpoints.
pub(crate) struct EndpointIntake<B> {
    intake: Intake<B>,
    /// `None` if only the worker can send.
    shortcut: Option<Shortcut>,
    status: EndpointStatus,
    dropped: Losses<DropReason>,
    skipped: [prometheus::IntCounter; SkipReason::NAMES.len()],
    /// Its slot among the engine's endpoints, 0 to 63.
    slot: u32,
    probed_at: Option<Instant>,
    templates: TemplateTimes,
}

/// Templates at an interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TemplateRefresh {
    /// How long an endpoint may be without an exporter's templates.
    pub(crate) every: Duration,
    /// Whether the endpoint gets what exporters repeat themselves.
    pub(crate) counts_repeats: bool,
}

/// Which templates an endpoint is owed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwedTemplates {
    None,
    All,
    /// Those that were sent to it at least this long ago: `counts_repeats`, by the exporters
    /// themselves, too.
    Due {
        after: Duration,
        counts_repeats: bool,
    },
}

/// When an endpoint is owed templates again.
#[derive(Clone, Copy, Debug)]
struct TemplateTimes {
    refresh: Option<TemplateRefresh>,
    refreshed_at: Instant,
    owed_at: Instant,
    was_down: bool,
    moves: u32,
}

impl<B> EndpointIntake<B> {
    pub(crate) fn new(
        intake: Intake<B>,
        shortcut: Option<Shortcut>,
        metrics: &DestinationMetrics,
        slot: u32,
        refresh: Option<TemplateRefresh>,
    ) -> EndpointIntake<B> {
        let moves = metrics.status.moves();
        let now = Instant::now();
        EndpointIntake {
            intake,
            shortcut,
            status: metrics.status.clone(),
            dropped: metrics.dropped.clone(),
            skipped: metrics.skipped.clone(),
            slot,
            probed_at: None,
            templates: TemplateTimes { refresh, refreshed_at: now, owed_at: now, was_down: false, moves },
        }
    }

    /// Which templates the endpoint is owed again. All: its address has changed, it is up again, it
    /// is down and may be back before that is known, or it has missed records. Some:
    /// `template_refresh` is set.
    pub(crate) fn owed_templates(&mut self, now: Instant) -> OwedTemplates {
        // Without an address, templates would only fill the queue.
        let is_down = self.status.is_down() && !self.status.is_unresolved();
        let moves = self.status.moves();
        let times = &mut self.templates;
        let since = now.saturating_duration_since(times.owed_at);
        let has_changed = std::mem::replace(&mut times.was_down, is_down) && !is_down
            || std::mem::replace(&mut times.moves, moves) != moves;
        // Without refusals it has had the templates by now.
        let may_lack = is_down && !self.status.is_quiet();
        if has_changed || since >= TEMPLATES_WHILE_DOWN_EVERY && (may_lack || self.status.take_lost()) {
            times.owed_at = now;
            return OwedTemplates::All;
        }
        match times.refresh {
            Some(TemplateRefresh { every, counts_repeats })
                if now.saturating_duration_since(times.refreshed_at) >= every / REFRESH_STEPS =>
            {
                times.refreshed_at = now;
                // Some are due before the next check, which would find them late.
                OwedTemplates::Due { after: every - every / REFRESH_STEPS, counts_repeats }
            }
            _ => OwedTemplates::None,
        }
    }

    fn skip(&self, reason: SkipReason, records: usize) {
        self.skipped[reason as usize].inc_by(records as u64);
    }
}

impl<B: AsRef<[u8]>> EndpointIntake<B> {
    /// Adds the selected records for the next [`EndpointIntake::flush`], or counts them as dropped.
    pub(crate) fn offer(&mut self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) {
        let records = selection.count(parcel.batch.len());
        if records > 0 && !self.intake.offer(parcel, selection, now) {
            self.status.set_lost();
            let reason = if self.is_unresolved() { DropReason::Unresolved } else { DropReason::QueueFull };
            self.dropped.add(reason, records as u64);
        }
    }

    /// Sends what was added: in this thread if it `may_send` and nothing is in its way. The rest is
    /// queued for the worker.
    pub(crate) fn flush(&mut self, may_send: bool) {
        let shortcut = self.shortcut.as_ref().filter(|_| may_send);
        let pending = shortcut.and_then(|shortcut| Some((shortcut, self.intake.pending_alone()?)));
        if let Some(unsent) = pending.and_then(|(shortcut, pending)| shortcut.send(pending)) {
            self.intake.sent(&unsent);
        }
        let rejected = self.intake.flush();
        if rejected > 0 {
            self.status.set_lost();
            self.dropped.add(DropReason::QueueFull, rejected as u64);
        }
    }

    /// Adds synthetic templates. `false`: the queue is full, and they are still owed.
    pub(crate) fn offer_synthetic(&mut self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) -> bool {
        self.intake.offer(parcel, selection, now)
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.intake.is_behind()
    }

    pub(crate) fn is_unresolved(&self) -> bool {
        self.status.is_unresolved()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.status.is_down()
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }
}

impl<B: AsRef<[u8]>> Route<B> {
    pub(crate) fn new(destination: Destination, endpoints: Vec<EndpointIntake<B>>, now: Instant) -> Route<B> {
        let rate = destination.options.rate.map(|rate| TokenBucket::new(rate, now));
        let seeds = destination.endpoints.iter().map(|endpoint| Seed::of(&endpoint.to_string())).collect();
        Route { destination, rate, endpoints, seeds }
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    pub(crate) fn endpoints(&self) -> &[EndpointIntake<B>] {
        &self.endpoints
    }

    pub(crate) fn endpoints_mut(&mut self) -> &mut [EndpointIntake<B>] {
        &mut self.endpoints
    }

    /// Whether it takes every record, so that none is unmatched.
    pub(crate) fn takes_everything(&self) -> bool {
        self.destination.options.filter.is_open()
    }

    /// Decides where the records go: one selection per endpoint. Records that match the filter are
    /// added to `matched`; others, and those above the rate, are counted.
    pub(crate) fn select(&mut self, parcel: &Parcel<B>, matched: &mut RecordSet, now: Instant) -> Vec<Selection> {
        let mut wanted = self.filter(parcel, matched);
        if self.rate.is_some() {
            wanted = self.limit(parcel, &wanted, now);
        }
        if self.endpoints.len() == 1 { vec![wanted] } else { self.distribute(parcel, &wanted, now) }
    }

    fn filter(&self, parcel: &Parcel<B>, matched: &mut RecordSet) -> Selection {
        let filter = &self.destination.options.filter;
        if filter.is_open() {
            return Selection::All;
        }
        let mut chosen = RecordSet::empty(parcel.batch.len());
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
        for endpoint in &self.endpoints {
            for (counter, count) in endpoint.skipped.iter().zip(skipped).filter(|(_, count)| *count > 0) {
                counter.inc_by(count);
            }
        }
        Selection::Some(chosen)
    }

    /// The records within the rate. In a pool, the others count as dropped at the first endpoint
    /// and as skipped at the rest, so that each endpoint's ledger adds up.
    fn limit(&mut self, parcel: &Parcel<B>, wanted: &Selection, now: Instant) -> Selection {
        let Some(bucket) = &mut self.rate else { return wanted.clone() };
        bucket.fill(now);
        let len = parcel.batch.len();
        let mut chosen = RecordSet::empty(len);
        for index in (0..len).filter(|&index| wanted.contains(index)) {
            if !bucket.take() {
                break;
            }
            chosen.add(index);
        }
        let selection = Selection::Some(chosen);
        let over = wanted.count(len) - selection.count(len);
        if over > 0
            && let [first, others @ ..] = &self.endpoints[..]
        {
            first.dropped.add(DropReason::Rate, over as u64);
            others.iter().for_each(|endpoint| endpoint.skip(SkipReason::Pool, over));
        }
        selection
    }

    /// Selects each record for the member of its source.
    fn distribute(&mut self, parcel: &Parcel<B>, wanted: &Selection, now: Instant) -> Vec<Selection> {
        let len = parcel.batch.len();
        let down: Vec<bool> = self.endpoints.iter().map(EndpointIntake::is_down).collect();
        let mut chosen = vec![RecordSet::empty(len); self.endpoints.len()];
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
        for (endpoint, selection) in self.endpoints.iter().zip(&selections) {
            let skipped = total - selection.count(len);
            if skipped > 0 {
                endpoint.skip(SkipReason::Pool, skipped);
            }
        }
        selections
    }

    /// Selects one record for each member that is down, in addition to its own member, when a probe
    /// is due.
    fn probe(&mut self, down: &[bool], wanted: &Selection, chosen: &mut [RecordSet], now: Instant) {
        let Some(index) = chosen.iter().find_map(RecordSet::first) else { return };
        debug_assert!(wanted.contains(index), "chosen records are wanted");
        for (member, endpoint) in self.endpoints.iter_mut().enumerate().filter(|(member, _)| down[*member]) {
            if endpoint.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_EVERY) {
                endpoint.probed_at = Some(now);
                chosen[member].add(index);
            }
        }
    }
}
