//! sFlow v5 (sflow.org, "sFlow Version 5", 2004).
//!
//! ```text
//! datagram         5 u32 │ address type u32 │ agent 4 or 16 │ sub-agent u32 │ sequence u32 │ uptime u32 │ samples u32
//! sample           enterprise 20 bits, format 12 bits │ length u32 │ body
//! flow sample      sequence │ source id │ rate │ pool │ drops │ input │ output │ records
//! expanded         sequence │ source type, index │ rate │ pool │ drops │ input format, value │ output format, value │ records
//! counters         sequence │ source id, or type and index │ records
//! discarded packet sequence │ source type, index │ drops │ input │ output │ reason │ records
//! record           enterprise 20 bits, format 12 bits │ length u32 │ body
//! ```
//! A decoder of our own, because sflow-parser gives up the whole datagram at the first sample that
//! is damaged, and its structs would have to be mapped to names of fields one by one.

use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
};

use sekiwake_record::{Format, bytes::u32_at};

use super::{
    Flow, FlowType, Header, MAX_FIELDS, MAX_ROWS, Name, Value,
    sflow_records::{self, Structure},
};
use crate::{Row, Undecoded};

/// Records in a sample. Agents send fewer than ten.
const MAX_RECORDS: usize = 64;

/// Reads XDR (RFC 4506): everything is a multiple of four bytes long.
#[derive(Clone, Copy)]
pub(super) struct Reader<'p>(pub(super) &'p [u8]);

impl<'p> Reader<'p> {
    pub(super) fn bytes(&mut self, length: usize) -> Option<&'p [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        u32_at(self.bytes(4)?, 0)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// Bytes with their length before them.
    pub(super) fn opaque(&mut self) -> Option<&'p [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let bytes = self.bytes(length)?;
        // The last item of a record may lack its padding.
        let padding = (length.next_multiple_of(4) - length).min(self.0.len());
        self.bytes(padding)?;
        Some(bytes)
    }

    /// An address with its type before it. The inner `None`: unknown.
    pub(super) fn address(&mut self) -> Option<Option<Value<'p>>> {
        Some(match self.u32()? {
            0 => None,
            1 => Some(Value::Ipv4(Ipv4Addr::from(self.u32()?))),
            2 => Some(Value::Ipv6(Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes(16)?).ok()?))),
            _ => return None,
        })
    }
}

/// The number of enterprise and format in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    enterprise: u32,
    format: u32,
}

impl Number {
    fn of(word: u32) -> Number {
        Number { enterprise: word >> 12, format: word & 0xfff }
    }
}

/// Decodes a datagram.
pub(crate) fn decode<'p>(payload: &'p [u8], emit: &mut dyn FnMut(&Row<'_>)) {
    let mut decoder = Decoder { payload, rows_left: MAX_ROWS, fields_left: MAX_FIELDS };
    let mut reader = Reader(payload);
    let Some(header) = DatagramHeader::read(&mut reader) else {
        return decoder.undecoded(payload, "header is incomplete", emit);
    };
    for _ in 0..header.samples {
        let start = reader.0;
        let Some((number, body)) = numbered(&mut reader) else {
            return decoder.undecoded(start, "datagram ends within a sample", emit);
        };
        if decoder.rows_left == 0 || decoder.fields_left == 0 {
            return emit(&Row::Undecoded(
                decoder.problem(start, "too many rows or fields in a datagram: the rest is left out"),
            ));
        }
        decoder.sample(&header, number, body, start, emit);
    }
    if !reader.0.is_empty() {
        decoder.undecoded(reader.0, "bytes after the announced number of samples", emit);
    } else if header.samples == 0 {
        decoder.undecoded(payload, "datagram has no samples", emit);
    }
}

fn numbered<'p>(reader: &mut Reader<'p>) -> Option<(Number, &'p [u8])> {
    let number = Number::of(reader.u32()?);
    let length = usize::try_from(reader.u32()?).ok()?;
    Some((number, reader.bytes(length)?))
}

struct DatagramHeader<'p> {
    header: Header,
    agent: Option<Value<'p>>,
    samples: u32,
}

impl<'p> DatagramHeader<'p> {
    fn read(reader: &mut Reader<'p>) -> Option<DatagramHeader<'p>> {
        reader.u32().filter(|version| *version == 5)?;
        let agent = reader.address()?;
        let header = Header {
            exported_at: None,
            domain: Some(reader.u32()?),
            sequence: reader.u32()?,
            uptime_ms: Some(reader.u32()?),
        };
        Some(DatagramHeader { header, agent, samples: reader.u32()? })
    }
}

struct Decoder<'p> {
    payload: &'p [u8],
    rows_left: usize,
    fields_left: usize,
}

