//! The receiving thread of a forwarder: batches from the bus to the engine, addresses from the
//! destinations to the control plane, and hand-off state between the two.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_bus::{BusError, Frame, GroupDelivery, GroupSource, Leaving, Progress, RegisteredDestination};
use sekiwake_runtime::Worker;

use crate::{Engine, RegisteredAddress, Registry, config::reload::Inbox, templates::handoff::HandoffBuffer};

/// The longest sleep while acknowledgements are expected, which must reach the group soon when a
/// shard changes hands, while there is hand-off state to exchange, or while captures do not know
/// the destinations yet.
const PATIENCE: Duration = Duration::from_millis(20);

/// The same otherwise, so that changed destinations and requests for status are noticed. A stop
/// ends the wait.
const IDLE: Duration = Duration::from_millis(500);

/// How soon it is checked again whether destinations have caught up.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Carries batches from the bus to the engine, and addresses from the destinations to the control
/// plane.
pub(crate) struct Pump {
    source: Box<dyn GroupSource>,
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
        source: Box<dyn GroupSource>,
        mut engine: Engine<Frame>,
        inbox: Inbox,
        registry: Registry,
    ) -> Pump {
        let handoff = engine.flows().map(|_| HandoffBuffer::default());
        Pump { source, engine, inbox, registry, registered: 0, handoff, leaving: None }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.inbox.apply(|destinations| {
                self.engine.apply(destinations)?;
                self.source.set_destinations_digest(destinations.digest());
                Ok(())
            });
            self.register();
            // Batches that are not received now wait at the proxy, or are repaired by their
            // publisher.
            let is_behind = self.engine.is_behind() || self.handoff.as_ref().is_some_and(HandoffBuffer::is_behind);
            self.source.set_is_full(is_behind);
            let delivery = self.next(is_behind)?;
            let received = delivery.is_some();
            match (&mut self.handoff, self.engine.flows()) {
                (Some(handoff), Some(flows)) => {
                    let now = Instant::now();
                    handoff.exchange(&mut *self.source, flows, now);
                    if let Some(delivery) = delivery {
                        handoff.take_in(delivery, &*self.source, now);
                    }
                    for delivery in handoff.take_ready() {
                        offer(&mut self.engine, delivery);
                    }
                }
                _ => {
                    if let Some(delivery) = delivery {
                        offer(&mut self.engine, delivery);
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

    /// The next batch, if there is one before the time to look after other things.
    fn next(&mut self, is_behind: bool) -> Result<Option<GroupDelivery>, BusError> {
        if is_behind {
            self.engine.flush();
            self.source.poll_control(CATCH_UP)?;
            return Ok(None);
        }
        if let Some(delivery) = self.source.try_receive()? {
            return Ok(Some(delivery));
        }
        // Batches that have arrived together are sent together.
        self.engine.flush();
        let is_busy = self.leaving.is_some()
            || self.source.has_outstanding()
            || !self.source.may_use_destinations()
            || self.handoff.as_ref().is_some_and(|handoff| !handoff.is_idle());
        self.source.receive(if is_busy { PATIENCE } else { IDLE })
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
            self.source.set_destinations(list.addresses.into_iter().map(destination).collect());
            self.registered = list.number;
        }
        if self.source.may_use_destinations() {
            self.registry.approve(self.registered);
        }
    }

    /// Releases the shards. `true`: all are released.
    fn stop(&mut self, received: bool, deadline: Instant) -> bool {
        let now = Instant::now();
        let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
        let is_behind = self.engine.is_behind();
        let is_put = self.handoff.as_ref().is_none_or(|handoff| handoff.is_published(&*self.source));
        leaving.advance(&mut *self.source, Progress { received, is_behind, is_put }, now)
    }
}

fn offer(engine: &mut Engine<Frame>, delivery: GroupDelivery) {
    engine.offer(&Arc::new(delivery.into()));
}
