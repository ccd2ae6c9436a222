//! The known exporters: templates, sequences, and the destinations that have received the
//! templates.

mod keeping;
mod refreshing;
mod sharing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use sekiwake_record::{Format, bytes::u16_at};

use self::refreshing::Refreshed;
use crate::{
    addresses::Addresses,
    datagrams::Packer,
    exporter::{Exporter, Template},
    header::{Header, Key, Version},
    lru::LruMap,
    plausibility::{Countable, Losses},
    sequence::Sequence,
    sets::{Set, Templates},
    template::{Entries, Entry, MIN_TEMPLATE_ID, SET_HEADER, SetKind, is_padding},
};

/// The limits on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exporters: addresses with their ports, domains and versions. The least recently seen is
    /// evicted.
    pub max_exporters: usize,
    /// Templates of one exporter. The least recently seen is evicted.
    pub max_templates: usize,
    /// Bytes of a template record, and of the data of one options template. Longer records are
    /// rejected, and so is data beyond 4,000 bytes.
    pub max_template_bytes: usize,
    /// Bytes of all templates and their data, including overhead. The least recently seen exporters
    /// are evicted.
    pub max_total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_exporters: 32_768, max_templates: 512, max_template_bytes: 4096, max_total_bytes: 64 << 20 }
    }
}

/// Effects of the limits since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exporters evicted.
    pub exporters_evicted: u64,
    /// Templates evicted, with their exporter or in favour of another of the same exporter.
    pub templates_evicted: u64,
    /// Templates rejected, because they are too long or do not fit.
    pub templates_rejected: u64,
    /// Changes rejected, because too many were pending.
    pub changes_rejected: u64,
}

/// The destination slots that concern a datagram, one bit per slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationSlots {
    /// Those that receive it.
    pub wanted: u64,
    /// Those that do not, because another endpoint of their pool does. All templates are owed to
    /// them again when the exporter returns to them.
    pub left: u64,
}

impl DestinationSlots {
    /// Those that have an exporter's templates after this datagram, if these had them before.
    fn after(self, sent: u64) -> u64 {
        sent & !self.left | self.wanted
    }
}

/// The result of observing a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The wanted destination slots that have not received the templates known before this
    /// datagram.
    pub owed: u64,
    /// Its position in the exporter's sequence.
    pub sequence: Sequence,
    /// Whether the exporter's sequence shows losses.
    pub countable: Countable,
    /// Losses before this datagram that are certain now.
    pub losses: Losses,
    /// It defined, replaced or withdrew a template.
    pub templates_changed: bool,
    /// Its header, a set or a template record is invalid. The parts before that were used.
    pub malformed: bool,
}

/// The templates to be sent ahead of the datagram that was observed last.
#[derive(Default)]
struct Before {
    /// Its exporter, if templates are owed.
    index: Option<u32>,
    /// The templates of its address, if the exporter had none of its own.
    of_address: Vec<Template>,
    /// The previous versions of the templates that the datagram changed, `None` for new ones.
    replaced: BTreeMap<u16, Option<Template>>,
}

/// The known exporters. Used by one thread.
pub struct Exporters {
    limits: Limits,
    exporters: LruMap<Exporter>,
    addresses: Addresses,
    template_bytes: usize,
    changed: BTreeSet<(Key, u16)>,
    before: Before,
    counters: Counters,
    /// The time, as of the last [`Exporters::set_now`].
    now: Duration,
    refreshed: Refreshed,
}

impl Exporters {
    /// An empty state.
    pub fn new(limits: Limits) -> Exporters {
        Exporters {
            limits: Limits { max_exporters: limits.max_exporters.clamp(1, 1 << 30), ..limits },
            exporters: LruMap::new(),
            addresses: Addresses::new(),
            template_bytes: 0,
            changed: BTreeSet::new(),
            before: Before::default(),
            counters: Counters::default(),
            now: Duration::ZERO,
            refreshed: Refreshed::default(),
        }
    }

