//! The address of one endpoint and the socket connected to it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sekiwake_runtime::RateLimited;
use tracing::warn;

use super::egress::{Egress, SocketOptions};
use crate::{
    config::{address::ApprovedAddress, preflight::Preflight},
    metrics::DropReason,
    status::EndpointStatus,
};

/// How often a socket is opened again for an address that has none, or whose socket keeps failing.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// The address of an endpoint and the socket connected to it, if any.
pub(crate) struct Target {
    label: String,
    address: ApprovedAddress,
    sockets: SocketOptions,
    preflight: Preflight,
    /// The addresses whose path was checked since the name last changed.
    checked: Vec<SocketAddr>,
    status: EndpointStatus,
    sender: Option<Egress>,
    connected_at: Option<Instant>,
    /// Why the socket could not be opened last time.
    failure: Option<String>,
    /// When the name's addresses were last begun anew.
    restarted_at: Option<Instant>,
    failed_log: RateLimited,
}

impl Target {
    pub(crate) fn new(
        label: String,
        address: ApprovedAddress,
        sockets: SocketOptions,
        preflight: Preflight,
        status: EndpointStatus,
    ) -> Target {
        let proposed = address.proposed();
        let mut target = Target {
            label,
            address,
            sockets,
            preflight,
            checked: Vec::new(),
            status,
            sender: None,
            connected_at: None,
            failure: None,
            restarted_at: None,
            failed_log: RateLimited::default(),
        };
        target.check(proposed);
        target
    }

    /// Whether the name has not been resolved yet.
    pub(crate) fn is_unresolved(&mut self) -> bool {
        let proposed = self.address.poll();
        self.check(proposed);
        self.status.set_unresolved(self.address.is_unresolved());
        self.address.is_unresolved()
    }

    /// The address in use is refused or unreachable: moves to another one of the name, if there is
    /// one. Its addresses are gone through at most once per second.
    pub(crate) fn try_another(&mut self, now: Instant) -> bool {
        if self.address.is_changing() {
            return true;
        }
        if self.restarted_at.is_some_and(|at| now.duration_since(at) < RECONNECT_EVERY) {
            return false;
        }
        if !self.address.try_another() {
            self.restarted_at = Some(now);
        }
        if !self.address.is_changing() {
            return false;
        }
        if let Some(proposed) = self.address.proposed().filter(|proposed| !self.checked.contains(proposed)) {
            self.preflight.check(proposed);
            self.checked.push(proposed);
        }
        self.sender = None;
        true
    }

    /// Datagrams arrive without errors.
    pub(crate) fn works(&mut self) {
        self.address.works();
    }

    /// Whether captures do not know any address yet: then nothing is sent, and the destination is
    /// not at fault.
    pub(crate) fn awaits_approval(&self) -> bool {
        self.address.awaits_approval()
    }

    /// The connected socket.
    ///
    /// # Errors
    /// Why datagrams cannot be sent now, as the reason to drop those that have waited too long.
    pub(crate) fn sender(&mut self, now: Instant) -> Result<&mut Egress, DropReason> {
        let proposed = self.address.poll();
        self.check(proposed);
        if self.address.may_move_on() {
            self.move_on();
        }
        if self.sender.is_none() && !self.address.is_changing() {
            self.reconnect(now);
        }
        let absence = if self.address.current().is_none() { DropReason::Unresolved } else { DropReason::Unreachable };
        self.sender.as_mut().ok_or(absence)
    }

    /// The connected socket, if it is open and stays in use for now.
    pub(crate) fn open_sender(&mut self) -> Option<&mut Egress> {
        let stays = !self.address.is_changing() && !self.address.may_move_on();
        self.sender.as_mut().filter(|_| stays)
    }

    /// Opens the socket again, unless that was done less than a second ago: after a change of
    /// routes, a connected socket may keep a source address that is no longer ours. Returns whether
    /// there is a new one.
    pub(crate) fn reconnect(&mut self, now: Instant) -> bool {
        let Some(address) = self.address.current() else { return false };
        if self.connected_at.is_some_and(|at| now.duration_since(at) < RECONNECT_EVERY) {
            return false;
        }
        self.connected_at = Some(now);
        match Egress::connect(address, self.sockets) {
            Ok(sender) => {
                self.sender = Some(sender);
                self.failure = None;
                self.status.set_address(address);
                true
            }
            Err(error) => {
                self.failure = Some(format!("no route to {address}: {error}"));
                if let Some(suppressed) = self.failed_log.allow(now) {
                    let destination = &*self.label;
                    warn!(destination, %address, %error, suppressed, "cannot open a socket to the destination");
                }
                false
            }
        }
    }

    /// Why there is no socket.
    pub(crate) fn failure(&self) -> &str {
        self.failure.as_deref().unwrap_or("no usable address")
    }

    /// Lets time pass; ends early when the address has changed.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        let proposed = self.address.wait(timeout);
        self.check(proposed);
    }

    fn check(&mut self, proposed: Option<SocketAddr>) {
        if let Some(address) = proposed {
            self.preflight.check(address);
            self.checked = vec![address];
        }
    }

    fn move_on(&mut self) {
        if self.address.current().is_some() {
            self.status.set_moved();
        }
        self.address.move_on();
        self.sender = None;
        self.connected_at = None;
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_bus::Transport;
    use sekiwake_testkit::log_lines::LogLines;

    use super::*;
    use crate::{
        Registry,
        config::{
            destination::{Endpoint, Host},
            resolve::Resolution,
        },
    };

    #[test]
    fn failed_socket_is_logged_with_its_errno_at_a_limited_rate() {
        // The kernel does not connect to it without a zone.
        let endpoint = Endpoint { host: Host::Address("fe80::1".parse().unwrap()), port: 514 };
        let failures = prometheus::IntCounter::new("failures", "failures").unwrap();
        let registration = Registry::open().register(Transport::Udp);
        let mut target = Target::new(
            "udp://siem.example:514".to_owned(),
            ApprovedAddress::new(&endpoint, Resolution::default(), failures, registration).unwrap(),
            SocketOptions { spoof: false, segmentation: true },
            Preflight::new("", false, &sekiwake_runtime::Metrics::new("test")),
            EndpointStatus::new(prometheus::Gauge::new("up", "up").unwrap()),
        );
        let lines = LogLines::default();
        let start = Instant::now();
        tracing::subscriber::with_default(lines.clone(), || {
            for second in 0..11 {
                assert_eq!(target.sender(start + second * RECONNECT_EVERY).err(), Some(DropReason::Unreachable));
            }
        });
        let lines = lines.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for text in ["destination=\"udp://siem.example:514\"", "address=[fe80::1]:514", "(os error ", "suppressed=9"] {
            assert!(lines[1].contains(text), "{text}: {lines:?}");
        }
    }
}
