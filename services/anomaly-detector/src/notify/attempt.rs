//! One try, in a thread of its own: what a request or a look-up of a name waits for is not to be waited for by who must beat and stop.

use std::{thread, time::Duration};

use crossbeam_channel::{RecvTimeoutError, bounded};
use sekiwake_runtime::Worker;

use super::transport::{Http, Outcome, send};

/// How often is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is to be tried.
pub(super) enum Attempt {
    /// JSON over HTTP.
    Post { http: Http, url: String, authorization: Option<String>, key: Option<String>, json: String },
    /// One datagram.
    Send { host: String, port: u16, line: Vec<u8> },
}

impl Attempt {
    /// Waits for what comes of it, or until `is_over` says that time is up: nothing, then. The process does not wait for the thread.
    pub(super) fn make(self, worker: &Worker, is_over: impl Fn() -> bool) -> Option<Outcome> {
        let (sender, receiver) = bounded(1);
        let body = move || {
            let outcome = match self {
                Attempt::Post { http, url, authorization, key, json } => {
                    http.post(&url, authorization.as_deref(), key.as_deref(), json.as_bytes())
                }
                Attempt::Send { host, port, line } => send(&host, port, &line),
            };
            // Refused when nobody waits any more.
            let _ = sender.send(outcome);
        };
        if let Err(error) = thread::Builder::new().name("notify try".to_owned()).spawn(body) {
            return Some(Outcome::Later { why: format!("no thread for a try: {error}"), after: None });
        }
        loop {
            worker.beat();
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(outcome) => return Some(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Outcome::Later { why: "the try panicked".to_owned(), after: None });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if is_over() {
                return None;
            }
        }
    }
}
