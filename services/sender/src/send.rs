//! The shell: sockets, the clock, and batches of system calls.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    ops::Range,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use arrayvec::ArrayVec;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sekiwake_sys::{MAX_MESSAGES, MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Outgoing, send_batch};
use socket2::Socket;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    cli::Arguments,
    generate::{Cursor, Generator, Moment, Request},
    pacer::{Due, Pacer},
    plan::Plan,
    sizes::Sizes,
    sources::{OpenError, allow_descriptors, open},
    summary::{Errors, Sent, Summary},
};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long a full queue is waited for before the stop flag is looked at.
const FULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// How long is waited when the interface's queue is full, which poll(2) does not see.
const NO_BUFFERS: Duration = Duration::from_micros(100);
/// The most datagrams between two looks at the clock and the stop flag.
const MAX_BURST: u64 = 512;

/// A datagram that cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot send {bytes} bytes to {to}")]
pub struct SendError {
    to: SocketAddr,
    bytes: usize,
    #[source]
    error: io::Error,
}

/// Everything that a run needs: sockets open, contents prepared.
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
    /// The place in the plan's turns.
    next_turn: usize,
    batch: Batch,
    elapsed: Duration,
}

/// One protocol.
#[derive(Debug)]
struct Lane {
    generator: Generator,
    to: SocketAddr,
    /// By source.
    streams: Vec<Stream>,
    next_source: usize,
    sent: Sent,
}

/// One source in one protocol.
#[derive(Debug)]
struct Stream {
    /// Index of its socket.
    socket: usize,
    cursor: Cursor,
    template_sent: Option<(u64, Duration)>,
}

/// Whose datagrams come now, and how many more in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    lane: usize,
    source: usize,
    left: u64,
}

impl Sender {
    /// Binds and connects a socket for each source and destination.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub fn open(arguments: &Arguments, plan: Plan) -> Result<Sender, OpenError> {
        let mut different = plan.destinations.clone();
        different.sort_unstable();
        different.dedup();
        allow_descriptors((different.len() * plan.sources.len()) as u64)?;
        let mut sockets = Vec::new();
        for &to in &different {
            for &(source, port) in &plan.sources {
                sockets.push(open(SocketAddr::new(source.address, port), to)?);
            }
        }
        let lanes = plan.protocols.iter().zip(&plan.destinations).map(|(&protocol, &to)| {
            let block = different.iter().position(|&other| other == to).unwrap_or(0) * plan.sources.len();
            let stream = |source| Stream { socket: block + source, cursor: Cursor::default(), template_sent: None };
            let streams = (0..plan.sources.len()).map(stream).collect();
            let generator = Generator::new(protocol, arguments.seed, plan.count.unwrap_or(0));
            Lane { generator, to, streams, next_source: 0, sent: Sent::default() }
        });
        let lanes = lanes.collect();
        Ok(Sender {
            sockets,
            lanes,
            sizes: arguments.size.clone(),
            template_every: arguments.template_every.get(),
            template_interval: arguments.template_interval,
            pacer: Pacer::new(arguments.rate),
            turn: Turn::default(),
            next_turn: 0,
            batch: Batch::new(arguments.gso, arguments.digest),
            elapsed: Duration::ZERO,
            plan,
        })
    }

    /// Sends until the plan is done or `stop` is set, and tells `progress` once a second.
    ///
    /// # Errors
    /// When the kernel refuses a datagram for a reason that will not pass.
    pub fn run(&mut self, stop: &AtomicBool, progress: &mut dyn FnMut(&Summary)) -> Result<(), SendError> {
        let started = Instant::now();
        let mut left = self.plan.count.unwrap_or(u64::MAX);
        let mut next_progress = PROGRESS;
        while left > 0 && !stop.load(Ordering::Relaxed) {
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
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let outcome = self.burst(due, &Moment::new(unix, now), now, stop);
            self.elapsed = started.elapsed();
            outcome?;
            self.pacer.sent(due);
            left -= due;
        }
        Ok(())
    }

    /// What has been sent so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let by_protocol = self.lanes.iter().map(|lane| (lane.generator.protocol(), lane.sent)).collect();
        Summary { by_protocol, errors: self.batch.errors, elapsed: self.elapsed, with_digest: self.batch.with_digest }
    }

    /// Sends `count` datagrams, run after run.
    fn burst(&mut self, mut count: u64, moment: &Moment, now: Duration, stop: &AtomicBool) -> Result<(), SendError> {
        while count > 0 && !stop.load(Ordering::Relaxed) {
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

    /// Makes the next `run` datagrams of this turn's stream.
    fn fill(&mut self, run: u64, moment: &Moment, now: Duration) {
        let lane = &mut self.lanes[self.turn.lane];
        let stream = &mut lane.streams[self.turn.source];
        let (source, _) = self.plan.sources[self.turn.source];
        self.batch.clear();
        for _ in 0..run {
            let cursor = stream.cursor;
            let template = lane.generator.has_template()
                && stream.template_sent.is_none_or(|(datagrams, at)| {
                    cursor.datagrams - datagrams >= self.template_every || now - at >= self.template_interval
                });
            if template {
                stream.template_sent = Some((cursor.datagrams, now));
            }
            let size = self.sizes.pick(lane.generator.variety(source.index, cursor));
            let units = self.batch.push(&lane.generator, &Request { source, cursor, size, template, moment });
            stream.cursor.advance(units);
        }
    }
}

/// Payloads of one run, one behind the other in memory.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    /// Where each payload ends, and the units that it counts.
    ends: Vec<(usize, u64)>,
    /// The largest payload that segmentation offload is used for, in bytes.
    gso_limit: usize,
    with_digest: bool,
    errors: Errors,
}

