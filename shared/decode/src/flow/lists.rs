//! Lists in fields (RFC 6313).
//!
//! ```text
//! basicList             semantic u8 │ element u16 │ length u16 │ [enterprise u32] │ values
//! subTemplateList       semantic u8 │ template id u16 │ records
//! subTemplateMultiList  semantic u8 │ (template id u16 │ length u16, with these four bytes │ records) …
//! ```
//! The semantic (all of, one of, …) is not shown.

use sekiwake_flow::{TemplateField, Templates};
use sekiwake_record::{
    Format,
    bytes::{u16_at, u32_at},
};

use super::{
    Value,
    sets::{Plan, Specifier},
    value::Type,
};

/// Lists in lists.
const MAX_DEPTH: u8 = 4;

const ENTERPRISE_BIT: u16 = 0x8000;

/// What a list needs from the datagram that it is in.
pub(super) struct Context<'c> {
    format: Format,
    templates: Templates<'c>,
    /// The fields that the datagram may still have.
    fields_left: &'c mut usize,
    depth: u8,
}

impl<'c> Context<'c> {
    pub(super) fn new(format: Format, templates: Templates<'c>, fields_left: &'c mut usize) -> Context<'c> {
        Context { format, templates, fields_left, depth: 0 }
    }

    /// Counts fields. False if there are too many.
    fn charge(&mut self, fields: usize) -> bool {
        let is_within = *self.fields_left >= fields;
        *self.fields_left = self.fields_left.saturating_sub(fields);
        is_within
    }
}

/// Decodes the contents of a list.
pub(super) fn decode<'p>(kind: Type, bytes: &'p [u8], context: &mut Context<'_>) -> Value<'p> {
    if context.depth == MAX_DEPTH {
        return Value::Undecoded("list is nested too deeply".into(), bytes);
    }
    context.depth += 1;
    let value = match kind {
        Type::BasicList => basic(bytes, context),
        Type::SubTemplateList => sub_template(bytes, context),
        _ => sub_template_multi(bytes, context),
    };
    context.depth -= 1;
    value.unwrap_or(Value::Undecoded("list is malformed".into(), bytes))
}

fn basic<'p>(bytes: &'p [u8], context: &mut Context<'_>) -> Option<Value<'p>> {
    let (element, length) = (u16_at(bytes, 1)?, u16_at(bytes, 3)?);
    let has_enterprise = element & ENTERPRISE_BIT != 0;
    let specifier = Specifier::new(
        context.format,
        &TemplateField {
            element: element & !ENTERPRISE_BIT,
            enterprise: if has_enterprise { Some(u32_at(bytes, 5)?) } else { None },
            length: Some(length).filter(|length| *length != u16::MAX),
            is_scope: false,
        },
    );
    let mut rest = bytes.get(if has_enterprise { 9 } else { 5 }..)?;
    if length == 0 && !rest.is_empty() {
        return None;
    }
    let mut values = Vec::new();
    while !rest.is_empty() {
        if !context.charge(1) {
            values.push(left_out(rest));
            break;
        }
        let value = specifier.take(&mut rest)?;
        values.push(specifier.decode(value, context));
    }
    Some(Value::List(values))
}

fn sub_template<'p>(bytes: &'p [u8], context: &mut Context<'_>) -> Option<Value<'p>> {
    let mut records = Vec::new();
    match append_records(u16_at(bytes, 1)?, bytes.get(3..)?, context, &mut records) {
        Some(problem) => Some(problem),
        None => Some(Value::Records(records)),
    }
}

fn sub_template_multi<'p>(bytes: &'p [u8], context: &mut Context<'_>) -> Option<Value<'p>> {
    let mut rest = bytes.get(1..)?;
    let mut values = Vec::new();
    while !rest.is_empty() {
        if !context.charge(1) {
            values.push(left_out(rest));
            break;
        }
        let (id, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let of_template = rest.get(4..length)?;
        rest = &rest[length..];
        let mut records = Vec::new();
        let problem = append_records(id, of_template, context, &mut records);
        values.push(problem.unwrap_or(Value::Records(records)));
    }
    Some(Value::List(values))
}

/// Appends the records of a template. Returns what to show instead if they cannot be decoded.
fn append_records<'p>(
    id: u16,
    bytes: &'p [u8],
    context: &mut Context<'_>,
    records: &mut Vec<Vec<super::Field<'p>>>,
) -> Option<Value<'p>> {
    let layout = match context.templates.get(id) {
        Ok(layout) => layout,
        Err(missing) => return Some(Value::Undecoded(format!("{missing}, template {id}").into(), bytes)),
    };
    // Before the work.
    if !context.charge(layout.fields().count().max(1)) {
        return Some(left_out(bytes));
    }
    let plan = Plan::new(context.format, &layout);
    let mut rest = bytes;
    if plan.least() == 0 {
        return Some(Value::Undecoded("records have no length".into(), bytes));
    }
    while rest.len() >= plan.least() {
        let mut fields = Vec::new();
        if !context.charge(plan.fields()) || plan.record(&mut rest, context, &mut fields).is_none() {
            break;
        }
        records.push(fields);
    }
    (!rest.is_empty()).then(|| Value::Undecoded("records do not fill the list".into(), bytes))
}

fn left_out(bytes: &[u8]) -> Value<'_> {
    Value::Undecoded("too many fields in the datagram: the rest is left out".into(), bytes)
}
