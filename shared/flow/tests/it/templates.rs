//! Templates: learned, replaced, withdrawn, owed, sent ahead, shared, limited.

use std::net::{IpAddr, SocketAddr};

use sekiwake_flow::{Exporters, Limits, Sequence};
use sekiwake_record::Format;

use crate::datagram::{SOURCE, ahead, exporters, ids, ipfix, known, netflow5, netflow9, observe, set, sflow5};

#[test]
fn several_templates_of_a_netflow9_flowset_are_learned() {
    let mut exporters = exporters();
    let templates = set(0, &[256, 2, 8, 4, 12, 4, 257, 1, 1, 4]);
    // Scope: 4 bytes, options: 8 bytes, and two bytes of padding (RFC 3954 §6.1).
    let options = set(1, &[258, 4, 8, 1, 4, 34, 4, 35, 1, 0]);
    let observed = observe(&mut exporters, &netflow9(7, 1, &[templates, options]), 1, 1);
    assert!(observed.templates_changed && !observed.malformed && observed.owed == 0);
    assert_eq!(ids(&exporters), [256, 257, 258]);
    assert_eq!(known(&exporters)[2].1[..9], [1, 0, 18, 1, 2, 0, 4, 0, 8]);
}

#[test]
fn ipfix_enterprise_fields_and_withdrawals_are_read() {
    let mut exporters = exporters();
    let templates = set(2, &[300, 2, 0x8001, 4, 0, 29305, 8, 4, 301, 1, 1, 8]);
    let options = set(3, &[302, 2, 1, 149, 4, 41, 8]);
    observe(&mut exporters, &ipfix(0, 1, &[templates.clone(), options]), 1, 1);
    assert_eq!(ids(&exporters), [300, 301, 302]);
    assert!(observe(&mut exporters, &ipfix(0, 1, &[set(2, &[300, 0])]), 2, 1).templates_changed);
    assert_eq!(ids(&exporters), [301, 302]);
    observe(&mut exporters, &ipfix(0, 1, &[set(3, &[3, 0])]), 3, 1);
    assert_eq!(ids(&exporters), [301]);
    observe(&mut exporters, &ipfix(0, 1, &[set(2, &[2, 0])]), 4, 1);
    assert!(ids(&exporters).is_empty());
    observe(&mut exporters, &ipfix(0, 1, &[templates]), 5, 1);
    assert_eq!(ids(&exporters), [300, 301]);
}

#[test]
fn malformed_set_changes_nothing() {
    let good = set(0, &[256, 1, 8, 4]);
    for bad in [
        set(0, &[257, 1, 8, 4, 258, 9, 1, 1]),
        set(0, &[255, 1, 8, 4]),
        set(0, &[257, 0]),
        set(1, &[257, 3, 4, 1, 4, 2, 4]),
        set(1, &[257, 400, 4, 1, 4, 2, 4]),
        [0, 0, 0, 3].to_vec(),
        [0, 0, 9, 9].to_vec(),
    ] {
        let mut exporters = exporters();
        let observed = observe(&mut exporters, &netflow9(0, 0, &[good.clone(), bad]), 1, 1);
        assert!(observed.malformed);
        assert_eq!(ids(&exporters), [256]);
    }
    for bad in [set(2, &[255, 1, 8, 4]), set(2, &[255, 0]), set(3, &[257, 1, 2, 8, 4]), set(2, &[257, 1, 0x8001, 4])] {
        let mut exporters = exporters();
        assert!(observe(&mut exporters, &ipfix(0, 0, &[bad]), 1, 1).malformed);
        assert!(ids(&exporters).is_empty());
    }
}

