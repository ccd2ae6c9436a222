use std::{fs, net::IpAddr};

use proptest::prelude::*;
use sekiwake_record::{Flags, Format, Name, Record, Vlans};

use super::*;
use crate::{Part, Period, pack};

const HOUR: u64 = 3600 * 1_000_000_000;
const START: u64 = 1_795_615_200_000_000_000;

/// What a generated message is: its time after the begin, its source, its payload.
type Sent = (u64, u8, String);

fn record<'a>(at: u64, source: u8, payload: &'a str) -> Record<'a> {
    Record {
        captured_at_ns: at,
        source: IpAddr::from([198, 51, 100, source]),
        source_port: 514,
        destination: IpAddr::from([203, 0, 113, 1]),
        destination_port: 514,
        format: Format::Rfc3164,
        flags: Flags::default(),
        payload: payload.as_bytes(),
        vlans: Vlans::new(),
        dscp_ttl: 0,
    }
}

fn lines(format: LineFormat, messages: &[Sent]) -> Vec<u8> {
    let (mut encoder, mut out) = (LineEncoder::new(format), Vec::new());
    for (at, source, payload) in messages {
        encoder.encode(&record(*at, *source, payload), &mut out);
    }
    out
}

/// Puts messages into a file of their period's.
fn put(dir: &Path, number: u32, format: LineFormat, packed: bool, messages: &[Sent]) -> PartName {
    let period = Period::of(messages.first().map_or(START, |message| message.0), 3600);
    let part = Part { run: 1, number };
    let name = PartName { period, path: "d/syslog".to_owned(), member: Name::new("m").unwrap(), part, format, packed };
    let plain = lines(format, messages);
    fs::create_dir_all(dir.join("d")).unwrap();
    let mut bytes = Vec::new();
    match packed {
        true => drop(pack(&plain[..], format, 1, &mut bytes).unwrap()),
        false => bytes = plain,
    }
    fs::write(dir.join(name.to_string()), bytes).unwrap();
    name
}

fn found(max_bytes: usize, dir: &Path, query: &Query) -> (Vec<String>, SearchSummary) {
    let mut found = Vec::new();
    let summary = search_within(max_bytes, dir, query, &|| true, &mut |line| {
        found.push(String::from_utf8(line.to_vec()).unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    (found, summary)
}

fn json(messages: &[Sent]) -> Vec<String> {
    let text = String::from_utf8(lines(LineFormat::Json, messages)).unwrap();
    text.split_inclusive('\n').map(str::to_owned).collect()
}

#[test]
fn files_outside_of_the_range_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    for hour in 0..5 {
        put(
            dir.path(),
            hour + 1,
            LineFormat::Json,
            hour % 2 == 0,
            &[(START + u64::from(hour) * HOUR, 7, "<13>x".to_owned())],
        );
    }
    let query = Query { from_ns: START + HOUR, to_ns: START + 3 * HOUR, ..Query::default() };
    let (lines, summary) = found(1 << 20, dir.path(), &query);
    assert_eq!((lines.len(), summary.files_opened, summary.is_complete), (2, 2, true));
    assert_eq!(found(1 << 20, dir.path(), &Query { limit: Some(3), ..Query::default() }).0.len(), 3);
    assert_eq!(found(1 << 20, dir.path(), &Query::default()).1.files_opened, 5);
}

#[test]
fn frames_outside_of_the_range_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> =
        (0..30_000).map(|number| (START + number * 100_000_000, 7, format!("<13>{number}"))).collect();
    for packed in [false, true] {
        put(dir.path(), 1 + u32::from(packed), LineFormat::Json, packed, &messages);
        let range = Query { from_ns: messages[29_000].0, to_ns: messages[29_010].0, ..Query::default() };
        let (lines, summary) = found(1 << 20, dir.path(), &range);
        assert_eq!(lines.len(), 10 * (1 + usize::from(packed)));
        assert!(summary.lines < 20_000, "{}", summary.lines);
    }
}

#[test]
fn a_file_that_is_being_written_is_read_to_its_last_line_feed() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..100).map(|number| (START + number, 7, format!("<13>{number}"))).collect();
    let name = put(dir.path(), 1, LineFormat::Json, false, &messages);
    let path = dir.path().join(name.to_string());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines, summary.corrupt), (json(&messages[..99]), 0));
    // What a crash left, and what somebody wrote by hand, is passed over and counted.
    fs::write(&path, [&whole[..], &[0; 4096], b"\nnonsense\n", &whole].concat()).unwrap();
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines.len(), summary.corrupt), (200, 2));
}

