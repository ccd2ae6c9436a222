//! SNMP traps and informs: v1 (RFC 1157 §4.1.6), v2c (RFC 3416 §4.2.6), and v3 without encryption
//! (RFC 3412 §6).
//!
//! ```text
//! v1   SEQUENCE { 0, community, Trap-PDU { enterprise, agent address, generic, specific, ticks, bindings } }
//! v2c  SEQUENCE { 1, community, PDU { request id, 0, 0, bindings } }
//! v3   SEQUENCE { 3, header, security parameters, SEQUENCE { engine, context, PDU } | encrypted PDU }
//! ```
//!
//! The decoder is our own because snmp-parser 0.11 gives nothing of a message in which one value is
//! odd, and agents send such messages: counters without the leading zero octet, 64-bit INTEGERs,
//! communities that are not UTF-8, lengths that are not the shortest. It also takes APPLICATION 5
//! for NULL. The tests compare the two. It costs about 600 lines, and no second pass.
//!
//! Communities and user names are never shown, and neither are the tables of an agent that hold
//! them.

mod ber;
mod oid;
mod row;
mod value;

#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use ber::{Element, Reader};
use serde::Serialize;

pub use self::{
    oid::{Arcs, Oid},
    value::{Value, Varbind},
};
use crate::mib::{Kind, Mib};

/// The most variable bindings of one row. Others are counted.
pub const MAX_VARBINDS: usize = 512;

/// Universal tags.
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// snmpTraps, above the generic traps (RFC 3418 §2).
const SNMP_TRAPS: [u32; 9] = [1, 3, 6, 1, 6, 3, 1, 1, 5];
const SYS_UPTIME_0: [u32; 9] = [1, 3, 6, 1, 2, 1, 1, 3, 0];
const SNMP_TRAP_OID_0: [u32; 11] = [1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0];
/// snmpTrapAddress.0: the agent behind a proxy (RFC 3584 §3.1).
const SNMP_TRAP_ADDRESS_0: [u32; 10] = [1, 3, 6, 1, 6, 3, 18, 1, 3, 0];

/// The generic trap number that refers to the specific one (RFC 1157 §4.1.6).
const ENTERPRISE_SPECIFIC: i64 = 6;

/// Why a datagram cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}, at byte {at}")]
pub struct Error {
    /// Offset in the datagram, bytes.
    pub at: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// The version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Version {
    /// SNMPv1.
    #[serde(rename = "1")]
    V1,
    /// SNMPv2c.
    #[serde(rename = "2c")]
    V2c,
    /// SNMPv3.
    #[serde(rename = "3")]
    V3,
}

/// What a message is. Requests and responses are no notifications, but devices and managers send
/// them to the same port, above all with SNMPv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names of RFC 3416 §3")]
pub enum Pdu {
    GetRequest,
    GetNextRequest,
    Response,
    SetRequest,
    /// A trap, of v1 or later.
    Trap,
    GetBulkRequest,
    Inform,
    Report,
}

/// The security of an SNMPv3 message (RFC 3412 §6, RFC 3414 §2.4). User names are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security<'a> {
    /// Whether the message is authenticated. The digest is not checked.
    pub is_authenticated: bool,
    /// Whether the PDU is encrypted, and therefore not decoded.
    pub is_encrypted: bool,
    /// msgSecurityModel: 3 is USM.
    pub model: i64,
    /// The authoritative engine; empty for other models than USM.
    pub engine: &'a [u8],
    /// Its boots and seconds since the last one.
    pub boots_and_time: Option<[u64; 2]>,
    /// The context: engine and name; `None` if encrypted.
    pub context: Option<[&'a [u8]; 2]>,
}

/// The fields that only SNMPv1 has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrapV1<'a> {
    /// enterprise: the kind of device, or what defines the specific trap.
    pub enterprise: Oid<'a>,
    /// generic-trap, 0 to 6.
    pub generic: i64,
    /// specific-trap.
    pub specific: i64,
}

/// A notification as a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Trap<'a> {
    /// The version of the message.
    pub version: Version,
    /// What it is; `None` if encrypted.
    pub pdu: Option<Pdu>,
    /// request-id, and msgID for encrypted messages; `None` for SNMPv1 traps.
    pub request_id: Option<i64>,
    /// snmpTrapOID, for SNMPv1 as RFC 3584 §3.1 maps it.
    pub trap_oid: Option<Oid<'a>>,
    /// Its name and the name of its module, if they are known.
    pub name: Option<[&'a str; 2]>,
    /// sysUpTime, hundredths of a second.
    pub uptime_ticks: Option<u64>,
    /// The agent: agent-addr of SNMPv1, or snmpTrapAddress.
    pub agent_address: Option<Ipv4Addr>,
    /// SNMPv1 only.
    pub v1: Option<TrapV1<'a>>,
    /// SNMPv3 only.
    pub security: Option<Security<'a>>,
    /// The variable bindings, without sysUpTime.0 and snmpTrapOID.0 at their head, at most
    /// [`MAX_VARBINDS`].
    pub varbinds: Vec<Varbind<'a>>,
    /// Bytes of variable bindings above [`MAX_VARBINDS`].
    pub omitted_bytes: usize,
    /// Bytes after the message.
    pub trailing_bytes: usize,
    /// What ended the decoding of the variable bindings early.
    pub error: Option<Error>,
}

