use std::io::{self, Read};

use sekiwake_record::{Flags, Format, Record, Vlans};
use sekiwake_store::{LineEncoder, LineFormat};

use super::{
    input::{Counts, read_one},
    *,
};
use crate::detect::BandSettings;

/// The begin of a minute, 2026-11-25T14:00:00Z.
const BEGIN_NS: u64 = 1_795_615_200_000_000_000;

fn settings() -> Settings {
    let environment = Environment::from_pairs([("SEKIWAKE_ANOMALY_WINDOW", "5")]);
    sekiwake_settings::read(&environment, read_detecting).unwrap()
}

fn read(text: impl Read, settings: &Settings) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    read_one(text, settings, &mut counts)?;
    Ok(counts)
}

fn total(text: &str) -> Vec<u64> {
    let settings = settings();
    let judged = judge(&settings, &read(text.as_bytes(), &settings).unwrap()).unwrap();
    judged[0].1.iter().map(|row| row.count).collect()
}

fn refused(text: impl Read) -> String {
    format!("{:#}", read(text, &settings()).unwrap_err())
}

/// Lines as the storer writes them, one a second from this on.
fn stored(format: LineFormat, first_ns: u64, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for second in 0..count {
        let severity = 3 + (second % 2) as u8;
        let payload = format!("<{severity}>Nov 25 14:00:00 host app: said\n");
        let record = Record {
            captured_at_ns: first_ns + second * 1_000_000_000,
            source: [198, 51, 100, severity].into(),
            source_port: 514,
            destination: [203, 0, 113, 1].into(),
            destination_port: 514,
            format: Format::Rfc3164,
            flags: Flags::default(),
            payload: payload.as_bytes(),
            vlans: Vlans::new(),
            dscp_ttl: 0,
        };
        LineEncoder::new(format).encode(&record, &mut out);
    }
    out
}

