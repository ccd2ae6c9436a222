//! Sockets, the clock, and batches of system calls.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    num::NonZeroU64,
    ops::Range,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sekiwake_runtime::Stop;
use sekiwake_sys::{MAX_MESSAGES, MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Outgoing, clock::wall_now_ns, send_batch};
use sekiwake_traffic::generate::{Cursor, Generator, Moment, Request};
use socket2::Socket;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    cli::Arguments,
    pacer::{Due, Pacer},
    plan::Plan,
    sizes::Sizes,
    sources::{OpenError, allow_descriptors, open},
    summary::{Errors, Sent, Summary},
};

/// Interval of progress reports.
const PROGRESS: Duration = Duration::from_secs(1);
/// Longest wait for a full queue before the stop is checked.
const FULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Wait after the interface's queue was full, which poll(2) does not report.
const NO_BUFFERS: Duration = Duration::from_micros(100);
/// Maximum number of datagrams between two checks of the clock and the stop.
const MAX_BURST: u64 = 512;

/// A datagram could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot send {bytes} bytes to {to}")]
pub struct SendError {
    to: SocketAddr,
    bytes: usize,
    #[source]
    error: io::Error,
}

/// A run, ready to start: sockets are open and contents prepared.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    sockets: Vec<Socket>,
    lanes: Vec<Lane>,
    sizes: Sizes,
    template_every: u64,
    template_interval: Duration,
    pacer: Pacer,
    turn: Turn,
    /// Index in the plan's turns.
    next_turn: usize,
    batch: Batch,
    elapsed: Duration,
}

/// The state of one protocol.
#[derive(Debug)]
struct Lane {
    generator: Generator,
    to: SocketAddr,
    /// One stream per source.
    streams: Vec<Stream>,
    next_source: usize,
    sent: Sent,
}

/// The state of one source in one protocol.
#[derive(Debug)]
struct Stream {
    /// Index of its socket.
    socket: usize,
    cursor: Cursor,
    last_template: Option<SentTemplate>,
}

/// When a template was last sent.
#[derive(Clone, Copy, Debug)]
struct SentTemplate {
    /// Datagrams of the stream before it.
    datagrams: u64,
    at: Duration,
}

/// The source that sends now, and its number of further consecutive datagrams.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    lane: usize,
    source: usize,
    left: u64,
}

impl Sender {
    /// Binds and connects a socket for each source and destination.
    pub fn open(arguments: &Arguments, plan: Plan) -> Result<Sender, OpenError> {
        let mut destinations = plan.destinations.clone();
        destinations.sort_unstable();
        destinations.dedup();
        allow_descriptors((destinations.len() * plan.sources.len()) as u64)?;
        let mut sockets = Vec::new();
        for &to in &destinations {
            for bound in &plan.sources {
                sockets.push(open(SocketAddr::new(bound.source.address, bound.port), to)?);
            }
        }
        let lanes = plan.protocols.iter().zip(&plan.destinations).map(|(&protocol, &to)| {
            let block = destinations.iter().position(|&other| other == to).unwrap_or(0) * plan.sources.len();
            let stream = |source| Stream { socket: block + source, cursor: Cursor::default(), last_template: None };
            let streams = (0..plan.sources.len()).map(stream).collect();
            let generator = Generator::new(protocol, arguments.seed, plan.count.unwrap_or(0));
            Lane { generator, to, streams, next_source: 0, sent: Sent::default() }
        });
        let lanes = lanes.collect();
        let pacer = Pacer::new(arguments.rate);
        Ok(Sender {
            sockets,
            lanes,
            sizes: arguments.size.clone(),
            template_every: arguments.template_every.get(),
            template_interval: arguments.template_interval,
            pacer: match arguments.burst {
                Some(limit) => pacer.with_burst(limit),
                None => pacer,
            },
            turn: Turn::default(),
            next_turn: 0,
            batch: Batch::new(arguments.gso, arguments.digest),
            elapsed: Duration::ZERO,
            plan,
        })
    }

