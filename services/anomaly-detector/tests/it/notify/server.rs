//! An HTTP server with scripted answers, valid and invalid ones.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A received request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) at: Instant,
    /// Method and path.
    pub(super) line: String,
    /// Names are in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Value,
}

/// How the server answers a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// Sends this, then closes.
    Text(&'static str),
    /// Closes without an answer.
    Close,
    /// Resets the connection in the middle of the response header.
    Reset,
    /// Sends nothing for as long as the peer waits.
    Silence,
    /// Sends the first text, then the second one repeatedly, without end.
    Endless(&'static str, &'static str),
    /// Sends one byte of this every 20 ms.
    Drip(&'static str),
}

pub(super) const OK: Answer = Answer::Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");

/// A server on loopback. Dropping it ends it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers connections in this order, then always with the last answer.
    pub(super) fn start(answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let kept = Arc::clone(&requests);
        let over = Arc::clone(&is_over);
        let answers = answers.to_vec();
        let thread = thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let answer = *answers.get(number).or(answers.last()).unwrap();
                let kept = Arc::clone(&kept);
                let over = Arc::clone(&over);
                // A peer that has closed the connection is not a failure.
                thread::spawn(move || serve(stream.unwrap(), answer, &kept, &over));
            }
        });
        Server { address, requests, is_over, thread: Some(thread) }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(stream: TcpStream, answer: Answer, kept: &Mutex<Vec<Request>>, over: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: BTreeMap<String, String> = lines
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_owned();
    let request = Request { at: Instant::now(), line, headers, body: serde_json::from_slice(&body).ok()? };
    kept.lock().unwrap().push(request);
    reply(stream, answer, over)
}

fn reply(mut stream: TcpStream, answer: Answer, over: &AtomicBool) -> Option<()> {
    let is_over = || over.load(Ordering::Relaxed);
    match answer {
        Answer::Text(text) => stream.write_all(text.as_bytes()).ok(),
        Answer::Close => Some(()),
        Answer::Reset => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").ok()?;
            // Closing with a linger time of zero resets the connection.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).ok()
        }
        Answer::Silence => {
            while !is_over() && stream.peek(&mut [0]).is_ok_and(|length| length > 0) {}
            Some(())
        }
        Answer::Endless(head, again) => {
            stream.write_all(head.as_bytes()).ok()?;
            while !is_over() {
                stream.write_all(again.as_bytes()).ok()?;
            }
            Some(())
        }
        Answer::Drip(text) => {
            for byte in text.bytes() {
                stream.write_all(&[byte]).ok()?;
                thread::sleep(Duration::from_millis(20));
            }
            Some(())
        }
    }
}
