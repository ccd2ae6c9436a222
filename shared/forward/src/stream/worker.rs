//! The thread of one stream endpoint. Everything that concerns the endpoint happens here, so that
//! it cannot delay another.
//!
//! ```text
//!            ┌───────────────────────────────────── run ─────────────────────────────────────┐
//!            │ open_locked    the spool, once the worker before this one has closed it        │
//!            │ take_in        queue ─▶ waiting                                                │
//!            │ tend_link      connect, handshake, keep-alive, a new address                   │
//!            │ send           waiting ─▶ connection, and beside it spool ─▶ connection        │
//!            │ settle         acknowledged by the peer's TCP ─▶ sent, acknowledgement token   │
//!            │ give_up_late   forget_held_up, into the spool, or dropped                      │
//!            │ update_state   up, down                                                        │
//!            │ wait           for the queue, or for the socket                                │
//!            └──────────────────────────────────────┬────────────────────────────────────────┘
//!  queue closed, nothing waiting or unacknowledged  │  or drain deadline
//!                                                   ▼
//!                                                finish: close_notify, FIN
//! ```

mod careful;
mod late;

use std::{
    thread,
    time::{Duration, Instant},
};

use prometheus::local::LocalHistogram;
use sekiwake_bus::boot_now;
use sekiwake_record::Kind;
use sekiwake_runtime::{RateLimited, Scope, StopClock, Worker};
use sekiwake_sys::clock::wall_now_ns;
use tracing::{info, warn};

use self::late::STALLED_AFTER;
use super::{
    StreamError, StreamSettings, Tls,
    connection::{Broken, Connection},
    flight::{Filled, Flight},
    frame::Messages,
    link::Link,
    spool_policy::SpoolPolicy,
    spooling::{Opening, Spool},
};
use crate::{
    config::{address::ApprovedAddress, destination::Endpoint, registry::Registration, resolve::Resolution},
    metrics::{DestinationMetrics, DropReason, ErrorKind, SpoolMetrics, StreamMetrics},
    queue::{MAX_BATCHES, Outlet, Waited},
    rewrite::Rewriting,
    status::EndpointState,
};

/// The longest sleeps: with an idle connection, without one, and while acknowledgements or replay
/// are pending.
const IDLE: Duration = Duration::from_millis(100);
const RECONNECTING: Duration = Duration::from_millis(50);
const ACKNOWLEDGING: Duration = Duration::from_millis(20);
const REPLAYING: Duration = Duration::from_millis(5);

/// How soon it is checked again whether the group's lease is renewed.
const LAPSED_PAUSE: Duration = Duration::from_millis(5);

/// How often it is checked whether the peer still answers.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The longest time that a connection to a former address may take to end cleanly.
const LEAVING: Duration = Duration::from_secs(1);

/// The longest wait for the end of the last connection.
const GOODBYE: Duration = Duration::from_millis(200);

/// Maximum number of written and unacknowledged bytes of the stream.
const MAX_UNACKNOWLEDGED_BYTES: u64 = 8 * 1024 * 1024;

/// Maximum number of batches that are taken from the queue and not given to the connection. Their
/// bytes count towards the bound of the queue.
const MAX_WAITING: usize = 8192;

/// Maximum number of parts that are written before the thread does other work.
const PARTS_AT_ONCE: usize = 64;

/// How often a careful connection is looked after.
const CAREFUL: Duration = Duration::from_millis(5);

/// How long before the drain deadline a worker gives up the rest.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// The worker of one stream endpoint.
pub(crate) struct StreamWorker<B> {
    label: String,
    tls: Option<Tls>,
    outlet: Outlet<B>,
    address: ApprovedAddress,
    flight: Flight<B>,
    spool: SpoolPolicy,
    link: Link,
    /// The frames of one part.
    frames: Vec<u8>,
    metrics: DestinationMetrics,
    stream_metrics: StreamMetrics,
    latency: LocalHistogram,
    state: EndpointState,
    logs: Logs,
    /// Since when the queue is closed and empty.
    closed_at: Option<Instant>,
    /// The lease has expired, so nothing may be sent at the moment.
    is_lapsed: bool,
    /// When waiting batches were last checked for the group's positions.
    moved_group_on_at: Instant,
    /// The next part of a careful connection is one of the spool.
    spools_next: bool,
    /// When to give up on a stop, and which times do not count as waiting: the process was
    /// suspended, the lease had expired, or captures did not know the address yet.
    clock: StopClock,
}

/// Limits of the log lines of one endpoint.
#[derive(Default)]
struct Logs {
    connected: RateLimited,
    failed: RateLimited,
    rejected: RateLimited,
    stalled: RateLimited,
}

