//! Sockets that a thread waits for, with few system calls.
//!
//! Each call of libzmq that finds nothing asks the kernel, and `zmq_poll` asks for each socket
//! before and after it waits. An [`Inlet`] remembers that its socket is empty, and [`wait`] waits
//! for the sockets' signals itself.
//!
//! libzmq signals a message only if the socket has been found empty, and every call on the socket
//! may take the signal. Therefore an inlet is asked once more before the wait if anything but
//! [`Inlet::receive`] has been called since.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering, fence},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, read, write},
};
use sekiwake_sys::signal_of;

use crate::socket::uninterrupted;

/// A socket, and whether it is known to be empty.
pub(crate) struct Inlet {
    socket: zmq::Socket,
    is_empty: bool,
}

impl Inlet {
    pub(crate) fn new(socket: zmq::Socket) -> Inlet {
        Inlet { socket, is_empty: false }
    }

    /// The next message, or the first part of it, without blocking.
    pub(crate) fn receive(&mut self) -> Result<Option<zmq::Message>, zmq::Error> {
        if self.is_empty {
            return Ok(None);
        }
        match uninterrupted(|| self.socket.recv_msg(zmq::DONTWAIT)) {
            Ok(message) => Ok(Some(message)),
            Err(zmq::Error::EAGAIN) => {
                self.is_empty = true;
                Ok(None)
            }
            Err(source) => Err(source),
        }
    }

    /// The socket, for everything else.
    pub(crate) fn socket(&mut self) -> &mut zmq::Socket {
        self.is_empty = false;
        &mut self.socket
    }

    /// Whether there is a message, as far as libzmq knows.
    fn has_message(&mut self) -> Result<bool, zmq::Error> {
        if !self.is_empty {
            self.is_empty = !self.socket.get_events()?.contains(zmq::POLLIN);
        }
        Ok(!self.is_empty)
    }
}

/// Ends the wait of a thread for its inlets.
#[derive(Debug)]
pub(crate) struct Bell {
    descriptor: OwnedFd,
    /// The thread waits, or is about to.
    is_awaited: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { descriptor, is_awaited: AtomicBool::new(false) })
    }

    /// Ends the wait, if there is one. The thread sees everything that was done before the call.
    pub(crate) fn ring(&self) {
        // With the fence in `wait_for_bell`, either this sees that the thread is about to wait, or
        // the thread sees what was done.
        fence(Ordering::SeqCst);
        if self.is_awaited.load(Ordering::Relaxed) && self.is_awaited.swap(false, Ordering::Relaxed) {
            // It cannot fail: the counter is far from its limit, because it is rung once per wait.
            let _ = write(&self.descriptor, &1_u64.to_ne_bytes());
        }
    }
}

/// Waits until one of the inlets may have a message, at most for `timeout`. A signal of the process
/// ends the wait early.
///
/// The signals of `watched` inlets are noticed, too. Their messages are read at another time, so
/// they do not end a wait that begins while there is one.
pub(crate) fn wait<const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    timeout: Duration,
) -> Result<(), zmq::Error> {
    wait_for(inlets, watched, None, timeout)
}

/// As [`wait`]. The wait also ends when the bell is rung, and does not begin if `is_due` says so,
/// which is asked when no ring can be missed any more.
pub(crate) fn wait_for_bell<const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    bell: &Bell,
    is_due: impl FnOnce() -> bool,
    timeout: Duration,
) -> Result<(), zmq::Error> {
    bell.is_awaited.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    let waited = if is_due() { Ok(()) } else { wait_for(inlets, watched, Some(bell), timeout) };
    bell.is_awaited.store(false, Ordering::Relaxed);
    waited
}

