//! A receiver of webhooks: keeps what is posted to it.

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

/// How soon a receiver that is dropped ends.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The largest body that is taken, bytes.
const MAX_BODY: usize = 1 << 20;

/// A server in the network namespace that it was started in. It ends when it is dropped.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Value>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    /// Listens on a port that the kernel chooses.
    ///
    /// # Errors
    /// There is none to have.
    pub fn start() -> anyhow::Result<Webhook> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen for webhooks")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (bodies, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (kept, over) = (Arc::clone(&bodies), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Whoever posts nonsense is answered nothing.
                    Ok((stream, _)) => drop(take(stream, &kept)),
                    Err(_) => thread::sleep(LOOK_EVERY),
                }
            }
        });
        Ok(Webhook { address, bodies, is_over, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has been posted so far, in the order in which it came.
    pub fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // A thread that has panicked has nothing left to end.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn take(stream: TcpStream, bodies: &Mutex<Vec<Value>>) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
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
            length = value.trim().parse::<usize>()?.min(MAX_BODY);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    bodies.lock().unwrap_or_else(PoisonError::into_inner).push(serde_json::from_slice(&body)?);
    let mut stream = reader.into_inner();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(())
}
