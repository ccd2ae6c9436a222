//! SNMP traps and informs, with every changing field at a fixed offset.
//!
//! Lengths that enclose the text have the long form with two octets, which BER allows (X.690
//! §8.1.3.5). Numbers that change stay in a range where their encoding keeps its length.
//!
//! ```text
//! v1            SEQUENCE { 0, community, Trap-PDU { enterprise, agent, 6, 1, uptime, { bindings }
//! } } v2c           SEQUENCE { 1, community, PDU { request-id, 0, 0, { sysUpTime.0, snmpTrapOID.0,
//! bindings } } } v3            SEQUENCE { 3, { msgID, msgMaxSize, flags, 3 }, OCTET STRING { {
//! engine, boots, time, user, "", "" } },                          { engine, "", PDU } } our
//! bindings  sequence: Counter32, source: Gauge32, text: OCTET STRING
//! ```

use std::net::IpAddr;

use super::{Request, put_u16, put_u32};
use crate::{
    MAX_PAYLOAD_BYTES,
    mix::{below, mix_all},
};

/// Added to sequence (modulo 2^31) and source, so that they always take five octets.
pub(crate) const SEQUENCE_BASE: u32 = 1 << 31;
/// Added to request and message ids (modulo 2^30), so that they always take four octets.
const REQUEST_BASE: u32 = 1 << 30;
/// Added to an engine's time in seconds, for the same reason.
const ENGINE_TIME_BASE: u32 = 1 << 24;

/// 1.3.6.1.4.1.32473, the enterprise for examples (RFC 5612).
const ENTERPRISE: [u8; 8] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59];
/// The notifications of traps and informs. An inform may be forwarded as a trap, and only this
/// tells then that it is not one of the traps, which have numbers of their own.
const TRAP_OID: [u8; 10] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 0, 1];
pub(crate) const INFORM_OID: [u8; 10] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 0, 2];
pub(crate) const SEQUENCE_OID: [u8; 11] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 1, 1, 0];
pub(crate) const SOURCE_OID: [u8; 11] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 1, 2, 0];
const TEXT_OID: [u8; 11] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 1, 3, 0];
const SYS_UP_TIME: [u8; 8] = [0x2b, 6, 1, 2, 1, 1, 3, 0];
const SNMP_TRAP_OID: [u8; 10] = [0x2b, 6, 1, 6, 3, 1, 1, 4, 1, 0];
/// RFC 3411 SnmpEngineID: our enterprise, format 5 (octets), then the source.
const ENGINE_ID_HEAD: [u8; 5] = [0x80, 0, 0x7e, 0xd9, 5];

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const IP_ADDRESS: u8 = 0x40;
const COUNTER32: u8 = 0x41;
const GAUGE32: u8 = 0x42;
const TIME_TICKS: u8 = 0x43;

/// Range of offsets at which a message's text starts in the prepared text.
const WINDOW_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1Trap,
    V2cTrap,
    V2cInform,
    V3Trap,
}

#[derive(Debug)]
pub(super) struct Maker {
    /// The message with an empty text.
    head: Vec<u8>,
    /// Offsets of the lengths that include the text.
    grown: Vec<usize>,
    /// Offsets of the fields that change.
    fields: Fields,
    text: Vec<u8>,
}

#[derive(Debug, Default)]
struct Fields {
    uptime: usize,
    sequence: usize,
    source: usize,
    request_ids: Vec<usize>,
    engine_ids: Vec<usize>,
    engine_time: Option<usize>,
    agent: Option<usize>,
}

impl Maker {
    pub(super) fn new(version: Version, seed: u64) -> Maker {
        let mut ber = Ber::default();
        let mut fields = Fields::default();
        ber.open(SEQUENCE);
        match version {
            Version::V1Trap => v1(&mut ber, &mut fields),
            Version::V2cTrap => v2c(&mut ber, &mut fields, 0xa7, &TRAP_OID),
            Version::V2cInform => v2c(&mut ber, &mut fields, 0xa6, &INFORM_OID),
            Version::V3Trap => v3(&mut ber, &mut fields),
        }
        let text = (0..(MAX_PAYLOAD_BYTES + WINDOW_BYTES) as u64)
            .map(|number| b"abcdefghijklmnopqrstuvwxyz012345"[below(mix_all(&[seed, number]), 32) as usize])
            .collect();
        let grown = ber.open.clone();
        while !ber.open.is_empty() {
            ber.close();
        }
        Maker { head: ber.bytes, grown, fields, text }
    }

    pub(super) fn write(&self, request: &Request<'_>, variety: u64, out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&self.head);
        let text_length = request.size.min(MAX_PAYLOAD_BYTES).saturating_sub(self.head.len());
        let text_start = below(variety, WINDOW_BYTES as u64) as usize;
        out.extend_from_slice(&self.text[text_start..text_start + text_length]);

        let message = &mut out[start..];
        for &offset in &self.grown {
            let empty = u16::from_be_bytes([message[offset], message[offset + 1]]);
            put_u16(message, offset, empty + text_length as u16);
        }
        let sequence = request.cursor.datagrams as u32;
        let fields = &self.fields;
        put_u32(message, fields.uptime, request.moment.uptime_ticks());
        put_u32(message, fields.sequence, SEQUENCE_BASE | sequence);
        put_u32(message, fields.source, SEQUENCE_BASE | request.source.index);
        for &offset in &fields.request_ids {
            put_u32(message, offset, REQUEST_BASE | (sequence & (REQUEST_BASE - 1)));
        }
        for &offset in &fields.engine_ids {
            put_u32(message, offset, request.source.index);
        }
        if let Some(offset) = fields.engine_time {
            put_u32(message, offset, ENGINE_TIME_BASE + request.moment.uptime.as_secs() as u32);
        }
        if let (Some(offset), IpAddr::V4(address)) = (fields.agent, request.source.address) {
            put_u32(message, offset, address.into());
        }
        1
    }
}