/// Decodes a datagram. Names, enumerations and display hints are those of `mib`.
///
/// # Errors
///
/// If the datagram is not an SNMP message, or if its parts down to the list of variable bindings
/// are malformed. Malformed bindings are in the row ([`Trap::error`], [`Varbind::error`]).
pub fn decode<'a>(datagram: &'a [u8], mib: &'a Mib) -> Result<Trap<'a>, Error> {
    let mut outer = Reader::new(datagram);
    let message = outer.expect(SEQUENCE, "not an SNMP message")?;
    let mut parts = message.reader();
    let mut trap = match parts.integer("not an SNMP message")? {
        0 => with_community(parts, Version::V1, mib)?,
        1 => with_community(parts, Version::V2c, mib)?,
        3 => v3(parts, mib)?,
        _ => return Err(Error { at: message.at, reason: "an unknown version of SNMP" }),
    };
    trap.trailing_bytes = outer.len();
    if let Some(oid) = &trap.trap_oid {
        trap.name = notification_name(oid, mib);
    }
    Ok(trap)
}

fn with_community<'a>(mut parts: Reader<'a>, version: Version, mib: &'a Mib) -> Result<Trap<'a>, Error> {
    parts.expect(OCTET_STRING, "the community is missing")?;
    let mut trap = Trap::new(version);
    read_pdu(parts.next()?, &mut trap, mib)?;
    Ok(trap)
}

fn v3<'a>(mut parts: Reader<'a>, mib: &'a Mib) -> Result<Trap<'a>, Error> {
    let mut header = parts.expect(SEQUENCE, "the header of SNMPv3 is missing")?.reader();
    let message_id = header.integer("msgID is missing")?;
    header.integer("msgMaxSize is missing")?;
    let flags = header.expect(OCTET_STRING, "msgFlags are missing")?;
    let &[flags] = flags.contents else {
        return Err(Error { at: flags.at, reason: "msgFlags are not one octet" });
    };
    let model = header.integer("msgSecurityModel is missing")?;
    let parameters = parts.expect(OCTET_STRING, "the security parameters are missing")?;
    let (engine, boots_and_time) = usm(parameters).unwrap_or_default();
    let data = parts.next()?;
    let mut security = Security {
        is_authenticated: flags & 1 != 0,
        is_encrypted: data.tag == OCTET_STRING,
        model,
        engine,
        boots_and_time,
        context: None,
    };
    let mut trap = Trap::new(Version::V3);
    match data.tag {
        OCTET_STRING => trap.request_id = Some(message_id),
        SEQUENCE => {
            let mut scoped = data.reader();
            let engine = scoped.expect(OCTET_STRING, "contextEngineID is missing")?;
            let name = scoped.expect(OCTET_STRING, "contextName is missing")?;
            security.context = Some([engine.contents, name.contents]);
            read_pdu(scoped.next()?, &mut trap, mib)?;
        }
        _ => return Err(Error { at: data.at, reason: "the PDU of SNMPv3 is missing" }),
    }
    trap.security = Some(security);
    Ok(trap)
}

/// The parameters of the user-based security model (RFC 3414 §2.4), up to the user name.
fn usm(parameters: Element<'_>) -> Option<(&[u8], Option<[u64; 2]>)> {
    let mut fields = parameters.reader().expect(SEQUENCE, "").ok()?.reader();
    let engine = fields.expect(OCTET_STRING, "").ok()?;
    // Never negative (RFC 3414 §2.4), but some agents leave out the zero octet that says so.
    let mut number = || ber::unsigned(fields.expect(INTEGER, "").ok()?.contents);
    let (boots, time) = (number()?, number()?);
    Some((engine.contents, Some([boots, time])))
}

/// Reads a PDU of any version.
fn read_pdu<'a>(pdu: Element<'a>, trap: &mut Trap<'a>, mib: &'a Mib) -> Result<(), Error> {
    let mut fields = pdu.reader();
    let kind = match pdu.tag {
        0xa0 => Pdu::GetRequest,
        0xa1 => Pdu::GetNextRequest,
        0xa2 => Pdu::Response,
        0xa3 => Pdu::SetRequest,
        0xa4 => {
            trap.pdu = Some(Pdu::Trap);
            return read_v1(fields, trap, mib);
        }
        0xa5 => Pdu::GetBulkRequest,
        0xa6 => Pdu::Inform,
        0xa7 => Pdu::Trap,
        0xa8 => Pdu::Report,
        _ => return Err(Error { at: pdu.at, reason: "an unknown type of PDU" }),
    };
    trap.pdu = Some(kind);
    trap.request_id = Some(fields.integer("the request id is missing")?);
    fields.integer("the error status is missing")?;
    fields.integer("the error index is missing")?;
    read_varbinds(fields, trap, mib)?;
    if matches!(kind, Pdu::Trap | Pdu::Inform) {
        lift(trap);
    }
    Ok(())
}

