//! The thread of one stream destination. Whatever happens to the destination happens here, and nowhere else.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus::local::LocalHistogram;
use rustix::io::Errno;
use sekiwake_bus::{Permission, boot_now};
use sekiwake_runtime::{RateLimited, Scope, Worker};
use sekiwake_segments::LogError;
use tracing::{info, warn};

use super::{
    StreamError, StreamSettings, Tls,
    backoff::Backoff,
    connection::{Broken, Connection},
    flight::{Filled, Flight},
    frame::Messages,
    place::Place,
    spooling::{Opening, Spool},
};
use crate::{
    health::State,
    metrics::{DestinationMetrics, DropReason, ErrorKind, SpoolMetrics, StreamMetrics},
    queue::{Outlet, Queued, Waited},
    registry::Registration,
    resolve::Resolution,
    rewrite::Rewriting,
};

/// The longest sleeps: with a connection to watch, without one, and while something may be acknowledged or replayed.
const IDLE: Duration = Duration::from_millis(100);
const RECONNECTING: Duration = Duration::from_millis(50);
const ACKNOWLEDGING: Duration = Duration::from_millis(20);
const REPLAYING: Duration = Duration::from_millis(5);

/// How soon it is asked again whether the group's lease has come back.
const LAPSED_PAUSE: Duration = Duration::from_millis(5);

/// How often it is looked whether the peer still answers.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(1);

/// How long a connection must have lasted before its acknowledgements are believed.
const TRUSTED_AFTER: Duration = Duration::from_millis(500);

/// A destination that takes nothing for so long although something waits is not up.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// How long a connection to an address that is no longer the destination's may take to end in order.
const LEAVING: Duration = Duration::from_secs(1);

/// How long the end of the last connection is waited for.
const GOODBYE: Duration = Duration::from_millis(200);

/// The most that may be written and not acknowledged, bytes of the stream.
const MAX_UNACKNOWLEDGED: u64 = 8 * 1024 * 1024;

/// The most batches that are held here and not given to the connection; what they hold counts into the queue's bound.
const MAX_WAITING: usize = 8192;

/// Parts that are written before other things are looked at.
const PARTS_AT_ONCE: usize = 64;

/// What waits for so long goes into the spool, where there is one; when that has begun, in groups, for each waits for the disk once.
const SPOOL_AFTER: Duration = Duration::from_millis(500);
const SPOOL_EVERY: Duration = Duration::from_millis(50);

/// When the queue holds so much, it goes into the spool before the queue is full, and before the group holds back for it.
const SPOOL_BYTES: i64 = 12 * 1024 * 1024;

/// The most messages that go into the spool in one go.
const SPOOL_AT_ONCE: u64 = 32_768;

/// A longer time between two looks at the clock than any pause here, several times: this process was stopped, or starved.
const STOPPED_FOR: Duration = Duration::from_millis(500);

/// How long before the role's deadline a worker gives up what is left. Where there is little time it is the last quarter of it.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// One stream destination's worker, and all it knows.
pub(crate) struct StreamWorker<B> {
    label: String,
    tls: Option<Tls>,
    outlet: Outlet<B>,
    place: Place,
    flight: Flight<B>,
    spool: Option<Spool>,
    /// A spool that another worker has not given up yet.
    awaited: Option<Opening>,
    link: Link,
    /// The frames of one part.
    frames: Vec<u8>,
    metrics: DestinationMetrics,
    of_streams: StreamMetrics,
    latency: LocalHistogram,
    state: State,
    connected_log: RateLimited,
    failed_log: RateLimited,
    stalled_log: RateLimited,
    spool_log: RateLimited,
    try_spool_at: Instant,
    /// The queue's giver is gone and everything is taken.
    closed: bool,
    /// Nothing may be sent for the moment: the lease has run out.
    lapsed: bool,
    /// What waits goes into the spool as soon as it comes.
    spooling: bool,
    /// When what is left is given up; `None` until it is time to stop.
    give_up_at: Option<Instant>,
    /// When the clock was last looked at.
    seen_at: Option<Instant>,
    /// Until then nothing could be sent for reasons of our own: the process was stopped, the lease had run out, or captures did
    /// not know the address yet. What has waited until then has its whole time before it.
    resumed_at: Option<Instant>,
    /// Datagrams that were not sent when the time to stop was up, and that the group's next owner is given.
    left_to_group: u64,
}

