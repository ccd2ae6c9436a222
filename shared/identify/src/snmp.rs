//! SNMP, by the BER headers up to the PDU. Of variable bindings, only the names are read, and only
//! by [`Notification`].
//!
//! ```text
//! v1, v2c  SEQUENCE { INTEGER version = 0 | 1,                       RFC 1157 §4, RFC 3416 §3
//!                     OCTET STRING community,
//!                     PDU, by its tag }
//! v3       SEQUENCE { INTEGER version = 3,                           RFC 3412 §6
//!                     SEQUENCE { INTEGER id, INTEGER max_size,
//!                                OCTET STRING flags, INTEGER security_model },
//!                     OCTET STRING security parameters,
//!                     SEQUENCE scoped PDU | OCTET STRING encrypted PDU }
//! ```

use sekiwake_record::Format;

/// Universal tags.
pub(crate) const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// Context-specific, constructed tags of PDUs (RFC 1157 §4.1, RFC 3416 §3).
const TRAP_PDU: u8 = 0xa4;
const INFORM_REQUEST_PDU: u8 = 0xa6;
const SNMPV2_TRAP_PDU: u8 = 0xa7;

/// msgVersion (RFC 1157 §4, RFC 1901 §3, RFC 3412 §6).
const VERSION_1: u32 = 0;
const VERSION_2C: u32 = 1;
const VERSION_3: u32 = 3;

/// reportableFlag in msgFlags (RFC 3412 §6).
const REPORTABLE: u8 = 0x04;

/// A trap, an inform, or any SNMPv3 message, whose PDU may be encrypted.
pub(crate) fn identify(payload: &[u8]) -> Option<Format> {
    let (message, _) = take(SEQUENCE, payload)?;
    let (version, rest) = take(INTEGER, message)?;
    match integer(version)? {
        VERSION_1 => (community_pdu(rest)? == TRAP_PDU).then_some(Format::Snmp1Trap),
        VERSION_2C => match community_pdu(rest)? {
            SNMPV2_TRAP_PDU => Some(Format::Snmp2cTrap),
            INFORM_REQUEST_PDU => Some(Format::Snmp2cInform),
            _ => None,
        },
        VERSION_3 => V3::read(rest).map(|_| Format::Snmp3),
        _ => None,
    }
}

/// The offset of the PDU's tag in a v2c InformRequest, in bytes; `None` for other messages. Writing
/// [`SNMPV2_TRAP`] there turns the message into a trap, because the two PDUs have the same contents
/// (RFC 3416 §4.2.6, §4.2.7).
pub fn inform_tag(payload: &[u8]) -> Option<usize> {
    let (message, _) = take(SEQUENCE, payload)?;
    let (version, rest) = take(INTEGER, message)?;
    let (_, pdu) = take(OCTET_STRING, rest)?;
    let is_inform = integer(version)? == VERSION_2C && *pdu.first()? == INFORM_REQUEST_PDU;
    // `pdu` borrows from `payload`, so the difference of the pointers is the offset.
    is_inform.then(|| pdu.as_ptr() as usize - payload.as_ptr() as usize)
}

/// The tag of an SNMPv2-Trap-PDU.
pub const SNMPV2_TRAP: u8 = SNMPV2_TRAP_PDU;

/// A v2c trap or inform, split so that a variable binding can be appended (RFC 3416 §3):
///
/// ```text
/// SEQUENCE { head, PDU { pdu_head, SEQUENCE { bindings }, after_bindings }, after_pdu } after_message
/// ```
/// The parts named `after` are empty unless the sender has appended bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    /// Version and community, as encoded.
    pub head: &'a [u8],
    /// Request id, error status and error index, as encoded.
    pub pdu_head: &'a [u8],
    /// The variable bindings, as encoded.
    pub bindings: &'a [u8],
    /// Bytes after the bindings in the PDU.
    pub after_bindings: &'a [u8],
    /// Bytes after the PDU in the message.
    pub after_pdu: &'a [u8],
    /// Bytes after the message.
    pub after_message: &'a [u8],
}

