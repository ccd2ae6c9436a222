use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use sekiwake_runtime::{Ending, Process};
use sekiwake_settings::Environment;

use crate::toys::{First, both, get, in_background, on_start, request, start, wait_until, works};

#[test]
fn process_is_ready_when_every_latch_of_every_role_is_set() {
    let (sender, latches) = crossbeam_channel::bounded(2);
    for (service, what) in [("first", "interface eth1"), ("second", "bus")] {
        let sender = sender.clone();
        on_start(service, move |scope| {
            sender.send(scope.readiness(what))?;
            Ok(scope.idle()?)
        });
    }
    let (address, stop, ended) = in_background(start(both(), &[]));
    let first = latches.recv().unwrap();
    let second = latches.recv().unwrap();
    assert_eq!(get(address, "/readyz"), (503, "first: interface eth1\nsecond: bus\n".to_owned()));
    first.set(true);
    assert_eq!(get(address, "/readyz"), (503, "second: bus\n".to_owned()));
    let ready_metrics = get(address, "/metrics").1;
    assert!(ready_metrics.contains("sekiwake_ready{service=\"first\"} 1\nsekiwake_ready{service=\"second\"} 0\n"));
    second.set(true);
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()));
    first.set(false);
    assert_eq!(get(address, "/readyz"), (503, "first: interface eth1\n".to_owned()));
    drop(first);
    assert_eq!(get(address, "/readyz"), (200, "ready\n".to_owned()), "a dropped latch does not count");
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn process_that_drains_is_not_ready_and_still_answers() {
    let (let_go, held) = crossbeam_channel::bounded::<()>(0);
    works("first", move |_| {
        let _ = held.recv();
        Ok(())
    });
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    assert_eq!(get(address, "/readyz").0, 200);
    stop.stop("the test");
    wait_until("readiness shows the stop", || get(address, "/readyz") == (503, "stopping\n".to_owned()));
    assert_eq!(get(address, "/healthz"), (200, "alive\n".to_owned()));
    drop(let_go);
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn worker_whose_heartbeat_stops_is_named_by_healthz() {
    let (go_on, paused) = crossbeam_channel::bounded::<()>(0);
    works("first", move |worker| {
        worker.beat();
        let _ = paused.recv();
        while !worker.stop().wait(Duration::from_millis(1)) {
            worker.beat();
        }
        Ok(())
    });
    let process = Process::of::<First>().stuck_after(Duration::from_millis(200));
    let (address, stop, ended) = in_background(start(process, &[]));
    wait_until("the worker is found stuck", || {
        let (status, body) = get(address, "/healthz");
        status == 503 && body.starts_with("first toy-0: no heartbeat for ")
    });
    drop(go_on);
    wait_until("the worker sends heartbeats again", || get(address, "/healthz") == (200, "alive\n".to_owned()));
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn only_get_and_known_pages_are_served() {
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    assert_eq!(request(address, "POST /metrics HTTP/1.1\r\nHost: toy\r\nContent-Length: 0\r\n\r\n").0, 405);
    assert_eq!(get(address, "/").0, 404);
    assert_eq!(request(address, "nonsense\r\n\r\n").0, 400);
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

/// A connection with an incomplete request.
fn incomplete(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metr").unwrap();
    stream
}

/// Waits until the server has closed this connection.
fn wait_for_close(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    // A reset is a close, too; a time-out is not.
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// After this time an incomplete request is cut off.
const HEAD_TIME: Duration = Duration::from_secs(2);

#[test]
fn request_replaces_one_of_two_hundred_silent_connections() {
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    // Repeated, because a busy machine may take longer once.
    wait_until("a request is answered before the others are cut off", || {
        let opened_at = Instant::now();
        let silent: Vec<TcpStream> = (0..200).map(|_| incomplete(address)).collect();
        assert_eq!(get(address, "/healthz").0, 200);
        let took = opened_at.elapsed();
        silent.into_iter().for_each(wait_for_close);
        took < HEAD_TIME
    });
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn request_is_limited_in_time_and_size() {
    let (address, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    let opened_at = Instant::now();
    wait_for_close(incomplete(address));
    assert!(opened_at.elapsed() >= HEAD_TIME - Duration::from_millis(100), "{:?}", opened_at.elapsed());
    // Repeated, because a busy machine may take longer once.
    wait_until("a large request is rejected before its time is up", || {
        let opened_at = Instant::now();
        let mut large = incomplete(address);
        // The server may close the connection before everything is written.
        let _ = large.write_all(&[b'x'; 64 * 1024]);
        wait_for_close(large);
        opened_at.elapsed() < HEAD_TIME - Duration::from_millis(100)
    });
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn taken_port_is_an_error_that_names_the_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ready = Process::of::<First>().read(&Environment::from_pairs([("SEKIWAKE_ADMIN", &address)])).unwrap();
    let error = format!("{:#}", ready.start().unwrap_err());
    assert!(error.starts_with(&format!("cannot bind {address} (SEKIWAKE_ADMIN): ")), "{error}");
}
