use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use sekiwake_runtime::{LOG_INTERVAL, LossEvent, LossReason, Losses, Metrics, RateLimited};

#[derive(Clone, Copy)]
enum Reason {
    QueueFull,
    TooLarge,
}

impl LossReason for Reason {
    const ALL: &'static [Reason] = &[Reason::QueueFull, Reason::TooLarge];

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Reason::QueueFull => "queue_full",
            Reason::TooLarge => "too_large",
        }
    }
}

fn losses(metrics: &Metrics) -> Losses<Reason> {
    Losses::new(metrics, "sekiwake_toys_dropped_total", "Toys dropped.", "forward", &[("kind", "syslog")])
}

#[test]
fn losses_are_counted_at_once_and_logged_every_ten_seconds() {
    let metrics = Metrics::new("toy");
    let losses = losses(&metrics);
    let start = Instant::now();
    let queue_full = |count, total| LossEvent { stage: "forward".to_owned(), reason: "queue_full", count, total };
    assert_eq!(losses.due(start), []);

    losses.add(Reason::QueueFull, 5);
    assert_eq!(losses.due(start), [queue_full(5, 5)]);
    losses.clone().add(Reason::QueueFull, 2);
    assert_eq!(losses.due(start + LOG_INTERVAL - Duration::from_millis(1)), []);
    assert_eq!(losses.due(start + LOG_INTERVAL), [queue_full(2, 7)]);
    assert_eq!(losses.due(start + 2 * LOG_INTERVAL), [], "no loss is logged twice");

    assert_eq!((losses.total(Reason::QueueFull), losses.total(Reason::TooLarge), losses.sum()), (7, 0, 7));
    let text = metrics.text();
    assert!(
        text.contains("sekiwake_toys_dropped_total{kind=\"syslog\",reason=\"queue_full\",service=\"toy\"} 7\n"),
        "{text}"
    );
    assert!(
        text.contains("sekiwake_toys_dropped_total{kind=\"syslog\",reason=\"too_large\",service=\"toy\"} 0\n"),
        "{text}"
    );
}

#[test]
fn each_reason_is_logged_separately() {
    let losses = losses(&Metrics::new("toy"));
    let start = Instant::now();
    losses.add(Reason::QueueFull, 1);
    assert_eq!(losses.due(start).len(), 1);
    losses.add(Reason::QueueFull, 1);
    losses.add(Reason::TooLarge, 1);
    let reasons: Vec<&str> = losses.due(start + Duration::from_secs(1)).iter().map(|event| event.reason).collect();
    assert_eq!(reasons, ["too_large"]);
}

#[test]
fn rate_limited_line_has_the_number_of_suppressed_ones() {
    let limited = RateLimited::default();
    let start = Instant::now();
    assert_eq!(limited.allow(start), Some(None));
    assert_eq!(limited.allow(start + Duration::from_secs(9)), None);
    assert_eq!(limited.allow(start + Duration::from_secs(9)), None);
    assert_eq!(limited.allow(start + LOG_INTERVAL), Some(NonZeroU64::new(2)));
}