fn read_v1<'a>(mut fields: Reader<'a>, trap: &mut Trap<'a>, mib: &'a Mib) -> Result<(), Error> {
    let enterprise = fields.expect(OBJECT_IDENTIFIER, "the enterprise is missing")?;
    let malformed = Error { at: enterprise.at, reason: "the enterprise is not an object identifier" };
    let enterprise = Oid::from_ber(enterprise.contents).ok_or(malformed)?;
    // Some agents leave the address empty.
    let address = <[u8; 4]>::try_from(fields.next()?.contents);
    trap.agent_address = address.ok().map(Ipv4Addr::from);
    let generic = fields.integer("the generic trap is missing")?;
    let specific = fields.integer("the specific trap is missing")?;
    trap.uptime_ticks = ber::unsigned(fields.next()?.contents);
    trap.trap_oid = trap_oid(&enterprise, generic, specific);
    trap.v1 = Some(TrapV1 { enterprise, generic, specific });
    read_varbinds(fields, trap, mib)
}

/// snmpTrapOID of an SNMPv1 trap (RFC 3584 §3.1). `None` for numbers that cannot be arcs.
fn trap_oid(enterprise: &Oid<'_>, generic: i64, specific: i64) -> Option<Oid<'static>> {
    if generic == ENTERPRISE_SPECIFIC {
        // Above 2^31 an agent may have encoded an unsigned number as a negative one.
        let specific = u32::try_from(specific).or(i32::try_from(specific).map(i32::cast_unsigned)).ok()?;
        return Some(enterprise.clone().with(&[0, specific]));
    }
    let generic = u32::try_from(generic).ok().filter(|&generic| generic < 6)?;
    Oid::from_ber(&[0x2b]).map(|iso_org| iso_org.with(&SNMP_TRAPS[2..]).with(&[generic + 1]))
}

/// Takes sysUpTime.0 and snmpTrapOID.0 off the head of the bindings, where RFC 3416 §4.2.6 puts
/// them, or else reads them where they are.
fn lift(trap: &mut Trap<'_>) {
    let mut at_head = 0;
    for (index, varbind) in trap.varbinds.iter().enumerate() {
        let is_taken = match &varbind.value {
            &Value::Unsigned(ticks) if trap.uptime_ticks.is_none() && varbind.oid.arcs().eq(SYS_UPTIME_0) => {
                trap.uptime_ticks = Some(ticks);
                true
            }
            Value::Oid(oid) if trap.trap_oid.is_none() && varbind.oid.arcs().eq(SNMP_TRAP_OID_0) => {
                trap.trap_oid = Some(oid.clone());
                true
            }
            &Value::Address(address) if varbind.oid.arcs().eq(SNMP_TRAP_ADDRESS_0) => {
                trap.agent_address = Some(address);
                false
            }
            _ => false,
        };
        at_head += usize::from(is_taken && index == at_head);
    }
    trap.varbinds.drain(..at_head);
}

/// Reads the list of variable bindings. What is wrong in one binding is said there, what is wrong
/// with their frames ends the list.
fn read_varbinds<'a>(mut fields: Reader<'a>, trap: &mut Trap<'a>, mib: &'a Mib) -> Result<(), Error> {
    let mut list = fields.expect(SEQUENCE, "the variable bindings are missing")?.reader();
    // A binding takes about 20 bytes.
    trap.varbinds.reserve((list.len() / 20 + 1).min(MAX_VARBINDS));
    while !list.is_empty() {
        if trap.varbinds.len() == MAX_VARBINDS {
            trap.omitted_bytes = list.len();
            break;
        }
        match list.expect(SEQUENCE, "a variable binding is not a SEQUENCE").and_then(|one| Varbind::read(one, mib)) {
            Ok(varbind) => trap.varbinds.push(varbind),
            Err(error) => {
                trap.error = Some(error);
                break;
            }
        }
    }
    Ok(())
}

/// The name and module of a notification.
fn notification_name<'a>(oid: &Oid<'_>, mib: &'a Mib) -> Option<[&'a str; 2]> {
    let exact = |found: &crate::mib::Found<'_>| found.kind == Kind::Notification && found.is_exact;
    let found = mib.find(oid.arcs()).filter(exact).or_else(|| {
        // Some modules define `{ enterprise 3 }` without the zero that RFC 3584 §3.1 puts between.
        let arcs = oid.arcs().count();
        let without = |index: usize| index + 2 != arcs;
        let is_zero = arcs > 2 && oid.tail(arcs - 2).next() == Some(0);
        let arcs = oid.arcs().enumerate().filter(|(index, _)| without(*index)).map(|(_, arc)| arc);
        is_zero.then(|| mib.find(arcs)).flatten().filter(exact)
    })?;
    Some([found.name, found.module])
}

impl Trap<'_> {
    fn new(version: Version) -> Trap<'static> {
        Trap {
            version,
            pdu: None,
            request_id: None,
            trap_oid: None,
            name: None,
            uptime_ticks: None,
            agent_address: None,
            v1: None,
            security: None,
            varbinds: Vec::new(),
            omitted_bytes: 0,
            trailing_bytes: 0,
            error: None,
        }
    }
}
