//! Queues, stops, and hand-overs between detectors.

use std::{net::UdpSocket, thread, time::Duration};

use sekiwake_anomaly_detector::notify::{Notifiers, Timing};
use sekiwake_runtime::Ending;
use sekiwake_testkit::wait::wait_for;

use super::{
    rig::{LONG, QUICK, Rig, firing, resolved},
    server::{Answer, OK, Server},
};

#[test]
fn unavailable_receiver_delays_no_other() {
    let silent = Server::start(&[Answer::Silence]);
    let well = Server::start(&[OK]);
    // If offering waited for the silent receiver, it would wait for this.
    let timing = Timing { request: Duration::from_secs(600), ..QUICK };
    let both = format!("webhook+http://{}/ webhook+http://{}/", silent.address, well.address);
    let rig = Rig::start(&both, timing);
    rig.dispatcher.offer(&firing(0));
    wait_for("an attempt at the silent one", LONG, || silent.requests().len() == 1).unwrap();
    (1..250).for_each(|number| rig.dispatcher.offer(&firing(number)));
    wait_for("the other to have all", LONG, || well.requests().len() == 250).unwrap();
    let came: Vec<String> =
        well.requests().iter().map(|request| request.body["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(came, (0..250).map(|number| firing(number).id).collect::<Vec<_>>());
    // Of the events for the silent receiver the oldest are dropped.
    assert_eq!(rig.dispatcher.take_finished(), []);
    (250..270).for_each(|number| rig.dispatcher.offer(&firing(number)));
    wait_for("the other to have these", LONG, || well.requests().len() == 270).unwrap();
    let dead = silent.address.to_string();
    let label = dead.as_str();
    assert_eq!(rig.metric("sekiwake_notify_dropped_total", &[label, "queue_full"]), 13);
    assert_eq!(rig.metric("sekiwake_notify_queue", &[label]), 256);
    wait_for("the oldest to be finished", LONG, || rig.sent() == 270).unwrap();
    assert_eq!(rig.dispatcher.take_finished().first(), Some(&firing(1).name()));
    // A pending request does not delay the stop.
    assert_eq!(rig.stop(), Ending::Done);
}

#[test]
fn stop_delivers_queued_events_without_back_off() {
    let server = Server::start(&[Answer::Close, OK]);
    let timing = Timing { first_pause: Duration::from_secs(100), longest_pause: Duration::from_secs(100), ..QUICK };
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), timing);
    rig.dispatcher.offer(&firing(1));
    rig.dispatcher.offer(&resolved(1));
    wait_for("the first attempt", LONG, || rig.retries() == 1).unwrap();
    assert_eq!(rig.stop(), Ending::Done);
    let states: Vec<_> = server.requests().iter().map(|request| request.body["status"].clone()).collect();
    assert_eq!(states, ["firing", "firing", "resolved"]);
}

#[test]
fn standby_detector_stops_repeating_alarms() {
    let server = Server::start(&[OK]);
    let timing = Timing { repeat: Duration::from_millis(300), ..QUICK };
    let rig = Rig::start(&format!("alertmanager+http://{}", server.address), timing);
    rig.dispatcher.offer(&firing(1));
    wait_for("it to be repeated", LONG, || server.requests().len() >= 3).unwrap();
    let first = server.requests().remove(0);
    assert_eq!(first.line, "POST /api/v2/alerts");
    let labels = |request: &super::server::Request| request.body[0]["labels"].clone();
    assert!(server.requests().iter().all(|request| labels(request) == labels(&first)));
    rig.dispatcher.stand_by();
    // One request may be in flight.
    wait_for("an interval without a request", LONG, || {
        let before = server.requests().len();
        thread::sleep(Duration::from_millis(800));
        server.requests().len() == before
    })
    .unwrap();
    // Alarms of the restored state.
    rig.dispatcher.set_firing(&[firing(1), firing(2)]);
    wait_for("both to be repeated", LONG, || {
        server.requests().last().is_some_and(|request| request.body.as_array().is_some_and(|all| all.len() == 2))
    })
    .unwrap();
    rig.dispatcher.offer(&resolved(1));
    wait_for("the end to be accepted", LONG, || rig.sent() == 2).unwrap();
    let count = server.requests().len();
    wait_for("the other to be repeated", LONG, || server.requests().len() >= count + 2).unwrap();
    let last = server.requests().pop().unwrap();
    assert_eq!(last.body.as_array().map(Vec::len), Some(1), "{last:?}");
    assert_eq!(last.body[0]["startsAt"], "2026-11-25T14:02:00.000000000Z");
    rig.stop();
}

#[test]
fn queued_events_are_left_to_the_next_detector() {
    let server = Server::start(&[Answer::Close]);
    let timing = Timing { first_pause: Duration::from_millis(500), ..QUICK };
    let rig = Rig::start(&format!("alertmanager+http://{}", server.address), timing);
    (0..3).for_each(|number| rig.dispatcher.offer(&firing(number)));
    wait_for("an attempt", LONG, || rig.retries() >= 1).unwrap();
    rig.dispatcher.stand_by();
    wait_for("all to be left", LONG, || rig.dropped("handed_over") == 3).unwrap();
    assert_eq!(rig.dispatcher.take_finished(), []);
    rig.stop();
}

#[test]
fn syslog_lines_reach_names_and_both_address_families() {
    let four = UdpSocket::bind("127.0.0.1:0").unwrap();
    let six = UdpSocket::bind("[::1]:0").unwrap();
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let all = format!(
        "syslog+udp://localhost:{}?facility=local0&severity=crit syslog+udp://[::1]:{}",
        port(&four),
        port(&six)
    );
    // The resolver decides which address comes first.
    let other = UdpSocket::bind(("::1", port(&four)));
    let rig = Rig::start(&all, QUICK);
    rig.dispatcher.offer(&firing(1));
    wait_for("both to be accepted", LONG, || rig.sent() == 2).unwrap();
    let receive = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut line = [0; 2000];
        let length = socket.recv(&mut line).ok()?;
        Some(String::from_utf8(line[..length].to_vec()).unwrap())
    };
    let line = receive(&four).or_else(|| receive(other.as_ref().ok()?)).unwrap();
    assert!(line.starts_with("<130>1 2") && line.contains(" host1 sekiwake-anomaly-detector - - ["), "{line}");
    let line = receive(&six).unwrap();
    assert!(line.starts_with("<28>1 2") && line.ends_with("] more syslog than usual"), "{line}");
    assert_eq!(rig.stop(), Ending::Done);
}

proptest::proptest! {
    #[test]
    fn notifiers_and_errors_show_no_secret(
        scheme in "(alertmanager|webhook|syslog|x)\\+?(http|https|udp)?",
        rest in "[a-z0-9:/?&=%@\\[\\].# -]{0,40}|\\PC{0,40}",
    ) {
        let text = format!("{scheme}://user:hunter2@{rest}");
        match Notifiers::parse(&text) {
            Ok(notifiers) => assert!(!format!("{notifiers} {notifiers:?}").contains("hunter2"), "{text}"),
            Err(error) => assert!(!error.to_string().contains("hunter2"), "{text}: {error}"),
        }
    }
}
