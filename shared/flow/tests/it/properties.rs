//! Properties: arbitrary bytes cause no panic and exceed no limit, and templates behave like a map.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use sekiwake_flow::{Exporters, Limits};
use sekiwake_record::Format;

use crate::datagram::{
    SOURCE, ahead, ahead_of, exporters, from_port, ids, ipfix, known, netflow9, observe, observe_from, set,
};

proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic_and_exceed_no_limit(payloads in vec((0..4_usize, vec(any::<u8>(), 0..200)), 0..40), key in vec(any::<u8>(), 0..30)) {
        let formats = [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5];
        let limits = Limits { max_exporters: 4, max_templates: 3, max_template_bytes: 64, max_total_bytes: 600 };
        let mut exporters = Exporters::new(limits);
        for (format, mut payload) in payloads {
            for (byte, known) in payload.iter_mut().zip(if format == 3 { [0, 0, 0, 5] } else { [0, [5, 9, 10][format], 0, 40] }) {
                *byte = known;
            }
            exporters.observe(SOURCE, formats[format], &payload, 1, u64::MAX);
            let mut out = Vec::new();
            exporters.template_datagrams(SOURCE, formats[format], &payload, 100, &mut out);
            exporters.learn(&key, &payload, 3);
            prop_assert!(exporters.len() <= 4 && exporters.template_bytes() <= 600);
        }
    }

    #[test]
    fn templates_behave_like_a_map(steps in vec((256..264_u16, 0..4_u16, any::<bool>()), 1..60)) {
        let mut exporters = exporters();
        let mut model = BTreeMap::new();
        for (at_ns, (id, fields, options)) in (1..).zip(steps) {
            let mut record = vec![id, fields];
            let set_id = if options { 3 } else { 2 };
            if options && fields > 0 {
                record.push(1);
            }
            (0..fields).for_each(|field| record.extend([field + 1, 4]));
            let payload = ipfix(0, 1, &[set(set_id, &record)]);
            let before = model.clone();
            if fields > 0 {
                model.insert(id, (options, record));
            } else if model.get(&id).is_some_and(|(known, _)| *known == options) {
                model.remove(&id);
            }
            let observed = observe(&mut exporters, &payload, at_ns, 1);
            prop_assert_eq!(observed.templates_changed, before != model);
            prop_assert_eq!(ids(&exporters), model.keys().copied().collect::<Vec<_>>());
        }
        for ((_, value), (options, record)) in known(&exporters).iter().zip(model.values()) {
            prop_assert_eq!(value[0], u8::from(*options));
            prop_assert_eq!(&value[3..], &crate::datagram::words(record)[..]);
        }
    }

    #[test]
    fn next_owner_sends_the_same_templates(
        steps in vec((1..12_u16, 256..259_u16, 1..4_u16, any::<bool>()), 1..60),
        is_reversed in any::<bool>(),
    ) {
        let mut owner = exporters();
        for (at_ns, (port, id, element, has_data)) in (1..).zip(steps) {
            let mut sets = vec![set(3, &[id, 2, 1, 149, 4, element, 4])];
            if has_data {
                sets.push(set(id, &[0, port % 3, 0, element]));
            }
            observe_from(&mut owner, from_port(port), &ipfix(0, 1, &sets), at_ns, 1);
        }
        let mut changes = Vec::new();
        owner.take_changes(&mut changes);
        if is_reversed {
            changes.reverse();
        }
        let mut next = exporters();
        for change in &changes {
            next.learn(&change.key, &change.value, change.at_ns);
        }
        prop_assert_eq!(known(&next), known(&owner));
        let data = ipfix(9, 1, &[]);
        // Port 13 is new: it is served by what all others agree about.
        for port in 1..=13 {
            let sent = [&mut owner, &mut next].map(|exporters| {
                exporters.forget_slot(1);
                match observe_from(exporters, from_port(port), &data, 100, 0b10).owed {
                    0 => Vec::new(),
                    _ => ahead_of(exporters, from_port(port), &data, 1400),
                }
            });
            prop_assert_eq!(&sent[0], &sent[1], "port {}", port);
        }
    }

    #[test]
    fn templates_sent_ahead_are_the_known_ones(
        templates in vec((256..2000_u16, 1..20_u16, any::<bool>()), 1..100),
        is_ipfix in any::<bool>(),
        max_bytes in 0..1500_usize,
        sequence: u32,
    ) {
        let datagram = if is_ipfix { ipfix } else { netflow9 };
        let mut sender = exporters();
        let mut collector = exporters();
        for (id, fields, options) in templates {
            let mut record = match (options, is_ipfix) {
                (false, _) => vec![id, fields],
                (true, true) => vec![id, fields, 1],
                (true, false) => vec![id, 4, 4 * (fields - 1)],
            };
            (0..fields).for_each(|field| record.extend([field + 1, 4]));
            let set_id = u16::from(is_ipfix) * 2 + u16::from(options);
            observe(&mut sender, &datagram(0, 5, &[set(set_id, &record)]), 1, 1);
        }
        let data = datagram(sequence, 5, &[]);
        let mut gaps = 0;
        for datagram in ahead(&sender, &data, max_bytes).iter().chain([&data]) {
            prop_assert!(datagram.len() <= max_bytes.max(20 + 4 + 6 + 80));
            let observed = observe(&mut collector, datagram, 1, 1);
            prop_assert!(!observed.malformed);
            gaps += usize::from(observed.sequence != sekiwake_flow::Sequence::InOrder);
        }
        prop_assert_eq!(gaps, 1);
        prop_assert_eq!(known(&collector), known(&sender));
    }
}
