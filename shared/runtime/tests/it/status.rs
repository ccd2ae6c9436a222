use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use rustix::net::{self, AddressFamily, SocketType};
use sekiwake_runtime::{Ending, Process, Scope, StatusResponder, StopHandle, VERSION};
use serde_json::{Value, json};

use crate::toys::{First, both, get, in_background, on_start, request, start, wait_until};

const MIB: usize = 1024 * 1024;

/// A worker that answers status requests until it is stopped.
fn answers(scope: &Scope, responder: StatusResponder, make: impl Fn() -> Value + Send + 'static) -> anyhow::Result<()> {
    scope.spawn("answers", move |worker| {
        while !worker.stop().wait(Duration::from_millis(1)) {
            responder.answer(&make);
        }
        Ok(())
    })?;
    Ok(())
}

/// A worker that answers no status request until the sender is dropped.
fn is_stuck(scope: &Scope, responder: StatusResponder, paused: Receiver<()>) -> anyhow::Result<()> {
    scope.spawn("is-stuck", move |worker| {
        let _ = paused.recv();
        while !worker.stop().wait(Duration::from_millis(1)) {
            responder.answer(|| json!("awake"));
        }
        Ok(())
    })?;
    Ok(())
}

fn first(
    body: impl FnOnce(&Scope) -> anyhow::Result<()> + Send + 'static,
) -> (SocketAddr, StopHandle, thread::JoinHandle<Ending>) {
    on_start("first", body);
    in_background(start(Process::of::<First>(), &[]))
}

fn gate() -> (Sender<()>, Receiver<()>) {
    crossbeam_channel::bounded(0)
}

