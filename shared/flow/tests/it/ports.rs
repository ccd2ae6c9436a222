//! Exporting processes of one address are told apart by their ports.

use std::net::SocketAddr;

use sekiwake_flow::{Change, Exporters, Sequence};

use crate::datagram::{ahead_of, exporters, from_port, ipfix, known, known_of_addresses, netflow9, observe_from, set};

const HOUR_NS: u64 = 3_600_000_000_000;

/// Template 256 in layouts of equal length.
const LAYOUT: [u16; 6] = [256, 2, 8, 4, 12, 4];
const OTHER: [u16; 6] = [256, 2, 12, 4, 8, 4];

fn template(layout: &[u16]) -> Vec<u8> {
    ipfix(0, 1, &[set(2, layout)])
}

fn data() -> Vec<u8> {
    ipfix(0, 1, &[set(256, &[0; 4])])
}

/// What a slot that has nothing yet gets ahead of data of this exporter.
fn owed(exporters: &mut Exporters, source: SocketAddr, at_ns: u64) -> Vec<Vec<u8>> {
    exporters.forget_slot(1);
    match observe_from(exporters, source, &data(), at_ns, 0b10).owed {
        0 => Vec::new(),
        _ => ahead_of(exporters, source, &data(), 1400),
    }
}

fn changes(exporters: &mut Exporters) -> Vec<Change> {
    let mut changes = Vec::new();
    exporters.take_changes(&mut changes);
    changes
}

fn learn_all(exporters: &mut Exporters, changes: &[Change]) {
    for change in changes {
        exporters.learn(&change.key, &change.value, change.at_ns);
    }
}

/// The changes as the version before knows them.
fn of_version_before(changes: &[Change]) -> Vec<Change> {
    changes.iter().filter(|change| change.key.len() == 23).cloned().collect()
}

#[test]
fn each_port_has_its_own_templates_and_sequence() {
    let mut exporters = exporters();
    observe_from(&mut exporters, from_port(1), &template(&LAYOUT), 1, 1);
    observe_from(&mut exporters, from_port(2), &template(&OTHER), 2, 1);
    assert_eq!(owed(&mut exporters, from_port(1), 3), [template(&LAYOUT)]);
    assert_eq!(owed(&mut exporters, from_port(2), 4), [template(&OTHER)]);
    for (port, sequence) in [(3, 100), (4, 60_000), (3, 101), (4, 60_001)] {
        let observed = observe_from(&mut exporters, from_port(port), &netflow9(sequence, 0, &[]), 5, 1);
        assert_eq!(observed.sequence, if sequence % 10 == 0 { Sequence::First } else { Sequence::InOrder });
    }
}

#[test]
fn templates_of_another_port_serve_while_undisputed() {
    let mut exporters = exporters();
    observe_from(&mut exporters, from_port(1), &template(&LAYOUT), 1, 1);
    assert_eq!(owed(&mut exporters, from_port(3), 2), [template(&LAYOUT)]);
    observe_from(&mut exporters, from_port(2), &template(&OTHER), 3, 1);
    assert!(owed(&mut exporters, from_port(3), 4).is_empty(), "ports disagree about the template");
}

#[test]
fn new_port_owes_nothing_to_slots_that_were_served() {
    let mut exporters = exporters();
    observe_from(&mut exporters, from_port(1), &template(&LAYOUT), 1, 0b01);
    assert_eq!(observe_from(&mut exporters, from_port(2), &data(), 2, 0b11).owed, 0b10);
}

#[test]
fn address_with_more_than_16_ports_is_one_exporter() {
    let mut exporters = exporters();
    for port in 1..=17 {
        observe_from(&mut exporters, from_port(port), &template(&LAYOUT), port.into(), 1);
    }
    assert_eq!((exporters.len(), known_of_addresses(&exporters).len()), (1, 1));
    assert_eq!(owed(&mut exporters, from_port(999), 20), [template(&LAYOUT)]);
    // Its datagrams are one sequence, whatever their ports.
    for (port, sequence) in [(20, 5), (21, 6), (22, 7)] {
        let next = observe_from(&mut exporters, from_port(port), &netflow9(sequence, 9, &[]), 21, 1);
        assert_eq!(next.sequence, Sequence::First, "another domain has ports of its own");
    }
    assert_eq!(observe_from(&mut exporters, from_port(5), &ipfix(2, 1, &[]), 21, 1).sequence, Sequence::Gap(1));
}

