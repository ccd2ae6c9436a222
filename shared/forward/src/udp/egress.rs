//! The sockets of one endpoint: with our own address, or with the devices'.

use std::{io, net::SocketAddr, time::Duration};

use super::{flush::Flush, socket::UdpSender};
use crate::{metrics::DestinationMetrics, spoof::SpoofSender};

/// Which sockets an endpoint needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketOptions {
    pub(crate) spoof: bool,
    /// Whether runs may be sent as one message.
    pub(crate) segmentation: bool,
}

/// The sockets connected to one address.
#[derive(Debug)]
pub(crate) enum Egress {
    Plain(UdpSender),
    Spoofing(Box<SpoofSender>),
}

impl Egress {
    /// # Errors
    /// No route, no socket, no privilege.
    pub(crate) fn connect(address: SocketAddr, options: SocketOptions) -> io::Result<Egress> {
        if !options.spoof {
            return Ok(Egress::Plain(UdpSender::connect(address)?));
        }
        let mut sender = SpoofSender::connect(address)?;
        sender.set_segmentation(options.segmentation);
        Ok(Egress::Spoofing(Box::new(sender)))
    }

    /// Sends the next messages of the flush, and returns how many the kernel accepted.
    pub(crate) fn send(&mut self, flush: &Flush<'_>) -> io::Result<usize> {
        match self {
            Egress::Plain(sender) => sender.send(&flush.window()),
            Egress::Spoofing(sender) => sender.send(&flush.spoofed_window()),
        }
    }

    /// The largest datagram that may be one of several in a message; 0 for a sender that plans its
    /// own messages.
    pub(crate) fn max_segment_bytes(&self) -> usize {
        match self {
            Egress::Plain(sender) => sender.max_segment_bytes(),
            Egress::Spoofing(_) => 0,
        }
    }

    pub(crate) fn refresh_mtu(&mut self) {
        match self {
            Egress::Plain(sender) => sender.refresh_mtu(),
            Egress::Spoofing(sender) => sender.refresh_mtu(),
        }
    }

    /// As [`UdpSender::take_errors`]. Errors about spoofed datagrams go to the devices.
    pub(crate) fn take_errors(&mut self, handle: impl FnMut(io::Error)) -> usize {
        match self {
            Egress::Plain(sender) => sender.take_errors(handle),
            Egress::Spoofing(sender) => sender.take_errors(handle),
        }
    }

    /// Whether there is a route to the address from our own address.
    pub(crate) fn has_route(&self) -> bool {
        match self {
            Egress::Plain(_) => true,
            Egress::Spoofing(sender) => sender.has_route(),
        }
    }

    /// Adds the counts since the last call to the metrics.
    pub(crate) fn report(&mut self, metrics: &DestinationMetrics) {
        let Egress::Spoofing(sender) = self else { return };
        for (counter, count) in metrics.spoof_fallbacks.iter().zip(sender.take_fallbacks()).filter(|(_, n)| *n > 0) {
            counter.inc_by(count);
        }
        metrics.spoof_sockets.set(sender.open_sockets() as i64);
        let rejected = sender.take_gso_rejected();
        if rejected > 0 {
            metrics.gso_rejected.inc_by(rejected);
        }
    }

    /// Waits until the socket is writable.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        match self {
            Egress::Plain(sender) => sender.wait_writable(timeout),
            Egress::Spoofing(sender) => sender.wait_writable(timeout),
        }
    }
}
