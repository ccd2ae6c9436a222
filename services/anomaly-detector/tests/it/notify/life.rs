//! Queues, stops, and changes of who tells.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use sekiwake_anomaly_detector::{
    detect::EventState,
    notify::{Notifiers, Patience},
};
use sekiwake_runtime::Ending;
use sekiwake_testkit::wait::wait_for;

use super::{
    rig::{LONG, QUICK, Rig, firing, resolved},
    server::{Answer, OK, Server},
};

#[test]
fn one_that_is_dead_delays_neither_who_offers_nor_the_others() {
    let (silent, well) = (Server::start(&[Answer::Silence]), Server::start(&[OK]));
    let patience = Patience { request: Duration::from_secs(10), ..QUICK };
    let both = format!("webhook+http://{}/ webhook+http://{}/", silent.address, well.address);
    let rig = Rig::start(&both, patience);
    rig.telling.offer(&firing(0));
    wait_for("the dead one to be tried", LONG, || silent.requests().len() == 1).unwrap();
    let began = Instant::now();
    (1..250).for_each(|number| rig.telling.offer(&firing(number)));
    assert!(began.elapsed() < Duration::from_secs(1));
    wait_for("the other to have all", LONG, || well.requests().len() == 250).unwrap();
    let came: Vec<String> =
        well.requests().iter().map(|request| request.body["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(came, (0..250).map(|number| firing(number).id).collect::<Vec<_>>());
    // Of those that wait for the dead one the oldest make room, and are given up.
    assert_eq!(rig.telling.take_told(), []);
    (250..270).for_each(|number| rig.telling.offer(&firing(number)));
    wait_for("the other to have these", LONG, || well.requests().len() == 270).unwrap();
    let dead = silent.address.to_string();
    let label = dead.as_str();
    assert_eq!(rig.metric("sekiwake_notify_dropped_total", &[label, "queue_full"]), 13);
    assert_eq!(rig.metric("sekiwake_notify_queue", &[label]), 256);
    wait_for("the oldest to be told of", LONG, || rig.sent() == 270).unwrap();
    assert_eq!(rig.telling.take_told().first(), Some(&(firing(1).id, EventState::Firing)));
    // A request under way does not hold up the stop.
    let began = Instant::now();
    assert_eq!(rig.stop(), Ending::Done);
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
}

#[test]
fn a_stop_tells_what_waits_and_does_not_wait_for_a_pause_to_be_over() {
    let server = Server::start(&[Answer::Close, OK]);
    let patience = Patience { first_pause: Duration::from_secs(100), longest_pause: Duration::from_secs(100), ..QUICK };
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), patience);
    rig.telling.offer(&firing(1));
    rig.telling.offer(&resolved(1));
    wait_for("the first try", LONG, || rig.retries() == 1).unwrap();
    assert_eq!(rig.stop(), Ending::Done);
    let states: Vec<_> = server.requests().iter().map(|request| request.body["status"].clone()).collect();
    assert_eq!(states, ["firing", "firing", "resolved"]);
}

#[test]
fn whoever_stands_by_tells_nothing_more_and_what_fires_is_repeated_by_whoever_counts() {
    let server = Server::start(&[OK]);
    let patience = Patience { repeat: Duration::from_millis(300), ..QUICK };
    let rig = Rig::start(&format!("alertmanager+http://{}", server.address), patience);
    rig.telling.offer(&firing(1));
    wait_for("it to be repeated", LONG, || server.requests().len() >= 3).unwrap();
    let first = server.requests().remove(0);
    assert_eq!(first.line, "POST /api/v2/alerts");
    let labels = |request: &super::server::Request| request.body[0]["labels"].clone();
    assert!(server.requests().iter().all(|request| labels(request) == labels(&first)));
    rig.telling.stand_by();
    // One may be under way.
    thread::sleep(Duration::from_millis(200));
    let before = server.requests().len();
    thread::sleep(Duration::from_millis(800));
    assert_eq!(server.requests().len(), before);
    // What was known before it counted again.
    rig.telling.set_firing(&[firing(1), firing(2)]);
    wait_for("both to be repeated", LONG, || {
        server.requests().last().is_some_and(|request| request.body.as_array().is_some_and(|all| all.len() == 2))
    })
    .unwrap();
    rig.telling.offer(&resolved(1));
    wait_for("the end to be told", LONG, || rig.sent() == 2).unwrap();
    let count = server.requests().len();
    wait_for("the other to be repeated", LONG, || server.requests().len() >= count + 2).unwrap();
    let last = server.requests().pop().unwrap();
    assert_eq!(last.body.as_array().map(Vec::len), Some(1), "{last:?}");
    assert_eq!(last.body[0]["startsAt"], "2026-11-25T14:02:00.000000000Z");
    rig.stop();
}

#[test]
fn what_waits_where_somebody_stands_by_is_left_to_the_next() {
    let server = Server::start(&[Answer::Close]);
    let patience = Patience { first_pause: Duration::from_millis(500), ..QUICK };
    let rig = Rig::start(&format!("alertmanager+http://{}", server.address), patience);
    (0..3).for_each(|number| rig.telling.offer(&firing(number)));
    wait_for("a try", LONG, || rig.retries() >= 1).unwrap();
    rig.telling.stand_by();
    wait_for("all to be left", LONG, || rig.dropped("handed_over") == 3).unwrap();
    assert_eq!(rig.telling.take_told(), []);
    rig.stop();
}

#[test]
fn a_line_of_syslog_goes_to_a_name_and_to_both_families() {
    let four = UdpSocket::bind("127.0.0.1:0").unwrap();
    let six = UdpSocket::bind("[::1]:0").unwrap();
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    let all = format!(
        "syslog+udp://localhost:{}?facility=local0&severity=crit syslog+udp://[::1]:{}",
        port(&four),
        port(&six)
    );
    // What a name stands for first is the resolver's choice.
    let other = UdpSocket::bind(("::1", port(&four)));
    let rig = Rig::start(&all, QUICK);
    rig.telling.offer(&firing(1));
    wait_for("both to be told", LONG, || rig.sent() == 2).unwrap();
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
    fn what_is_read_as_notifiers_shows_no_secret_whatever_it_is(
        scheme in "(alertmanager|webhook|syslog|x)\\+?(http|https|udp)?",
        rest in "[a-z0-9:/?&=%@\\[\\].# -]{0,40}|\\PC{0,40}",
    ) {
        let text = format!("{scheme}://user:hunter2@{rest}");
        match Notifiers::parse(&text) {
            Ok(notifiers) => assert!(!format!("{notifiers} {notifiers:?}").contains("hunter2"), "{text}"),
            Err(wrong) => assert!(!wrong.to_string().contains("hunter2"), "{text}: {wrong}"),
        }
    }
}
