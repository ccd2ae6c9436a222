//! Sockets that a thread waits for, with few system calls.
//!
//! Each call of libzmq that finds nothing asks the kernel, and `zmq_poll` asks for each socket
//! before and after it waits. An [`Inlet`] remembers that its socket is empty, and [`wait`] waits
//! for the sockets' signals itself.
//!
//! libzmq signals a message only if the socket has been found empty, and every call on the socket
//! may take the signal, which says nothing about what it was for. Therefore an inlet is asked once
//! more before the wait if anything but [`Inlet::receive`] has been called since.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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
    /// Room for a message ends a wait too.
    awaits_room: bool,
}

impl Inlet {
    pub(crate) fn new(socket: zmq::Socket) -> Inlet {
        Inlet { socket, is_empty: false, awaits_room: false }
    }

    /// The next message, or the first part of it, without blocking. Once it has found none, only a
    /// wait finds the next one, or any other use of the socket.
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
        self.awaits_room = false;
        &mut self.socket
    }

    /// Asks libzmq again. To be called by a thread that has no time to wait.
    pub(crate) fn ask_again(&mut self) {
        self.is_empty = false;
    }

    /// Until the socket is used again, a wait also ends when it has room for a message to send. To
    /// be called when a message was not sent because there was none.
    pub(crate) fn await_room(&mut self) {
        self.awaits_room = true;
    }

    /// Whether there is a message, or room that is awaited, as far as libzmq knows.
    fn is_ready(&mut self) -> Result<bool, zmq::Error> {
        if self.is_empty {
            return Ok(false);
        }
        let events = self.socket.get_events()?;
        self.is_empty = !events.contains(zmq::POLLIN);
        Ok(!self.is_empty || self.awaits_room && events.contains(zmq::POLLOUT))
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
    wait_for(inlets, watched, None, timeout).map(drop)
}

/// As [`wait`]. The wait also ends when the descriptor is readable; whether it was is returned.
pub(crate) fn wait_or_readable<const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    descriptor: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<bool, zmq::Error> {
    wait_for(inlets, watched, Some(descriptor), timeout)
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
    let is_rung =
        if is_due() { Ok(false) } else { wait_or_readable(inlets, watched, bell.descriptor.as_fd(), timeout) };
    bell.is_awaited.store(false, Ordering::Relaxed);
    if is_rung? {
        // It cannot fail: it is readable, and only this thread reads.
        let _ = read(&bell.descriptor, &mut [0; 8]);
    }
    Ok(())
}

fn wait_for<const N: usize, const W: usize>(
    mut inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    descriptor: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<bool, zmq::Error> {
    for inlet in &mut inlets {
        if inlet.is_ready()? {
            return Ok(false);
        }
    }
    let failed = |error: io::Error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw);
    let mut items: Vec<PollFd<'_>> = Vec::with_capacity(N + W + 1);
    // Only known-empty inlets are signalled.
    let quiet: Vec<&mut Inlet> = inlets.into_iter().chain(watched).filter(|inlet| inlet.is_empty).collect();
    for inlet in &quiet {
        items.push(PollFd::from_borrowed_fd(signal_of(&inlet.socket).map_err(failed)?, PollFlags::IN));
    }
    items.extend(descriptor.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)));
    let limit = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(&mut items, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let is_signalled: Vec<bool> = items.iter().map(|item| !item.revents().is_empty()).collect();
    drop(items);
    let is_readable = is_signalled.get(quiet.len()) == Some(&true);
    for (inlet, signalled) in quiet.into_iter().zip(is_signalled) {
        inlet.is_empty &= !signalled;
    }
    Ok(is_readable)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;
    use crate::Bus;

    /// A wait of this length has missed its signal.
    const LONG: Duration = Duration::from_secs(30);

    /// A reading and a writing socket.
    fn pair(bus: &Bus, endpoint: &str) -> (Inlet, zmq::Socket) {
        let reader = bus.control_server(None).unwrap();
        reader.bind(endpoint).unwrap();
        let writer = bus.control_client(&[7; 16], None).unwrap();
        writer.connect(&reader.get_last_endpoint().unwrap().unwrap()).unwrap();
        (Inlet::new(reader), writer)
    }

    /// Waits for a signal, which must not be missed.
    fn wait_for_signal(inlet: &mut Inlet) {
        let since = Instant::now();
        wait([inlet], [], LONG).unwrap();
        assert!(since.elapsed() < LONG, "no signal");
    }

    fn next(inlet: &mut Inlet) -> Vec<u8> {
        loop {
            if let Some(id) = inlet.receive().unwrap() {
                assert!(id.get_more());
                return inlet.socket().recv_bytes(0).unwrap();
            }
            wait_for_signal(inlet);
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
            let since = Instant::now();
            wait_for_bell([&mut inlet], [], &bell, is_due, LONG).unwrap();
            assert!(since.elapsed() < LONG, "no ring");
            if let Some(number) = due {
                assert_eq!(number, next);
                next += 1;
            }
        }
        ringer.join().unwrap();
    }

    #[test]
    fn threads_that_answer_each_other_miss_no_signal() {
        const ROUNDS: u32 = 20_000;
        for endpoint in ["inproc://answer", "tcp://127.0.0.1:0"] {
            let bus = Bus::default();
            let (mut inlet, writer) = pair(&bus, endpoint);
            let mut writer = Inlet::new(writer);
            // Each sends at any time relative to the other's calls, and sleeps between.
            let peer = std::thread::spawn(move || {
                let mut answered = 0;
                for round in 0..ROUNDS {
                    writer.socket().send(&round.to_le_bytes()[..], 0).unwrap();
                    if round % 3 == 0 {
                        while writer.receive().unwrap().is_some() {
                            answered += 1;
                        }
                    } else if answered + 64 < round {
                        wait_for_signal(&mut writer);
                    }
                }
                while answered < ROUNDS {
                    match writer.receive().unwrap() {
                        Some(_) => answered += 1,
                        None => wait_for_signal(&mut writer),
                    }
                }
                writer
            });
            for round in 0..ROUNDS {
                assert_eq!(next(&mut inlet), round.to_le_bytes());
                inlet.socket().send_multipart([&[7; 16][..], b"answer"], 0).unwrap();
            }
            peer.join().unwrap();
        }
    }

    #[test]
    fn awaited_room_ends_the_wait() {
        const MESSAGES: u32 = 5_000;
        let bus = Bus::default();
        let reader = bus.control_client(&[6; 16], None).unwrap();
        reader.set_rcvhwm(2).unwrap();
        reader.bind("inproc://room").unwrap();
        let writer = bus.control_client(&[7; 16], None).unwrap();
        writer.set_sndhwm(2).unwrap();
        writer.connect("inproc://room").unwrap();
        let mut writer = Inlet::new(writer);
        let reading = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                assert_eq!(reader.recv_bytes(0).unwrap(), number.to_le_bytes());
            }
            reader
        });
        let mut waits = 0;
        for number in 0..MESSAGES {
            while let Err(error) = writer.socket().send(&number.to_le_bytes()[..], zmq::DONTWAIT) {
                assert_eq!(error, zmq::Error::EAGAIN);
                waits += 1;
                writer.await_room();
                wait_for_signal(&mut writer);
            }
        }
        assert!(waits > 0, "there was always room, so nothing was tested");
        reading.join().unwrap();
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
