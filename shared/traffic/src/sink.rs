//! A fast receiver of datagrams that counts its own losses separately, so that they are not
//! mistaken for losses of the system under test.

mod sequence_check;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sekiwake_sys::{ReceiveBuffers, Received, force_receive_buffer, receive_batch, set_udp_gro};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    sequence_of,
    wait::{TimedOut, wait_for},
};

use sequence_check::SequenceCheck;
pub use sequence_check::{Numbered, SequenceReport};

/// How long the thread waits in poll(2) before it checks for requests.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The data that a sink records of each datagram, besides counts.
#[derive(Clone, Default)]
pub struct Options {
    /// The sockets' receive buffer in bytes, above the system's limit when root. 0 keeps the
    /// default.
    pub receive_buffer_bytes: usize,
    /// Lets the kernel coalesce datagrams (`UDP_GRO`); the sink splits them again.
    pub gro: bool,
    /// Whether the digest (see [`Report::digest`]) is computed.
    pub digest: bool,
    /// Whether equal datagrams are counted by port, source, length and hash.
    pub hashes: bool,
    /// The form that is hashed instead of the payload itself, where another collector receives
    /// another form.
    pub hashed_as: Option<HashedAs>,
    /// Whether every payload is kept, for small numbers of datagrams.
    pub payloads: bool,
    /// Number of source addresses that are counted separately.
    pub sources: usize,
    /// Reads the number of a datagram. Without it, sequences are not checked.
    pub sequence: Option<SequenceOf>,
}

/// Reads stream and number from a payload.
pub type SequenceOf = Arc<dyn Fn(&[u8]) -> Option<Numbered> + Send + Sync>;

/// The form in which another collector receives a payload.
pub type HashedAs = fn(&[u8]) -> Cow<'_, [u8]>;

impl Options {
    /// Counts only, with a receive buffer of 64 MiB.
    pub fn counts() -> Options {
        Options { receive_buffer_bytes: 64 << 20, ..Options::default() }
    }

    /// Checks the sequences of the numbers that `read` finds.
    pub fn sequence(mut self, read: impl Fn(&[u8]) -> Option<Numbered> + Send + Sync + 'static) -> Options {
        self.sequence = Some(Arc::new(read));
        self
    }

    /// Checks the sequences of the numbers of `sekiwake-sender`.
    pub fn numbered(self) -> Options {
        self.sequence(|payload| {
            let number = sequence_of(payload)?;
            Some(Numbered { stream: number.stream(), sequence: number.sequence, step: number.step })
        })
    }

    /// Computes the digest.
    pub fn digest(mut self) -> Options {
        self.digest = true;
        self
    }

    /// Counts equal datagrams by their hash.
    pub fn hashes(mut self) -> Options {
        self.hashes = true;
        self
    }

    /// Counts the datagrams of each source address, of at most `most` addresses.
    pub fn sources(mut self, most: usize) -> Options {
        self.sources = most;
        self
    }

    /// Keeps all payloads.
    pub fn payloads(mut self) -> Options {
        self.payloads = true;
        self
    }

    /// Enables `UDP_GRO`.
    pub fn gro(mut self) -> Options {
        self.gro = true;
        self
    }
}

