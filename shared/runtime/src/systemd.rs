//! Messages to systemd about this process (sd_notify(3)), if systemd started it with
//! `Type=notify`.
//!
//! ```text
//!   READY      every role has started; a proxy, disk or destination may still be unavailable
//!   STATUS     "ready", or what the process waits for, whenever that changes
//!   RELOADING  SIGHUP was received; READY follows
//!   WATCHDOG   several times per WatchdogSec=, while no worker is wedged
//!   STOPPING   with the time until the drain deadline, which may be later than TimeoutStopSec=
//! ```

use std::{
    env, io, mem, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use sd_notify::NotifyState;
use tracing::warn;

use crate::{health::Health, limit::RateLimited};

/// How many watchdog messages are sent per `WatchdogSec=`: some may be late on a busy machine.
const MESSAGES_PER_WATCHDOG: u32 = 4;

/// How long the process may take to exit after the drain deadline: it flushes its log.
const EXIT_TIME: Duration = Duration::from_secs(10);

/// How long an exit waits for the last messages to be sent.
const LAST_WITHIN: Duration = Duration::from_millis(500);

/// The most conditions that a status line lists.
const MAX_LISTED: usize = 4;

/// The most messages that wait for systemd. Further ones are dropped, because the supervisor must
/// not wait for it.
const MAX_QUEUED: usize = 16;

/// The connection to systemd, and what it was told.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    /// `None` if this process was not started by systemd.
    notifier: Option<Notifier>,
}

#[derive(Debug)]
struct Notifier {
    watchdog: Option<Watchdog>,
    /// The last status line.
    status: String,
    messages: Sender<Message>,
    /// Closed when the thread has sent everything.
    all_sent: Option<Receiver<()>>,
    log: RateLimited,
}

#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    next: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Ready,
    Reloading,
    Stopping { limit: Duration },
    Status(String),
    Watchdog,
}

impl Systemd {
    /// As the environment of this process says.
    pub(crate) fn from_environment(now: Instant) -> Systemd {
        if env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Systemd::default();
        }
        let (messages, queue) = crossbeam_channel::bounded(MAX_QUEUED);
        let (sending, all_sent) = crossbeam_channel::bounded::<()>(0);
        // The thread ends when the supervisor does.
        let send_all = move || {
            send_all(&queue);
            drop(sending);
        };
        if let Err(error) = thread::Builder::new().name("systemd".to_owned()).spawn(send_all) {
            warn!(%error, "thread for messages to systemd cannot be spawned");
        }
        let mut notifier = Notifier::new(sd_notify::watchdog_enabled(), messages, now);
        notifier.all_sent = Some(all_sent);
        Systemd { notifier: Some(notifier) }
    }

    /// Waits until everything is sent, but not for long: the process is about to exit, which may be
    /// sooner than the thread sends.
    pub(crate) fn finish(&mut self) {
        let Some(Notifier { messages, all_sent, .. }) = self.notifier.take() else { return };
        drop(messages);
        if let Some(all_sent) = all_sent {
            // It ends by being closed.
            let _ = all_sent.recv_timeout(LAST_WITHIN);
        }
    }

    /// Every role has started, or the reloading of files has been requested.
    pub(crate) fn ready(&self) {
        self.tell(Message::Ready);
    }

    /// SIGHUP was received.
    pub(crate) fn reloading(&self) {
        self.tell(Message::Reloading);
    }

    /// The process drains.
    pub(crate) fn stopping(&self, drain: Duration) {
        self.tell(Message::Stopping { limit: drain + EXIT_TIME });
    }

    /// Sends what is due. To be called once per round of the supervisor, whose death systemd
    /// thereby notices.
    pub(crate) fn round(&mut self, health: &Health, now: Instant) {
        let Some(notifier) = &mut self.notifier else { return };
        for message in notifier.due(health, now) {
            notifier.send(message);
        }
    }

    /// The time until something is due.
    pub(crate) fn idle_time(&self, now: Instant) -> Duration {
        let watchdog = self.notifier.as_ref().and_then(|notifier| notifier.watchdog.as_ref());
        watchdog.map_or(Duration::MAX, |watchdog| watchdog.next.saturating_duration_since(now))
    }

    fn tell(&self, message: Message) {
        if let Some(notifier) = &self.notifier {
            notifier.send(message);
        }
    }
}

impl Notifier {
    fn new(limit: Option<Duration>, messages: Sender<Message>, now: Instant) -> Notifier {
        let watchdog = limit.map(|limit| Watchdog { interval: limit / MESSAGES_PER_WATCHDOG, next: now });
        Notifier { watchdog, status: String::new(), messages, all_sent: None, log: RateLimited::default() }
    }

