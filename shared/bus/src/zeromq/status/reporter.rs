//! Sends a role's status over a control connection that it has.

use std::time::{Duration, Instant};

use sekiwake_group::{BootTime, StatusIdentity, StatusSender};
use sekiwake_runtime::StatusFeed;
use sekiwake_sys::clock::wall_now_ns;

use crate::status::texts;

/// The shortest wait for parts that are being collected: status is not worth a spin.
const COLLECTING_WAIT: Duration = Duration::from_millis(5);

/// A sender, and what it sends. The owner of the connection passes messages on, and calls
/// [`StatusReporter::tend`] in each round of its loop.
#[derive(Debug)]
pub(crate) struct StatusReporter {
    sender: StatusSender,
    feed: StatusFeed,
    is_stop_said: bool,
}

impl StatusReporter {
    pub(crate) fn new(identity: StatusIdentity, feed: StatusFeed, now: BootTime) -> StatusReporter {
        StatusReporter { sender: StatusSender::new(identity, now), feed, is_stop_said: false }
    }

    pub(crate) fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        self.sender.on_message(now, frame);
    }

    /// Collects a status and sends it, if it is time and somebody reads it.
    pub(crate) fn tend(&mut self, now: BootTime) {
        self.sender.on_tick(now);
        if self.feed.is_stopping() {
            self.stopping(now);
        }
        if self.sender.is_due(now) {
            self.feed.ask(Instant::now());
        }
        if !self.sender.is_wanted(now) {
            return;
        }
        if let Some(parts) = self.feed.take(Instant::now()) {
            self.sender.send(texts(self.sender.identity(), wall_now_ns(), parts));
        }
    }

    /// Says at once that the role stops, if somebody reads it.
    pub(crate) fn stopping(&mut self, now: BootTime) {
        if !self.is_stop_said && self.sender.is_wanted(now) {
            self.is_stop_said = true;
            let mut process = self.feed.process();
            process["state"] = "stopping".into();
            let parts = vec![("process".to_owned(), process)];
            self.sender.send(texts(self.sender.identity(), wall_now_ns(), parts));
        }
    }

    /// Whether parts are being collected, a message waits to be sent, or the stop is to be said.
    pub(crate) fn is_collecting(&self) -> bool {
        let is_stop_unsaid = !self.is_stop_said && self.feed.is_stopping();
        self.feed.is_asked() || self.sender.has_output() || is_stop_unsaid
    }

    pub(crate) fn next_deadline(&self) -> BootTime {
        self.sender.next_deadline()
    }

    /// How long a thread with a time limit may wait before it calls [`StatusReporter::tend`].
    pub(crate) fn wait_limit(&self, now: BootTime, limit: Duration) -> Duration {
        let due = if self.is_collecting() { now } else { self.next_deadline() };
        if due <= now + limit { limit.min((due - now).max(COLLECTING_WAIT)) } else { limit }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.sender.poll_output()
    }
}