/// A datagram that was kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// The port at which it arrived.
    pub port: u16,
    /// Its source.
    pub source: SocketAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Identifies equal datagrams in [`Report::hashes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint {
    /// The port at which it arrived.
    pub port: u16,
    /// Its source address.
    pub source: IpAddr,
    /// The payload's length in bytes.
    pub length: usize,
    /// The payload's XXH3, 128 bits.
    pub hash: u128,
}

impl Fingerprint {
    /// The fingerprint of a datagram.
    pub fn new(port: u16, source: IpAddr, payload: &[u8]) -> Fingerprint {
        Fingerprint { port, source, length: payload.len(), hash: xxh3_128(payload) }
    }
}

/// Counts of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketReport {
    /// Datagrams.
    pub received: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Datagrams that the kernel dropped at this socket (full receive buffer, bad checksum): lost
    /// by the sink, not by the system under test. `None` when the kernel's table cannot be read
    /// from the sink's namespace.
    pub dropped: Option<u64>,
}

/// Everything that a sink has received so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Datagrams.
    pub received: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Sum of the sockets' drops; `None` when one is unknown.
    pub dropped: Option<u64>,
    /// By local port, summed over sockets that share one.
    pub by_port: BTreeMap<u16, SocketReport>,
    /// The sum, modulo 2^128, of the payloads' XXH3: the same for the same payloads in any order.
    pub digest: u128,
    /// Number of datagrams by fingerprint.
    pub hashes: HashMap<Fingerprint, u64>,
    /// All payloads, in the order of each socket.
    pub payloads: Vec<Datagram>,
    /// Datagrams by source address.
    pub sources: HashMap<IpAddr, u64>,
    /// Datagrams from addresses that are not counted separately.
    pub other_sources: u64,
    /// Completeness by sequence numbers.
    pub sequence: SequenceReport,
    /// Time between the first and the last batch.
    pub span: Duration,
    /// ICMP errors that the sockets reported.
    pub socket_errors: u64,
}

impl Report {
    /// Datagrams per second between the first and the last batch.
    pub fn rate(&self) -> f64 {
        if self.span.is_zero() { 0.0 } else { self.received as f64 / self.span.as_secs_f64() }
    }
}

/// A receiving thread. It stops when dropped.
#[derive(Debug)]
pub struct Sink {
    addresses: Vec<SocketAddr>,
    received: Arc<AtomicU64>,
    requests: Option<SyncSender<SyncSender<Report>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Receives from `sockets` on a thread in the caller's network namespace. The sockets should
    /// have been opened in the same namespace, or the kernel's drops are unknown.
    pub fn start(sockets: Vec<UdpSocket>, options: Options) -> anyhow::Result<Sink> {
        let mut addresses = Vec::with_capacity(sockets.len());
        for socket in &sockets {
            if options.receive_buffer_bytes > 0 {
                force_receive_buffer(socket.as_fd(), options.receive_buffer_bytes)
                    .context("cannot set the receive buffer")?;
            }
            set_udp_gro(socket.as_fd(), options.gro).context("cannot set UDP_GRO")?;
            addresses.push(socket.local_addr()?);
        }
        let received = Arc::new(AtomicU64::new(0));
        let (requests, asked) = sync_channel(4);
        let mut receiver = SinkThread::new(sockets, &addresses, options, Arc::clone(&received))?;
        let thread = thread::Builder::new().name("sink".into()).spawn(move || receiver.run(&asked))?;
        Ok(Sink { addresses, received, requests: Some(requests), thread: Some(thread) })
    }

    /// Binds the addresses (port 0 for any) and receives from them, all in the caller's network
    /// namespace: `namespace.enter(|| Sink::bind(&addresses, options))??`.
    pub fn bind(addresses: &[SocketAddr], options: Options) -> anyhow::Result<Sink> {
        let bind = |address| UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"));
        Sink::start(addresses.iter().map(bind).collect::<anyhow::Result<_>>()?, options)
    }

    /// The addresses of the sockets, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Datagrams so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Waits until at least `count` datagrams have arrived.
    ///
    /// # Errors
    /// When `timeout` passes first; the message has the number that arrived.
    pub fn wait_for(&self, count: u64, timeout: Duration) -> Result<(), TimedOut> {
        wait_for("arrival", timeout, || self.received() >= count).map_err(|mut late| {
            late.what = format!("arrival of {count} datagrams ({} arrived)", self.received());
            late
        })
    }

    /// Waits until nothing has arrived for `quiet`.
    pub fn wait_for_silence(&self, quiet: Duration, timeout: Duration) -> Result<(), TimedOut> {
        let mut last = (self.received(), Instant::now());
        wait_for(&format!("silence of {quiet:?}"), timeout, || {
            if self.received() != last.0 {
                last = (self.received(), Instant::now());
            }
            last.1.elapsed() >= quiet
        })
    }

    /// Everything received so far. With hashes or payloads it is a large copy.
    ///
    /// # Panics
    /// When the sink's thread has panicked.
    pub fn report(&self) -> Report {
        let (answer, report) = sync_channel(1);
        let asked = self.requests.as_ref().is_some_and(|requests| requests.send(answer).is_ok());
        match report.recv() {
            Ok(report) if asked => report,
            _ => panic!("the sink's thread has ended"),
        }
    }

    /// Stops the thread, closes the sockets and returns the last report.
    ///
    /// # Panics
    /// When the sink's thread has panicked.
    pub fn finish(self) -> Report {
        self.report()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state of the sink's thread.
struct SinkThread {
    sockets: Vec<Socket>,
    options: Options,
    sequence: SequenceCheck,
    report: Report,
    first: Option<Instant>,
    last: Option<Instant>,
    received: Arc<AtomicU64>,
}

struct Socket {
    socket: UdpSocket,
    port: u16,
    inode: u64,
    counts: SocketReport,
}

impl SinkThread {
    fn new(
        sockets: Vec<UdpSocket>,
        addresses: &[SocketAddr],
        options: Options,
        received: Arc<AtomicU64>,
    ) -> anyhow::Result<SinkThread> {
        let described = sockets.into_iter().zip(addresses).map(|(socket, address)| {
            let inode = rustix::fs::fstat(&socket).context("cannot stat a socket")?.st_ino;
            Ok(Socket { socket, port: address.port(), inode, counts: SocketReport::default() })
        });
        let sockets = described.collect::<anyhow::Result<_>>()?;
        Ok(SinkThread {
            sockets,
            options,
            sequence: SequenceCheck::default(),
            report: Report::default(),
            first: None,
            last: None,
            received,
        })
    }

    fn run(&mut self, requests: &Receiver<SyncSender<Report>>) {
        let mut buffers = ReceiveBuffers::default();
        loop {
            match requests.try_recv() {
                Ok(answer) => drop(answer.send(self.snapshot(&mut buffers))),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            self.wait();
            self.drain(&mut buffers, 16);
        }
    }

    fn wait(&self) {
        let mut descriptors: Vec<PollFd<'_>> =
            self.sockets.iter().map(|socket| PollFd::new(&socket.socket, PollFlags::IN)).collect();
        // After an interruption or an error the next read decides.
        let _ = poll(&mut descriptors, Some(&POLL));
    }

    /// Reads up to `batches` batches from each socket. Returns whether all are empty now.
    fn drain(&mut self, buffers: &mut ReceiveBuffers, batches: usize) -> bool {
        let mut dry = true;
        for index in 0..self.sockets.len() {
            for batch in 1..=batches {
                match receive_batch(self.sockets[index].socket.as_fd(), buffers) {
                    Ok(_) => self.count(index, buffers),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => self.report.socket_errors += 1,
                }
                dry &= batch < batches;
            }
        }
        dry
    }

    fn count(&mut self, index: usize, buffers: &ReceiveBuffers) {
        let before = self.sockets[index].counts.received;
        for datagram in buffers.datagrams() {
            self.take(index, &datagram);
        }
        let new = self.sockets[index].counts.received - before;
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.received.fetch_add(new, Ordering::Release);
    }

    fn take(&mut self, index: usize, datagram: &Received<'_>) {
        let Received { source, payload } = *datagram;
        let Socket { port, counts, .. } = &mut self.sockets[index];
        let port = *port;
        counts.received += 1;
        counts.bytes += payload.len() as u64;
        if let Some(read) = &self.options.sequence {
            self.sequence.take(read(payload));
        }
        if self.options.sources > 0 {
            let sources = &mut self.report.sources;
            let address = source.ip().to_canonical();
            let is_known = sources.len() < self.options.sources || sources.contains_key(&address);
            let count = if is_known { sources.entry(address).or_default() } else { &mut self.report.other_sources };
            *count += 1;
        }
        if self.options.digest {
            self.report.digest = self.report.digest.wrapping_add(xxh3_128(payload));
        }
        if self.options.hashes {
            let payload = self.options.hashed_as.map_or(Cow::Borrowed(payload), |form| form(payload));
            *self.report.hashes.entry(Fingerprint::new(port, source.ip(), &payload)).or_default() += 1;
        }
        if self.options.payloads {
            self.report.payloads.push(Datagram { port, source, payload: payload.to_vec() });
        }
    }

    /// Counts everything that had arrived before the request. The time limit ends the read under a
    /// steady load, which never empties the sockets.
    fn snapshot(&mut self, buffers: &mut ReceiveBuffers) -> Report {
        let started = Instant::now();
        while !self.drain(buffers, 16) && started.elapsed() < Duration::from_secs(1) {}
        let drops = read_drops();
        let mut report = self.report.clone();
        for socket in &mut self.sockets {
            socket.counts.dropped = drops.get(&socket.inode).copied();
        }
        report.dropped = self.sockets.iter().map(|socket| socket.counts.dropped).sum();
        for Socket { port, counts, .. } in &self.sockets {
            report.received += counts.received;
            report.bytes += counts.bytes;
            let by_port =
                report.by_port.entry(*port).or_insert(SocketReport { dropped: Some(0), ..Default::default() });
            by_port.received += counts.received;
            by_port.bytes += counts.bytes;
            by_port.dropped = by_port.dropped.zip(counts.dropped).map(|(sum, more)| sum + more);
        }
        report.sequence = self.sequence.report();
        report.span = self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first);
        report
    }
}

/// Drops by socket inode, from the kernel's tables of this thread's namespace (proc(5): the last
/// column of `/proc/net/udp`).
fn read_drops() -> HashMap<u64, u64> {
    let tables = ["udp", "udp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let rows = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let columns: Vec<&str> = row.split_ascii_whitespace().collect();
        Some((columns.get(9)?.parse().ok()?, columns.last()?.parse().ok()?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn local(options: Options) -> (Sink, UdpSocket) {
        let sink = Sink::bind(&["127.0.0.1:0".parse().unwrap()], options).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(sink.addresses()[0]).unwrap();
        (sink, sender)
    }

    #[test]
    fn counts_payloads_hashes_and_digest_agree() {
        let (sink, sender) = local(Options::counts().payloads().hashes().digest());
        for payload in [&b"one"[..], b"", b"one"] {
            sender.send(payload).unwrap();
        }
        sink.wait_for(3, LONG).unwrap();
        let source = sender.local_addr().unwrap();
        let port = sink.addresses()[0].port();
        let report = sink.finish();
        assert_eq!((report.received, report.bytes, report.dropped), (3, 6, Some(0)));
        assert_eq!(report.by_port[&port], SocketReport { received: 3, bytes: 6, dropped: Some(0) });
        let payloads: Vec<&[u8]> = report.payloads.iter().map(|datagram| &datagram.payload[..]).collect();
        assert_eq!(payloads, [&b"one"[..], b"", b"one"]);
        assert_eq!(report.hashes[&Fingerprint::new(port, source.ip(), b"one")], 2);
        assert_eq!(report.digest, xxh3_128(b"one").wrapping_mul(2).wrapping_add(xxh3_128(b"")));
    }

    #[test]
    fn sources_beyond_the_limit_are_counted_together() {
        let (sink, sender) = local(Options::counts().sources(1));
        let other = UdpSocket::bind("127.0.0.2:0").unwrap();
        for (number, socket) in [&sender, &other, &sender].into_iter().enumerate() {
            socket.send_to(b"x", sink.addresses()[0]).unwrap();
            sink.wait_for(number as u64 + 1, LONG).unwrap();
        }
        let report = sink.finish();
        assert_eq!(report.sources, HashMap::from([(sender.local_addr().unwrap().ip(), 2)]));
        assert_eq!(report.other_sources, 1);
    }

    #[test]
    fn sequence_gaps_are_found() {
        let read = |payload: &[u8]| Some(Numbered { stream: 7, sequence: u64::from(*payload.first()?), step: 1 });
        let (sink, sender) = local(Options::counts().sequence(read));
        for number in [0_u8, 1, 4, 3, 4] {
            sender.send(&[number]).unwrap();
        }
        sender.send(&[]).unwrap();
        sink.wait_for(6, LONG).unwrap();
        let report = sink.report().sequence;
        assert_eq!((report.missing, report.duplicates, report.out_of_order, report.unreadable), (1, 1, 1, 1));
        assert!(!report.is_complete());
    }

    #[test]
    fn drops_of_its_own_socket_are_counted_separately() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        force_receive_buffer(socket.as_fd(), 2048).unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        let sink = Sink::start(vec![socket], Options::default()).unwrap();
        sink.wait_for(1, LONG).unwrap();
        let report = sink.finish();
        assert!(report.received < 100);
        assert_eq!(report.received + report.dropped.unwrap(), 100);
    }
}
