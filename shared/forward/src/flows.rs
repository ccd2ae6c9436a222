//! What an xflow forwarder knows of the exporters whose records pass: their templates, for destinations that have not had them, and their
//! sequences, which tell what was lost before it came here.
//!
//! ```text
//! parcel ─▶ observe each record ─┬─▶ owed to a place: a parcel of our own with templates, queued before the parcel
//!                                ├─▶ changes of templates ─▶ notes for the shard's next owner
//!                                └─▶ gaps, late datagrams, restarts ─▶ metrics
//! ```
//! A place is owed an exporter's templates when it is new, when its address has changed, while it is down and when it has come back, when
//! a source moves to it within a pool, and, where that is asked for, after a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_flow::{Change, Exporters, Limits, Sequence};
use sekiwake_record::{Batch, BatchBuilder, Format, Header, Record, Shard};
use sekiwake_runtime::Scope;

use crate::{
    Parcel,
    metrics::names,
    selection::{Chosen, Selection},
};

/// The most bytes of a template datagram: with the headers of every usual tunnel it fits 1,500 bytes.
const MAX_BYTES: usize = 1400;

/// The formats that have sequences.
const FORMATS: [Format; 4] = [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5];

/// How often the gauges are set.
const METER_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Flows {
    exporters: Exporters,
    /// By format, as [`FORMATS`] has them.
    counters: [FormatCounters; 4],
    known_exporters: IntGauge,
    template_bytes: IntGauge,
    evicted: IntCounter,
    counted_evicted: u64,
    metered_at: Option<Instant>,
    datagrams: Vec<Vec<u8>>,
}

/// What the exporters of one format counted.
struct FormatCounters {
    missing: IntCounter,
    late: IntCounter,
    gaps: IntCounter,
    restarts: IntCounter,
    malformed: IntCounter,
}

/// Templates that are to be sent before a parcel.
#[derive(Debug)]
pub(crate) struct Owed<B> {
    pub(crate) parcel: Arc<Parcel<B>>,
    /// Which records of it each slot is owed.
    pub(crate) by_slot: Vec<(u32, Selection)>,
}

/// One template datagram, and the record that it goes ahead of.
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
                missing: counter(names::EXPORTER_MISSING, "Units that exporters counted and that did not come."),
                late: counter(names::EXPORTER_LATE, "Units that came late or twice."),
                gaps: counter(names::EXPORTER_GAPS, "Gaps in the sequences of exporters."),
                restarts: counter(names::EXPORTER_RESTARTS, "Sequences that began anew."),
                malformed: counter(names::EXPORTER_MALFORMED, "Datagrams whose sets or templates cannot be read."),
            }
        });
        Flows {
            exporters: Exporters::new(Limits::default()),
            counters,
            known_exporters: metrics.gauge(names::EXPORTERS, "Exporters that are known.", &[]),
            template_bytes: metrics.gauge(names::TEMPLATE_BYTES, "Bytes of memory that templates take.", &[]),
            evicted: metrics.counter(names::TEMPLATES_EVICTED, "Templates that went or were not kept.", &[]),
            counted_evicted: 0,
            metered_at: None,
            datagrams: Vec::new(),
        }
    }

    /// Looks at every record of a parcel. `wanted`: the slots that the record at an index goes to, a bit for each, and those that its
    /// source has left for another of their pool. Gives the templates that are owed before it.
    pub(crate) fn observe<B: AsRef<[u8]> + From<Vec<u8>>>(
        &mut self,
        batch: &Batch<B>,
        wanted: impl Fn(usize) -> (u64, u64),
        now: Instant,
    ) -> Vec<Owed<B>> {
        let mut ahead: Vec<Ahead<'_>> = Vec::new();
        for (index, record) in batch.records().enumerate() {
            let observed = self.exporters.observe_in_pools(
                record.source,
                record.format,
                record.payload,
                record.captured_at_ns,
                wanted(index),
            );
            self.count(record.format, observed.sequence, observed.malformed);
            if observed.owed != 0 {
                let (exporters, datagrams) = (&self.exporters, &mut self.datagrams);
                exporters.template_datagrams(record.source, record.format, record.payload, MAX_BYTES, datagrams);
                let of = || record.clone();
                ahead.extend(datagrams.drain(..).map(|payload| Ahead { slots: observed.owed, payload, of: of() }));
            }
        }
        self.meter(now);
        parcels(&ahead)
    }

    /// The place in this slot is owed everything again.
    pub(crate) fn forget_slot(&mut self, slot: u32) {
        self.exporters.forget_slot(slot);
    }

    /// Appends the templates that changed since the last call.
    pub(crate) fn take_changes(&mut self, out: &mut Vec<Change>) {
        self.exporters.take_changes(out);
    }

    /// Appends all templates of a shard.
    pub(crate) fn all_of_shard(&self, shard: Shard, out: &mut Vec<Change>) {
        self.exporters.all_of_shard(shard, out);
    }

    /// Takes over a template that another owner of the shard noted.
    pub(crate) fn learn(&mut self, key: &[u8], value: &[u8], at_ns: u64) {
        self.exporters.learn(key, value, at_ns);
    }

    fn count(&self, format: Format, sequence: Sequence, malformed: bool) {
        if sequence == Sequence::InOrder && !malformed {
            return;
        }
        let Some(index) = FORMATS.iter().position(|known| *known == format) else { return };
        let counters = &self.counters[index];
        match sequence {
            Sequence::Gap(units) => {
                counters.gaps.inc();
                counters.missing.inc_by(units.into());
            }
            Sequence::Late(units) => counters.late.inc_by(units.into()),
            Sequence::Restarted => counters.restarts.inc(),
            Sequence::None | Sequence::First | Sequence::InOrder | Sequence::Resynchronised => {}
        }
        if malformed {
            counters.malformed.inc();
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
        let evicted = counters.templates_evicted + counters.templates_refused;
        self.evicted.inc_by(evicted - self.counted_evicted);
        self.counted_evicted = evicted;
    }
}

/// Parcels of our own with these datagrams, each in the name of the device that it is ahead of.
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
    let closed = builder.close()?;
    let header = Header {
        stream_name: "templates",
        stream_epoch: 0,
        first_sequence: 0,
        count: closed.count,
        first_captured_at_ns: closed.first_captured_at_ns,
        last_captured_at_ns: closed.last_captured_at_ns,
    };
    // It is what the builder has just written.
    let batch = Batch::decode(&header, B::from(closed.body)).ok()?;
    let slots = ahead.iter().fold(0, |all, datagram| all | datagram.slots);
    let selection = |slot: u32| {
        let mut chosen = Chosen::none(ahead.len());
        let owed = ahead.iter().enumerate().filter(|(_, datagram)| datagram.slots >> slot & 1 == 1);
        owed.for_each(|(index, _)| chosen.add(index));
        (slot, Selection::Some(chosen))
    };
    let by_slot = (0..u64::BITS).filter(|slot| slots >> slot & 1 == 1).map(selection).collect();
    Some(Owed { parcel: Arc::new(Parcel::own(batch)), by_slot })
}
