//! The thread of one delivery: from the queue to the outbox, and from there to the other side or
//! into the spool.
//!
//! ```text
//!            ┌────────────────────────────────── run ──────────────────────────────────┐
//!            │ take_in     queue ─▶ decode ─▶ outbox                                    │
//!            │ settle      answer ─▶ sent, rejected, or sent again after a pause        │
//!            │ replay      spool ─▶ outbox                                              │
//!            │ request     outbox ─▶ sending thread                                     │
//!            │ give_up     outbox ─▶ spool, or dropped after 10 s                       │
//!            │ wait        for the queue, or for the answer                             │
//!            └─────────────────────────────────────────────────────────────────────────┘
//! ```

use std::{
    io,
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use prometheus::local::LocalHistogram;
use sekiwake_bus::{BootTime, Permission, boot_now};
use sekiwake_decode::Decoder;
use sekiwake_record::Kind;
use sekiwake_runtime::{RateLimited, StopClock, Worker};
use sekiwake_segments::LogError;
use sekiwake_sys::clock::wall_now_ns;
use tracing::{info, warn};

use super::{
    entries::Entries,
    outbox::{Done, GivenUp, Load, Next, Outbox, Pace, Part, Rejection, Token},
    sending::{Answer, Begun, Request, SendingThread, Sink},
    spool::{Spool, SpoolPlace},
};
use crate::{
    config::address::ApprovedAddress,
    metrics::{DestinationMetrics, DropReason, ErrorKind, SpoolMetrics},
    queue::{MAX_UNACKNOWLEDGED_TIME, Outlet, Queued, Waited, WaitedFor},
    status::EndpointState,
    stream::backoff::Backoff,
};

/// How long datagrams wait for others of the same request.
const LINGER: Duration = Duration::from_millis(200);

/// Waiting datagrams go into the spool after this time: while requests fail, while they are slow,
/// and once that has begun.
const SPOOL_FAILING_AFTER: Duration = Duration::from_millis(500);
const SPOOL_SLOW_AFTER: Duration = Duration::from_secs(1);
const SPOOL_EVERY: Duration = Duration::from_millis(50);

/// A queue of this size goes into the spool, before the queue is full, and before the group pauses
/// for it.
const SPOOL_QUEUE_BYTES: i64 = 12 << 20;

/// A request that has no answer for this long: the endpoint is down.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// A slower request is followed by smaller ones.
const SLOW: Duration = Duration::from_secs(2);

/// A quicker one is followed by larger ones, which take twice as long at most.
const QUICK: Duration = Duration::from_millis(500);

/// How often what waits is looked through for datagrams that have waited too long.
const GIVE_UP_EVERY: Duration = Duration::from_millis(50);

/// The pause after a request that cannot be begun, because an abandoned one is still running.
const BUSY: Duration = Duration::from_millis(100);

/// The pause after a request that was rejected, which is sent again in parts.
const AFTER_REJECTED: Duration = Duration::from_millis(5);

/// The longest pause that the other side may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The longest sleeps: usually, and while the group's lease has expired.
const IDLE: Duration = Duration::from_millis(100);
const LAPSED: Duration = Duration::from_millis(5);

/// The longest time that a replaced worker may take.
const REPLACED_AT_MOST: Duration = Duration::from_secs(10);

/// How long before the drain deadline a worker gives up the rest.
const STOP_MARGIN: Duration = Duration::from_millis(500);

impl<B> Token for Queued<B> {
    fn permission(&self, now: BootTime) -> Permission {
        self.parcel.permission(now)
    }

    fn leave_to_group(&self) -> bool {
        self.parcel.leave_to_group()
    }

    fn since(&self) -> Instant {
        self.since
    }
}

/// What a delivery needs.
pub(crate) struct DeliverySettings {
    pub(crate) kind: Kind,
    /// The value of the label `destination`.
    pub(crate) label: String,
    /// Set if rows are delivered.
    pub(crate) decoder: Option<Decoder>,
    /// The other side recognises records by their ids.
    pub(crate) needs_ids: bool,
    pub(crate) spool: Option<SpoolPlace>,
}

/// The worker of one delivery.
pub(crate) struct DeliveryWorker<B> {
    kind: Kind,
    label: String,
    decoder: Option<Decoder>,
    needs_ids: bool,
    outlet: Outlet<B>,
    /// `None` for a sink that finds its servers itself.
    address: Option<ApprovedAddress>,
    outbox: Outbox<Queued<B>>,
    spool: Option<Spool>,
    sending: SendingThread,
    flight: Flight,
    metrics: DestinationMetrics,
    latency: LocalHistogram,
    state: EndpointState,
    logs: Logs,
    closed_at: Option<Instant>,
    is_lapsed: bool,
    /// Why a request was rejected, until it is known which datagrams that concerns.
    rejected_why: Option<String>,
    /// Datagrams are going into the spool: the next ones follow soon.
    is_spooling: bool,
    give_up_at: Instant,
    phase: Phase,
    clock: StopClock,
}

/// How far the worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Delivering,
    /// It was replaced long ago: what it still has is given up.
    Outdated,
    /// The drain deadline is reached: what it still has is left to the group.
    Over,
}