#[test]
fn slot_is_owed_the_templates_before_the_datagram() {
    let mut exporters = exporters();
    observe(&mut exporters, &netflow9(10, 1, &[set(0, &[256, 1, 8, 4])]), 1, 0b01);
    let before = known(&exporters);
    let data = netflow9(11, 1, &[set(256, &[1, 2]), set(0, &[256, 1, 12, 4, 257, 1, 1, 4])]);
    let observed = observe(&mut exporters, &data, 2, 0b11);
    assert_eq!(observed.owed, 0b10);
    let datagrams = ahead(&exporters, &data, 1400);
    assert_eq!(datagrams, [netflow9(10, 1, &[set(0, &[256, 1, 8, 4])])]);
    let mut fresh = self::exporters();
    observe(&mut fresh, &datagrams[0], 0, 0);
    assert_eq!(known(&fresh), before);
    assert_eq!(observe(&mut exporters, &netflow9(12, 1, &[]), 3, 0b11).owed, 0);
    exporters.forget_slot(0);
    exporters.forget_slot(64);
    let data = netflow9(13, 1, &[]);
    assert_eq!(observe(&mut exporters, &data, 3, 0b11).owed, 0b01);
    assert_eq!(ahead(&exporters, &data, 1400).len(), 1);
    // A change that a slot has not received is owed to it.
    observe(&mut exporters, &netflow9(14, 1, &[set(0, &[259, 1, 8, 4])]), 4, 0b01);
    assert_eq!(observe(&mut exporters, &netflow9(15, 1, &[]), 5, 0b11).owed, 0b10);
}

#[test]
fn datagrams_sent_ahead_are_small_padded_and_numbered() {
    let mut sender = exporters();
    for id in 256..300 {
        observe(&mut sender, &netflow9(0, 9, &[set(0, &[id, 2, 8, 4, 12, 4])]), 1, 1);
        observe(&mut sender, &netflow9(0, 9, &[set(1, &[id + 100, 4, 4, 1, 4, 34, 4])]), 1, 1);
    }
    let data = netflow9(1, 9, &[]);
    let datagrams = ahead(&sender, &data, 300);
    assert!(datagrams.len() > 3);
    let mut collector = exporters();
    let mut records = 0;
    for (number, datagram) in datagrams.iter().enumerate() {
        assert!(datagram.len() <= 300 && datagram.len() % 4 == 0);
        records += u16::from_be_bytes([datagram[2], datagram[3]]);
        assert_eq!(datagram[4..12], data[4..12]);
        assert_eq!(datagram[16..20], data[16..20]);
        let sequence = observe(&mut collector, datagram, 1, 1).sequence;
        assert_eq!(sequence, if number == 0 { Sequence::First } else { Sequence::InOrder });
    }
    assert_eq!(observe(&mut collector, &data, 1, 1).sequence, Sequence::InOrder);
    assert_eq!(records, 88);
    assert_eq!(known(&collector), known(&sender));
}

#[test]
fn ipfix_records_are_counted_with_their_templates() {
    let mut exporters = exporters();
    let fixed = set(2, &[256, 2, 8, 4, 12, 4]);
    let variable = set(2, &[257, 3, 8, 2, 82, 0xffff, 12, 2]);
    let first = ipfix(100, 1, &[fixed, variable, set(256, &[0; 9])]);
    assert_eq!(observe(&mut exporters, &first, 1, 1).sequence, Sequence::First);
    // Two records: "ab" with a length of one byte, "" with a length of three; then a byte of
    // padding less than a record.
    let records = [0, 0, 2, b'a', b'b', 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0];
    let contents: Vec<u16> = records.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    assert_eq!(observe(&mut exporters, &ipfix(102, 1, &[set(257, &contents)]), 1, 1).sequence, Sequence::InOrder);
    assert_eq!(observe(&mut exporters, &ipfix(104, 1, &[set(400, &[1])]), 1, 1).sequence, Sequence::InOrder);
    assert_eq!(observe(&mut exporters, &ipfix(150, 1, &[]), 1, 1).sequence, Sequence::Resynchronised);
    assert_eq!(observe(&mut exporters, &ipfix(153, 1, &[]), 1, 1).sequence, Sequence::Gap(3));
}

#[test]
fn engines_domains_and_agents_have_separate_sequences() {
    let mut exporters = exporters();
    assert_eq!(observe(&mut exporters, &netflow5(0, 30), 1, 1).sequence, Sequence::First);
    assert_eq!(observe(&mut exporters, &netflow5(30, 2), 1, 1).sequence, Sequence::InOrder);
    let mut other_engine = netflow5(900, 2);
    other_engine[21] = 1;
    assert_eq!(observe(&mut exporters, &other_engine, 1, 1).sequence, Sequence::First);
    assert_eq!(observe(&mut exporters, &netflow5(40, 2), 1, 1).sequence, Sequence::Gap(8));
    assert_eq!(observe(&mut exporters, &sflow5(1, 0), 1, 1).sequence, Sequence::First);
    assert_eq!(observe(&mut exporters, &sflow5(9, 1), 1, 1).sequence, Sequence::First);
    assert_eq!(observe(&mut exporters, &sflow5(2, 0), 1, 1).sequence, Sequence::InOrder);
    // Address type 0: the agent does not know its address, and the datagram has none.
    let no_address = |sequence: u32| {
        let words = [5, 0, 7, sequence, 1000, 0];
        words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect::<Vec<u8>>()
    };
    assert_eq!(observe(&mut exporters, &no_address(4), 1, 1).sequence, Sequence::First);
    assert_eq!(observe(&mut exporters, &no_address(5), 1, 1).sequence, Sequence::InOrder);
    assert_eq!(exporters.len(), 5);
}

