//! Receivers that behave badly.

use std::time::{Duration, Instant};

use sekiwake_anomaly_detector::{detect::EventState, notify::Patience};
use sekiwake_testkit::wait::wait_for;

use super::{
    rig::{LONG, QUICK, Rig, firing, resolved},
    server::{Answer, OK, Server},
};

/// Long enough for a busy machine to answer, short enough to be waited for.
const HASTY: Patience = Patience { request: Duration::from_millis(400), ..QUICK };

#[test]
fn what_fails_is_tried_again_until_it_is_accepted_and_is_the_same_each_time() {
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
    rig.telling.offer(&firing(1));
    wait_for("the event to be told", LONG, || rig.sent() == 1).unwrap();
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
    let told = rig.telling.take_told();
    assert_eq!(told, [(firing(1).id, EventState::Firing)]);
    assert_eq!(rig.telling.take_told(), []);
    rig.stop();
}

#[test]
fn what_is_refused_is_not_tried_again_and_redirects_are_not_followed() {
    let server = Server::start(&[
        Answer::Text("HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n"),
        Answer::Text("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        Answer::Text("HTTP/1.1 307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
        Answer::Endless("HTTP/1.1 413 Content Too Large\r\n\r\n", "and so on "),
        OK,
    ]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    (0..6).for_each(|number| rig.telling.offer(&firing(number)));
    wait_for("all to be told or refused", LONG, || rig.sent() == 1 && rig.dropped("refused") == 5).unwrap();
    assert_eq!((server.requests().len(), rig.retries()), (6, 0));
    assert_eq!(rig.telling.take_told().len(), 6);
    rig.stop();
}

#[test]
fn an_answer_that_has_no_end_ends_at_the_time_limit() {
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
        let rig = Rig::start(&format!("webhook+http://{}/", server.address), HASTY);
        let began = Instant::now();
        rig.telling.offer(&firing(1));
        wait_for("the second try", LONG, || rig.sent() == 1)
            .unwrap_or_else(|late| panic!("{answer:?}: {late}, {} retries", rig.retries()));
        assert!(began.elapsed() < Duration::from_secs(5), "{answer:?}: {:?}", began.elapsed());
        assert_eq!(server.requests().len(), 2, "{answer:?}");
        rig.stop();
    }
}

#[test]
fn an_endless_body_of_what_was_accepted_is_not_read() {
    let server = Server::start(&[Answer::Endless("HTTP/1.1 200 OK\r\n\r\n", "and so on ")]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    let began = Instant::now();
    rig.telling.offer(&firing(1));
    wait_for("the event to be told", LONG, || rig.sent() == 1).unwrap();
    assert!(began.elapsed() < QUICK.request);
    rig.stop();
}

#[test]
fn whoever_says_when_to_come_back_is_left_alone_until_then() {
    let server = Server::start(&[
        Answer::Text("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
        OK,
        Answer::Text("HTTP/1.1 503 Unavailable\r\nRetry-After: 18446744073709551615\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let rig = Rig::start(&format!("webhook+http://{}/", server.address), QUICK);
    rig.telling.offer(&firing(1));
    wait_for("the second try", LONG, || rig.sent() == 1).unwrap();
    let requests = server.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_millis(990));
    // A time that never comes is cut, and stops nobody.
    rig.telling.offer(&resolved(1));
    wait_for("the third request", LONG, || server.requests().len() == 3).unwrap();
    let began = Instant::now();
    assert_eq!(rig.stop(), sekiwake_runtime::Ending::Done);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn who_is_not_there_is_given_up_and_everything_behind_it_with_it() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let patience = Patience { give_up_after: Duration::from_millis(300), ..QUICK };
    // A name that no resolver has to be asked for.
    let rig = Rig::start(&format!("webhook+http://{closed}/ syslog+udp://no..name"), patience);
    let began = Instant::now();
    (0..20).for_each(|number| rig.telling.offer(&firing(number)));
    wait_for("all to be given up", LONG, || rig.dropped("gave_up") == 40).unwrap();
    // Not one after the other: each has its time from when it came.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((rig.sent(), rig.telling.take_told().len()), (0, 20));
    assert_eq!(rig.metric("sekiwake_notify_up", &[]), 0);
    rig.stop();
}
