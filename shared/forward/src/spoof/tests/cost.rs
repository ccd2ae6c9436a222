//! What a datagram costs. To be run alone: `cargo test --release -p sekiwake-forward cost -- --ignored --nocapture`.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use sekiwake_testkit::netns::available_or_skipped;

use super::*;

/// Processor time of this thread, microseconds.
fn thread_us() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// The least of five measurements, microseconds of processor time for each of `count` datagrams.
fn measure(what: &str, count: usize, mut send: impl FnMut()) {
    send();
    send();
    let times = (0..5).map(|_| {
        let start = thread_us();
        send();
        (thread_us() - start) / count as f64
    });
    println!("{what:<60} {:.2} µs a datagram", times.fold(f64::MAX, f64::min));
}

#[test]
#[ignore = "measures"]
fn cost_of_a_datagram() {
    if !available_or_skipped("cost_of_a_datagram") {
        return;
    }
    const COUNT: usize = 40_000;
    let hosts = Hosts::new(1500, true);
    for destination in ["198.18.0.2", "2001:db8::2"] {
        // The link swallows everything at the other end, where nobody listens: no answers, and no sink beside it.
        hosts
            .forwarder
            .enter(|| {
                for bytes in [200, 1400] {
                    let bytes_sent = payload(bytes, 1);
                    let slices = [IoSlice::new(&bytes_sent)];
                    let plain = UdpSender::connect(at(destination, PORT)).unwrap();
                    let single = vec![Outgoing { slices: &slices, ..Outgoing::default() }; MAX_MESSAGES];
                    measure(&format!("{destination} {bytes} B: connected sendmmsg"), COUNT, || {
                        let mut sent = 0;
                        while sent < COUNT {
                            sent += plain.send(&single).unwrap_or(0);
                            plain.take_errors(|_| ());
                        }
                    });
                    let segments = 65_507 / bytes;
                    let run = vec![IoSlice::new(&bytes_sent); segments.min(64)];
                    let segmented =
                        vec![Outgoing { slices: &run, segment_bytes: Some(bytes as u16), ..Outgoing::default() }; 8];
                    measure(&format!("{destination} {bytes} B: connected UDP_SEGMENT"), COUNT, || {
                        let mut sent = 0;
                        while sent < COUNT {
                            sent += plain.send(&segmented).unwrap_or(0) * run.len();
                            plain.take_errors(|_| ());
                        }
                    });
                    for (sources, run) in
                        [(8, 1), (8, 4), (8, 8), (8, 16), (8, 64), (4000, 1), (10_000, 1), (10_000, 8)]
                    {
                        for port in [514, 40_000] {
                            let datagrams: Vec<Spoofed<'_>> = (0..COUNT)
                                .map(|number| Spoofed {
                                    source: SocketAddr::new(device(destination, (number / run % sources) as u32), port),
                                    payload: &bytes_sent,
                                    tos: None,
                                    own_address: false,
                                })
                                .collect();
                            let mut sender = SpoofSender::connect(at(destination, PORT)).unwrap();
                            let what =
                                format!("{destination} {bytes} B: {sources} sources, runs of {run}, port {port}");
                            measure(&what, COUNT, || send_all(&mut sender, &datagrams));
                            black_box(&sender);
                        }
                    }
                }
            })
            .unwrap();
    }
}
