//! The exporters of an xflow forwarder: their templates, for endpoints that lack them, and their
//! sequences, which show losses before the capture.
//!
//! ```text
//! parcel ─▶ observe records ─┬─▶ templates owed to an endpoint: a synthetic parcel, queued first
//!                            ├─▶ changed templates ─▶ hand-off state for the shard's next owner
//!                            └─▶ gaps, late datagrams, restarts ─▶ metrics, if the sequence is plausible
//! ```
//! An endpoint is owed an exporter's templates when it is new, when its address has changed, while
//! it is down and when it is up again, when a source moves to it within a pool, and at the
//! interval of `template_refresh` unless the exporter has sent them itself. They precede the
//! exporter's next datagram, so that an old one never follows a new one.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_flow::{Change, Countable, DestinationSlots, Exporters, Limits, Observed, Sequence};
use sekiwake_record::{Batch, BatchBuilder, Format, Record, Shard};
use sekiwake_runtime::{RateLimited, Scope};
use tracing::info;

use crate::{
    Parcel,
    metrics::names,
    routing::selection::{RecordSet, Selection},
};

/// Maximum bytes of a template datagram: with the headers of common tunnels it fits an MTU of
/// 1,500 bytes.
const MAX_BYTES: usize = 1400;

/// The formats with sequence numbers.
const FORMATS: [Format; 4] = [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5];

/// How often the gauges are set.
const METER_EVERY: Duration = Duration::from_secs(1);

/// All exporters seen by this forwarder, and the templates owed to its endpoints.
pub(crate) struct Flows {
    exporters: Exporters,
    /// In the order of [`FORMATS`].
    counters: [FormatCounters; 4],
    known_exporters: IntGauge,
    template_bytes: IntGauge,
    evicted: IntCounter,
    counted_evicted: u64,
    started_at: Instant,
    metered_at: Option<Instant>,
    datagrams: Vec<Vec<u8>>,
    uncountable_log: RateLimited,
}

/// Counters of the exporters of one format.
struct FormatCounters {
    missing: IntCounter,
    late: IntCounter,
    gaps: IntCounter,
    restarts: IntCounter,
    uncountable: IntCounter,
    malformed: IntCounter,
}

/// Templates to be sent before a parcel.
#[derive(Debug)]
pub(crate) struct Owed<B> {
    pub(crate) parcel: Arc<Parcel<B>>,
    /// Which of its records each slot is owed.
    pub(crate) by_slot: Vec<OwedToSlot>,
}

/// The records that the endpoint in one slot is owed.
#[derive(Debug)]
pub(crate) struct OwedToSlot {
    pub(crate) slot: u32,
    pub(crate) selection: Selection,
}

/// One template datagram, and the record that it precedes.
struct Ahead<'a> {
    slots: u64,
    payload: Vec<u8>,
    of: Record<'a>,
}

impl Flows {
    pub(crate) fn new(scope: &Scope) -> Flows {
        let metrics = scope.metrics();
        let counters = FORMATS.map(|format| {
            let counter = |name, help| metrics.counter(name, help, &[("format", format.as_str())]);
            FormatCounters {
                missing: counter(
                    names::EXPORTER_MISSING,
                    "Flows, datagrams or data records missing in the sequences of exporters.",
                ),
                late: counter(names::EXPORTER_LATE, "Flows, datagrams or data records received late or twice."),
                gaps: counter(names::EXPORTER_GAPS, "Gaps in the sequences of exporters."),
                restarts: counter(names::EXPORTER_RESTARTS, "Sequences restarted by exporters."),
                uncountable: counter(
                    names::EXPORTER_UNCOUNTABLE,
                    "Datagrams of exporters whose sequence numbers do not show their losses.",
                ),
                malformed: counter(names::EXPORTER_MALFORMED, "Datagrams with undecodable sets or templates."),
            }
        });
        Flows {
            exporters: Exporters::new(Limits::default()),
            counters,
            known_exporters: metrics.gauge(names::EXPORTERS, "Exporters tracked.", &[]),
            template_bytes: metrics.gauge(names::TEMPLATE_BYTES, "Bytes of memory held by templates.", &[]),
            evicted: metrics.counter(names::TEMPLATES_EVICTED, "Templates evicted or rejected.", &[]),
            counted_evicted: 0,
            started_at: Instant::now(),
            metered_at: None,
            datagrams: Vec::new(),
            uncountable_log: RateLimited::default(),
        }
    }

    /// Reads every record of a parcel. `slots_of_record` says where the record at an index goes.
    /// Returns the templates that are owed before the parcel.
    pub(crate) fn observe<B: AsRef<[u8]> + From<Vec<u8>>>(
        &mut self,
        batch: &Batch<B>,
        slots_of_record: impl Fn(usize) -> DestinationSlots,
        now: Instant,
    ) -> Vec<Owed<B>> {
        self.set_now(now);
        let mut ahead: Vec<Ahead<'_>> = Vec::new();
        for (index, record) in batch.records().enumerate() {
            let source = SocketAddr::new(record.source, record.source_port);
            let observed = self.exporters.observe_in_pools(
                source,
                record.format,
                record.payload,
                record.captured_at_ns,
                slots_of_record(index),
            );
            self.count(source, record.format, &observed);
            if observed.owed != 0 {
                let exporters = &self.exporters;
                let datagrams = &mut self.datagrams;
                exporters.template_datagrams(source, record.format, record.payload, MAX_BYTES, datagrams);
                let of = || record.clone();
                ahead.extend(datagrams.drain(..).map(|payload| Ahead { slots: observed.owed, payload, of: of() }));
            }
        }
        self.meter(now);
        parcels(&ahead)
    }