/// The state of requests.
struct Flight {
    begun_at: Instant,
    /// The last request has failed.
    is_failing: bool,
    /// The other side rejects everything.
    is_rejecting: bool,
    retry_at: Instant,
    backoff: Backoff,
}

#[derive(Default)]
struct Logs {
    failed: RateLimited,
    rejected: RateLimited,
    stalled: RateLimited,
}

impl<B: AsRef<[u8]>> DeliveryWorker<B> {
    /// # Errors
    /// When the thread cannot be spawned.
    pub(crate) fn new(
        settings: DeliverySettings,
        outlet: Outlet<B>,
        address: Option<ApprovedAddress>,
        sink: Box<dyn Sink>,
        metrics: DestinationMetrics,
        spool_metrics: impl FnOnce() -> SpoolMetrics,
    ) -> Result<DeliveryWorker<B>, StartError> {
        let DeliverySettings { kind, label, decoder, needs_ids, spool } = settings;
        let now = Instant::now();
        let spool = match spool {
            Some(place) => {
                let dir = place.dir.clone();
                let spool = Spool::new(&label, place, spool_metrics(), metrics.dropped.clone(), now);
                Some(spool.map_err(|source| StartError::Spool { dir, source })?)
            }
            None => None,
        };
        metrics.status.set(EndpointState::Unknown);
        // What a delivery decodes it decodes here, so that it never lacks templates.
        metrics.status.set_quiet(true);
        Ok(DeliveryWorker {
            kind,
            sending: SendingThread::spawn("deliver", sink)?,
            label,
            decoder,
            needs_ids,
            outlet,
            address,
            outbox: Outbox::new(),
            spool,
            flight: Flight {
                begun_at: now,
                is_failing: false,
                is_rejecting: false,
                retry_at: now,
                backoff: Backoff::new(),
            },
            latency: metrics.latency(),
            metrics,
            state: EndpointState::Unknown,
            logs: Logs::default(),
            closed_at: None,
            is_lapsed: false,
            rejected_why: None,
            is_spooling: false,
            give_up_at: now,
            phase: Phase::Delivering,
            clock: StopClock::new(STOP_MARGIN),
        })
    }

    /// Delivers until the queue is closed and everything in it is done.
    ///
    /// # Panics
    /// When the sending thread has panicked.
    pub(crate) fn run(mut self, worker: &Worker) {
        loop {
            worker.beat();
            let now = Instant::now();
            self.clock.observe(now);
            if let Some(spool) = &mut self.spool {
                spool.open_locked(now);
            }
            self.tend_address(now);
            self.take_in();
            self.replay(now);
            self.update_phase(worker, now);
            if !self.request(now) {
                self.fail();
            }
            self.give_up(now);
            self.update_state(now);
            let is_over = self.phase == Phase::Over;
            if self.closed_at.is_some() && !self.outbox.has_live() && (is_over || !self.outbox.is_in_flight()) {
                return self.finish();
            }
            self.wait(now);
        }
    }

    fn update_phase(&mut self, worker: &Worker, now: Instant) {
        let is_replaced_long = |since| now.saturating_duration_since(since) >= REPLACED_AT_MOST;
        if self.clock.is_over(worker.deadline(), now) {
            self.phase = Phase::Over;
        } else if self.closed_at.is_some_and(is_replaced_long) {
            self.phase = Phase::Outdated;
        }
    }

