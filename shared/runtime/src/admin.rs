//! The admin server: `/metrics`, `/healthz`, `/readyz`, `/status`, and pages of the roles' own.
//!
//! Its port may be open to a network, so each connection is one request of [`MAX_REQUEST_BYTES`] at most that has come within
//! [`REQUEST_TIME`], and lives [`CONNECTION_TIME`] at most, however slowly the other side reads. There are
//! [`MAX_CONNECTIONS`] at a time: the oldest makes room for a new one, once it has had [`UNDISTURBED_TIME`].
//!
//! A page of a role's own may take long, and there are few at a time: its connection lives while its peer takes something now and then,
//! [`PAGE_TIME`] at most, and makes room for nobody.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use prometheus::{IntGauge, Registry};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::pages::{PAGE_TIME, Pages, STALL_TIME};
use crate::status::{Boards, MAX_MAKER_THREADS, MAX_WAITING, Page};

/// How many connections are served at a time.
const MAX_CONNECTIONS: usize = 128;

/// How long a connection may live, from being accepted to the last byte of the answer.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// How long the head of a request may take, from the connection being accepted.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// How long a connection may live although others wait for its slot: what an honest request takes, many times over.
const UNDISTURBED_TIME: Duration = Duration::from_millis(100);

/// The largest request that is read, bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The text format of Prometheus.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// JSON, which is UTF-8 (RFC 8259 §8.1, §11).
const STATUS_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// Where a request for `/status` asks for its page.
type StatusRequests = mpsc::Sender<oneshot::Sender<Page>>;

/// What the admin server answers from.
#[derive(Debug)]
pub(crate) struct AdminState {
    health: Arc<Health>,
    process: Registry,
    roles: Vec<(Metrics, IntGauge, &'static str)>,
    pages: Pages,
}

impl AdminState {
    pub(crate) fn new<'a>(
        health: Arc<Health>,
        roles: impl Iterator<Item = (&'static str, &'a Metrics)>,
        pages: Pages,
    ) -> AdminState {
        let ready = |(service, metrics): (&'static str, &Metrics)| {
            let ready = metrics.gauge("sekiwake_ready", "Whether the service is ready (1) or not (0).", &[]);
            (metrics.clone(), ready, service)
        };
        let roles: Vec<_> = roles.map(ready).collect();
        let services: Vec<&str> = roles.iter().map(|(_, _, service)| *service).collect();
        AdminState { health, process: metrics::process_registry(&services), roles, pages }
    }

    fn metrics_text(&self) -> String {
        for (_, ready, service) in &self.roles {
            ready.set(i64::from(self.health.is_ready(service)));
        }
        let of_roles = self.roles.iter().map(|(metrics, _, _)| metrics.gather());
        metrics::encode(of_roles.chain([self.process.gather()]))
    }
}

/// A running admin server. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct AdminServer {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Binds, and serves from a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be bound, or there is no thread to have.
    pub(crate) fn start(address: SocketAddr, state: AdminState, boards: Boards) -> anyhow::Result<AdminServer> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot bind {address} (SEKIWAKE_ADMIN)"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_MAKER_THREADS)
            .thread_name("status")
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (end, ended) = oneshot::channel();
        let (status_requests, requests) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            let listener = BoundedListener { listener, open: VecDeque::new() };
            runtime.block_on(async move {
                tokio::spawn(boards.serve(requests));
                tokio::select! {
                    _ = ended => {}
                    _ = axum::serve(listener, router(state, status_requests).into_make_service_with_connect_info::<Life>()) => {}
                }
            });
            // Dropped, it would wait for a function of a status, which need not return.
            runtime.shutdown_background();
        })?;
        Ok(AdminServer { address, end: Some(end), thread: Some(thread) })
    }

    /// Where it listens; with the port that the kernel chose, if it was asked for port 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // Errors: it has ended already.
        let _ = self.end.take().map(|end| end.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn router(state: AdminState, status_requests: StatusRequests) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status_page).with_state(status_requests))
        .fallback(get(page_of_role))
        .layer(axum::middleware::map_response(close_after))
        .with_state(Arc::new(state))
}

async fn metrics_page(State(state): State<Arc<AdminState>>) -> Response {
    ([(CONTENT_TYPE, METRICS_TYPE)], state.metrics_text()).into_response()
}

async fn healthz(State(state): State<Arc<AdminState>>) -> Response {
    let stuck: Vec<String> = state.health.stuck().iter().map(ToString::to_string).collect();
    verdict("alive", &stuck)
}

async fn readyz(State(state): State<Arc<AdminState>>) -> Response {
    verdict("ready", &state.health.missing())
}

async fn status_page(State(requests): State<StatusRequests>) -> Response {
    let (request, answer) = oneshot::channel();
    // Refused as the server ends; the answer fails then.
    let _ = requests.send(request).await;
    match answer.await {
        Ok(Some(page)) => ([(CONTENT_TYPE, STATUS_TYPE)], page).into_response(),
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "too many pages are being sent\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "ended\n").into_response(),
    }
}

/// Whatever else is asked for. Roles add pages while they start, so they are looked up when somebody asks.
async fn page_of_role(
    State(state): State<Arc<AdminState>>,
    ConnectInfo(life): ConnectInfo<Life>,
    uri: Uri,
) -> Response {
    if !state.pages.has(uri.path()) {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    }
    life.0.store(true, Ordering::Relaxed);
    let answer = state.pages.answer(uri.path(), uri.query().unwrap_or_default()).await;
    if !answer.status().is_success() {
        // A refusal is an answer like any other.
        life.0.store(false, Ordering::Relaxed);
    }
    answer
}

