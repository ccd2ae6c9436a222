//! The admin server: `/metrics`, `/healthz`, `/readyz`, `/status`, and the pages of roles.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, Version, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::IntGauge;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::sync::{mpsc, oneshot};

use crate::{
    connection::{self, PageSlot, SEND_BUFFER},
    descriptors,
    health::Health,
    metrics::{self, Metrics, ProcessMetrics},
    pages::Pages,
    site::Sites,
    status::{MAX_FUNCTION_THREADS, MAX_WAITING, StatusPage, StatusPages},
};

/// The text format of Prometheus.
const METRICS_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// JSON, which is UTF-8 (RFC 8259 §8.1, §11).
const STATUS_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// The channel on which a request for `/status` asks for its page.
type StatusRequests = mpsc::Sender<oneshot::Sender<StatusPage>>;

/// The state behind the pages.
#[derive(Debug)]
pub(crate) struct AdminState {
    health: Arc<Health>,
    process: ProcessMetrics,
    roles: Vec<RoleMetrics>,
    pages: Pages,
    sites: Sites,
}

#[derive(Debug)]
struct RoleMetrics {
    service: &'static str,
    metrics: Metrics,
    /// `sekiwake_ready`, set when the metrics are read.
    ready: IntGauge,
}

impl AdminState {
    pub(crate) fn new<'a>(
        health: Arc<Health>,
        roles: impl Iterator<Item = (&'static str, &'a Metrics)>,
        pages: Pages,
        sites: Sites,
    ) -> AdminState {
        let roles: Vec<RoleMetrics> = roles
            .map(|(service, metrics)| {
                let ready = metrics.gauge("sekiwake_ready", "Whether the service is ready (1) or not (0).", &[]);
                RoleMetrics { service, metrics: metrics.clone(), ready }
            })
            .collect();
        let services: Vec<&str> = roles.iter().map(|role| role.service).collect();
        AdminState { health, process: ProcessMetrics::new(&services), roles, pages, sites }
    }

    fn metrics_text(&self) -> String {
        for role in &self.roles {
            role.ready.set(i64::from(self.health.is_ready(role.service)));
        }
        let gathered = self.roles.iter().map(|role| role.metrics.gather());
        // The process's own metrics are read from /proc.
        let process = descriptors::with_reserve(|| self.process.gather());
        metrics::encode(gathered.chain([process]))
    }
}

/// A running admin server. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct AdminServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Binds, and serves from a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be bound, or the thread cannot be spawned.
    pub(crate) fn start(address: SocketAddr, state: AdminState, status: StatusPages) -> anyhow::Result<AdminServer> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot bind {address} (SEKIWAKE_ADMIN)"))?;
        listener.set_nonblocking(true)?;
        // Accepted sockets inherit it.
        set_socket_send_buffer_size(&listener, SEND_BUFFER)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_FUNCTION_THREADS)
            .thread_name("status")
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let (status_requests, requests) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::spawn(status.serve(requests));
                tokio::select! {
                    _ = stopped => {}
                    () = connection::serve(listener, router(state, status_requests)) => {}
                }
            });
            // Dropping the runtime would wait for status functions, which may never return.
            runtime.shutdown_background();
        })?;
        Ok(AdminServer { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The bound address; with the port that the kernel chose for port 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn router(state: AdminState, status_requests: StatusRequests) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/status", get(status_page).with_state(status_requests))
        .fallback(role_page)
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
    // An error means that the server is ending; receiving the response then also fails.
    let _ = requests.send(request).await;
    match answer.await {
        Ok(Some(page)) => ([(CONTENT_TYPE, STATUS_TYPE)], page).into_response(),
        Ok(None) => (StatusCode::SERVICE_UNAVAILABLE, "too many status pages are being sent\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the service is ending\n").into_response(),
    }
}

/// Every other path. Roles add pages while they start, so the page is looked up per request.
async fn role_page(
    State(state): State<Arc<AdminState>>,
    Extension(slot): Extension<Arc<PageSlot>>,
    request: Request,
) -> Response {
    let Some(page) = state.pages.get(request.uri().path()) else {
        return match state.sites.get(request.uri().path()) {
            Some(site) => site.respond(request).await,
            None => (StatusCode::NOT_FOUND, "no such page\n").into_response(),
        };
    };
    if request.method() != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, "method not allowed, use GET\n").into_response();
    }
    if request.version() < Version::HTTP_11 {
        // Without chunked encoding a truncated response would look complete.
        return (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "this page needs HTTP/1.1\n").into_response();
    }
    page.answer(request.uri().query().unwrap_or_default(), &slot).await
}

/// 200 and `good`, or 503 and the problems, one per line.
fn verdict(good: &str, wrong: &[String]) -> Response {
    match wrong {
        [] => (StatusCode::OK, format!("{good}\n")).into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, wrong.join("\n") + "\n").into_response(),
    }
}

/// Fetches a page from an admin server on this host, for the `healthcheck` subcommand: status and
/// body. Written by hand because an HTTP client would be a larger dependency than these lines.
///
/// # Errors
/// When there is no response within the time limit, or it is not HTTP.
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
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).with_context(|| format!("no response from {address}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the response is not HTTP")?;
    Ok((status, body.to_owned()))
}

/// The loopback address, for a server that listens on all interfaces.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}
