use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::mib::{Limits, MibFile, load};

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let head = match length {
        0..0x80 => vec![tag, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [head, contents.to_vec()].concat()
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(SEQUENCE, &parts.concat())
}

fn integer(number: u8) -> Vec<u8> {
    element(INTEGER, &[number])
}

fn oid(arcs: &[u32]) -> Vec<u8> {
    let first = (arcs[0] * 40 + arcs[1]) as u8;
    let Oid(octets) = Oid::from_ber(&[first]).unwrap().with(&arcs[2..]);
    element(OBJECT_IDENTIFIER, &octets)
}

fn varbind(name: &[u32], value: Vec<u8>) -> Vec<u8> {
    sequence(&[oid(name), value])
}

fn pdu(tag: u8, varbinds: &[Vec<u8>]) -> Vec<u8> {
    element(tag, &[integer(7), integer(0), integer(0), sequence(varbinds)].concat())
}

fn v2c(tag: u8, varbinds: &[Vec<u8>]) -> Vec<u8> {
    sequence(&[integer(1), element(OCTET_STRING, b"s3cret"), pdu(tag, varbinds)])
}

fn head(trap: &[u32]) -> [Vec<u8>; 2] {
    [varbind(&SYS_UPTIME_0, element(0x43, &[0x30, 0x39])), varbind(&SNMP_TRAP_OID_0, oid(trap))]
}

fn link_down(more: &[Vec<u8>]) -> Vec<u8> {
    v2c(0xa7, &[&head(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 3])[..], more].concat())
}

fn v1(enterprise: &[u32], generic: u8, specific: Vec<u8>) -> Vec<u8> {
    let parts = [
        oid(enterprise),
        element(0x40, &[198, 51, 100, 7]),
        integer(generic),
        element(INTEGER, &specific),
        element(0x43, &[100]),
        sequence(&[]),
    ];
    sequence(&[integer(0), element(OCTET_STRING, b"s3cret"), element(0xa4, &parts.concat())])
}

fn v3(flags: u8, data: Vec<u8>) -> Vec<u8> {
    let header = [integer(9), integer(100), element(OCTET_STRING, &[flags]), integer(3)].concat();
    let usm = [
        element(OCTET_STRING, b"\x80\x01engine"),
        integer(4),
        integer(5),
        element(OCTET_STRING, b"s3cret"),
        element(OCTET_STRING, b""),
        element(OCTET_STRING, b""),
    ];
    let usm = element(OCTET_STRING, &sequence(&usm));
    sequence(&[integer(3), element(SEQUENCE, &header), usm, data])
}

fn row(datagram: &[u8]) -> Json {
    let mib = Mib::default();
    let row = serde_json::to_value(decode(datagram, &mib).unwrap()).unwrap();
    assert!(!row.to_string().contains("s3cret"), "{row}");
    row
}

/// The only variable binding of a trap.
fn value(name: &[u32], value: Vec<u8>) -> Json {
    row(&link_down(&[varbind(name, value)]))["varbinds"][0].clone()
}

#[test]
fn v2c_trap_is_a_row_with_names() {
    let if_table = |column, value| varbind(&[1, 3, 6, 1, 2, 1, 2, 2, 1, column, 3], value);
    let varbinds = [if_table(1, integer(3)), if_table(8, integer(2)), if_table(2, element(OCTET_STRING, b"Gi0/3"))];
    let datagram = link_down(&varbinds);
    let expected = json!({
        "format": "snmp2c-trap", "type": "trap", "version": "2c", "pdu": "trap", "request_id": 7, "trap_oid": "1.3.6.1.6.3.1.1.5.3",
        "trap_name": "linkDown", "trap_module": "IF-MIB", "uptime_ticks": 12345,
        "varbinds": [
            {"oid": "1.3.6.1.2.1.2.2.1.1.3", "name": "ifIndex.3", "module": "IF-MIB", "type": "INTEGER", "value": 3},
            {"oid": "1.3.6.1.2.1.2.2.1.8.3", "name": "ifOperStatus.3", "module": "IF-MIB", "type": "INTEGER",
             "value": 2, "text": "down"},
            {"oid": "1.3.6.1.2.1.2.2.1.2.3", "name": "ifDescr.3", "module": "IF-MIB", "type": "OCTET STRING",
             "value": "Gi0/3"},
        ],
    });
    assert_eq!(row(&datagram), expected);
    let mib = Mib::default();
    let line = decode(&datagram, &mib).unwrap().to_string();
    assert_eq!(line, "snmp2c-trap linkDown uptime 123.45 s ifIndex.3=3 ifOperStatus.3=down ifDescr.3=Gi0/3");
}