impl<'a> Notification<'a> {
    /// Splits a payload. `None` for other messages, and if a part is missing or exceeds the part
    /// that contains it.
    pub fn read(payload: &'a [u8]) -> Option<Notification<'a>> {
        let (message, after_message) = take(SEQUENCE, payload)?;
        let (version, rest) = take(INTEGER, message)?;
        let (_community, pdu) = take(OCTET_STRING, rest)?;
        let tag = *pdu.first()?;
        if integer(version)? != VERSION_2C || !matches!(tag, SNMPV2_TRAP_PDU | INFORM_REQUEST_PDU) {
            return None;
        }
        let (contents, after_pdu) = take(tag, pdu)?;
        let (_request_id, rest) = take(INTEGER, contents)?;
        let (_error_status, rest) = take(INTEGER, rest)?;
        let (_error_index, list) = take(INTEGER, rest)?;
        let (bindings, after_bindings) = take(SEQUENCE, list)?;
        Some(Notification {
            head: &message[..message.len() - pdu.len()],
            pdu_head: &contents[..contents.len() - list.len()],
            bindings,
            after_bindings,
            after_pdu,
            after_message,
        })
    }

    /// Whether one of the bindings has this name, an encoded OBJECT IDENTIFIER without tag and
    /// length. `None` if the bindings are not well-formed.
    pub fn has_binding(&self, name: &[u8]) -> Option<bool> {
        let mut rest = self.bindings;
        let mut is_found = false;
        while !rest.is_empty() {
            let (binding, after) = take(SEQUENCE, rest)?;
            let (found, value) = take(OBJECT_IDENTIFIER, binding)?;
            take(*value.first()?, value)?;
            is_found |= found == name;
            rest = after;
        }
        Some(is_found)
    }
}

/// Whether the receiver of an SNMPv3 message responds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does not: the message is a trap.
    None,
    /// It does: an inform, a request, or what is not SNMPv3.
    Expected,
    /// The PDU is encrypted. The reportable flag is set, as in all PDUs of the confirmed class and
    /// not in traps (RFC 3412 §6.4), but some senders set it in traps as well.
    Unknown,
}

/// Whether the receiver of an SNMPv3 message responds to it: by the PDU's tag if it is not
/// encrypted.
pub fn answer(payload: &[u8]) -> Answer {
    v3_answer(payload).unwrap_or(Answer::Expected)
}

fn v3_answer(payload: &[u8]) -> Option<Answer> {
    let (message, _) = take(SEQUENCE, payload)?;
    let (version, rest) = take(INTEGER, message)?;
    if integer(version)? != VERSION_3 {
        return None;
    }
    let v3 = V3::read(rest)?;
    let is_reportable = v3.flags & REPORTABLE != 0;
    Some(match v3.pdu_tag() {
        Some(SNMPV2_TRAP_PDU) => Answer::None,
        Some(_) => Answer::Expected,
        None if is_reportable => Answer::Unknown,
        None => Answer::None,
    })
}

/// The tag of the PDU after the community, if the PDU is complete.
fn community_pdu(after_version: &[u8]) -> Option<u8> {
    let (_, pdu) = take(OCTET_STRING, after_version)?;
    let tag = *pdu.first()?;
    take(tag, pdu).map(|_| tag)
}

/// The parts of an SNMPv3 message that are read.
struct V3<'a> {
    flags: u8,
    /// The scoped PDU, or an OCTET STRING if it is encrypted.
    scoped_pdu: &'a [u8],
}

