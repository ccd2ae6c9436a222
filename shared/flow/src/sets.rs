//! What the sets of a datagram contain, for a reader that decodes their data.

use std::fmt;

use crate::{
    exporters::Exporters,
    known::{TemplateField, fields},
    template::{MIN_TEMPLATE_ID, SetKind},
};

/// A template, a withdrawal, or data: as [`Exporters::observe_sets`] finds them.
pub enum Set<'p, 'e> {
    /// This template was defined. It is not kept if a limit rejects it.
    Template {
        /// From 256.
        id: u16,
        /// Its fields.
        layout: TemplateLayout<'p>,
    },
    /// This template, or all of its kind, were withdrawn.
    Withdrawn {
        /// `None`: all.
        id: Option<u16>,
        /// Options templates.
        is_options: bool,
    },
    /// Data records, perhaps with padding at the end.
    Data {
        /// The set's identifier, which is that of the template. Below 256 it is reserved.
        id: u16,
        /// Without the set's header.
        contents: &'p [u8],
        /// What is known before this set.
        templates: Templates<'e>,
    },
    /// A set of templates that are invalid, or the rest of the datagram after a set that exceeds
    /// it.
    Malformed {
        /// The set's identifier.
        id: u16,
        /// From the set's header.
        bytes: &'p [u8],
    },
}

impl<'p> Set<'p, '_> {
    pub(crate) fn template(kind: SetKind, id: u16, record: &'p [u8]) -> Self {
        Set::Template { id, layout: TemplateLayout { kind, record } }
    }
}

/// The fields of a template.
#[derive(Clone, Copy, Debug)]
pub struct TemplateLayout<'a> {
    kind: SetKind,
    record: &'a [u8],
}

impl<'a> TemplateLayout<'a> {
    /// Whether it is an options template.
    pub fn is_options(&self) -> bool {
        self.kind.options
    }

    /// Its fields, in order. One per four bytes of the template, at most.
    pub fn fields(&self) -> impl Iterator<Item = TemplateField> + use<'a> {
        fields(self.kind, self.record)
    }
}

/// Why there is no template for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingTemplate {
    /// It has not been received.
    Unknown,
    /// The exporter withdrew it.
    Withdrawn,
    /// Exporters of one address, whose ports do not tell them apart, use it for different data.
    Disputed,
    /// The identifier is below 256.
    Reserved,
}

impl fmt::Display for MissingTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MissingTemplate::Unknown => "template has not been received",
            MissingTemplate::Withdrawn => "template was withdrawn",
            MissingTemplate::Disputed => "template is disputed: exporters of this address define it differently",
            MissingTemplate::Reserved => "set has a reserved identifier",
        })
    }
}

/// The templates that apply to the data of one exporter.
#[derive(Clone, Copy)]
pub struct Templates<'e> {
    exporters: &'e Exporters,
    index: u32,
}

impl<'e> Templates<'e> {
    pub(crate) fn new(exporters: &'e Exporters, index: u32) -> Templates<'e> {
        Templates { exporters, index }
    }

    /// The template with this identifier: the exporter's own or, if it has sent none, what is known
    /// of its address.
    ///
    /// # Errors
    /// Why there is none.
    pub fn get(&self, id: u16) -> Result<TemplateLayout<'e>, MissingTemplate> {
        if id < MIN_TEMPLATE_ID {
            return Err(MissingTemplate::Reserved);
        }
        let (version, template) = self.exporters.template_for(self.index, id);
        let template = template.ok_or(MissingTemplate::Unknown)?;
        if template.disputed_at_ns.is_some() {
            return Err(MissingTemplate::Disputed);
        }
        let version = version.ok_or(MissingTemplate::Unknown)?;
        if !template.is_live() {
            return Err(MissingTemplate::Withdrawn);
        }
        let kind = SetKind { version, options: template.options };
        Ok(TemplateLayout { kind, record: &template.record })
    }
}
