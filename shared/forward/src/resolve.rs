//! Names of destinations: looked up again and again, in a thread of its own for each name, so that a slow or dead name server
//! delays nothing but the change of an address.
//!
//! The first address is used until it is no longer among the answers. A look-up that fails changes nothing. Captures learn of an
//! address before anything is sent to it, from the registry.

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

use crate::destination::never_reached;

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
    let mut choice = Choice::default();
    let mut failed_in_a_row = 0;
    loop {
        let answer = resolution.resolver.resolve(host, port).map(|answers| usable(&answers));
        let failure = match answer {
            Ok(answers) if answers.is_empty() => Some("the name has no address that can be sent to".to_owned()),
            Ok(answers) => {
                let before = choice.current;
                if let Some(address) = choice.answered(&answers) {
                    info!(host, %address, from = ?before, "destination resolved");
                    if changed.send(address).is_err() {
                        return;
                    }
                }
                None
            }
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
                    warn!(host, error, keeps = ?choice.current, "cannot resolve destination");
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

/// The answers that can be sent to, IPv4 addresses as such however they are given. Name servers that block names answer 0.0.0.0,
/// which the kernel takes for this host.
fn usable(answers: &[SocketAddr]) -> Vec<SocketAddr> {
    let canonical = answers.iter().map(|answer| {
        let mut address = *answer;
        address.set_ip(answer.ip().to_canonical());
        address
    });
    let has_zone = |address: &SocketAddr| matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
    canonical.filter(|address| has_zone(address) || never_reached(address.ip()).is_none()).collect()
}

/// Which of a name's addresses is in use.
#[derive(Debug, Default)]
struct Choice {
    current: Option<SocketAddr>,
}

impl Choice {
    /// The name has these addresses. Gives the one to use from now on, if it is another.
    fn answered(&mut self, answers: &[SocketAddr]) -> Option<SocketAddr> {
        // It stays while it is among the answers, for resolvers shuffle them.
        if self.current.is_some_and(|current| answers.contains(&current)) {
            return None;
        }
        self.current = Some(*answers.first()?);
        self.current
    }
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
        let mut choice = Choice::default();
        assert_eq!(choice.answered(&[address(1), address(2)]), Some(address(1)));
        assert_eq!(choice.answered(&[address(2), address(1)]), None);
        assert_eq!(choice.answered(&[address(2), address(3)]), Some(address(2)));
        assert_eq!(choice.answered(&[]), None, "an answer without addresses is none");
        assert_eq!(choice.answered(&[address(2)]), None);
    }

    #[test]
    fn answers_are_canonical_and_those_that_lead_nowhere_are_left_out() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let answers = ["0.0.0.0:514", "[::]:514", "[::ffff:198.51.100.1]:514", "[fe80::1]:514", "[fe80::1%7]:514"];
        assert_eq!(usable(&answers.map(parse)), [address(1), parse("[fe80::1%7]:514")]);
    }

    #[test]
    fn failures_are_retried_soon_then_ever_more_slowly() {
        let resolution = Resolution::default();
        let pauses: Vec<u64> = (1..=7).map(|failed| retry_after(failed, &resolution).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(retry_after(u32::MAX, &resolution), resolution.every);
    }
}
