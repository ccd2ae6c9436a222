//! Pauses listening sockets that a library waits for with epoll(7).
//!
//! libzmq ignores an `accept` that fails because the process has no descriptor left. The socket
//! stays readable, so that its I/O thread calls `accept` again without a pause, and takes each
//! descriptor that becomes free. It has no call to stop listening that keeps the accepted
//! connections.

use std::{
    fs,
    os::fd::{BorrowedFd, RawFd},
};

use libc::{EPOLL_CTL_MOD, EPOLLIN, c_int, epoll_event};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketAddr, getsockname, sockopt::socket_acceptconn},
};

/// A listening TCP socket in an epoll instance of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollListener {
    epoll: RawFd,
    socket: RawFd,
    events: u32,
    data: u64,
}

/// The listening sockets of these ports. They are in `/proc`, so this needs a free descriptor.
pub fn epoll_listeners(ports: &[u16]) -> Vec<EpollListener> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(epoll) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]") {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| EpollListener::parse(epoll, line)));
        }
    }
    found.retain(|listener| listener.port().is_some_and(|port| ports.contains(&port)));
    found
}

impl EpollListener {
    /// A line of fdinfo (proc_pid_fdinfo(5)): `tfd:        5 events:        1 data:     ffffffff`.
    fn parse(epoll: RawFd, line: &str) -> Option<EpollListener> {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let socket = words.next()?.parse().ok()?;
        let mut value_of = |name: &str| words.next().filter(|word| *word == name).and_then(|_| words.next());
        let events = u32::from_str_radix(value_of("events:")?, 16).ok()?;
        let data = u64::from_str_radix(value_of("data:")?, 16).ok()?;
        Some(EpollListener { epoll, socket, events, data })
    }

    /// Whether connections wait to be accepted.
    pub fn has_waiting(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(self.socket(), PollFlags::IN)], Some(&now)) == Ok(1)
    }

    /// From now on epoll reports no connections of this socket.
    ///
    /// The library must not have closed the socket, nor close it at the same time: the caller
    /// controls that, and has bound its port.
    pub fn pause(&self) {
        self.set_events(self.events & !(EPOLLIN as u32));
    }

    /// Undoes [`EpollListener::pause`].
    pub fn resume(&self) {
        self.set_events(self.events | EPOLLIN as u32);
    }

    fn set_events(&self, events: u32) {
        let mut event = epoll_event { events, u64: self.data };
        // SAFETY: the kernel reads the event and keeps no reference to it. The data is what the
        // library registered for this socket, which is still open. An error means that the socket
        // is not registered any more, and that nothing was changed.
        let _ignored: c_int = unsafe { libc::epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.socket, &raw mut event) };
    }

    fn port(&self) -> Option<u16> {
        if !socket_acceptconn(self.socket()).ok()? {
            return None;
        }
        SocketAddr::try_from(getsockname(self.socket()).ok()?).ok().map(|address| address.port())
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is used for system calls that change nothing and return an error if it
        // is closed.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }
}
