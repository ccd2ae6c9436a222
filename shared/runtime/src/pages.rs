//! Pages of a role's own on the admin port: answers of any length, made by a function that may block.
//!
//! ```text
//! request ─▶ the page's function, in a thread of its own ─▶ refusal, or head with the first chunk
//!                                   └ PageWriter ═▶ a few chunks ═▶ connection, in chunks (RFC 9112 §7.1)
//! ```
//! A page has so many threads and connections at a time; whoever comes beyond is answered 503. What goes wrong behind the head cuts the
//! answer off, so that it cannot be taken for a whole one. When the process ends, answers under way are cut off too. How long a
//! peer may take is the connection's to say: it ends, and with it whoever writes.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_core::Stream;
use sekiwake_settings::percent_decoded;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::debug;

use crate::health::lock;

/// What is written is handed over in pieces of this size.
const CHUNK_BYTES: usize = 64 << 10;

/// So many pieces wait for a peer.
const CHUNKS: usize = 4;

/// How long a peer may take nothing.
pub(crate) const STALL_TIME: Duration = Duration::from_secs(10);

/// How long a whole answer may take.
pub(crate) const PAGE_TIME: Duration = Duration::from_secs(600);

/// The server's own pages, which are found first.
const OWN_PAGES: [&str; 4] = ["/metrics", "/healthz", "/readyz", "/status"];

/// The most parameters of a query. The bytes of a whole request are bounded by the server.
const MAX_PARAMETERS: usize = 64;

/// What was asked of a page.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    parameters: Vec<(String, String)>,
}

/// Why a page says no: a status of HTTP, and a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRefusal {
    /// 400 for what was asked, 503 for what is not to be had now.
    pub status: u16,
    /// What is wrong.
    pub message: String,
}

/// What writes an answer. An error cuts it off.
pub type WritePage = Box<dyn FnOnce(&mut PageWriter) -> io::Result<()> + Send>;

/// An answer.
pub struct PageBody {
    /// Its media type.
    pub content_type: &'static str,
    /// Writes it.
    pub write: WritePage,
}

/// Where a page writes to: blocks while the peer takes its time, and fails when nobody will take what is written.
#[derive(Debug)]
pub struct PageWriter {
    buffer: Vec<u8>,
    chunks: mpsc::Sender<Bytes>,
    /// Told with the first chunk: until then the answer may still be that the page failed.
    head: Option<(Head, &'static str)>,
}

type Head = oneshot::Sender<Result<&'static str, PageRefusal>>;

/// The right to one of a page's threads and connections.
pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

type Make = dyn Fn(&PageRequest) -> Result<PageBody, PageRefusal> + Send + Sync;

/// The pages of all roles, by their paths.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    pages: Arc<Mutex<BTreeMap<&'static str, Page>>>,
}

#[derive(Clone)]
struct Page {
    permits: Arc<Semaphore>,
    make: Arc<Make>,
}

/// What a connection gives out.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    /// Set before the last chunk has been taken, if the answer has its end.
    is_whole: Arc<AtomicBool>,
    is_cut_off: bool,
}

impl PageRequest {
    /// The parameters of the query in their order, decoded.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Reads a query; `None` for what is none.
    fn of(query: &str) -> Option<PageRequest> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        let parameters: Vec<_> = decoded.take(MAX_PARAMETERS + 1).collect::<Option<_>>()?;
        (parameters.len() <= MAX_PARAMETERS).then_some(PageRequest { parameters })
    }
}

/// Percent-encoding, and `+` for a space (the URL standard's application/x-www-form-urlencoded).
fn decode(text: &str) -> Option<String> {
    percent_decoded(&text.replace('+', " ")).ok()
}

impl Pages {
    /// Adds a page.
    ///
    /// # Panics
    /// When there is one with this path: a mistake of the program, which shows when it starts.
    pub(crate) fn add(&self, path: &'static str, at_a_time: usize, make: Arc<Make>) {
        let page = Page { permits: Arc::new(Semaphore::new(at_a_time)), make };
        let mut pages = lock(&self.pages);
        let is_taken = OWN_PAGES.contains(&path) || pages.contains_key(path);
        if !is_taken {
            pages.insert(path, page);
        }
        drop(pages);
        assert!(!is_taken, "there is a page {path} already");
    }

