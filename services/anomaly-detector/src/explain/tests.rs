use std::io::{self, Read};

use sekiwake_archive::{LineEncoder, LineFormat};
use sekiwake_record::Record;
use sekiwake_testkit::fixtures;

use super::{
    input::{Counts, read_one},
    *,
};
use crate::detect::BandSettings;

/// The start of a minute, 2026-11-25T14:00:00Z.
const START_NS: u64 = 1_795_615_200_000_000_000;

fn settings() -> Settings {
    let environment = Environment::from_pairs([("SEKIWAKE_ANOMALY_WINDOW", "5")]);
    sekiwake_settings::read(&environment, read_detection).unwrap()
}

fn read(text: impl Read, settings: &Settings) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    read_one(text, settings, &mut counts)?;
    Ok(counts)
}

fn total(text: &str) -> Vec<u64> {
    let settings = settings();
    let evaluated = evaluate(&settings, &read(text.as_bytes(), &settings).unwrap()).unwrap();
    evaluated[0].rows.iter().map(|row| row.count).collect()
}

fn rejection(text: impl Read) -> String {
    format!("{:#}", read(text, &settings()).unwrap_err())
}

/// Lines as the storer writes them, one per second from this time.
fn stored(format: LineFormat, first_ns: u64, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for second in 0..count {
        let severity = 3 + (second % 2) as u8;
        let payload = format!("<{severity}>Nov 25 14:00:00 host app: said\n");
        let record = Record {
            captured_at_ns: first_ns + second * 1_000_000_000,
            source: [198, 51, 100, severity].into(),
            ..fixtures::record(payload.as_bytes())
        };
        LineEncoder::new(format).encode(&record, &mut out);
    }
    out
}

#[test]
fn counts_are_read_in_all_notations() {
    let expected = [5, 0, 7];
    for text in [
        "5\n0\n7\n",
        "# counts\n\n5\n  0  \r\n7.0",
        "messages\n5\n0\n7\n",
        "time,count\n2026-11-25T14:00:00Z,5\n2026-11-25T14:02:30Z,7\n",
        "# exported\ntime;count\n1795615320;7\n1795615200;5\n",
        "1795615200.5 5\n1795615320 3\n1795615321\t4\n",
    ] {
        assert_eq!(total(text), expected, "{text:?}");
    }
}

#[test]
fn stored_messages_are_counted_per_series() {
    let [text, json] = [LineFormat::Text, LineFormat::Json].map(|format| stored(format, START_NS, 150));
    let compressed = zstd::encode_all(&json[..], 1).unwrap();
    for written in [&text, &json, &compressed] {
        let settings = settings();
        let total = vec![60, 60, 30];
        let evaluated = evaluate(&settings, &read(&written[..], &settings).unwrap()).unwrap();
        assert_eq!(evaluated[0].rows.iter().map(|row| row.count).collect::<Vec<_>>(), total);
    }
    let counts_by = |by: &str| {
        let environment = Environment::from_pairs([("SEKIWAKE_ANOMALY_BY", by)]);
        let settings = sekiwake_settings::read(&environment, read_detection).unwrap();
        let evaluated = evaluate(&settings, &read(&compressed[..], &settings).unwrap()).unwrap();
        let counts = |rows: &[Row]| rows.iter().map(|row| row.count).collect::<Vec<_>>();
        evaluated.iter().map(|series| (series.key.to_string(), counts(&series.rows))).collect::<Vec<_>>()
    };
    assert_eq!(counts_by("total"), [("total".to_owned(), vec![60, 60, 30])]);
    let halves = vec![30, 30, 15];
    assert_eq!(
        counts_by("severity"),
        [("severity/err".to_owned(), halves.clone()), ("severity/warning".to_owned(), halves.clone())]
    );
    assert_eq!(
        counts_by("source"),
        [("source/198.51.100.3".to_owned(), halves.clone()), ("source/198.51.100.4".to_owned(), halves)]
    );
}

#[test]
fn invalid_count_is_rejected_with_its_line() {
    for invalid in
        ["NaN", "-5", "inf", "1e400", "1 2 3", "x", "2026-11-25T14:00:00Z,nan", "1e300,1", "-1,1", "99999999999,1"]
    {
        let error = rejection(format!("1\n# a comment\n{invalid}\n").as_bytes());
        assert!(error.starts_with("line 3"), "{invalid}: {error}");
    }
    // Not even in the place of a heading.
    for invalid in ["NaN", "-5", "time,inf"] {
        assert!(rejection(format!("{invalid}\n1\n").as_bytes()).starts_with("line 1"), "{invalid}");
    }
    assert!(rejection(&b"1\n\xff\xfe\n"[..]).starts_with("line 2"));
    assert!(rejection(&b"heading\nanother\n"[..]).starts_with("line 2"));
}

