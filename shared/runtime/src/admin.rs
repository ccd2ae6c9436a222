//! The admin server: `/metrics`, `/healthz`, `/readyz`, `/status`, and pages of the roles' own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode, Uri, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{IntGauge, Registry};
use tokio::sync::{mpsc, oneshot};

use crate::connection::{BoundedListener, Life};
use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::pages::Pages;
use crate::status::{Boards, MAX_MAKER_THREADS, MAX_WAITING, Page};

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
            let listener = BoundedListener::new(listener);
            let service = router(state, status_requests).into_make_service_with_connect_info::<Life>();
            runtime.block_on(async move {
                tokio::spawn(boards.serve(requests));
                tokio::select! {
                    _ = ended => {}
                    _ = axum::serve(listener, service) => {}
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
        .fallback(page_of_role)
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
    method: Method,
    version: Version,
    uri: Uri,
) -> Response {
    if !state.pages.has(uri.path()) {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    }
    if method != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, "this page is there to GET\n").into_response();
    }
    if version < Version::HTTP_11 {
        // Without chunks an answer that was cut off looks like a whole one.
        return (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "this page takes HTTP/1.1\n").into_response();
    }
    life.set_page(true);
    let answer = state.pages.answer(uri.path(), uri.query().unwrap_or_default(), |permit| life.hold(permit)).await;
    if !answer.status().is_success() {
        // A refusal is an answer like any other.
        life.set_page(false);
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