/// The connection, and what is known about connecting.
struct Link {
    connection: Option<Connection>,
    opened_at: Option<Instant>,
    /// Its acknowledgements are believed.
    trusted: bool,
    /// The socket takes no more for the moment.
    blocked: bool,
    /// So much is not acknowledged that no more is written.
    full: bool,
    /// When the connection ends at the latest, because the destination has another address.
    leave_at: Option<Instant>,
    acknowledged: u64,
    written: u64,
    /// When something was last taken, or nothing waited.
    progress_at: Instant,
    looked_around_at: Instant,
    retry_at: Instant,
    backoff: Backoff,
}

impl Link {
    fn new(now: Instant) -> Link {
        Link {
            connection: None,
            opened_at: None,
            trusted: false,
            blocked: false,
            full: false,
            leave_at: None,
            acknowledged: 0,
            written: 0,
            progress_at: now,
            looked_around_at: now,
            retry_at: now,
            backoff: Backoff::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_open)
    }

    /// Whether the peer does not read as fast as it is written to.
    fn is_held_up(&self) -> bool {
        self.blocked || self.full
    }

    fn take(&mut self) -> Option<Connection> {
        (self.opened_at, self.trusted, self.leave_at) = (None, false, None);
        (self.blocked, self.full) = (false, false);
        (self.acknowledged, self.written) = (0, 0);
        self.connection.take()
    }
}

impl<B: AsRef<[u8]>> StreamWorker<B> {
    pub(crate) fn new(
        settings: StreamSettings,
        outlet: Outlet<B>,
        resolution: Resolution,
        registration: Registration,
        metrics: DestinationMetrics,
        scope: &Scope,
    ) -> Result<StreamWorker<B>, StreamError> {
        let StreamSettings { host, port, label, tls, spool, replay_rate, add_source } = settings;
        let rewriting = add_source.then_some(Rewriting { add_source });
        let now = Instant::now();
        let place = Place::new(&host, port, resolution, metrics.resolve_failures.clone(), registration)?;
        let mut awaited = None;
        let spool = match spool {
            None => None,
            Some(settings) => {
                let (of_spool, dropped) = (SpoolMetrics::new(scope, &label), metrics.dropped.clone());
                let opening = Opening { settings, replay_rate, of_spool, dropped };
                match opening.open(&label, now) {
                    Ok(spool) => Some(spool),
                    // The worker that this one replaces still has it.
                    Err(LogError::Locked(_)) => {
                        awaited = Some(opening);
                        None
                    }
                    Err(source) => return Err(StreamError::Spool { dir: opening.settings.dir, source }),
                }
            }
        };
        metrics.standing.set(State::Unknown);
        Ok(StreamWorker {
            of_streams: StreamMetrics::new(scope, &label),
            label,
            tls,
            outlet,
            place,
            flight: Flight::new(Messages::new(rewriting)),
            spool,
            awaited,
            link: Link::new(now),
            frames: Vec::new(),
            latency: metrics.latency(),
            metrics,
            state: State::Unknown,
            connected_log: RateLimited::default(),
            failed_log: RateLimited::default(),
            stalled_log: RateLimited::default(),
            spool_log: RateLimited::default(),
            try_spool_at: now + LOOK_AROUND_EVERY,
            closed: false,
            lapsed: false,
            spooling: false,
            give_up_at: None,
            seen_at: None,
            resumed_at: None,
            left_to_group: 0,
        })
    }

    /// Sends until the queue is closed and everything in it is done.
    pub(crate) fn run(mut self, worker: &Worker) {
        loop {
            worker.beat();
            let now = Instant::now();
            self.see(now);
            self.open_awaited_spool(now);
            self.take_in();
            self.tend_connection(now);
            self.send(now);
            self.settle(now);
            let over = self.give_up_late(worker, now);
            self.tell_state(now);
            if self.closed && self.flight.is_empty() && (over || !self.awaits_acknowledgement()) {
                return self.finish(worker);
            }
            self.wait(now);
        }
    }

