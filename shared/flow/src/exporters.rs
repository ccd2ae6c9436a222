//! The exporters that a forwarder knows: templates, sequences, and which destinations have had the templates.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sekiwake_record::{Format, Shard};

use crate::{
    bytes::u16_at,
    change::{Change, ChangeKey, change_key, read_key, read_value, write_value},
    datagrams::Packer,
    header::{Header, Key, Version},
    recency::Recency,
    sequence::{Sequence, Tracker},
    template::{Entries, Entry, Layout, MIN_TEMPLATE_ID, SET_HEADER, SetKind, is_padding},
};

/// A template that is repeated as it was is reported so often, so that others know it to be alive.
const REPORT_AGAIN_NS: u64 = 600_000_000_000;

/// The most changes that wait to be taken. One that is refused is reported when its template is seen again.
const MAX_PENDING_CHANGES: usize = 262_144;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exporters: sources with their domains and versions. The least recently seen goes first.
    pub max_exporters: usize,
    /// Templates of one exporter. The one seen the longest ago goes first.
    pub max_templates: usize,
    /// Bytes of a template record. Longer ones are not kept.
    pub max_template_bytes: usize,
    /// Bytes of all templates, with what it takes to keep them. Exporters go, the least recently seen first.
    pub max_total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_exporters: 32_768, max_templates: 512, max_template_bytes: 4096, max_total_bytes: 64 << 20 }
    }
}

/// What limits did, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exporters that made room for others.
    pub exporters_evicted: u64,
    /// Templates that went, with their exporters or to make room for another of theirs.
    pub templates_evicted: u64,
    /// Templates that were not kept: too long, or no room for them.
    pub templates_refused: u64,
    /// Changes that were not kept to be taken, because too many waited.
    pub changes_refused: u64,
}

/// What a datagram said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The destination slots, of those wanted, that have not had the templates known before this datagram.
    pub owed: u64,
    /// Its place in the exporter's sequence.
    pub sequence: Sequence,
    /// It defined, replaced or withdrew a template.
    pub templates_changed: bool,
    /// Its header, a set or a template record cannot be read. What comes before that in the datagram was used.
    pub malformed: bool,
}

/// One template, or the trace of one that was withdrawn.
#[derive(Clone, Debug)]
struct Template {
    id: u16,
    options: bool,
    /// When it was last seen, and last reported as a change; nanoseconds since 1970.
    at_ns: u64,
    reported_at_ns: u64,
    /// The record, with its identifier. Empty: withdrawn.
    record: Box<[u8]>,
    layout: Layout,
}

impl Template {
    fn cost(&self) -> usize {
        size_of::<Template>() + self.record.len() + self.layout.heap_bytes()
    }

    fn is_live(&self) -> bool {
        !self.record.is_empty()
    }
}

#[derive(Default)]
struct Exporter {
    /// In the order of their identifiers.
    templates: Vec<Template>,
    /// Of the templates, those that are not withdrawn.
    live: usize,
    /// The destination slots that have had the templates.
    sent: u64,
    tracker: Tracker,
}

impl Exporter {
    fn find(&self, id: u16) -> Result<usize, usize> {
        self.templates.binary_search_by_key(&id, |template| template.id)
    }
}

/// How the exporter of the datagram that was observed last stood before it.
#[derive(Default)]
struct Before {
    place: Option<u32>,
    /// Templates that the datagram changed: what they were, `None` for those that were not there.
    replaced: BTreeMap<u16, Option<Template>>,
}

/// What is known of exporters. Belongs to one thread.
pub struct Exporters {
    limits: Limits,
    exporters: Recency<Exporter>,
    template_bytes: usize,
    changed: BTreeSet<ChangeKey>,
    before: Before,
    counters: Counters,
}

impl Exporters {
    /// Knows nobody.
    pub fn new(limits: Limits) -> Exporters {
        Exporters {
            limits: Limits { max_exporters: limits.max_exporters.clamp(1, 1 << 30), ..limits },
            exporters: Recency::new(),
            template_bytes: 0,
            changed: BTreeSet::new(),
            before: Before::default(),
            counters: Counters::default(),
        }
    }

