//! Templates as a reader of the hand-off state sees them.

use proptest::prelude::*;
use sekiwake_flow::{Change, Exporters, KnownTemplate, TemplateField, known_templates};
use sekiwake_record::Format;

use crate::datagram::{SOURCE, exporters, from_port, ipfix, netflow9, observe, observe_from, set};

fn changes(exporters: &mut Exporters) -> Vec<Change> {
    let mut changes = Vec::new();
    exporters.take_changes(&mut changes);
    changes
}

fn known(changes: &[Change]) -> Vec<KnownTemplate> {
    known_templates(changes.iter().map(|change| (&*change.key, &*change.value, change.at_ns)))
}

fn field(element: u16, length: u16) -> TemplateField {
    TemplateField { element, enterprise: None, length: Some(length), is_scope: false }
}

#[test]
fn templates_have_their_exporter_and_their_fields() {
    let mut exporters = exporters();
    let options = set(3, &[257, 2, 1, 149, 4, 0x8000 | 34, 0xffff, 0, 9]);
    observe(&mut exporters, &ipfix(0, 7, &[set(2, &[256, 2, 8, 4, 12, 4]), options]), 5, 1);
    observe_from(&mut exporters, from_port(2), &netflow9(0, 8, &[set(1, &[300, 4, 4, 1, 4, 34, 2, 0])]), 6, 1);
    let all = known(&changes(&mut exporters));
    let template = |format, domain, id, port| KnownTemplate {
        exporter: SOURCE.ip(),
        port: Some(port),
        domain,
        format,
        id,
        is_options: id != 256,
        fields: Vec::new(),
        at_ns: 5,
    };
    let scope = |element, length| TemplateField { is_scope: true, ..field(element, length) };
    let expected = [
        KnownTemplate { fields: vec![scope(1, 4), field(34, 2)], at_ns: 6, ..template(Format::NetFlow9, 8, 300, 2) },
        KnownTemplate { fields: vec![field(8, 4), field(12, 4)], ..template(Format::Ipfix, 7, 256, SOURCE.port()) },
        KnownTemplate {
            fields: vec![scope(149, 4), TemplateField { enterprise: Some(9), length: None, ..field(34, 0) }],
            ..template(Format::Ipfix, 7, 257, SOURCE.port())
        },
    ];
    assert_eq!(all, expected);
}

#[test]
fn what_older_forwarders_leave_is_read_without_a_port() {
    let mut exporters = exporters();
    observe(&mut exporters, &ipfix(0, 7, &[set(2, &[256, 1, 8, 4])]), 5, 1);
    let all = changes(&mut exporters);
    let of_address: Vec<Change> = all.iter().filter(|change| change.key.len() == 23).cloned().collect();
    let template = &known(&of_address)[0];
    assert_eq!((template.port, template.id, &template.fields[..]), (None, 256, &[field(8, 4)][..]));
    // Beside the entry of the port it says nothing new, in whichever order they are.
    assert_eq!(known(&all).len(), 1);
    assert_eq!(known(&all.iter().rev().cloned().collect::<Vec<_>>())[0].port, Some(SOURCE.port()));
}

#[test]
fn withdrawn_templates_are_left_out() {
    let mut exporters = exporters();
    observe(&mut exporters, &ipfix(0, 7, &[set(2, &[256, 1, 8, 4])]), 5, 1);
    observe(&mut exporters, &ipfix(0, 7, &[set(2, &[256, 0])]), 6, 1);
    assert_eq!(known(&changes(&mut exporters)), []);
}

proptest! {
    #[test]
    fn arbitrary_entries_are_left_out_or_read(
        key in prop::collection::vec(any::<u8>(), 0..30),
        version in prop::sample::select(vec![9_u8, 10]),
        value in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut versioned = key.clone();
        if let Some(first) = versioned.first_mut() {
            *first = version;
        }
        for key in [&key, &versioned] {
            let all = known_templates([(&**key, &*value, 1)]);
            prop_assert!(all.len() <= 1);
        }
    }
}