#[test]
fn a_file_that_is_compressed_meanwhile_is_found_under_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    // In order but for the last: the first block is given out before the second is read.
    let mut messages: Vec<Sent> =
        (0..20_000).map(|number| (START + number, 7, format!("<13>{number} {}", "x".repeat(100)))).collect();
    messages.push((START + 30_000, 7, "<13>last".to_owned()));
    let plain = put(dir.path(), 1, LineFormat::Json, false, &messages);
    let (mut count, mut done) = (0, false);
    let mut lines = Vec::new();
    let summary = search_within(1 << 20, dir.path(), &Query::default(), &|| true, &mut |line| {
        count += 1;
        lines.push(String::from_utf8(line.to_vec()).unwrap());
        if count == 1000 && !done {
            done = true;
            put(dir.path(), 1, LineFormat::Json, true, &messages);
            fs::remove_file(dir.path().join(plain.to_string())).unwrap();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(summary.failed, []);
    assert_eq!(lines.len(), messages.len());
    assert_eq!(lines, json(&messages));
}

#[test]
fn foreign_and_broken_files_keep_no_one_from_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..1000).map(|number| (START + number, 7, format!("<13>{number}"))).collect();
    let good = put(dir.path(), 1, LineFormat::Json, true, &messages);
    // By the hand of a person: one frame, no table.
    let by_hand = PartName { part: Part { run: 2, number: 1 }, ..good.clone() };
    let compressed = zstd::encode_all(&lines(LineFormat::Json, &messages)[..], 3).unwrap();
    fs::write(dir.path().join(by_hand.to_string()), &compressed).unwrap();
    assert_eq!(found(1 << 20, dir.path(), &Query::default()).0.len(), 2000);
    let broken = PartName { part: Part { run: 3, number: 1 }, ..good.clone() };
    for bytes in [&compressed[..compressed.len() / 2], b"nonsense", b""] {
        fs::write(dir.path().join(broken.to_string()), bytes).unwrap();
        let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
        assert!(lines.len() >= 2000 && summary.is_complete, "{summary:?}");
    }
    fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    assert!(found(1 << 20, dir.path(), &Query::default()).0.len() >= 2000);
}

#[test]
fn folders_that_no_template_makes_are_not_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    for (number, folder) in ["", "lost+found", ".hidden"].iter().enumerate() {
        let message = (START, 7, format!("<13>{number}"));
        put(&dir.path().join(folder), 1, LineFormat::Json, false, &[message]);
    }
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines.len(), summary.failed.len()), (1, 0));
}

#[test]
fn whoever_has_seen_enough_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..1000).map(|number| (START + number, 7, format!("<13>{number}"))).collect();
    put(dir.path(), 1, LineFormat::Json, false, &messages);
    let mut count = 0;
    let summary = search(dir.path(), &Query::default(), &|| true, &mut |_| {
        count += 1;
        if count == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((count, summary.unwrap().is_complete), (10, false));
    let summary = search(dir.path(), &Query::default(), &|| false, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((summary.matched, summary.is_complete), (0, false));
    assert!(search(&dir.path().join("none"), &Query::default(), &|| true, &mut |_| ControlFlow::Continue(())).is_err());
}

/// `cargo test --release -p sekiwake-store -- --ignored --nocapture searching`
#[test]
#[ignore = "a measurement"]
fn searching_takes_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let text = "text of a message ".repeat(8);
    let messages: Vec<Sent> =
        (0..500_000).map(|number| (START + number * 1000, 7, format!("<13>{number} {text}"))).collect();
    for packed in [false, true] {
        let name = put(dir.path(), 1, LineFormat::Json, packed, &messages);
        let bytes = lines(LineFormat::Json, &messages).len();
        for (what, query) in
            [("all", Query::default()), ("one", Query { text: Some(b"499999".to_vec()), ..Query::default() })]
        {
            #[allow(clippy::disallowed_methods, reason = "a measurement")]
            let started = std::time::Instant::now();
            let summary = search(dir.path(), &query, &|| true, &mut |_| ControlFlow::Continue(())).unwrap();
            let rate = bytes as f64 / started.elapsed().as_secs_f64() / 1e6;
            println!(
                "packed {packed}, {what}: {} of {}, {rate:.0} MB/s of plain text",
                summary.matched,
                messages.len()
            );
        }
        fs::remove_file(dir.path().join(name.to_string())).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_search_gives_what_matches_in_order_whatever_the_files_are(
        files in proptest::collection::vec((
            any::<bool>(), any::<bool>(),
            proptest::collection::vec((0u64..50, 0u8..4, "(<1[0-9]>)?[a-cA-C]{0,6}"), 1..60),
        ), 1..6),
        range in (0u64..50, 0u64..60), sources in proptest::option::of(0u8..4), severity in proptest::option::of(0u8..8),
        text in proptest::option::of("[a-c]{1,2}"), limit in proptest::option::of(1u64..80), max_bytes in 300usize..20_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        let query = Query {
            from_ns: START + range.0,
            to_ns: START + range.1,
            sources: sources.map(|source| format!("198.51.100.{source}").parse().unwrap()).into_iter().collect(),
            max_severity: severity,
            text: text.clone().map(String::into_bytes),
            limit,
        };
        for (number, (packed, is_text, messages)) in files.iter().enumerate() {
            let messages: Vec<Sent> = messages.iter().map(|(at, source, payload)| (START + at, *source, payload.clone())).collect();
            let format = if *is_text { LineFormat::Text } else { LineFormat::Json };
            let name = put(dir.path(), number as u32 + 1, format, *packed, &messages);
            for (place, message) in messages.iter().enumerate() {
                let pri: Option<u8> = message.2.strip_prefix('<').and_then(|rest| rest.split('>').next()?.parse().ok());
                let is_match = (query.from_ns..query.to_ns).contains(&message.0)
                    && sources.is_none_or(|source| source == message.1)
                    && severity.is_none_or(|most| pri.unwrap_or(13) & 7 <= most)
                    && text.as_ref().is_none_or(|text| message.2.to_lowercase().contains(text.as_str()));
                if is_match {
                    expected.push(((message.0, name.clone(), place), message.clone()));
                }
            }
        }
        expected.sort();
        let mut expected: Vec<Sent> = expected.into_iter().map(|(_, message)| message).collect();
        expected.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        let (lines, summary) = found(max_bytes, dir.path(), &query);
        prop_assert_eq!(&lines, &json(&expected));
        prop_assert_eq!(summary.matched, lines.len() as u64);
        prop_assert_eq!(summary.corrupt, 0);
    }
}
