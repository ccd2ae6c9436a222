//! A syslog server for the tests: it parses octet-counted frames strictly, and keeps the messages
//! of each connection.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sekiwake_testkit::wait::wait_for;

use super::number_of;
use crate::rig::PATIENCE;

/// The received messages, by connection.
#[derive(Default)]
pub(super) struct Book {
    connections: Mutex<Vec<Vec<Vec<u8>>>>,
    stop: AtomicBool,
}

impl Book {
    pub(super) fn open_page(&self) -> usize {
        let mut connections = self.connections.lock().unwrap();
        connections.push(Vec::new());
        connections.len() - 1
    }

    pub(super) fn write(&self, page: usize, message: Vec<u8>) {
        self.connections.lock().unwrap()[page].push(message);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> Vec<Vec<Vec<u8>>> {
        self.connections.lock().unwrap().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.connections.lock().unwrap().iter().map(Vec::len).sum()
    }

    pub(super) fn messages(&self) -> Vec<Vec<u8>> {
        self.connections().into_iter().flatten().collect()
    }

    /// How many different numbers were received.
    pub(super) fn distinct(&self) -> usize {
        let mut numbers: Vec<u64> = self.messages().iter().map(|message| number_of(message)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    }

    pub(super) fn wait_for_distinct(&self, count: usize) {
        let enough = || self.count() >= count && self.distinct() >= count;
        wait_for(&format!("{count} messages"), PATIENCE, enough)
            .unwrap_or_else(|error| panic!("{error}: {} distinct, {} in all", self.distinct(), self.count()));
    }

    /// Waits for this many messages: what the kernel has acknowledged may not have been read yet.
    /// Then checks that they were received in order: each connection has no gap, and begins no
    /// later than after the last message of the one before. Returns how many were received again.
    pub(super) fn assert_in_order(&self, count: u64) -> u64 {
        self.wait_for_distinct(count as usize);
        let mut next = 0;
        let mut repeated = 0;
        for (page, messages) in self.connections().iter().enumerate() {
            let Some(first) = messages.first() else { continue };
            let mut expected = number_of(first);
            assert!(expected <= next, "connection {page} begins with {expected}, after {next} messages");
            for message in messages {
                assert_eq!(number_of(message), expected, "connection {page}");
                expected += 1;
            }
            repeated += next - number_of(first);
            next = next.max(expected);
        }
        assert_eq!(next, count);
        repeated
    }
}

/// Reads frames until the stream ends or breaks, or `enough` returns `true` after a message. An
/// incomplete frame is ignored.
pub(super) fn read_frames(
    stream: &mut impl Read,
    book: &Book,
    page: usize,
    mut enough: impl FnMut(usize) -> bool,
) -> io::Result<()> {
    let mut messages = 0;
    visit_frames(stream, book, |message| {
        book.write(page, message.to_vec());
        messages += 1;
        enough(messages)
    })
}

/// Calls `visit` with each message until it returns `true`, or the stream ends or breaks.
pub(super) fn visit_frames(
    stream: &mut impl Read,
    book: &Book,
    mut visit: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if book.is_stopping() {
                    return Ok(());
                }
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer.extend_from_slice(&chunk[..count]);
        let mut at = 0;
        while let Some((message, length)) = frame_of(&buffer[at..]) {
            if visit(message) {
                return Ok(());
            }
            at += length;
        }
        buffer.drain(..at);
    }
}

/// The message of the first frame, and the length of the frame.
fn frame_of(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let space = bytes.iter().take(10).position(|&byte| byte == b' ');
    let Some(space) = space else {
        assert!(bytes.len() < 10, "no frame begins with {:?}", String::from_utf8_lossy(&bytes[..10]));
        return None;
    };
    let digits = std::str::from_utf8(&bytes[..space]).unwrap();
    assert!(!digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()), "MSG-LEN {digits:?}");
    let end = space + 1 + digits.parse::<usize>().unwrap();
    Some((bytes.get(space + 1..end)?, end))
}

/// A server that accepts one connection after the other.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) book: Arc<Book>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Serves connections with `serve`, which gets the number of each.
    pub(super) fn serve(
        listener: TcpListener,
        mut serve: impl FnMut(TcpStream, &Arc<Book>, usize) + Send + 'static,
    ) -> Peer {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let book = Arc::new(Book::default());
        let of_thread = Arc::clone(&book);
        let thread = thread::spawn(move || {
            while !of_thread.is_stopping() {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                        let page = of_thread.open_page();
                        serve(stream, &of_thread, page);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Peer { address, book, thread: Some(thread) }
    }

    /// A server that reads all connections at the same time.
    pub(super) fn reading(listener: TcpListener) -> Peer {
        Peer::serve(listener, |mut stream, book, page| {
            let book = Arc::clone(book);
            thread::spawn(move || {
                let _ = read_frames(&mut stream, &book, page, |_| false);
            });
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.book.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !thread::panicking() {
                outcome.unwrap();
            }
        }
    }
}

pub(super) fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// An address that refuses connections: its port is bound and not listening.
pub(super) struct Refusing(socket2::Socket);

impl Refusing {
    pub(super) fn new() -> Refusing {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Refusing(socket)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    /// Starts listening.
    pub(super) fn listen(self) -> TcpListener {
        self.0.listen(16).unwrap();
        self.0.into()
    }
}
