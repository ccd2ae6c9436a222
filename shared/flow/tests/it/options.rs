//! Data of options templates, such as sampling rates, is sent behind the templates.

use sekiwake_flow::{Exporters, Limits};

use crate::datagram::{SOURCE, ahead, exporters, ipfix, known, netflow9, observe, observe_from, set};

/// Options template 257 of NetFlow v9: scope of four bytes, a sampling interval of four.
fn v9_template() -> Vec<u8> {
    set(1, &[257, 4, 4, 1, 4, 34, 4, 0])
}

/// The same of IPFIX, and with a name of variable length.
fn ipfix_templates() -> Vec<u8> {
    [set(3, &[257, 2, 1, 149, 4, 34, 4]), set(3, &[258, 2, 1, 10, 4, 82, 0xffff])].concat()
}

fn observe_all(exporters: &mut Exporters, datagrams: &[Vec<u8>]) {
    (1..).zip(datagrams).for_each(|(at_ns, datagram)| {
        observe(exporters, datagram, at_ns, 1);
    });
}

#[test]
fn newest_data_of_each_scope_follows_the_templates() {
    let mut exporters = exporters();
    let data = |scope, rate| set(257, &[0, scope, 0, rate]);
    observe_all(
        &mut exporters,
        &[
            netflow9(10, 1, &[set(0, &[256, 1, 8, 4]), v9_template()]),
            netflow9(11, 1, &[set(257, &[0, 1, 0, 100, 0, 2, 0, 200])]),
            netflow9(12, 1, &[data(1, 1000)]),
        ],
    );
    let flow = netflow9(13, 1, &[set(256, &[1, 2])]);
    assert_eq!(observe(&mut exporters, &flow, 4, 0b10).owed, 0b10);
    let mut expected =
        netflow9(12, 1, &[set(0, &[256, 1, 8, 4]), v9_template(), set(257, &[0, 1, 0, 1000, 0, 2, 0, 200])]);
    expected[3] = 4;
    assert_eq!(ahead(&exporters, &flow, 1400), [expected]);
}

#[test]
fn data_records_of_ipfix_precede_in_sequence() {
    let mut exporters = exporters();
    let name = |scope: u16, name: [u8; 3]| {
        set(258, &[0, scope, u16::from_be_bytes([3, name[0]]), u16::from_be_bytes([name[1], name[2]])])
    };
    observe_all(
        &mut exporters,
        &[
            ipfix(0, 1, &[ipfix_templates()]),
            ipfix(0, 1, &[set(257, &[0, 1, 0, 100])]),
            ipfix(1, 1, &[name(1, *b"abc"), name(2, *b"def")]),
            ipfix(3, 1, &[name(1, *b"xyz")]),
        ],
    );
    let flow = ipfix(4, 1, &[]);
    observe(&mut exporters, &flow, 5, 0b10);
    let datagrams = ahead(&exporters, &flow, 40);
    assert!(datagrams.len() > 2, "{datagrams:?}");
    let mut collector = self::exporters();
    let mut gaps = 0;
    for datagram in datagrams.iter().chain([&flow]) {
        let observed = observe(&mut collector, datagram, 1, 1);
        gaps += usize::from(observed.sequence != sekiwake_flow::Sequence::InOrder);
    }
    assert_eq!(gaps, 1, "only the first");
    assert_eq!(known(&collector), known(&exporters));
}

#[test]
fn next_owner_has_the_data() {
    let mut exporters = exporters();
    observe_all(&mut exporters, &[ipfix(0, 1, &[ipfix_templates()]), ipfix(0, 1, &[set(257, &[0, 1, 0, 100])])]);
    let mut changes = Vec::new();
    exporters.take_changes(&mut changes);
    // What the next owner knows already is completed, in any order.
    for reversed in [false, true] {
        let mut next = self::exporters();
        observe(&mut next, &ipfix(0, 1, &[ipfix_templates()]), 1, 1);
        if reversed {
            changes.reverse();
        }
        for change in &changes {
            next.learn(&change.key, &change.value, change.at_ns);
        }
        assert_eq!(known(&next), known(&exporters));
    }
    // A change of the data is reported, at most once per minute.
    let mut count = |at_s: u64, rate: u16| {
        observe(&mut exporters, &ipfix(0, 1, &[set(257, &[0, 1, 0, rate])]), at_s * 1_000_000_000, 1);
        let mut changes = Vec::new();
        exporters.take_changes(&mut changes);
        changes.iter().filter(|change| change.key.len() == 25).count()
    };
    assert_eq!([count(10, 200), count(59, 200), count(61, 200), count(62, 200), count(122, 300)], [0, 0, 1, 0, 1]);
}

#[test]
fn data_has_bounds() {
    let mut exporters = exporters();
    observe(&mut exporters, &ipfix(0, 1, &[ipfix_templates()]), 1, 1);
    for scope in 0..1000 {
        observe(&mut exporters, &ipfix(0, 1, &[set(257, &[0, scope, 0, 1])]), 1, 1);
    }
    let values: usize = known(&exporters).iter().map(|(_, value)| value.len()).sum();
    assert!((64 * 8..64 * 8 + 60).contains(&values), "{values}");
    let mut small = Exporters::new(Limits { max_total_bytes: 400, ..Limits::default() });
    observe(&mut small, &ipfix(0, 1, &[set(3, &[257, 2, 1, 149, 4, 34, 4])]), 1, 1);
    for scope in 0..1000 {
        observe(&mut small, &ipfix(0, 1, &[set(257, &[0, scope, 0, 1])]), 1, 1);
        assert!(small.template_bytes() <= 400);
    }
    // The data of a template that changes is that of the template before.
    observe(&mut exporters, &ipfix(0, 1, &[set(3, &[257, 2, 1, 149, 4, 35, 4])]), 2, 1);
    assert_eq!(known(&exporters)[0].1.len(), 1 + 2 + 14);
}

#[test]
fn data_without_its_template_is_ignored() {
    let mut exporters = exporters();
    observe_from(&mut exporters, SOURCE, &netflow9(1, 1, &[set(257, &[0, 1, 0, 1])]), 1, 1);
    assert_eq!((known(&exporters).len(), exporters.template_bytes()), (0, 0));
}
