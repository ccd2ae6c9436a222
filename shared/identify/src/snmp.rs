//! SNMP, by the BER headers in front of the PDU. The variable bindings are not looked at.
//!
//! ```text
//! v1, v2c  SEQUENCE { INTEGER version = 0 | 1, OCTET STRING community, PDU by its tag }                     RFC 1157 §4, RFC 3416 §3
//! v3       SEQUENCE { INTEGER version = 3,                                                                   RFC 3412 §6
//!                     SEQUENCE { INTEGER id, INTEGER max_size, OCTET STRING flags, INTEGER security_model },
//!                     OCTET STRING security parameters,
//!                     SEQUENCE scoped PDU | OCTET STRING encrypted PDU }
//! ```

use sekiwake_record::Format;

/// Universal tags.
pub(crate) const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;

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

/// A trap, an inform, or any SNMPv3 message, which hides what it is.
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
        VERSION_3 => is_v3(rest)?.then_some(Format::Snmp3),
        _ => None,
    }
}

/// Where the tag of the PDU is in a v2c InformRequest, the one byte that makes it a trap when it is [`SNMPV2_TRAP`]: the two
/// PDUs have the same contents (RFC 3416 §4.2.6, §4.2.7).
pub fn inform_tag(payload: &[u8]) -> Option<usize> {
    let (message, _) = take(SEQUENCE, payload)?;
    let (version, rest) = take(INTEGER, message)?;
    let (_, pdu) = take(OCTET_STRING, rest)?;
    let is_inform = integer(version)? == VERSION_2C && *pdu.first()? == INFORM_REQUEST_PDU;
    // `pdu` is a tail of the message, and what follows the message is not part of it.
    is_inform.then(|| pdu.as_ptr() as usize - payload.as_ptr() as usize)
}

/// The tag of an SNMPv2-Trap-PDU.
pub const SNMPV2_TRAP: u8 = SNMPV2_TRAP_PDU;

/// Whether somebody who receives this SNMPv3 message answers it: the reportable flag is set in requests of the confirmed class,
/// informs among them, and in no trap (RFC 3412 §6.4).
pub fn expects_answer(payload: &[u8]) -> bool {
    flags(payload).is_some_and(|flags| flags & REPORTABLE != 0)
}

/// msgFlags of an SNMPv3 message.
fn flags(payload: &[u8]) -> Option<u8> {
    let (message, _) = take(SEQUENCE, payload)?;
    let (version, rest) = take(INTEGER, message)?;
    if integer(version)? != VERSION_3 {
        return None;
    }
    let (global_data, _) = take(SEQUENCE, rest)?;
    let (_message_id, global_data) = take(INTEGER, global_data)?;
    let (_max_size, global_data) = take(INTEGER, global_data)?;
    let (flags, _) = take(OCTET_STRING, global_data)?;
    flags.first().copied()
}

/// The tag of the PDU behind the community, if the PDU is as long as it says.
fn community_pdu(after_version: &[u8]) -> Option<u8> {
    let (_, pdu) = take(OCTET_STRING, after_version)?;
    let tag = *pdu.first()?;
    take(tag, pdu).map(|_| tag)
}

/// Whether all parts of an SNMPv3 message are in their places.
fn is_v3(after_version: &[u8]) -> Option<bool> {
    let (global_data, rest) = take(SEQUENCE, after_version)?;
    let (_message_id, global_data) = take(INTEGER, global_data)?;
    let (_max_size, global_data) = take(INTEGER, global_data)?;
    let (flags, global_data) = take(OCTET_STRING, global_data)?;
    let (_security_model, _) = take(INTEGER, global_data)?;
    let (_security_parameters, scoped_pdu) = take(OCTET_STRING, rest)?;
    let tag = *scoped_pdu.first()?;
    Some(flags.len() == 1 && matches!(tag, SEQUENCE | OCTET_STRING) && take(tag, scoped_pdu).is_some())
}

/// Splits an element with this tag off: its contents, and what follows it.
///
/// Lengths have the definite form (RFC 3417 §8), though not always the shortest: agents write `82 00 7f`.
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

    fn v3(flags: u8) -> Vec<u8> {
        let global = [element(INTEGER, &[1]), element(INTEGER, &[4, 0]), element(OCTET_STRING, &[flags])].concat();
        let global = element(SEQUENCE, &[global, element(INTEGER, &[3])].concat());
        let parts = [element(INTEGER, &[3]), global, element(OCTET_STRING, b""), element(SEQUENCE, b"")];
        element(SEQUENCE, &parts.concat())
    }

    #[test]
    fn an_inform_with_another_tag_is_the_trap() {
        let mut inform = v2c(INFORM_REQUEST_PDU);
        let tag = inform_tag(&inform).unwrap();
        inform[tag] = SNMPV2_TRAP;
        assert_eq!(inform, v2c(SNMPV2_TRAP_PDU));
        assert_eq!(inform_tag(&inform), None);
        assert_eq!(inform_tag(&v3(4)), None);
        assert_eq!(inform_tag(b"\x30\x02"), None);
    }

    #[test]
    fn only_reportable_messages_of_version_3_expect_an_answer() {
        assert!(expects_answer(&v3(0x07)) && expects_answer(&v3(0x04)));
        assert!(!expects_answer(&v3(0x03)) && !expects_answer(&v2c(INFORM_REQUEST_PDU)) && !expects_answer(b""));
    }
}
