//! Sending in the name of the devices: their addresses and ports survive.
//!
//! ```text
//!                    ┌─ the device's own socket: UDP_SEGMENT ──── long runs of one source
//! datagrams, by      │
//! source together ───┼─ one raw socket: many sources in a call ── everything else, of any size
//!                    │
//!                    └─ the plain socket: our address ─────────── what cannot or must not be spoofed, counted
//! ```
//!
//! Address and port are kept on both ways of spoofing, whatever the size (the kernel fragments), whoever holds the port on this host,
//! and however often an exporter changes it. It takes NET_RAW and nothing else: for ports below 1024 no NET_BIND_SERVICE.
//!
//! ICMP errors about spoofed datagrams go to the devices, so whether such a destination is up is not known, except that a
//! missing route or neighbour shows.

mod cache;
mod checksum;
mod raw;
mod socket;
mod source;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sekiwake_sys::{MAX_MESSAGES, Outgoing, send_batch};
use socket2::Domain;

pub(crate) use self::source::Fallback;
use self::{cache::SocketCache, raw::RawSender, socket::drain_errors, source::hindrance};
use crate::{
    plan::{Message, plan},
    preflight::probe,
    udp::{Fault, UdpSender},
};

/// From this many datagrams on, a run of one source is worth a socket and a system call of its own. Measured: two of equal size
/// cost a fifth more that way than through the raw socket, four cost a third less (of mixed sizes: the same), eight half.
const LONG_RUN: usize = 4;

/// The most datagrams that one call takes.
const MAX_DATAGRAMS: usize = 512;

/// How often a call is repeated when the echo of an earlier datagram has made it fail.
const ECHOES_AT_ONCE: u32 = 3;

/// A datagram, and in whose name it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spoofed<'a> {
    /// The device. An IPv4-mapped address is not taken for IPv4 ([`std::net::IpAddr::to_canonical`] is the caller's).
    pub(crate) source: SocketAddr,
    /// What it sent.
    pub(crate) payload: &'a [u8],
    /// IPv4 type of service or IPv6 traffic class, if another one than 0.
    pub(crate) tos: Option<u8>,
    /// Whether it shall leave from an address of this host all the same.
    pub(crate) own_address: bool,
}

impl Spoofed<'_> {
    /// Whether one message may hold both, as far as addresses go.
    fn continues(&self, before: &Spoofed<'_>) -> bool {
        self.source == before.source && self.tos == before.tos && self.own_address == before.own_address
    }
}

/// The socket that a send call went to.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Raw,
    Own(SocketAddr),
}

/// What sends to one destination in the name of the devices.
#[derive(Debug)]
pub(crate) struct SpoofSender {
    destination: SocketAddr,
    plain: UdpSender,
    /// The address from which this host sends there.
    local: IpAddr,
    raw: RawSender,
    sockets: SocketCache,
    segmentation: bool,
    segmentation_refused: u64,
    fallbacks: [u64; Fallback::ALL.len()],
    /// Where the last call went.
    last: Way,
    messages: Vec<Message>,
}

impl SpoofSender {
    /// # Errors
    /// No route, no privilege, or a kernel without the options that are needed.
    pub(crate) fn connect(destination: SocketAddr) -> io::Result<SpoofSender> {
        let plain = UdpSender::connect(destination)?;
        let local = probe(destination)?.local_addr()?.ip();
        let raw = RawSender::connect(destination, local)?;
        Ok(SpoofSender {
            destination,
            plain,
            local,
            raw,
            sockets: SocketCache::new(destination),
            segmentation: true,
            segmentation_refused: 0,
            fallbacks: [0; Fallback::ALL.len()],
            last: Way::Raw,
            messages: Vec::new(),
        })
    }