    fn open_awaited_spool(&mut self, now: Instant) {
        let Some(opening) = self.awaited.as_ref().filter(|_| self.try_spool_at <= now) else { return };
        self.try_spool_at = now + LOOK_AROUND_EVERY;
        match opening.open(&self.label, now) {
            Ok(spool) => (self.spool, self.awaited) = (Some(spool), None),
            Err(error) => {
                if let Some(suppressed) = self.spool_log.allow(now) {
                    warn!(destination = self.label, %error, suppressed, "the spool cannot be opened yet");
                }
            }
        }
    }

    /// Takes what is queued. It does not wait for more: under load there is more by itself.
    fn take_in(&mut self) {
        while self.flight.waiting() < MAX_WAITING {
            match self.outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => self.flight.take_in(queued),
                Waited::Nothing => return,
                Waited::Closed => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// Sees to it that there is a connection to where the destination is.
    fn tend_connection(&mut self, now: Instant) {
        if self.place.may_move() {
            self.move_on(now);
        }
        if self.link.connection.is_none()
            && self.link.retry_at <= now
            && let Some(address) = self.place.current()
        {
            match Connection::begin(address, self.tls.as_ref(), now) {
                Ok(connection) => self.link.connection = Some(connection),
                Err(error) => return self.failed(&error, now),
            }
        }
        let Some(connection) = &mut self.link.connection else { return };
        let was_open = connection.is_open();
        let mut outcome = connection.advance(now);
        if outcome.is_ok() && now.duration_since(self.link.looked_around_at) >= LOOK_AROUND_EVERY {
            self.link.looked_around_at = now;
            if was_open {
                outcome = connection.check_alive(now);
            }
        }
        if let Err(error) = outcome {
            return self.failed(&error, now);
        }
        if !was_open && connection.is_open() {
            if let Some(suppressed) = self.connected_log.allow(now) {
                let (destination, address, tls) = (&*self.label, connection.address(), connection.security());
                info!(destination, %address, tls, suppressed, "connected");
            }
            self.of_streams.connections.inc();
            (self.link.opened_at, self.link.progress_at) = (Some(now), now);
        }
        if !self.link.trusted && self.link.opened_at.is_some_and(|at| now.duration_since(at) >= TRUSTED_AFTER) {
            self.link.trusted = true;
            self.link.backoff.reset();
        }
    }

    /// The destination has another address: what is on its way to the old one arrives there, within reason.
    fn move_on(&mut self, now: Instant) {
        if self.link.is_open() {
            let leave_at = *self.link.leave_at.get_or_insert(now + LEAVING);
            if self.awaits_acknowledgement() && now < leave_at {
                return;
            }
        }
        self.disconnect();
        self.place.move_on();
        self.link.retry_at = now;
        self.link.backoff.reset();
    }

    fn awaits_acknowledgement(&self) -> bool {
        self.flight.awaits_acknowledgement() || self.spool.as_ref().is_some_and(Spool::awaits_acknowledgement)
    }

    /// Ends the connection in order. What is not acknowledged is sent again on the next one.
    fn disconnect(&mut self) {
        if let Some(mut connection) = self.link.take() {
            connection.finish();
        }
        self.flight.broken();
        if let Some(spool) = &mut self.spool {
            spool.broken();
        }
    }

    /// There is no connection, or it is no more.
    fn failed(&mut self, error: &Broken, now: Instant) {
        // A peer that ends a connection in order has read what it acknowledged, or its TCP would have reset it.
        if matches!(error, Broken::Closed) {
            self.link.trusted = true;
            if self.settle(now) > 0 {
                self.link.backoff.reset();
            }
        }
        if let Some(kind) = kind_of(error) {
            self.metrics.error(kind);
        }
        let address = self.place.current();
        let was_connected = self.link.is_open();
        self.disconnect();
        let pause = self.link.backoff.pause();
        self.link.retry_at = now + pause;
        self.change_state(State::Down, now);
        if let Some(suppressed) = self.failed_log.allow(now) {
            let (destination, retry_in) = (&*self.label, pause);
            match was_connected {
                true => warn!(destination, ?address, %error, ?retry_in, suppressed, "the connection is lost"),
                false => {
                    warn!(destination, ?address, %error, ?retry_in, suppressed, "cannot connect to the destination")
                }
            }
        }
    }

    /// Writes what waits, and beside it what is in the spool, as far as the socket takes it.
    fn send(&mut self, now: Instant) {
        self.lapsed = false;
        if self.link.leave_at.is_some() {
            return;
        }
        let mut handed_over = 0;
        let outcome = self.write(now, &mut handed_over);
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
            self.link.blocked = !connection.flush()?;
            self.link.full = connection.pushed() - acknowledged >= MAX_UNACKNOWLEDGED;
            if self.link.blocked || self.link.full {
                return Ok(());
            }
            let filled = self.flight.fill(&mut self.frames, boot_now(), handed_over);
            if filled == Filled::Part {
                let position = connection.push(&self.frames)?;
                let (captured_at_ns, repeated) = self.flight.given(position);
                self.of_streams.repeated.inc_by(repeated);
                self.link.blocked = !connection.flush()?;
                let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
                for captured_at_ns in captured_at_ns {
                    self.latency.observe(now_ns.saturating_sub(*captured_at_ns) as f64 / 1e9);
                }
            }
            if filled == Filled::Lapsed {
                self.lapsed = true;
            }
            let mut replayed = false;
            // One that stops leaves the spool to its next start.
            if !self.link.blocked
                && !self.closed
                && let Some(spool) = &mut self.spool
                && let Some((messages, bytes)) = spool.fill(&mut self.frames, now)
            {
                let position = connection.push(&self.frames)?;
                spool.given(position, messages, bytes);
                replayed = true;
            }
            if filled != Filled::Part && !replayed {
                break;
            }
        }
        self.link.blocked = !connection.flush()?;
        Ok(())
    }

    /// Releases what the peer's TCP has acknowledged, and says how many messages that were.
    fn settle(&mut self, now: Instant) -> u64 {
        let mut settled = 0;
        let waits = !self.flight.is_empty() || self.awaits_acknowledgement();
        if let Some(connection) = self.link.connection.as_ref().filter(|connection| connection.is_open()) {
            let (acknowledged, written) = (connection.acknowledged(), connection.written());
            if !waits || acknowledged > self.link.acknowledged || written > self.link.written {
                self.link.progress_at = now;
            }
            (self.link.acknowledged, self.link.written) = (acknowledged, written);
        }
        if self.link.trusted && waits {
            let position = self.link.acknowledged;
            let sums = self.flight.acknowledged(position);
            self.metrics.sent_datagrams.inc_by(sums.messages);
            self.metrics.sent_bytes.inc_by(sums.bytes);
            self.metrics.dropped.add(DropReason::Empty, sums.empty);
            if let Some(spool) = &mut self.spool {
                let (messages, bytes) = spool.acknowledged(position, now);
                self.metrics.sent_datagrams.inc_by(messages);
                self.metrics.sent_bytes.inc_by(bytes);
                settled += messages;
            }
            settled += sums.messages;
        }
        self.release_done();
        settled
    }

    /// Takes care of what waits too long, or of everything when the time to stop is up: into the spool, or else it is dropped.
    /// Says whether the time is up.
    fn give_up_late(&mut self, worker: &Worker, now: Instant) -> bool {
        let boot_now = boot_now();
        let lapsed = |queued: &Queued<B>| queued.parcel.permission(boot_now) == Permission::Lapsed;
        if self.place.awaits_approval() || self.lapsed || self.flight.longest_waiting().is_some_and(lapsed) {
            self.resumed_at = Some(now);
        }
        let over = self.is_over(worker, now);
        // One that was replaced by another waits no longer for a peer that does not read than any message waits.
        let in_vain =
            self.closed && self.link.is_open() && now.saturating_duration_since(self.link.progress_at) >= STALLED_AFTER;
        if (over || in_vain) && !self.flight.is_empty() {
            // What was written and is not acknowledged may not have arrived.
            self.disconnect();
            self.link.retry_at = now + Duration::from_secs(3600);
        }
        if self.spool.as_mut().is_some_and(|spool| spool.is_usable(now)) {
            self.spool_late(over, now);
        }
        let reason = match (over, self.place.current()) {
            (true, _) => DropReason::Shutdown,
            (false, _) if self.link.is_open() && self.link.is_held_up() => DropReason::Stalled,
            (false, _) if self.link.is_open() => DropReason::Expired,
            (false, None) => DropReason::Unresolved,
            (false, Some(_)) => DropReason::Disconnected,
        };
        while let Some(queued) = self.flight.longest_waiting() {
            let revoked = queued.parcel.permission(boot_now) == Permission::Revoked;
            if !over && !revoked && !queued.is_expired(now, self.resumed_at) {
                break;
            }
            let left = (revoked || over) && queued.parcel.leave_to_group();
            let messages = self.flight.give_up_waiting();
            match left {
                true => {
                    self.metrics.handed_over.inc_by(messages);
                    self.left_to_group += if over { messages } else { 0 };
                }
                false => self.metrics.dropped.add(reason, messages),
            }
        }
        self.release_done();
        over
    }

    fn release_done(&mut self) {
        while let Some(queued) = self.flight.take_done() {
            self.outlet.release(&queued);
        }
    }

    /// Puts what waits too long into the spool.
    fn spool_late(&mut self, over: bool, now: Instant) {
        loop {
            let open = self.link.is_open();
            if open && !self.link.is_held_up() {
                self.spooling = false;
            }
            let Some(oldest) = self.flight.longest_waiting() else { return };
            let waited = now.saturating_duration_since(self.resumed_at.map_or(oldest.since, |at| at.max(oldest.since)));
            let limit = if self.spooling { SPOOL_EVERY } else { SPOOL_AFTER };
            let stopping_in_vain = self.closed && !open;
            let due = waited >= limit || over || stopping_in_vain || self.metrics.queue_bytes.get() >= SPOOL_BYTES;
            if !due || !self.put_into_spool(now) {
                return;
            }
            self.spooling = true;
        }
    }

    /// Puts what waits into the spool, as much as goes in one go. `false`: nothing was done.
    fn put_into_spool(&mut self, now: Instant) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let boot_now = boot_now();
        let (mut loads, mut messages, mut revoked) = (0, 0, false);
        for (queued, range) in self.flight.all_waiting() {
            match queued.parcel.permission(boot_now) {
                Permission::Granted if messages < SPOOL_AT_ONCE => {}
                Permission::Revoked if loads == 0 => {
                    queued.parcel.leave_to_group();
                    revoked = true;
                    break;
                }
                _ => break,
            }
            loads += 1;
            messages += range.len() as u64;
        }
        if revoked {
            let handed_over = self.flight.give_up_waiting();
            self.metrics.handed_over.inc_by(handed_over);
            return true;
        }
        if loads == 0 {
            return false;
        }
        let flight = &mut self.flight;
        let Some((_, empty)) = spool.put(|heed| flight.each_waiting(loads, heed), now) else { return false };
        self.metrics.dropped.add(DropReason::Empty, empty);
        for _ in 0..loads {
            self.flight.give_up_waiting();
        }
        self.release_done();
        true
    }