#[test]
fn disputed_template_of_one_exporter_is_not_sent_for_an_hour() {
    let mut exporters = exporters();
    for port in 1..=17 {
        observe_from(&mut exporters, from_port(port), &template(&LAYOUT), port.into(), 1);
    }
    observe_from(&mut exporters, from_port(18), &template(&OTHER), 18, 1);
    assert!(owed(&mut exporters, from_port(1), 19).is_empty());
    assert!(known_of_addresses(&exporters).is_empty());
    observe_from(&mut exporters, from_port(19), &template(&LAYOUT), 20, 1);
    observe_from(&mut exporters, from_port(19), &template(&LAYOUT), HOUR_NS, 1);
    assert!(owed(&mut exporters, from_port(1), HOUR_NS).is_empty());
    observe_from(&mut exporters, from_port(20), &template(&LAYOUT), HOUR_NS + 20, 1);
    assert_eq!(owed(&mut exporters, from_port(1), HOUR_NS + 21), [template(&LAYOUT)]);
}

#[test]
fn port_that_is_silent_for_an_hour_makes_room() {
    let mut exporters = exporters();
    for restart in 0..40 {
        observe_from(
            &mut exporters,
            from_port(100 + restart),
            &template(&LAYOUT),
            u64::from(restart) * HOUR_NS / 10,
            1,
        );
    }
    assert_eq!((exporters.len(), known(&exporters).len()), (16, 16));
}

#[test]
fn next_owner_has_templates_of_each_port() {
    let mut owner = exporters();
    observe_from(&mut owner, from_port(1), &template(&LAYOUT), 1, 1);
    observe_from(&mut owner, from_port(2), &template(&OTHER), 2, 1);
    let mut next = exporters();
    learn_all(&mut next, &changes(&mut owner));
    assert_eq!(next.len(), 2, "what is known of ports is not kept for the address as well");
    assert_eq!(owed(&mut next, from_port(1), 3), [template(&LAYOUT)]);
    assert_eq!(owed(&mut next, from_port(2), 4), [template(&OTHER)]);
    assert!(owed(&mut next, from_port(3), 5).is_empty());
}

#[test]
fn state_of_the_version_before_serves_all_ports() {
    let mut owner = exporters();
    observe_from(&mut owner, from_port(1), &template(&LAYOUT), 1, 1);
    let mut next = exporters();
    learn_all(&mut next, &of_version_before(&changes(&mut owner)));
    assert_eq!(owed(&mut next, from_port(1), 2), [template(&LAYOUT)]);
    assert_eq!(owed(&mut next, from_port(2), 3), [template(&LAYOUT)]);
    // The exporter's own template is newer.
    observe_from(&mut next, from_port(2), &template(&OTHER), 4, 1);
    assert_eq!(owed(&mut next, from_port(2), 5), [template(&OTHER)]);
}

#[test]
fn version_before_is_told_of_no_disputed_template() {
    let mut owner = exporters();
    observe_from(&mut owner, from_port(1), &template(&LAYOUT), 1, 1);
    let first = of_version_before(&changes(&mut owner));
    // 10 │ 198.18.0.1, mapped │ domain 1 │ template 256, and: no options template │ its record.
    let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 198, 18, 0, 1];
    let key = [&[10][..], &address, &[0, 0, 0, 1], &[1, 0]].concat();
    let value = vec![0, 1, 0, 0, 2, 0, 8, 0, 4, 0, 12, 0, 4];
    assert_eq!(first, [Change { key, value, at_ns: 1 }]);
    observe_from(&mut owner, from_port(2), &template(&OTHER), 2, 1);
    let second = of_version_before(&changes(&mut owner));
    assert_eq!(second.iter().map(|change| (change.value.len(), change.at_ns)).collect::<Vec<_>>(), [(0, 2)]);
}

#[test]
fn only_the_last_16_ports_are_learned() {
    let mut next = exporters();
    for port in 1..=40 {
        let mut owner = exporters();
        observe_from(&mut owner, from_port(port), &template(&LAYOUT), port.into(), 1);
        learn_all(
            &mut next,
            &changes(&mut owner).into_iter().filter(|change| change.key.len() == 25).collect::<Vec<_>>(),
        );
    }
    assert_eq!(next.len(), 16);
    let ports = known(&next).iter().map(|(key, _)| u16::from_be_bytes([key[23], key[24]])).collect::<Vec<_>>();
    assert_eq!(ports, (25..=40).collect::<Vec<_>>());
}
