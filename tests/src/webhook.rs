//! A webhook server that keeps the posted bodies. A server of its own, because it must run in a
//! network namespace and in a thread.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;

/// Interval between checks for connections and for the end.
const POLL: Duration = Duration::from_millis(20);

/// The largest accepted body, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A server in the network namespace in which it was started. It stops when dropped.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Value>>>,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    /// Listens on a port that the kernel chooses.
    pub fn start() -> anyhow::Result<Webhook> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen for webhooks")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let bodies = Arc::default();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let kept = Arc::clone(&bodies);
        let stopped = Arc::clone(&is_stopped);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Malformed requests get no answer.
                    Ok((stream, _)) => drop(receive(stream, &kept)),
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        Ok(Webhook { address, bodies, is_stopped, thread: Some(thread) })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bodies posted so far, in order.
    pub fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        // A thread that panicked has already stopped.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn receive(stream: TcpStream, bodies: &Mutex<Vec<Value>>) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>()?.min(MAX_BODY_BYTES);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    bodies.lock().unwrap_or_else(PoisonError::into_inner).push(serde_json::from_slice(&body)?);
    let mut stream = reader.into_inner();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(())
}
