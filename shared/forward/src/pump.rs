//! The receiving thread of a forwarder: batches from the bus to the engine, addresses from the destinations to the control plane, and what
//! is known of exporters between the two.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{Frame, GroupSubscriber, RegisteredDestination, Transport};
use sekiwake_runtime::Worker;
use tracing::warn;

use crate::{Engine, Parcel, Registry, noting::Noting, reload::Inbox};

/// How long nothing must have come before a forwarder that has its group to itself, and is told to stop, believes that nothing
/// more comes.
const QUIET: Duration = Duration::from_millis(200);

/// The longest sleep: completions have to get to the group soon when a shard changes hands.
const PATIENCE: Duration = Duration::from_millis(20);

/// How soon it is looked again whether destinations have caught up.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Carries batches from the bus to the engine, and addresses from the destinations to the control plane.
pub(crate) struct Pump {
    subscriber: GroupSubscriber,
    engine: Engine<Frame>,
    /// Destinations that have changed.
    inbox: Inbox,
    registry: Registry,
    /// The number of the list of addresses that was registered last.
    registered: u64,
    noting: Noting,
    stop: Option<Stopping>,
}

/// A pump that has been told to stop.
struct Stopping {
    /// When something came last.
    last: Instant,
    /// Silence is waited for no longer than until then: the rest of the time is for giving the shards back.
    quiet_until: Instant,
    /// What is queued leaves until then.
    leave_until: Instant,
    leaving: bool,
}

impl Pump {
    pub(crate) fn new(subscriber: GroupSubscriber, engine: Engine<Frame>, inbox: Inbox, registry: Registry) -> Pump {
        Pump { subscriber, engine, inbox, registry, registered: 0, noting: Noting::default(), stop: None }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.inbox.apply(|destinations| self.engine.apply(destinations));
            self.register();
            // What is not received now waits at the proxy, or is repeated by its publisher.
            let delivery = if self.engine.is_behind() {
                self.subscriber.tend(CATCH_UP)?;
                None
            } else {
                self.subscriber.receive(PATIENCE)?
            };
            let received = delivery.is_some();
            let now = Instant::now();
            self.noting.exchange(&mut self.subscriber, &mut self.engine, now);
            if let Some(delivery) = delivery {
                self.noting.take_in(delivery, &self.subscriber, now);
            }
            while let Some(delivery) = self.noting.next(&self.subscriber, now) {
                self.engine.forward(&Arc::new(Parcel::new(delivery.batch, delivery.ticket)));
            }
            if let Some(deadline) = worker.deadline()
                && self.stop(received, deadline)
            {
                return Ok(());
            }
        }
    }

    /// Tells the control plane of addresses that have changed, and destinations when they may be used.
    fn register(&mut self) {
        if self.registry.number() != self.registered {
            let (number, addresses) = self.registry.list();
            let destination = |(address, transport): (SocketAddr, Transport)| {
                RegisteredDestination::new(address.ip(), address.port(), transport)
            };
            self.subscriber.set_destinations(addresses.into_iter().map(destination).collect());
            self.registered = number;
        }
        if self.subscriber.may_use_destinations() {
            self.registry.approve(self.registered);
        }
    }

    /// Gives the shards back, and says when that is done. A member that has the group to itself first takes what still comes:
    /// nobody else would, and captures that were told to stop at the same time wait for it.
    fn stop(&mut self, received: bool, deadline: Instant) -> bool {
        let now = Instant::now();
        let stopping = self.stop.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            Stopping { last: now, quiet_until: now + left / 2, leave_until: now + left * 9 / 10, leaving: false }
        });
        // Silence of our own making is none: work that is not done, holes that are being repaired.
        if received || !stopping.leaving && (self.engine.is_behind() || !self.subscriber.is_caught_up()) {
            stopping.last = now;
        }
        let quiet = now.duration_since(stopping.last) >= QUIET || now >= stopping.quiet_until;
        let is_noted = self.noting.is_noted(&self.subscriber) || now >= stopping.quiet_until;
        if !stopping.leaving && is_noted && (quiet || !self.subscriber.owns_all()) {
            stopping.leaving = true;
            self.subscriber.leave();
        }
        if !stopping.leaving {
            return false;
        }
        if self.subscriber.has_left() {
            return true;
        }
        // Without a proxy there is nobody to give anything back to; what was sent and not committed is sent again by others.
        let alone = quiet && !self.subscriber.has_lease();
        if alone || now >= stopping.leave_until {
            warn!("ending without having given all shards back: the group takes them when the lease runs out");
            return true;
        }
        false
    }
}