#[test]
fn v1_trap_has_the_trap_oid_of_rfc_3584() {
    let enterprise = [1, 3, 6, 1, 4, 1, 9, 1, 7];
    let generic = row(&v1(&enterprise, 2, vec![0]));
    assert_eq!((&generic["trap_oid"], &generic["trap_name"]), (&json!("1.3.6.1.6.3.1.1.5.3"), &json!("linkDown")));
    assert_eq!(generic["agent_address"], json!("198.51.100.7"));
    assert_eq!(generic["uptime_ticks"], json!(100));
    assert_eq!(generic["enterprise"], json!("1.3.6.1.4.1.9.1.7"));
    let specific = row(&v1(&enterprise, 6, vec![5]));
    assert_eq!(specific["trap_oid"], json!("1.3.6.1.4.1.9.1.7.0.5"));
    assert_eq!(specific.get("trap_name"), None);
    let negative = row(&v1(&enterprise, 6, vec![0xff, 0xff, 0xff, 0xff]));
    assert_eq!(negative["trap_oid"], json!("1.3.6.1.4.1.9.1.7.0.4294967295"));
    assert_eq!(row(&v1(&enterprise, 7, vec![5])).get("trap_oid"), None);
}

#[test]
fn informs_and_requests_say_what_they_are() {
    let varbinds = head(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 1]);
    assert_eq!(row(&v2c(0xa6, &varbinds))["pdu"], json!("inform"));
    let report = row(&v2c(0xa8, &varbinds));
    assert_eq!(report["pdu"], json!("report"));
    assert_eq!(report["varbinds"].as_array().unwrap().len(), 2);
    assert_eq!(report.get("trap_oid"), None);
    assert_eq!(row(&v2c(0xa0, &[]))["pdu"], json!("get-request"));
}

#[test]
fn v3_trap_is_decoded_without_its_user() {
    let scoped = [
        element(OCTET_STRING, b"\x80\x02"),
        element(OCTET_STRING, b"vrf-1"),
        pdu(0xa7, &head(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 1])),
    ];
    let row = row(&v3(1, sequence(&scoped)));
    assert_eq!((&row["trap_name"], &row["security_level"]), (&json!("coldStart"), &json!("authNoPriv")));
    assert_eq!((&row["engine_boots"], &row["engine_time_seconds"]), (&json!(4), &json!(5)));
    assert_eq!((&row["context_engine_id"], &row["context_name"]), (&json!("8002"), &json!("vrf-1")));
    assert_eq!(row["engine_id"], json!("8001656e67696e65"));
    assert_eq!(row["encrypted"], json!(false));
}

#[test]
fn encrypted_v3_says_so() {
    let row = row(&v3(3, element(OCTET_STRING, b"\x01\x02\x03")));
    assert_eq!((&row["encrypted"], &row["security_level"]), (&json!(true), &json!("authPriv")));
    assert_eq!((row.get("pdu"), row.get("trap_oid")), (None, None));
    assert_eq!(row["request_id"], json!(9));
}

