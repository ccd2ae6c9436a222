//! The sets of NetFlow v9 and IPFIX.
//!
//! A decoder of our own on the template records that `sekiwake-flow` keeps, because netflow_parser
//! accepts templates only in its own serialization, does not know IANA's spelling of the names, and
//! needs an edition of syn that the rules for dependencies reject.

use std::borrow::Cow;

use sekiwake_flow::{Set, TemplateField, TemplateLayout, Templates};
use sekiwake_record::{
    Format,
    bytes::{u16_at, u32_at},
};

use super::{
    Field, Flow, FlowType, Header, MAX_FIELDS, MAX_ROWS, Name, REVERSE_ENTERPRISE, Time, Value, elements::ELEMENTS,
    lists, netflow5::uptime_to_time, value::Type,
};
use crate::{Row, Undecoded};

/// Elements that are used, not only shown.
const FLOW_END_SYS_UP_TIME: u16 = 21;
const FLOW_START_SYS_UP_TIME: u16 = 22;
const FLOW_START_MILLISECONDS: u16 = 152;
const FLOW_END_MILLISECONDS: u16 = 153;
const SYSTEM_INIT_TIME_MILLISECONDS: u16 = 160;
const PADDING_OCTETS: u16 = 210;

/// How to decode a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Specifier {
    pub(super) name: Name,
    repetition: u16,
    kind: Type,
    /// Bytes; `None` if each record says the length.
    length: Option<u16>,
    /// The element of the registry, 0 for others.
    element: u16,
}

impl Specifier {
    pub(super) fn new(format: Format, field: &TemplateField) -> Specifier {
        let TemplateField { element, enterprise, length, is_scope } = *field;
        let unknown = Name::Number { enterprise: enterprise.unwrap_or(0), element };
        let (name, kind) = match enterprise {
            None if is_scope && format == Format::NetFlow9 => scope(element),
            None | Some(0) => known(element).map(|(name, kind)| (Name::Known(name), kind)),
            Some(REVERSE_ENTERPRISE) => known(element).map(|(name, kind)| (Name::Reverse(name), kind)),
            Some(_) => None,
        }
        .unwrap_or((unknown, Type::Octets));
        let is_known = matches!(name, Name::Known(_)) && !(is_scope && format == Format::NetFlow9);
        Specifier { name, repetition: 0, kind, length, element: if is_known { element } else { 0 } }
    }

    /// The shortest encoding, bytes.
    fn least(&self) -> usize {
        self.length.map_or(1, usize::from)
    }

    /// Takes the bytes of this field from the start of `rest`. `None` if they are incomplete.
    pub(super) fn take<'p>(&self, rest: &mut &'p [u8]) -> Option<&'p [u8]> {
        let length = match (self.length, rest.first()) {
            (Some(length), _) => length.into(),
            // RFC 7011 §7.
            (None, Some(255)) => {
                let length = usize::from(u16_at(rest, 1)?);
                *rest = rest.get(3..)?;
                length
            }
            (None, Some(length)) => {
                let length = usize::from(*length);
                *rest = &rest[1..];
                length
            }
            (None, None) => return None,
        };
        let (bytes, after) = rest.split_at_checked(length)?;
        *rest = after;
        Some(bytes)
    }

    pub(super) fn decode<'p>(&self, bytes: &'p [u8], context: &mut lists::Context<'_>) -> Value<'p> {
        match self.kind {
            Type::BasicList | Type::SubTemplateList | Type::SubTemplateMultiList => {
                lists::decode(self.kind, bytes, context)
            }
            kind => Value::decode(kind, bytes),
        }
    }
}

fn known(element: u16) -> Option<(&'static str, Type)> {
    ELEMENTS.get(usize::from(element)).copied().flatten()
}

/// The scopes of NetFlow v9 (RFC 3954 §6.1).
fn scope(element: u16) -> Option<(Name, Type)> {
    let name = match element {
        1 => "scopeSystem",
        2 => "scopeInterface",
        3 => "scopeLineCard",
        4 => "scopeCache",
        5 => "scopeTemplate",
        _ => return None,
    };
    Some((Name::Known(name), Type::Unsigned))
}

/// How to decode the records of a template.
#[derive(Default)]
pub(super) struct Plan {
    specifiers: Vec<Specifier>,
    /// The shortest record, bytes.
    least: usize,
    uptimes: Option<Uptimes>,
}

/// The positions of fields among those of a record, without padding.
struct Uptimes {
    start: usize,
    end: usize,
    /// When the exporter started. In NetFlow v9 the header says it.
    start_of_system: Option<usize>,
}

