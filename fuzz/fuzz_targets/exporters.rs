//! Datagrams and changes in any order: bounds hold, and the templates sent ahead can be decoded.
//!
//! ```text
//! input   [what 1 | source and time 1 | length 1 | datagram, or key 25 or 23 and value] …
//! ```

#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use sekiwake_flow::{Exporters, Limits};
use sekiwake_record::Format;

const LIMITS: Limits = Limits { max_exporters: 4, max_templates: 4, max_template_bytes: 64, max_total_bytes: 1000 };

fuzz_target!(|input: &[u8]| {
    let mut exporters = Exporters::new(LIMITS);
    let mut rest = input;
    let mut at_ns = 0;
    while let [what, origin, length, following @ ..] = rest {
        let (payload, left) = following.split_at(following.len().min(usize::from(*length)));
        rest = left;
        at_ns += u64::from(*origin) << 34;
        let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, origin % 2)), u16::from(origin / 2));
        let format = [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5][usize::from(what % 4)];
        match what >> 5 {
            0 => {
                let key = if what % 2 == 0 { 23 } else { 25 };
                let (key, value) = payload.split_at(payload.len().min(key));
                exporters.learn(key, value, at_ns);
            }
            1 if what % 2 == 0 => exporters.forget_slot(u32::from(*origin)),
            1 => {
                exporters.set_now(Duration::from_nanos(at_ns));
                exporters.refresh_slot(u32::from(*origin), Duration::from_secs(u64::from(*length)), what % 4 == 1);
            }
            2 => {
                let mut changes = Vec::new();
                exporters.take_changes(&mut changes);
                let mut other = Exporters::new(Limits::default());
                for change in changes.iter().filter(|change| !change.value.is_empty()) {
                    // What is known of a port is not learned of its address again.
                    let is_of_port = change.key.get(23..).is_some_and(|port| !port.is_empty() && port != [0, 0]);
                    assert!(other.learn(&change.key, &change.value, change.at_ns) || !is_of_port);
                }
            }
            wanted => {
                let observed = exporters.observe(source, format, payload, at_ns, u64::from(wanted));
                let mut ahead = Vec::new();
                exporters.template_datagrams(source, format, payload, 100, &mut ahead);
                assert!(observed.owed == 0 || !ahead.is_empty());
                let mut collector = Exporters::new(Limits::default());
                for datagram in &ahead {
                    assert!(datagram.len() <= 100);
                    assert!(!collector.observe(source, format, datagram, at_ns, 0).malformed);
                }
            }
        }
        assert!(exporters.len() <= LIMITS.max_exporters && exporters.template_bytes() <= LIMITS.max_total_bytes);
    }
});