    /// The endpoint in this slot is owed all templates again.
    pub(crate) fn forget_slot(&mut self, slot: u32) {
        self.exporters.forget_slot(slot);
    }

    /// The endpoint in this slot is owed the templates of exporters that it was sent at least
    /// `after` ago. `counts_repeats`: by the exporters themselves, too.
    pub(crate) fn refresh_slot(&mut self, slot: u32, after: Duration, counts_repeats: bool, now: Instant) {
        self.set_now(now);
        self.exporters.refresh_slot(slot, after, counts_repeats);
    }

    fn set_now(&mut self, now: Instant) {
        self.exporters.set_now(now.saturating_duration_since(self.started_at));
    }

    /// Appends the templates that changed since the last call.
    pub(crate) fn take_changes(&mut self, out: &mut Vec<Change>) {
        self.exporters.take_changes(out);
    }

    /// Appends all templates of a shard.
    pub(crate) fn all_of_shard(&self, shard: Shard, out: &mut Vec<Change>) {
        self.exporters.shard_changes(shard, out);
    }

    /// Takes over a template from the hand-off state of another owner.
    pub(crate) fn learn(&mut self, key: &[u8], value: &[u8], at_ns: u64) {
        self.exporters.learn(key, value, at_ns);
    }

    fn count(&mut self, source: SocketAddr, format: Format, observed: &Observed) {
        let is_ordinary = observed.sequence == Sequence::InOrder && observed.countable == Countable::Yes;
        if is_ordinary && observed.losses.gaps == 0 && observed.losses.late == 0 && !observed.malformed {
            return;
        }
        let Some(index) = FORMATS.iter().position(|known| *known == format) else { return };
        let counters = &self.counters[index];
        counters.gaps.inc_by(observed.losses.gaps);
        counters.missing.inc_by(observed.losses.missing);
        counters.late.inc_by(observed.losses.late);
        if observed.countable != Countable::Yes {
            counters.uncountable.inc();
        } else if observed.sequence == Sequence::Restarted {
            counters.restarts.inc();
        }
        if observed.malformed {
            counters.malformed.inc();
        }
        if observed.countable == Countable::NoLonger
            && let Some(suppressed) = self.uncountable_log.allow(Instant::now())
        {
            info!(%source, format = format.as_str(), suppressed, "exporter's sequence numbers show no losses");
        }
    }

    fn meter(&mut self, now: Instant) {
        if self.metered_at.is_some_and(|at| now.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(now);
        self.known_exporters.set(self.exporters.len() as i64);
        self.template_bytes.set(self.exporters.template_bytes() as i64);
        let counters = self.exporters.counters();
        let evicted = counters.templates_evicted + counters.templates_rejected;
        self.evicted.inc_by(evicted - self.counted_evicted);
        self.counted_evicted = evicted;
    }
}

/// Synthetic parcels with these datagrams, each with the source of the record that it precedes.
fn parcels<B: AsRef<[u8]> + From<Vec<u8>>>(ahead: &[Ahead<'_>]) -> Vec<Owed<B>> {
    let mut parcels = Vec::new();
    let mut rest = ahead;
    while !rest.is_empty() {
        let mut builder = BatchBuilder::new(Vec::new());
        let mut count = 0;
        for datagram in rest {
            let record = Record { payload: &datagram.payload, ..datagram.of.clone() };
            if count > 0 && !builder.has_room_for(&record) {
                break;
            }
            builder.push(&record);
            count += 1;
        }
        let (these, others) = rest.split_at(count);
        rest = others;
        parcels.extend(parcel(builder, these));
    }
    parcels
}

fn parcel<B: AsRef<[u8]> + From<Vec<u8>>>(builder: BatchBuilder, ahead: &[Ahead<'_>]) -> Option<Owed<B>> {
    let batch = builder.into_batch::<B>()?;
    let slots = ahead.iter().fold(0, |all, datagram| all | datagram.slots);
    let selection = |slot: u32| {
        let mut chosen = RecordSet::empty(ahead.len());
        let owed = ahead.iter().enumerate().filter(|(_, datagram)| datagram.slots >> slot & 1 == 1);
        owed.for_each(|(index, _)| chosen.add(index));
        OwedToSlot { slot, selection: Selection::Some(chosen) }
    };
    let by_slot = (0..u64::BITS).filter(|slot| slots >> slot & 1 == 1).map(selection).collect();
    Some(Owed { parcel: Arc::new(Parcel::synthetic(batch)), by_slot })
}
