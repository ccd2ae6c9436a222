//! The thread that answers for a stream: it tells the coordinator where the stream stands, repeats what subscribers missed, and
//! gets the list of what must not be captured.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_group::{PublisherControl, PublisherControlSettings, Retention, Stream, wire::Transport};
use sekiwake_record::Kind;
use sekiwake_runtime::{Latch, Metrics, StatusDesk, Worker};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    BusError, OwnDestinations,
    control::{CONTROL_BURST, Incoming, boot_now, patience, receive, routing_id, sources::top_sources},
    metrics::StreamControlMetrics,
    settings::Controlling,
    socket::{Bus, Connections, milliseconds, uninterrupted},
};

/// The most bytes that are repeated in a second: twice and more of what a stream of 200,000 small datagrams a second carries.
const REPAIR_BYTES_PER_SECOND: u64 = 64 << 20;
/// The longest sleep, so that the writer is heard.
const PATIENCE: Duration = Duration::from_millis(50);
/// The longest sleep while something is about to change: capture threads apply a list, the writer wants to know of commits.
const IMPATIENCE: Duration = Duration::from_millis(2);
/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(500);
/// What the last word has to leave in.
const LAST_WORD: Duration = Duration::from_millis(200);
/// How long a publisher that is told to stop waits for a proxy that is not there.
const ABSENT_AT_MOST: Duration = Duration::from_secs(3);
/// How long one that has come to its end by itself does.
const ABSENT_AT_THE_END: Duration = Duration::from_secs(60);
/// How long the writer waits for the end of this thread.
const CONTROL_ENDS_WITHIN: Duration = Duration::from_millis(300);

/// The body of a batch that is retained.
pub(crate) type Body = Arc<[u8]>;

/// What the writer of a stream and the thread that answers for it share.
#[derive(Debug)]
pub(crate) struct Common {
    retention: Mutex<Retention<Body>>,
    /// The list of what is our own is there and gone by: what is captured may be published.
    may_publish: AtomicBool,
    /// The writer has been left by its producers, and is about to end.
    ending: AtomicBool,
    /// Everything has been published: the writer wants to know when groups have it.
    draining: AtomicBool,
    /// They have.
    drained: AtomicBool,
    /// The time is up, or there is no proxy: the writer need not wait for anything any more.
    abandoned: AtomicBool,
    /// Records that some live group had not handled then.
    left: AtomicU64,
    /// The writer has ended.
    finished: AtomicBool,
    /// There is no control thread any more, or never was.
    alone: AtomicBool,
    /// Kinds that live groups worked on at the end, one bit each.
    live_kinds: AtomicU8,
}

impl Common {
    /// With a budget in bytes for each kind. Until there is a [`StreamControl`] nobody is waited for.
    pub(crate) fn new(limits: [usize; Kind::ALL.len()]) -> Common {
        Common {
            retention: Mutex::new(Retention::new(limits)),
            may_publish: AtomicBool::new(true),
            ending: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            drained: AtomicBool::new(true),
            left: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            alone: AtomicBool::new(true),
            live_kinds: AtomicU8::new(0),
        }
    }

    pub(crate) fn retention(&self) -> MutexGuard<'_, Retention<Body>> {
        self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn may_publish(&self) -> bool {
        self.may_publish.load(Ordering::Acquire)
    }

    /// Whether a file may be read on: no group is more than `limits` bytes behind, by kind. Without a control thread nobody knows.
    pub(crate) fn may_read_ahead(&self, limits: [usize; Kind::ALL.len()]) -> bool {
        let retention = self.retention();
        let is_near = |(kind, limit): (Kind, usize)| retention.uncommitted_bytes(kind) < limit;
        self.drained.load(Ordering::Acquire) || Kind::ALL.into_iter().zip(limits).all(is_near)
    }

    pub(crate) fn begin_to_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    /// Records that were published and that some live group had not handled when the drain ended.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Whether a group worked on this kind at the end.
    pub(crate) fn had_group(&self, kind: Kind) -> bool {
        self.live_kinds.load(Ordering::Acquire) & (1 << kind.index()) != 0
    }

    /// Waits a moment for the end of the control thread, which follows that of the writer.
    pub(crate) fn wait_for_control(&self) {
        let end = Instant::now() + CONTROL_ENDS_WITHIN;
        while !self.alone.load(Ordering::Acquire) && Instant::now() < end {
            std::thread::sleep(IMPATIENCE);
        }
    }

    fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

/// Answers for a stream. Its thread calls [`StreamControl::run`].
pub struct StreamControl {
    bus: Bus,
    socket: zmq::Socket,
    connections: Connections,
    in_process: bool,
    ready: Latch,
    machine: PublisherControl,
    common: Arc<Common>,
    own: OwnDestinations,
    /// The number of the list that capture threads have been given, and whether they go by it.
    list: (u64, bool),
    follows_commits: bool,
    pending: Option<Vec<u8>>,
    refused: u64,
    repaired_bytes: u64,
    metrics: StreamControlMetrics,
    metered_at: Option<Instant>,
    desk: StatusDesk,
    stream: Stream,
}

impl StreamControl {
    pub(crate) fn new(
        bus: &Bus,
        controlling: &Controlling,
        stream: Stream,
        common: Arc<Common>,
        follows_commits: bool,
        metrics: &Metrics,
        (ready, desk): (Latch, StatusDesk),
    ) -> Result<StreamControl, BusError> {
        let socket = bus.control_client(&routing_id()?, controlling.keys.as_ref())?;
        let mut connections = bus.watch(&socket)?;
        connections.connect(&socket, &controlling.endpoints)?;
        common.may_publish.store(false, Ordering::Release);
        common.drained.store(false, Ordering::Release);
        common.alone.store(false, Ordering::Release);
        let settings =
            PublisherControlSettings { stream: stream.clone(), repair_bytes_per_second: REPAIR_BYTES_PER_SECOND };
        Ok(StreamControl {
            bus: bus.clone(),
            socket,
            connections,
            in_process: controlling.is_in_process(),
            ready,
            machine: PublisherControl::new(settings, boot_now()),
            common,
            own: OwnDestinations::default(),
            list: (0, false),
            follows_commits,
            pending: None,
            refused: 0,
            repaired_bytes: 0,
            metrics: StreamControlMetrics::new(metrics),
            metered_at: None,
            desk,
            stream,
        })
    }

    /// Makes the part of `/status` that says which sources fill the memory.
    pub fn sources(&self) -> impl Fn() -> Value + Send + Sync + 'static {
        let common = Arc::clone(&self.common);
        move || top_sources(&common)
    }

    /// What must not be captured.
    pub fn own_destinations(&self) -> OwnDestinations {
        self.own.clone()
    }

