//! One exporter: its templates with the data of its options, and its sequence.

use std::time::Duration;

use crate::{
    options_data::OptionsData,
    plausibility::Plausibility,
    sequence::Tracker,
    template::{Layout, SetKind},
};

/// A template, or the record that one was withdrawn.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) id: u16,
    pub(crate) options: bool,
    /// When it or its data was last seen, and last reported as a change; nanoseconds since 1970.
    pub(crate) at_ns: u64,
    pub(crate) reported_at_ns: u64,
    /// When the exporter last sent it, and data for it; on the clock of
    /// [`Exporters::set_now`](crate::Exporters::set_now).
    pub(crate) sent_at: Duration,
    pub(crate) data_sent_at: Duration,
    /// When datagrams of one address last disagreed about it, if their ports are not told apart.
    pub(crate) disputed_at_ns: Option<u64>,
    /// The record, with its identifier. Empty: withdrawn.
    pub(crate) record: Box<[u8]>,
    pub(crate) layout: Layout,
    /// Of an options template.
    pub(crate) data: OptionsData,
    /// The data has changed since the last report.
    pub(crate) is_data_unreported: bool,
}

impl Template {
    pub(crate) fn new(kind: SetKind, id: u16, record: &[u8], at_ns: u64) -> Template {
        Template {
            options: kind.options,
            layout: Layout::new(kind, record),
            record: record.into(),
            ..Template::withdrawn(id, at_ns)
        }
    }

    /// The record that a template was withdrawn.
    pub(crate) fn withdrawn(id: u16, at_ns: u64) -> Template {
        Template {
            id,
            options: false,
            at_ns,
            reported_at_ns: at_ns,
            sent_at: Duration::ZERO,
            data_sent_at: Duration::ZERO,
            disputed_at_ns: None,
            record: Box::default(),
            layout: Layout::Fixed(0),
            data: OptionsData::default(),
            is_data_unreported: false,
        }
    }

    pub(crate) fn cost(&self) -> usize {
        size_of::<Template>() + self.record.len() + self.layout.heap_bytes() + self.data.heap_bytes()
    }

    /// Neither withdrawn nor disputed.
    pub(crate) fn is_live(&self) -> bool {
        !self.record.is_empty() && self.disputed_at_ns.is_none()
    }

    /// When the exporter last sent it and, if it has data, data for it.
    fn repeated_at(&self) -> Duration {
        if self.data.is_empty() { self.sent_at } else { self.sent_at.min(self.data_sent_at) }
    }

    pub(crate) fn defines_same(&self, other: &Template) -> bool {
        self.options == other.options && self.record == other.record
    }
}

#[derive(Default)]
pub(crate) struct Exporter {
    /// Ordered by identifier.
    pub(crate) templates: Vec<Template>,
    /// The number of live templates.
    pub(crate) live: usize,
    /// The destination slots that have received the templates.
    pub(crate) sent: u64,
    /// The latest capture time of its datagrams and templates.
    pub(crate) seen_at_ns: u64,
    pub(crate) tracker: Tracker,
    pub(crate) plausibility: Plausibility,
}

impl Exporter {
    /// The position of a template, or where to insert it.
    pub(crate) fn find(&self, id: u16) -> Result<usize, usize> {
        self.templates.binary_search_by_key(&id, |template| template.id)
    }

    /// Since when it has sent all of its live templates itself. `None` if it has none.
    pub(crate) fn repeated_at(&self) -> Option<Duration> {
        self.templates.iter().filter(|template| template.is_live()).map(Template::repeated_at).min()
    }

    pub(crate) fn template(&self, id: u16) -> Option<&Template> {
        self.find(id).ok().map(|position| &self.templates[position])
    }
}