    /// Sends until the plan is done or the stop is given, and calls `progress` once per second.
    ///
    /// # Errors
    /// When the kernel rejects a datagram with a permanent error.
    pub fn run(&mut self, stop: &Stop, progress: &mut dyn FnMut(&Summary)) -> Result<(), SendError> {
        // Otherwise a wait is up to 50 µs too long, which is as long as the interval at 20,000 per
        // second. Without permission the bursts are larger.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let started = Instant::now();
        let mut left = self.plan.count.unwrap_or(u64::MAX);
        let mut next_progress = PROGRESS;
        while left > 0 && !stop.stopping() {
            let now = started.elapsed();
            let until_end = self.plan.duration.map_or(Duration::MAX, |duration| duration.saturating_sub(now));
            if until_end.is_zero() {
                break;
            }
            if now >= next_progress {
                self.elapsed = now;
                progress(&self.summary());
                next_progress = now + PROGRESS;
            }
            let due = match self.pacer.due(now) {
                Due::Now(count) => count.min(left).min(MAX_BURST),
                Due::After(wait) => {
                    thread::sleep(wait.min(until_end));
                    continue;
                }
            };
            let unix = Duration::from_nanos(wall_now_ns());
            let outcome = self.burst(due, &Moment::new(unix, now), now, stop);
            self.elapsed = started.elapsed();
            outcome?;
            self.pacer.sent(due);
            left -= due;
        }
        Ok(())
    }

    /// Counts of the datagrams sent so far.
    pub fn summary(&self) -> Summary {
        let by_protocol = self.lanes.iter().map(|lane| (lane.generator.protocol(), lane.sent)).collect();
        Summary { by_protocol, errors: self.batch.errors, elapsed: self.elapsed, with_digest: self.batch.with_digest }
    }

    /// Sends `count` datagrams, run after run.
    fn burst(&mut self, mut count: u64, moment: &Moment, now: Duration, stop: &Stop) -> Result<(), SendError> {
        while count > 0 && !stop.stopping() {
            if self.turn.left == 0 {
                self.take_turn();
            }
            let run = self.turn.left.min(count);
            self.turn.left -= run;
            count -= run;
            self.fill(run, moment, now);
            let lane = &mut self.lanes[self.turn.lane];
            let socket = &self.sockets[lane.streams[self.turn.source].socket];
            self.batch.send(socket, lane.to, &mut lane.sent, stop)?;
        }
        Ok(())
    }

    fn take_turn(&mut self) {
        let lane_index = self.plan.turns[self.next_turn];
        self.next_turn = (self.next_turn + 1) % self.plan.turns.len();
        let lane = &mut self.lanes[lane_index];
        self.turn = Turn { lane: lane_index, source: lane.next_source, left: self.plan.run };
        lane.next_source = (lane.next_source + 1) % lane.streams.len();
    }

    /// Generates the next `run` datagrams of this turn's stream.
    fn fill(&mut self, run: u64, moment: &Moment, now: Duration) {
        let lane = &mut self.lanes[self.turn.lane];
        let stream = &mut lane.streams[self.turn.source];
        let source = self.plan.sources[self.turn.source].source;
        self.batch.clear();
        for _ in 0..run {
            let cursor = stream.cursor;
            let template = lane.generator.has_template()
                && stream.last_template.is_none_or(|last| {
                    cursor.datagrams - last.datagrams >= self.template_every || now - last.at >= self.template_interval
                });
            if template {
                stream.last_template = Some(SentTemplate { datagrams: cursor.datagrams, at: now });
            }
            let size = self.sizes.pick(lane.generator.variety(source.index, cursor));
            let units = self.batch.push(&lane.generator, &Request { source, cursor, size, template, moment });
            stream.cursor.advance(units);
        }
    }
}

/// Payloads of one run, contiguous in memory.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    /// The payloads, in order.
    payloads: Vec<Payload>,
    /// The largest payload for which GSO is used, in bytes.
    gso_limit: usize,
    with_digest: bool,
    errors: Errors,
}

/// A payload in the memory of its batch.
#[derive(Clone, Copy, Debug)]
struct Payload {
    end: usize,
    units: u64,
}

/// One message of a batch: one datagram, or several of equal size that the kernel segments.
#[derive(Clone, Copy)]
struct Message {
    datagrams: usize,
    end: usize,
    segment_bytes: Option<u16>,
}