    /// The number of known exporters.
    pub fn len(&self) -> usize {
        self.exporters.len()
    }

    /// Whether no exporter is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all templates, which [`Limits::max_total_bytes`] limits.
    pub fn template_bytes(&self) -> usize {
        self.template_bytes
    }

    /// Effects of the limits since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Observes one datagram, in the order of its stream. `wanted`: the destination slots that
    /// receive it, one bit per slot. From now on they count as having the exporter's templates: the
    /// caller has to send them the owed templates first.
    pub fn observe(
        &mut self,
        source: SocketAddr,
        format: Format,
        payload: &[u8],
        captured_at_ns: u64,
        wanted: u64,
    ) -> Observed {
        self.observe_in_pools(source, format, payload, captured_at_ns, DestinationSlots { wanted, left: 0 })
    }

    /// As [`Exporters::observe`], for destinations in pools.
    pub fn observe_in_pools(
        &mut self,
        source: SocketAddr,
        format: Format,
        payload: &[u8],
        captured_at_ns: u64,
        slots: DestinationSlots,
    ) -> Observed {
        self.observe_sets(source, format, payload, captured_at_ns, slots, |_| {})
    }

    /// As [`Exporters::observe_in_pools`], for a reader that decodes data: `visit` is called with
    /// what the sets contain, in order. A template applies to the data after it.
    pub fn observe_sets<'p>(
        &mut self,
        source: SocketAddr,
        format: Format,
        payload: &'p [u8],
        captured_at_ns: u64,
        slots: DestinationSlots,
        visit: impl FnMut(Set<'p, '_>),
    ) -> Observed {
        self.forget_before();
        let Some(header) = Header::read(source, format, payload) else {
            let is_flow = matches!(format, Format::NetFlow5 | Format::NetFlow9 | Format::Ipfix | Format::Sflow5);
            return Observed { malformed: is_flow, ..Observed::default() };
        };
        let mut observed = Observed::default();
        let index = self.index_of(header.key, captured_at_ns);
        let mut units = header.units;
        if let Some((version, sets)) = header.sets {
            let lacking = slots.wanted & !self.exporters.get(index).sent;
            if lacking != 0 {
                self.refreshed.sent(lacking, index, self.now);
                if self.prepare_templates(index, slots) {
                    observed.owed = lacking;
                }
            }
            let records = self.read_sets(index, version, sets, captured_at_ns, &mut observed, visit);
            if version == Version::Ipfix {
                units = records;
            }
            let exporter = self.exporters.get_mut(index);
            if observed.templates_changed {
                // Slots that do not receive this datagram no longer have the current templates.
                exporter.sent &= slots.wanted;
            }
            exporter.sent = slots.after(exporter.sent);
        }
        let exporter = self.exporters.get_mut(index);
        exporter.seen_at_ns = exporter.seen_at_ns.max(captured_at_ns);
        let step = exporter.tracker.step(header.sequence, header.unit, units, header.other_units);
        observed.sequence = step.sequence;
        (observed.countable, observed.losses) = exporter.plausibility.judge(step, units);
        observed
    }

    /// Appends the datagrams to send ahead of the one that was observed last, if templates are
    /// owed: all templates of its exporter before that datagram, then the newest data of its
    /// options templates, in datagrams of at most `max_bytes` unless one record is longer. Their
    /// headers are those of `payload`, with the preceding sequence numbers.
    pub fn template_datagrams(
        &self,
        source: SocketAddr,
        format: Format,
        payload: &[u8],
        max_bytes: usize,
        out: &mut Vec<Vec<u8>>,
    ) {
        let Some(header) = Header::read(source, format, payload) else { return };
        let Some((version, _)) = header.sets else { return };
        let mut templates: Vec<&Template> = self.before.of_address.iter().collect();
        if templates.is_empty() {
            let Some(index) = self.before.index.or_else(|| self.exporters.find(&header.key)) else { return };
            templates.extend(&self.exporters.get(index).templates);
            templates.retain(|template| !self.before.replaced.contains_key(&template.id));
            templates.extend(self.before.replaced.values().flatten());
        }
        templates.retain(|template| template.is_live());
        let mut packer = Packer::new(version, payload, max_bytes, out);
        for options in [false, true] {
            for template in templates.iter().filter(|template| template.options == options) {
                packer.add_template(options, &template.record);
            }
        }
        for template in templates {
            template.data.records().for_each(|record| packer.add_data(template.id, record));
        }
        packer.finish();
    }

    /// The destination in this slot, 0 to 63, is new or has returned: all templates are owed again.
    pub fn forget_slot(&mut self, slot: u32) {
        let kept = !1_u64.checked_shl(slot).unwrap_or(0);
        self.exporters.values_mut().for_each(|exporter| exporter.sent &= kept);
    }

    fn forget_before(&mut self) {
        self.before.index = None;
        self.before.of_address.clear();
        self.before.replaced.clear();
    }

    /// Prepares the templates that precede the observed datagram: those of its exporter, or what is
    /// known of its address and undisputed. False if there are none.
    fn prepare_templates(&mut self, index: u32, slots: DestinationSlots) -> bool {
        let key = *self.exporters.key(index);
        if self.exporters.get(index).live == 0 {
            let known = self.known_of_address(&key, None);
            self.before.of_address = known.values().filter_map(|known| known.agreed()).cloned().collect();
            if self.before.of_address.is_empty() {
                return false;
            }
        }
        if let Some(whole) = self.addresses.get(&key).and_then(|address| address.whole).filter(|whole| *whole != index)
        {
            let whole = self.exporters.get_mut(whole);
            whole.sent = slots.after(whole.sent);
        }
        self.before.index = Some(index);
        true
    }

    /// Reads the sets: learns templates and the data of options, and counts the records of IPFIX if
    /// their templates are known.
    fn read_sets<'p>(
        &mut self,
        index: u32,
        version: Version,
        mut sets: &'p [u8],
        at_ns: u64,
        observed: &mut Observed,
        mut visit: impl FnMut(Set<'p, '_>),
    ) -> Option<u32> {
        let mut records = Some(0_u32);
        while let (Some(set_id), Some(length)) = (u16_at(sets, 0), u16_at(sets, 2)) {
            let Some(contents) = sets.get(SET_HEADER..usize::from(length)) else {
                if is_padding(sets) {
                    break;
                }
                observed.malformed = true;
                visit(Set::Malformed { id: set_id, bytes: sets });
                return None;
            };
            let (set, rest) = sets.split_at(usize::from(length));
            sets = rest;
            if let Some(kind) = SetKind::from_set_id(version, set_id) {
                if Entries::new(kind, contents).any(|entry| entry.is_err()) {
                    observed.malformed = true;
                    visit(Set::Malformed { id: set_id, bytes: set });
                    continue;
                }
                for entry in Entries::new(kind, contents).flatten() {
                    observed.templates_changed |= self.apply(index, kind.options, entry, at_ns);
                    visit(match entry {
                        Entry::Template(id, record) => Set::template(kind, id, record),
                        Entry::Withdrawn(id) => Set::Withdrawn { id: Some(id), is_options: kind.options },
                        Entry::AllWithdrawn => Set::Withdrawn { id: None, is_options: kind.options },
                    });
                }
                continue;
            }
            visit(Set::Data { id: set_id, contents, templates: Templates::new(self, index) });
            let template = self.exporters.get(index).template(set_id);
            let template = template.filter(|template| set_id >= MIN_TEMPLATE_ID && template.is_live());
            if version == Version::Ipfix {
                let counted = template.and_then(|template| template.layout.count_records(contents));
                records = records.zip(counted).map(|(sum, more)| sum.wrapping_add(more));
            }
            if template.is_some_and(|template| template.options) {
                self.keep_data(index, set_id, contents, at_ns);
            }
        }
        records
    }
}
