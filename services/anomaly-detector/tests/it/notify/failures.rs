//! Misbehaving receivers.

use std::time::Duration;

use sekiwake_anomaly_detector::notify::Timing;
use sekiwake_testkit::wait::wait_for;

use super::{
    rig::{LONG, QUICK, Rig, firing, resolved},
    server::{Answer, OK, Server},
};

/// Long enough for a busy machine to answer, short enough for a test.
const SHORT: Timing = Timing { request: Duration::from_millis(400), ..QUICK };

#[test]
fn failed_notification_is_retried_unchanged_until_accepted() {
    let server = Server::start(&[
        Answer::Text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nno\r\n"),
        Answer::Close,
        Answer::Reset,
        Answer::Text("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\nshorter than it says"),
        Answer::Text("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("SSH-2.0-OpenSSH_9.2\r\n"),
        Answer::Text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk"),
    ]);
    let rig = Rig::start(&format!("webhook+http://me:secret@{}/a?b=c", server.address), QUICK);
    rig.dispatcher.offer(&firing(1));
    wait_for("the event to be accepted", LONG, || rig.sent() == 1).unwrap();
    let requests = server.requests();
    assert_eq!((requests.len(), rig.retries()), (8, 7), "{requests:?}");
    for request in &requests {
        assert_eq!(request.line, "POST /a?b=c");
        assert_eq!(request.headers["authorization"], "Basic bWU6c2VjcmV0");
        assert_eq!(request.headers["content-type"], "application/json");
        assert_eq!(request.headers["idempotency-key"], format!("{}/firing", firing(1).id));
        assert_eq!((&request.body["status"], &request.body["count"]), (&"firing".into(), &900.into()));
        assert_eq!(request.body, requests[0].body);
    }
    let finished = rig.dispatcher.take_finished();
    assert_eq!(finished, [firing(1).name()]);
    assert_eq!(rig.dispatcher.take_finished(), []);
    rig.stop();
}

#[test]
fn rejection_is_final_and_redirects_are_not_followed() {
    let server = Server::start(&[
        Answer::Text("HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n"),
        Answer::Text("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        Answer::Endless("HTTP/1.1 413 Content Too Large\r\n\r\n", "and so on "),
        OK,
    ]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    (0..6).for_each(|number| rig.dispatcher.offer(&firing(number)));
    wait_for("all to be accepted or rejected", LONG, || rig.sent() == 1 && rig.dropped("rejected") == 5).unwrap();
    assert_eq!((server.requests().len(), rig.retries()), (6, 0));
    assert_eq!(rig.dispatcher.take_finished().len(), 6);
    rig.stop();
}

#[test]
fn endless_response_ends_at_the_timeout() {
    for answer in [
        Answer::Silence,
        Answer::Drip("HTTP/1.1 200 OK\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n"),
        Answer::Endless("HTTP/1.1 200 OK\r\n", "X-More: and more\r\n"),
        Answer::Endless("HTTP/1.1 200 OK\r\nX-Long: ", "and longer "),
        Answer::Endless("", "HTTP/1.1 100 Continue\r\n\r\n"),
        Answer::Endless("", "\0\0\0\0\0\0\0\0"),
        Answer::Drip(concat!(
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "slow slow slow slow slow slow slow slow slow slow slow slow slow slow slow slow slow slow"
        )),
    ] {
        let server = Server::start(&[answer, OK]);
        let rig = Rig::start(&format!("webhook+http://{}/", server.address), SHORT);
        rig.dispatcher.offer(&firing(1));
        wait_for("a later attempt", LONG, || rig.sent() == 1)
            .unwrap_or_else(|late| panic!("{answer:?}: {late}, {} retries", rig.retries()));
        rig.stop();
    }
}

#[test]
fn endless_body_of_a_success_is_not_read() {
    let server = Server::start(&[Answer::Endless("HTTP/1.1 200 OK\r\n\r\n", "and so on ")]);
    // Reading the body would take longer than the wait below.
    let timing = Timing { request: Duration::from_secs(600), ..QUICK };
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), timing);
    rig.dispatcher.offer(&firing(1));
    wait_for("the event to be accepted", LONG, || rig.sent() == 1).unwrap();
    rig.stop();
}

#[test]
fn retry_after_is_respected_up_to_a_limit() {
    let server = Server::start(&[
        Answer::Text("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
        OK,
        Answer::Text("HTTP/1.1 503 Unavailable\r\nRetry-After: 18446744073709551615\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    rig.dispatcher.offer(&firing(1));
    wait_for("the second attempt", LONG, || rig.sent() == 1).unwrap();
    let requests = server.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_millis(990));
    // An excessive time is capped, and does not delay the stop.
    rig.dispatcher.offer(&resolved(1));
    wait_for("the third request", LONG, || server.requests().len() == 3).unwrap();
    assert_eq!(rig.stop(), sekiwake_runtime::Ending::Done);
}

#[test]
fn unavailable_receiver_drops_all_events_in_time() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let timing = Timing { give_up_after: Duration::from_millis(300), ..QUICK };
    // An invalid name, which needs no resolver.
    let rig = Rig::start(&format!("webhook+http://{closed}/ syslog+udp://no..name"), timing);
    // The time of each event starts when it is queued. If it started with the first attempt, this
    // would take longer than the wait.
    (0..250).for_each(|number| rig.dispatcher.offer(&firing(number)));
    let mut finished = 0;
    // An event is counted before it is finished.
    wait_for("all to be dropped", LONG, || {
        finished += rig.dispatcher.take_finished().len();
        rig.dropped("gave_up") == 500 && finished == 250
    })
    .unwrap();
    assert_eq!(rig.sent(), 0);
    assert_eq!(rig.metric("sekiwake_notify_up", &[]), 0);
    rig.stop();
}

#[test]
fn event_that_is_not_accepted_does_not_hold_up_the_others() {
    let busy = Answer::Text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let server = Server::start(&[busy, busy, busy, OK, busy, busy, busy, OK]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    rig.dispatcher.offer(&firing(1));
    rig.dispatcher.offer(&firing(2));
    rig.dispatcher.offer(&resolved(1));
    wait_for("all to be accepted", LONG, || rig.sent() == 3).unwrap();
    let states: Vec<(String, String)> = server
        .requests()
        .iter()
        .map(|request| {
            let text = |name: &str| request.body[name].as_str().unwrap().to_owned();
            (text("id"), text("status"))
        })
        .collect();
    let [first, second] = [firing(1).id, firing(2).id];
    let firing = |id: &String| (id.clone(), "firing".to_owned());
    // The end of an alarm stays behind its start.
    assert_eq!(states[..3], [firing(&first), firing(&first), firing(&first)]);
    assert_eq!(states[3], firing(&second));
    assert_eq!(states[4..8], [firing(&first), firing(&first), firing(&first), firing(&first)]);
    assert_eq!(states[8], (first, "resolved".to_owned()));
    rig.stop();
}

#[test]
fn event_is_attempted_a_bounded_number_of_times() {
    let busy = Answer::Text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let server = Server::start(&[busy]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    rig.dispatcher.offer(&firing(1));
    wait_for("it to be dropped", LONG, || rig.dropped("gave_up") == 1).unwrap();
    assert_eq!(server.requests().len(), 30);
    rig.stop();
}
