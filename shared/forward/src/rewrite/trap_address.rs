//! The device's address as a variable binding of an SNMPv2c trap: snmpTrapAddress.0, which a proxy
//! appends when it turns a v1 trap into a v2c trap (RFC 3584 §3.1, and §5.2 for the object).
//!
//! ```text
//! SEQUENCE { version, community, PDU { request id, error status, error index,
//!                                      SEQUENCE { bindings, SEQUENCE { snmpTrapAddress.0, IpAddress } } } }
//! ```
//! The three lengths around the bindings are written again, in their shortest form; all other bytes
//! are copied. Informs become traps, as without the address.

use std::net::IpAddr;

use sekiwake_identify::snmp::{Notification, SNMPV2_TRAP};

use crate::ber::{SEQUENCE, element_bytes, put_header};

/// 1.3.6.1.6.3.18.1.3.0, snmpTrapAddress.0 (SNMP-COMMUNITY-MIB, RFC 3584 §5.2).
const SNMP_TRAP_ADDRESS: [u8; 9] = [0x2b, 6, 1, 6, 3, 18, 1, 3, 0];

/// The binding up to the address: SEQUENCE, OBJECT IDENTIFIER, IpAddress (RFC 2578 §7.1.5).
const BINDING_HEAD: [u8; 15] = [SEQUENCE, 17, 0x06, 9, 0x2b, 6, 1, 6, 3, 18, 1, 3, 0, 0x40, 4];
const BINDING_BYTES: usize = BINDING_HEAD.len() + 4;

/// The longest payload of a UDP datagram over IPv4, bytes.
const MAX_PAYLOAD: usize = 65_507;