#[test]
fn every_type_has_a_value() {
    let name = [1, 3, 6, 1, 4, 1, 9, 1];
    let shown = |tag, contents: &[u8]| {
        let row = value(&name, element(tag, contents));
        let value = row.get("value").or(row.get("value_hex")).cloned();
        (row["type"].as_str().unwrap().to_owned(), value.unwrap(), row.get("error").is_some())
    };
    let whole = |name: &str, value: Json| (name.to_owned(), value, false);
    assert_eq!(shown(0x02, &[0xff]), whole("INTEGER", json!(-1)));
    assert_eq!(shown(0x02, &[0x7f, 0xff, 0xff, 0xff, 0xff]), whole("INTEGER", json!(0x7f_ffff_ffff_i64)));
    assert_eq!(shown(0x04, b"text"), whole("OCTET STRING", json!("text")));
    assert_eq!(shown(0x04, b""), whole("OCTET STRING", json!("")));
    assert_eq!(shown(0x04, b"\x00\x1b\xff"), whole("OCTET STRING", json!("001bff")));
    assert_eq!(shown(0x04, b"a\x00"), whole("OCTET STRING", json!("6100")));
    assert_eq!(shown(0x05, b""), whole("NULL", Json::Null));
    assert_eq!(shown(0x06, b"\x2b\x06\x81\x00"), whole("OBJECT IDENTIFIER", json!("1.3.6.128")));
    assert_eq!(shown(0x06, b""), whole("OBJECT IDENTIFIER", json!("0.0")));
    assert_eq!(shown(0x06, b"\x88\x37"), whole("OBJECT IDENTIFIER", json!("2.999")));
    assert_eq!(shown(0x03, b"\x04\xf0"), whole("BIT STRING", json!("04f0")));
    assert_eq!(shown(0x40, &[203, 0, 113, 9]), whole("IpAddress", json!("203.0.113.9")));
    assert_eq!(shown(0x41, &[0, 0xff, 0xff, 0xff, 0xff]), whole("Counter32", json!(u32::MAX)));
    assert_eq!(shown(0x41, &[0xff, 0xff, 0xff, 0xff]), whole("Counter32", json!(u32::MAX)));
    assert_eq!(shown(0x42, &[7]), whole("Gauge32", json!(7)));
    assert_eq!(shown(0x43, &[1, 0]), whole("TimeTicks", json!(256)));
    assert_eq!(shown(0x44, b"\x9f\x78\x04\x3f\xc0\x00\x00"), whole("Float", json!(1.5)));
    assert_eq!(shown(0x44, b"\x9f\x79\x08\x7f\xf0\0\0\0\0\0\0"), whole("Double", json!("inf")));
    assert_eq!(shown(0x44, b"\x9f\x7a\x01\xff"), whole("Integer64", json!(-1)));
    assert_eq!(shown(0x44, b"\x9f\x7b\x01\xff"), whole("Unsigned64", json!(255)));
    assert_eq!(shown(0x44, b"\x9f\x76\x01\xff"), whole("Counter64", json!(255)));
    assert_eq!(shown(0x44, b"\x02\x01\x05"), whole("Opaque", json!("020105")));
    assert_eq!(shown(0x45, b"\x49\x00"), whole("NsapAddress", json!("4900")));
    assert_eq!(shown(0x46, &[0, 0xff, 0, 0, 0, 0, 0, 0, 1]), whole("Counter64", json!(0xff00_0000_0000_0001_u64)));
    assert_eq!(shown(0x47, &[9]), whole("UInteger32", json!(9)));
    assert_eq!(shown(0x80, b""), whole("noSuchObject", Json::Null));
    assert_eq!(shown(0x81, b""), whole("noSuchInstance", Json::Null));
    assert_eq!(shown(0x82, b""), whole("endOfMibView", Json::Null));
    assert_eq!(shown(0x30, b"\x02\x01\x05"), whole("SEQUENCE", json!("020105")));
    assert_eq!(shown(0x16, b"x"), whole("unknown", json!("78")));

    let malformed = |name: &str, hex: &str| (name.to_owned(), json!(hex), true);
    assert_eq!(shown(0x02, b""), malformed("INTEGER", ""));
    assert_eq!(shown(0x02, &[1; 9]), malformed("INTEGER", "010101010101010101"));
    assert_eq!(shown(0x40, &[1, 2]), malformed("IpAddress", "0102"));
    assert_eq!(shown(0x41, &[1, 0, 0, 0, 0]), malformed("Counter32", "0100000000"));
    assert_eq!(shown(0x06, &[0x2b, 0x81]), malformed("OBJECT IDENTIFIER", "2b81"));
    assert_eq!(shown(0x06, &[0x2b, 0x90, 0x80, 0x80, 0x80, 0]), malformed("OBJECT IDENTIFIER", "2b9080808000"));
}

