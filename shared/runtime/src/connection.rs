//! The connections of the admin server, each with a limited life.
//!
//! Its port may be open to a network, so each connection is one request of [`MAX_REQUEST_BYTES`] at most that has come within
//! [`REQUEST_TIME`], and lives [`CONNECTION_TIME`] at most, however slowly the other side reads. There are
//! [`MAX_CONNECTIONS`] at a time: the oldest makes room for a new one, once it has had [`UNDISTURBED_TIME`].
//!
//! A page of a role's own may take long, and there are few at a time: its connection lives while its peer takes something now and then,
//! [`PAGE_TIME`] at most, and makes room for nobody. It counts as one of the page until it ends, not only until the page is made.

use std::{
    collections::VecDeque,
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{
    health::lock,
    pages::{PAGE_TIME, Permit, STALL_TIME},
};

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

/// What the kernel takes of a page ahead of its peer, bytes. It says that there is room again when a third of that is free: with much, a
/// peer that is slow and steady would look like one that takes nothing.
const PAGE_SEND_BUFFER: usize = 64 << 10;

/// Accepts while there are slots, and gives each connection a limited life.
pub(crate) struct BoundedListener {
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
pub(crate) struct Life(Arc<Page>);

#[derive(Debug, Default)]
struct Page {
    is_one: AtomicBool,
    /// Held until the connection ends: there are as many connections of a page as there may be threads.
    permit: Mutex<Option<Permit>>,
}

impl Life {
    /// Says whether the connection carries a page.
    pub(crate) fn set_page(&self, is_one: bool) {
        self.0.is_one.store(is_one, Ordering::Relaxed);
    }

    /// Keeps the page's permit until the connection ends.
    pub(crate) fn hold(&self, permit: Permit) {
        *lock(&self.0.permit) = Some(permit);
    }

    fn has_page(&self) -> bool {
        self.0.is_one.load(Ordering::Relaxed)
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Life {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Life {
        stream.io().life.clone()
    }
}

impl BoundedListener {
    pub(crate) fn new(listener: tokio::net::TcpListener) -> BoundedListener {
        BoundedListener { listener, open: VecDeque::new() }
    }

    /// Waits until there is a slot, and takes the oldest connection's if there is none.
    async fn make_room(&mut self) {
        loop {
            self.open.retain(|slot| !slot.connection.is_closed());
            if self.open.len() < MAX_CONNECTIONS {
                return;
            }
            // There are fewer pages than slots.
            let Some(index) = self.open.iter().position(|slot| !slot.life.has_page()) else { return };
            let oldest = &mut self.open[index];
            tokio::select! {
                () = sleep_until(oldest.accepted_at + UNDISTURBED_TIME) => {}
                () = oldest.connection.closed() => continue,
            }
            // It may have become one meanwhile.
            if !oldest.life.has_page() {
                self.open.remove(index);
                return;
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
pub(crate) struct BoundedConnection {
    stream: tokio::net::TcpStream,
    accepted_at: Instant,
    end: Pin<Box<Sleep>>,
    slot: oneshot::Receiver<()>,
    life: Life,
    read_bytes: usize,
    is_answering: bool,
    /// It lives as long as a page does.
    is_page: bool,
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
        BoundedConnection {
            stream,
            accepted_at,
            end: Box::pin(sleep_until(accepted_at + REQUEST_TIME)),
            slot,
            life,
            read_bytes: 0,
            is_answering: false,
            is_page: false,
            is_stalled: false,
            is_over: false,
        }
    }

    /// To be called before bytes of an answer are written. With the first ones the request has come in time.
    fn check_answer_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.is_answering && !self.is_page {
            let end = self.accepted_at + CONNECTION_TIME;
            self.end.as_mut().reset(end);
        }
        self.is_answering = true;
        self.check_time(context)
    }

    fn check_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.follow_page();
        if self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // A receiver that has given its answer must not be asked again.
        self.is_over = self.is_over || Pin::new(&mut self.slot).poll(context).is_ready();
        if self.is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// The request is one for a page, or has turned out to be refused.
    fn follow_page(&mut self) {
        let is_page = self.life.has_page();
        if self.is_page == is_page {
            return;
        }
        self.is_page = is_page;
        let end = match is_page {
            true => self.accepted_at + PAGE_TIME,
            false => Instant::now() + CONNECTION_TIME,
        };
        self.end.as_mut().reset(end);
        if is_page {
            // A kernel that refuses leaves it at the larger one.
            let _ = set_socket_send_buffer_size(&self.stream, PAGE_SEND_BUFFER);
        }
    }

    /// Notes whether the peer of a page takes what is written: it may pause, and not for long.
    fn note_progress<T>(&mut self, written: &Poll<io::Result<T>>, context: &mut Context<'_>) {
        if !self.is_page || self.is_stalled == written.is_pending() {
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
}

impl Drop for BoundedConnection {
    fn drop(&mut self) {
        // The listener's end of it is looked at when somebody else comes.
        *lock(&self.life.0.permit) = None;
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
