//! Anything at all: never a panic, never out of bounds, and the same as a plain map.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use sekiwake_flow::{Exporters, Limits};
use sekiwake_record::Format;

use crate::datagram::{SOURCE, ahead, exporters, ids, ipfix, known, netflow9, observe, set};

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(payloads in vec((0..4_usize, vec(any::<u8>(), 0..200)), 0..40), key in vec(any::<u8>(), 0..30)) {
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
    fn the_store_is_a_map(steps in vec((256..264_u16, 0..4_u16, any::<bool>()), 1..60)) {
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
            prop_assert_eq!(&value[1..], &crate::datagram::words(record)[..]);
        }
    }

    #[test]
    fn what_goes_ahead_is_read_as_what_is_known(
        templates in vec((256..2000_u16, 1..20_u16, any::<bool>()), 1..100),
        is_ipfix in any::<bool>(),
        max_bytes in 0..1500_usize,
        sequence: u32,
    ) {
        let datagram = if is_ipfix { ipfix } else { netflow9 };
        let (mut sender, mut collector) = (exporters(), exporters());
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