    /// Ends the worker of a sending thread that has panicked. Whatever has no answer is left to the
    /// group or counted.
    fn fail(mut self) -> ! {
        self.outbox.forget_flight();
        let given_up = self.outbox.give_up(boot_now(), true, |_| true);
        self.count(given_up, DropReason::Shutdown);
        while let Some(queued) = self.outlet.take() {
            let datagrams = queued.records() as u64;
            match queued.leave_to_group() {
                true => self.metrics.handed_over.inc_by(datagrams),
                false => self.metrics.dropped.add(DropReason::Shutdown, datagrams),
            }
            self.outlet.release(&queued);
        }
        // A panic, so that what is queued from now on is not acknowledged either when it is
        // dropped.
        resume_unwind(Box::new(format!("the sending thread of {} has ended", self.label)))
    }

    fn tend_address(&mut self, now: Instant) {
        let mut awaits_approval = false;
        if let Some(address) = &mut self.address {
            address.poll();
            if address.may_move_on() {
                address.move_on();
                if let Some(current) = address.current() {
                    self.metrics.status.set_address(current);
                }
                self.flight.retry_at = now;
            }
            self.metrics.status.set_unresolved(address.is_unresolved());
            awaits_approval = address.awaits_approval();
        }
        if awaits_approval || self.is_lapsed || self.spool.as_ref().is_some_and(Spool::is_locked) {
            self.clock.exclude_until(now);
        }
    }

