//! Where one destination is at the moment: its address, which may change, and the socket that is connected to it.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use sekiwake_runtime::RateLimited;
use tracing::warn;

use crate::{
    destination::{Host, Place},
    egress::{Egress, Sending},
    health::Standing,
    metrics::DropReason,
    preflight::Preflight,
    registry::Registration,
    resolve::{Addresses, Resolution},
};

/// How often a socket is made again for an address that has none, or whose socket keeps failing.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// The address of a destination and the socket connected to it, as far as there are any.
pub(crate) struct Target {
    label: String,
    /// `None` when the destination was written as an address.
    addresses: Option<Addresses>,
    /// The address in use.
    address: Option<SocketAddr>,
    /// The address to move to as soon as captures leave alone what goes there.
    next: Option<SocketAddr>,
    registration: Registration,
    preflight: Preflight,
    standing: Standing,
    sending: Sending,
    sender: Option<Egress>,
    connected_at: Option<Instant>,
    refused_log: RateLimited,
}

impl Target {
    /// # Errors
    /// When the system gives no thread for look-ups.
    pub(crate) fn new(
        label: String,
        (place, sending): (&Place, Sending),
        resolution: Resolution,
        failures: IntCounter,
        (mut registration, preflight, standing): (Registration, Preflight, Standing),
    ) -> io::Result<Target> {
        let (addresses, next) = match &place.host {
            Host::Address(ip) => (None, Some(SocketAddr::new(*ip, place.port))),
            Host::Name(name) => (Some(Addresses::of(name.clone(), place.port, resolution, failures)?), None),
        };
        if let Some(address) = next {
            preflight.look(address);
            registration.propose(address);
        }
        Ok(Target {
            label,
            addresses,
            address: None,
            next,
            registration,
            preflight,
            standing,
            sending,
            sender: None,
            connected_at: None,
            refused_log: RateLimited::default(),
        })
    }

    /// Whether it has no address yet that captures know, so that nothing can be sent for reasons of our own.
    pub(crate) fn awaits_approval(&self) -> bool {
        self.address.is_none() && self.next.is_some()
    }

    /// The connected socket.
    ///
    /// # Errors
    /// Why datagrams cannot leave now, as the reason to drop those that have waited too long for it.
    pub(crate) fn sender(&mut self, now: Instant) -> Result<&mut Egress, DropReason> {
        if let Some(address) = self.addresses.as_ref().and_then(Addresses::changed) {
            self.propose(address);
        }
        if self.next.is_some() && self.registration.may_use() {
            self.move_on();
        }
        if self.sender.is_none() {
            self.reconnect(now);
        }
        let absence = if self.address.is_none() { DropReason::Unresolved } else { DropReason::Unreachable };
        self.sender.as_mut().ok_or(absence)
    }

    /// Makes the socket again, unless that was done less than a second ago: with a route that has changed, a connected socket
    /// may be left with a source address that is no longer ours. Says whether there is a new one.
    pub(crate) fn reconnect(&mut self, now: Instant) -> bool {
        let Some(address) = self.address else { return false };
        if self.connected_at.is_some_and(|at| now.duration_since(at) < RECONNECT_EVERY) {
            return false;
        }
        self.connected_at = Some(now);
        match Egress::connect(address, self.sending) {
            Ok(sender) => {
                self.sender = Some(sender);
                true
            }
            Err(error) => {
                if let Some(suppressed) = self.refused_log.allow(now) {
                    let destination = &*self.label;
                    warn!(destination, %address, %error, suppressed, "cannot connect a socket to the destination");
                }
                false
            }
        }
    }

    /// Lets time pass; ends early when the address has changed.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        match &self.addresses {
            None => thread::sleep(timeout),
            Some(addresses) => {
                if let Some(address) = addresses.wait(timeout) {
                    self.propose(address);
                }
            }
        }
    }

    fn propose(&mut self, address: SocketAddr) {
        self.next = Some(address);
        self.preflight.look(address);
        self.registration.propose(address);
    }

    fn move_on(&mut self) {
        if self.address.is_some() {
            self.standing.moved();
        }
        self.address = self.next.take();
        self.registration.moved();
        self.sender = None;
        self.connected_at = None;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt,
        sync::{Arc, Mutex},
    };

    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    use super::*;
    use crate::Registry;

    /// Keeps the fields of each event as text.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Lines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.push_str(&format!("{}={value:?} ", field.name()));
        }
    }

    #[test]
    fn a_socket_that_cannot_be_made_is_told_with_its_errno_and_not_too_often() {
        // Without a zone the kernel never connects to it.
        let address = "[fe80::1]:514".parse().unwrap();
        let mut target = Target {
            label: "udp://siem.example:514".to_owned(),
            addresses: None,
            address: Some(address),
            next: None,
            registration: Registry::open().register(),
            preflight: Preflight::new("", false, &sekiwake_runtime::Metrics::new("test")),
            standing: Standing::new(prometheus::Gauge::new("up", "up").unwrap()),
            sending: Sending { spoof: false, segmentation: true },
            sender: None,
            connected_at: None,
            refused_log: RateLimited::default(),
        };
        let (lines, start) = (Lines::default(), Instant::now());
        tracing::subscriber::with_default(lines.clone(), || {
            for second in 0..11 {
                assert_eq!(target.sender(start + second * RECONNECT_EVERY).err(), Some(DropReason::Unreachable));
            }
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for text in ["destination=\"udp://siem.example:514\"", "address=[fe80::1]:514", "(os error ", "suppressed=9"] {
            assert!(lines[1].contains(text), "{text}: {lines:?}");
        }
    }
}
