//! The number of per-device sockets.

use sekiwake_testkit::netns::namespaces_or_skipped;

use super::*;

#[test]
fn changing_ports_open_no_socket() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for destination in ["198.18.0.2", "2001:db8::2"] {
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let samples: Vec<Sample> = (0..2000)
            .map(|number| {
                Sample::new(SocketAddr::new(device(destination, 7), 30_000 + number), payload(300, number.into()))
            })
            .collect();
        hosts.send_samples(&mut sender, &samples);
        assert_eq!(sender.sockets(), (0, 0));
        assert_arrives(sink, samples);
    }
}

#[test]
fn ten_thousand_sources_open_no_more_sockets_than_fit() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let sink = hosts.sink(Options::counts());
    let mut sender = hosts.sender("198.18.0.2");
    // Long runs, so that every source would get a socket.
    let bytes = payload(200, 1);
    let datagrams: Vec<Spoofed<'_>> = (0..10_000 * LONG_RUN as u32)
        .map(|number| SocketAddr::new(device("198.18.0.2", number / LONG_RUN as u32), 40_000))
        .map(|source| Spoofed { source, payload: &bytes, tos: None, own_address: false })
        .collect();
    for round in 1..=5 {
        hosts.send(&mut sender, &datagrams);
        let (open, opened) = sender.sockets();
        assert!(open <= 512 && opened <= 512, "{open} sockets, {opened} ever, after round {round}");
        sink.wait_for(round * datagrams.len() as u64, PATIENCE).unwrap();
    }
    assert!(sender.sockets().0 > 0, "no source got a socket, so nothing was tested");
}

/// Long runs of eight sources, twice, so that they get sockets.
fn long_runs(destination: &str) -> Vec<Sample> {
    let sources = (0..8).cycle().take(16).map(|number| SocketAddr::new(device(destination, number), 40_000));
    let samples = sources.flat_map(|source| (0..100).map(move |number| Sample::new(source, payload(400, number))));
    samples.collect()
}

#[test]
fn each_destination_has_its_socket_for_a_source() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let other = at("198.18.0.2", PORT + 1);
    let sinks = [hosts.sink(Options::counts().payloads()), hosts.sink_at(&[other], Options::counts().payloads())];
    let mut senders =
        [hosts.sender("198.18.0.2"), hosts.forwarder.enter(|| SpoofSender::connect(other)).unwrap().unwrap()];
    let samples = long_runs("198.18.0.2");
    for sender in &mut senders {
        hosts.send_samples(sender, &samples);
    }
    assert_eq!(senders.each_ref().map(SpoofSender::sockets), [(8, 8), (8, 8)]);
    for sink in sinks {
        assert_arrives(sink, samples.clone());
    }
}

#[test]
fn everything_arrives_without_segmentation() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let sink = hosts.sink(Options::counts().payloads());
    let mut sender = hosts.sender("2001:db8::2");
    let samples = long_runs("2001:db8::2");
    hosts.send_samples(&mut sender, &samples);
    assert_eq!(sender.sockets().0, 8);
    sender.set_segmentation(false);
    hosts.send_samples(&mut sender, &samples);
    assert_eq!(sender.sockets(), (0, 8));
    assert_arrives(sink, [samples.clone(), samples].concat());
}