    /// How many exporters are known.
    pub fn len(&self) -> usize {
        self.exporters.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that templates take, which [`Limits::max_total_bytes`] bounds.
    pub fn template_bytes(&self) -> usize {
        self.template_bytes
    }

    /// What limits did, since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Looks at one datagram, in the order of its stream. `wanted`: the destination slots that it will go to, a bit for each.
    /// These count as having the exporter's templates from now on: see to it that what is owed to them goes out first.
    pub fn observe(
        &mut self,
        source: IpAddr,
        format: Format,
        payload: &[u8],
        captured_at_ns: u64,
        wanted: u64,
    ) -> Observed {
        self.observe_in_pools(source, format, payload, captured_at_ns, (wanted, 0))
    }

    /// As [`Exporters::observe`]. `left`: slots that the exporter does not go to because it goes to another one of their pool; they are
    /// owed all again when it comes back.
    pub fn observe_in_pools(
        &mut self,
        source: IpAddr,
        format: Format,
        payload: &[u8],
        captured_at_ns: u64,
        (wanted, left): (u64, u64),
    ) -> Observed {
        self.before.place = None;
        self.before.replaced.clear();
        let Some(header) = Header::read(source, format, payload) else {
            let is_flow = matches!(format, Format::NetFlow5 | Format::NetFlow9 | Format::Ipfix | Format::Sflow5);
            return Observed { malformed: is_flow, ..Observed::default() };
        };
        let mut observed = Observed::default();
        let place = self.place_of(header.key);
        let mut units = header.units;
        if let Some((version, sets)) = header.sets {
            let exporter = self.exporters.get(place);
            if exporter.live > 0 {
                observed.owed = wanted & !exporter.sent;
            }
            if observed.owed != 0 {
                self.before.place = Some(place);
            }
            let records = self.read_sets(place, version, sets, captured_at_ns, &mut observed);
            if version == Version::Ipfix {
                units = records;
            }
            let exporter = self.exporters.get_mut(place);
            if observed.templates_changed {
                // Whoever does not get this datagram does not have its templates any more.
                exporter.sent &= wanted;
            }
            exporter.sent = exporter.sent & !left | wanted;
        }
        observed.sequence = self.exporters.get_mut(place).tracker.place(header.sequence, header.unit, units);
        observed
    }

    /// Appends the datagrams to send ahead of the one that was observed last, if it is owed to somebody: all templates of its exporter
    /// as they were before it, each datagram at most `max_bytes` unless one record is longer. Their headers are those of `payload`,
    /// with the NetFlow v9 sequence numbers that come right before its own.
    pub fn template_datagrams(
        &self,
        source: IpAddr,
        format: Format,
        payload: &[u8],
        max_bytes: usize,
        out: &mut Vec<Vec<u8>>,
    ) {
        let Some(header) = Header::read(source, format, payload) else { return };
        let (Some((version, _)), Some(place)) = (header.sets, self.exporters.find(&header.key)) else { return };
        let is_before = self.before.place == Some(place);
        let replaced = |id| if is_before { self.before.replaced.get(&id) } else { None };
        let mut templates: Vec<&Template> = self.exporters.get(place).templates.iter().collect();
        templates.retain(|template| replaced(template.id).is_none());
        if is_before {
            templates.extend(self.before.replaced.values().flatten());
        }
        let mut packer = Packer::new(version, payload, max_bytes, out);
        for options in [false, true] {
            for template in templates.iter().filter(|template| template.is_live() && template.options == options) {
                packer.add(options, &template.record);
            }
        }
        packer.finish();
    }

    /// The destination in this slot, 0 to 63, is new or came back: it is owed everything again.
    pub fn forget_slot(&mut self, slot: u32) {
        let kept = !1_u64.checked_shl(slot).unwrap_or(0);
        self.exporters.values_mut().for_each(|exporter| exporter.sent &= kept);
    }

    /// Appends the templates that changed since the last call, for other replicas. What limits took away is no change.
    pub fn take_changes(&mut self, out: &mut Vec<Change>) {
        for bytes in std::mem::take(&mut self.changed) {
            let Some((key, id)) = read_key(&bytes) else { continue };
            let Some(place) = self.exporters.find(&key) else { continue };
            let exporter = self.exporters.get(place);
            let Ok(position) = exporter.find(id) else { continue };
            out.push(change_of(&key, &exporter.templates[position]));
        }
    }

    /// Appends all templates of the sources in this shard, and the withdrawals that are remembered, as changes.
    pub fn all_of_shard(&self, shard: Shard, out: &mut Vec<Change>) {
        for (key, exporter) in self.exporters.iter().filter(|(key, _)| key.shard() == shard) {
            out.extend(exporter.templates.iter().map(|template| change_of(key, template)));
        }
    }

    /// Takes over a template that another replica learned, or its withdrawal, if it is newer than what is known here. True if that
    /// changed the template: then all slots are owed this exporter's templates again. What is no change, whatever it is, changes nothing.
    pub fn learn(&mut self, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.before.place = None;
        self.before.replaced.clear();
        let Some((key, id)) = read_key(key) else { return false };
        let content = read_value(&key, id, value);
        if content.is_none() && !value.is_empty() {
            return false;
        }
        let known = self.exporters.find(&key);
        let position = known.and_then(|place| self.exporters.get(place).find(id).ok());
        if let (Some(place), Some(position)) = (known, position) {
            let template = &mut self.exporters.get_mut(place).templates[position];
            if at_ns <= template.at_ns {
                return false;
            }
            if (template.options, &*template.record) == content.unwrap_or((template.options, &[])) {
                template.at_ns = at_ns;
                template.reported_at_ns = at_ns;
                return false;
            }
        }
        let changed = match (content, known) {
            (Some((options, record)), _) => {
                let place = self.place_of(key);
                self.put(place, id, options, record, at_ns)
            }
            // Without the template there is nothing to withdraw.
            (None, Some(place)) if position.is_some() => self.withdraw(place, id, at_ns),
            (None, _) => false,
        };
        if let (true, Some(place)) = (changed, self.exporters.find(&key)) {
            self.exporters.get_mut(place).sent = 0;
        }
        changed
    }

    /// The place of an exporter, which is now the newest.
    fn place_of(&mut self, key: Key) -> u32 {
        if let Some(place) = self.exporters.find(&key) {
            self.exporters.touch(place);
            return place;
        }
        if let Some(oldest) = self.exporters.oldest().filter(|_| self.exporters.len() >= self.limits.max_exporters) {
            self.evict(oldest);
        }
        self.exporters.insert(key)
    }

    fn evict(&mut self, place: u32) {
        let exporter = self.exporters.remove(place);
        self.template_bytes -= exporter.templates.iter().map(Template::cost).sum::<usize>();
        self.counters.exporters_evicted += 1;
        self.counters.templates_evicted += exporter.live as u64;
    }

    /// Goes through the sets: learns templates, and counts the records of IPFIX if that can be done.
    fn read_sets(
        &mut self,
        place: u32,
        version: Version,
        mut sets: &[u8],
        at_ns: u64,
        observed: &mut Observed,
    ) -> Option<u32> {
        let mut records = Some(0_u32);
        while let (Some(set_id), Some(length)) = (u16_at(sets, 0), u16_at(sets, 2)) {
            let Some(contents) = sets.get(SET_HEADER..usize::from(length)) else {
                if is_padding(sets) {
                    break;
                }
                observed.malformed = true;
                return None;
            };
            sets = &sets[usize::from(length)..];
            if let Some(kind) = SetKind::of_set(version, set_id) {
                if Entries::new(kind, contents).any(|entry| entry.is_err()) {
                    observed.malformed = true;
                    continue;
                }
                for entry in Entries::new(kind, contents).flatten() {
                    observed.templates_changed |= self.apply(place, kind.options, entry, at_ns);
                }
            } else if version == Version::Ipfix {
                let exporter = self.exporters.get(place);
                let template = exporter.find(set_id).ok().map(|position| &exporter.templates[position]);
                let template = template.filter(|template| set_id >= MIN_TEMPLATE_ID && template.is_live());
                let counted = template.and_then(|template| template.layout.count_records(contents));
                records = records.zip(counted).map(|(sum, more)| sum.wrapping_add(more));
            }
        }
        records
    }

    /// Does what a template set says, and notes what others should know. True if that changed anything.
    fn apply(&mut self, place: u32, options: bool, entry: Entry<'_>, at_ns: u64) -> bool {
        match entry {
            Entry::Template(id, record) => {
                if let Ok(position) = self.exporters.get(place).find(id) {
                    let template = &mut self.exporters.get_mut(place).templates[position];
                    if template.options == options && *template.record == *record {
                        template.at_ns = template.at_ns.max(at_ns);
                        if at_ns.saturating_sub(template.reported_at_ns) >= REPORT_AGAIN_NS {
                            template.reported_at_ns = at_ns;
                            self.note_change(place, id);
                        }
                        return false;
                    }
                }
                let changed = self.put(place, id, options, record, at_ns);
                if changed {
                    self.note_change(place, id);
                }
                changed
            }
            Entry::Withdrawn(id) => {
                let exporter = self.exporters.get(place);
                let is_here = exporter.find(id).is_ok_and(|position| exporter.templates[position].options == options);
                let changed = is_here && self.withdraw(place, id, at_ns);
                if changed {
                    self.note_change(place, id);
                }
                changed
            }
            Entry::AllWithdrawn => {
                let templates = &self.exporters.get(place).templates;
                let templates = templates.iter().filter(|template| template.options == options && template.is_live());
                let ids: Vec<u16> = templates.map(|template| template.id).collect();
                for id in &ids {
                    self.apply(place, options, Entry::Withdrawn(*id), at_ns);
                }
                !ids.is_empty()
            }
        }
    }

    /// Keeps a template that differs from what is known. What limits refuse leaves no older layout behind. True if anything changed.
    fn put(&mut self, place: u32, id: u16, options: bool, record: &[u8], at_ns: u64) -> bool {
        let previous = self.take_out(place, id);
        let had = previous.as_ref().is_some_and(Template::is_live);
        // What a stream says now holds, also if a clock went back.
        let at_ns = previous.as_ref().map_or(at_ns, |template| at_ns.max(template.at_ns.saturating_add(1)));
        self.remember(place, id, previous);
        let Some(version) = self.exporters.key(place).version() else { return had };
        if record.len() > self.limits.max_template_bytes {
            self.counters.templates_refused += 1;
            return had;
        }
        let template = Template {
            id,
            options,
            at_ns,
            reported_at_ns: at_ns,
            record: record.into(),
            layout: Layout::of(SetKind { version, options }, record),
        };
        if !self.make_room(place, &template) {
            self.counters.templates_refused += 1;
            return had;
        }
        self.put_in(place, template);
        true
    }

    /// Leaves only a trace of a template, so that an older word of it does not bring it back. True if there was one.
    fn withdraw(&mut self, place: u32, id: u16, at_ns: u64) -> bool {
        let Some(previous) = self.take_out(place, id) else { return false };
        let was_live = previous.is_live();
        let at_ns = at_ns.max(previous.at_ns.saturating_add(1));
        let (record, layout) = (Box::default(), Layout::Fixed(0));
        let trace = Template { id, options: previous.options, at_ns, reported_at_ns: at_ns, record, layout };
        self.remember(place, id, Some(previous));
        self.put_in(place, trace);
        was_live
    }

    /// Makes room for one more template at a place, by what was seen the longest ago. False if that cannot be done.
    fn make_room(&mut self, place: u32, template: &Template) -> bool {
        let templates = &self.exporters.get(place).templates;
        if templates.len() >= self.limits.max_templates {
            let oldest = templates.iter().min_by_key(|template| template.at_ns);
            let Some(id) = oldest.filter(|oldest| oldest.at_ns < template.at_ns).map(|oldest| oldest.id) else {
                return false;
            };
            let evicted = self.take_out(place, id);
            self.counters.templates_evicted += u64::from(evicted.as_ref().is_some_and(Template::is_live));
            self.remember(place, id, evicted);
        }
        while self.template_bytes + template.cost() > self.limits.max_total_bytes {
            match self.exporters.oldest().filter(|oldest| *oldest != place) {
                Some(oldest) => self.evict(oldest),
                None => return false,
            }
        }
        true
    }

    fn take_out(&mut self, place: u32, id: u16) -> Option<Template> {
        let exporter = self.exporters.get_mut(place);
        let position = exporter.find(id).ok()?;
        let template = exporter.templates.remove(position);
        exporter.live -= usize::from(template.is_live());
        self.template_bytes -= template.cost();
        Some(template)
    }

    fn put_in(&mut self, place: u32, template: Template) {
        self.template_bytes += template.cost();
        let exporter = self.exporters.get_mut(place);
        if let Err(position) = exporter.find(template.id) {
            exporter.live += usize::from(template.is_live());
            exporter.templates.insert(position, template);
        }
    }

    /// Remembers how a template stood before the datagram that is being observed, if somebody is owed that.
    fn remember(&mut self, place: u32, id: u16, template: Option<Template>) {
        if self.before.place == Some(place) {
            self.before.replaced.entry(id).or_insert(template);
        }
    }

    fn note_change(&mut self, place: u32, id: u16) {
        let key = change_key(self.exporters.key(place), id);
        if self.changed.len() < MAX_PENDING_CHANGES || self.changed.contains(&key) {
            self.changed.insert(key);
            return;
        }
        self.counters.changes_refused += 1;
        let exporter = self.exporters.get_mut(place);
        if let Ok(position) = exporter.find(id) {
            exporter.templates[position].reported_at_ns = 0;
        }
    }
}

fn change_of(key: &Key, template: &Template) -> Change {
    Change {
        key: change_key(key, template.id),
        value: write_value(template.options, &template.record),
        at_ns: template.at_ns,
    }
}