    /// Whether this process may spoof at all; to be asked once, at start.
    ///
    /// # Errors
    /// What is missing, and how to give it.
    pub(crate) fn check_privilege() -> Result<(), SpoofError> {
        for domain in [Domain::IPV4, Domain::IPV6] {
            match raw::open(domain) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(SpoofError::NotPermitted),
                // Another error is a matter of one IP version, which may be switched off here, and of its destinations.
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether this host has a way to the destination in its own name.
    pub(crate) fn has_route(&self) -> bool {
        probe(self.destination).is_ok()
    }

    /// Switches segmentation on or off (`gso=false`). Without it everything leaves singly.
    pub(crate) fn set_segmentation(&mut self, enabled: bool) {
        self.segmentation = enabled;
        if !enabled {
            self.sockets.clear();
        }
    }

    /// How often kernel or device refused segmentation, which then is off, since the last time this was asked.
    pub(crate) fn take_segmentation_refused(&mut self) -> u64 {
        std::mem::take(&mut self.segmentation_refused)
    }

    /// Asks the kernel what it knows of the path's MTU by now.
    pub(crate) fn refresh_mtu(&mut self) {
        self.plain.refresh_mtu();
    }

    /// Datagrams that left with our address since the last time this was asked, in the order of [`Fallback::ALL`].
    pub(crate) fn take_fallbacks(&mut self) -> [u64; Fallback::ALL.len()] {
        std::mem::take(&mut self.fallbacks)
    }

    /// Sockets of single devices: how many there are, and how many have ever been opened.
    pub(crate) fn sockets(&self) -> (usize, u64) {
        (self.sockets.len(), self.sockets.opened())
    }

    /// Sends the first of `datagrams`, as many as go into one system call, and says how many the kernel took. Datagrams of one source
    /// leave in their order; those that stand together leave faster.
    ///
    /// # Errors
    /// Those of the first datagram, and what they call for is as with the plain socket ([`Fault::of`]); an error that only a
    /// segmented message has is dealt with here.
    pub(crate) fn send(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        let Some(first) = datagrams.first() else { return Ok(0) };
        if self.hindrance(first).is_some() {
            return self.send_plain(datagrams);
        }
        let now = Instant::now();
        if self.gets_socket(datagrams, now) {
            let run = run_length(datagrams, MAX_DATAGRAMS);
            match self.send_own(&datagrams[..run]) {
                Err(error) if is_about_the_form(&error) => {}
                outcome => return outcome,
            }
        }
        let mut count = 1;
        let room = datagrams.len().min(MAX_MESSAGES);
        while count < room && self.hindrance(&datagrams[count]).is_none() {
            let begins = !datagrams[count].continues(&datagrams[count - 1]);
            if begins && self.gets_socket(&datagrams[count..], now) {
                break;
            }
            count += 1;
        }
        self.last = Way::Raw;
        let raw = &mut self.raw;
        past_echoes(|| raw.send(&datagrams[..count]).map_err(|error| (error, drain_errors(raw.socket()))))
    }

    /// Takes the ICMP errors that have come back for what left with our address, as [`UdpSender::take_errors`], and empties the
    /// queues of the other sockets.
    pub(crate) fn take_errors(&self, heed: impl FnMut(io::Error)) -> usize {
        drain_errors(self.raw.socket());
        self.plain.take_errors(heed)
    }

    /// Waits until the socket that the last call went to has room again.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        let socket = match self.last {
            Way::Plain => return self.plain.wait_writable(timeout),
            Way::Raw => self.raw.socket(),
            Way::Own(source) => self.sockets.existing(source).unwrap_or(self.raw.socket()),
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // Whatever poll says, the next send says it better.
        let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout));
    }

    fn hindrance(&self, datagram: &Spoofed<'_>) -> Option<Fallback> {
        if datagram.own_address {
            return Some(Fallback::Inform);
        }
        hindrance(datagram.source.ip(), self.destination)
    }

    /// Whether the first of these begins a run that leaves through its source's own socket.
    fn gets_socket(&mut self, datagrams: &[Spoofed<'_>], now: Instant) -> bool {
        self.segmentation
            && run_length(datagrams, LONG_RUN) == LONG_RUN
            && self.sockets.socket(datagrams[0].source, now, self.local).is_some()
    }

    /// Sends what leads `datagrams` and cannot be spoofed.
    fn send_plain(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        self.last = Way::Plain;
        let tos = datagrams[0].tos;
        let reasons: ArrayVec<Fallback, MAX_DATAGRAMS> = datagrams
            .iter()
            .take(MAX_DATAGRAMS)
            .take_while(|datagram| datagram.tos == tos)
            .map_while(|datagram| self.hindrance(datagram))
            .collect();
        let max_segment_bytes = if self.segmentation { self.plain.max_segment_bytes() } else { 0 };
        let plain = &self.plain;
        let sent = send_planned(&datagrams[..reasons.len()], max_segment_bytes, &mut self.messages, |messages| {
            plain.send(messages)
        });
        let sent = match sent {
            Err(error) if is_about_the_form(&error) && self.segmentation => {
                self.form_refused();
                let single = [IoSlice::new(datagrams[0].payload)];
                self.plain.send(&[Outgoing { slices: &single, tos, ..Outgoing::default() }])
            }
            sent => sent,
        }?;
        reasons[..sent].iter().for_each(|reason| self.fallbacks[reason.index()] += 1);
        Ok(sent)
    }

    /// Sends a run of one source through its own socket, which is there.
    fn send_own(&mut self, run: &[Spoofed<'_>]) -> io::Result<usize> {
        let source = run[0].source;
        self.last = Way::Own(source);
        let max_segment_bytes = self.plain.max_segment_bytes();
        let messages = &mut self.messages;
        let Some(socket) = self.sockets.existing(source) else { return Err(Errno::MSGSIZE.into()) };
        let outcome = past_echoes(|| {
            let send = |outgoing: &[Outgoing<'_>]| send_batch(socket.as_fd(), outgoing);
            send_planned(run, max_segment_bytes, messages, send).map_err(|error| (error, drain_errors(socket)))
        });
        if outcome.as_ref().is_err_and(is_about_the_form) {
            self.form_refused();
        }
        outcome
    }

    /// A segmented message does not leave: because the path has become narrower, or because somebody on the way out does not segment,
    /// and then it is not tried again.
    fn form_refused(&mut self) {
        let before = self.plain.max_segment_bytes();
        self.plain.refresh_mtu();
        if self.plain.max_segment_bytes() >= before {
            self.segmentation_refused += 1;
            self.set_segmentation(false);
        }
    }
}

/// Sends datagrams of equal source and type of service with as few messages as their sizes allow, and says how many datagrams the
/// kernel took.
fn send_planned(
    datagrams: &[Spoofed<'_>],
    max_segment_bytes: usize,
    messages: &mut Vec<Message>,
    send: impl Fn(&[Outgoing<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let payloads: ArrayVec<IoSlice<'_>, MAX_DATAGRAMS> =
        datagrams.iter().take(MAX_DATAGRAMS).map(|datagram| IoSlice::new(datagram.payload)).collect();
    plan(&payloads, 0, max_segment_bytes, messages);
    let tos = datagrams.first().and_then(|datagram| datagram.tos);
    let outgoing: ArrayVec<Outgoing<'_>, MAX_MESSAGES> = messages
        .iter()
        .take(MAX_MESSAGES)
        .map(|message| Outgoing {
            slices: &payloads[message.datagrams()],
            segment_bytes: message.segment_bytes,
            tos,
            ..Outgoing::default()
        })
        .collect();
    let sent = send(&outgoing)?;
    Ok(messages[..sent].iter().map(|message| message.count as usize).sum())
}

/// Repeats a call that has failed while its socket's error queue says that an earlier datagram is what was refused.
fn past_echoes(mut call: impl FnMut() -> Result<usize, (io::Error, bool)>) -> io::Result<usize> {
    let mut echoes = 0;
    loop {
        match call() {
            Ok(sent) => return Ok(sent),
            Err((_, true)) if echoes < ECHOES_AT_ONCE => echoes += 1,
            Err((error, _)) => return Err(error),
        }
    }
}

/// Whether sending the same in another form may succeed.
fn is_about_the_form(error: &io::Error) -> bool {
    use crate::metrics::ErrorKind::{MessageTooLong, Other};
    matches!(Fault::of(error), Fault::Unsendable(MessageTooLong | Other))
}

/// How many datagrams lead that one source sent in one way, `most` at most.
fn run_length(datagrams: &[Spoofed<'_>], most: usize) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    datagrams.iter().take(most).take_while(|datagram| datagram.continues(first)).count()
}

/// Why spoofing cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpoofError {
    /// NET_RAW is missing.
    #[error(
        "keeping the devices' addresses (spoof=true) takes the capability CAP_NET_RAW, which this process does not have; give it with \
         `setcap cap_net_raw+ep` on the binary, AmbientCapabilities=CAP_NET_RAW in a systemd unit, `--cap-add NET_RAW` for a \
         container, or securityContext.capabilities.add: [\"NET_RAW\"] in Kubernetes"
    )]
    NotPermitted,
}
