//! The cost per datagram. Run by hand: `cargo test --release -p sekiwake-flow -- --ignored
//! --nocapture cost`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use crate::datagram::{exporters, format_of, ipfix, netflow5, netflow9, set, sflow5};

#[test]
#[ignore = "a measurement"]
fn cost_of_a_datagram() {
    let data = set(256, &[0; 600]);
    let datagrams = [
        ("NetFlow v5", netflow5(0, 30)),
        ("NetFlow v9", netflow9(0, 1, std::slice::from_ref(&data))),
        ("IPFIX", ipfix(0, 1, &[data])),
        ("sFlow v5", sflow5(0, 0)),
    ];
    for (name, payload) in datagrams {
        for sources in [1, 10_000_u32] {
            let mut exporters = exporters();
            let format = format_of(&payload);
            let address =
                |number: u32| SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::from(0xc612_0000 + number)), 50_000);
            for number in 0..sources {
                let template = match payload[1] {
                    9 => netflow9(0, 1, &[set(0, &[256, 2, 8, 4, 12, 4])]),
                    10 => ipfix(0, 1, &[set(2, &[256, 2, 8, 4, 12, 4])]),
                    _ => payload.clone(),
                };
                exporters.observe(address(number), format, &template, 1, 1);
            }
            let rounds = 2_000_000_u32;
            let started = Instant::now();
            let mut number = 0_u32;
            for _ in 0..rounds {
                // A stride that visits all sources in an order that defeats prefetching.
                number = (number + 7919) % sources;
                std::hint::black_box(exporters.observe(address(number), format, &payload, 2, 1));
            }
            let each = started.elapsed().as_nanos() / u128::from(rounds);
            eprintln!("{name:10} {sources:6} exporters {each:4} ns per datagram");
        }
    }
}
