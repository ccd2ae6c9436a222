use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use proptest::prelude::*;
use sekiwake_record::{Batch, Record, Shard, WallTime};
use sekiwake_testkit::fixtures::{batch_of, record};

use super::*;

const S: u64 = 1_000_000_000;
const T0: u64 = 1_000_000 * 60 * S;

/// The wall time this many seconds after the start.
fn time(seconds: u64) -> WallTime {
    WallTime::from_nanos(T0 + seconds * S)
}

fn at(seconds: u64) -> Now {
    Now { wall: time(seconds), boot: Duration::from_secs(seconds) }
}

fn settings() -> Settings {
    Settings {
        interval: Duration::from_secs(60),
        grace: Duration::from_secs(5),
        max_open: 60,
        bands: BandSettings { window: 3, ..BandSettings::default() },
        consecutive: 1,
        notify_consecutive: 1,
        forget: Duration::from_secs(86_400),
        total: true,
        severities: false,
        sources: false,
        max_sources: 10_000,
        silent_after: None,
    }
}

fn source(number: u32) -> IpAddr {
    Ipv4Addr::from(0xc612_0000 + number).into()
}

/// Batches of one stream, numbered per shard.
#[derive(Default)]
struct Stream(std::collections::BTreeMap<Shard, u64>);

/// A batch as it is delivered.
struct Delivered {
    info: BatchInfo<'static>,
    batch: Batch<Vec<u8>>,
}

impl Stream {
    fn batch(&mut self, from: u32, messages: &[(u64, &[u8])]) -> Delivered {
        let shard = Shard::of(source(from));
        let records = messages.iter().map(|&(captured_at_ns, payload)| Record {
            captured_at_ns,
            source: source(from),
            ..record(payload)
        });
        let closed = batch_of(records).close().unwrap();
        let next = self.0.entry(shard).or_default();
        let first = *next;
        *next += u64::from(closed.count);
        let info = BatchInfo {
            shard,
            stream_name: "a",
            stream_epoch: 1,
            first_sequence: first,
            first_captured_at: WallTime::from_nanos(closed.first_captured_at_ns),
            last_captured_at: WallTime::from_nanos(closed.last_captured_at_ns),
        };
        Delivered { info, batch: Batch::decode(closed.body, closed.count).unwrap() }
    }

    fn send(&mut self, detector: &mut Detector, from: u32, seconds: u64, count: usize) {
        if count > 0 {
            let delivered = self.batch(from, &vec![(T0 + seconds * S, &b"<11>x"[..]); count]);
            deliver(detector, &delivered);
        }
    }
}

fn deliver(detector: &mut Detector, delivered: &Delivered) {
    detector.count(delivered.info, &delivered.batch);
}

fn totals(out: &[Closed]) -> Vec<Option<u64>> {
    out.iter().map(|closed| closed.series.first().map(|result| result.count)).collect()
}

/// Kind, state and minute of all events.
fn events(detector: &Detector) -> Vec<(EventKind, EventState, u64)> {
    detector.events().map(|event| (event.kind, event.state, (event.start - time(0)).as_secs() / 60)).collect()
}

/// Sends these numbers of messages per minute, from minute `first` on, and closes each minute.
fn minutes(detector: &mut Detector, stream: &mut Stream, first: u64, counts: &[usize]) -> Vec<Closed> {
    let mut out = Vec::new();
    for (minute, &count) in (first..).zip(counts) {
        detector.advance(at(minute * 60 + 10), true, &mut out);
        stream.send(detector, 1, minute * 60 + 20, count);
    }
    detector.advance(at((first + counts.len() as u64) * 60 + 10), true, &mut out);
    out
}

#[test]
fn burst_is_one_alarm_despite_duplicate_batches() {
    for severities in [false, true] {
        let mut detector = Detector::new(Settings { severities, ..settings() }, at(0));
        let mut stream = Stream::default();
        let mut out = Vec::new();
        for (minute, count) in (1..).zip([100, 101, 99, 100, 900, 800, 100, 100]) {
            let delivered = stream.batch(1, &vec![(T0 + minute * 60 * S, &b"<11>x"[..]); count]);
            detector.advance(at(minute * 60 + 1), true, &mut out);
            deliver(&mut detector, &delivered);
            deliver(&mut detector, &delivered);
        }
        detector.advance(at(9 * 60 + 6), true, &mut out);
        let counts = [100, 101, 99, 100, 900, 800, 100, 100].map(Some);
        assert_eq!(totals(&out), [&[None][..], &counts].concat());
        let total_events: Vec<_> = detector.events().filter(|event| event.series == "total").cloned().collect();
        let kinds: Vec<_> = total_events.iter().map(|event| (event.kind, event.state, event.count)).collect();
        assert_eq!(kinds, [(EventKind::High, EventState::Firing, 900), (EventKind::High, EventState::Resolved, 100)]);
        assert_eq!(total_events[0].id, total_events[1].id);
        let err_events = detector.events().filter(|event| event.series == "severity/err").count();
        assert_eq!(err_events, if severities { 2 } else { 0 });
        detector.acknowledge(&total_events[0].name());
        assert_eq!(detector.events().filter(|event| event.series == "total").count(), 1);
    }
}

