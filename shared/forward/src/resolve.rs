//! Names of destinations: looked up again and again, in a thread of its own for each name, so that a slow or dead name server
//! delays nothing but the change of an address.
//!
//! The first address is used at once. A move to another one waits until that has been among the answers for [`MOVE_DELAY`] on end:
//!
//! ```text
//! answers      A      A      B      B      B      B
//! in use       A      A      A      A      B      B
//!                            ├─ MOVE_DELAY ─┤
//! capture knows       A      A      A,B    A,B    B
//! ```
//! Capture resolves the same names in its own time, so as not to capture what is sent to them, and would feed this forwarder with
//! its own output if it learned of an address later. That the address in use is no longer among the answers changes nothing
//! about this: it is how a name's move looks. An address that has been among the answers for long is known to capture, so a name
//! of several addresses that loses the one in use costs no wait. An answer without the address, or a look-up that fails, begins
//! the wait anew, for capture may have seen no more.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use prometheus::IntCounter;
use tracing::{info, warn};

use crate::destination::never_reached;

/// How long an address must have been among a name's answers before a destination moves to it: longer than the 30 s at which
/// capture resolves the names, so that it knows the address first, and by enough for a look-up that takes its time.
pub(crate) const MOVE_DELAY: Duration = Duration::from_secs(35);

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
    /// How long an address must have been among the answers before a destination moves to it from another: longer than capture
    /// takes to learn of it. The first address is used at once.
    pub move_delay: Duration,
}

