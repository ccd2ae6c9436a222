//! Sending with the addresses and ports of the devices.
//!
//! ```text
//!                   ┌─ a socket per device: UDP_SEGMENT ─── long runs of one source
//! datagrams by       │
//! source ───────────┼─ raw socket: many sources per call ─── all others, of any size
//!                   │
//!                   └─ plain socket: our address ─────────── those that cannot be spoofed
//! ```
//!
//! Both ways of spoofing keep address and port, for datagrams of any size (the kernel fragments),
//! even if a daemon on this host has the port, and however often an exporter changes it. They need
//! NET_RAW and no other capability: no NET_BIND_SERVICE for ports below 1024.
//!
//! ICMP errors about spoofed datagrams go to the devices, so the state of such a destination is
//! unknown, except that a missing route or neighbour shows.

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
use socket2::{Domain, Socket};

use self::{cache::SocketCache, raw::RawSender, socket::drain_errors, source::fallback_reason};
use crate::{
    metrics::Fallback,
    udp::{
        plan::{Message, plan},
        socket::{Fault, UdpSender, probe},
    },
};

/// From this many datagrams on, a run of one source gets a socket and a system call of its own.
/// Measured: two of equal size cost a fifth more that way than through the raw socket, four a third
/// less (mixed sizes: the same), eight half.
const LONG_RUN: usize = 4;

/// Maximum number of datagrams per call.
const MAX_DATAGRAMS: usize = 512;

/// How often a call is repeated when an ICMP error about an earlier datagram made it fail.
const ECHOES_AT_ONCE: u32 = 3;

/// A datagram, and the source to send it with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spoofed<'a> {
    /// The device. The caller has made the address canonical ([`std::net::IpAddr::to_canonical`]).
    pub(crate) source: SocketAddr,
    /// Its payload.
    pub(crate) payload: &'a [u8],
    /// IPv4 type of service or IPv6 traffic class, if it is not 0.
    pub(crate) tos: Option<u8>,
    /// Whether it must be sent with an address of this host.
    pub(crate) own_address: bool,
}

impl Spoofed<'_> {
    /// Whether both may be in one message, as far as addresses and the class are concerned.
    fn continues(&self, before: &Spoofed<'_>) -> bool {
        self.source == before.source && self.tos == before.tos && self.own_address == before.own_address
    }
}

/// The socket of a send call.
#[derive(Clone, Copy, Debug)]
enum Route {
    Plain,
    Raw,
    Own(SocketAddr),
}

/// Sends to one destination with the addresses of the devices.
#[derive(Debug)]
pub(crate) struct SpoofSender {
    destination: SocketAddr,
    plain: UdpSender,
    /// The address that this host itself sends from.
    local: IpAddr,
    raw: RawSender,
    sockets: SocketCache,
    segmentation: bool,
    gso_rejected: u64,
    fallbacks: [u64; Fallback::ALL.len()],
    /// The socket of the last call.
    last: Route,
    messages: Vec<Message>,
}