fn status(address: SocketAddr) -> Value {
    let (code, body) = get(address, "/status");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn parts_are_listed_by_role_and_name() {
    on_start("first", |scope| {
        scope.status_with("group \"a\"", || json!({ "members": [1, 2], "text": "two\nlines" }));
        answers(scope, scope.status("wire"), || json!(5))
    });
    let (address, stop, ended) = in_background(start(both(), &[]));
    let expected = r#"{
  "service": "toys",
  "version": "VERSION",
  "roles": {
    "first": {
      "group \"a\"": {
        "members": [
          1,
          2
        ],
        "text": "two\nlines"
      },
      "wire": 5
    },
    "second": {}
  }
}
"#;
    assert_eq!(get(address, "/status"), (200, expected.replace("VERSION", VERSION)));
    assert_eq!(
        status(address),
        json!({
            "service": "toys",
            "version": VERSION,
            "roles": {
                "first": { "group \"a\"": { "members": [1, 2], "text": "two\nlines" }, "wire": 5 },
                "second": {},
            },
        })
    );
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn worker_makes_a_value_only_on_request() {
    let made = Arc::new(AtomicUsize::new(0));
    let rounds = Arc::new(AtomicUsize::new(0));
    let counts_made = made.clone();
    let counts_rounds = rounds.clone();
    let (address, stop, ended) = first(move |scope| {
        let responder = scope.status("machine");
        scope.spawn("machine", move |worker| {
            while !worker.stop().wait(Duration::from_millis(1)) {
                responder.answer(|| json!(counts_made.fetch_add(1, Ordering::Relaxed)));
                counts_rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(())
    });
    wait_until("the worker has made some rounds", || rounds.load(Ordering::Relaxed) > 10);
    assert_eq!(made.load(Ordering::Relaxed), 0);
    for answer in 0..3 {
        assert_eq!(status(address)["roles"]["first"]["machine"], answer);
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn stuck_worker_delays_no_other_part_or_page() {
    let (go_on, paused) = gate();
    let (address, stop, ended) = first(move |scope| {
        is_stuck(scope, scope.status("stuck"), paused)?;
        answers(scope, scope.status("well"), || json!("well"))
    });
    let asked_at = Instant::now();
    let asks = thread::spawn(move || (status(address), Instant::now()));
    let mut others = 0;
    while !asks.is_finished() {
        assert_eq!(get(address, "/healthz"), (200, "alive\n".to_owned()));
        others += 1;
    }
    assert!(others > 0);
    let (answer, answered_at) = asks.join().unwrap();
    let took = answered_at - asked_at;
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert_eq!(answer["roles"]["first"], json!({ "stuck": { "error": "no answer within 1 s" }, "well": "well" }));
    drop(go_on);
    wait_until("it answers again", || status(address)["roles"]["first"]["stuck"] == "awake");
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn part_whose_worker_has_ended_shows_it_and_can_be_replaced() {
    let (end, paused) = gate();
    let (sender, scopes) = crossbeam_channel::bounded(1);
    let (address, stop, ended) = first(move |scope| {
        let responder = scope.status("machine");
        scope.spawn("ends", move |_| {
            let _responder = responder;
            let _ = paused.recv();
            Ok(())
        })?;
        sender.send(scope.clone())?;
        Ok(scope.idle()?)
    });
    // The worker ends during the request.
    let asks = thread::spawn(move || status(address));
    drop(end);
    assert_eq!(asks.join().unwrap()["roles"]["first"]["machine"], json!({ "error": "ended" }));
    assert_eq!(status(address)["roles"]["first"]["machine"], json!({ "error": "ended" }));

    let scope = scopes.recv().unwrap();
    answers(&scope, scope.status("machine"), || json!("the second")).unwrap();
    assert_eq!(status(address)["roles"]["first"], json!({ "machine": "the second" }));
    scope.status_with("machine", || json!("the third"));
    assert_eq!(status(address)["roles"]["first"], json!({ "machine": "the third" }));
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn late_function_is_not_called_again_until_it_returns() {
    let (go_on, paused) = gate();
    let calls = AtomicUsize::new(0);
    let pages = AtomicUsize::new(0);
    let go_on = std::sync::Mutex::new(Some(go_on));
    let (address, stop, ended) = first(move |scope| {
        scope.status_with("a slow one", move || {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            let _ = paused.recv();
            json!(call)
        });
        // Called after the other function: the second page finds the call of the first one running,
        // and ends it.
        answers(scope, scope.status("ends it"), move || {
            if pages.fetch_add(1, Ordering::Relaxed) == 1 {
                drop(go_on.lock().unwrap().take());
            }
            json!("well")
        })
    });
    let late = json!({ "a slow one": { "error": "no answer within 1 s" }, "ends it": "well" });
    assert_eq!(status(address)["roles"]["first"], late);
    assert_eq!(status(address)["roles"]["first"], json!({ "a slow one": 0, "ends it": "well" }));
    assert_eq!(status(address)["roles"]["first"], json!({ "a slow one": 1, "ends it": "well" }));
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn function_that_never_returns_does_not_block_the_exit() {
    let (go_on, paused) = gate();
    let (address, stop, ended) = first(move |scope| {
        for part in ["hangs", "hangs too", "has no thread left"] {
            let hangs = paused.clone();
            scope.status_with(part, move || {
                let _ = hangs.recv();
                Value::Null
            });
        }
        answers(scope, scope.status("well"), || json!("well"))
    });
    let late = json!({ "error": "no answer within 1 s" });
    for _ in 0..2 {
        let expected = json!({ "hangs": late, "hangs too": late, "has no thread left": late, "well": "well" });
        assert_eq!(status(address)["roles"]["first"], expected);
    }
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
    drop(go_on);
}

#[test]
fn panicking_function_affects_only_its_part() {
    let (address, stop, ended) = first(|scope| {
        scope.status_with("panics", || panic!("at the toy"));
        scope.status_with("well", || json!("well"));
        Ok(scope.idle()?)
    });
    for _ in 0..3 {
        assert_eq!(status(address)["roles"]["first"], json!({ "panics": { "error": "panicked" }, "well": "well" }));
    }
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn largest_parts_of_a_page_over_4_mib_are_left_out() {
    on_start("first", |scope| {
        scope.status_with("1 MiB", || json!("x".repeat(MIB)));
        scope.status_with("2 MiB", || json!("x".repeat(2 * MIB)));
        scope.status_with("5 MiB", || json!("x".repeat(5 * MIB)));
        Ok(scope.idle()?)
    });
    on_start("second", |scope| {
        answers(scope, scope.status("3 MiB"), || json!(vec!["y"; 3 * MIB / 12]))?;
        answers(scope, scope.status("small"), || json!("small"))
    });
    let (address, stop, ended) = in_background(start(both(), &[]));
    let mut body = String::new();
    wait_until("no part is late", || {
        body = get(address, "/status").1;
        !body.contains("no answer within 1 s")
    });
    assert!((3 * MIB..4 * MIB).contains(&body.len()), "{}", body.len());
    let roles = serde_json::from_str::<Value>(&body).unwrap()["roles"].take();
    let left_out = json!({ "error": "left out: the page would be over 4 MiB" });
    assert_eq!(roles["first"]["1 MiB"].as_str().unwrap().len(), MIB);
    assert_eq!(roles["first"]["2 MiB"].as_str().unwrap().len(), 2 * MIB);
    assert_eq!(roles["first"]["5 MiB"], left_out);
    assert_eq!(roles["second"], json!({ "3 MiB": left_out, "small": "small" }));
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

/// The length that an unread answer announces, or `None` if it is an error, and its connection.
fn unread(address: SocketAddr) -> (TcpStream, Option<usize>) {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    // Too small for the page.
    net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    net::connect(&socket, &address).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: toy\r\n\r\n").unwrap();
    let mut head = String::new();
    wait_until("there is an answer", || {
        let mut bytes = [0; 512];
        let length = stream.peek(&mut bytes).unwrap();
        head = String::from_utf8_lossy(&bytes[..length]).into_owned();
        head.contains("\r\n\r\n")
    });
    let length = head.split_once("content-length: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
    (stream, length.filter(|_| head.starts_with("HTTP/1.1 200")))
}

#[test]
fn bytes_of_unread_pages_are_limited() {
    let (address, stop, ended) = first(|scope| {
        scope.status_with("large", || json!("x".repeat(4 * MIB - 1000)));
        Ok(scope.idle()?)
    });
    // Repeated, because on a busy machine a page may take longer than 1 s, or all of them longer
    // than the 10 s after which the first is cut off.
    wait_until("eight pages are unread", || {
        let started_at = Instant::now();
        let mut unread_pages = Vec::new();
        while let (stream, Some(length)) = unread(address) {
            unread_pages.push(stream);
            if length < MIB || started_at.elapsed() > Duration::from_secs(8) {
                return false;
            }
            assert!(unread_pages.len() <= 8, "the number of pages is not limited");
        }
        let is_rejected = get(address, "/status") == (503, "too many status pages are being sent\n".to_owned());
        assert_eq!(get(address, "/healthz").0, 200);
        unread_pages.len() == 8 && is_rejected
    });
    wait_until("there is room again", || get(address, "/status").0 == 200);
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

/// The complete answer, if the connection was not replaced.
fn try_status(address: SocketAddr) -> Option<Value> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: toy\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(serde_json::from_str(body).unwrap())
}

#[test]
fn two_hundred_concurrent_requests_share_few_pages() {
    let made = Arc::new(AtomicUsize::new(0));
    let running = AtomicUsize::new(0);
    let counts_made = made.clone();
    let (address, stop, ended) = first(move |scope| {
        scope.status_with("function", move || {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "called twice at a time");
            thread::sleep(Duration::from_millis(50));
            running.fetch_sub(1, Ordering::SeqCst);
            json!("function")
        });
        answers(scope, scope.status("machine"), move || {
            counts_made.fetch_add(1, Ordering::Relaxed);
            json!("machine")
        })
    });
    let started_at = Instant::now();
    let (open, start_together) = gate();
    let ask = |_| {
        let start_together = start_together.clone();
        thread::spawn(move || {
            let _ = start_together.recv();
            try_status(address)
        })
    };
    let asking: Vec<_> = (0..200).map(ask).collect();
    drop(open);
    let answers: Vec<Value> = asking.into_iter().filter_map(|asks| asks.join().unwrap()).collect();
    // There are 128 slots, and one connection may be replaced before the next is accepted.
    assert!(answers.len() >= 127, "{}", answers.len());
    for answer in &answers {
        assert_eq!(answer["roles"]["first"], json!({ "function": "function", "machine": "machine" }));
    }
    let most = 1 + usize::try_from(started_at.elapsed().as_millis()).unwrap() / 70;
    assert!((1..=most).contains(&made.load(Ordering::Relaxed)), "{made:?} pages, {most} at most");
    assert_eq!(status(address)["roles"]["first"]["machine"], "machine");
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn status_answers_head_and_rejects_post() {
    let (address, stop, ended) = first(|scope| answers(scope, scope.status("machine"), || json!("machine")));
    for page in ["/status", "/metrics"] {
        let head = format!("HEAD {page} HTTP/1.1\r\nHost: toy\r\n\r\n");
        assert_eq!(request(address, &head), (200, String::new()), "{page}");
        let post = format!("POST {page} HTTP/1.1\r\nHost: toy\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(request(address, &post), (405, String::new()), "{page}");
    }
    assert_eq!(get(address, "/status/machine").0, 404);
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}