#[test]
fn silence_is_one_alarm_until_messages_return() {
    let mut detector = Detector::new(settings(), at(0));
    let mut stream = Stream::default();
    let out = minutes(&mut detector, &mut stream, 1, &[100, 100, 100, 0, 0, 0, 0, 0, 0, 0, 90]);
    assert_eq!(totals(&out)[4..11], [0, 0, 0, 0, 0, 0, 0].map(Some));
    assert_eq!(
        events(&detector),
        [(EventKind::Low, EventState::Firing, 4), (EventKind::Low, EventState::Resolved, 11)]
    );
    // The average has adapted to the silence, so that the first messages are above the bands. They
    // are a return to the level before, which raises no alarm.
    assert_eq!(out.last().unwrap().series[0].verdict, Verdict::High);
    assert_eq!(detector.take_announcements().len(), 2);
}

#[test]
fn single_anomaly_is_announced_but_not_notified() {
    let mut detector = Detector::new(Settings { notify_consecutive: 2, ..settings() }, at(0));
    let mut stream = Stream::default();
    minutes(&mut detector, &mut stream, 1, &[100, 100, 100, 500, 100]);
    let announced: Vec<_> = detector.take_announcements().iter().map(|event| (event.state, event.count)).collect();
    assert_eq!(announced, [(EventState::Firing, 500), (EventState::Resolved, 100)]);
    assert_eq!((detector.events().count(), detector.take_announcements().len()), (0, 0));
    minutes(&mut detector, &mut stream, 6, &[100, 100, 100, 500, 2000]);
    assert_eq!(events(&detector), [(EventKind::High, EventState::Firing, 10)]);
    assert_eq!((detector.firing().count(), detector.notified().count()), (1, 1));
    minutes(&mut detector, &mut stream, 11, &[100]);
    assert_eq!(events(&detector)[1], (EventKind::High, EventState::Resolved, 11));
}

#[test]
fn half_of_the_devices_gone_for_good_is_no_recovery() {
    let chosen = Settings { notify_consecutive: 2, forget: Duration::from_secs(100 * 60), ..settings() };
    let mut detector = Detector::new(chosen.clone(), at(0));
    let mut stream = Stream::default();
    minutes(&mut detector, &mut stream, 1, &[&[100; 4][..], &[50; 40]].concat());
    assert_eq!(events(&detector).len(), 1, "{:?}", events(&detector));
    // The next detector knows when it ends.
    let mut next = Detector::new(chosen, at(45 * 60));
    detector.all_entries().iter().for_each(|entry| next.restore(entry, true));
    next.finish_restore();
    minutes(&mut next, &mut stream, 45, &[50; 100]);
    assert_eq!(next.losses().handoff_entries, 0);
    let reasons: Vec<_> = next.events().map(|event| (event.kind, event.reason)).collect();
    assert_eq!(reasons, [(EventKind::Low, None), (EventKind::Low, Some(Reason::NewLevel))]);
    assert_eq!(next.firing().count(), 0);
}

#[test]
fn kept_counts_survive_a_take_over() {
    let mut detector = Detector::new(settings(), at(0));
    let mut stream = Stream::default();
    let mut minute = 1;
    // The alarm, its end, and the alarm after it are each of another detector.
    for counts in [&[100, 100, 100, 400, 400][..], &[400, 400, 250, 100], &[0, 0], &[70, 100]] {
        minutes(&mut detector, &mut stream, minute, counts);
        minute += counts.len() as u64;
        let entries = detector.all_entries();
        detector = Detector::new(settings(), at(minute * 60 + 10));
        assert_eq!(detector.restore_all(&entries, true), None);
        assert_eq!(detector.losses().handoff_entries, 0);
    }
    let firing = EventState::Firing;
    let resolved = EventState::Resolved;
    let expected = [
        (EventKind::High, firing, 4),
        (EventKind::High, resolved, 9),
        (EventKind::Low, firing, 10),
        (EventKind::Low, resolved, 13),
    ];
    assert_eq!(events(&detector), expected);
}

