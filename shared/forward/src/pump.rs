//! The receiving thread of a forwarder: batches from the bus to the engine, addresses from the destinations to the control plane, and what
//! is known of exporters between the two.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{Frame, GroupSubscriber, Leaving, Progress, RegisteredDestination, Transport};
use sekiwake_runtime::Worker;

use crate::{Engine, Parcel, Registry, noting::Noting, reload::Inbox};

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
    leaving: Option<Leaving>,
}

impl Pump {
    pub(crate) fn new(subscriber: GroupSubscriber, engine: Engine<Frame>, inbox: Inbox, registry: Registry) -> Pump {
        Pump { subscriber, engine, inbox, registry, registered: 0, noting: Noting::default(), leaving: None }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.inbox.apply(|destinations| self.engine.apply(destinations));
            self.register();
            // What is not received now waits at the proxy, or is repeated by its publisher.
            let is_behind = self.engine.is_behind() || self.noting.is_behind();
            self.subscriber.set_has_enough(is_behind);
            let delivery = if is_behind {
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
            for delivery in self.noting.take_ready() {
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

    /// Gives the shards back, and says when that is done.
    fn stop(&mut self, received: bool, deadline: Instant) -> bool {
        let now = Instant::now();
        let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
        let (is_behind, is_noted) = (self.engine.is_behind(), self.noting.is_noted(&self.subscriber));
        leaving.go_on(&mut self.subscriber, Progress { received, is_behind, is_noted }, now)
    }
}
