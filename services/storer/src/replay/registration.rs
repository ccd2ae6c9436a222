//! Has captures leave the replay's destinations alone, so that what is sent is not captured and
//! stored again.
//!
//! ```text
//! addresses ─▶ do devices send to them? ─ no ─▶ register ─▶ approved: the engines send
//!                 │ in the selection, or in 10 s of live traffic     │
//!                 └─ yes ─▶ refused                                  └─ kept until the end
//! ```
//! A registered address that devices send to, too, would be a gap in what is captured.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use sekiwake_archive::{Selection, Templates};
use sekiwake_bus::{Bus, Controlling, Registered, Source, Subscribing, Transport};
use sekiwake_forward::Registry;
use sekiwake_record::{Kind, Name};
use sekiwake_runtime::{Metrics, Scope, host_name};
use tracing::{info, warn};

use crate::stored::{Peeked, Stored};

/// How long live traffic is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// How long the addresses of names must have been the same.
const SETTLED: Duration = Duration::from_millis(500);

/// How often the addresses are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How many stored datagrams are examined between two looks at live traffic.
const EXAMINED_AT_ONCE: usize = 2000;

/// The longest name of a client, bytes.
const MAX_NAME_BYTES: usize = 63;

/// What the registration needs.
pub(super) struct Needs {
    pub(super) subscribing: Subscribing,
    pub(super) controlling: Controlling,
    /// Devices may send to the destinations: that these are not captured is accepted.
    pub(super) allows_gap: bool,
    /// For the check of what was stored.
    pub(super) selection: Selection,
}

/// Whether the replay may send. Dropping it ends the registration.
pub(super) struct Registration(Arc<State>);

#[derive(Default)]
struct State {
    phase: Mutex<Phase>,
    is_done: AtomicBool,
}

/// How far the registration is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Checking,
    /// Captures leave these addresses alone.
    Registered(Vec<SocketAddr>),
    /// Perhaps no longer.
    Interrupted,
    Refused(String),
}

impl Registration {
    /// Registers the addresses of a registry from now on, in a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub(super) fn start(registry: Registry, needs: Needs, scope: &Scope) -> anyhow::Result<Registration> {
        let state = Arc::<State>::default();
        let registrant = Registrant { registry, needs, state: Arc::clone(&state) };
        scope.spawn("registration", move |worker| {
            let state = Arc::clone(&registrant.state);
            let outcome = registrant.run(&|| {
                worker.beat();
                state.is_done.load(Relaxed)
            });
            if let Err(error) = outcome {
                *state.phase() = Phase::Refused(format!("{error:#}"));
            }
            Ok(())
        })?;
        Ok(Registration(state))
    }

    /// The addresses that captures leave alone; `None` while they may not.
    ///
    /// # Errors
    /// Why they do not.
    pub(super) fn addresses(&self) -> anyhow::Result<Option<Vec<SocketAddr>>> {
        match &*self.0.phase() {
            Phase::Checking | Phase::Interrupted => Ok(None),
            Phase::Registered(addresses) => Ok(Some(addresses.clone())),
            Phase::Refused(why) => Err(anyhow!("{why}")),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.is_done.store(true, Relaxed);
    }
}

impl State {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Registrant {
    registry: Registry,
    needs: Needs,
    state: Arc<State>,
}

impl Registrant {
    fn run(&self, is_done: &dyn Fn() -> bool) -> anyhow::Result<()> {
        while let Some((number, addresses)) = self.settled(is_done) {
            if !self.needs.allows_gap {
                self.check(&addresses, is_done)?;
            }
            let client = client();
            let mut registrar = Bus::default().registrar(&self.needs.controlling, client, &addresses)?;
            match registrar.register(is_done)? {
                Registered::Acknowledged => {}
                Registered::Stopped => return Ok(()),
                missing => bail!(
                    "refused: captures on the way would store the replay again, and they cannot be told to leave it \
                     alone at {}: {missing}; --allow-capture if no capture sees the traffic",
                    self.needs.controlling,
                ),
            }
            self.registry.approve(number);
            *self.state.phase() = Phase::Registered(addresses.clone());
            let has_changed = || {
                let (number, now) = self.addresses();
                let is_same = now.iter().all(|address| addresses.contains(address));
                if is_same {
                    self.registry.approve(number);
                }
                is_done() || !is_same
            };
            let mut on_change = |is_registered| {
                *self.state.phase() =
                    if is_registered { Phase::Registered(addresses.clone()) } else { Phase::Interrupted };
                match is_registered {
                    true => info!("destinations registered again, the replay goes on"),
                    false => warn!("proxy unavailable for 3 s, the replay waits"),
                }
            };
            registrar.keep(&has_changed, &mut on_change)?;
        }
        Ok(())
    }

