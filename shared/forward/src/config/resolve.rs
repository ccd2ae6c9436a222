//! Names of destinations. Each name is looked up regularly in a thread of its own, so that a slow
//! or dead name server only delays the change of an address.
//!
//! An address is used until it fails or is no longer among the answers. A failed look-up changes
//! nothing. Through the registry, captures know an address before anything is sent to it.

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

use super::destination::never_reached;

/// How many look-ups of a new name fail before the pauses between them grow: for about a minute.
const SOON_AT_FIRST: u32 = 30;

/// How names become addresses.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, best first. May block.
    ///
    /// # Errors
    /// The name is unknown, or no name server answered.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver: `getaddrinfo(3)`, as the host is configured.
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
    /// The resolver.
    pub resolver: Arc<dyn Resolve>,
    /// How often. The system's resolver does not report how long an answer is valid.
    pub every: Duration,
    /// The pause after the first failure; further ones in a row double it, up to `every`: each one,
    /// or of a new name those after a minute.
    pub retry: Duration,
}

impl Default for Resolution {
    fn default() -> Resolution {
        let every = Duration::from_secs(30);
        let retry = Duration::from_secs(1);
        Resolution { resolver: Arc::new(SystemResolver), every, retry }
    }
}

/// The addresses of one name: the first answer and each change. Dropping it ends the look-ups.
pub(crate) struct LookUps {
    changes: Receiver<Vec<SocketAddr>>,
    _keep_running: Sender<()>,
}

impl LookUps {
    /// Starts looking up `host`.
    ///
    /// # Errors
    /// When a thread cannot be spawned.
    pub(crate) fn of(host: String, port: u16, resolution: Resolution, failures: IntCounter) -> io::Result<LookUps> {
        let (changed, changes) = bounded(1);
        let (keep_running, running) = bounded(0);
        // Not a worker of the service, because getaddrinfo cannot be interrupted and must not delay
        // a stop.
        thread::Builder::new()
            .name("resolve".to_owned())
            .spawn(move || look_up(&host, port, &resolution, &failures, &changed, &running))?;
        Ok(LookUps { changes, _keep_running: keep_running })
    }

    /// The addresses from now on, best first, if they have changed.
    pub(crate) fn changed(&self) -> Option<Vec<SocketAddr>> {
        self.changes.try_iter().last()
    }

    /// As [`LookUps::changed`], waiting for them.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Vec<SocketAddr>> {
        self.changes.recv_timeout(timeout).ok()
    }
}

fn look_up(
    host: &str,
    port: u16,
    resolution: &Resolution,
    failures: &IntCounter,
    changed: &Sender<Vec<SocketAddr>>,
    running: &Receiver<()>,
) {
    let mut current: Vec<SocketAddr> = Vec::new();
    let mut failed_in_a_row = 0;
    loop {
        let answer = resolution.resolver.resolve(host, port).map(|answers| usable(&answers));
        let failure = match answer {
            Ok(answers) if answers.is_empty() => Some("the name has no usable address".to_owned()),
            Ok(answers) => {
                if !is_same_set(&current, &answers) {
                    info!(host, addresses = ?answers, previous = ?current, "destination resolved");
                    current.clone_from(&answers);
                    if changed.send(answers).is_err() {
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
                    warn!(host, error, ?current, "cannot resolve destination");
                }
                failed_in_a_row += 1;
                retry_after(failed_in_a_row, current.is_empty(), resolution)
            }
        };
        if running.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// The usable answers, IPv4-mapped addresses as IPv4. Name servers that block names answer 0.0.0.0,
/// which the kernel takes for this host.
pub(crate) fn usable(answers: &[SocketAddr]) -> Vec<SocketAddr> {
    let canonical = answers.iter().map(|answer| {
        let mut address = *answer;
        address.set_ip(answer.ip().to_canonical());
        address
    });
    let has_zone = |address: &SocketAddr| matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
    canonical.filter(|address| has_zone(address) || never_reached(address.ip()).is_none()).collect()
}

/// Resolvers shuffle answers: the order alone is not a change.
fn is_same_set(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

/// The pause after this many failures in a row. A name that has never been resolved may be that of
/// a service that is being started, so it is asked for often at first.
fn retry_after(failed_in_a_row: u32, is_new: bool, resolution: &Resolution) -> Duration {
    let doublings = match failed_in_a_row {
        failed if !is_new => failed.saturating_sub(1),
        0..=1 => 0,
        2..=SOON_AT_FIRST => 1,
        failed => failed - SOON_AT_FIRST + 1,
    };
    resolution.retry.saturating_mul(1 << doublings.min(16)).min(resolution.every)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], 514))
    }

    #[test]
    fn unusable_answers_are_left_out() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let answers = ["0.0.0.0:514", "[::]:514", "[::ffff:198.51.100.1]:514", "[fe80::1]:514", "[fe80::1%7]:514"];
        assert_eq!(usable(&answers.map(parse)), [address(1), parse("[fe80::1%7]:514")]);
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let resolution = Resolution::default();
        let pause = |failed, is_new| retry_after(failed, is_new, &resolution).as_secs();
        assert_eq!((1..=7).map(|failed| pause(failed, false)).collect::<Vec<u64>>(), [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause(u32::MAX, false), 30);
        let of_new = [1, 2, 3, 29, 30, 31, 32, 33, 34, u32::MAX].map(|failed| pause(failed, true));
        assert_eq!(of_new, [1, 2, 2, 2, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn order_of_answers_is_not_a_change() {
        let other = SocketAddr::from(([198, 51, 100, 2], 514));
        assert!(is_same_set(&[address(1), other], &[other, address(1)]));
        assert!(!is_same_set(&[address(1)], &[other]));
        assert!(!is_same_set(&[], &[other]));
    }
}
