//! The pages of roles on the admin port: responses of any length from a function that may block.
//!
//! ```text
//! request ─▶ the page's function, in a thread of its own ─▶ an error, or the head and the first chunk
//!                                   └ PageWriter ═▶ a few chunks ═▶ connection, in chunks (RFC 9112 §7.1)
//! ```
//! The number of threads and connections per page is limited; excess requests get 503. A failure
//! after the head truncates the response, so that it cannot be taken for a complete one. When the
//! process ends, responses under way are truncated too. The connection enforces the time limits:
//! once it is closed, writing fails.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::stream::poll_fn;
use sekiwake_settings::{percent_decoded, percent_decoded_bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::debug;

use crate::{connection::PageSlot, health::lock};

/// The size of the pieces in which a response is sent.
const CHUNK_BYTES: usize = 64 << 10;

/// How many pieces wait for the client.
const CHUNKS: usize = 4;

/// The server's own pages, which have precedence.
const OWN_PAGES: [&str; 4] = ["/metrics", "/healthz", "/readyz", "/status"];

/// The limit on parameters in a query. The connection limits the size of a request.
const MAX_PARAMETERS: usize = 64;

/// A request for a page.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    parameters: Vec<(String, Vec<u8>)>,
}

/// A response without a page: an HTTP status and one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageError {
    /// 400 for a wrong request, 503 for a temporary condition.
    pub status: u16,
    /// What is wrong.
    pub message: String,
}

/// Writes a response. An error truncates it.
pub type WritePage = Box<dyn FnOnce(&mut PageWriter) -> io::Result<()> + Send>;

/// A response.
pub struct PageBody {
    /// Its media type.
    pub content_type: &'static str,
    /// Writes it.
    pub write: WritePage,
}

/// The sink of a page: writing blocks while the client reads slowly, and fails when it has
/// disconnected.
#[derive(Debug)]
pub struct PageWriter {
    buffer: Vec<u8>,
    /// An error truncates the response.
    chunks: mpsc::Sender<io::Result<Bytes>>,
    content_type: &'static str,
    /// Taken with the first chunk: until then, the response may still be an error.
    head: Option<oneshot::Sender<Head>>,
}

/// The media type, or an error instead of the page.
type Head = Result<&'static str, PageError>;

/// The right to one of a page's threads and connections, shared by the two.
pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

type Make = dyn Fn(&PageRequest) -> Result<PageBody, PageError> + Send + Sync;

/// The pages of all roles, by path.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    pages: Arc<Mutex<BTreeMap<&'static str, Page>>>,
}

#[derive(Clone)]
pub(crate) struct Page {
    permits: Arc<Semaphore>,
    make: Arc<Make>,
}

impl PageRequest {
    /// The parameters of the query in their order, decoded. A value may be any bytes.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Parses a query; `None` if it cannot be decoded or has too many parameters.
    pub(crate) fn parse(query: &str) -> Option<PageRequest> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent_decoded(&with_spaces(name)).ok()?;
            Some((name, percent_decoded_bytes(&with_spaces(value)).ok()?))
        });
        let parameters: Vec<_> = decoded.take(MAX_PARAMETERS + 1).collect::<Option<_>>()?;
        (parameters.len() <= MAX_PARAMETERS).then_some(PageRequest { parameters })
    }
}

/// `+` is a space (the URL standard's application/x-www-form-urlencoded).
fn with_spaces(text: &str) -> String {
    text.replace('+', " ")
}

impl Pages {
    /// Adds a page, made at most `limit` times at once.
    ///
    /// # Panics
    /// When the path already has a page: a programming error, found when the process starts.
    pub(crate) fn add(&self, path: &'static str, limit: usize, make: Arc<Make>) {
        let page = Page { permits: Arc::new(Semaphore::new(limit)), make };
        let mut pages = lock(&self.pages);
        let is_taken = OWN_PAGES.contains(&path) || pages.contains_key(path);
        if !is_taken {
            pages.insert(path, page);
        }
        drop(pages);
        assert!(!is_taken, "the page {path} exists already");
    }