    fn take_in(&mut self) {
        while self.closed_at.is_none() && self.outbox.has_room() {
            match self.outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => self.take(queued),
                Waited::Nothing => return,
                Waited::Closed => self.closed_at = Some(Instant::now()),
            }
        }
    }

    fn take(&mut self, queued: Queued<B>) {
        let mut entries = Entries::default();
        if queued.parcel.is_synthetic() {
            // Templates that the decoder may lack. No device sent them now.
            if let Some(decoder) = &mut self.decoder {
                queued.selected().for_each(|record| decoder.decode(Some(self.kind), &record, |_| {}));
            }
        } else {
            let mut id = String::new();
            for (offset, record) in queued.selected_with_offsets() {
                id.clear();
                if self.needs_ids {
                    queued.parcel.write_id(offset, &mut id);
                }
                entries.push(self.kind, &record, &id, self.decoder.as_mut());
            }
        }
        if entries.len() == 0 {
            return self.outlet.release(&queued);
        }
        let is_unread = self.spool.as_ref().is_some_and(Spool::is_unread);
        self.outbox.offer(Load::queued(queued, entries), is_unread);
    }

    /// Reads from the spool what the window takes. A stopping worker leaves the spool to the next
    /// start.
    fn replay(&mut self, now: Instant) {
        if let Some(spool) = &mut self.spool {
            while self.closed_at.is_none()
                && self.outbox.has_room_in_window()
                && let Some(entries) = spool.read(now)
            {
                self.outbox.replay(Load::replayed(entries));
            }
            if spool.is_unread() {
                return;
            }
            if self.outbox.is_empty() {
                spool.commit_read(now);
            }
            if !self.flight.is_failing {
                self.is_spooling = false;
            }
        }
        self.outbox.caught_up();
    }

    /// Begins the next request, if it is time for one. `false`: the sending thread has ended.
    fn request(&mut self, now: Instant) -> bool {
        self.is_lapsed = false;
        if self.sending.has_ended {
            return false;
        }
        // What is sent at the end would not be waited for.
        if self.phase != Phase::Delivering {
            return true;
        }
        if self.outbox.is_in_flight() || now < self.flight.retry_at || !self.is_due(now) {
            return true;
        }
        let address = match &self.address {
            None => None,
            Some(address) => match address.current().filter(|_| !address.is_changing()) {
                None => return true,
                current => current,
            },
        };
        let mut given_up = GivenUp::new();
        let next = self.outbox.next(boot_now(), &mut given_up);
        self.count(given_up, DropReason::Shutdown);
        match next {
            Next::Nothing => true,
            Next::Lapsed => {
                self.is_lapsed = true;
                true
            }
            Next::Request(parts) => {
                self.flight.begun_at = now;
                if !self.flight.is_failing {
                    self.observe_latency(&parts);
                }
                match self.sending.begin(Request { parts, address }) {
                    Begun::Yes => true,
                    Begun::Busy => {
                        self.outbox.failed(false);
                        self.flight.retry_at = now + BUSY;
                        true
                    }
                    Begun::Ended => false,
                }
            }
        }
    }

    /// Whether what waits is enough for a request, or has waited long enough.
    fn is_due(&self, now: Instant) -> bool {
        let is_closing = self.closed_at.is_some();
        if is_closing && !self.outbox.has_live() {
            return false;
        }
        let is_old = |since| now.saturating_duration_since(since) >= LINGER;
        is_closing
            || self.outbox.has_spooled()
            || self.outbox.is_full_request()
            || self.outbox.oldest_live().is_none_or(is_old)
    }

    fn observe_latency(&mut self, parts: &[Part]) {
        let now_ns = wall_now_ns();
        for part in parts {
            for entry in part.entries.range(part.range.clone()).filter(|entry| entry.sequence == 0) {
                self.latency.observe(now_ns.saturating_sub(entry.record.captured_at_ns) as f64 / 1e9);
            }
        }
        self.latency.flush();
    }

    /// What the other side says to the request in flight.
    fn settle(&mut self, answer: Answer, now: Instant) {
        let took = now.saturating_duration_since(self.flight.begun_at);
        match answer {
            Answer::Accepted { rejected, why } => {
                self.works(now);
                let pace = match took {
                    took if took >= SLOW => Pace::Slow,
                    took if took >= QUICK => Pace::Fair,
                    _ => Pace::Quick,
                };
                let done = self.outbox.accepted(pace);
                let rejected = rejected + done.rejected;
                if rejected > 0 {
                    let why = why.or_else(|| self.rejected_why.take()).unwrap_or_default();
                    self.log_rejected(rejected, &why, now);
                }
                self.done(done, rejected, now);
            }
            Answer::Rejected { why } => match self.outbox.rejected() {
                Rejection::Searching => {
                    self.address_works();
                    self.flight.retry_at = now + AFTER_REJECTED;
                    self.rejected_why = Some(why);
                }
                Rejection::Everything => {
                    self.flight.is_rejecting = true;
                    self.failed(ErrorKind::Answer, &why, None, now);
                }
            },
            Answer::Failed { kind, why, after, is_too_slow } => {
                self.outbox.failed(is_too_slow);
                self.failed(kind, &why, after, now);
            }
        }
    }

    fn address_works(&mut self) {
        if let Some(address) = &mut self.address {
            address.works();
        }
    }

    fn works(&mut self, now: Instant) {
        self.address_works();
        self.flight.is_failing = false;
        self.flight.is_rejecting = false;
        self.flight.retry_at = now;
        self.flight.backoff.reset();
        self.change_state(EndpointState::Up);
    }

    fn done(&mut self, done: Done<Queued<B>>, rejected: u64, now: Instant) {
        let spooled = match (&mut self.spool, done.commit) {
            (Some(spool), Some(next)) => spool.commit(next, done.spooled, now),
            _ => done.spooled,
        };
        let datagrams = done.live + spooled;
        let rejected = rejected.min(datagrams);
        self.metrics.sent_datagrams.inc_by(datagrams - rejected);
        self.metrics.dropped.add(DropReason::Rejected, rejected);
        if rejected < datagrams {
            self.metrics.sent_bytes.inc_by(done.bytes);
        }
        done.released.iter().for_each(|queued| self.outlet.release(queued));
    }

    fn log_rejected(&mut self, datagrams: u64, why: &str, now: Instant) {
        self.metrics.error(ErrorKind::Answer);
        self.metrics.status.set_error(&why);
        if let Some(suppressed) = self.logs.rejected.allow(now) {
            warn!(destination = self.label, datagrams, why, suppressed, "records rejected for good, dropped");
        }
    }

    fn failed(&mut self, kind: ErrorKind, why: &str, after: Option<Duration>, now: Instant) {
        let is_network = kind != ErrorKind::Answer;
        let retry_in = if is_network && self.address.as_mut().is_some_and(ApprovedAddress::try_another) {
            Duration::ZERO
        } else {
            let pause = self.flight.backoff.pause();
            after.map_or(pause, |after| after.max(pause)).min(LONGEST_PAUSE)
        };
        self.flight.is_failing = true;
        self.flight.retry_at = now + retry_in;
        self.change_state(EndpointState::Down);
        self.metrics.error(kind);
        self.metrics.status.set_error(&why);
        if let Some(suppressed) = self.logs.failed.allow(now) {
            warn!(destination = self.label, error = why, ?retry_in, suppressed, "delivery failed");
        }
    }

    /// Moves what has waited too long into the spool, or drops it; all of it at the end.
    fn give_up(&mut self, now: Instant) {
        let is_over = self.phase == Phase::Over;
        let ends_now = self.phase != Phase::Delivering;
        if self.is_spool_due(ends_now, now) {
            self.put_into_spool(now);
        }
        if !ends_now && (now < self.give_up_at || self.spool.as_ref().is_some_and(|spool| spool.is_usable(now))) {
            return;
        }
        self.give_up_at = now + GIVE_UP_EVERY;
        let reason = if is_over {
            DropReason::Shutdown
        } else if self.address.as_ref().is_some_and(ApprovedAddress::is_unresolved) {
            DropReason::Unresolved
        } else if self.outbox.has_suspects() || self.flight.is_rejecting {
            DropReason::Rejected
        } else if self.outbox.is_in_flight() {
            DropReason::Stalled
        } else if self.flight.is_failing {
            DropReason::Disconnected
        } else {
            DropReason::Expired
        };
        if ends_now {
            // What has no answer may not have arrived.
            self.outbox.forget_flight();
        }
        let clock = &self.clock;
        let is_late = |since| clock.waiting_since(since) + MAX_UNACKNOWLEDGED_TIME <= now;
        let is_given_up = |queued: &Queued<B>| ends_now || queued.parcel.may_expire() && is_late(queued.since());
        let given_up = self.outbox.give_up(boot_now(), is_over, is_given_up);
        if is_over {
            self.clock.leave_to_group(given_up.left);
        }
        self.count(given_up, reason);
    }

    fn is_spool_due(&self, ends_now: bool, now: Instant) -> bool {
        let Some(spool) = self.spool.as_ref().filter(|spool| spool.is_usable(now)) else { return false };
        let Some(oldest) = self.outbox.oldest_live() else { return false };
        let waited = now.saturating_duration_since(self.clock.waiting_since(oldest));
        let is_slow =
            self.outbox.is_in_flight() && now.saturating_duration_since(self.flight.begun_at) >= SPOOL_FAILING_AFTER;
        let limit = if self.is_spooling || spool.is_unread() {
            SPOOL_EVERY
        } else if self.flight.is_failing {
            SPOOL_FAILING_AFTER
        } else {
            SPOOL_SLOW_AFTER
        };
        let is_filling_up = self.outlet.used_bytes() >= SPOOL_QUEUE_BYTES && (self.flight.is_failing || is_slow);
        let is_closing = self.closed_at.is_some() && (self.flight.is_failing || self.outbox.has_spooled());
        ends_now || waited >= limit || is_filling_up || is_closing
    }

    fn put_into_spool(&mut self, now: Instant) {
        let mut given_up = GivenUp::new();
        let (parts, in_window) = self.outbox.spoolable(boot_now(), &mut given_up);
        if let Some(spool) = self.spool.as_mut().filter(|_| !parts.is_empty())
            && let Some(first) = spool.put(&parts, in_window, now)
        {
            let loads = parts.len();
            for queued in self.outbox.spooled(loads, first) {
                self.outlet.release(&queued);
            }
            self.is_spooling = true;
        }
        self.count(given_up, DropReason::Shutdown);
    }

    fn count(&mut self, given_up: GivenUp<Queued<B>>, reason: DropReason) {
        self.metrics.handed_over.inc_by(given_up.left);
        self.metrics.dropped.add(reason, given_up.dropped);
        given_up.released.iter().for_each(|queued| self.outlet.release(queued));
    }

    fn update_state(&mut self, now: Instant) {
        let is_stalled =
            self.outbox.is_in_flight() && now.saturating_duration_since(self.flight.begun_at) >= STALLED_AFTER;
        if is_stalled && self.state != EndpointState::Down {
            let error = "no answer to a request";
            self.metrics.status.set_error(&error);
            if let Some(suppressed) = self.logs.stalled.allow(now) {
                warn!(destination = self.label, error, suppressed, "destination is down");
            }
            self.change_state(EndpointState::Down);
        }
        let is_unresolved = self.address.as_ref().is_some_and(ApprovedAddress::is_unresolved);
        if is_unresolved && self.state != EndpointState::Down && self.outbox.has_live() {
            self.metrics.status.set_error(&"the name has not been resolved yet");
            self.change_state(EndpointState::Down);
        }
    }

    fn change_state(&mut self, state: EndpointState) {
        if self.state != state {
            self.state = state;
            self.metrics.status.set(state);
        }
    }

    /// Whether the next request only waits for its time.
    fn may_request(&self) -> bool {
        self.phase == Phase::Delivering
            && self.outbox.has_next()
            && !self.outbox.is_in_flight()
            && self.address.as_ref().is_none_or(|address| address.current().is_some() && !address.is_changing())
    }

    /// Waits for the queue, for the answer, or for the time of the next step.
    fn wait(&mut self, now: Instant) {
        if self.is_lapsed {
            return thread::sleep(LAPSED);
        }
        let until = |at: Instant| at.saturating_duration_since(now);
        let mut timeout = IDLE;
        if !self.outbox.is_empty() {
            if self.is_spooling {
                timeout = SPOOL_EVERY;
            }
            if self.may_request() {
                let linger = self.outbox.oldest_live().map_or(now, |since| since + LINGER);
                let is_full = self.outbox.is_full_request() || self.outbox.has_spooled() || self.closed_at.is_some();
                let due = self.flight.retry_at.max(if is_full { now } else { linger });
                timeout = timeout.min(until(due)).max(Duration::from_millis(1));
            }
        }
        let takes = self.closed_at.is_none() && self.outbox.has_room();
        let answers = &self.sending.answers;
        let answer = if takes {
            match self.outlet.wait_or(answers, timeout) {
                WaitedFor::Queue(Waited::Batch(queued)) => return self.take(queued),
                WaitedFor::Queue(Waited::Closed) => {
                    self.closed_at = Some(Instant::now());
                    return;
                }
                WaitedFor::Queue(Waited::Nothing) => return,
                WaitedFor::Other(answer) => answer,
            }
        } else {
            match answers.recv_timeout(timeout) {
                Ok(answer) => Some(answer),
                Err(error) if error.is_timeout() => return,
                Err(_) => None,
            }
        };
        let now = Instant::now();
        match answer {
            Some(answered) if self.outbox.is_in_flight() && self.sending.is_current(&answered) => {
                self.settle(answered.answer, now);
            }
            Some(_) => {}
            None => self.sending.has_ended = true,
        }
    }

    fn finish(&mut self) {
        let datagrams = self.clock.left_to_group();
        if datagrams > 0 {
            info!(destination = self.label, datagrams, "drain deadline reached, unsent datagrams left to the group");
        }
    }
}

