//! The cost of a datagram, compared with the kernel's own ways. A measurement, to be run alone:
//! `cargo test --release -p sekiwake-forward --lib cost -- --ignored --nocapture`.

use rustix::time::{ClockId, clock_gettime};
use sekiwake_testkit::netns::namespaces_or_skipped;

use super::*;

/// Datagrams per measurement.
const COUNT: usize = 20_000;

/// Processor time of this thread, microseconds.
fn thread_us() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// Prints the smallest of five measurements.
fn measure(what: &str, mut send: impl FnMut()) {
    send();
    send();
    let times = (0..5).map(|_| {
        let start = thread_us();
        send();
        (thread_us() - start) / COUNT as f64
    });
    println!("{what:<64} {:.2} µs per datagram", times.fold(f64::MAX, f64::min));
}

/// A bare loop over a connected socket, with one datagram or `segments` segments per message.
fn measure_plain(destination: &str, payload: &[u8], segments: usize) {
    let sender = UdpSender::connect(at(destination, PORT)).unwrap();
    let slices = vec![IoSlice::new(payload); segments];
    let segment_bytes = (segments > 1).then_some(payload.len() as u16);
    let messages =
        vec![Outgoing { slices: &slices, segment_bytes, ..Outgoing::default() }; MAX_MESSAGES / segments.min(8)];
    measure(&format!("{destination} {} B: connected, {segments} segments", payload.len()), || {
        let mut sent = 0;
        while sent < COUNT {
            sent += sender.send(&messages).unwrap_or(0) * segments;
        }
    });
}

fn measure_spoofed(destination: &str, what: &str, payloads: &[Vec<u8>], sources: usize, run: usize, port: u16) {
    let datagrams: Vec<Spoofed<'_>> = (0..COUNT)
        .map(|number| Spoofed {
            source: SocketAddr::new(device(destination, (number / run % sources) as u32), port),
            payload: &payloads[number % payloads.len()],
            tos: None,
            own_address: false,
        })
        .collect();
    let mut sender = SpoofSender::connect(at(destination, PORT)).unwrap();
    let what = format!("{destination} {what}: {sources} sources, runs of {run}, port {port}");
    measure(&what, || send_all(&mut sender, &datagrams));
}

#[test]
#[ignore = "measures"]
fn cost_of_a_datagram() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for destination in ["198.18.0.2", "2001:db8::2"] {
        // A neighbour that does not exist: the frames cross the link and end there.
        let neighbour = format!("neighbour replace {destination} lladdr 02:00:00:00:00:99 nud permanent dev spf0");
        hosts.forwarder.ip(&neighbour).unwrap();
        let mixed: Vec<Vec<u8>> = (0..997).map(|number| payload(200 + number * 7919 % 1201, number)).collect();
        let cases = [("200 B", vec![payload(200, 1)]), ("1400 B", vec![payload(1400, 1)]), ("200 to 1400 B", mixed)];
        let measure_all = || {
            for (what, payloads) in &cases {
                if let [payload] = &payloads[..] {
                    measure_plain(destination, payload, 1);
                    measure_plain(destination, payload, (65_507 / payload.len()).min(64));
                }
                for (sources, run) in [(8, 1), (8, 2), (8, 4), (8, 8), (8, 64), (4000, 1), (10_000, 1), (1000, 4)] {
                    for port in [514, 40_000] {
                        measure_spoofed(destination, what, payloads, sources, run, port);
                    }
                }
            }
        };
        hosts.forwarder.enter(measure_all).unwrap();
    }
}