#[test]
fn communities_and_user_names_are_hidden() {
    let secret = element(OCTET_STRING, b"s3cret");
    let name: Vec<u32> = b"s3cret".iter().map(|&byte| byte.into()).collect();
    let community = value(&[1, 3, 6, 1, 6, 3, 18, 1, 4, 0], secret.clone());
    let expected = json!({"oid": "1.3.6.1.6.3.18.1.4.0", "name": "snmpTrapCommunity.0", "module": "SNMP-COMMUNITY-MIB",
        "type": "OCTET STRING", "hidden": true});
    assert_eq!(community, expected);
    // usmUserStatus: the user is in the index.
    let user = [&[1, 3, 6, 1, 6, 3, 15, 1, 2, 2, 1, 13, 2, 0x80, 1, 6][..], &name].concat();
    let row = value(&user, integer(1));
    assert_eq!((&row["oid"], &row["hidden"]), (&json!("1.3.6.1.6.3.15.1.2.2.1.13"), &json!(true)));
    let pointer = value(&[1, 3, 6, 1, 4, 1, 9, 1], oid(&user));
    assert_eq!(pointer["value"], json!("1.3.6.1.6.3.15.1.2.2.1.13"));
    assert!(!pointer.to_string().contains(".51.99."));
}

#[test]
fn malformed_binding_ends_the_list_and_says_why() {
    let good = varbind(&[1, 3, 6, 1, 2, 1, 2, 2, 1, 1, 3], integer(3));
    let nameless = sequence(&[element(OBJECT_IDENTIFIER, &[0x2b, 0x81]), integer(1)]);
    let row = row(&link_down(&[good.clone(), nameless, good]));
    assert_eq!(row["varbinds"].as_array().unwrap().len(), 1);
    assert_eq!(row["trap_name"], json!("linkDown"));
    assert!(
        row["error"].as_str().unwrap().starts_with("the name of a variable binding is malformed, at byte "),
        "{row}"
    );
}

#[test]
fn what_is_not_snmp_says_where() {
    let mib = Mib::default();
    let error = |datagram: &[u8]| decode(datagram, &mib).unwrap_err().to_string();
    assert_eq!(error(b""), "an element is missing, at byte 0");
    assert_eq!(error(b"<13>hello"), "an element is longer than the bytes that are left, at byte 0");
    assert_eq!(error(b"\x30\x80\x02\x01\x01\0\0"), "a length of the indefinite form, which SNMP has not, at byte 0");
    assert_eq!(error(&sequence(&[integer(2)])), "an unknown version of SNMP, at byte 0");
    assert_eq!(error(&sequence(&[integer(1)])), "an element is missing, at byte 5");
    assert_eq!(error(&v2c(0xa9, &[])), "an unknown type of PDU, at byte 13");
    let whole = link_down(&[]);
    for length in 0..whole.len() {
        decode(&whole[..length], &mib).unwrap_err();
    }
}

#[test]
fn odd_but_readable_messages_are_read() {
    // Lengths that are not the shortest, a community that is not UTF-8, and bytes after the
    // message.
    let mut parts =
        [integer(1), b"\x04\x82\x00\x02\xff\xfe".to_vec(), pdu(0xa7, &head(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 2]))];
    let mut datagram = sequence(&parts);
    datagram.extend([0; 3]);
    let row = row(&datagram);
    assert_eq!((&row["trap_name"], &row["trailing_bytes"]), (&json!("warmStart"), &json!(3)));
    // Neither binding stands where it should.
    let [uptime, trap] = head(&[1, 3, 6, 1, 6, 3, 1, 1, 5, 2]);
    parts[2] = pdu(0xa7, &[varbind(&[1, 3, 6, 1, 4, 1, 9, 1], integer(1)), trap, uptime]);
    let datagram = sequence(&parts);
    let mib = Mib::default();
    let trap = decode(&datagram, &mib).unwrap();
    assert_eq!((trap.name, trap.uptime_ticks), (Some(["warmStart", "SNMPv2-MIB"]), Some(12345)));
    assert_eq!(trap.varbinds.len(), 3);
}

#[test]
fn rows_are_bounded() {
    let many = vec![varbind(&[1, 3, 6, 1, 4, 1, 9, 1], integer(1)); 3000];
    let datagram = v2c(0xa7, &many);
    let mib = Mib::default();
    let trap = decode(&datagram, &mib).unwrap();
    assert_eq!(trap.varbinds.len(), MAX_VARBINDS);
    assert_eq!(trap.omitted_bytes, many[0].len() * (3000 - MAX_VARBINDS));
}

