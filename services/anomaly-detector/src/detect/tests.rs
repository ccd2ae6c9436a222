use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use sekiwake_record::{Batch, BatchBuilder, Flags, Format, Header, Record, Shard, Vlans};

use super::*;

const S: u64 = 1_000_000_000;
const T0: u64 = 1_000_000 * 60 * S;

fn at(seconds: u64) -> Now {
    Now { wall_ns: T0 + seconds * S, boot_ns: seconds * S }
}

fn settings() -> Settings {
    Settings {
        interval_ns: 60 * S,
        grace_ns: 5 * S,
        max_open: 60,
        bands: BandSettings { window: 3, ..BandSettings::default() },
        consecutive: 1,
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

/// Batches of one stream: a shard at a time, numbered.
#[derive(Default)]
struct Stream(std::collections::BTreeMap<Shard, u64>);

/// A batch as it is delivered.
struct Delivered {
    shard: Shard,
    first: u64,
    captured: (u64, u64),
    batch: Batch<Vec<u8>>,
}

impl Stream {
    fn batch(&mut self, from: u32, messages: &[(u64, &[u8])]) -> Delivered {
        let shard = Shard::of(source(from));
        let mut builder = BatchBuilder::new(Vec::new());
        for (captured_at_ns, payload) in messages {
            builder.push(&Record {
                captured_at_ns: *captured_at_ns,
                source: source(from),
                source_port: 514,
                destination: source(0),
                destination_port: 514,
                format: Format::Unknown,
                flags: Flags::default(),
                payload,
                vlans: Vlans::default(),
                dscp_ttl: 0,
            });
        }
        let closed = builder.close().unwrap();
        let next = self.0.entry(shard).or_default();
        let first = *next;
        *next += u64::from(closed.count);
        let captured = (closed.first_captured_at_ns, closed.last_captured_at_ns);
        let header = Header {
            stream_name: "a",
            stream_epoch: 1,
            first_sequence: first,
            count: closed.count,
            first_captured_at_ns: captured.0,
            last_captured_at_ns: captured.1,
        };
        Delivered { shard, first, captured, batch: Batch::decode(&header, closed.body).unwrap() }
    }

    fn send(&mut self, detector: &mut Detector, from: u32, seconds: u64, count: usize) {
        if count > 0 {
            let delivered = self.batch(from, &vec![(T0 + seconds * S, &b"<11>x"[..]); count]);
            give(detector, &delivered);
        }
    }
}

fn give(detector: &mut Detector, delivered: &Delivered) {
    let Delivered { shard, first, captured, batch } = delivered;
    detector.take(*shard, ("a", 1), *first, *captured, batch);
}

fn totals(out: &[Closed]) -> Vec<Option<u64>> {
    out.iter().map(|closed| closed.series.first().map(|judged| judged.count)).collect()
}

fn told(detector: &Detector) -> Vec<(EventKind, EventState, u64)> {
    detector.events().map(|event| (event.kind, event.state, (event.start_ns - T0) / S / 60)).collect()
}

/// Gives a detector so many messages a minute, from minute 1 on, and closes each.
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
fn a_burst_is_one_alarm_and_one_recovery_however_often_batches_come() {
    for severities in [false, true] {
        let mut detector = Detector::new(Settings { severities, ..settings() }, at(0));
        let (mut stream, mut out) = (Stream::default(), Vec::new());
        for (minute, count) in (1..).zip([100, 101, 99, 100, 900, 800, 100, 100]) {
            let delivered = stream.batch(1, &vec![(T0 + minute * 60 * S, &b"<11>x"[..]); count]);
            detector.advance(at(minute * 60 + 1), true, &mut out);
            give(&mut detector, &delivered);
            give(&mut detector, &delivered);
        }
        detector.advance(at(9 * 60 + 6), true, &mut out);
        let counts = [100, 101, 99, 100, 900, 800, 100, 100].map(Some);
        assert_eq!(totals(&out), [&[None][..], &counts].concat());
        let of_total: Vec<_> = detector.events().filter(|event| event.series == "total").cloned().collect();
        let kinds: Vec<_> = of_total.iter().map(|event| (event.kind, event.state, event.count)).collect();
        assert_eq!(kinds, [(EventKind::High, EventState::Firing, 900), (EventKind::High, EventState::Resolved, 800)]);
        assert_eq!(of_total[0].id, of_total[1].id);
        let of_err = detector.events().filter(|event| event.series == "severity/err").count();
        assert_eq!(of_err, if severities { 2 } else { 0 });
        detector.acknowledge(&of_total[0].id, EventState::Firing);
        assert_eq!(detector.events().filter(|event| event.series == "total").count(), 1);
    }
}

#[test]
fn empty_minutes_count_and_a_silence_is_one_alarm_until_somebody_speaks() {
    let mut detector = Detector::new(settings(), at(0));
    let mut stream = Stream::default();
    let out = minutes(&mut detector, &mut stream, 1, &[100, 100, 100, 0, 0, 0, 0, 0, 0, 0, 90]);
    assert_eq!(totals(&out)[4..11], [0, 0, 0, 0, 0, 0, 0].map(Some));
    assert_eq!(
        told(&detector)[..2],
        [(EventKind::Low, EventState::Firing, 4), (EventKind::Low, EventState::Resolved, 11)]
    );
    // The average has become used to silence, so that the first messages are many.
    assert_eq!(told(&detector)[2..], [(EventKind::High, EventState::Firing, 11)]);
}

#[test]
fn an_interval_waits_for_what_is_being_repaired_and_what_comes_too_late_is_counted_as_late() {
    let mut detector = Detector::new(settings(), at(0));
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    stream.send(&mut detector, 1, 70, 5);
    detector.advance(at(130), false, &mut out);
    assert_eq!(out, []);
    // A backlog comes, and goes where it belongs.
    stream.send(&mut detector, 1, 80, 7);
    stream.send(&mut detector, 1, 125, 3);
    detector.advance(at(131), true, &mut out);
    assert_eq!(totals(&out), [None, Some(12)]);
    stream.send(&mut detector, 1, 80, 2);
    stream.send(&mut detector, 1, 130 + 120, 4);
    assert_eq!((detector.losses().late, detector.losses().ahead), (2, 4));
    // Nobody waits for ever.
    detector.advance(at(3000), false, &mut out);
    detector.advance(at(6000), false, &mut out);
    let last = out.last().unwrap();
    assert!(last.series.is_empty());
    assert_eq!(detector.losses().unknown, 3);
}

#[test]
fn a_clock_that_is_set_makes_a_gap_and_no_alarm() {
    for (wall, boot) in [(3_000 * 86_400, 600), (0, 600)] {
        let mut detector = Detector::new(settings(), at(0));
        let mut stream = Stream::default();
        minutes(&mut detector, &mut stream, 1, &[100, 100, 100, 100]);
        let mut out = Vec::new();
        let set = Now { wall_ns: T0 - 86_400 * S + wall * S, boot_ns: boot * S };
        detector.advance(set, true, &mut out);
        assert!(out.len() <= 1 && out.iter().all(|closed| closed.series.is_empty()), "{out:?}");
        assert_eq!(detector.events().count(), 0);
        // The window goes on, from the interval after the next.
        let base = (set.wall_ns - (T0 - 86_400 * S)) / S;
        for minute in 1..4 {
            let wall_ns = T0 - 86_400 * S + base * S + minute * 60 * S;
            detector.advance(Now { wall_ns, boot_ns: (boot + minute * 60) * S }, true, &mut out);
            let delivered = stream.batch(1, &vec![(wall_ns, &b"<11>x"[..]); 100]);
            give(&mut detector, &delivered);
        }
        let judged: Vec<Verdict> = out.iter().flat_map(|closed| &closed.series).map(|judged| judged.verdict).collect();
        assert_eq!(judged, [Verdict::Normal], "{out:?}");
    }
}

#[test]
fn sources_are_judged_apart_and_the_least_recently_seen_make_room() {
    let more = Settings { sources: true, total: false, max_sources: 32, ..settings() };
    let mut detector = Detector::new(more, at(0));
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    for minute in 1..6 {
        detector.advance(at(minute * 60 + 10), true, &mut out);
        stream.send(&mut detector, 1, minute * 60 + 20, if minute == 5 { 500 } else { 100 });
        stream.send(&mut detector, 2, minute * 60 + 20, 100);
    }
    detector.advance(at(370), true, &mut out);
    let events: Vec<_> = detector.events().map(|event| (event.source, event.kind, event.state)).collect();
    assert_eq!(events, [(Some(source(1)), EventKind::High, EventState::Firing)]);
    assert_eq!(out.last().unwrap().sources, SourcesJudged { known: 2, firing: 1, evicted: 0 });
    for number in 10..80 {
        stream.send(&mut detector, number, 380 + u64::from(number), 1);
    }
    detector.advance(at(430 + 70), true, &mut out);
    let last = out.last().unwrap().sources;
    assert!(last.known <= 32 && last.evicted >= 40 && last.firing == 0, "{last:?}");
    let forgotten = detector.events().find(|event| event.reason == Some(Reason::Forgotten)).unwrap();
    assert_eq!((forgotten.source, forgotten.state), (Some(source(1)), EventState::Resolved));
    let gone = detector.take_changed();
    assert!(gone.iter().any(|note| note.value.is_empty()));
}

#[test]
fn a_device_that_always_talked_and_falls_silent_is_reported_once() {
    let more = Settings { silent_after: Some(5.0), ..settings() };
    let mut detector = Detector::new(more, at(0));
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    let mut second = 0;
    for round in 0..20 {
        second = round * 30;
        detector.advance(at(second), true, &mut out);
        stream.send(&mut detector, 1, second, 3);
        // One that has spoken twice has no habits.
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
fn what_is_shown_to_a_new_proxy_is_still_to_be_noted() {
    let mut detector = Detector::new(Settings { sources: true, ..settings() }, at(0));
    let mut stream = Stream::default();
    (1..50).for_each(|number| stream.send(&mut detector, number, 70, 2));
    let mut by_shard: Vec<StateNote> = Shard::all().flat_map(|shard| detector.notes_of(shard)).collect();
    let mut all = detector.all_notes();
    let mut changed = detector.take_changed();
    for notes in [&mut by_shard, &mut all, &mut changed] {
        notes.sort_by(|one, other| (one.shard, &one.key).cmp(&(other.shard, &other.key)));
    }
    assert!(changed.len() > 50);
    assert_eq!((&by_shard, &changed), (&all, &all));
    assert_eq!(detector.take_changed(), []);
}

#[test]
fn what_is_no_note_is_refused() {
    let mut detector = Detector::new(settings(), at(0));
    let mut donor = Detector::new(settings(), at(0));
    minutes(&mut donor, &mut Stream::default(), 1, &[5; 4]);
    for note in donor.all_notes() {
        for cut in 0..note.value.len() {
            detector.restore(&StateNote { value: note.value[..cut].to_vec(), ..note.clone() }, true);
        }
        detector.restore(&StateNote { key: b"?".to_vec(), ..note }, true);
    }
    assert!(detector.losses().notes > 10);
    assert_eq!(detector.total_window(), 0);
    let wide = Detector::new(Settings { bands: BandSettings { window: 2, ..settings().bands }, ..settings() }, at(0));
    let mut narrow = wide;
    donor.all_notes().iter().for_each(|note| narrow.restore(note, true));
    assert_eq!(narrow.total_window(), 0, "a window that is longer than the settings say is not taken");
}

impl Detector {
    fn total_window(&self) -> usize {
        self.series().next().map_or(0, |(_, series)| series.window().counts().len())
    }
}

#[test]
fn a_file_has_the_windows_and_the_alarms_and_the_time_between_is_a_gap() {
    let mut before = Detector::new(Settings { severities: true, ..settings() }, at(0));
    let mut stream = Stream::default();
    minutes(&mut before, &mut stream, 1, &[100, 100, 100, 500]);
    let file = write_file(&before.all_notes());
    let notes = read_file(&file).unwrap();
    let hour = 3600;
    let mut after = Detector::new(Settings { severities: true, ..settings() }, at(hour));
    notes.iter().for_each(|note| after.restore(note, false));
    after.restored();
    assert_eq!(after.losses().notes, 0);
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
    for (at, broken) in [(file.len() / 2, b'!'), (20, b'"')] {
        let mut changed = file.clone();
        changed[at] = broken;
        assert!(read_file(&changed).is_err());
    }
    assert!(read_file(b"").is_err() && read_file(b"{}").is_err());
}

#[test]
fn ten_thousand_sources_are_judged_in_little_time_and_memory() {
    let more = Settings { sources: true, bands: BandSettings::default(), ..settings() };
    let mut detector = Detector::new(more, at(0));
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    #[allow(clippy::disallowed_methods, reason = "a measurement")]
    let mut longest = std::time::Duration::ZERO;
    for minute in 1..25 {
        #[allow(clippy::disallowed_methods, reason = "a measurement")]
        let started = std::time::Instant::now();
        detector.advance(at(minute * 60 + 10), true, &mut out);
        longest = longest.max(started.elapsed());
        for number in 0..10_000 {
            stream.send(&mut detector, number, minute * 60 + 20, 1);
        }
    }
    println!("{longest:?} to judge 10,000 sources");
    assert!(longest < std::time::Duration::from_millis(200), "{longest:?}");
    let bytes: usize = detector.all_notes().iter().map(|note| note.key.len() + note.value.len()).sum();
    assert!(bytes < 2 << 20, "{bytes} bytes of notes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// A detector that is replaced again and again by another one, which has its notes and is given once more what was not committed, says
    /// the same as one that never stops.
    #[test]
    fn a_take_over_counts_every_record_once_and_tells_the_same(
        steps in proptest::collection::vec((0u32..4, 1usize..40, 0u64..50, proptest::bool::weighted(0.2), 0usize..4), 1..60),
        severities: bool, sources: bool,
    ) {
        let chosen = Settings { severities, sources, ..settings() };
        let (mut whole, mut moved) = (Detector::new(chosen.clone(), at(0)), Detector::new(chosen.clone(), at(0)));
        let (mut of_whole, mut of_moved) = (Vec::new(), Vec::new());
        let (mut notes, mut kept) = (std::collections::BTreeMap::new(), Vec::<Delivered>::new());
        let (mut stream, mut second) = (Stream::default(), 0);
        for (from, count, pause, is_moved, again) in steps {
            second += pause;
            let payloads: Vec<(u64, &[u8])> = (0..count as u64)
                .map(|number| (T0 + second * S + number * 10_000_000, if number % 3 == 0 { &b"<11>x"[..] } else { b"<14>y" }))
                .collect();
            whole.advance(at(second), true, &mut of_whole);
            moved.advance(at(second), true, &mut of_moved);
            let delivered = stream.batch(from, &payloads);
            give(&mut whole, &delivered);
            give(&mut moved, &delivered);
            kept.push(delivered);
            for note in moved.take_changed() {
                notes.insert((note.shard, note.key.clone()), note);
            }
            if is_moved {
                moved = Detector::new(chosen.clone(), at(second));
                notes.values().for_each(|note| moved.restore(note, true));
                moved.restored();
                // What the group had not committed comes again.
                let from = kept.len().saturating_sub(again);
                kept[from..].iter().for_each(|delivered| give(&mut moved, delivered));
            }
        }
        for last in [second + 70, second + 140] {
            whole.advance(at(last), true, &mut of_whole);
            moved.advance(at(last), true, &mut of_moved);
        }
        prop_assert_eq!(&totals(&of_moved), &totals(&of_whole));
        prop_assert_eq!(&of_moved, &of_whole);
        let told = |detector: &Detector| {
            let mut told: Vec<_> = detector.events().map(|event| (event.id.clone(), event.state)).collect();
            told.sort();
            told
        };
        prop_assert_eq!(told(&moved), told(&whole));
        prop_assert_eq!(moved.losses().notes, 0);
    }
}