impl Plan {
    /// The work is about proportional to the number of fields.
    pub(super) fn new(format: Format, layout: &TemplateLayout<'_>) -> Plan {
        let mut specifiers: Vec<Specifier> = layout.fields().map(|field| Specifier::new(format, &field)).collect();
        let mut names: Vec<(Name, usize)> =
            specifiers.iter().enumerate().map(|(position, specifier)| (specifier.name, position)).collect();
        names.sort_unstable();
        let mut repetition = 0;
        for pair in names.windows(2) {
            repetition = if pair[0].0 == pair[1].0 { repetition + 1 } else { 0 };
            specifiers[pair[1].1].repetition = repetition;
        }
        let least = specifiers.iter().map(Specifier::least).sum();
        let uptimes = Uptimes::find(&specifiers);
        Plan { specifiers, least, uptimes }
    }

    pub(super) fn fields(&self) -> usize {
        self.specifiers.len()
    }

    pub(super) fn least(&self) -> usize {
        self.least
    }

    /// Takes one record from the start of `rest`, and appends its fields. `None` if it is
    /// incomplete.
    pub(super) fn record<'p>(
        &self,
        rest: &mut &'p [u8],
        context: &mut lists::Context<'_>,
        fields: &mut Vec<Field<'p>>,
    ) -> Option<()> {
        for specifier in &self.specifiers {
            let bytes = specifier.take(rest)?;
            if specifier.element != PADDING_OCTETS {
                let value = specifier.decode(bytes, context);
                fields.push(Field { name: specifier.name, repetition: specifier.repetition, value });
            }
        }
        Some(())
    }
}

impl Uptimes {
    fn find(specifiers: &[Specifier]) -> Option<Uptimes> {
        let mut shown = specifiers.iter().filter(|specifier| specifier.element != PADDING_OCTETS);
        let position = |element| shown.clone().position(|specifier| specifier.element == element);
        let has_milliseconds =
            [FLOW_START_MILLISECONDS, FLOW_END_MILLISECONDS].map(position).iter().any(Option::is_some);
        let uptimes = Uptimes {
            start: position(FLOW_START_SYS_UP_TIME)?,
            end: position(FLOW_END_SYS_UP_TIME)?,
            start_of_system: position(SYSTEM_INIT_TIME_MILLISECONDS),
        };
        (!has_milliseconds && shown.next().is_some()).then_some(uptimes)
    }

    /// Appends start and end of a flow as times, if the start of the system is known.
    fn append(&self, header: &HeaderTimes, fields: &mut Vec<Field<'_>>) {
        let number = |position: usize| match fields.get(position)?.value {
            Value::Unsigned(number) => u32::try_from(number).ok(),
            _ => None,
        };
        let header = match self.start_of_system.and_then(|position| fields.get(position)) {
            Some(Field { value: Value::Time(time), .. }) => {
                HeaderTimes { exported_at_ms: time.milliseconds(), uptime_ms: Some(0) }
            }
            _ => *header,
        };
        let Some(uptime_ms) = header.uptime_ms else { return };
        let times =
            [("flowStartMilliseconds", self.start), ("flowEndMilliseconds", self.end)].map(|(name, position)| {
                let time = uptime_to_time(header.exported_at_ms, uptime_ms, number(position)?)?;
                Some(Field::new(name, Value::Time(time)))
            });
        fields.extend(times.into_iter().flatten());
    }
}

/// What the header says of time.
#[derive(Clone, Copy)]
struct HeaderTimes {
    /// Milliseconds since 1970.
    exported_at_ms: u64,
    /// The uptime of the exporter then.
    uptime_ms: Option<u32>,
}

/// Decodes the sets of one datagram.
pub(crate) struct SetDecoder<'p> {
    format: Format,
    payload: &'p [u8],
    header: Header,
    times: HeaderTimes,
    rows_left: usize,
    fields_left: usize,
    /// The fields of the last row, whose memory is used again.
    fields: Vec<Field<'p>>,
}

impl<'p> SetDecoder<'p> {
    /// `None` if the header is incomplete.
    pub(crate) fn new(format: Format, payload: &'p [u8]) -> Option<SetDecoder<'p>> {
        let is_v9 = format == Format::NetFlow9;
        let seconds = u64::from(u32_at(payload, if is_v9 { 8 } else { 4 })?);
        let header = Header {
            exported_at: Time::new(seconds, 0, 0),
            sequence: u32_at(payload, if is_v9 { 12 } else { 8 })?,
            domain: Some(u32_at(payload, if is_v9 { 16 } else { 12 })?),
            uptime_ms: if is_v9 { u32_at(payload, 4) } else { None },
        };
        Some(SetDecoder {
            format,
            payload,
            header,
            times: HeaderTimes { exported_at_ms: seconds * 1000, uptime_ms: header.uptime_ms },
            rows_left: MAX_ROWS,
            fields_left: MAX_FIELDS,
            fields: Vec::new(),
        })
    }

    /// Whether a limit was reached: the last row says so, and there are no others.
    fn is_exhausted(&self) -> bool {
        self.rows_left == 0
    }

    /// Whether there were no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows_left == MAX_ROWS
    }

