//! STRUCTURED-DATA (RFC 5424 §6.3).

use std::borrow::Cow;

use serde::{Serialize, Serializer, ser::SerializeMap};

/// The most parameters of a message.
const MAX_PARAMETERS: usize = 256;

/// The most elements of a message.
const MAX_ELEMENTS: usize = 64;

/// An SD-ELEMENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// SD-ID.
    pub id: Cow<'a, str>,
    /// SD-PARAMs, in order.
    pub parameters: Vec<Parameter<'a>>,
}

/// An SD-PARAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// PARAM-NAME. It may occur more than once.
    pub name: Cow<'a, str>,
    /// PARAM-VALUE, without escapes.
    pub value: Cow<'a, str>,
}

const MALFORMED: &str = "the structured data is malformed";

/// Splits structured data and the space behind it off a text.
///
/// # Errors
///
/// If it is malformed, or if there are too many elements or parameters.
pub(super) fn split(text: &[u8]) -> Result<(Vec<Element<'_>>, &[u8]), &'static str> {
    let mut elements = Vec::new();
    let mut rest = text;
    let mut parameters = 0;
    if let Some(after) = rest.strip_prefix(b"-") {
        rest = after;
    } else {
        while let Some(inside) = rest.strip_prefix(b"[") {
            if elements.len() == MAX_ELEMENTS {
                return Err("more than 64 elements of structured data");
            }
            let (element, after) = element(inside, &mut parameters)?;
            elements.push(element);
            rest = after;
        }
        if elements.is_empty() {
            return Err(MALFORMED);
        }
    }
    match rest {
        [] => Ok((elements, rest)),
        [b' ', message @ ..] => Ok((elements, message)),
        _ => Err(MALFORMED),
    }
}

/// Reads an element behind its opening bracket.
fn element<'a>(inside: &'a [u8], parameters: &mut usize) -> Result<(Element<'a>, &'a [u8]), &'static str> {
    let length = inside.iter().position(|byte| matches!(byte, b' ' | b']' | b'"' | b'=')).ok_or(MALFORMED)?;
    let (id, mut rest) = inside.split_at(length);
    if id.is_empty() {
        return Err(MALFORMED);
    }
    let mut element = Element { id: String::from_utf8_lossy(id), parameters: Vec::new() };
    loop {
        let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
        let before = &rest[..spaces];
        rest = &rest[spaces..];
        if let Some(after) = rest.strip_prefix(b"]") {
            return Ok((element, after));
        }
        let length = rest.iter().position(|byte| matches!(byte, b' ' | b']' | b'"' | b'=')).ok_or(MALFORMED)?;
        let (name, after) = rest.split_at(length);
        let quoted = after.strip_prefix(b"=\"").filter(|_| !name.is_empty() && !before.is_empty()).ok_or(MALFORMED)?;
        let (value, after) = value(quoted)?;
        *parameters += 1;
        if *parameters > MAX_PARAMETERS {
            return Err("more than 256 parameters of structured data");
        }
        element.parameters.push(Parameter { name: String::from_utf8_lossy(name), value });
        rest = after;
    }
}

/// Reads a value behind its opening quote. A backslash escapes `"`, `\` and `]` only (§6.3.3).
fn value(text: &[u8]) -> Result<(Cow<'_, str>, &[u8]), &'static str> {
    let mut unescaped = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    loop {
        match text[at..] {
            [b'"', ..] => break,
            [b'\\', b'"' | b'\\' | b']', ..] => {
                unescaped.extend_from_slice(&text[copied..at]);
                copied = at + 1;
                at += 2;
            }
            [_, ..] => at += 1,
            [] => return Err(MALFORMED),
        }
    }
    let rest = &text[at + 1..];
    if unescaped.is_empty() && copied == 0 {
        return Ok((String::from_utf8_lossy(&text[..at]), rest));
    }
    unescaped.extend_from_slice(&text[copied..at]);
    Ok((Cow::Owned(String::from_utf8_lossy(&unescaped).into_owned()), rest))
}

impl Element<'_> {
    /// Whether bytes were replaced.
    pub(super) fn is_lossy(&self) -> bool {
        let is_replaced = |text: &Cow<'_, str>| matches!(text, Cow::Owned(text) if text.contains('\u{fffd}'));
        let in_parameter = |parameter: &Parameter<'_>| is_replaced(&parameter.name) || is_replaced(&parameter.value);
        is_replaced(&self.id) || self.parameters.iter().any(in_parameter)
    }
}

/// Elements as an object of objects: `{"id":{"name":"value"}}`. Where a name occurs more than once
/// its values are a list.
pub(super) struct Elements<'a>(pub(super) &'a [Element<'a>]);

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, element) in self.0.iter().enumerate() {
            // RFC 5424 §6.3.2 forbids the same id twice; its parameters are put together.
            if self.0[..index].iter().all(|before| before.id != element.id) {
                let same = self.0[index..].iter().filter(|other| other.id == element.id);
                let parameters: Vec<&Parameter<'_>> = same.flat_map(|element| &element.parameters).collect();
                map.serialize_entry(&element.id, &Parameters(parameters))?;
            }
        }
        map.end()
    }
}

struct Parameters<'a>(Vec<&'a Parameter<'a>>);

impl Serialize for Parameters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, parameter) in self.0.iter().enumerate() {
            if self.0[..index].iter().any(|before| before.name == parameter.name) {
                continue;
            }
            let same = self.0[index..].iter().filter(|other| other.name == parameter.name);
            let values: Vec<&str> = same.map(|parameter| &*parameter.value).collect();
            match &values[..] {
                [value] => map.serialize_entry(&parameter.name, value)?,
                values => map.serialize_entry(&parameter.name, values)?,
            }
        }
        map.end()
    }
}