#[test]
fn interval_waits_for_repair_and_late_records_are_counted() {
    let mut detector = Detector::new(settings(), at(0));
    let mut stream = Stream::default();
    let mut out = Vec::new();
    stream.send(&mut detector, 1, 70, 5);
    detector.advance(at(130), false, &mut out);
    assert_eq!(out, []);
    // A backlog is counted in its own interval.
    stream.send(&mut detector, 1, 80, 7);
    stream.send(&mut detector, 1, 125, 3);
    detector.advance(at(131), true, &mut out);
    assert_eq!(totals(&out), [None, Some(12)]);
    stream.send(&mut detector, 1, 80, 2);
    stream.send(&mut detector, 1, 130 + 120, 4);
    assert_eq!((detector.losses().late, detector.losses().ahead), (2, 4));
    // The wait is bounded.
    detector.advance(at(3000), false, &mut out);
    detector.advance(at(6000), false, &mut out);
    let last = out.last().unwrap();
    assert!(last.series.is_empty());
    assert_eq!(detector.losses().unknown, 3);
}

#[test]
fn clock_change_makes_a_gap_and_no_alarm() {
    for (wall, boot) in [(3_000 * 86_400, 600), (0, 600)] {
        let mut detector = Detector::new(settings(), at(0));
        let mut stream = Stream::default();
        minutes(&mut detector, &mut stream, 1, &[100, 100, 100, 100]);
        let mut out = Vec::new();
        let base = time(0) - Duration::from_secs(86_400) + Duration::from_secs(wall);
        let set = Now { wall: base, boot: Duration::from_secs(boot) };
        detector.advance(set, true, &mut out);
        assert!(out.len() <= 1 && out.iter().all(|closed| closed.series.is_empty()), "{out:?}");
        assert_eq!(detector.events().count(), 0);
        // The window continues with the interval after the next.
        for minute in 1..4 {
            let since = Duration::from_secs(minute * 60);
            let now = Now { wall: base + since, boot: set.boot + since };
            detector.advance(now, true, &mut out);
            let delivered = stream.batch(1, &vec![(now.wall.as_nanos(), &b"<11>x"[..]); 100]);
            deliver(&mut detector, &delivered);
        }
        let verdicts: Vec<Verdict> =
            out.iter().flat_map(|closed| &closed.series).map(|result| result.verdict).collect();
        assert_eq!(verdicts, [Verdict::Normal], "{out:?}");
    }
}

#[test]
fn least_recently_seen_sources_are_evicted() {
    let more = Settings { sources: true, total: false, max_sources: 32, ..settings() };
    let mut detector = Detector::new(more, at(0));
    let mut stream = Stream::default();
    let mut out = Vec::new();
    for minute in 1..6 {
        detector.advance(at(minute * 60 + 10), true, &mut out);
        stream.send(&mut detector, 1, minute * 60 + 20, if minute == 5 { 500 } else { 100 });
        stream.send(&mut detector, 2, minute * 60 + 20, 100);
    }
    detector.advance(at(370), true, &mut out);
    let events: Vec<_> = detector.events().map(|event| (event.source, event.kind, event.state)).collect();
    assert_eq!(events, [(Some(source(1)), EventKind::High, EventState::Firing)]);
    assert_eq!(out.last().unwrap().sources, SourceTotals { tracked: 2, firing: 1, evicted: 0 });
    for number in 10..80 {
        stream.send(&mut detector, number, 380 + u64::from(number), 1);
    }
    detector.advance(at(430 + 70), true, &mut out);
    let last = out.last().unwrap().sources;
    assert!(last.tracked <= 32 && last.evicted >= 40 && last.firing == 0, "{last:?}");
    let forgotten = detector.events().find(|event| event.reason == Some(Reason::Forgotten)).unwrap();
    assert_eq!((forgotten.source, forgotten.state), (Some(source(1)), EventState::Resolved));
    let changed = detector.take_changed();
    assert!(changed.iter().any(|entry| entry.value.is_empty()));
}