    fn due(&mut self, health: &Health, now: Instant) -> Vec<Message> {
        let mut due = Vec::new();
        let status = status_line(health);
        if mem::replace(&mut self.status, status.clone()) != status {
            due.push(Message::Status(status));
        }
        if let Some(watchdog) = &mut self.watchdog
            && now >= watchdog.next
        {
            watchdog.next = now + watchdog.interval;
            if !health.is_wedged() {
                due.push(Message::Watchdog);
            }
        }
        due
    }

    fn send(&self, message: Message) {
        if self.messages.try_send(message).is_err()
            && let Some(suppressed) = self.log.allow(Instant::now())
        {
            warn!(suppressed, "systemd does not read messages, dropping one");
        }
    }
}

/// Sends messages until the supervisor ends. A send waits if systemd reads none.
fn send_all(queue: &Receiver<Message>) {
    let log = RateLimited::default();
    for message in queue {
        if let Err(error) = message.send()
            && let Some(suppressed) = log.allow(Instant::now())
        {
            warn!(%error, suppressed, "message to systemd failed");
        }
    }
}

impl Message {
    fn send(&self) -> io::Result<()> {
        match self {
            Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
            // systemd 253 and newer compare the time with that of their request.
            Message::Reloading => sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]),
            Message::Stopping { limit } => {
                let limit_us = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
                sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(limit_us)])
            }
            Message::Status(text) => sd_notify::notify(&[NotifyState::Status(text)]),
            Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
        }
    }
}

/// The status line: one line of text.
fn status_line(health: &Health) -> String {
    let stuck: Vec<String> = health.stuck().iter().map(|worker| format!("stuck: {}", worker.name())).collect();
    let conditions = if stuck.is_empty() { health.missing() } else { stuck };
    if conditions.is_empty() {
        return "ready".to_owned();
    }
    let mut line = conditions[..conditions.len().min(MAX_LISTED)].join(", ");
    if conditions.len() > MAX_LISTED {
        line += &format!(" and {} more", conditions.len() - MAX_LISTED);
    }
    // A line feed would begin another message.
    line.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::health::{Phase, Pulse};

    const LIMIT: Duration = Duration::from_secs(60);

    fn status(text: &str) -> Message {
        Message::Status(text.to_owned())
    }

    fn with_limit(limit: Option<Duration>, now: Instant) -> Notifier {
        Notifier::new(limit, crossbeam_channel::bounded(MAX_QUEUED).0, now)
    }

    #[test]
    fn watchdog_message_is_due_four_times_per_limit() {
        let health = Health::new(LIMIT);
        health.enter(Phase::Running);
        let begin = Instant::now();
        let mut notifier = with_limit(Some(LIMIT), begin);
        assert_eq!(notifier.due(&health, begin), [status("ready"), Message::Watchdog]);
        assert!(notifier.due(&health, begin + Duration::from_secs(14)).is_empty());
        assert_eq!(notifier.due(&health, begin + Duration::from_secs(15)), [Message::Watchdog]);
        let mut without = with_limit(None, begin);
        assert_eq!(without.due(&health, begin), [status("ready")]);
    }

    #[test]
    fn wedged_worker_silences_the_watchdog() {
        let health = Health::new(Duration::ZERO);
        health.enter(Phase::Running);
        let pulse = Arc::new(Pulse::new("forwarder receive".to_owned()));
        pulse.begin();
        health.watch(&pulse);
        let begin = Instant::now();
        let mut notifier = with_limit(Some(LIMIT), begin);
        assert_eq!(notifier.due(&health, begin), [status("ready"), Message::Watchdog], "it has no heartbeat yet");
        pulse.beat_at(1);
        assert_eq!(notifier.due(&health, begin + LIMIT), [status("stuck: forwarder receive")]);
        health.forget(&pulse);
        assert_eq!(notifier.due(&health, begin + LIMIT * 2), [status("ready"), Message::Watchdog]);
    }

    #[test]
    fn status_line_lists_what_is_missing() {
        let health = Health::new(LIMIT);
        assert_eq!(status_line(&health), "starting");
        health.enter(Phase::Running);
        let one = health.latch("storer", "disk\nREADY=1".to_owned());
        assert_eq!(status_line(&health), "storer: disk READY=1");
        let more: Vec<_> = (1..=5).map(|number| health.latch("capture", format!("eth{number}"))).collect();
        assert_eq!(
            status_line(&health),
            "storer: disk READY=1, capture: eth1, capture: eth2, capture: eth3 and 2 more"
        );
        for latch in more.iter().chain([&one]) {
            latch.set(true);
        }
        assert_eq!(status_line(&health), "ready");
        health.enter(Phase::Stopping);
        assert_eq!(status_line(&health), "stopping");
    }
}