/// One message of a batch: datagrams of equal size, where the kernel cuts them.
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
            ends: Vec::with_capacity(MAX_MESSAGES),
            gso_limit,
            with_digest,
            errors: Errors::default(),
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, generator: &Generator, request: &Request<'_>) -> u64 {
        let units = generator.write(request, &mut self.bytes);
        self.ends.push((self.bytes.len(), units));
        units
    }

    /// Where the payload with this index begins.
    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before].0)
    }

    /// Sends all, waiting where a queue is full; gives up the rest when `stop` is set meanwhile.
    fn send(&mut self, socket: &Socket, to: SocketAddr, sent: &mut Sent, stop: &AtomicBool) -> Result<(), SendError> {
        let mut first = 0;
        while first < self.ends.len() {
            let messages = self.messages(first);
            match self.send_messages(socket, first, &messages) {
                Ok(accepted) => {
                    let datagrams: usize = messages[..accepted].iter().map(|message| message.datagrams).sum();
                    self.count(first..first + datagrams, sent);
                    first += datagrams;
                }
                Err(error) => self.handle(error, socket, to, first, messages[0])?,
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    /// What can pass, passes: the caller tries again.
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
                // Interrupted or not: the next send tells.
                let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&FULL));
            }
            (Some(Errno::NOBUFS), _) => {
                self.errors.full += 1;
                thread::sleep(NO_BUFFERS);
            }
            (Some(Errno::CONNREFUSED), _) => self.errors.refused += 1,
            (Some(Errno::INVAL | Errno::IO | Errno::MSGSIZE), Some(segment_bytes)) => {
                self.errors.gso_refused += 1;
                self.gso_limit = usize::from(segment_bytes) - 1;
            }
            _ => return Err(SendError { to, bytes: message.end - self.start(first), error }),
        }
        Ok(())
    }

    /// The payloads from `first` on as messages.
    fn messages(&self, first: usize) -> ArrayVec<Message, MAX_MESSAGES> {
        let mut messages = ArrayVec::<Message, MAX_MESSAGES>::new();
        let mut start = self.start(first);
        let mut message_start = start;
        for &(end, _) in &self.ends[first..] {
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
        for &(end, units) in &self.ends[datagrams] {
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