#[test]
fn silence_of_a_regular_source_is_reported_once() {
    let more = Settings { silent_after: Some(5.0), ..settings() };
    let mut detector = Detector::new(more, at(0));
    let mut stream = Stream::default();
    let mut out = Vec::new();
    let mut second = 0;
    for round in 0..20 {
        second = round * 30;
        detector.advance(at(second), true, &mut out);
        stream.send(&mut detector, 1, second, 3);
        // A source that has sent twice has no usual pause.
        if round < 2 {
            stream.send(&mut detector, 2, second, 1);
        }
    }
    let silent = |detector: &Detector| -> Vec<_> {
        let events = detector.events().filter(|event| event.kind == EventKind::SilentSource);
        events.map(|event| (event.source.unwrap(), event.state)).collect()
    };
    for later in 1..=160 {
        detector.advance(at(second + later), true, &mut out);
        let expected = if later > 5 * 30 + 5 { vec![(source(1), EventState::Firing)] } else { Vec::new() };
        assert_eq!(silent(&detector), expected, "{later} s later");
    }
    let firing: Vec<Event> = detector.firing().collect();
    assert_eq!(firing.last().and_then(|event| event.usual_pause_seconds), Some(30.0));
    stream.send(&mut detector, 1, second + 200, 1);
    assert_eq!(silent(&detector), [(source(1), EventState::Firing), (source(1), EventState::Resolved)]);
}

#[test]
fn listing_state_for_a_new_proxy_keeps_it_changed() {
    let mut detector = Detector::new(Settings { sources: true, ..settings() }, at(0));
    let mut stream = Stream::default();
    (1..50).for_each(|number| stream.send(&mut detector, number, 70, 2));
    let mut by_shard: Vec<StateEntry> = Shard::all().flat_map(|shard| detector.shard_entries(shard)).collect();
    let mut all = detector.all_entries();
    let mut changed = detector.take_changed();
    for entries in [&mut by_shard, &mut all, &mut changed] {
        entries.sort_by(|one, other| (one.shard, &one.key).cmp(&(other.shard, &other.key)));
    }
    assert!(changed.len() > 50);
    assert_eq!((&by_shard, &changed), (&all, &all));
    assert_eq!(detector.take_changed(), []);
}

#[test]
fn invalid_entries_are_rejected() {
    let mut detector = Detector::new(settings(), at(0));
    let mut donor = Detector::new(settings(), at(0));
    minutes(&mut donor, &mut Stream::default(), 1, &[5; 4]);
    for entry in donor.all_entries() {
        for cut in 0..entry.value.len() {
            detector.restore(&StateEntry { value: entry.value[..cut].to_vec(), ..entry.clone() }, true);
        }
        detector.restore(&StateEntry { key: b"?".to_vec(), ..entry }, true);
    }
    assert!(detector.losses().handoff_entries > 10);
    assert_eq!(detector.total_window(), 0);
    let narrow_settings = Settings { bands: BandSettings { window: 2, ..settings().bands }, ..settings() };
    let mut narrow = Detector::new(narrow_settings, at(0));
    donor.all_entries().iter().for_each(|entry| narrow.restore(entry, true));
    assert_eq!(narrow.total_window(), 0, "a window longer than configured is rejected");
}

impl Detector {
    fn total_window(&self) -> usize {
        self.series().next().map_or(0, |(_, series)| series.window().counts().len())
    }
}

#[test]
fn state_file_restores_windows_and_alarms_after_a_gap() {
    let mut before = Detector::new(Settings { severities: true, ..settings() }, at(0));
    let mut stream = Stream::default();
    minutes(&mut before, &mut stream, 1, &[100, 100, 100, 500]);
    let file = write_file(&before.all_entries());
    let entries = read_file(&file).unwrap().entries;
    let hour = 3600;
    let mut after = Detector::new(Settings { severities: true, ..settings() }, at(hour));
    entries.iter().for_each(|entry| after.restore(entry, false));
    after.finish_restore();
    assert_eq!(after.losses().handoff_entries, 0);
    assert_eq!(
        after.firing().map(|event| event.id).collect::<Vec<_>>(),
        before.firing().map(|event| event.id).collect::<Vec<_>>()
    );
    assert_eq!(after.events().count(), before.events().count());
    let mut out = Vec::new();
    after.advance(at(hour + 70), true, &mut out);
    stream.send(&mut after, 1, hour + 70, 100);
    after.advance(at(hour + 130), true, &mut out);
    assert_eq!(totals(&out), [None, Some(100)], "no zeros for the hour between");
    assert_eq!(out[1].series[0].verdict, Verdict::Normal);
    assert_eq!(read_file(&file), Ok(StateFile { entries: entries.clone(), damaged: 0 }));
    assert!(read_file(b"").is_err() && read_file(b"{}").is_err());
}

