//! One delivery attempt in a thread of its own, because requests and name lookups block and the
//! notifier's thread has to send heartbeats and stop in time.

use std::{thread, time::Duration};

use crossbeam_channel::{RecvTimeoutError, bounded};
use sekiwake_runtime::Worker;

use super::transport::{Http, Outcome, send};

/// How often the caller checks for a stop.
const STOP_POLL: Duration = Duration::from_millis(100);

/// A delivery attempt.
pub(super) enum Attempt {
    /// JSON over HTTP.
    Post { http: Http, url: String, authorization: Option<String>, key: Option<String>, json: String },
    /// One datagram.
    Send { host: String, port: u16, line: Vec<u8> },
}

impl Attempt {
    /// Waits for the outcome; `None` if `is_over` returns true first. The process does not wait for
    /// the thread.
    pub(super) fn make(self, worker: &Worker, is_over: impl Fn() -> bool) -> Option<Outcome> {
        let (sender, receiver) = bounded(1);
        let body = move || {
            let outcome = match self {
                Attempt::Post { http, url, authorization, key, json } => {
                    http.post(&url, authorization.as_deref(), key.as_deref(), json.as_bytes())
                }
                Attempt::Send { host, port, line } => send(&host, port, &line),
            };
            // Fails if the caller has stopped waiting.
            let _ = sender.send(outcome);
        };
        if let Err(error) = thread::Builder::new().name("notify attempt".to_owned()).spawn(body) {
            return Some(Outcome::failed(format!("cannot spawn a thread: {error}")));
        }
        loop {
            worker.beat();
            match receiver.recv_timeout(STOP_POLL) {
                Ok(outcome) => return Some(outcome),
                Err(RecvTimeoutError::Disconnected) => return Some(Outcome::failed("the attempt panicked".to_owned())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if is_over() {
                return None;
            }
        }
    }
}
