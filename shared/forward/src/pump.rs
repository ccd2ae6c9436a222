//! The receiving thread of a forwarder: batches from the bus to the engine, addresses from the
//! destinations to the control plane, and hand-off state between the two.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{Frame, GroupDelivery, GroupSubscriber, Leaving, Progress, RegisteredDestination};
use sekiwake_runtime::Worker;

use crate::{Engine, Parcel, RegisteredAddress, Registry, config::reload::Inbox, templates::handoff::HandoffBuffer};

/// The longest sleep: acknowledgements must reach the group soon when a shard changes hands.
const PATIENCE: Duration = Duration::from_millis(20);

/// How soon it is checked again whether destinations have caught up.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Carries batches from the bus to the engine, and addresses from the destinations to the control
/// plane.
pub(crate) struct Pump {
    subscriber: GroupSubscriber,
    engine: Engine<Frame>,
    /// Changed destinations.
    inbox: Inbox,
    registry: Registry,
    /// The number of the list of addresses that was registered last.
    registered: u64,
    /// Flows only: batches that wait for the templates of their shard.
    handoff: Option<HandoffBuffer>,
    leaving: Option<Leaving>,
}

impl Pump {
    pub(crate) fn new(
        subscriber: GroupSubscriber,
        mut engine: Engine<Frame>,
        inbox: Inbox,
        registry: Registry,
    ) -> Pump {
        let handoff = engine.flows().map(|_| HandoffBuffer::default());
        Pump { subscriber, engine, inbox, registry, registered: 0, handoff, leaving: None }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.inbox.apply(|destinations| {
                self.engine.apply(destinations)?;
                self.subscriber.set_destinations_digest(destinations.digest());
                Ok(())
            });
            self.register();
            // Batches that are not received now wait at the proxy, or are repaired by their
            // publisher.
            let is_behind = self.engine.is_behind() || self.handoff.as_ref().is_some_and(HandoffBuffer::is_behind);
            self.subscriber.set_is_full(is_behind);
            let delivery = if is_behind {
                self.subscriber.poll_control(CATCH_UP)?;
                None
            } else {
                self.subscriber.receive(PATIENCE)?
            };
            let received = delivery.is_some();
            match (&mut self.handoff, self.engine.flows()) {
                (Some(handoff), Some(flows)) => {
                    let now = Instant::now();
                    handoff.exchange(&mut self.subscriber, flows, now);
                    if let Some(delivery) = delivery {
                        handoff.take_in(delivery, &self.subscriber, now);
                    }
                    for delivery in handoff.take_ready() {
                        forward(&mut self.engine, delivery);
                    }
                }
                _ => {
                    if let Some(delivery) = delivery {
                        forward(&mut self.engine, delivery);
                    }
                }
            }
            if let Some(deadline) = worker.deadline()
                && self.stop(received, deadline)
            {
                return Ok(());
            }
        }
    }

    /// Registers changed addresses with the control plane, and approves them once all captures know
    /// them.
    fn register(&mut self) {
        if self.registry.number() != self.registered {
            let list = self.registry.list();
            let destination = |registered: RegisteredAddress| {
                let RegisteredAddress { address, transport } = registered;
                RegisteredDestination::new(address.ip(), address.port(), transport)
            };
            self.subscriber.set_destinations(list.addresses.into_iter().map(destination).collect());
            self.registered = list.number;
        }
        if self.subscriber.may_use_destinations() {
            self.registry.approve(self.registered);
        }
    }

    /// Releases the shards. `true`: all are released.
    fn stop(&mut self, received: bool, deadline: Instant) -> bool {
        let now = Instant::now();
        let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
        let is_behind = self.engine.is_behind();
        let is_put = self.handoff.as_ref().is_none_or(|handoff| handoff.is_published(&self.subscriber));
        leaving.advance(&mut self.subscriber, Progress { received, is_behind, is_put }, now)
    }
}

fn forward(engine: &mut Engine<Frame>, delivery: GroupDelivery) {
    engine.forward(&Arc::new(Parcel::new(delivery.batch, delivery.ack_token)));
}