#[test]
fn counts_are_read_however_they_are_written() {
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
fn stored_messages_are_counted_by_what_is_asked_for_and_packed_ones_too() {
    let [text, json] = [LineFormat::Text, LineFormat::Json].map(|format| stored(format, BEGIN_NS, 150));
    let packed = zstd::encode_all(&json[..], 1).unwrap();
    for written in [&text, &json, &packed] {
        let (settings, total) = (settings(), vec![60, 60, 30]);
        let judged = judge(&settings, &read(&written[..], &settings).unwrap()).unwrap();
        assert_eq!(judged[0].1.iter().map(|row| row.count).collect::<Vec<_>>(), total);
    }
    let of = |by: &str| {
        let environment = Environment::from_pairs([("SEKIWAKE_ANOMALY_BY", by)]);
        let settings = sekiwake_settings::read(&environment, read_detecting).unwrap();
        let judged = judge(&settings, &read(&packed[..], &settings).unwrap()).unwrap();
        let counts = |rows: &[Row]| rows.iter().map(|row| row.count).collect::<Vec<_>>();
        judged.iter().map(|(key, rows)| (key.to_string(), counts(rows))).collect::<Vec<_>>()
    };
    assert_eq!(of("total"), [("total".to_owned(), vec![60, 60, 30])]);
    let halves = vec![30, 30, 15];
    assert_eq!(
        of("severity"),
        [("severity/err".to_owned(), halves.clone()), ("severity/warning".to_owned(), halves.clone())]
    );
    assert_eq!(
        of("source"),
        [("source/198.51.100.3".to_owned(), halves.clone()), ("source/198.51.100.4".to_owned(), halves)]
    );
}

#[test]
fn what_is_no_count_is_refused_with_its_line() {
    for wrong in
        ["NaN", "-5", "inf", "1e400", "1 2 3", "x", "2026-11-25T14:00:00Z,nan", "1e300,1", "-1,1", "99999999999,1"]
    {
        let said = refused(format!("1\n# a comment\n{wrong}\n").as_bytes());
        assert!(said.starts_with("line 3"), "{wrong}: {said}");
    }
    // Not even where a heading may stand.
    for wrong in ["NaN", "-5", "time,inf"] {
        assert!(refused(format!("{wrong}\n1\n").as_bytes()).starts_with("line 1"), "{wrong}");
    }
    assert!(refused(&b"1\n\xff\xfe\n"[..]).starts_with("line 2"));
    assert!(refused(&b"heading\nanother\n"[..]).starts_with("line 2"));
}

#[test]
fn input_without_an_end_is_refused_before_memory_is() {
    assert!(refused(io::repeat(b'1')).contains("line 1 is too long"));
    let many = "5\n".repeat(1_000_001);
    assert!(refused(many.as_bytes()).starts_with("line 1000001: more than 1000000 intervals"));
    assert!(refused(&b"0,1\n17000000000,1\n"[..]).starts_with("line 2: more than 1000000 intervals"));
    // Messages of all times.
    let far = [stored(LineFormat::Json, BEGIN_NS, 1), stored(LineFormat::Json, 0, 1)].concat();
    assert!(refused(&far[..]).starts_with("line 2: more than 1000000 intervals"), "{}", refused(&far[..]));
}

#[test]
fn nothing_is_nothing_to_explain() {
    for text in ["", "\n\n", "# only words\n", "heading\n"] {
        assert!(read(text.as_bytes(), &settings()).unwrap().is_empty(), "{text:?}");
    }
}

fn rows(counts: &[u64]) -> Vec<Row> {
    let settings = settings();
    let text: String = counts.iter().map(|count| format!("{count}\n")).collect();
    judge(&settings, &read(text.as_bytes(), &settings).unwrap()).unwrap().remove(0).1
}

#[test]
fn a_burst_and_a_silence_are_in_table_lines_and_picture() {
    let settings = settings();
    let counts = [100, 101, 100, 99, 100, 100, 500, 100, 100, 100, 100, 100, 100, 0, 0, 100];
    let judged = [(Key::Total, rows(&counts))];
    let (mut table, mut lines) = (Vec::new(), Vec::new());
    write_table(&mut table, &judged, false, &settings).unwrap();
    write_json(&mut lines, &judged, true).unwrap();
    let table = String::from_utf8(table).unwrap();
    assert_eq!(table.lines().count(), 18, "{table}");
    let burst = "1970-01-01T00:06:00Z  total          500       100.0        90.0       110.0  high  alarm";
    assert_eq!(table.lines().nth(7), Some(burst), "{table}");
    assert_eq!(table.lines().last(), Some("16 intervals of 60 s: 1 high, 2 low, 8 normal, 5 warming up"));
    let lines = String::from_utf8(lines).unwrap();
    let verdicts: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.iter().map(|row| &row["verdict"]).collect::<Vec<_>>(), ["high", "low", "low"]);
    let picture = picture::draw(Key::Total, &judged[0].1, &settings);
    let dots = |class: &str| picture.matches(&format!("<circle class=\"{class}\" cx=\"")).count();
    // One of each is the legend's.
    assert_eq!((dots("high"), dots("low")), (2, 3));
}

#[test]
fn a_picture_is_small_and_sound_whatever_is_in_it() {
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
    // The highest is seen although it is one of very many and within the bands.
    let mut counts = vec![1_u64; 20_000];
    counts[7_777] = 9_000;
    let wide = Settings { bands: BandSettings { min_width: 1e6, ..settings.bands }, ..settings.clone() };
    let judged =
        judge(&wide, &read(counts.iter().map(|n| format!("{n}\n")).collect::<String>().as_bytes(), &wide).unwrap());
    let rows = &judged.unwrap()[0].1;
    assert!(rows.iter().all(|row| !matches!(row.verdict, Verdict::High | Verdict::Low)));
    let shown = picture::thinned(rows);
    assert!(shown.len() < rows.len() && shown.iter().any(|row| row.count == 9_000));
}

#[test]
fn options_take_the_place_of_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (input, svg) = (folder.path().join("counts"), folder.path().join("a.svg"));
    fs::write(&input, "5\n".repeat(30)).unwrap();
    let arguments = Arguments {
        files: vec![input],
        interval: Some(30),
        window: Some(3),
        sigma: None,
        min_width: Some(1.0),
        min_width_percent: None,
        consecutive: None,
        by: None,
        json: false,
        anomalies: true,
        svg: Some(svg.clone()),
    };
    let nothing = Environment::from_pairs([("SEKIWAKE_ANOMALY_WINDOW", "5")]);
    run(&arguments, &nothing).unwrap();
    let picture = fs::read_to_string(svg).unwrap();
    assert!(picture.contains("messages in 30 s") && picture.contains("average of 3 intervals"), "{picture}");
    let wrong = Arguments { sigma: Some(f64::NAN), ..arguments };
    assert!(run(&wrong, &nothing).is_err());
}