#[test]
fn endless_input_is_rejected_within_bounded_memory() {
    assert!(rejection(io::repeat(b'1')).contains("line 1 is too long"));
    let too_many = |line: &str, input: &[u8]| {
        let error = rejection(input);
        assert!(error.starts_with(line) && error.contains("expected at most 1000000"), "{error}");
    };
    too_many("line 1000001: ", "5\n".repeat(1_000_001).as_bytes());
    too_many("line 2: ", b"0,1\n17000000000,1\n");
    // Messages decades apart.
    too_many("line 2: ", &[stored(LineFormat::Json, START_NS, 1), stored(LineFormat::Json, 0, 1)].concat());
}

#[test]
fn empty_input_has_no_counts() {
    for text in ["", "\n\n", "# only words\n", "heading\n"] {
        assert!(read(text.as_bytes(), &settings()).unwrap().is_empty(), "{text:?}");
    }
}

fn rows(counts: &[u64]) -> Vec<Row> {
    let settings = settings();
    let text: String = counts.iter().map(|count| format!("{count}\n")).collect();
    evaluate(&settings, &read(text.as_bytes(), &settings).unwrap()).unwrap().remove(0).rows
}

#[test]
fn burst_and_silence_are_in_table_json_and_picture() {
    let settings = settings();
    let counts = [100, 101, 100, 99, 100, 100, 500, 100, 100, 100, 100, 100, 100, 0, 0, 100];
    let evaluated = [Evaluated { key: Key::Total, rows: rows(&counts) }];
    let mut table = Vec::new();
    let mut lines = Vec::new();
    write_table(&mut table, &evaluated, false, &settings).unwrap();
    write_json(&mut lines, &evaluated, true, &settings).unwrap();
    let table = String::from_utf8(table).unwrap();
    assert_eq!(table.lines().count(), 19, "{table}");
    let start = |minute: usize| table.lines().nth(minute + 1).unwrap();
    let burst = "1970-01-01T00:06:00Z  total          500       100.0        90.0       110.0  high        \
                 high since 1970-01-01T00:06:00Z, not notified, usual 90.0 to 110.0";
    assert_eq!(start(6), burst, "{table}");
    assert!(start(7).ends_with("  normal      high ended: recovered"), "{table}");
    assert!(start(8).ends_with("  normal"), "{table}");
    assert!(start(14).ends_with("low since 1970-01-01T00:13:00Z, notified, usual 90.0 to 110.0"), "{table}");
    assert!(
        table.lines().nth(17).unwrap().starts_with("The verdict compares the count with the bands of the row."),
        "{table}"
    );
    assert_eq!(table.lines().last(), Some("16 intervals of 60 s: 1 high, 2 low, 8 normal, 5 warming up"));
    let lines = String::from_utf8(lines).unwrap();
    let verdicts: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.iter().map(|row| &row["verdict"]).collect::<Vec<_>>(), ["high", "low", "low"]);
    let alarm =
        json!({"kind": "low", "since": "1970-01-01T00:13:00Z", "notified": true, "lower": 90.0, "upper": 110.0});
    assert_eq!((&verdicts[2]["alarm"], &verdicts[2]["ended"]), (&alarm, &serde_json::Value::Null));
    let picture = picture::draw(Key::Total, &evaluated[0].rows, &settings);
    let dots = |class: &str| picture.matches(&format!("<circle class=\"{class}\" cx=\"")).count();
    // Including one of each in the legend.
    assert_eq!((dots("high"), dots("low")), (2, 3));
}