#[test]
fn state_of_another_interval_is_discarded_and_its_alarms_end() {
    let tracking = Settings { severities: true, sources: true, ..settings() };
    let mut before = Detector::new(tracking.clone(), at(0));
    minutes(&mut before, &mut Stream::default(), 1, &[100, 100, 100, 500]);
    let firing: Vec<Event> = before.notified().collect();
    assert_eq!(firing.len(), 3, "total, severity and source: {firing:?}");
    let delivered: Vec<EventName> = before.events().map(Event::name).collect();
    delivered.iter().for_each(|name| before.acknowledge(name));
    let mut stored: std::collections::BTreeMap<_, _> =
        before.all_entries().into_iter().map(|entry| ((entry.shard, entry.key.clone()), entry)).collect();
    let entries: Vec<StateEntry> = stored.values().cloned().collect();

    let shorter = Settings { interval: Duration::from_secs(30), ..tracking };
    let mut after = Detector::new(shorter.clone(), at(320));
    assert_eq!(after.restore_all(&entries, true), Some(Duration::from_secs(60)));
    assert_eq!((after.firing().count(), after.total_window()), (0, 0));
    let mut ended: Vec<Event> = after.events().cloned().collect();
    ended.sort_by(|one, other| one.id.cmp(&other.id));
    let mut expected = firing.clone();
    expected.sort_by(|one, other| one.id.cmp(&other.id));
    for (ended, firing) in ended.iter().zip(&expected) {
        assert_eq!((&ended.id, ended.since), (&firing.id, firing.since));
        assert_eq!((ended.state, ended.reason, ended.start), (EventState::Resolved, Some(Reason::Reset), time(320)));
    }
    assert_eq!((ended.len(), after.take_announcements().len()), (3, 3));
    let mut out = Vec::new();
    after.advance(at(400), true, &mut out);
    assert!(out.iter().flat_map(|closed| &closed.series).all(|result| result.bands.is_none()), "{out:?}");

    // Nothing is left of it for the next detector.
    for entry in after.take_changed() {
        stored.insert((entry.shard, entry.key.clone()), entry);
    }
    let entries: Vec<StateEntry> = stored.into_values().collect();
    let mut next = Detector::new(shorter, at(400));
    assert_eq!(next.restore_all(&entries, true), None);
    assert_eq!(next.losses().handoff_entries, 0);
    assert_eq!((next.firing().count(), next.series().filter(|(key, _)| key.source().is_some()).count()), (0, 0));
    assert_eq!(next.next_start(), after.next_start());
}

#[test]
fn sources_beyond_a_lower_limit_are_discarded_with_the_interval() {
    let tracking = Settings { sources: true, ..settings() };
    let mut before = Detector::new(tracking.clone(), at(0));
    let mut stream = Stream::default();
    let mut out = Vec::new();
    for minute in 1..4 {
        before.advance(at(minute * 60 + 10), true, &mut out);
        (0..40).for_each(|from| stream.send(&mut before, from, minute * 60 + 20, 5));
    }
    before.advance(at(310), true, &mut out);
    let mut stored: std::collections::BTreeMap<_, _> =
        before.all_entries().into_iter().map(|entry| ((entry.shard, entry.key.clone()), entry)).collect();
    let fewer = Settings { interval: Duration::from_secs(30), max_sources: 16, ..tracking };
    let mut after = Detector::new(fewer.clone(), at(320));
    let entries: Vec<StateEntry> = stored.values().cloned().collect();
    assert_eq!(after.restore_all(&entries, true), Some(Duration::from_secs(60)));
    for entry in after.take_changed() {
        stored.insert((entry.shard, entry.key.clone()), entry);
    }
    let entries: Vec<StateEntry> = stored.into_values().collect();
    let mut next = Detector::new(fewer, at(400));
    assert_eq!(next.restore_all(&entries, true), None);
    assert_eq!(next.series().filter(|(key, _)| key.source().is_some()).count(), 0);
}

