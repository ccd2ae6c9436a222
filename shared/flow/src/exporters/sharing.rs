//! Templates that replicas share: in two forms, so that replicas of the version before can take
//! part.

use std::collections::BTreeSet;

use sekiwake_record::Shard;

use super::Exporters;
use crate::{
    addresses::MAX_PORTS,
    change::{Change, Content, Place},
    exporter::Template,
    header::Key,
    options_data::OptionsData,
    template::Layout,
};

impl Exporters {
    /// Appends the templates that changed since the last call, for other replicas. Evictions are
    /// not changes.
    pub fn take_changes(&mut self, out: &mut Vec<Change>) {
        let changed = std::mem::take(&mut self.changed);
        self.changes_of(changed, out);
    }

    /// Appends all templates and remembered withdrawals of the sources in this shard, as changes.
    pub fn shard_changes(&self, shard: Shard, out: &mut Vec<Change>) {
        let exporters = self.exporters.iter().filter(|(key, _)| key.shard() == shard);
        let all = exporters.flat_map(|(key, exporter)| exporter.templates.iter().map(|template| (*key, template.id)));
        self.changes_of(all, out);
    }

    fn changes_of(&self, changed: impl IntoIterator<Item = (Key, u16)>, out: &mut Vec<Change>) {
        let mut of_addresses = BTreeSet::new();
        for (key, id) in changed {
            of_addresses.insert((key.without_port(), id));
            let Some(index) = self.exporters.find(&key) else { continue };
            let template = self.exporters.get(index).template(id);
            // Of an address alone, the other form says everything but the data.
            let template = template.filter(|template| key.port() != 0 || !template.data.is_empty());
            out.extend(template.map(|template| Change::of_exporter(&key, template)));
        }
        for (key, id) in of_addresses {
            let known = self.known_of_address(&key, Some(id));
            out.extend(known.get(&id).map(|known| Change::of_address(&key, id, known.agreed(), known.at_ns)));
        }
    }

    /// Applies a change from another replica if it is newer than the local state. True if that
    /// changed the template: then the exporter's templates are owed to all slots again. Invalid
    /// changes are ignored.
    pub fn learn(&mut self, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.forget_before();
        let Some(place) = Place::read(key) else { return false };
        let content = Content::read(&place, value);
        if content.is_none() && !value.is_empty() {
            return false;
        }
        let Place { key, id, .. } = place;
        let learned = content.as_ref().map(|content| self.template_of(content, id, at_ns));
        if self.is_superfluous(&key, learned.as_ref()) {
            return false;
        }
        let known = self.exporters.find(&key);
        if let Some(index) = known
            && let Some(template) = self.exporters.get(index).template(id)
        {
            let is_new = at_ns > template.at_ns;
            let is_same = match &learned {
                Some(learned) => template.defines_same(learned),
                None => template.record.is_empty(),
            };
            if is_same || !is_new {
                if let Some(learned) = learned.filter(|_| is_same) {
                    self.learn_data(index, learned, is_new);
                }
                return false;
            }
        }
        let index = match (known, &learned) {
            (Some(index), _) => index,
            (None, Some(_)) => match self.learn_exporter(key, at_ns) {
                Some(index) => index,
                None => return false,
            },
            // An unknown template cannot be withdrawn.
            (None, None) => return false,
        };
        let changed = match learned {
            Some(learned) => {
                self.forget_of_address(&key, &learned);
                self.put(index, learned)
            }
            None => self.withdraw(index, id, at_ns),
        };
        if changed {
            let exporter = self.exporters.get_mut(index);
            exporter.sent = 0;
            exporter.seen_at_ns = exporter.seen_at_ns.max(at_ns);
            self.owe_address(&key);
        }
        changed
    }

    fn template_of(&self, content: &Content<'_>, id: u16, at_ns: u64) -> Template {
        let mut template = Template::new(content.kind, id, content.record, at_ns);
        let scope = Layout::of_scope(content.kind, content.record);
        template.data.keep(&scope, &template.layout, content.data, self.limits.max_template_bytes);
        template
    }

    /// Whether a change says nothing: of a port of an address that is one exporter, or of an
    /// address what is known of one of its ports.
    fn is_superfluous(&self, key: &Key, learned: Option<&Template>) -> bool {
        let Some(address) = self.addresses.get(key) else { return false };
        let of_port = |index: &u32| {
            learned.is_some_and(|learned| {
                self.exporters.get(*index).template(learned.id).is_some_and(|template| template.defines_same(learned))
            })
        };
        if key.port() == 0 { address.ports.iter().any(of_port) } else { address.is_one }
    }

    /// Adds an exporter. Of the ports of an address the last seen are kept.
    fn learn_exporter(&mut self, key: Key, at_ns: u64) -> Option<u32> {
        let ports = self.addresses.get(&key).map_or(0, |address| address.ports.len());
        if key.port() != 0 && ports >= MAX_PORTS {
            let stalest = self.stalest_port(&key).filter(|port| port.seen_at_ns < at_ns)?;
            self.remove_exporter(stalest.index);
        }
        let index = self.add_exporter(key);
        self.exporters.get_mut(index).seen_at_ns = at_ns;
        Some(index)
    }

    /// What is known of a port is not kept for its address as well.
    fn forget_of_address(&mut self, key: &Key, learned: &Template) {
        let whole = self.addresses.get(key).filter(|_| key.port() != 0).and_then(|address| address.whole);
        let Some(whole) = whole else { return };
        let exporter = self.exporters.get(whole);
        if exporter.template(learned.id).is_some_and(|template| template.defines_same(learned)) {
            self.remove(whole, learned.id);
            if self.exporters.get(whole).templates.is_empty() {
                self.remove_exporter(whole);
            }
        }
    }

    /// Takes over the data of a known template, and its time.
    fn learn_data(&mut self, index: u32, learned: Template, is_new: bool) {
        let Some(mut template) = self.remove(index, learned.id) else { return };
        if is_new || template.data.is_empty() {
            template.data = learned.data;
        }
        template.at_ns = template.at_ns.max(learned.at_ns);
        template.reported_at_ns = template.reported_at_ns.max(learned.at_ns);
        self.insert_within_limits(index, template);
    }

    /// Stores a template that was there before. Its data is dropped if it does not fit.
    fn insert_within_limits(&mut self, index: u32, mut template: Template) {
        if !self.evict_others(index, template.cost()) {
            template.data = OptionsData::default();
        }
        self.insert(index, template);
    }

    /// The exporters of an address without templates of their own are owed those of the address.
    fn owe_address(&mut self, key: &Key) {
        let Some(address) = self.addresses.get(key) else { return };
        for index in &address.ports {
            let exporter = self.exporters.get_mut(*index);
            if exporter.live == 0 {
                exporter.sent = 0;
            }
        }
    }
}
