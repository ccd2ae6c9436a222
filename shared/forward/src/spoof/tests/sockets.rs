//! How many sockets there are.

use sekiwake_testkit::netns::available_or_skipped;

use super::*;

#[test]
fn ports_that_change_with_each_message_open_no_socket() {
    if !available_or_skipped("ports_that_change_with_each_message_open_no_socket") {
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
fn ten_thousand_sources_that_take_turns_open_no_more_sockets_than_fit() {
    if !available_or_skipped("ten_thousand_sources_that_take_turns_open_no_more_sockets_than_fit") {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let sink = hosts.sink(Options::counts());
    let mut sender = hosts.sender("198.18.0.2");
    // Long runs, so that every source would be worth a socket.
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
    assert!(sender.sockets().0 > 0, "nobody got a socket, so nothing was tested");
}

/// Long runs of eight sources, twice: what gets sockets.
fn long_runs(destination: &str) -> Vec<Sample> {
    let sources = (0..8).cycle().take(16).map(|number| SocketAddr::new(device(destination, number), 40_000));
    let samples = sources.flat_map(|source| (0..100).map(move |number| Sample::new(source, payload(400, number))));
    samples.collect()
}

#[test]
fn destinations_have_a_socket_each_for_the_same_source() {
    if !available_or_skipped("destinations_have_a_socket_each_for_the_same_source") {
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
fn without_segmentation_there_are_no_sockets_and_everything_arrives() {
    if !available_or_skipped("without_segmentation_there_are_no_sockets_and_everything_arrives") {
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