/// Why a delivery cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A thread cannot be spawned.
    #[error("cannot spawn a thread: {0}")]
    Thread(#[from] io::Error),
    /// The spool cannot be opened.
    #[error("cannot open the spool {}: {source}", dir.display())]
    Spool {
        /// Its directory.
        dir: std::path::PathBuf,
        /// The cause.
        source: LogError,
    },
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use crossbeam_channel::bounded;
    use sekiwake_bus::Transport as Carrier;
    use sekiwake_runtime::{Ending, Scope};
    use sekiwake_testkit::{role::TestRole, wait::wait_for};

    use super::*;
    use crate::{
        config::{
            destination::{Endpoint, Host},
            registry::Registry,
            resolve::Resolution,
        },
        queue::{Intake, queue},
        routing::selection::Selection,
        testing::batch,
    };

    const PATIENCE: Duration = Duration::from_secs(60);

    /// The other side as a function.
    struct Function<F>(F);

    impl<F: FnMut(&Request) -> Answer + Send + 'static> Sink for Function<F> {
        fn send(&mut self, request: &Request) -> Answer {
            (self.0)(request)
        }
    }

    /// Starts a worker whose other side answers like this.
    fn start(scope: &Scope, send: impl FnMut(&Request) -> Answer + Send + 'static) -> Intake<Vec<u8>> {
        let metrics = DestinationMetrics::new(scope, "test");
        let (intake, outlet) = queue(metrics.queue_records.clone(), metrics.queue_bytes.clone());
        let endpoint = Endpoint { host: Host::Address([127, 0, 0, 1].into()), port: 4318 };
        let registration = Registry::open().register(Carrier::Tcp);
        let resolution = Resolution::default();
        let address =
            ApprovedAddress::new(&endpoint, resolution, metrics.resolve_failures.clone(), registration).unwrap();
        let settings = DeliverySettings {
            kind: Kind::Syslog,
            label: "test".to_owned(),
            decoder: None,
            needs_ids: false,
            spool: None,
        };
        let spool_metrics = || unreachable!("it has no spool");
        let sink = Box::new(Function(send));
        let worker = DeliveryWorker::new(settings, outlet, Some(address), sink, metrics, spool_metrics).unwrap();
        scope
            .spawn("deliver test", move |thread| {
                worker.run(thread);
                Ok(())
            })
            .unwrap();
        intake
    }

    fn offer(intake: &mut Intake<Vec<u8>>, batches: usize) {
        for _ in 0..batches {
            assert!(intake.offer(&batch(&[b"a", b"b"]), Selection::All, Instant::now()));
        }
        intake.flush();
    }

    fn dropped(role: &TestRole, reason: &str) -> f64 {
        role.metric("sekiwake_forward_dropped_datagrams_total", &[&format!("\"{reason}\"")])
    }

    #[test]
    fn panic_of_the_sending_thread_is_counted_and_ends_the_process() {
        let role = TestRole::start("5s");
        let (release, released) = bounded::<()>(1);
        let mut intake = start(&role.scope, move |_| {
            let _ = released.recv_timeout(PATIENCE);
            panic!("on purpose")
        });
        offer(&mut intake, 10);
        release.send(()).unwrap();
        wait_for("all drops", PATIENCE, || dropped(&role, "shutdown") == 20.0).unwrap();
        wait_for("the end", PATIENCE, || role.scope.stop().stopping()).unwrap();
        drop(intake);
        assert!(matches!(role.stop(), Ending::Failed));
    }

    #[test]
    fn drain_deadline_with_a_backlog_counts_all_of_it() {
        let role = TestRole::start("2s");
        let (hold, held) = bounded::<()>(1);
        let mut intake = start(&role.scope, move |_| {
            let _ = held.recv_timeout(PATIENCE);
            Answer::Accepted { rejected: 0, why: None }
        });
        // More than the window and what waits behind it.
        let large = batch(&[&[0; 60_000][..]; 16]);
        for _ in 0..30 {
            assert!(intake.offer(&large, Selection::All, Instant::now()));
        }
        intake.flush();
        role.request_stop();
        wait_for("all drops", PATIENCE, || dropped(&role, "shutdown") == 480.0).unwrap();
        drop(intake);
        assert!(matches!(role.stop(), Ending::Done));
        drop(hold);
    }

    #[test]
    fn rejection_of_everything_is_an_outage() {
        let role = TestRole::start("1s");
        let is_mended = Arc::new(Mutex::new(false));
        let mended = Arc::clone(&is_mended);
        let mut intake = start(&role.scope, move |_| match *mended.lock().unwrap() {
            true => Answer::Accepted { rejected: 0, why: None },
            false => Answer::Rejected { why: "status 400 no such tenant".to_owned() },
        });
        offer(&mut intake, 100);
        let errors = || role.metric("sekiwake_forward_errors_total", &["\"answer\""]);
        wait_for("two outages", PATIENCE, || errors() >= 2.0).unwrap();
        assert_eq!(dropped(&role, "rejected"), 0.0);
        *is_mended.lock().unwrap() = true;
        // On a busy machine some have waited for too long by now.
        let ended = || {
            let names = ["sekiwake_forward_sent_datagrams_total", "sekiwake_forward_dropped_datagrams_total"];
            names.iter().map(|name| role.metric(name, &[])).sum::<f64>()
        };
        wait_for("all", PATIENCE, || ended() == 200.0).unwrap();
        assert_eq!(dropped(&role, "rejected"), 0.0);
        drop(intake);
        role.stop();
    }
}