/// The same counts as messages on the bus, through the detector.
#[test]
fn explained_alarms_are_those_of_the_detector() {
    use crate::detect::{BatchInfo, Detector, Now};
    use sekiwake_record::{Batch, Shard};

    let settings = settings();
    let storm = [&[100; 6][..], &[180], &[300; 40], &[170], &[100; 10]].concat();
    let silence = [&[40][..], &[0; 20], &[70], &[100; 10], &[100, 101, 150, 99]].concat();
    let counts: Vec<u64> = [storm, silence].concat();
    let explained = rows(&counts).into_iter().map(|row| {
        let minute = row.start.as_nanos() / 60_000_000_000;
        (minute, row.verdict, row.alarm.map(|alarm| (EventKind::from(alarm.side), alarm.since, alarm.is_notified)))
    });

    let at =
        |second: u64| Now { wall: WallTime::from_nanos(second * 1_000_000_000), boot: Duration::from_secs(second) };
    // One hour later, because counting has to start before the first interval.
    const HOUR: u64 = 60;
    let mut detector = Detector::new(settings, at(HOUR * 60 - 1));
    let mut closed = Vec::new();
    detector.advance(at(HOUR * 60 + 1), true, &mut closed);
    let mut first_sequence = 0;
    let mut seen = Vec::new();
    for (minute, &count) in (0..).zip(&counts) {
        let second = (HOUR + minute) * 60 + 30;
        detector.advance(at(second), true, &mut closed);
        if count > 0 {
            let captured_at_ns = second * 1_000_000_000;
            let records = (0..count).map(|_| Record { captured_at_ns, ..fixtures::record(b"<14>x") });
            let batch = fixtures::batch_of(records).close().unwrap();
            let captured_at = WallTime::from_nanos(captured_at_ns);
            let info = BatchInfo {
                shard: Shard::of(fixtures::record(b"").source),
                stream_name: "a",
                stream_epoch: 1,
                first_sequence,
                first_captured_at: captured_at,
                last_captured_at: captured_at,
            };
            first_sequence += count;
            detector.count(info, &Batch::decode(batch.body, batch.count).unwrap());
        }
        closed.clear();
        detector.advance(at(second + 36), true, &mut closed);
        let (_, series) = detector.series().next().unwrap();
        let alarm = series.firing_alarm();
        let alarm = alarm.map(|alarm| (EventKind::from(alarm.side), alarm.since - HOUR, alarm.is_notified));
        seen.push((minute, closed[0].series[0].verdict, alarm));
    }
    assert_eq!(seen, explained.collect::<Vec<_>>());
    let notified: Vec<_> = detector.events().map(|event| (event.kind, event.state)).collect();
    let [firing, resolved] = [EventState::Firing, EventState::Resolved];
    let [high, low] = [EventKind::High, EventKind::Low];
    assert_eq!(notified, [(high, firing), (high, resolved), (low, firing), (low, resolved)]);
}

#[test]
fn picture_is_small_and_well_formed_for_any_counts() {
    let settings = settings();
    let many: Vec<u64> = (0..100_000).map(|number| number % 7 * (number % 1000)).collect();
    for counts in [&[5][..], &[0, 0], &[u64::MAX; 8], &[u64::MAX, 0, 1], &many] {
        let rows = rows(counts);
        let picture = picture::draw(Key::Total, &rows, &settings);
        assert!(picture.len() < 4 << 20, "{} intervals: {} bytes", counts.len(), picture.len());
        assert!(
            !picture.contains("NaN") && !picture.contains("inf\"") && !picture.contains("<script"),
            "{counts:.10?}"
        );
        let opened = picture.matches('<').count() - picture.matches("</").count() - picture.matches("/>").count();
        assert_eq!(opened, picture.matches("</").count());
    }
    // The highest is visible, even among many intervals and within the bands.
    let mut counts = vec![1_u64; 20_000];
    counts[7_777] = 9_000;
    let wide = Settings { bands: BandSettings { min_width: 1e6, ..settings.bands }, ..settings.clone() };
    let evaluated =
        evaluate(&wide, &read(counts.iter().map(|n| format!("{n}\n")).collect::<String>().as_bytes(), &wide).unwrap());
    let rows = &evaluated.unwrap()[0].rows;
    assert!(rows.iter().all(|row| !matches!(row.verdict, Verdict::High | Verdict::Low)));
    let shown = picture::thinned(rows);
    assert!(shown.len() < rows.len() && shown.iter().any(|row| row.count == 9_000));
}

#[test]
fn options_override_settings() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("counts");
    let svg = folder.path().join("a.svg");
    fs::write(&input, "5\n".repeat(30)).unwrap();
    let arguments = Arguments {
        files: vec![input],
        interval: Some(30),
        window: Some(3),
        sigma: None,
        min_width: Some(1.0),
        min_width_percent: None,
        consecutive: None,
        notify_consecutive: None,
        by: None,
        json: false,
        anomalies: true,
        svg: Some(svg.clone()),
    };
    let environment = Environment::from_pairs([("SEKIWAKE_ANOMALY_WINDOW", "5")]);
    run(&arguments, &environment).unwrap();
    let picture = fs::read_to_string(svg).unwrap();
    assert!(picture.contains("messages in 30 s") && picture.contains("average of 3 intervals"), "{picture}");
    let invalid = Arguments { sigma: Some(f64::NAN), ..arguments };
    assert!(run(&invalid, &environment).is_err());
}
