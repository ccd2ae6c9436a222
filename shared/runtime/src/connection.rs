//! The connections of the admin server, bounded in number, size and time.
//!
//! The port may be open to a network. A connection carries one request, whose head has at most
//! [`MAX_REQUEST_BYTES`] and arrives within [`HEAD_TIME`]. It is open for at most
//! [`CONNECTION_TIME`], however slowly the client reads. At most [`MAX_CONNECTIONS`] are open; a
//! new one replaces the oldest, once that has been open for [`UNDISTURBED_TIME`].
//!
//! A role's page may take longer, and few are served at a time. Its connection stays open while the
//! client keeps reading, for at most [`PAGE_TIME`], and is never replaced. It counts against the
//! limit of the page until it is closed.
//!
//! hyper limits the head, tokio-io-timeout the stalls. The connection limit is written by hand
//! because no library replaces the oldest connection; the page limit, because tower's
//! `ConcurrencyLimit` releases its permit after the head of a response, not after its last byte.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, warn};

use crate::{RateLimited, descriptors, health::lock, pages::Permit};

/// The limit on open connections.
const MAX_CONNECTIONS: usize = 128;

/// The time limit of a connection, from accept to the last byte of the response.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// The time limit of a connection that carries a role's page.
const PAGE_TIME: Duration = Duration::from_secs(600);

/// How often such a connection is checked for having reached its limit.
const PAGE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit of the head of a request, from accept.
const HEAD_TIME: Duration = Duration::from_secs(2);

/// How long a client may read nothing.
const STALL_TIME: Duration = Duration::from_secs(10);

/// How long a connection stays open although others wait for its slot: many times the duration of a
/// request.
const UNDISTURBED_TIME: Duration = Duration::from_millis(100);

/// The pause before the next attempt to accept, while no descriptor is free.
const RETRY_ACCEPT: Duration = Duration::from_millis(50);

/// The largest head of a request, bytes. hyper also buffers at most this much of a response.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The socket's send buffer, bytes. The kernel reports a socket as writable when a third of the
/// buffer is free: with a large buffer, a slow and steady client would look stalled.
pub(crate) const SEND_BUFFER: usize = 64 << 10;

/// The permit of the page that a connection carries, if it carries one.
#[derive(Debug, Default)]
pub(crate) struct PageSlot(Mutex<Option<Permit>>);

impl PageSlot {
    /// The connection carries a page. The permit is kept until the connection is closed.
    pub(crate) fn hold(&self, permit: Permit) {
        *lock(&self.0) = Some(permit);
    }

    /// The page was rejected or has failed: its response is as short as any other.
    pub(crate) fn release(&self) {
        lock(&self.0).take();
    }

    fn is_held(&self) -> bool {
        lock(&self.0).is_some()
    }
}

/// An open connection, as the accept loop sees it.
struct OpenConnection {
    accepted_at: Instant,
    task: JoinHandle<()>,
    page: Weak<PageSlot>,
}

impl OpenConnection {
    fn has_page(&self) -> bool {
        self.page.upgrade().is_some_and(|page| page.is_held())
    }
}

/// Accepts and serves connections, and never returns.
pub(crate) async fn serve(listener: TcpListener, router: Router) {
    let mut open = VecDeque::with_capacity(MAX_CONNECTIONS);
    let log = RateLimited::default();
    loop {
        make_room(&mut open).await;
        match accept(&listener).await {
            Ok(stream) => {
                let page = Arc::new(PageSlot::default());
                let slot = Arc::downgrade(&page);
                let task = tokio::spawn(serve_connection(stream, router.clone(), page));
                open.push_back(OpenConnection { accepted_at: Instant::now(), task, page: slot });
            }
            // The client has closed the connection already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // The reserve is used up, too.
            Err(error) => {
                if let Some(suppressed) = log.allow(Instant::now().into_std()) {
                    warn!(%error, suppressed, "cannot accept an admin connection");
                }
                sleep(RETRY_ACCEPT).await;
            }
        }
    }
}

/// The next connection, also if the process has no descriptor left but the reserve.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if Errno::from_io_error(&error) != Some(Errno::MFILE) => return Err(error),
            Err(_) => {}
        }
        match descriptors::on_reserve(|| accept_with(listener, flags)) {
            Ok(stream) => return TcpStream::from_std(stream.into()),
            // The kernel reports the missing descriptor even if no connection waits, so that tokio
            // takes the listener for readable: without the pause this would spin.
            Err(Errno::AGAIN) => sleep(RETRY_ACCEPT).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for a free slot, or closes the oldest connection to make one.
async fn make_room(open: &mut VecDeque<OpenConnection>) {
    loop {
        open.retain(|connection| !connection.task.is_finished());
        if open.len() < MAX_CONNECTIONS {
            return;
        }
        // There are fewer pages than slots, so this finds one.
        let Some(index) = open.iter().position(|connection| !connection.has_page()) else { return };
        let oldest = &mut open[index];
        let ended = timeout_at(oldest.accepted_at + UNDISTURBED_TIME, &mut oldest.task).await.is_ok();
        // It may have begun to carry a page in the meantime.
        if ended || !oldest.has_page() {
            oldest.task.abort();
            open.remove(index);
            return;
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router, page: Arc<PageSlot>) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_TIME));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(MAX_REQUEST_BYTES)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router.layer(Extension(Arc::clone(&page)))),
        );
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                debug!(%error, "admin connection failed");
            }
        }
        () = time_limit(&page) => debug!("admin connection closed: time limit exceeded"),
    }
}

/// Returns when the connection that was accepted just now has reached its time limit.
async fn time_limit(page: &PageSlot) {
    let page_limit = Instant::now() + PAGE_TIME;
    sleep(CONNECTION_TIME).await;
    while page.is_held() && Instant::now() < page_limit {
        sleep(PAGE_CHECK_INTERVAL).await;
    }
}