#[test]
fn terminal_sees_no_control_characters() {
    let datagram = link_down(&[varbind(&[1, 3, 6, 1, 2, 1, 1, 1, 0], element(OCTET_STRING, "a\n\u{9b}2J".as_bytes()))]);
    let mib = Mib::default();
    let line = decode(&datagram, &mib).unwrap().to_string();
    assert!(line.ends_with(r"sysDescr.0=a\u{a}\u{9b}2J"), "{line}");
}

#[test]
fn folder_gives_names_enumerations_bits_and_hints() {
    let text = br#"ACME-MIB DEFINITIONS ::= BEGIN
        IMPORTS enterprises, OBJECT-TYPE FROM SNMPv2-SMI DisplayString, DateAndTime FROM SNMPv2-TC;
        acme OBJECT IDENTIFIER ::= { enterprises 32473 }
        acmeTemperature OBJECT-TYPE SYNTAX Temperature ACCESS read-only STATUS current ::= { acme 1 }
        Temperature ::= TEXTUAL-CONVENTION DISPLAY-HINT "d-1" STATUS current DESCRIPTION "" SYNTAX INTEGER (-999..999)
        acmeAlarms OBJECT-TYPE SYNTAX BITS { fan(0), power(1), door(9) } ACCESS read-only STATUS current ::= { acme 2 }
        acmeState OBJECT-TYPE SYNTAX INTEGER { ok(1), failed(-2) } ACCESS read-only STATUS current ::= { acme 3 }
        acmeWhen OBJECT-TYPE SYNTAX DateAndTime ACCESS read-only STATUS current ::= { acme 4 }
        acmeHot NOTIFICATION-TYPE OBJECTS { acmeTemperature } STATUS current DESCRIPTION "" ::= { acme 0 7 }
        acmeCold TRAP-TYPE ENTERPRISE acme DESCRIPTION "" ::= 8
        acmeOld NOTIFICATION-TYPE STATUS current ::= { acme 9 }
    END"#;
    let loaded = load(&[MibFile { name: "ACME".into(), text: text.to_vec() }], Limits::default());
    assert_eq!(loaded.skipped, []);
    let acme = [1, 3, 6, 1, 4, 1, 32473];
    let object = |arc, value| varbind(&[&acme[..], &[arc, 0]].concat(), value);
    let varbinds = [
        object(1, element(INTEGER, &[0xff, 0x9c])),
        object(2, element(OCTET_STRING, &[0xa0, 0x40])),
        object(3, element(INTEGER, &[0xfe])),
        object(4, element(OCTET_STRING, &[0x07, 0xea, 11, 30, 9, 5, 0, 3, b'+', 1, 0])),
        object(3, element(INTEGER, &[7])),
        varbind(&[1, 3, 6, 1, 4, 1, 9, 1], oid(&[&acme[..], &[3, 0]].concat())),
    ];
    let datagram = v2c(0xa7, &[&head(&[&acme[..], &[0, 7]].concat())[..], &varbinds].concat());
    let trap = decode(&datagram, &loaded.mib).unwrap();
    assert_eq!(trap.name, Some(["acmeHot", "ACME-MIB"]));
    let shown: Vec<String> = trap.varbinds.iter().map(Varbind::to_string).collect();
    let expected = [
        "acmeTemperature.0=-10.0",
        "acmeAlarms.0=\"fan, 2, door\"",
        "acmeState.0=failed",
        "acmeWhen.0=2026-11-30,9:5:0.3,+1:0",
        "acmeState.0=7",
        "1.3.6.1.4.1.9.1=acmeState.0",
    ];
    assert_eq!(shown, expected);
    assert_eq!(trap.varbinds[1].syntax, "BITS");
    let name = |datagram: &[u8]| decode(datagram, &loaded.mib).unwrap().name.map(|[name, _]| name.to_owned());
    assert_eq!(name(&v1(&acme, 6, vec![8])).as_deref(), Some("acmeCold"));
    assert_eq!(name(&v1(&acme, 6, vec![9])).as_deref(), Some("acmeOld"), "defined without the zero");
}

