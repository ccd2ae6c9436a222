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
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sekiwake_runtime::Stop;
use sekiwake_sys::signal_of;

use crate::{bell::Bell, zeromq::socket::uninterrupted};

/// A socket, and whether it is known to be empty.
pub(crate) struct Inlet {
    socket: zmq::Socket,
    is_empty: bool,
    /// A wait has noticed a signal, and the socket has not been found empty since.
    is_signalled: bool,
    /// Room for a message ends a wait too.
    awaits_room: bool,
}

impl Inlet {
    pub(crate) fn new(socket: zmq::Socket) -> Inlet {
        Inlet { socket, is_empty: false, is_signalled: false, awaits_room: false }
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
                (self.is_empty, self.is_signalled) = (true, false);
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

    /// Whether a wait has noticed that there may be a message.
    pub(crate) fn is_signalled(&self) -> bool {
        self.is_signalled
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

/// What ends a wait apart from messages.
#[derive(Clone, Copy)]
pub(crate) struct Limit<'a> {
    timeout: Duration,
    /// Readable once the role is to stop.
    stop: Option<BorrowedFd<'a>>,
}

impl<'a> Limit<'a> {
    /// The wait also ends when the role is asked to stop.
    pub(crate) fn or_stop(timeout: Duration, stop: &'a Stop) -> Limit<'a> {
        Limit { timeout, stop: stop.signal() }
    }
}

impl From<Duration> for Limit<'_> {
    fn from(timeout: Duration) -> Self {
        Limit { timeout, stop: None }
    }
}

/// Waits until one of the inlets may have a message, within the limit. A signal of the process ends
/// the wait early.
///
/// The signals of `watched` inlets are noticed, too. Their messages are read at another time, so
/// they do not end a wait that begins while there is one.
pub(crate) fn wait<'a, const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    limit: impl Into<Limit<'a>>,
) -> Result<(), zmq::Error> {
    wait_for(inlets, watched, None, limit.into()).map(drop)
}

/// As [`wait`]. The wait also ends when the descriptor is readable; whether it was is returned.
pub(crate) fn wait_or_readable<'a, const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    descriptor: BorrowedFd<'_>,
    limit: impl Into<Limit<'a>>,
) -> Result<bool, zmq::Error> {
    wait_for(inlets, watched, Some(descriptor), limit.into())
}

/// As [`wait`]. The wait also ends when the bell is rung, and does not begin if `is_due` says so,
/// which is asked when no ring can be missed any more.
pub(crate) fn wait_for_bell<const N: usize, const W: usize>(
    inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    bell: &Bell,
    is_due: impl FnOnce() -> bool,
    limit: Limit<'_>,
) -> Result<(), zmq::Error> {
    bell.begin_wait();
    let is_rung = if is_due() { Ok(false) } else { wait_or_readable(inlets, watched, bell.as_fd(), limit) };
    bell.end_wait();
    if is_rung? {
        bell.silence();
    }
    Ok(())
}

fn wait_for<const N: usize, const W: usize>(
    mut inlets: [&mut Inlet; N],
    watched: [&mut Inlet; W],
    descriptor: Option<BorrowedFd<'_>>,
    limit: Limit<'_>,
) -> Result<bool, zmq::Error> {
    for inlet in &mut inlets {
        if inlet.is_ready()? {
            return Ok(false);
        }
    }
    let failed = |error: io::Error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw);
    let mut items: Vec<PollFd<'_>> = Vec::with_capacity(N + W + 2);
    // Only known-empty inlets are signalled.
    let quiet: Vec<&mut Inlet> = inlets.into_iter().chain(watched).filter(|inlet| inlet.is_empty).collect();
    for inlet in &quiet {
        items.push(PollFd::from_borrowed_fd(signal_of(&inlet.socket).map_err(failed)?, PollFlags::IN));
    }
    let others = descriptor.into_iter().chain(limit.stop);
    items.extend(others.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)));
    let timeout = limit.timeout;
    let limit = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(&mut items, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let is_signalled: Vec<bool> = items.iter().map(|item| !item.revents().is_empty()).collect();
    drop(items);
    let is_readable = descriptor.is_some() && is_signalled.get(quiet.len()) == Some(&true);
    for (inlet, signalled) in quiet.into_iter().zip(is_signalled) {
        inlet.is_empty &= !signalled;
        inlet.is_signalled |= signalled;
    }
    Ok(is_readable)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use sekiwake_runtime::stop_pair;

    use super::*;
    use crate::zeromq::Context;

    /// A wait of this length has missed its signal.
    const LONG: Duration = Duration::from_secs(30);

    /// A reading and a writing socket.
    fn pair(context: &Context, endpoint: &str) -> (Inlet, zmq::Socket) {
        let reader = context.control_server(None).unwrap();
        reader.bind(endpoint).unwrap();
        let writer = context.control_client(&[7; 16], None).unwrap();
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
            let context = Context::default();
            let (mut inlet, writer) = pair(&context, endpoint);
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
        let context = Context::default();
        let (mut inlet, _writer) = pair(&context, "inproc://bell");
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
            wait_for_bell([&mut inlet], [], &bell, is_due, LONG.into()).unwrap();
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
            let context = Context::default();
            let (mut inlet, writer) = pair(&context, endpoint);
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
    fn stop_ends_a_wait_and_no_later_one() {
        let context = Context::default();
        let (mut inlet, _writer) = pair(&context, "inproc://stop");
        assert!(inlet.receive().unwrap().is_none());
        let (mut stopper, stop) = stop_pair();
        let stopping = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(20));
            stopper.stop(Instant::now());
        });
        let since = Instant::now();
        while !stop.stopping() {
            wait([&mut inlet], [], Limit::or_stop(LONG, &stop)).unwrap();
        }
        assert!(since.elapsed() < LONG, "the stop was missed");
        stopping.join().unwrap();
        assert!(Limit::or_stop(LONG, &stop).stop.is_none(), "a thread that drains would spin");
    }

    #[test]
    fn awaited_room_ends_the_wait() {
        const MESSAGES: u32 = 5_000;
        let context = Context::default();
        let reader = context.control_client(&[6; 16], None).unwrap();
        reader.set_rcvhwm(2).unwrap();
        reader.bind("inproc://room").unwrap();
        let writer = context.control_client(&[7; 16], None).unwrap();
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
        let context = Context::default();
        let (mut first, to_first) = pair(&context, "inproc://first");
        let (mut second, to_second) = pair(&context, "inproc://second");
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
        let context = Context::default();
        let (mut inlet, writer) = pair(&context, "inproc://inlet");
        let (mut watched, to_watched) = pair(&context, "inproc://watched");
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
