//! Has captures leave destinations alone, from a client that is in no group.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_record::Name;
use sekiwake_runtime::Hangups;

use super::{
    connection::Connection, own::Registrant, settings::JetStreamSettings, state::PROVE_WITHIN, streams::state_config,
};
use crate::{BusError, Registered, Registrar};

/// The pause between two looks at the announcements.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the servers may take to answer at first.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// How long captures may take.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// Time without the servers after which captures may publish what is sent to the destinations.
const AWAY_FOR: Duration = Duration::from_secs(3);

/// A client's registration. Belongs to one thread.
pub(crate) struct JetStreamRegistrar {
    connection: Connection,
    registrant: Registrant,
}

impl JetStreamRegistrar {
    /// `client` names this client in logs, status and metrics.
    ///
    /// # Errors
    /// No descriptor or thread is left, files cannot be used, or no random numbers.
    pub(crate) fn open(
        to: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        client: &Name,
        destinations: &[SocketAddr],
    ) -> Result<JetStreamRegistrar, BusError> {
        let connection = Connection::open(to, hangups, "registrar")?;
        let incarnation = getrandom::u64().map_err(BusError::Random)?;
        let mut registrant = Registrant::new(client.to_string(), incarnation, false);
        registrant.set(destinations.to_vec());
        Ok(JetStreamRegistrar { connection, registrant })
    }

    /// Sends the registration if it is time, and looks whether it is acknowledged; `None` if that
    /// is not known.
    fn turn(&mut self) -> Option<bool> {
        let JetStreamRegistrar { connection, registrant } = self;
        let nats = connection.nats();
        connection.block_on(async {
            if nats.link.is_connected()
                && let Some((subject, message)) = registrant.due(Instant::now())
            {
                nats.send(&subject, message).await;
            }
            let is_acknowledged = match nats.link.is_connected() {
                true => registrant.is_acknowledged(nats).await.ok(),
                false => None,
            };
            tokio::time::sleep(LOOK_EVERY).await;
            is_acknowledged
        })
    }
}

impl Registrar for JetStreamRegistrar {
    fn register(&mut self, is_stopped: &dyn Fn() -> bool) -> Result<Registered, BusError> {
        let started_at = Instant::now();
        let mut answered = false;
        let nats = self.connection.nats().clone();
        loop {
            if is_stopped() {
                return Ok(Registered::Stopped);
            }
            let waited = started_at.elapsed();
            if !answered {
                // The stream has to exist before the registration is sent.
                answered = self.connection.block_on(async {
                    let ensured = nats.ensure(&state_config(&nats.settings)).await;
                    if ensured.is_err() {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    ensured.is_ok()
                });
                if !answered && waited >= ANSWERED_WITHIN {
                    let is_connected = nats.link.is_connected();
                    return Ok(if is_connected { Registered::NoAnswer } else { Registered::NoConnection });
                }
                continue;
            }
            // A publisher that has died is known as such after this time only.
            if self.turn() == Some(true) {
                return Ok(Registered::Acknowledged);
            }
            if waited >= ACKNOWLEDGED_WITHIN + PROVE_WITHIN {
                return Ok(Registered::Late);
            }
        }
    }

    fn keep(
        mut self: Box<Self>,
        is_stopped: &dyn Fn() -> bool,
        on_change: &mut dyn FnMut(bool),
    ) -> Result<(), BusError> {
        let mut is_registered = true;
        let mut known_at = Instant::now();
        while !is_stopped() {
            if self.turn() == Some(true) {
                known_at = Instant::now();
            }
            let is_now = known_at.elapsed() < AWAY_FOR;
            if is_now != is_registered {
                is_registered = is_now;
                on_change(is_now);
            }
        }
        let subject = self.registrant.subject();
        let nats = self.connection.nats();
        self.connection.block_on(async {
            if nats.link.is_connected() {
                nats.put(&subject, Vec::new()).await;
            }
        });
        Ok(())
    }
}