impl<'p> Decoder<'p> {
    fn problem(&self, bytes: &'p [u8], reason: impl Into<Cow<'static, str>>) -> Undecoded<'p> {
        Undecoded::new(Format::Sflow5, self.payload, bytes, reason)
    }

    fn undecoded(&mut self, bytes: &'p [u8], reason: impl Into<Cow<'static, str>>, emit: &mut dyn FnMut(&Row<'_>)) {
        self.rows_left = self.rows_left.saturating_sub(1);
        emit(&Row::Undecoded(self.problem(bytes, reason)));
    }

    fn sample(
        &mut self,
        header: &DatagramHeader<'p>,
        number: Number,
        body: &'p [u8],
        start: &'p [u8],
        emit: &mut dyn FnMut(&Row<'_>),
    ) {
        let kind = match number {
            Number { enterprise: 0, format: 1 | 3 } => FlowType::Flow,
            Number { enterprise: 0, format: 2 | 4 } => FlowType::Counters,
            Number { enterprise: 0, format: 5 } => FlowType::Discard,
            Number { enterprise, format } => {
                let reason = format!("sample {enterprise}/{format} has no known structure");
                return self.undecoded(&start[..8 + body.len()], reason, emit);
            }
        };
        let is_expanded = number.format >= 3;
        let mut flow = Flow::new(Format::Sflow5, kind, header.header);
        flow.fields.extend(header.agent.clone().map(|agent| super::Field::new("agent", agent)));
        let mut reader = Reader(body);
        let records = sample_header(&mut reader, kind, is_expanded, &mut flow);
        let Some(records) = records else {
            return self.undecoded(&start[..8 + body.len()], "sample is incomplete", emit);
        };
        let damaged = self.records(&mut reader, records, &mut flow);
        self.rows_left = self.rows_left.saturating_sub(1);
        self.fields_left = self.fields_left.saturating_sub(flow.fields.len());
        emit(&Row::Flow(flow));
        if let Some(damaged) = damaged {
            self.undecoded(damaged.bytes, damaged.reason, emit);
        }
    }

    /// Adds the fields of the records. Returns what cannot be decoded.
    fn records(&self, reader: &mut Reader<'p>, records: u32, flow: &mut Flow<'p>) -> Option<Damaged<'p>> {
        for position in 0..records {
            let start = reader.0;
            if position as usize >= MAX_RECORDS {
                return Some(Damaged { bytes: start, reason: "sample has more than 64 records" });
            }
            let Some((number, body)) = numbered(reader) else {
                return Some(Damaged { bytes: start, reason: "sample ends within a record" });
            };
            let structure = match flow.kind {
                FlowType::Counters => Structure::of_counters(number.enterprise, number.format),
                _ => Structure::of_flow(number.enterprise, number.format),
            };
            let fields_before = flow.fields.len();
            let is_decoded = structure.is_some_and(|structure| sflow_records::decode(structure, body, flow).is_some());
            if !is_decoded {
                flow.fields.truncate(fields_before);
                let name = Name::Sflow { enterprise: number.enterprise, format: number.format };
                flow.push(name, Value::Bytes(body));
            }
        }
        None
    }
}

struct Damaged<'p> {
    bytes: &'p [u8],
    reason: &'static str,
}

/// Adds the fields before the records. Returns the number of records, `None` if it is incomplete.
fn sample_header(reader: &mut Reader<'_>, kind: FlowType, is_expanded: bool, flow: &mut Flow<'_>) -> Option<u32> {
    let mut number = |name, value: u32| flow.push(Name::Known(name), Value::Unsigned(value.into()));
    number("sampleSequence", reader.u32()?);
    let (source_type, source_index) = match is_expanded {
        true => (reader.u32()?, reader.u32()?),
        false => {
            let word = reader.u32()?;
            (word >> 24, word & 0xff_ffff)
        }
    };
    number("sourceIdType", source_type);
    number("sourceIdIndex", source_index);
    match kind {
        FlowType::Counters => return reader.u32(),
        FlowType::Discard => {
            number("sampleDrops", reader.u32()?);
            number("ingressInterface", reader.u32()?);
            number("egressInterface", reader.u32()?);
            number("discardReason", reader.u32()?);
        }
        _ => {
            number("samplingInterval", reader.u32()?);
            number("samplePool", reader.u32()?);
            number("sampleDrops", reader.u32()?);
            let input = Interface::read(reader, is_expanded)?;
            let output = Interface::read(reader, is_expanded)?;
            number(input.name(["ingressInterface", "ingressDiscardReason", "ingressInterfaceCount"]), input.value);
            number(output.name(["egressInterface", "egressDiscardReason", "egressInterfaceCount"]), output.value);
        }
    }
    reader.u32()
}

/// An interface, the reason why the packet was discarded, or a number of interfaces.
struct Interface {
    format: u32,
    value: u32,
}

impl Interface {
    fn read(reader: &mut Reader<'_>, is_expanded: bool) -> Option<Interface> {
        if is_expanded {
            return Some(Interface { format: reader.u32()?, value: reader.u32()? });
        }
        let word = reader.u32()?;
        Some(Interface { format: word >> 30, value: word & 0x3fff_ffff })
    }

    fn name(&self, names: [&'static str; 3]) -> &'static str {
        names[self.format.min(2) as usize]
    }
}