    pub(crate) fn decode(&mut self, set: Set<'p, '_>, emit: &mut dyn FnMut(&Row<'_>)) {
        if self.is_exhausted() {
            return;
        }
        match set {
            Set::Template { id, layout } => {
                let kind = if layout.is_options() { FlowType::OptionsTemplate } else { FlowType::Template };
                let names: Vec<Name> = layout.fields().map(|field| Specifier::new(self.format, &field).name).collect();
                if self.charge(names.len(), &[], emit) {
                    let fields = vec![Field::new("fields", Value::Names(names))];
                    emit(&Row::Flow(Flow { template: Some(id), fields, ..Flow::new(self.format, kind, self.header) }));
                }
            }
            Set::Withdrawn { id, is_options } => {
                if self.charge(1, &[], emit) {
                    let flow = Flow::new(self.format, FlowType::Withdrawal, self.header);
                    let fields = vec![Field::new("options", Value::Boolean(is_options))];
                    emit(&Row::Flow(Flow { template: id, fields, ..flow }));
                }
            }
            Set::Malformed { id, bytes } => {
                let reason = format!("set {id} is malformed");
                self.undecoded(bytes, None, reason, emit);
            }
            Set::Data { id, contents, templates } => self.data(id, contents, templates, emit),
        }
    }

    fn data(&mut self, id: u16, contents: &'p [u8], templates: Templates<'_>, emit: &mut dyn FnMut(&Row<'_>)) {
        let layout = match templates.get(id) {
            Ok(layout) => layout,
            Err(missing) => return self.undecoded(contents, Some(id), missing.to_string(), emit),
        };
        let plan = Plan::new(self.format, &layout);
        // Many short sets of a template with many fields would cost more than their rows.
        if !self.charge_fields(plan.fields(), contents, emit) {
            return;
        }
        let kind = if layout.is_options() { FlowType::Options } else { FlowType::Flow };
        if plan.least() == 0 {
            return self.undecoded(contents, Some(id), "records have no length", emit);
        }
        let mut rest = contents;
        while rest.len() >= plan.least() {
            if !self.charge(plan.fields(), rest, emit) {
                return;
            }
            let start = rest;
            let mut fields = std::mem::take(&mut self.fields);
            fields.clear();
            let mut context = lists::Context::new(self.format, templates, &mut self.fields_left);
            if plan.record(&mut rest, &mut context, &mut fields).is_none() {
                return self.undecoded(start, Some(id), "record exceeds its set", emit);
            }
            if let Some(uptimes) = &plan.uptimes {
                uptimes.append(&self.times, &mut fields);
            }
            let row = Row::Flow(Flow { format: self.format, kind, header: self.header, template: Some(id), fields });
            emit(&row);
            if let Row::Flow(flow) = row {
                self.fields = flow.fields;
            }
        }
        self.after_records(id, rest, emit);
    }

    /// Padding ends a set at a multiple of four bytes, and is usually zero (RFC 3954 §5.3, RFC 7011
    /// §3.3.1). Anything else is a row.
    fn after_records(&mut self, id: u16, rest: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) {
        if rest.len() > 3 && rest.iter().any(|byte| *byte != 0) {
            self.undecoded(rest, Some(id), "bytes are shorter than a record", emit);
        }
    }

    pub(crate) fn undecoded(
        &mut self,
        bytes: &'p [u8],
        template: Option<u16>,
        reason: impl Into<Cow<'static, str>>,
        emit: &mut dyn FnMut(&Row<'_>),
    ) {
        if !self.charge(1, bytes, emit) {
            return;
        }
        let undecoded = Undecoded::new(self.format, self.payload, bytes, reason);
        emit(&Row::Undecoded(Undecoded { domain: self.header.domain, template, ..undecoded }));
    }

    /// Counts a row with so many fields. False if it exceeds the limits: then a last row says that
    /// `rest` and everything after it is left out.
    fn charge(&mut self, fields: usize, rest: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) -> bool {
        if self.rows_left == 1 {
            self.exhaust(rest, emit);
        }
        let is_charged = self.charge_fields(fields, rest, emit);
        self.rows_left = self.rows_left.saturating_sub(1);
        is_charged
    }

    /// As [`SetDecoder::charge`], for the work on fields without a row.
    fn charge_fields(&mut self, fields: usize, rest: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) -> bool {
        if self.is_exhausted() {
            return false;
        }
        let Some(left) = self.fields_left.checked_sub(fields) else {
            self.exhaust(rest, emit);
            return false;
        };
        self.fields_left = left;
        true
    }

    fn exhaust(&mut self, rest: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) {
        self.rows_left = 0;
        let reason = format!("more than {MAX_ROWS} rows or {MAX_FIELDS} fields in a datagram: the rest is left out");
        let undecoded = Undecoded::new(self.format, self.payload, rest, reason);
        emit(&Row::Undecoded(Undecoded { domain: self.header.domain, ..undecoded }));
    }
}