/// What snmp-parser makes of a value, as ours.
fn theirs<'a>(value: &'a snmp_parser::VarBindValue<'_>) -> Option<Value<'a>> {
    use snmp_parser::{NetworkAddress, ObjectSyntax, VarBindValue};
    Some(match value {
        VarBindValue::Value(ObjectSyntax::Number(number)) => Value::Integer((*number).into()),
        VarBindValue::Value(ObjectSyntax::IpAddress(NetworkAddress::IPv4(address))) => Value::Address(*address),
        VarBindValue::Value(
            ObjectSyntax::Counter32(number)
            | ObjectSyntax::Gauge32(number)
            | ObjectSyntax::TimeTicks(number)
            | ObjectSyntax::UInteger32(number),
        ) => Value::Unsigned((*number).into()),
        VarBindValue::Value(ObjectSyntax::Counter64(number)) => Value::Unsigned(*number),
        _ => return None,
    })
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let tag =
        prop::sample::select(vec![2_u8, 3, 4, 5, 6, 0x30, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x80, 0x9f]);
    (tag, prop::collection::vec(any::<u8>(), 0..10)).prop_map(|(tag, contents)| element(tag, &contents))
}

proptest! {
    /// Whatever snmp-parser reads of a message, ours reads too, and with the same values.
    #[test]
    fn values_are_those_of_snmp_parser(values in prop::collection::vec(any_value(), 0..5)) {
        let name = [1, 3, 6, 1, 4, 1, 32473, 1];
        let varbinds: Vec<Vec<u8>> = values.into_iter().map(|value| varbind(&name, value)).collect();
        let datagram = v2c(0xa6, &varbinds);
        let mib = Mib::default();
        let ours = decode(&datagram, &mib).unwrap();
        if let Ok((_, message)) = snmp_parser::parse_snmp_v2c(&datagram) {
            prop_assert_eq!(ours.varbinds.len(), message.vars_iter().count());
            for (ours, other) in ours.varbinds.iter().zip(message.vars_iter()) {
                prop_assert_eq!(ours.oid.to_string(), other.oid.to_id_string());
                // It takes numbers without octets for 0.
                if let Some(theirs) = theirs(&other.val)
                    && ours.value != Value::Bytes(&[])
                {
                    prop_assert_eq!(&ours.value, &theirs);
                }
            }
        }
    }

    /// Any bytes behind a valid beginning give a row or an error, and the row is JSON of bounded
    /// size.
    #[test]
    fn any_bytes_end_in_a_row_or_an_error(
        values in prop::collection::vec(any_value(), 0..5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let varbinds: Vec<Vec<u8>> = values.into_iter().map(|value| varbind(&SYS_UPTIME_0, value)).collect();
        let mut datagram = link_down(&varbinds);
        for (index, byte) in changes {
            let at = index.index(datagram.len());
            datagram[at] = byte;
        }
        let mib = Mib::default();
        if let Ok(trap) = decode(&datagram, &mib) {
            let text = serde_json::to_string(&trap).unwrap();
            prop_assert!(text.len() < 400 + 300 * datagram.len(), "{}", text.len());
            let _ = trap.to_string();
        }
    }

    #[test]
    fn object_identifiers_survive(arcs in prop::collection::vec(any::<u32>(), 0..126)) {
        let oid = Oid::from_ber(&[0x2b]).unwrap().with(&arcs);
        let back = Oid::from_ber(&oid.0).unwrap();
        let expected: Vec<u32> = [1, 3].into_iter().chain(arcs).collect();
        prop_assert_eq!(back.arcs().collect::<Vec<_>>(), expected);
    }
}

/// `cargo test --release -p sekiwake-decode -- --ignored cost --nocapture`
#[test]
#[ignore = "measures"]
fn cost_of_a_trap() {
    let if_table = |column, value| varbind(&[1, 3, 6, 1, 2, 1, 2, 2, 1, column, 3], value);
    let datagram = link_down(&[
        if_table(1, integer(3)),
        if_table(7, integer(1)),
        if_table(8, integer(2)),
        if_table(2, element(OCTET_STRING, b"GigabitEthernet0/3")),
    ]);
    let mib = Mib::default();
    let count = 1_000_000;
    let start = std::time::Instant::now();
    for _ in 0..count {
        let trap = decode(std::hint::black_box(&datagram), &mib).unwrap();
        std::hint::black_box(&trap);
    }
    println!("{} ns per trap of 6 variable bindings", start.elapsed().as_nanos() / count);
}