    /// The page with this path.
    pub(crate) fn get(&self, path: &str) -> Option<Page> {
        lock(&self.pages).get(path).cloned()
    }
}

impl Page {
    /// Answers a request with this query. The slot of the connection holds the page's permit from
    /// now on, unless the response is an error.
    pub(crate) async fn answer(self, query: &str, slot: &PageSlot) -> Response {
        let Some(request) = PageRequest::parse(query) else {
            let message =
                format!("cannot decode the query: expected at most {MAX_PARAMETERS} percent-encoded parameters");
            return PageError { status: 400, message }.into_response();
        };
        let Ok(permit) = self.permits.try_acquire_owned().map(Arc::new) else {
            return PageError { status: 503, message: "too many concurrent requests".to_owned() }.into_response();
        };
        let (head, answer) = oneshot::channel();
        let (chunks, mut body) = mpsc::channel(CHUNKS);
        slot.hold(Arc::clone(&permit));
        let make = self.make;
        let thread = thread::Builder::new().name("page".to_owned());
        let spawned = thread.spawn(move || run(&*make, &request, PageWriter::new(head, chunks), permit));
        let error = match (spawned, answer.await) {
            (Ok(_), Ok(Ok(content_type))) => {
                let body = Body::from_stream(poll_fn(move |context| body.poll_recv(context)));
                return ([(CONTENT_TYPE, content_type)], body).into_response();
            }
            (Ok(_), Ok(Err(error))) => error,
            (Ok(_), Err(_)) => PageError::failed(),
            (Err(_), _) => PageError { status: 503, message: "cannot spawn a thread".to_owned() },
        };
        slot.release();
        error.into_response()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.pages).keys()).finish()
    }
}

impl PageError {
    /// The function failed before it wrote anything; the reason is in the log.
    fn failed() -> PageError {
        PageError { status: 500, message: "this page failed".to_owned() }
    }

    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, self.message + "\n").into_response()
    }
}

/// Makes one page, in a thread of its own.
fn run(make: &Make, request: &PageRequest, mut writer: PageWriter, permit: Permit) {
    let made = catch_unwind(AssertUnwindSafe(|| {
        let body = make(request)?;
        writer.content_type = body.content_type;
        (body.write)(&mut writer).and_then(|()| writer.finish()).map_err(|error| {
            debug!(%error, "page failed");
            PageError::failed()
        })
    }));
    let error = match made {
        // Dropping the writer ends the response.
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => PageError::failed(),
    };
    match writer.head.take() {
        Some(head) => {
            // Before the response: the client may send its next request as soon as it has it.
            drop(permit);
            // Both sends fail only if the client has disconnected.
            let _ = head.send(Err(error));
        }
        None => {
            let _ = writer.chunks.blocking_send(Err(io::Error::other("the page failed")));
        }
    }
}

impl PageWriter {
    fn new(head: oneshot::Sender<Head>, chunks: mpsc::Sender<io::Result<Bytes>>) -> PageWriter {
        PageWriter { buffer: Vec::new(), chunks, content_type: "text/plain", head: Some(head) }
    }

    /// Whether the client still waits for the rest of the response.
    pub fn is_wanted(&self) -> bool {
        !self.chunks.is_closed()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.send_head();
        self.flush()
    }

    fn send_head(&mut self) {
        if let Some(head) = self.head.take() {
            // Fails only if the client has disconnected; sending a chunk then fails, too.
            let _ = head.send(Ok(self.content_type));
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
        self.send_head();
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_or_rejected() {
        let read = |query: &str| PageRequest::parse(query).map(|request| request.parameters);
        let pair = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        assert_eq!(read("a=1&b=x+y%2Fz&&c"), Some(vec![pair("a", "1"), pair("b", "x y/z"), pair("c", "")]));
        assert_eq!(read("a=%C5%e4"), Some(vec![("a".to_owned(), b"\xc5\xe4".to_vec())]));
        assert_eq!(read(""), Some(vec![]));
        for wrong in ["a=%", "a=%1", "a=%gg", "%ff=1"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
        assert!(read(&"a=1&".repeat(65)).is_none());
    }
}