/// 200 and the good word, or 503 and what is wrong, one a line.
fn verdict(good: &str, wrong: &[String]) -> Response {
    match wrong {
        [] => (StatusCode::OK, format!("{good}\n")).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, wrong.join("\n") + "\n").into_response(),
    }
}

/// One request a connection: an idle one would hold a slot.
async fn close_after(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Accepts while there are slots, and gives each connection a limited life.
struct BoundedListener {
    listener: tokio::net::TcpListener,
    /// The connections that may be open, oldest first.
    open: VecDeque<Slot>,
}

/// The listener's end of a connection, which ends when this is dropped.
struct Slot {
    accepted_at: Instant,
    connection: oneshot::Sender<()>,
    life: Life,
}

/// Whether a connection carries a page of a role's own; shared by those who have to know.
#[derive(Clone, Debug, Default)]
struct Life(Arc<AtomicBool>);

impl Life {
    fn has_page(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Life {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Life {
        stream.io().life.clone()
    }
}

impl BoundedListener {
    /// Waits until there is a slot, and takes the oldest connection's if there is none.
    async fn make_room(&mut self) {
        self.open.retain(|slot| !slot.connection.is_closed());
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(index) = self.open.iter().position(|slot| !slot.life.has_page())
            && let Some(mut oldest) = self.open.remove(index)
        {
            tokio::select! {
                () = sleep_until(oldest.accepted_at + UNDISTURBED_TIME) => {}
                () = oldest.connection.closed() => {}
            }
        }
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedConnection, SocketAddr) {
        loop {
            self.make_room().await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let accepted_at = Instant::now();
                    let (connection, slot) = oneshot::channel();
                    let life = Life::default();
                    self.open.push_back(Slot { accepted_at, connection, life: life.clone() });
                    return (BoundedConnection::new(stream, accepted_at, slot, life), peer);
                }
                // Out of descriptors, most likely: let go of the processor until some are free.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is up, or its slot is taken.
struct BoundedConnection {
    stream: tokio::net::TcpStream,
    accepted_at: Instant,
    end: Pin<Box<Sleep>>,
    slot: oneshot::Receiver<()>,
    life: Life,
    read_bytes: usize,
    is_answering: bool,
    /// The peer of a page takes nothing at the moment.
    is_stalled: bool,
    is_over: bool,
}

impl BoundedConnection {
    fn new(
        stream: tokio::net::TcpStream,
        accepted_at: Instant,
        slot: oneshot::Receiver<()>,
        life: Life,
    ) -> BoundedConnection {
        let end = Box::pin(sleep_until(accepted_at + REQUEST_TIME));
        let (is_answering, is_stalled, is_over) = (false, false, false);
        BoundedConnection { stream, accepted_at, end, slot, life, read_bytes: 0, is_answering, is_stalled, is_over }
    }

    /// To be called before bytes of an answer are written. With the first ones the request has come in time.
    fn check_answer_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.is_answering {
            self.is_answering = true;
            let time = if self.life.has_page() { PAGE_TIME } else { CONNECTION_TIME };
            let end = self.accepted_at + time;
            self.end.as_mut().reset(end);
        }
        self.check_time(context)
    }

    /// Notes whether the peer of a page takes what is written: it may pause, and not for long.
    fn note_progress<T>(&mut self, written: &Poll<io::Result<T>>, context: &mut Context<'_>) {
        if !self.life.has_page() || self.is_stalled == written.is_pending() {
            return;
        }
        self.is_stalled = written.is_pending();
        let whole = self.accepted_at + PAGE_TIME;
        let end = if self.is_stalled { whole.min(Instant::now() + STALL_TIME) } else { whole };
        self.end.as_mut().reset(end);
        if self.is_stalled {
            // So that somebody looks when the time is up.
            let _ = self.end.as_mut().poll(context);
        }
    }

    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.is_answering && self.life.has_page() {
            // The request has come; its answer may take a while to begin.
            self.is_answering = true;
            let end = self.accepted_at + PAGE_TIME;
            self.end.as_mut().reset(end);
        }
        if self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // A receiver that has given its answer must not be asked again.
        self.is_over = self.is_over || Pin::new(&mut self.slot).poll(context).is_ready();
        if self.is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for BoundedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read_bytes += buffer.filled().len() - before;
        if self.read_bytes > MAX_REQUEST_BYTES {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        result
    }
}

impl AsyncWrite for BoundedConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_answer_time(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_progress(&written, context);
        written
    }

    /// Without it, each connection would have a copy of its page, where that is shared.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_answer_time(context)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_progress(&written, context);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_time(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Asks an admin server on this host for a page, for the `healthcheck` subcommand: status and body.
///
/// # Errors
/// When nothing answers in time, or what answers is no HTTP.
pub(crate) fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    const TIME_LIMIT: Duration = Duration::from_secs(3);
    const MAX_ANSWER_BYTES: u64 = 64 * 1024;

    let address = SocketAddr::new(reachable(address.ip()), address.port());
    let mut stream =
        TcpStream::connect_timeout(&address, TIME_LIMIT).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIME_LIMIT))?;
    stream.set_write_timeout(Some(TIME_LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer is no HTTP")?;
    Ok((status, body.to_owned()))
}

/// Who listens on all interfaces is reached through the loopback one.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}