fn v1(ber: &mut Ber, fields: &mut Fields) {
    ber.put(INTEGER, &[0]);
    ber.put(OCTET_STRING, b"public");
    ber.open(0xa4);
    ber.put(OBJECT_IDENTIFIER, &ENTERPRISE);
    fields.agent = Some(ber.put(IP_ADDRESS, &[0; 4]));
    ber.put(INTEGER, &[6]);
    ber.put(INTEGER, &[1]);
    fields.uptime = ber.put(TIME_TICKS, &[1, 0, 0, 0]);
    ber.open(SEQUENCE);
    own_bindings(ber, fields);
}

fn v2c(ber: &mut Ber, fields: &mut Fields, tag: u8, notification: &[u8]) {
    ber.put(INTEGER, &[1]);
    ber.put(OCTET_STRING, b"public");
    pdu(ber, fields, tag, notification);
}

fn v3(ber: &mut Ber, fields: &mut Fields) {
    let engine = [ENGINE_ID_HEAD.as_slice(), &[0; 4]].concat();
    ber.put(INTEGER, &[3]);
    ber.open(SEQUENCE);
    fields.request_ids.push(ber.put(INTEGER, &REQUEST_BASE.to_be_bytes()));
    ber.put(INTEGER, &[0, 0xff, 0xe3]);
    ber.put(OCTET_STRING, &[0]);
    ber.put(INTEGER, &[3]);
    ber.close();
    ber.open(OCTET_STRING);
    ber.open(SEQUENCE);
    fields.engine_ids.push(ber.put(OCTET_STRING, &engine) + ENGINE_ID_HEAD.len());
    ber.put(INTEGER, &[1]);
    fields.engine_time = Some(ber.put(INTEGER, &ENGINE_TIME_BASE.to_be_bytes()));
    ber.put(OCTET_STRING, b"sender");
    ber.put(OCTET_STRING, b"");
    ber.put(OCTET_STRING, b"");
    ber.close();
    ber.close();
    ber.open(SEQUENCE);
    fields.engine_ids.push(ber.put(OCTET_STRING, &engine) + ENGINE_ID_HEAD.len());
    ber.put(OCTET_STRING, b"");
    pdu(ber, fields, 0xa7, &TRAP_OID);
}

fn pdu(ber: &mut Ber, fields: &mut Fields, tag: u8, notification: &[u8]) {
    ber.open(tag);
    fields.request_ids.push(ber.put(INTEGER, &REQUEST_BASE.to_be_bytes()));
    ber.put(INTEGER, &[0]);
    ber.put(INTEGER, &[0]);
    ber.open(SEQUENCE);
    fields.uptime = binding(ber, &SYS_UP_TIME, TIME_TICKS, &[1, 0, 0, 0]);
    binding(ber, &SNMP_TRAP_OID, OBJECT_IDENTIFIER, notification);
    own_bindings(ber, fields);
}

/// Leaves open all values that enclose the text.
fn own_bindings(ber: &mut Ber, fields: &mut Fields) {
    fields.sequence = 1 + binding(ber, &SEQUENCE_OID, COUNTER32, &[0, 0x80, 0, 0, 0]);
    fields.source = 1 + binding(ber, &SOURCE_OID, GAUGE32, &[0, 0x80, 0, 0, 0]);
    ber.open(SEQUENCE);
    ber.put(OBJECT_IDENTIFIER, &TEXT_OID);
    ber.open(OCTET_STRING);
}

/// Appends a variable binding and returns the offset of its value.
fn binding(ber: &mut Ber, name: &[u8], tag: u8, value: &[u8]) -> usize {
    ber.open(SEQUENCE);
    ber.put(OBJECT_IDENTIFIER, name);
    let offset = ber.put(tag, value);
    ber.close();
    offset
}

/// Writes BER from front to back, because the fields' offsets must be known: short values in the
/// short form, the others with two octets of length.
#[derive(Default)]
struct Ber {
    bytes: Vec<u8>,
    /// Offsets of the lengths of the open values.
    open: Vec<usize>,
}

impl Ber {
    /// Appends a value shorter than 128 bytes and returns its offset.
    fn put(&mut self, tag: u8, value: &[u8]) -> usize {
        self.bytes.extend_from_slice(&[tag, value.len() as u8]);
        self.bytes.extend_from_slice(value);
        self.bytes.len() - value.len()
    }

    fn open(&mut self, tag: u8) {
        self.bytes.extend_from_slice(&[tag, 0x82, 0, 0]);
        self.open.push(self.bytes.len() - 2);
    }

    fn close(&mut self) {
        if let Some(offset) = self.open.pop() {
            let length = self.bytes.len() - offset - 2;
            put_u16(&mut self.bytes, offset, length as u16);
        }
    }
}
