//! sFlow: flow samples, also expanded, counters, discarded packets, and damaged ones.

use sekiwake_decode::Decoder;
use serde_json::{Value, json};

use crate::datagram::{numbered, rows, sflow, xdr};

/// 198.18.0.1:53 > 198.18.0.2:4242 in VLAN 30, the first 50 bytes of a frame of 1,000.
fn sampled_packet() -> Vec<u8> {
    let mut frame = vec![0, 0x1b, 0x21, 0, 0, 1, 0, 0x1b, 0x21, 0, 0, 2, 0x81, 0, 0, 30, 8, 0];
    frame.extend([0x45, 0xb8, 0x03, 0xd4, 0, 0, 0, 0, 63, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
    frame.extend([0, 53, 0x10, 0x92, 3, 0xc0, 0, 0, 1, 2, 3, 4]);
    let length = u32::try_from(frame.len()).unwrap();
    frame.resize(frame.len().next_multiple_of(4), 0);
    numbered(1, &[xdr(&[1, 1000, 4, length]), frame].concat())
}

fn switch() -> Vec<u8> {
    numbered(1001, &xdr(&[30, 5, 31, 6]))
}

fn expected_packet() -> Value {
    json!({
        "format": "sflow5", "type": "flow", "domain": 3, "sequence": 21, "uptime_ms": 10_000, "agent": "198.51.100.9",
        "sampleSequence": 77, "sourceIdType": 0, "sourceIdIndex": 9, "samplingInterval": 512, "samplePool": 100_000,
        "sampleDrops": 1, "ingressInterface": 9, "egressInterface": 11,
        "headerProtocol": 1, "dataLinkFrameSize": 1000, "strippedOctets": 4,
        "sourceMacAddress": "00:1b:21:00:00:02", "destinationMacAddress": "00:1b:21:00:00:01", "ethernetType": 2048,
        "dot1qVlanId": 30, "sourceIPv4Address": "198.18.0.1", "destinationIPv4Address": "198.18.0.2",
        "protocolIdentifier": 17, "ipTotalLength": 980, "ipTTL": 63, "ipClassOfService": 0xb8,
        "sourceTransportPort": 53, "destinationTransportPort": 4242,
        "vlanId": 30, "dot1qPriority": 5, "postVlanId": 31, "postDot1qPriority": 6,
    })
}

#[test]
fn flow_samples_are_one_row_with_all_records() {
    let records = [sampled_packet(), switch()].concat();
    let compact = numbered(1, &[xdr(&[77, 9, 512, 100_000, 1, 9, 11, 2]), records.clone()].concat());
    let expanded = numbered(3, &[xdr(&[77, 0, 9, 512, 100_000, 1, 0, 9, 0, 11, 2]), records].concat());
    let rows = rows(&mut Decoder::new(), &sflow(&[compact, expanded]));
    assert_eq!(rows, [expected_packet(), expected_packet()]);
}

#[test]
fn discards_and_several_interfaces_are_told_from_one() {
    let body = |input: u32, output: u32| xdr(&[1, 9, 512, 2, 0, input, output, 0]);
    let sample = |output| numbered(1, &body(0x3fff_ffff, output));
    let rows = rows(&mut Decoder::new(), &sflow(&[sample(0x4000_0002), sample(0x8000_0003), sample(0)]));
    assert_eq!(rows[0]["egressDiscardReason"], 2);
    assert_eq!(rows[1]["egressInterfaceCount"], 3);
    assert_eq!(rows[2]["egressInterface"], 0);
}

#[test]
fn counters_are_one_row_per_sample() {
    let interface: Vec<u32> = (1..=22).collect();
    let sample = numbered(2, &[xdr(&[5, 9, 1]), numbered(1, &xdr(&interface))].concat());
    let load = [1.5_f32.to_bits(), 0, 0, 4];
    // A host that does not send the items that the structure got later.
    let host = numbered(4, &[xdr(&[6, 2, 1, 1]), numbered(2003, &xdr(&load))].concat());
    let rows = rows(&mut Decoder::new(), &sflow(&[sample, host]));
    assert_eq!((&rows[0]["type"], &rows[0]["ifIndex"], &rows[0]["ifType"]), (&json!("counters"), &json!(1), &json!(2)));
    assert_eq!(rows[0]["ifInOctets"], 7_u64 << 32 | 8);
    assert_eq!(rows[0]["ifPromiscuousMode"], 22);
    assert_eq!(
        (&rows[1]["sourceIdType"], &rows[1]["loadOne"], &rows[1]["procRun"]),
        (&json!(2), &json!(1.5), &json!(4))
    );
    assert_eq!(rows[1]["procTotal"], Value::Null);
}

#[test]
fn routes_are_decoded() {
    let router = numbered(
        1002,
        &[xdr(&[2]), vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], xdr(&[48, 32])].concat(),
    );
    let path = [1, 0xc633_6401, 64_500, 64_501, 64_502, 2, 2, 2, 64_503, 64_504, 1, 2, 64_505, 64_506, 1, 7, 100];
    let gateway = numbered(1003, &xdr(&path));
    let unknown = numbered(9 << 12 | 7, &xdr(&[0xabcd]));
    let sample = numbered(1, &[xdr(&[1, 9, 512, 2, 0, 1, 2, 3]), router, gateway, unknown].concat());
    let row = &rows(&mut Decoder::new(), &sflow(&[sample]))[0];
    assert_eq!((&row["ipNextHopIPv6Address"], &row["sourceIPv4PrefixLength"]), (&json!("2001:db8::1"), &json!(48)));
    assert_eq!(row["bgpNextHopIPv4Address"], "198.51.100.1");
    assert_eq!(row["bgpDestinationAsPath"], json!([64_503, 64_504, [64_505, 64_506]]));
    assert_eq!((&row["bgpCommunities"], &row["bgpLocalPreference"]), (&json!([7]), &json!(100)));
    assert_eq!(row["sflow/9/7"], "0000abcd");
}

#[test]
fn discarded_packets_have_a_reason() {
    let sample = numbered(5, &[xdr(&[1, 0, 9, 2, 3, 0, 256, 1]), sampled_packet()].concat());
    let row = &rows(&mut Decoder::new(), &sflow(&[sample]))[0];
    assert_eq!((&row["type"], &row["discardReason"], &row["ipTTL"]), (&json!("discard"), &json!(256), &json!(63)));
}

#[test]
fn damaged_samples_do_not_hide_the_others() {
    let good = numbered(1, &[xdr(&[77, 9, 512, 100_000, 1, 9, 11, 1]), sampled_packet()].concat());
    let vendor = numbered(9 << 12 | 1, &xdr(&[1]));
    let short = numbered(1, &xdr(&[77, 9]));
    let damaged = numbered(1, &[xdr(&[77, 9, 512, 2, 0, 1, 2, 2]), switch(), xdr(&[1, 900])].concat());
    let rows = rows(&mut Decoder::new(), &sflow(&[vendor, short, damaged, good]));
    let reasons: Vec<&str> = rows.iter().filter_map(|row| row["reason"].as_str()).collect();
    assert_eq!(reasons, ["sample 9/1 has no known structure", "sample is incomplete", "sample ends within a record"]);
    assert_eq!((rows.len(), &rows[2]["vlanId"], &rows[4]["ipTTL"]), (5, &json!(30), &json!(63)));
    let whole = sflow(&[numbered(1, &xdr(&[77, 9]))]);
    let mut cut = sflow(&[]);
    cut[27] = 1;
    for (payload, reason) in [
        (&whole[..20], "header is incomplete"),
        (&cut[..], "datagram ends within a sample"),
        (&sflow(&[])[..], "datagram has no samples"),
    ] {
        let rows = crate::datagram::rows(&mut Decoder::new(), payload);
        assert_eq!((rows.len(), &rows[0]["reason"]), (1, &json!(reason)));
    }
}
