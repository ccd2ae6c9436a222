//! Exporters and templates within the limits.

use std::collections::BTreeMap;

use super::Exporters;
use crate::{
    addresses::MAX_PORTS,
    exporter::{Exporter, Template},
    header::{Key, Version},
    options_data::{MAX_BYTES, OptionsData},
    template::{Entry, Layout, SetKind},
};

const SECOND_NS: u64 = 1_000_000_000;

/// How often an unchanged template is reported, so that other replicas keep it.
const REPORT_AGAIN_NS: u64 = 600 * SECOND_NS;

/// How often changes of an options template's data are reported.
const REPORT_DATA_NS: u64 = 60 * SECOND_NS;

/// The limit on pending changes. A rejected change is reported when its template is seen again.
const MAX_PENDING_CHANGES: usize = 262_144;

/// How long a silent port keeps its place among those of its address.
const PORT_KEPT_NS: u64 = 3600 * SECOND_NS;

/// How long a template stays disputed.
const DISPUTED_NS: u64 = 3600 * SECOND_NS;

/// A template by what the exporters of an address say of it.
pub(super) struct KnownOfAddress<'a> {
    newest: Option<&'a Template>,
    is_disputed: bool,
    pub(super) at_ns: u64,
}

impl<'a> KnownOfAddress<'a> {
    /// The template, if it is live and no exporter of the address has another one.
    pub(super) fn agreed(&self) -> Option<&'a Template> {
        self.newest.filter(|_| !self.is_disputed)
    }

    fn add(&mut self, template: &'a Template) {
        self.at_ns = self.at_ns.max(template.at_ns);
        self.is_disputed |= template.disputed_at_ns.is_some();
        if !template.is_live() {
            return;
        }
        match self.newest {
            Some(newest) => {
                self.is_disputed |= !newest.defines_same(template);
                if newest.at_ns < template.at_ns {
                    self.newest = Some(template);
                }
            }
            None => self.newest = Some(template),
        }
    }
}

impl Exporters {
    /// The index of an exporter, which becomes the most recently used.
    pub(super) fn index_of(&mut self, key: Key, at_ns: u64) -> u32 {
        if let Some(index) = self.exporters.find(&key) {
            self.exporters.touch(index);
            return index;
        }
        if let Some(address) = self.addresses.get(&key) {
            if let Some(whole) = address.whole.filter(|_| address.is_one) {
                self.exporters.touch(whole);
                return whole;
            }
            if key.port() != 0 && address.ports.len() >= MAX_PORTS {
                match self.stalest_port(&key).filter(|port| at_ns.saturating_sub(port.seen_at_ns) >= PORT_KEPT_NS) {
                    Some(port) => drop(self.remove_exporter(port.index)),
                    None => return self.unite(&key),
                }
            }
        }
        self.add_exporter(key)
    }

    /// Adds an exporter. Slots that have the templates of the other exporters of its address are
    /// not owed these.
    pub(super) fn add_exporter(&mut self, key: Key) -> u32 {
        if let Some(oldest) = self.exporters.oldest().filter(|_| self.exporters.len() >= self.limits.max_exporters) {
            self.evict(oldest);
        }
        let sent = self.sent_by_address(&key);
        let index = self.exporters.insert(key);
        self.refreshed.sent(u64::MAX, index, self.now);
        self.addresses.add(&key, index);
        self.exporters.get_mut(index).sent = sent;
        index
    }

    fn sent_by_address(&self, key: &Key) -> u64 {
        let members = self.addresses.get(key).into_iter().flat_map(|address| address.members());
        members.map(|index| self.exporters.get(index).sent).reduce(|all, sent| all & sent).unwrap_or(0)
    }

    pub(super) fn stalest_port(&self, key: &Key) -> Option<StalePort> {
        let ports = self.addresses.get(key)?.ports.iter();
        let ports = ports.map(|index| StalePort { index: *index, seen_at_ns: self.exporters.get(*index).seen_at_ns });
        ports.min_by_key(|port| port.seen_at_ns)
    }

