//! A receiver of requests that answers as it is told, well or badly.

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

/// What came.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) at: Instant,
    /// Method and path.
    pub(super) line: String,
    /// By lower-case names.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Value,
}

/// How a connection is treated.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// This, and then it is closed.
    Text(&'static str),
    /// It is closed without a word.
    Close,
    /// It is reset in the middle of the answer's head.
    Reset,
    /// Nothing, for as long as the peer waits.
    Silence,
    /// This, and then this again and again, without an end.
    Endless(&'static str, &'static str),
    /// The bytes of this, one in 20 ms.
    Drip(&'static str),
}

pub(super) const OK: Answer = Answer::Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");

/// A server on loopback. It ends when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers as listed, one connection after the other, and then always with the last.
    pub(super) fn start(answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, is_over): (Arc<Mutex<Vec<Request>>>, _) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (kept, over, answers) = (Arc::clone(&requests), Arc::clone(&is_over), answers.to_vec());
        let thread = thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let answer = *answers.get(number).or(answers.last()).unwrap();
                let (kept, over) = (Arc::clone(&kept), Arc::clone(&over));
                // A peer that has gone away is no failure here.
                thread::spawn(move || treat(stream.unwrap(), answer, &kept, &over));
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

fn treat(stream: TcpStream, answer: Answer, kept: &Mutex<Vec<Request>>, over: &AtomicBool) -> Option<()> {
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
            // What is closed with a linger of nothing is reset.
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
