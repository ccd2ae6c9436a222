//! The socket, or the sockets, of one place: in our own name, or in the devices'.

use std::{io, net::SocketAddr, time::Duration};

use crate::{flush::Flush, metrics::DestinationMetrics, spoof::SpoofSender, udp::UdpSender};

/// How datagrams leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    pub(crate) spoof: bool,
    /// Whether runs may leave as one message.
    pub(crate) segmentation: bool,
}

/// What sends to one address.
#[derive(Debug)]
pub(crate) enum Egress {
    Plain(UdpSender),
    Spoofing(Box<SpoofSender>),
}

impl Egress {
    /// # Errors
    /// No route, no socket, no privilege.
    pub(crate) fn connect(address: SocketAddr, sending: Sending) -> io::Result<Egress> {
        if !sending.spoof {
            return Ok(Egress::Plain(UdpSender::connect(address)?));
        }
        let mut sender = SpoofSender::connect(address)?;
        sender.set_segmentation(sending.segmentation);
        Ok(Egress::Spoofing(Box::new(sender)))
    }

    /// Sends the next messages of the flush and says how many the kernel took.
    pub(crate) fn send(&mut self, flush: &Flush<'_>) -> io::Result<usize> {
        match self {
            Egress::Plain(sender) => sender.send(&flush.window()),
            Egress::Spoofing(sender) => sender.send(&flush.spoofed_window()),
        }
    }

    /// The largest datagram that may be one of several in a message; 0 where messages are not planned beforehand.
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

    /// As [`UdpSender::take_errors`]. Those of spoofed datagrams go to the devices.
    pub(crate) fn take_errors(&mut self, heed: impl FnMut(io::Error)) -> usize {
        match self {
            Egress::Plain(sender) => sender.take_errors(heed),
            Egress::Spoofing(sender) => sender.take_errors(heed),
        }
    }

    /// Whether there is a route to the address from our own.
    pub(crate) fn has_route(&self) -> bool {
        match self {
            Egress::Plain(_) => true,
            Egress::Spoofing(sender) => sender.has_route(),
        }
    }

    /// Adds to the metrics what has happened since the last time.
    pub(crate) fn report(&mut self, metrics: &DestinationMetrics) {
        let Egress::Spoofing(sender) = self else { return };
        for (counter, count) in metrics.spoof_fallbacks.iter().zip(sender.take_fallbacks()).filter(|(_, n)| *n > 0) {
            counter.inc_by(count);
        }
        metrics.spoof_sockets.set(sender.sockets().0 as i64);
        let refused = sender.take_segmentation_refused();
        if refused > 0 {
            metrics.segmentation_refused.inc_by(refused);
        }
    }

    /// Waits until there is room again.
    pub(crate) fn wait_writable(&self, timeout: Duration) {
        match self {
            Egress::Plain(sender) => sender.wait_writable(timeout),
            Egress::Spoofing(sender) => sender.wait_writable(timeout),
        }
    }
}