/// Appends the trap with the address to `out`. `false`, and nothing is appended: the message is not
/// a well-formed v2c trap or inform, it has the binding already, the device has an IPv6 address,
/// which the object cannot hold, or the datagram would be too long.
pub(super) fn append(payload: &[u8], source: IpAddr, out: &mut Vec<u8>) -> bool {
    let IpAddr::V4(source) = source.to_canonical() else { return false };
    let Some(parts) = Notification::read(payload) else { return false };
    if parts.has_binding(&SNMP_TRAP_ADDRESS) != Some(false) {
        return false;
    }
    let bindings = parts.bindings.len() + BINDING_BYTES;
    let pdu = parts.pdu_head.len() + element_bytes(bindings) + parts.after_bindings.len();
    let message = parts.head.len() + element_bytes(pdu) + parts.after_pdu.len();
    if element_bytes(message) + parts.after_message.len() > MAX_PAYLOAD {
        return false;
    }
    put_header(SEQUENCE, message, out);
    out.extend_from_slice(parts.head);
    put_header(SNMPV2_TRAP, pdu, out);
    out.extend_from_slice(parts.pdu_head);
    put_header(SEQUENCE, bindings, out);
    out.extend_from_slice(parts.bindings);
    out.extend_from_slice(&BINDING_HEAD);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(parts.after_bindings);
    out.extend_from_slice(parts.after_pdu);
    out.extend_from_slice(parts.after_message);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sekiwake_identify::identify;
    use sekiwake_record::Format;

    use super::*;
    use crate::ber::element;

    const INFORM: u8 = 0xa6;

    fn binding(name: &[u8], value: &[u8]) -> Vec<u8> {
        element(SEQUENCE, &[element(0x06, name), element(0x04, value)].concat())
    }

    fn message(pdu_tag: u8, bindings: &[Vec<u8>]) -> Vec<u8> {
        let numbers = [element(2, &[0, 0xa1, 0xb2, 0xc3]), element(2, &[0]), element(2, &[0])].concat();
        let pdu = element(pdu_tag, &[numbers, element(SEQUENCE, &bindings.concat())].concat());
        element(SEQUENCE, &[element(2, &[1]), element(4, b"public"), pdu].concat())
    }

    fn appended(payload: &[u8], source: &str) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let is_changed = append(payload, source.parse().unwrap(), &mut out);
        assert_eq!(is_changed, out.len() > 6);
        is_changed.then(|| out.split_off(6))
    }

    fn address_binding(octets: [u8; 4]) -> Vec<u8> {
        element(SEQUENCE, &[element(0x06, &SNMP_TRAP_ADDRESS), element(0x40, &octets)].concat())
    }

    #[test]
    fn address_is_the_last_binding() {
        let first = binding(&[0x2b, 6, 1], b"up");
        for tag in [SNMPV2_TRAP, INFORM] {
            let expected = message(SNMPV2_TRAP, &[first.clone(), address_binding([198, 18, 0, 9])]);
            assert_eq!(appended(&message(tag, std::slice::from_ref(&first)), "198.18.0.9"), Some(expected.clone()));
            assert_eq!(appended(&message(tag, std::slice::from_ref(&first)), "::ffff:198.18.0.9"), Some(expected));
        }
        let alone = message(SNMPV2_TRAP, &[address_binding([198, 18, 0, 9])]);
        assert_eq!(appended(&message(SNMPV2_TRAP, &[]), "198.18.0.9"), Some(alone));
    }

    #[test]
    fn lengths_of_any_form_are_written_in_the_shortest() {
        // Agents write lengths in more octets than necessary.
        let mut long = message(SNMPV2_TRAP, &[binding(&[0x2b, 6, 1], b"up")]);
        let length = long[1];
        long.splice(1..2, [0x84, 0, 0, 0, length]);
        let expected = message(SNMPV2_TRAP, &[binding(&[0x2b, 6, 1], b"up"), address_binding([10, 0, 0, 1])]);
        assert_eq!(appended(&long, "10.0.0.1"), Some(expected));
    }

    #[test]
    fn other_messages_stay_unchanged() {
        let trap = message(SNMPV2_TRAP, &[binding(&[0x2b, 6, 1], b"up")]);
        assert_eq!(appended(&trap, "2001:db8::9"), None, "the object holds IPv4 addresses");
        let with_address = message(SNMPV2_TRAP, &[address_binding([10, 0, 0, 1]), binding(&[0x2b, 6, 1], b"up")]);
        assert_eq!(appended(&with_address, "198.18.0.9"), None, "the agent has set it");
        let malformed = message(SNMPV2_TRAP, &[vec![SEQUENCE, 3, 0x06, 9, 0x2b]]);
        assert_eq!(appended(&malformed, "198.18.0.9"), None);
        let long = message(SNMPV2_TRAP, &[binding(&[0x2b, 6, 1], &[0; 65_450])]);
        assert!(long.len() <= MAX_PAYLOAD && appended(&long, "198.18.0.9").is_none(), "{}", long.len());
        assert_eq!(appended(b"<13>text", "198.18.0.9"), None);
    }

    fn bindings() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let name = proptest::collection::vec(0..0x80_u8, 1..12).prop_map(|rest| [&[0x2b][..], &rest].concat());
        let value = proptest::collection::vec(any::<u8>(), 0..700);
        proptest::collection::vec((name, value).prop_map(|(name, value)| binding(&name, &value)), 0..40)
    }

    proptest! {
        #[test]
        fn appended_address_is_read_back_and_the_rest_is_kept(
            bindings in bindings(), octets: [u8; 4], is_inform: bool, after in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let payload = [message(if is_inform { INFORM } else { SNMPV2_TRAP }, &bindings), after.clone()].concat();
            let source = IpAddr::from(octets);
            let changed = appended(&payload, &source.to_string()).unwrap();
            let all = [&bindings[..], &[address_binding(octets)]].concat();
            prop_assert_eq!(&changed, &[message(SNMPV2_TRAP, &all), after].concat());
            prop_assert_eq!(identify(None, &changed), Format::Snmp2cTrap);
            let parts = Notification::read(&changed).unwrap();
            prop_assert_eq!(parts.has_binding(&SNMP_TRAP_ADDRESS), Some(true));
            prop_assert_eq!(appended(&changed, "198.18.0.9"), None, "it is appended once");
        }

        /// Damage anywhere, and lengths that lie: no panic, and what is changed stays a trap.
        #[test]
        fn damaged_messages_are_changed_to_traps_or_left(
            bindings in bindings(), cut in any::<prop::sample::Index>(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut payload = message(SNMPV2_TRAP, &bindings);
            for (place, byte) in damage {
                let place = place.index(payload.len().min(60));
                payload[place] = byte;
            }
            payload.truncate(cut.index(payload.len()) + 1);
            if let Some(changed) = appended(&payload, "198.18.0.9") {
                prop_assert!(changed.len() <= MAX_PAYLOAD);
                prop_assert!(changed.len() <= payload.len() + BINDING_BYTES + 9);
                prop_assert_eq!(identify(None, &changed), Format::Snmp2cTrap);
                let parts = Notification::read(&changed).unwrap();
                prop_assert_eq!(parts.has_binding(&SNMP_TRAP_ADDRESS), Some(true));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            appended(&payload, "198.18.0.9");
        }
    }
}
