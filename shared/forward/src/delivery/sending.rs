//! The thread that waits for the other side, so that the worker never does.

use std::{io, net::SocketAddr, thread, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::outbox::Part;
use crate::metrics::ErrorKind;

/// A request: whole datagrams, in order.
pub(crate) struct Request {
    pub(crate) parts: Vec<Part>,
    /// The address of the endpoint; `None` for a sink that finds its servers itself.
    pub(crate) address: Option<SocketAddr>,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Stored, or accepted as far as this protocol says. Of it, `rejected` datagrams were not, for
    /// good.
    Accepted { rejected: u64, why: Option<String> },
    /// Rejected for good, because of its contents.
    Rejected { why: String },
    /// To be sent again, but not before `after` if the other side asks for that. `is_too_slow`:
    /// there was no answer in time.
    Failed { kind: ErrorKind, why: String, after: Option<Duration>, is_too_slow: bool },
}

/// The other side. The reason for the trait: protocols are as different as their client libraries,
/// and a library can be replaced.
pub(crate) trait Sink: Send + 'static {
    /// Sends a request, and waits for the answer, but not for more than about ten seconds.
    /// Datagrams of one source arrive in order, or the request fails.
    fn send(&mut self, request: &Request) -> Answer;

    /// Keeps a connection between requests. Returns how soon it has to be called again, `None` if
    /// it has not.
    fn tend(&mut self) -> Option<Duration> {
        None
    }
}

/// The thread.
pub(super) struct SendingThread {
    requests: Sender<(u64, Request)>,
    pub(super) answers: Receiver<Answered>,
    /// How many requests were begun.
    begun: u64,
    /// The worker has noticed that the thread has panicked.
    pub(super) has_ended: bool,
}

/// The result of [`SendingThread::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    Yes,
    /// An earlier request has no answer, and this one was not begun.
    Busy,
    /// The thread has panicked.
    Ended,
}

/// The answer to the request with this number.
pub(super) struct Answered {
    pub(super) request: u64,
    pub(super) answer: Answer,
}

impl SendingThread {
    /// # Errors
    /// When the thread cannot be spawned.
    pub(super) fn spawn(name: &str, mut sink: Box<dyn Sink>) -> io::Result<SendingThread> {
        let (requests, received) = bounded::<(u64, Request)>(1);
        let (answer, answers) = bounded(1);
        // It is not waited for at the end: a request may take ten seconds, and what it has not
        // acknowledged by then is in the spool, or left to the group.
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some((number, request)) = next(&received, &mut *sink) {
                let outcome = sink.send(&request);
                // The memory is released before the answer is there.
                drop(request);
                if answer.send(Answered { request: number, answer: outcome }).is_err() {
                    return;
                }
            }
        })?;
        Ok(SendingThread { requests, answers, begun: 0, has_ended: false })
    }

    /// Begins a request, unless the ones before have no answer.
    pub(super) fn begin(&mut self, request: Request) -> Begun {
        self.begun += 1;
        match self.requests.try_send((self.begun, request)) {
            Ok(()) => Begun::Yes,
            Err(TrySendError::Full(_)) => Begun::Busy,
            Err(TrySendError::Disconnected(_)) => Begun::Ended,
        }
    }

    /// Whether this answers the request that was begun last.
    pub(super) fn is_current(&self, answered: &Answered) -> bool {
        answered.request == self.begun
    }
}

/// Waits for a request, and keeps the connection meanwhile. `None`: there will be none.
fn next(received: &Receiver<(u64, Request)>, sink: &mut dyn Sink) -> Option<(u64, Request)> {
    let mut pause = Duration::ZERO;
    loop {
        match received.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            received => return received.ok(),
        }
        let Some(longest) = sink.tend() else { return received.recv().ok() };
        pause = longest;
    }
}
