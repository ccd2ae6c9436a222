//! Registers the destinations, so that captures on the way do not publish the test traffic.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use anyhow::{anyhow, bail};
use sekiwake_bus::{Bus, Controlling, Registered, Registrar};
use sekiwake_record::Name;
use sekiwake_runtime::{Stop, host_name};
use tracing::{info, warn};

/// The longest name of a client, bytes.
const MAX_NAME_BYTES: usize = 63;

/// A registration that lasts while traffic is sent, if there is one.
pub(crate) struct Registration(Option<Box<dyn Registrar>>);

impl Registration {
    /// No registration.
    pub(crate) fn none() -> Registration {
        Registration(None)
    }

    /// Keeps the registration while `send` runs, in a thread of its own.
    pub(crate) fn keep<T>(self, send: impl FnOnce() -> T) -> anyhow::Result<T> {
        let Some(registrar) = self.0 else { return Ok(send()) };
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            let kept = thread::Builder::new()
                .name("registration".to_owned())
                .spawn_scoped(scope, || registrar.keep(&|| is_done.load(Relaxed), &mut log_change))?;
            let sent = {
                // Also when sending panics, or the scope would wait for the thread forever.
                let _end = EndOfSending(&is_done);
                send()
            };
            kept.join().map_err(|_| anyhow!("the thread that keeps the registration has panicked"))??;
            Ok(sent)
        })
    }
}

/// Ends the thread that keeps the registration.
struct EndOfSending<'a>(&'a AtomicBool);

impl Drop for EndOfSending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn log_change(is_registered: bool) {
    if is_registered {
        info!("destinations registered again");
    } else {
        warn!("proxy unavailable for 3 s, captures may publish what is sent to the destinations");
    }
}

/// Registers these destinations, and waits until captures leave them alone.
///
/// # Errors
/// One line that says why they do not.
pub(crate) fn register(
    controlling: &Controlling,
    destinations: &[SocketAddr],
    stop: &Stop,
) -> anyhow::Result<Registration> {
    let distinct: BTreeSet<SocketAddr> = destinations.iter().copied().collect();
    let destinations: Vec<SocketAddr> = distinct.into_iter().collect();
    let mut registrar = Bus::default().registrar(controlling, client(), &destinations)?;
    let missing = match registrar.register(&|| stop.stopping()) {
        Ok(Registered::Acknowledged) => return Ok(Registration(Some(registrar))),
        Ok(Registered::Stopped) => return Ok(Registration::none()),
        Ok(missing) => missing,
        Err(error) => return Err(error.into()),
    };
    bail!("nothing sent, cannot register the destinations at {controlling}: {missing}")
}

/// The name of this client.
fn client() -> Name {
    let text: String = format!("sender.{}", host_name()).chars().take(MAX_NAME_BYTES).collect();
    Name::new(&text).unwrap_or_else(|_| host_name())
}