    /// Waits until there are addresses that have not changed for a while. `None`: done.
    fn settled(&self, is_done: &dyn Fn() -> bool) -> Option<(u64, Vec<SocketAddr>)> {
        let mut last = self.addresses();
        let mut since = Instant::now();
        while !is_done() {
            let now = self.addresses();
            if now != last {
                last = now;
                since = Instant::now();
            } else if !last.1.is_empty() && since.elapsed() >= SETTLED {
                return Some(last);
            }
            thread::sleep(LOOK_EVERY);
        }
        None
    }

    /// The number of the list of addresses, and those of UDP in it.
    fn addresses(&self) -> (u64, Vec<SocketAddr>) {
        let list = self.registry.list();
        let udp = list.addresses.into_iter().filter(|one| one.transport == Transport::Udp);
        (list.number, udp.map(|one| canonical(one.address)).collect())
    }

    /// Whether devices send to these addresses: in live traffic, and in what is to be replayed, as
    /// far as that is read in the same time.
    fn check(&self, addresses: &[SocketAddr], is_done: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let shown: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        info!(addresses = shown.join(", "), "watching for 10 s whether devices send to the destinations");
        let prefixes = Kind::ALL.map(|kind| format!("{kind}/"));
        let mut live = Bus::default().source(&self.needs.subscribing, &prefixes, &Metrics::new("replay"), None)?;
        let selection = Selection { templates: Templates::None, ..self.needs.selection.clone() };
        let mut stored = Stored::open(selection).context("cannot read what is stored")?;
        let mut is_read = false;
        let until = Instant::now() + WATCHED;
        while Instant::now() < until && !is_done() {
            let patience = if is_read { LOOK_EVERY } else { Duration::ZERO };
            if let Some(device) = next_to(&mut *live, addresses, patience)? {
                return Err(refusal(device.destination, &format!("{} does now", device.source)));
            }
            for _ in 0..EXAMINED_AT_ONCE {
                match stored.peek(Duration::ZERO) {
                    Peeked::Datagram(datagram) => {
                        let record = &datagram.record;
                        if let Some(address) = sent_to(addresses, record.destination, record.destination_port) {
                            return Err(refusal(address, &format!("{} did in what was selected", record.source)));
                        }
                    }
                    Peeked::Nothing => break,
                    Peeked::End => {
                        is_read = true;
                        break;
                    }
                }
                stored.advance();
            }
        }
        Ok(())
    }
}

/// Who sends where.
struct Device {
    source: IpAddr,
    destination: SocketAddr,
}

/// A device that sends to one of these addresses now.
fn next_to(live: &mut dyn Source, addresses: &[SocketAddr], patience: Duration) -> anyhow::Result<Option<Device>> {
    let Some(delivery) = live.receive(patience)? else { return Ok(None) };
    Ok(delivery.batch.records().find_map(|record| {
        let destination = sent_to(addresses, record.destination, record.destination_port)?;
        Some(Device { source: record.source, destination })
    }))
}

/// The address among these that a datagram was sent to.
pub(super) fn sent_to(addresses: &[SocketAddr], destination: IpAddr, port: u16) -> Option<SocketAddr> {
    let destination = canonical(SocketAddr::new(destination, port));
    addresses.contains(&destination).then_some(destination)
}

/// Why an address is refused. `who` sends to it.
pub(super) fn refusal(address: SocketAddr, who: &str) -> anyhow::Error {
    anyhow!(
        "refused: devices send to {address} ({who}), and captures would leave all of that alone while the replay runs; \
         --allow-capture-gap if that may be"
    )
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The name of this client.
fn client() -> Name {
    let text: String = format!("replay.{}", host_name()).chars().take(MAX_NAME_BYTES).collect();
    Name::new(&text).unwrap_or_else(|_| host_name())
}