fn wait_for<const N: usize, const W: usize>(
    mut inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    bell: Option<&Bell>,
    timeout: Duration,
) -> Result<(), zmq::Error> {
    for inlet in &mut inlets {
        if inlet.has_message()? {
            return Ok(());
        }
    }
    let failed = |error: io::Error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw);
    let mut items: Vec<PollFd<'_>> = Vec::with_capacity(N + W + 1);
    // Only known-empty inlets are signalled.
    let quiet: Vec<&mut Inlet> = inlets.into_iter().chain(watched).filter(|inlet| inlet.is_empty).collect();
    for inlet in &quiet {
        items.push(PollFd::from_borrowed_fd(signal_of(&inlet.socket).map_err(failed)?, PollFlags::IN));
    }
    items.extend(bell.map(|bell| PollFd::from_borrowed_fd(bell.descriptor.as_fd(), PollFlags::IN)));
    let limit = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(&mut items, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let is_signalled: Vec<bool> = items.iter().map(|item| !item.revents().is_empty()).collect();
    drop(items);
    if let (Some(bell), Some(true)) = (bell, is_signalled.get(quiet.len())) {
        // It cannot fail: it is readable, and only this thread reads.
        let _ = read(&bell.descriptor, &mut [0; 8]);
    }
    for (inlet, signalled) in quiet.into_iter().zip(is_signalled) {
        inlet.is_empty &= !signalled;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Bus;

    const LONG: Duration = Duration::from_secs(30);

    /// A reading and a writing socket.
    fn pair(bus: &Bus, endpoint: &str) -> (Inlet, zmq::Socket) {
        let reader = bus.control_server(None).unwrap();
        reader.bind(endpoint).unwrap();
        let writer = bus.control_client(&[7; 16], None).unwrap();
        writer.connect(&reader.get_last_endpoint().unwrap().unwrap()).unwrap();
        (Inlet::new(reader), writer)
    }

    fn next(inlet: &mut Inlet) -> Vec<u8> {
        loop {
            if let Some(id) = inlet.receive().unwrap() {
                assert!(id.get_more());
                return inlet.socket().recv_bytes(0).unwrap();
            }
            wait([inlet], [], LONG).unwrap();
        }
    }

    #[test]
    fn no_message_is_missed_whatever_else_is_called() {
        for endpoint in ["inproc://inlet", "tcp://127.0.0.1:0"] {
            let bus = Bus::default();
            let (mut inlet, writer) = pair(&bus, endpoint);
            for round in 0..1_000_u32 {
                writer.send(&round.to_le_bytes()[..], 0).unwrap();
                writer.send(&round.to_be_bytes()[..], 0).unwrap();
                assert_eq!(next(&mut inlet), round.to_le_bytes());
                // It may take the signal of the second message.
                inlet.socket().send_multipart([&[7; 16][..], b"answer"], 0).unwrap();
                assert_eq!(next(&mut inlet), round.to_be_bytes());
                assert_eq!(writer.recv_bytes(0).unwrap(), b"answer");
            }
        }
    }

    #[test]
    fn bell_ends_every_wait() {
        let bus = Bus::default();
        let (mut inlet, _writer) = pair(&bus, "inproc://bell");
        assert!(inlet.receive().unwrap().is_none());
        let bell = Arc::new(Bell::new().unwrap());
        let (sender, receiver) = crossbeam_channel::bounded(1_000);
        let ringer = std::thread::spawn({
            let bell = Arc::clone(&bell);
            move || {
                for number in 0..100_000 {
                    sender.send(number).unwrap();
                    bell.ring();
                }
            }
        });
        let mut next = 0;
        while next < 100_000 {
            let mut due = None;
            // A missed ring would be a wait of this length.
            let is_due = || {
                due = receiver.try_recv().ok();
                due.is_some()
            };
            wait_for_bell([&mut inlet], [], &bell, is_due, LONG).unwrap();
            if let Some(number) = due {
                assert_eq!(number, next);
                next += 1;
            }
        }
        ringer.join().unwrap();
    }

    #[test]
    fn empty_inlets_wait_and_each_of_them_ends_the_wait() {
        let bus = Bus::default();
        let (mut first, to_first) = pair(&bus, "inproc://first");
        let (mut second, to_second) = pair(&bus, "inproc://second");
        wait([&mut first, &mut second], [], Duration::from_millis(1)).unwrap();
        assert!(first.receive().unwrap().is_none() && second.receive().unwrap().is_none());
        to_second.send("second", 0).unwrap();
        wait([&mut first, &mut second], [], LONG).unwrap();
        assert!(first.receive().unwrap().is_none());
        assert_eq!(next(&mut second), b"second");
        to_first.send("first", 0).unwrap();
        wait([&mut first, &mut second], [], LONG).unwrap();
        assert_eq!(next(&mut first), b"first");
    }

    #[test]
    fn unread_messages_of_a_watched_inlet_end_no_wait() {
        let bus = Bus::default();
        let (mut inlet, writer) = pair(&bus, "inproc://inlet");
        let (mut watched, to_watched) = pair(&bus, "inproc://watched");
        assert!(inlet.receive().unwrap().is_none() && watched.receive().unwrap().is_none());
        to_watched.send("watched", 0).unwrap();
        // Its signal does, once.
        wait([&mut inlet], [&mut watched], LONG).unwrap();
        let writing = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(50));
            writer.send("inlet", 0).unwrap();
            writer
        });
        let mut waits = 0;
        while inlet.receive().unwrap().is_none() {
            wait([&mut inlet], [&mut watched], LONG).unwrap();
            waits += 1;
        }
        assert!(waits < 10, "{waits} waits");
        writing.join().unwrap();
        assert_eq!(next(&mut watched), b"watched");
    }
}
