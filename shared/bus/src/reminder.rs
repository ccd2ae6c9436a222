//! When a condition that lasts is logged: when it begins, when it changes, rarely while it lasts,
//! and when it is over. No clock: the caller passes the time.

use std::time::{Duration, Instant};

use sekiwake_runtime::LOG_INTERVAL;

/// The time between two lines about a condition that does not change.
const REMIND_EVERY: Duration = Duration::from_secs(3600);

/// What was last said about a condition, and when.
#[derive(Debug)]
pub(crate) struct Reminder<T> {
    said: Option<Said<T>>,
}

#[derive(Debug)]
struct Said<T> {
    condition: T,
    at: Instant,
}

/// What to log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The condition has begun, or has changed and was not logged for ten seconds, or was not
    /// logged for an hour.
    Lasts,
    /// It is over.
    Over,
}

impl<T> Default for Reminder<T> {
    fn default() -> Reminder<T> {
        Reminder { said: None }
    }
}

impl<T: PartialEq + Clone> Reminder<T> {
    /// What is to be logged of this condition now, which counts as logged afterwards; `None` is no
    /// condition.
    pub(crate) fn due(&mut self, condition: Option<&T>, now: Instant) -> Option<Due> {
        // A condition that changes all the time is not logged all the time.
        let is_said = self.said.as_ref().is_some_and(|said| {
            let is_same = Some(&said.condition) == condition;
            now.saturating_duration_since(said.at) < if is_same { REMIND_EVERY } else { LOG_INTERVAL }
        });
        match condition {
            Some(_) if is_said => None,
            Some(condition) => {
                self.said = Some(Said { condition: condition.clone(), at: now });
                Some(Due::Lasts)
            }
            None => self.said.take().map(|_| Due::Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_is_logged_on_a_change_and_once_per_hour() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut reminder = Reminder::default();
        assert_eq!(reminder.due(None, start), None);
        assert_eq!(reminder.due(Some(&"a"), start), Some(Due::Lasts));
        assert_eq!(reminder.due(Some(&"a"), after(3599)), None);
        assert_eq!(reminder.due(Some(&"a"), after(3600)), Some(Due::Lasts));
        assert_eq!(reminder.due(Some(&"a"), after(3601)), None);
        assert_eq!(reminder.due(Some(&"b"), after(3609)), None);
        assert_eq!(reminder.due(Some(&"b"), after(3610)), Some(Due::Lasts));
        assert_eq!(reminder.due(None, after(3611)), Some(Due::Over));
        assert_eq!(reminder.due(None, after(3612)), None);
        assert_eq!(reminder.due(Some(&"b"), after(3613)), Some(Due::Lasts));
    }
}