impl<'a> V3<'a> {
    /// Reads what follows the version. `None` if a part is missing.
    fn read(after_version: &'a [u8]) -> Option<V3<'a>> {
        let (global_data, rest) = take(SEQUENCE, after_version)?;
        let (_message_id, global_data) = take(INTEGER, global_data)?;
        let (_max_size, global_data) = take(INTEGER, global_data)?;
        let (flags, global_data) = take(OCTET_STRING, global_data)?;
        let (_security_model, _) = take(INTEGER, global_data)?;
        let (_security_parameters, scoped_pdu) = take(OCTET_STRING, rest)?;
        let tag = *scoped_pdu.first()?;
        take(tag, scoped_pdu).filter(|_| matches!(tag, SEQUENCE | OCTET_STRING))?;
        let &[flags] = flags else { return None };
        Some(V3 { flags, scoped_pdu })
    }

    /// The tag of the PDU, behind the context's engine and name. `None` if it is encrypted.
    fn pdu_tag(&self) -> Option<u8> {
        let (scoped_pdu, _) = take(SEQUENCE, self.scoped_pdu)?;
        let (_engine, rest) = take(OCTET_STRING, scoped_pdu)?;
        let (_name, pdu) = take(OCTET_STRING, rest)?;
        pdu.first().copied()
    }
}

/// Splits off an element with this tag: its contents, and the bytes after it.
///
/// Lengths have the definite form (RFC 3417 §8), but not always the shortest one: some agents write
/// `82 00 7f`.
fn take(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = bytes else { return None };
    if *first != tag {
        return None;
    }
    if *length < 0x80 {
        return rest.split_at_checked(usize::from(*length));
    }
    let (octets, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
    rest.split_at_checked(usize::try_from(integer(octets)?).ok()?)
}

/// A non-negative number of one to four octets.
fn integer(octets: &[u8]) -> Option<u32> {
    matches!(octets.len(), 1..=4).then(|| octets.iter().fold(0, |value, &octet| value << 8 | u32::from(octet)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
        [&[tag, contents.len() as u8], contents].concat()
    }

    fn v2c(pdu_tag: u8) -> Vec<u8> {
        let parts = [element(INTEGER, &[1]), element(OCTET_STRING, b"public"), element(pdu_tag, &[2, 1, 7])];
        element(SEQUENCE, &parts.concat())
    }

    fn v3(flags: u8, scoped_pdu: &[u8]) -> Vec<u8> {
        let global = [element(INTEGER, &[1]), element(INTEGER, &[4, 0]), element(OCTET_STRING, &[flags])].concat();
        let global = element(SEQUENCE, &[global, element(INTEGER, &[3])].concat());
        let parts = [element(INTEGER, &[3]), global, element(OCTET_STRING, b""), scoped_pdu.to_vec()];
        element(SEQUENCE, &parts.concat())
    }

    fn plain(pdu_tag: u8) -> Vec<u8> {
        let parts = [element(OCTET_STRING, b"engine"), element(OCTET_STRING, b""), element(pdu_tag, &[2, 1, 7])];
        element(SEQUENCE, &parts.concat())
    }

    #[test]
    fn inform_with_the_tag_of_a_trap_is_the_trap() {
        let mut inform = v2c(INFORM_REQUEST_PDU);
        let tag = inform_tag(&inform).unwrap();
        inform[tag] = SNMPV2_TRAP;
        assert_eq!(inform, v2c(SNMPV2_TRAP_PDU));
        assert_eq!(inform_tag(&inform), None);
        assert_eq!(inform_tag(&v3(4, &plain(INFORM_REQUEST_PDU))), None);
        assert_eq!(inform_tag(b"\x30\x02"), None);
    }

    #[test]
    fn notification_is_split_around_its_bindings() {
        let binding =
            |name: &[u8]| element(SEQUENCE, &[element(OBJECT_IDENTIFIER, name), element(INTEGER, &[7])].concat());
        let bindings = [binding(&[0x2b, 6, 1]), binding(&[0x2b, 6, 2])].concat();
        let pdu_head = [element(INTEGER, &[1, 2, 3, 4]), element(INTEGER, &[0]), element(INTEGER, &[0])].concat();
        let head = [element(INTEGER, &[1]), element(OCTET_STRING, b"public")].concat();
        let message = |pdu_tag: u8, bindings: &[u8]| {
            let pdu = element(pdu_tag, &[&pdu_head[..], &element(SEQUENCE, bindings), b"x"].concat());
            [&element(SEQUENCE, &[&head[..], &pdu, b"yy"].concat())[..], b"zzz"].concat()
        };
        for tag in [SNMPV2_TRAP_PDU, INFORM_REQUEST_PDU] {
            let payload = message(tag, &bindings);
            let parts = Notification::read(&payload).unwrap();
            assert_eq!((parts.head, parts.pdu_head, parts.bindings), (&head[..], &pdu_head[..], &bindings[..]));
            assert_eq!(
                (parts.after_bindings, parts.after_pdu, parts.after_message),
                (&b"x"[..], &b"yy"[..], &b"zzz"[..])
            );
            assert_eq!(parts.has_binding(&[0x2b, 6, 2]), Some(true));
            assert_eq!(parts.has_binding(&[0x2b, 6]), Some(false));
        }
        assert_eq!(Notification::read(&message(0xa0, &bindings)), None);
        assert_eq!(Notification::read(&v2c(SNMPV2_TRAP_PDU)), None, "without error status and bindings");
        assert_eq!(Notification::read(&v3(4, &plain(SNMPV2_TRAP_PDU))), None);
        for malformed in [&b"\x30\x05\x06\x01\x2b"[..], b"\x30\x03\x06\x01\x2b", b"\x05\x00", b"\x30\x80"] {
            let payload = message(SNMPV2_TRAP_PDU, malformed);
            assert_eq!(Notification::read(&payload).unwrap().has_binding(&[0x2b]), None, "{malformed:x?}");
        }
    }

    #[test]
    fn tag_of_a_readable_pdu_says_whether_it_is_answered() {
        for flags in [0, 1, 4, 5] {
            assert_eq!(answer(&v3(flags, &plain(SNMPV2_TRAP_PDU))), Answer::None);
            assert_eq!(answer(&v3(flags, &plain(INFORM_REQUEST_PDU))), Answer::Expected);
            assert_eq!(answer(&v3(flags, &plain(0xa0))), Answer::Expected);
        }
    }

    #[test]
    fn reportable_flag_says_it_of_encrypted_pdus() {
        let encrypted = element(OCTET_STRING, b"encrypted");
        assert_eq!(answer(&v3(0x03, &encrypted)), Answer::None);
        assert_eq!(answer(&v3(0x07, &encrypted)), Answer::Unknown);
        for other in [v2c(INFORM_REQUEST_PDU), v3(4, &element(SEQUENCE, b"\x04\x30")), Vec::new()] {
            assert_ne!(answer(&other), Answer::None);
        }
    }
}