impl Default for Resolution {
    fn default() -> Resolution {
        let (every, retry) = (Duration::from_secs(30), Duration::from_secs(1));
        Resolution { resolver: Arc::new(SystemResolver), every, retry, move_delay: MOVE_DELAY }
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
    let mut choice = Choice::new(resolution.move_delay);
    let mut failed_in_a_row = 0;
    loop {
        let answer = resolution.resolver.resolve(host, port).map(|answers| usable(&answers));
        let now = Instant::now();
        let failure = match answer {
            Ok(answers) if answers.is_empty() => Some("the name has no address that can be sent to".to_owned()),
            Ok(answers) => {
                let before = choice.current;
                if let Some(address) = choice.answered(&answers, now) {
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
                choice.ready_in(now).map_or(resolution.every, |ready_in| ready_in.min(resolution.every))
            }
            Some(error) => {
                choice.failed();
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

/// Which of a name's addresses is in use, and since when the others could be.
#[derive(Debug)]
struct Choice {
    move_delay: Duration,
    current: Option<SocketAddr>,
    /// The addresses of the last answer, in its order.
    seen: Vec<Seen>,
}

/// An address that has been among all answers of a span of time.
#[derive(Clone, Copy, Debug)]
struct Seen {
    address: SocketAddr,
    first: Instant,
    last: Instant,
}

impl Seen {
    fn is_settled(&self, move_delay: Duration) -> bool {
        self.last.duration_since(self.first) >= move_delay
    }
}

impl Choice {
    fn new(move_delay: Duration) -> Choice {
        Choice { move_delay, current: None, seen: Vec::new() }
    }

    /// The name has these addresses. Gives the one to use from now on, if it is another.
    fn answered(&mut self, answers: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        let first_seen = |address| self.seen.iter().find(|seen| seen.address == address).map_or(now, |seen| seen.first);
        self.seen = answers.iter().map(|&address| Seen { address, first: first_seen(address), last: now }).collect();
        let next = match self.current {
            None => self.seen.first(),
            // It stays while it is among the answers, for resolvers shuffle them.
            Some(current) if answers.contains(&current) => None,
            Some(_) => self.seen.iter().find(|seen| seen.is_settled(self.move_delay)),
        };
        let address = next?.address;
        self.current = Some(address);
        Some(address)
    }

    /// Nobody knows what the name's addresses were.
    fn failed(&mut self) {
        self.seen.retain(|seen| seen.is_settled(self.move_delay));
    }

    /// How long until the destination may move, if the address in use is gone.
    fn ready_in(&self, now: Instant) -> Option<Duration> {
        if self.seen.iter().any(|seen| Some(seen.address) == self.current) {
            return None;
        }
        let ready_at = self.seen.iter().map(|seen| seen.first + self.move_delay).min()?;
        Some(ready_at.saturating_duration_since(now))
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

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn an_address_stays_in_use_while_the_name_has_it() {
        let (mut choice, start) = (Choice::new(MOVE_DELAY), Instant::now());
        assert_eq!(choice.answered(&[address(1), address(2)], start), Some(address(1)), "the first at once");
        for hour in 1..4 {
            let now = start + seconds(3600 * hour);
            assert_eq!(choice.answered(&[address(2), address(1)], now), None);
            assert_eq!(choice.ready_in(now), None);
        }
    }

    #[test]
    fn a_new_address_is_moved_to_only_when_capture_must_know_it() {
        let (mut choice, start) = (Choice::new(MOVE_DELAY), Instant::now());
        choice.answered(&[address(1)], start);
        let moved = start + seconds(3600);
        assert_eq!(choice.answered(&[address(2)], moved), None);
        assert_eq!(choice.ready_in(moved), Some(MOVE_DELAY));
        assert_eq!(choice.answered(&[address(2)], moved + seconds(30)), None);
        assert_eq!(choice.ready_in(moved + seconds(30)), Some(seconds(5)));
        assert_eq!(choice.answered(&[address(2)], moved + MOVE_DELAY - Duration::from_millis(1)), None);
        assert_eq!(choice.answered(&[address(2)], moved + MOVE_DELAY), Some(address(2)));
        assert_eq!(choice.ready_in(moved + MOVE_DELAY), None);
        assert_eq!(choice.answered(&[address(1)], moved + 2 * MOVE_DELAY), None, "nor back at once");
    }

    #[test]
    fn an_address_that_was_long_among_the_answers_is_moved_to_at_once() {
        let (mut choice, start) = (Choice::new(MOVE_DELAY), Instant::now());
        choice.answered(&[address(1), address(2)], start);
        choice.answered(&[address(1), address(2)], start + MOVE_DELAY);
        let later = start + MOVE_DELAY + seconds(30);
        assert_eq!(choice.answered(&[address(3), address(2)], later), Some(address(2)));
    }

    #[test]
    fn an_answer_without_the_new_address_or_a_failure_begins_the_wait_anew() {
        let start = Instant::now();
        let interruptions: [fn(&mut Choice, Instant); 2] =
            [|choice, now| assert_eq!(choice.answered(&[address(3)], now), None), |choice, _| choice.failed()];
        for interrupt in interruptions {
            let mut choice = Choice::new(MOVE_DELAY);
            choice.answered(&[address(1)], start);
            choice.answered(&[address(2)], start + seconds(1));
            interrupt(&mut choice, start + seconds(30));
            assert_eq!(choice.answered(&[address(2)], start + seconds(40)), None);
            assert_eq!(choice.answered(&[address(2)], start + seconds(74)), None);
            assert_eq!(choice.answered(&[address(2)], start + seconds(75)), Some(address(2)));
        }
        let mut choice = Choice::new(MOVE_DELAY);
        choice.answered(&[address(1), address(2)], start);
        choice.answered(&[address(1), address(2)], start + MOVE_DELAY);
        choice.failed();
        assert_eq!(choice.answered(&[address(2)], start + 2 * MOVE_DELAY), Some(address(2)), "capture keeps it too");
    }

    #[test]
    fn answers_are_canonical_and_those_that_lead_nowhere_are_left_out() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let answers = ["0.0.0.0:514", "[::]:514", "[::ffff:198.51.100.1]:514", "[fe80::1]:514", "[fe80::1%7]:514"];
        assert_eq!(usable(&answers.map(parse)), [address(1), parse("[fe80::1%7]:514")]);
    }

    #[test]
    fn the_delay_is_longer_than_captures_round() {
        let captures_round = Duration::from_secs(30);
        assert!(Resolution::default().move_delay > captures_round);
    }

    #[test]
    fn failures_are_retried_soon_then_ever_more_slowly() {
        let resolution = Resolution::default();
        let pauses: Vec<u64> = (1..=7).map(|failed| retry_after(failed, &resolution).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(retry_after(u32::MAX, &resolution), resolution.every);
    }
}