    fn tell_state(&mut self, now: Instant) {
        let stalled = now.saturating_duration_since(self.link.progress_at) >= STALLED_AFTER;
        if !self.link.is_open() {
            // Before the first try has failed nothing is known; without an address there is none.
            if stalled && self.place.current().is_none() && !self.place.awaits_approval() {
                self.change_state(State::Down, now);
            }
            return;
        }
        self.change_state(if stalled { State::Down } else { State::Up }, now);
    }

    fn change_state(&mut self, state: State, now: Instant) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.metrics.standing.set(state);
        // That there is a connection, or none, has been said.
        if state == State::Down
            && self.link.is_open()
            && let Some(suppressed) = self.stalled_log.allow(now)
        {
            warn!(destination = &*self.label, suppressed, "destination is down: it is connected and does not read");
        }
    }

    /// Lets time pass until something is to be done.
    fn wait(&mut self, now: Instant) {
        if self.lapsed {
            return thread::sleep(LAPSED_PAUSE);
        }
        if self.link.is_open()
            && !self.link.is_held_up()
            && self.link.leave_at.is_none()
            && self.flight.longest_waiting().is_some()
        {
            // There is more to write than was written in one go.
            return;
        }
        let replays = self.spool.as_ref().is_some_and(Spool::has_more);
        let timeout = match &self.link.connection {
            None if self.place.current().is_none() => RECONNECTING,
            None => self.link.retry_at.saturating_duration_since(now).min(RECONNECTING),
            Some(connection) if !connection.is_open() => {
                return connection.wait(false, ACKNOWLEDGING);
            }
            Some(connection) if self.link.blocked => return connection.wait(true, RECONNECTING),
            Some(connection) if self.link.full => return connection.wait(false, ACKNOWLEDGING),
            Some(_) if replays => REPLAYING,
            Some(_) if self.awaits_acknowledgement() => {
                // Soon after something happened, later when nothing does.
                let quiet = now.saturating_duration_since(self.link.progress_at) / 4;
                quiet.clamp(Duration::from_millis(1), ACKNOWLEDGING)
            }
            Some(_) => IDLE,
        };
        let full = self.flight.waiting() >= MAX_WAITING;
        if self.closed || full {
            match &self.link.connection {
                Some(connection) => connection.wait(false, timeout),
                None => thread::sleep(timeout),
            }
            return;
        }
        match self.outlet.wait(timeout) {
            Waited::Batch(queued) => self.flight.take_in(queued),
            Waited::Nothing => {}
            Waited::Closed => self.closed = true,
        }
    }

    /// Everything is done: the connection ends in order.
    fn finish(&mut self, worker: &Worker) {
        if let Some(mut connection) = self.link.take() {
            connection.finish();
            let until = Instant::now() + GOODBYE;
            while Instant::now() < until && connection.advance(Instant::now()).is_ok() {
                worker.beat();
                connection.wait(false, ACKNOWLEDGING);
            }
        }
        if self.left_to_group > 0 {
            let (destination, datagrams) = (&*self.label, self.left_to_group);
            info!(destination, datagrams, "the time to stop was up: what was not sent is left to the group");
        }
    }

    /// Looks at the clock: was this process stopped since it last did?
    fn see(&mut self, now: Instant) {
        if self.seen_at.is_some_and(|seen_at| now.duration_since(seen_at) >= STOPPED_FOR) {
            self.resumed_at = Some(now);
        }
        self.seen_at = Some(now);
    }

    /// Whether the time to stop has come and is up.
    fn is_over(&mut self, worker: &Worker, now: Instant) -> bool {
        let Some(deadline) = worker.deadline() else { return false };
        let give_up_at = *self.give_up_at.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            now + left - STOP_MARGIN.min(left / 4)
        });
        give_up_at <= now
    }
}

/// The value of the label `error`.
fn kind_of(error: &Broken) -> Option<ErrorKind> {
    let error = match error {
        Broken::Io(error) => error,
        Broken::Tls(_) | Broken::KeysUsedUp => return Some(ErrorKind::Tls),
        Broken::ConnectTimedOut | Broken::HandshakeTimedOut | Broken::Silent => return Some(ErrorKind::TimedOut),
        Broken::Closed | Broken::ClosedInHandshake => return Some(ErrorKind::Closed),
    };
    Some(match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => ErrorKind::ConnectionRefused,
        Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => ErrorKind::HostUnreachable,
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL) => ErrorKind::NetworkUnreachable,
        Some(Errno::TIMEDOUT) => ErrorKind::TimedOut,
        Some(Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED) => ErrorKind::Closed,
        Some(Errno::PERM | Errno::ACCESS) => ErrorKind::PermissionDenied,
        Some(Errno::NOBUFS | Errno::NOMEM) => ErrorKind::NoBufferSpace,
        _ => ErrorKind::Other,
    })
}