    /// What the exporters of an address say of its templates, or of one of them.
    pub(super) fn known_of_address(&self, key: &Key, only: Option<u16>) -> BTreeMap<u16, KnownOfAddress<'_>> {
        let mut known: BTreeMap<u16, KnownOfAddress<'_>> = BTreeMap::new();
        for index in self.addresses.get(key).into_iter().flat_map(|address| address.members()) {
            let exporter = self.exporters.get(index);
            let templates = match only {
                Some(id) => exporter.template(id).map(std::slice::from_ref).unwrap_or_default(),
                None => &exporter.templates,
            };
            for template in templates {
                let entry = known.entry(template.id);
                entry.or_insert(KnownOfAddress { newest: None, is_disputed: false, at_ns: 0 }).add(template);
            }
        }
        known
    }

    /// The template that applies to the data of an exporter: its own or, if it has none, the one
    /// that its address is known to have.
    pub(crate) fn template_for(&self, index: u32, id: u16) -> (Option<Version>, Option<&Template>) {
        let key = self.exporters.key(index);
        let exporter = self.exporters.get(index);
        let own = exporter.template(id);
        if own.is_some() || exporter.live > 0 {
            return (key.version(), own);
        }
        let known = self.known_of_address(key, Some(id));
        (key.version(), known.get(&id).and_then(KnownOfAddress::agreed))
    }

    /// Makes all exporters of an address one. Templates that they disagree about are disputed.
    fn unite(&mut self, key: &Key) -> u32 {
        let sent = self.sent_by_address(key);
        let of_template = |known: &KnownOfAddress<'_>| {
            let mut template = known.newest?.clone();
            template.disputed_at_ns = known.is_disputed.then_some(known.at_ns);
            Some(template)
        };
        let mut templates: Vec<Template> = self.known_of_address(key, None).values().filter_map(of_template).collect();
        templates.truncate(self.limits.max_templates);
        let members: Vec<u32> = self.addresses.get(key).into_iter().flat_map(|address| address.members()).collect();
        for index in members {
            self.remove_exporter(index);
        }
        let whole = self.exporters.insert(key.without_port());
        self.refreshed.sent(u64::MAX, whole, self.now);
        self.addresses.unite(key, whole);
        self.exporters.get_mut(whole).sent = sent;
        for template in templates {
            let id = template.id;
            self.insert(whole, template);
            self.record_change(whole, id);
        }
        whole
    }

    fn evict(&mut self, index: u32) {
        let exporter = self.remove_exporter(index);
        self.counters.exporters_evicted += 1;
        self.counters.templates_evicted += exporter.live as u64;
    }

    pub(super) fn remove_exporter(&mut self, index: u32) -> Exporter {
        let key = *self.exporters.key(index);
        self.addresses.remove(&key, index);
        let exporter = self.exporters.remove(index);
        self.template_bytes -= exporter.templates.iter().map(Template::cost).sum::<usize>();
        exporter
    }

    /// Applies an entry of a template set, and records the change for other replicas. True if it
    /// changed anything.
    pub(super) fn apply(&mut self, index: u32, options: bool, entry: Entry<'_>, at_ns: u64) -> bool {
        match entry {
            Entry::Template(id, record) => {
                if let Ok(position) = self.exporters.get(index).find(id) {
                    let template = &mut self.exporters.get_mut(index).templates[position];
                    if template.options == options && *template.record == *record {
                        return self.see_again(index, position, at_ns);
                    }
                }
                let Some(version) = self.exporters.key(index).version() else { return false };
                let template = Template::new(SetKind { version, options }, id, record, at_ns);
                let changed = self.put(index, Template { sent_at: self.now, ..template });
                if changed {
                    self.record_change(index, id);
                }
                changed
            }
            Entry::Withdrawn(id) => {
                let is_here =
                    self.exporters.get(index).template(id).is_some_and(|template| template.options == options);
                let changed = is_here && self.withdraw(index, id, at_ns);
                if changed {
                    self.record_change(index, id);
                }
                changed
            }
            Entry::AllWithdrawn => {
                let templates = &self.exporters.get(index).templates;
                let templates = templates.iter().filter(|template| template.options == options && template.is_live());
                let ids: Vec<u16> = templates.map(|template| template.id).collect();
                for id in &ids {
                    self.apply(index, options, Entry::Withdrawn(*id), at_ns);
                }
                !ids.is_empty()
            }
        }
    }

    /// An unchanged template was seen again. True if that ends a dispute.
    fn see_again(&mut self, index: u32, position: usize, at_ns: u64) -> bool {
        let template = &mut self.exporters.get_mut(index).templates[position];
        let id = template.id;
        template.sent_at = self.now;
        template.at_ns = template.at_ns.max(at_ns);
        match template.disputed_at_ns {
            Some(disputed_at_ns) if at_ns.saturating_sub(disputed_at_ns) < DISPUTED_NS => return false,
            Some(_) => {
                let Some(template) = self.remove(index, id) else { return false };
                self.remember(index, id, None);
                self.insert(index, Template { disputed_at_ns: None, reported_at_ns: at_ns, ..template });
                self.record_change(index, id);
                return true;
            }
            None => {}
        }
        if at_ns.saturating_sub(template.reported_at_ns) >= REPORT_AGAIN_NS {
            template.reported_at_ns = at_ns;
            template.is_data_unreported = false;
            self.record_change(index, id);
        }
        false
    }

    /// Stores a new or changed template. If the limits reject it, its older version is removed,
    /// too. True if the live templates changed.
    pub(super) fn put(&mut self, index: u32, mut template: Template) -> bool {
        let id = template.id;
        let previous = self.remove(index, id);
        let had = previous.as_ref().is_some_and(Template::is_live);
        if let Some(previous) = &previous {
            // The latest datagram wins, even if a clock was set back.
            template.at_ns = template.at_ns.max(previous.at_ns.saturating_add(1));
            // Without their ports, an exporter that changed its template cannot be told from two of
            // them with different ones.
            if !previous.record.is_empty() && self.is_united(index) {
                template.disputed_at_ns = Some(template.at_ns);
            }
        }
        self.remember(index, id, previous);
        if template.record.len() > self.limits.max_template_bytes || !self.make_room(index, &template) {
            self.counters.templates_rejected += 1;
            return had;
        }
        let is_live = template.is_live();
        self.insert(index, template);
        had || is_live
    }

    fn is_united(&self, index: u32) -> bool {
        self.addresses.get(self.exporters.key(index)).is_some_and(|address| address.is_one)
    }

    /// Replaces a template with the record that it was withdrawn, so that an older change does not
    /// restore it. True if there was a template.
    pub(super) fn withdraw(&mut self, index: u32, id: u16, at_ns: u64) -> bool {
        let Some(previous) = self.remove(index, id) else { return false };
        let was_live = previous.is_live();
        let at_ns = at_ns.max(previous.at_ns.saturating_add(1));
        let trace = Template { options: previous.options, ..Template::withdrawn(id, at_ns) };
        self.remember(index, id, Some(previous));
        self.insert(index, trace);
        was_live
    }

    /// Keeps the data of an options template, and records changes of it for other replicas.
    pub(super) fn keep_data(&mut self, index: u32, id: u16, contents: &[u8], at_ns: u64) {
        let max_bytes = self.limits.max_template_bytes.min(MAX_BYTES);
        let Some(version) = self.exporters.key(index).version() else { return };
        let exporter = self.exporters.get_mut(index);
        let Ok(position) = exporter.find(id) else { return };
        let template = &mut exporter.templates[position];
        let cost = template.cost();
        let was_empty = template.data.is_empty();
        let scope = Layout::of_scope(SetKind { version, options: true }, &template.record);
        template.data_sent_at = self.now;
        template.at_ns = template.at_ns.max(at_ns);
        template.is_data_unreported |= template.data.keep(&scope, &template.layout, contents, max_bytes);
        let is_due = was_empty || at_ns.saturating_sub(template.reported_at_ns) >= REPORT_DATA_NS;
        let is_reported = template.is_data_unreported && is_due;
        if is_reported {
            template.is_data_unreported = false;
            template.reported_at_ns = at_ns;
        }
        self.template_bytes = self.template_bytes - cost + template.cost();
        if !self.evict_others(index, 0) {
            let template = &mut self.exporters.get_mut(index).templates[position];
            self.template_bytes -= template.data.heap_bytes();
            template.data = OptionsData::default();
        }
        if is_reported {
            self.record_change(index, id);
        }
    }

    /// Makes room for a template at an index by evicting the least recently seen. False if there is
    /// not enough to evict.
    fn make_room(&mut self, index: u32, template: &Template) -> bool {
        let templates = &self.exporters.get(index).templates;
        if templates.len() >= self.limits.max_templates {
            let oldest = templates.iter().min_by_key(|template| template.at_ns);
            let Some(id) = oldest.filter(|oldest| oldest.at_ns < template.at_ns).map(|oldest| oldest.id) else {
                return false;
            };
            let evicted = self.remove(index, id);
            self.counters.templates_evicted += u64::from(evicted.as_ref().is_some_and(Template::is_live));
            self.remember(index, id, evicted);
        }
        self.evict_others(index, template.cost())
    }

    /// Evicts exporters until so many bytes fit. False if there are not enough others.
    pub(super) fn evict_others(&mut self, index: u32, bytes: usize) -> bool {
        while self.template_bytes + bytes > self.limits.max_total_bytes {
            match self.exporters.oldest().filter(|oldest| *oldest != index) {
                Some(oldest) => self.evict(oldest),
                None => return false,
            }
        }
        true
    }

    pub(super) fn remove(&mut self, index: u32, id: u16) -> Option<Template> {
        let exporter = self.exporters.get_mut(index);
        let position = exporter.find(id).ok()?;
        let template = exporter.templates.remove(position);
        exporter.live -= usize::from(template.is_live());
        self.template_bytes -= template.cost();
        Some(template)
    }

    pub(super) fn insert(&mut self, index: u32, template: Template) {
        self.template_bytes += template.cost();
        let exporter = self.exporters.get_mut(index);
        if let Err(position) = exporter.find(template.id) {
            exporter.live += usize::from(template.is_live());
            exporter.templates.insert(position, template);
        }
    }

    /// Remembers a template as it was before the observed datagram, if it is owed to a slot.
    fn remember(&mut self, index: u32, id: u16, template: Option<Template>) {
        if self.before.index == Some(index) {
            self.before.replaced.entry(id).or_insert(template);
        }
    }

    fn record_change(&mut self, index: u32, id: u16) {
        let change = (*self.exporters.key(index), id);
        if self.changed.len() < MAX_PENDING_CHANGES || self.changed.contains(&change) {
            self.changed.insert(change);
            return;
        }
        self.counters.changes_rejected += 1;
        let exporter = self.exporters.get_mut(index);
        if let Ok(position) = exporter.find(id) {
            exporter.templates[position].reported_at_ns = 0;
        }
    }
}

/// The port of an address that was silent for the longest time.
pub(super) struct StalePort {
    pub(super) index: u32,
    pub(super) seen_at_ns: u64,
}