impl Batch {
    fn new(gso: bool, with_digest: bool) -> Batch {
        let gso_limit = if gso { MAX_SEGMENTED_BYTES } else { 0 };
        Batch {
            bytes: Vec::new(),
            payloads: Vec::with_capacity(MAX_MESSAGES),
            gso_limit,
            with_digest,
            errors: Errors::default(),
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.payloads.clear();
    }

    fn push(&mut self, generator: &Generator, request: &Request<'_>) -> u64 {
        let units = generator.write(request, &mut self.bytes);
        self.payloads.push(Payload { end: self.bytes.len(), units });
        units
    }

    /// The offset of the payload with this index.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.payloads[before].end)
    }

    /// Sends all payloads and waits while a queue is full. Drops the rest once the stop is given.
    fn send(&mut self, socket: &Socket, to: SocketAddr, sent: &mut Sent, stop: &Stop) -> Result<(), SendError> {
        let mut first = 0;
        while first < self.payloads.len() {
            let messages = self.messages(first);
            match self.send_messages(socket, first, &messages) {
                Ok(accepted) => {
                    let datagrams: usize = messages[..accepted].iter().map(|message| message.datagrams).sum();
                    self.count(first..first + datagrams, sent);
                    first += datagrams;
                }
                Err(error) => self.handle(error, socket, to, first, messages[0])?,
            }
            if stop.stopping() {
                break;
            }
        }
        Ok(())
    }

    /// Handles temporary errors, after which the caller tries again.
    fn handle(
        &mut self,
        error: io::Error,
        socket: &Socket,
        to: SocketAddr,
        first: usize,
        message: Message,
    ) -> Result<(), SendError> {
        match (Errno::from_io_error(&error), message.segment_bytes) {
            (Some(Errno::INTR), _) => {}
            (Some(Errno::AGAIN), _) => {
                self.errors.full += 1;
                // After an interruption or an error the next send decides.
                let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&FULL));
            }
            (Some(Errno::NOBUFS), _) => {
                self.errors.full += 1;
                thread::sleep(NO_BUFFERS);
            }
            (Some(Errno::CONNREFUSED), _) => self.errors.refused += 1,
            (Some(Errno::INVAL | Errno::IO | Errno::MSGSIZE), Some(segment_bytes)) => {
                self.errors.gso_rejected += 1;
                self.gso_limit = usize::from(segment_bytes) - 1;
            }
            _ => return Err(SendError { to, bytes: message.end - self.start(first), error }),
        }
        Ok(())
    }

    /// The payloads from `first` on, as messages.
    fn messages(&self, first: usize) -> ArrayVec<Message, MAX_MESSAGES> {
        let mut messages = ArrayVec::<Message, MAX_MESSAGES>::new();
        let mut start = self.start(first);
        let mut message_start = start;
        for &Payload { end, .. } in &self.payloads[first..] {
            let bytes = end - start;
            start = end;
            if let Some(last) = messages.last_mut()
                && (1..=self.gso_limit).contains(&bytes)
                && (last.end - message_start) == bytes * last.datagrams
                && end - message_start <= MAX_SEGMENTED_BYTES
                && last.datagrams < MAX_SEGMENTS
            {
                *last = Message { datagrams: last.datagrams + 1, end, segment_bytes: u16::try_from(bytes).ok() };
                continue;
            }
            message_start = end - bytes;
            messages.push(Message { datagrams: 1, end, segment_bytes: None });
        }
        messages
    }

    fn send_messages(&self, socket: &Socket, first: usize, messages: &[Message]) -> io::Result<usize> {
        let mut start = self.start(first);
        let slices: ArrayVec<IoSlice<'_>, MAX_MESSAGES> = messages
            .iter()
            .map(|message| IoSlice::new(&self.bytes[std::mem::replace(&mut start, message.end)..message.end]))
            .collect();
        let outgoing: ArrayVec<Outgoing<'_>, MAX_MESSAGES> = slices
            .iter()
            .zip(messages)
            .map(|(slice, message)| Outgoing {
                slices: std::slice::from_ref(slice),
                segment_bytes: message.segment_bytes,
                ..Outgoing::default()
            })
            .collect();
        send_batch(socket.as_fd(), &outgoing)
    }

    fn count(&self, datagrams: Range<usize>, sent: &mut Sent) {
        let mut start = self.start(datagrams.start);
        for &Payload { end, units } in &self.payloads[datagrams] {
            sent.datagrams += 1;
            sent.bytes += (end - start) as u64;
            sent.units += units;
            if self.with_digest {
                sent.digest = sent.digest.wrapping_add(xxh3_128(&self.bytes[start..end]));
            }
            start = end;
        }
    }
}