impl SpoofSender {
    /// # Errors
    /// No route, no privilege, or a kernel without the required options.
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
            gso_rejected: 0,
            fallbacks: [0; Fallback::ALL.len()],
            last: Route::Raw,
            messages: Vec::new(),
        })
    }

    /// Whether this process may spoof at all; to be checked once, at the start.
    ///
    /// # Errors
    /// The missing privilege, and how to grant it.
    pub(crate) fn check_privilege() -> Result<(), SpoofError> {
        for domain in [Domain::IPV4, Domain::IPV6] {
            match raw::open(domain) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(SpoofError::NotPermitted),
                // Other errors concern one IP version, which may be switched off here, and fail its
                // destinations only.
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether this host has a route to the destination from its own address.
    pub(crate) fn has_route(&self) -> bool {
        probe(self.destination).is_ok()
    }

    /// Switches segmentation on or off (`gso=false`). Without it every datagram is a message of its
    /// own.
    pub(crate) fn set_segmentation(&mut self, enabled: bool) {
        self.segmentation = enabled;
        if !enabled {
            self.sockets.clear();
        }
    }

    /// How often kernel or device rejected segmentation since the last call. Each switches it off.
    pub(crate) fn take_gso_rejected(&mut self) -> u64 {
        std::mem::take(&mut self.gso_rejected)
    }

    /// Reads the path's MTU from the kernel.
    pub(crate) fn refresh_mtu(&mut self) {
        self.plain.refresh_mtu();
    }

    /// Datagrams sent with our address since the last call, in the order of [`Fallback::ALL`].
    pub(crate) fn take_fallbacks(&mut self) -> [u64; Fallback::ALL.len()] {
        std::mem::take(&mut self.fallbacks)
    }

    /// How many per-device sockets are open.
    pub(crate) fn open_sockets(&self) -> usize {
        self.sockets.len()
    }

    /// How many per-device sockets are open, and how many have ever been opened.
    #[cfg(test)]
    fn sockets(&self) -> (usize, u64) {
        (self.sockets.len(), self.sockets.opened())
    }

    /// Sends the first of `datagrams`, as many as one system call takes, and returns how many the
    /// kernel accepted. Datagrams of one source are sent in their order; adjacent ones are sent
    /// faster.
    ///
    /// # Errors
    /// Those of the first datagram, to be handled as with the plain socket ([`Fault::of`]). Errors
    /// that only a segmented message can cause are handled here.
    pub(crate) fn send(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        let Some(first) = datagrams.first() else { return Ok(0) };
        if self.fallback_reason(first).is_some() {
            return self.send_plain(datagrams);
        }
        let now = Instant::now();
        if self.gets_socket(datagrams, now) {
            let run = run_length(datagrams, MAX_DATAGRAMS);
            match self.send_own(&datagrams[..run]) {
                Err(error) if is_about_form(&error) => {}
                outcome => return outcome,
            }
        }
        let mut count = 1;
        let room = datagrams.len().min(MAX_MESSAGES);
        while count < room && self.fallback_reason(&datagrams[count]).is_none() {
            let begins = !datagrams[count].continues(&datagrams[count - 1]);
            if begins && self.gets_socket(&datagrams[count..], now) {
                break;
            }
            count += 1;
        }
        self.last = Route::Raw;
        self.raw.send(&datagrams[..count])
    }

    /// Takes the ICMP errors about datagrams with our address, as [`UdpSender::take_errors`], and
    /// empties the queue of the raw socket.
    pub(crate) fn take_errors(&self, handle: impl FnMut(io::Error)) -> usize {
        drain_errors(self.raw.socket());
        self.plain.take_errors(handle)
    }

    /// Waits until the socket of the last call is writable.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        let socket = match self.last {
            Route::Plain => return self.plain.wait_writable(timeout),
            Route::Raw => self.raw.socket(),
            Route::Own(source) => self.sockets.existing(source).unwrap_or(self.raw.socket()),
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An error of poll does not matter: the next send reports it.
        let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout));
    }

    fn fallback_reason(&self, datagram: &Spoofed<'_>) -> Option<Fallback> {
        if datagram.own_address {
            return Some(Fallback::Inform);
        }
        fallback_reason(datagram.source.ip(), self.destination)
    }

    /// Whether these begin with a run that is sent through its source's own socket.
    fn gets_socket(&mut self, datagrams: &[Spoofed<'_>], now: Instant) -> bool {
        self.segmentation
            && run_length(datagrams, LONG_RUN) == LONG_RUN
            && self.sockets.socket(datagrams[0].source, now, self.local).is_some()
    }

    /// Sends the leading datagrams that cannot be spoofed.
    fn send_plain(&mut self, datagrams: &[Spoofed<'_>]) -> io::Result<usize> {
        self.last = Route::Plain;
        let tos = datagrams[0].tos;
        let reasons: ArrayVec<Fallback, MAX_DATAGRAMS> = datagrams
            .iter()
            .take(MAX_DATAGRAMS)
            .take_while(|datagram| datagram.tos == tos)
            .map_while(|datagram| self.fallback_reason(datagram))
            .collect();
        let max_segment_bytes = if self.segmentation { self.plain.max_segment_bytes() } else { 0 };
        let plain = &self.plain;
        let sent = send_planned(&datagrams[..reasons.len()], max_segment_bytes, &mut self.messages, |messages| {
            plain.send(messages)
        });
        let sent = match sent {
            Err(error) if is_about_form(&error) && self.segmentation => {
                self.segments_rejected();
                let single = [IoSlice::new(datagrams[0].payload)];
                self.plain.send(&[Outgoing { slices: &single, tos, ..Outgoing::default() }])
            }
            sent => sent,
        }?;
        reasons[..sent].iter().for_each(|reason| self.fallbacks[reason.index()] += 1);
        Ok(sent)
    }

    /// Sends a run of one source through its own socket, which must be open.
    fn send_own(&mut self, run: &[Spoofed<'_>]) -> io::Result<usize> {
        let source = run[0].source;
        self.last = Route::Own(source);
        let max_segment_bytes = self.plain.max_segment_bytes();
        let messages = &mut self.messages;
        let Some(socket) = self.sockets.existing(source) else { return Err(Errno::MSGSIZE.into()) };
        let send = |outgoing: &[Outgoing<'_>]| send_batch(socket.as_fd(), outgoing);
        let outcome = past_echoes(socket, || send_planned(run, max_segment_bytes, messages, send));
        if outcome.as_ref().is_err_and(is_about_form) {
            self.segments_rejected();
        }
        outcome
    }

    /// A segmented message was rejected: the path's MTU has become smaller, or kernel or device
    /// cannot segment, and then segmentation is switched off.
    fn segments_rejected(&mut self) {
        let before = self.plain.max_segment_bytes();
        self.plain.refresh_mtu();
        if self.plain.max_segment_bytes() >= before {
            self.gso_rejected += 1;
            self.set_segmentation(false);
        }
    }
}

/// Sends datagrams of one source and type of service in as few messages as their sizes allow, and
/// returns how many datagrams the kernel accepted.
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

/// Repeats a failed call while the socket's error queue has ICMP errors, because then the failure
/// is about an earlier datagram.
fn past_echoes(socket: &Socket, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let mut echoes = 0;
    loop {
        let error = match call() {
            Ok(sent) => return Ok(sent),
            Err(error) => error,
        };
        // Always drained, because errors that are left would make the next call fail.
        let is_echo = drain_errors(socket);
        if !is_echo || echoes == ECHOES_AT_ONCE {
            return Err(error);
        }
        echoes += 1;
    }
}

/// Whether the same datagrams may be accepted in another form.
fn is_about_form(error: &io::Error) -> bool {
    use crate::metrics::ErrorKind::{MessageTooLong, Other};
    matches!(Fault::of(error), Fault::Unsendable(MessageTooLong | Other))
}

/// The length of the leading run of one source and class, at most `most`.
fn run_length(datagrams: &[Spoofed<'_>], most: usize) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    datagrams.iter().take(most).take_while(|datagram| datagram.continues(first)).count()
}

/// Why this process may not spoof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpoofError {
    /// NET_RAW is missing.
    #[error(
        "spoof=true needs the capability CAP_NET_RAW, which this process does not have; grant it with \
         `setcap cap_net_raw+ep` on the binary, AmbientCapabilities=CAP_NET_RAW in a systemd unit, `--cap-add NET_RAW` for a \
         container, or securityContext.capabilities.add: [\"NET_RAW\"] in Kubernetes"
    )]
    NotPermitted,
}