impl<B: AsRef<[u8]> + From<Vec<u8>>> StreamWorker<B> {
    pub(crate) fn new(
        settings: StreamSettings,
        outlet: Outlet<B>,
        resolution: Resolution,
        registration: Registration,
        metrics: DestinationMetrics,
        scope: &Scope,
    ) -> Result<StreamWorker<B>, StreamError> {
        let StreamSettings { host, port, label, tls, framing, spool, replay_rate, add_source } = settings;
        let rewriting = Rewriting::of(Kind::Syslog, add_source);
        let now = Instant::now();
        let endpoint = Endpoint { host, port };
        let failures = metrics.resolve_failures.clone();
        let address = ApprovedAddress::new(&endpoint, resolution, failures, registration)?;
        let opening = spool.map(|settings| Opening {
            settings,
            framing,
            replay_rate,
            metrics: SpoolMetrics::new(scope, &label),
            dropped: metrics.dropped.clone(),
        });
        let spool = SpoolPolicy::new(&label, opening, now)?;
        metrics.status.set(EndpointState::Unknown);
        Ok(StreamWorker {
            stream_metrics: StreamMetrics::new(scope, &label),
            label,
            tls,
            outlet,
            address,
            flight: Flight::new(Messages::new(rewriting), framing),
            spool,
            link: Link::new(now),
            frames: Vec::new(),
            latency: metrics.latency(),
            metrics,
            state: EndpointState::Unknown,
            logs: Logs::default(),
            closed_at: None,
            is_lapsed: false,
            moved_group_on_at: now,
            spools_next: false,
            clock: StopClock::new(STOP_MARGIN),
        })
    }

    /// Sends until the queue is closed and everything in it is done.
    pub(crate) fn run(mut self, worker: &Worker) {
        loop {
            worker.beat();
            let now = Instant::now();
            self.clock.observe(now);
            self.spool.open_locked(now);
            self.take_in();
            self.tend_link(now);
            self.send(now);
            self.settle(now);
            let over = self.give_up_late(worker, now);
            self.update_state(now);
            if self.closed_at.is_some() && self.flight.is_empty() && (over || !self.awaits_acknowledgement()) {
                return self.finish(worker);
            }
            self.wait(now);
        }
    }

