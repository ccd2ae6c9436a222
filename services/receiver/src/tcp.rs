//! Syslog over TCP, octet-counted (RFC 6587 §3.4.1):
//!
//! ```text
//! message ─▶ LENGTH ' ' PAYLOAD    LENGTH in decimal digits, without leading zeros
//! ```

use std::{
    io::{self, BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;

/// Connections that are read at a time; further ones are closed.
const MAX_CONNECTIONS: u64 = 64;
/// The longest length of a message in digits.
const MAX_DIGITS: usize = 7;
/// The pause after a failed accept, such as without descriptors.
const AFTER_AN_ERROR: Duration = Duration::from_millis(100);

/// Counts of all connections.
#[derive(Debug, Default)]
pub(crate) struct TcpCounts {
    messages: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
}

impl TcpCounts {
    /// Binds the addresses and counts what arrives, until the process ends.
    pub(crate) fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Arc<TcpCounts>> {
        let counts = Arc::new(TcpCounts::default());
        for address in addresses {
            let listener = TcpListener::bind(address).with_context(|| format!("cannot bind {address} (TCP)"))?;
            let counts = Arc::clone(&counts);
            thread::Builder::new().name("tcp".into()).spawn(move || accept(&listener, &counts))?;
        }
        Ok(counts)
    }

    /// Messages so far.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes of payload so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn accept(listener: &TcpListener, counts: &Arc<TcpCounts>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(AFTER_AN_ERROR);
            continue;
        };
        if counts.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            counts.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let of_thread = Arc::clone(counts);
        let read = move || {
            // A connection that breaks and one that sends anything else are closed.
            let _ = read(stream, &of_thread);
            of_thread.connections.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().name("connection".into()).spawn(read).is_err() {
            counts.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn read(stream: TcpStream, counts: &TcpCounts) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    while let Some(length) = read_length(&mut reader)? {
        if io::copy(&mut reader.by_ref().take(length), &mut io::sink())? < length {
            break;
        }
        counts.messages.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(length, Ordering::Relaxed);
    }
    Ok(())
}

/// The length of the next message; `None` at the end of the stream.
fn read_length(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut digits = Vec::with_capacity(MAX_DIGITS + 1);
    reader.by_ref().take(MAX_DIGITS as u64 + 1).read_until(b' ', &mut digits)?;
    if digits.is_empty() {
        return Ok(None);
    }
    let length = digits.strip_suffix(b" ").filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let length = length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    length.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message has no length"))
}