#[test]
fn unchanged_template_is_reported_every_ten_minutes() {
    let mut exporters = exporters();
    let mut count = |at_s: u64, id: u16| {
        observe(&mut exporters, &netflow9(0, 1, &[set(0, &[256, 1, id, 4])]), at_s * 1_000_000_000, 1);
        let mut changes = Vec::new();
        exporters.take_changes(&mut changes);
        changes.iter().filter(|change| change.key.len() == 25).count()
    };
    assert_eq!([count(0, 8), count(599, 8), count(600, 8), count(700, 8), count(701, 9)], [1, 0, 1, 0, 1]);
}

#[test]
fn newer_of_two_replicas_wins() {
    let mut here = exporters();
    let mut there = exporters();
    observe(&mut here, &ipfix(0, 1, &[set(2, &[256, 1, 8, 4])]), 10, 0b11);
    let mut changes = Vec::new();
    here.take_changes(&mut changes);
    let [change, of_address] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((change.key.len(), of_address.key.len()), (25, 23));
    assert!(there.learn(&change.key, &change.value, change.at_ns));
    assert!(!there.learn(&change.key, &change.value, change.at_ns));
    assert!(!there.learn(&of_address.key, &of_address.value, of_address.at_ns));
    assert_eq!(observe(&mut there, &ipfix(0, 1, &[]), 11, 0b01).owed, 0b01);
    observe(&mut here, &ipfix(0, 1, &[set(2, &[256, 0])]), 12, 0b11);
    let mut withdrawal = Vec::new();
    here.take_changes(&mut withdrawal);
    assert!(withdrawal[0].value.is_empty());
    assert!(there.learn(&change.key, &withdrawal[0].value, withdrawal[0].at_ns));
    assert!(!there.learn(&change.key, &change.value, change.at_ns));
    assert!(ids(&there).is_empty());
    // Invalid changes: wrong lengths, versions, identifiers and records.
    let mut other = change.key.clone();
    other[22] = 1;
    assert!(!there.learn(&other, &change.value, 99));
    assert!(!there.learn(&change.key[1..], &change.value, 99));
    assert!(!there.learn(&change.key, &change.value[..5], 99));
    assert!(!there.learn(&change.key, &[&change.value[..], &[0]].concat(), 99));
}

#[test]
fn exporters_are_separate_and_the_oldest_is_evicted() {
    let mut exporters = Exporters::new(Limits { max_exporters: 3, max_templates: 2, ..Limits::default() });
    for number in 0..5_u32 {
        let source = SocketAddr::new(IpAddr::from([198, 18, 1, (number % 2) as u8]), 2055);
        let template = netflow9(0, number / 2, &[set(0, &[256, 1, number as u16, 4])]);
        exporters.observe(source, Format::NetFlow9, &template, 1, 1);
    }
    let fields: Vec<u8> = known(&exporters).iter().map(|(_, value)| value[8]).collect();
    assert_eq!(fields, [2, 4, 3]);
    assert_eq!((exporters.len(), exporters.counters().exporters_evicted), (3, 2));
    for (at_ns, id) in [(1, 300), (2, 301), (3, 302)] {
        exporters.observe(SOURCE, Format::NetFlow9, &netflow9(0, 7, &[set(0, &[id, 1, 8, 4])]), at_ns, 1);
    }
    let ids = ids(&exporters);
    assert!(ids.ends_with(&[301, 302]) || ids.starts_with(&[301, 302]), "{ids:?}");
    let mut small = Exporters::new(Limits { max_total_bytes: 10, ..Limits::default() });
    observe(&mut small, &netflow9(0, 7, &[set(0, &[256, 1, 8, 4])]), 1, 1);
    assert_eq!((small.counters().templates_rejected, small.template_bytes()), (1, 0));
}