    /// Answers until the writer has ended.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        if self.follows_commits {
            self.machine.follow_commits(boot_now());
        }
        let (mut ending_since, mut draining, mut heard_at) = (None, false, Instant::now());
        loop {
            worker.beat();
            if self.take_messages()? {
                heard_at = Instant::now();
            }
            let now = boot_now();
            self.apply_list(now);
            self.common.may_publish.store(self.machine.may_publish(), Ordering::Release);
            self.ready.set(self.machine.may_publish());
            if self.common.ending.load(Ordering::Acquire) {
                ending_since.get_or_insert_with(Instant::now);
            }
            if self.common.draining.load(Ordering::Acquire) && !draining {
                draining = true;
                self.machine.drain(now);
            }
            self.machine.on_tick(now, &self.common.retention());
            let blocked = !self.send_outputs()?;
            if let Some(since) = ending_since {
                self.watch_end(since, heard_at, worker);
            }
            if self.common.is_finished() {
                return self.close();
            }
            self.meter();
            self.wait(now, blocked)?;
        }
    }

    /// Says whether anything came.
    fn take_messages(&mut self) -> Result<bool, BusError> {
        for taken in 0..CONTROL_BURST {
            match receive(&self.socket, "stream control")? {
                Incoming::Frame(frame) => {
                    self.machine.on_message(boot_now(), &frame, &mut self.common.retention());
                }
                Incoming::Malformed => self.metrics.refused.inc(),
                Incoming::Nothing => return Ok(taken > 0),
            }
        }
        Ok(true)
    }

    /// Gives a new list to the capture threads, and says so to the machine when all of them go by it.
    fn apply_list(&mut self, now: u64) {
        let (number, destinations) = self.machine.list();
        if number != self.list.0 {
            let udp = destinations.iter().filter(|destination| destination.transport == Transport::Udp);
            let addresses: Vec<SocketAddr> =
                udp.map(|destination| SocketAddr::new(destination.address.into(), destination.port)).collect();
            info!(stream = %self.stream, destinations = addresses.len(), "destinations that are not captured");
            self.own.set(number, addresses);
            self.list = (number, false);
        }
        if !self.list.1 && self.list.0 > 0 && self.own.applied() == self.list.0 {
            self.list.1 = true;
            self.machine.applied(now, self.list.0);
        }
    }

    /// Sends what the socket has room for. What is left waits.
    fn send_outputs(&mut self) -> Result<bool, BusError> {
        while let Some(frame) = self.pending.take().or_else(|| self.machine.poll_output()) {
            match uninterrupted(|| self.socket.send(&frame[..], zmq::DONTWAIT)) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN) => {
                    self.pending = Some(frame);
                    return Ok(false);
                }
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(true)
    }

    /// Says when the writer need not wait any longer: the groups have everything, the time is up, or there is nobody to ask.
    fn watch_end(&self, since: Instant, heard_at: Instant, worker: &Worker) {
        if self.common.is_drained() || self.common.is_abandoned() {
            return;
        }
        self.common.live_kinds.store(self.machine.live_kinds(), Ordering::Release);
        if self.machine.is_drained() {
            self.common.drained.store(true, Ordering::Release);
            return;
        }
        let now = Instant::now();
        // The rest of the time is for what lingers.
        let over = worker.deadline().is_some_and(|end| now >= since + end.saturating_duration_since(since) * 3 / 4);
        let patience = if worker.stopping() { ABSENT_AT_MOST } else { ABSENT_AT_THE_END };
        let alone = now >= since.max(heard_at) + patience;
        if over || alone {
            let left = self.common.retention().uncommitted_records();
            let why = if alone { "the proxy does not answer" } else { "the time is up" };
            warn!(stream = %self.stream, records = left, why, "ending although not every group is known to have everything");
            self.common.left.store(left, Ordering::Release);
            self.common.abandoned.store(true, Ordering::Release);
        }
    }

    fn wait(&self, now: u64, blocked: bool) -> Result<(), BusError> {
        let events = if blocked { zmq::POLLIN | zmq::POLLOUT } else { zmq::POLLIN };
        let applying = self.list.0 > 0 && !self.list.1;
        let changing = applying || self.follows_commits || self.common.draining.load(Ordering::Acquire);
        let limit = if changing { IMPATIENCE } else { PATIENCE };
        let deadline = if blocked { u64::MAX } else { self.machine.next_deadline() };
        // There is more to repeat at once.
        let timeout = if deadline <= now { 0 } else { patience(now, deadline, limit) };
        match self.socket.poll(events, timeout) {
            Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
            Err(source) => Err(failed(source)),
        }
    }

    fn meter(&mut self) {
        self.desk.answer(|| {
            let retention = self.common.retention();
            let of_kind = |kind: Kind| {
                let retained_seconds =
                    retention.oldest_published_at(kind).map(|at| boot_now().saturating_sub(at) as f64 / 1e9);
                json!({ "kind": kind.as_str(), "bytes": retention.bytes(kind), "seconds": retained_seconds })
            };
            json!({
                "stream": &*self.stream.name,
                "epoch": format!("{:016x}", self.stream.epoch),
                "may_publish": self.machine.may_publish(),
                "retained": Kind::ALL.map(of_kind),
                "own_destinations": self.own.list().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "repaired_bytes": self.machine.repaired_bytes(),
                "refused_messages": self.machine.refused(),
            })
        });
        let now = Instant::now();
        if self.metered_at.is_some_and(|at| now.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(now);
        let connected = self.connections.stand(&self.socket) || self.in_process;
        self.metrics.connected.set(i64::from(connected));
        let retention = self.common.retention();
        for kind in Kind::ALL {
            self.metrics.retained_bytes[kind.index()].set(retention.bytes(kind) as i64);
            let seconds = retention.oldest_published_at(kind).map_or(0, |at| boot_now().saturating_sub(at));
            self.metrics.retained_seconds[kind.index()].set(seconds as f64 / 1e9);
        }
        drop(retention);
        self.metrics.refused.inc_by(self.machine.refused() - self.refused);
        self.refused = self.machine.refused();
        self.metrics.repaired_bytes.inc_by(self.machine.repaired_bytes() - self.repaired_bytes);
        self.repaired_bytes = self.machine.repaired_bytes();
    }

    fn close(mut self) -> Result<(), BusError> {
        self.machine.end(boot_now(), &self.common.retention());
        self.send_outputs()?;
        self.socket.set_linger(milliseconds(LAST_WORD)).map_err(failed)?;
        let StreamControl { bus, socket, connections, common, .. } = self;
        // The socket goes before the context. The writer waits for what lingers.
        drop((socket, connections, bus));
        common.alone.store(true, Ordering::Release);
        Ok(())
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "stream control", source }
}