#[test]
fn damage_to_the_state_file_costs_what_is_damaged() {
    let mut detector = Detector::new(Settings { sources: true, ..settings() }, at(0));
    let mut stream = Stream::default();
    (1..50).for_each(|number| stream.send(&mut detector, number, 70, 2));
    let entries = detector.all_entries();
    let file = write_file(&entries);
    for place in (0..file.len()).step_by(37) {
        let mut changed = file.clone();
        changed[place] ^= 0x10;
        let read = read_file(&changed).unwrap();
        // A line feed that is damaged costs the two lines that it separated.
        assert!(read.entries.len() + 2 >= entries.len(), "{place}: {}", read.entries.len());
        assert!(read.entries.iter().all(|entry| entries.contains(entry)), "{place}");
    }
    let half = read_file(&file[..file.len() * 3 / 4]).unwrap();
    assert!(!half.entries.is_empty() && half.damaged > 0, "{half:?}");
}

/// Evaluates 10,000 sources for 24 minutes. Returns the detector and the longest evaluation.
fn ten_thousand_sources() -> (Detector, Duration) {
    let more = Settings { sources: true, bands: BandSettings::default(), ..settings() };
    let mut detector = Detector::new(more, at(0));
    let mut stream = Stream::default();
    let mut out = Vec::new();
    let mut longest = Duration::ZERO;
    for minute in 1..25 {
        #[allow(clippy::disallowed_methods, reason = "a measurement")]
        let started = std::time::Instant::now();
        detector.advance(at(minute * 60 + 10), true, &mut out);
        longest = longest.max(started.elapsed());
        for number in 0..10_000 {
            stream.send(&mut detector, number, minute * 60 + 20, 1);
        }
    }
    (detector, longest)
}

#[test]
fn ten_thousand_sources_take_little_memory() {
    let (detector, _) = ten_thousand_sources();
    let bytes: usize = detector.all_entries().iter().map(|entry| entry.key.len() + entry.value.len()).sum();
    assert!(bytes < 2 << 20, "{bytes} bytes of entries");
}

/// `cargo test --release -p sekiwake-anomaly-detector -- --ignored --nocapture measure_evaluation`
#[test]
#[ignore = "a measurement"]
fn measure_evaluation_of_ten_thousand_sources() {
    println!("{:?} to evaluate 10,000 sources", ten_thousand_sources().1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// A detector that is repeatedly replaced by another one, which restores its state and receives
    /// uncommitted batches again, reports the same as one that never stops.
    #[test]
    fn take_over_counts_every_record_once(
        steps in proptest::collection::vec((0u32..4, 1usize..40, 0u64..50, proptest::bool::weighted(0.2), 0usize..4), 1..60),
        severities: bool, sources: bool,
    ) {
        let chosen = Settings { severities, sources, ..settings() };
        let mut whole = Detector::new(chosen.clone(), at(0));
        let mut moved = Detector::new(chosen.clone(), at(0));
        let mut whole_closed = Vec::new();
        let mut moved_closed = Vec::new();
        let mut entries = std::collections::BTreeMap::new();
        let mut kept = Vec::<Delivered>::new();
        let mut stream = Stream::default();
        let mut second = 0;
        for (from, count, pause, is_moved, again) in steps {
            second += pause;
            let payloads: Vec<(u64, &[u8])> = (0..count as u64)
                .map(|number| (T0 + second * S + number * 10_000_000, if number % 3 == 0 { &b"<11>x"[..] } else { b"<14>y" }))
                .collect();
            whole.advance(at(second), true, &mut whole_closed);
            moved.advance(at(second), true, &mut moved_closed);
            let delivered = stream.batch(from, &payloads);
            deliver(&mut whole, &delivered);
            deliver(&mut moved, &delivered);
            kept.push(delivered);
            for entry in moved.take_changed() {
                entries.insert((entry.shard, entry.key.clone()), entry);
            }
            if is_moved {
                moved = Detector::new(chosen.clone(), at(second));
                entries.values().for_each(|entry| moved.restore(entry, true));
                moved.finish_restore();
                // Batches that the group had not committed are received again.
                let from = kept.len().saturating_sub(again);
                kept[from..].iter().for_each(|delivered| deliver(&mut moved, delivered));
            }
        }
        for last in [second + 70, second + 140] {
            whole.advance(at(last), true, &mut whole_closed);
            moved.advance(at(last), true, &mut moved_closed);
        }
        prop_assert_eq!(&totals(&moved_closed), &totals(&whole_closed));
        prop_assert_eq!(&moved_closed, &whole_closed);
        let names = |detector: &Detector| {
            let mut names: Vec<_> = detector.events().map(Event::name).collect();
            names.sort();
            names
        };
        prop_assert_eq!(names(&moved), names(&whole));
        prop_assert_eq!(moved.losses().handoff_entries, 0);
    }
}