    /// Takes the queued batches. It does not wait for more: under load the queue fills by itself.
    fn take_in(&mut self) {
        while self.flight.waiting() < self.most_waiting() {
            match self.outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => self.flight.take_in(queued),
                Waited::Nothing => return,
                Waited::Closed => {
                    self.closed_at.get_or_insert_with(Instant::now);
                    return;
                }
            }
        }
    }

    fn most_waiting(&self) -> usize {
        if self.address.is_unresolved() { MAX_BATCHES } else { MAX_WAITING }
    }

    /// Connects to the current address, continues handshakes, and checks that the peer is alive.
    fn tend_link(&mut self, now: Instant) {
        self.address.poll();
        if self.address.may_move_on() {
            self.move_on(now);
        }
        if self.link.connection.is_none()
            && self.link.retry_at <= now
            && !self.address.is_changing()
            && let Some(address) = self.address.current()
        {
            match Connection::begin(address, self.tls.as_ref(), now) {
                Ok(connection) => self.link.connection = Some(connection),
                Err(error) => return self.failed(&error, now),
            }
        }
        let Some(connection) = &mut self.link.connection else { return };
        let was_open = connection.is_open();
        let mut outcome = connection.advance(now);
        if outcome.is_ok() && now.duration_since(self.link.checked_at) >= CHECK_EVERY {
            self.link.checked_at = now;
            if was_open {
                outcome = connection.check_alive(now);
            }
        }
        if let Err(error) = outcome {
            return self.failed(&error, now);
        }
        if !was_open && connection.is_open() {
            if let Some(suppressed) = self.logs.connected.allow(now) {
                let address = connection.address();
                let tls = connection.security();
                info!(destination = self.label, %address, tls, suppressed, "connection established");
            }
            self.metrics.status.set_address(connection.address());
            self.stream_metrics.connections.inc();
            self.link.opened(now);
        }
        if self.link.update_trust(now) {
            self.address.works();
        }
    }

    /// The endpoint has a new address. Data on its way to the old one gets a little time to arrive.
    fn move_on(&mut self, now: Instant) {
        if self.link.is_open() {
            let leave_at = *self.link.leave_at.get_or_insert(now + LEAVING);
            if self.awaits_acknowledgement() && now < leave_at {
                return;
            }
        }
        self.disconnect();
        let has_failed = self.address.move_on();
        if !has_failed {
            self.link.retry_now(now);
        }
    }

    fn awaits_acknowledgement(&self) -> bool {
        self.flight.awaits_acknowledgement() || self.spool.spool().is_some_and(Spool::awaits_acknowledgement)
    }

    /// Ends the connection cleanly. Unacknowledged messages are sent again on the next one.
    fn disconnect(&mut self) {
        self.link.close();
        self.flight.broken();
        if let Some(spool) = self.spool.spool_mut() {
            spool.broken();
        }
    }

    /// Connecting failed, or the connection broke.
    fn failed(&mut self, error: &Broken, now: Instant) {
        let was_connected = self.link.is_open();
        let is_careful = self.link.is_careful();
        // A peer that closes a connection cleanly has read what its TCP acknowledged, because
        // otherwise TCP would reset it. A peer that closes a new connection may be a balancer
        // without a backend, which has discarded what it read.
        if matches!(error, Broken::Closed) && self.link.is_trusted() && !is_careful {
            self.settle(now);
        }
        let address = self.address.current();
        let is_ended = was_connected && error.kind() == ErrorKind::Closed;
        let is_suspect = is_ended && (is_careful || !self.link.is_trusted()) && self.suspect();
        let has_worked = was_connected && (self.link.is_trusted() || is_suspect);
        let question = self.certificate_question(error, was_connected);
        self.disconnect();
        self.reject_suspects(now);
        let retry_in = if !has_worked && self.address.try_another() {
            self.link.retry_at = now;
            Duration::ZERO
        } else if is_ended {
            self.link.retry_soon(is_careful && is_suspect, now)
        } else {
            self.link.retry_later(now)
        };
        self.change_state(EndpointState::Down, now);
        self.metrics.error(error.kind());
        let error = format!("{error}{question}");
        self.metrics.status.set_error(&error);
        if let Some(suppressed) = self.logs.failed.allow(now) {
            let destination = &*self.label;
            match was_connected {
                true => warn!(destination, ?address, %error, ?retry_in, suppressed, "connection lost"),
                false => {
                    warn!(destination, ?address, %error, ?retry_in, suppressed, "connection failed")
                }
            }
        }
    }

    /// A question to be appended to an error: some servers that get no client certificate, or one
    /// that they reject, end the connection without saying why, and with TLS 1.3 only after the
    /// handshake.
    fn certificate_question(&self, error: &Broken, was_connected: bool) -> String {
        // Errors of TLS name the remedy themselves.
        if self.link.is_trusted() || error.kind() != ErrorKind::Closed {
            return String::new();
        }
        let Some(question) = self.tls.as_ref().and_then(|tls| tls.files.question()) else { return String::new() };
        let when = if was_connected { ", right after the TLS handshake" } else { "" };
        format!("{when}: {question}")
    }

    /// Writes waiting messages, and beside them spooled ones, as far as the socket accepts them.
    fn send(&mut self, now: Instant) {
        self.is_lapsed = false;
        if self.link.leave_at.is_some() {
            self.link.is_blocked = false;
            return;
        }
        let mut handed_over = 0;
        let outcome = match self.link.is_careful() {
            true => self.write_one_part(now, &mut handed_over),
            false => self.write(now, &mut handed_over),
        };
        self.metrics.handed_over.inc_by(handed_over);
        self.latency.flush();
        if let Err(error) = outcome {
            self.failed(&error, now);
        }
    }

    fn write(&mut self, now: Instant, handed_over: &mut u64) -> Result<(), Broken> {
        let acknowledged = self.link.acknowledged;
        let Some(connection) = self.link.connection.as_mut().filter(|connection| connection.is_open()) else {
            return Ok(());
        };
        for _ in 0..PARTS_AT_ONCE {
            self.link.is_blocked = !connection.flush()?;
            self.link.is_full = connection.pushed() - acknowledged >= MAX_UNACKNOWLEDGED_BYTES;
            if self.link.is_blocked || self.link.is_full {
                return Ok(());
            }
            let filled = self.flight.fill(&mut self.frames, u64::MAX, boot_now(), handed_over);
            if filled == Filled::Part {
                let position = connection.push(&self.frames)?;
                let (captured_at_ns, retransmitted) = self.flight.given(position);
                observe(&mut self.latency, captured_at_ns);
                self.stream_metrics.retransmitted.inc_by(retransmitted);
                self.link.is_blocked = !connection.flush()?;
            }
            if filled == Filled::Lapsed {
                self.is_lapsed = true;
            }
            let mut replayed = false;
            // A stopping worker leaves the spool to the next start.
            if !self.link.is_blocked
                && self.closed_at.is_none()
                && let Some(spool) = self.spool.spool_mut()
                && let Some(sums) = spool.fill(&mut self.frames, u64::MAX, now)
            {
                let position = connection.push(&self.frames)?;
                spool.given(position, sums);
                replayed = true;
            }
            if filled != Filled::Part && !replayed {
                break;
            }
        }
        self.link.is_blocked = !connection.flush()?;
        Ok(())
    }

    /// Counts messages that the peer's TCP has acknowledged as sent, and releases them.
    fn settle(&mut self, now: Instant) {
        let waits = !self.flight.is_empty() || self.awaits_acknowledgement();
        self.link.update_progress(waits, now);
        if waits && self.counts_acknowledged(now) {
            let position = self.link.acknowledged;
            let sums = self.flight.acknowledged(position);
            self.metrics.sent_datagrams.inc_by(sums.messages);
            self.metrics.sent_bytes.inc_by(sums.bytes);
            self.metrics.dropped.add(DropReason::Empty, sums.empty);
            let mut sent = sums.messages;
            if let Some(spool) = self.spool.spool_mut() {
                let sums = spool.acknowledged(position, now);
                self.metrics.sent_datagrams.inc_by(sums.messages);
                self.metrics.sent_bytes.inc_by(sums.bytes);
                sent += sums.messages;
            }
            if sent > 0 {
                self.link.sent();
            }
        }
        self.release_done();
    }

    fn release_done(&mut self) {
        while let Some(queued) = self.flight.take_done() {
            self.outlet.release(&queued);
        }
    }

    fn update_state(&mut self, now: Instant) {
        let stalled = now.saturating_duration_since(self.link.progress_at) >= STALLED_AFTER;
        if !self.link.is_open() {
            // Before the first attempt has failed the state is unknown. Without an address there is
            // no attempt.
            if stalled && self.address.current().is_none() && !self.address.awaits_approval() {
                self.metrics.status.set_error(&"the name has not been resolved yet");
                self.change_state(EndpointState::Down, now);
            }
            return;
        }
        self.change_state(if stalled { EndpointState::Down } else { EndpointState::Up }, now);
    }

    fn change_state(&mut self, state: EndpointState, now: Instant) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.metrics.status.set(state);
        // Lost connections are logged where they fail.
        if state == EndpointState::Down && self.link.is_open() {
            let error = "connected, but not reading";
            self.metrics.status.set_error(&error);
            if let Some(suppressed) = self.logs.stalled.allow(now) {
                warn!(destination = &*self.label, error, suppressed, "destination is down");
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant) {
        if self.is_lapsed {
            return thread::sleep(LAPSED_PAUSE);
        }
        if self.link.is_careful()
            && let Some(connection) = &self.link.connection
            && (!self.flight.is_empty() || self.spool.spool().is_some_and(Spool::has_more))
        {
            return connection.wait(self.link.is_blocked, CAREFUL);
        }
        if self.link.is_open()
            && !self.link.is_held_up()
            && self.link.leave_at.is_none()
            && self.flight.longest_waiting().is_some()
        {
            // There is more to write.
            return;
        }
        let replays = self.spool.spool().is_some_and(Spool::has_more);
        let timeout = match &self.link.connection {
            None if self.address.current().is_none() => RECONNECTING,
            None => self.link.retry_at.saturating_duration_since(now).min(RECONNECTING),
            Some(connection) if !connection.is_open() => {
                return connection.wait(false, ACKNOWLEDGING);
            }
            Some(connection) if self.link.is_blocked => return connection.wait(true, RECONNECTING),
            Some(connection) if self.link.is_full => return connection.wait(false, ACKNOWLEDGING),
            Some(_) if replays => REPLAYING,
            Some(_) if self.awaits_acknowledgement() => {
                // Often while the peer makes progress, less often while it does not.
                let quiet = now.saturating_duration_since(self.link.progress_at) / 4;
                quiet.clamp(Duration::from_millis(1), ACKNOWLEDGING)
            }
            Some(_) => IDLE,
        };
        let full = self.flight.waiting() >= self.most_waiting();
        if self.closed_at.is_some() || full {
            match &self.link.connection {
                Some(connection) => connection.wait(false, timeout),
                None => thread::sleep(timeout),
            }
            return;
        }
        match self.outlet.wait(timeout) {
            Waited::Batch(queued) => self.flight.take_in(queued),
            Waited::Nothing => {}
            Waited::Closed => {
                self.closed_at.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Everything is done: the connection ends cleanly.
    fn finish(&mut self, worker: &Worker) {
        if let Some(mut connection) = self.link.take() {
            connection.finish();
            let until = Instant::now() + GOODBYE;
            while Instant::now() < until && connection.advance(Instant::now()).is_ok() {
                worker.beat();
                connection.wait(false, ACKNOWLEDGING);
            }
        }
        let datagrams = self.clock.left_to_group();
        if datagrams > 0 {
            info!(destination = self.label, datagrams, "drain deadline reached, unsent datagrams left to the group");
        }
    }
}

/// Observes how long ago messages were captured.
fn observe(latency: &mut LocalHistogram, captured_at_ns: &[u64]) {
    let now_ns = wall_now_ns();
    for captured_at_ns in captured_at_ns {
        latency.observe(now_ns.saturating_sub(*captured_at_ns) as f64 / 1e9);
    }
}