    /// Whether there is a page with this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        lock(&self.pages).contains_key(path)
    }

    /// Answers a request for a page that there is. `hold` is given what is to be held until the answer has gone.
    pub(crate) async fn answer(&self, path: &str, query: &str, hold: impl FnOnce(Permit)) -> Response {
        let Some(page) = lock(&self.pages).get(path).cloned() else { return StatusCode::NOT_FOUND.into_response() };
        let Some(request) = PageRequest::of(query) else {
            return refusal(StatusCode::BAD_REQUEST, "a query that cannot be decoded, or has over 64 parameters");
        };
        let Ok(permit) = page.permits.try_acquire_owned().map(Arc::new) else {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "as many of these pages as may be are being made");
        };
        let (head, answer) = oneshot::channel();
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let is_whole = Arc::new(AtomicBool::new(false));
        let (make, held, whole) = (page.make, Arc::clone(&permit), Arc::clone(&is_whole));
        let body = move || {
            run(&*make, &request, head, sender, &whole);
            drop(held);
        };
        if thread::Builder::new().name("page".to_owned()).spawn(body).is_err() {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "there is no thread to have");
        }
        match answer.await {
            Ok(Ok(content_type)) => {
                hold(permit);
                let body = Body::from_stream(Chunks { chunks, is_whole, is_cut_off: false });
                ([(CONTENT_TYPE, content_type)], body).into_response()
            }
            Ok(Err(PageRefusal { status, message })) => {
                refusal(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &message)
            }
            // It has failed before there was anything to send; a panic is in the log.
            Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "this page failed"),
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.pages).keys()).finish()
    }
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

/// Makes one page, in a thread of its own.
fn run(make: &Make, request: &PageRequest, head: Head, chunks: mpsc::Sender<Bytes>, is_whole: &AtomicBool) {
    let body = match catch_unwind(AssertUnwindSafe(|| make(request))) {
        Ok(Ok(body)) => body,
        Ok(Err(refusal)) => {
            // Refused by one who has left meanwhile.
            let _ = head.send(Err(refusal));
            return;
        }
        Err(_) => return,
    };
    let mut writer = PageWriter { buffer: Vec::new(), chunks, head: Some((head, body.content_type)) };
    let write = body.write;
    let written = catch_unwind(AssertUnwindSafe(|| write(&mut writer).and_then(|()| writer.finish())));
    match written {
        // Before the sender goes, with the writer: whoever finds no more chunks finds this.
        Ok(Ok(())) => is_whole.store(true, Ordering::Release),
        Ok(Err(error)) => debug!(%error, "a page was cut off"),
        Err(_) => {}
    }
}

impl PageWriter {
    /// Whether somebody is still there to take what is written.
    pub fn is_wanted(&self) -> bool {
        !self.chunks.is_closed()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tell_head();
        self.flush()
    }

    fn tell_head(&mut self) {
        if let Some((head, content_type)) = self.head.take() {
            // Refused by one who has left meanwhile.
            let _ = head.send(Ok(content_type));
        }
    }
}

impl Write for PageWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_wanted() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(CHUNK_BYTES);
        }
        let length = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.tell_head();
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks.blocking_send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Stream for Chunks {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.is_cut_off {
            return Poll::Ready(None);
        }
        match self.chunks.poll_recv(context) {
            Poll::Ready(None) if !self.is_whole.load(Ordering::Acquire) => {
                self.is_cut_off = true;
                Poll::Ready(Some(Err(io::Error::other("the page was cut off"))))
            }
            other => other.map(|chunk| chunk.map(Ok)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_or_refused() {
        let read = |query: &str| PageRequest::of(query).map(|request| request.parameters);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("a=1&b=x+y%2Fz&&c"), Some(vec![pair("a", "1"), pair("b", "x y/z"), pair("c", "")]));
        assert_eq!(read(""), Some(vec![]));
        for wrong in ["a=%", "a=%1", "a=%gg", "%ff=1"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        assert!(read(&"a=1&".repeat(65)).is_none());
    }
}
