//! Names of destinations: looked up again and again, in a thread of its own for each name, so that a slow or dead name server
//! delays nothing but the change of an address.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use prometheus::IntCounter;
use tracing::{info, warn};

/// How names become addresses.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, the best first. May block.
    ///
    /// # Errors
    /// The name is not known, or nobody could be asked.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver: `getaddrinfo(3)`, with everything that the host is configured for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        (host, port).to_socket_addrs().map(Iterator::collect)
    }
}

/// How names are looked up.
#[derive(Clone)]
pub struct Resolution {
    /// Who is asked.
    pub resolver: Arc<dyn Resolve>,
    /// How often. The system's resolver does not tell how long an answer is good for.
    pub every: Duration,
    /// How soon again after the first failure; each further one in a row doubles it, up to `every`.
    pub retry: Duration,
}

impl Default for Resolution {
    fn default() -> Resolution {
        let (every, retry) = (Duration::from_secs(30), Duration::from_secs(1));
        Resolution { resolver: Arc::new(SystemResolver), every, retry }
    }
}

/// Addresses of one name: each change of the answer, the first answer among them. Dropping it ends the look-ups.
pub(crate) struct Addresses {
    changes: Receiver<SocketAddr>,
    _keep_asking: Sender<()>,
}

impl Addresses {
    /// Begins to look `host` up.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn of(host: String, port: u16, resolution: Resolution, failures: IntCounter) -> io::Result<Addresses> {
        let (changed, changes) = bounded(1);
        let (keep_asking, asked) = bounded(0);
        // Not a worker of the service: getaddrinfo cannot be interrupted, and nobody should wait for it when the service stops.
        thread::Builder::new()
            .name("resolve".to_owned())
            .spawn(move || look_up(&host, port, &resolution, &failures, &changed, &asked))?;
        Ok(Addresses { changes, _keep_asking: keep_asking })
    }

    /// The address that counts from now on, if it has changed.
    pub(crate) fn changed(&self) -> Option<SocketAddr> {
        self.changes.try_iter().last()
    }

    /// As [`Addresses::changed`], waiting for it.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<SocketAddr> {
        self.changes.recv_timeout(timeout).ok()
    }
}

fn look_up(
    host: &str,
    port: u16,
    resolution: &Resolution,
    failures: &IntCounter,
    changed: &Sender<SocketAddr>,
    asked: &Receiver<()>,
) {
    let mut current = None;
    let mut failed_in_a_row = 0;
    loop {
        let failure = match resolution.resolver.resolve(host, port) {
            Ok(answers) => match choose(current, &answers) {
                Some(address) => {
                    if current.replace(address) != Some(address) {
                        info!(host, %address, "destination resolved");
                        if changed.send(address).is_err() {
                            return;
                        }
                    }
                    None
                }
                None => Some("the name has no address".to_owned()),
            },
            Err(error) => Some(error.to_string()),
        };
        let pause = match failure {
            None => {
                failed_in_a_row = 0;
                resolution.every
            }
            Some(error) => {
                failures.inc();
                if failed_in_a_row == 0 {
                    warn!(host, error, keeps = ?current, "cannot resolve destination");
                }
                failed_in_a_row += 1;
                retry_after(failed_in_a_row, resolution)
            }
        };
        if asked.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// The address in use stays while it is among the answers, for resolvers shuffle them; else it is the first.
fn choose(current: Option<SocketAddr>, answers: &[SocketAddr]) -> Option<SocketAddr> {
    current.filter(|address| answers.contains(address)).or_else(|| answers.first().copied())
}

fn retry_after(failed_in_a_row: u32, resolution: &Resolution) -> Duration {
    resolution.retry.saturating_mul(1 << failed_in_a_row.saturating_sub(1).min(16)).min(resolution.every)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], 514))
    }

    #[test]
    fn an_address_stays_in_use_while_the_name_has_it() {
        assert_eq!(choose(None, &[address(1), address(2)]), Some(address(1)));
        assert_eq!(choose(Some(address(2)), &[address(1), address(2)]), Some(address(2)));
        assert_eq!(choose(Some(address(3)), &[address(1), address(2)]), Some(address(1)));
        assert_eq!(choose(Some(address(3)), &[]), None);
    }

    #[test]
    fn failures_are_retried_soon_then_ever_more_slowly() {
        let resolution = Resolution::default();
        let pauses: Vec<u64> = (1..=7).map(|failed| retry_after(failed, &resolution).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(retry_after(u32::MAX, &resolution), resolution.every);
    }
}
