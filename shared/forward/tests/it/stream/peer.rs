//! A syslog server of the tests: it takes octet-counted frames to pieces, strictly, and keeps what came over which connection.

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

/// What came, by connection.
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

    fn write(&self, page: usize, message: Vec<u8>) {
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

    /// The numbers that came, without those that came again.
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

    /// Everything came, in order: within each connection without a gap, and each connection begins no later than after the last
    /// message of the one before. Gives how many came again.
    pub(super) fn assert_in_order(&self, count: u64) -> u64 {
        let (mut next, mut repeated) = (0, 0);
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

/// Reads frames until the stream is at its end, breaks, or `enough` says so after a message. A frame that is cut off is none.
pub(super) fn read_frames(
    stream: &mut impl Read,
    book: &Book,
    page: usize,
    mut enough: impl FnMut(usize) -> bool,
) -> io::Result<()> {
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 256 * 1024]);
    let mut messages = 0;
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
            book.write(page, message.to_vec());
            messages += 1;
            at += length;
            if enough(messages) {
                return Ok(());
            }
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

/// A server. It accepts one connection after the other.
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

    /// A server that reads everything, from all connections at the same time.
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

/// An address where nobody listens, and nobody else will: the port is held.
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

    /// From now on somebody listens.
    pub(super) fn listen(self) -> TcpListener {
        self.0.listen(16).unwrap();
        self.0.into()
    }
}
