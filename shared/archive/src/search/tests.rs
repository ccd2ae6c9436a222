use std::{fs, net::IpAddr};

use proptest::prelude::*;
use sekiwake_record::{Format, Name, Record};
use sekiwake_testkit::fixtures;

use super::*;
use crate::{GroupReader, Item, LineEncoder, LineFormat, OpenGroup, PacketEncoder, Part, Period, compress};

const HOUR: u64 = 3600 * 1_000_000_000;
const START: u64 = 1_795_615_200_000_000_000;

fn time(nanos: u64) -> WallTime {
    WallTime::from_nanos(nanos)
}

/// A generated message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sent {
    captured_at_ns: u64,
    source: u8,
    payload: String,
}

fn sent(captured_at_ns: u64, source: u8, payload: impl Into<String>) -> Sent {
    Sent { captured_at_ns, source, payload: payload.into() }
}

fn record<'a>(at: u64, source: u8, payload: &'a str) -> Record<'a> {
    let source = IpAddr::from([198, 51, 100, source]);
    Record { captured_at_ns: at, source, source_port: 514, ..fixtures::record(payload.as_bytes()) }
}

fn lines(format: LineFormat, messages: &[Sent]) -> Vec<u8> {
    let mut encoder = LineEncoder::new(format);
    let mut out = Vec::new();
    for Sent { captured_at_ns, source, payload } in messages {
        encoder.encode(&record(*captured_at_ns, *source, payload), &mut out);
    }
    out
}

/// Puts messages into a file of their period.
fn put(dir: &Path, number: u32, format: LineFormat, compressed: bool, messages: &[Sent]) -> PartName {
    let period = Period::of(time(messages.first().map_or(START, |message| message.captured_at_ns)), 3600);
    let part = Part { run: 1, number };
    let state = if compressed { FileState::Compressed } else { FileState::Closed };
    let name = PartName {
        period,
        path: "d/syslog".to_owned(),
        member: Name::new("m").unwrap(),
        part,
        format: format.into(),
        state,
    };
    let plain = lines(format, messages);
    fs::create_dir_all(dir.join("d")).unwrap();
    let mut bytes = Vec::new();
    match compressed {
        true => compress(&plain[..], format, 1, &mut bytes).unwrap(),
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
fn files_outside_the_range_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    for hour in 0..5 {
        put(dir.path(), hour + 1, LineFormat::Json, hour % 2 == 0, &[sent(START + u64::from(hour) * HOUR, 7, "<13>x")]);
    }
    let query = Query { from: time(START + HOUR), to: time(START + 3 * HOUR), ..Query::default() };
    let (lines, summary) = found(1 << 20, dir.path(), &query);
    assert_eq!((lines.len(), summary.files_opened, summary.is_complete), (2, 2, true));
    assert_eq!(found(1 << 20, dir.path(), &Query { limit: Some(3), ..Query::default() }).0.len(), 3);
    assert_eq!(found(1 << 20, dir.path(), &Query::default()).1.files_opened, 5);
}

#[test]
fn frames_outside_the_range_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> =
        (0..30_000).map(|number| sent(START + number * 100_000_000, 7, format!("<13>{number}"))).collect();
    for compressed in [false, true] {
        put(dir.path(), 1 + u32::from(compressed), LineFormat::Json, compressed, &messages);
        let range = Query {
            from: time(messages[29_000].captured_at_ns),
            to: time(messages[29_010].captured_at_ns),
            ..Query::default()
        };
        let (lines, summary) = found(1 << 20, dir.path(), &range);
        assert_eq!(lines.len(), 10 * (1 + usize::from(compressed)));
        assert!(summary.lines < 20_000, "{}", summary.lines);
    }
}

#[test]
fn open_file_is_read_to_its_last_line_feed() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..100).map(|number| sent(START + number, 7, format!("<13>{number}"))).collect();
    let name = put(dir.path(), 1, LineFormat::Json, false, &messages);
    let path = dir.path().join(name.to_string());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines, summary.corrupt), (json(&messages[..99]), 0));
    // Zeros that a crash left, and foreign lines, are skipped and counted.
    fs::write(&path, [&whole[..], &[0; 4096], b"\nnonsense\n", &whole].concat()).unwrap();
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines.len(), summary.corrupt), (200, 2));
}

#[test]
fn file_compressed_during_the_search_is_found() {
    let dir = tempfile::tempdir().unwrap();
    // In order except for the last, so that the first block is output before the second is read.
    let mut messages: Vec<Sent> =
        (0..20_000).map(|number| sent(START + number, 7, format!("<13>{number} {}", "x".repeat(100)))).collect();
    messages.push(sent(START + 30_000, 7, "<13>last"));
    let plain = put(dir.path(), 1, LineFormat::Json, false, &messages);
    let mut count = 0;
    let mut done = false;
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
fn file_closed_during_the_search_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> =
        (0..20_000).map(|number| sent(START + number, 7, format!("<13>{number} {}", "x".repeat(100)))).collect();
    for order in [Order::Oldest, Order::Newest] {
        let closed = put(dir.path(), 1, LineFormat::Json, false, &messages);
        let open = closed.in_state(FileState::Open);
        fs::rename(dir.path().join(closed.to_string()), dir.path().join(open.to_string())).unwrap();
        let mut count = 0;
        let query = Query { order, limit: Some(15_000), ..Query::default() };
        let summary = search_within(1 << 20, dir.path(), &query, &|| true, &mut |_| {
            count += 1;
            if count == 1000 {
                fs::rename(dir.path().join(open.to_string()), dir.path().join(closed.to_string())).unwrap();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((summary.failed.len(), count), (0, 15_000), "{order:?}");
    }
}

#[test]
fn damaged_frame_costs_its_lines_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> =
        (0..20_000).map(|number| sent(START + number, 7, format!("<13>{number} {}", "x".repeat(100)))).collect();
    let name = put(dir.path(), 1, LineFormat::Json, true, &messages);
    let path = dir.path().join(name.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    for order in [Order::Oldest, Order::Newest] {
        fs::write(&path, &bytes).unwrap();
        let (lines, summary) = found(64 << 20, dir.path(), &Query { order, ..Query::default() });
        assert_eq!(lines.len() as u64 + summary.corrupt, 20_000);
        assert!(lines.len() > 10_000, "{}", lines.len());
        // Without its table, it is read from start to end.
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let (without_table, _) = found(64 << 20, dir.path(), &Query { order, ..Query::default() });
        assert_eq!(without_table, lines);
    }
}

#[test]
fn newest_messages_are_read_from_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let message = |number: u64, at: u64| sent(START + at, 7, format!("<13>{number} {}", "x".repeat(200)));
    // 60 MB in order, but for a few in the middle and a late megabyte at the end.
    let mut messages: Vec<Sent> = (0..150_000).map(|number| message(number, number * 1000)).collect();
    messages.swap(75_000, 149_000);
    messages.extend((0..3000).map(|number| message(number, 1000 + number)));
    let name = put(dir.path(), 1, LineFormat::Json, false, &messages);
    let mut file = fs::OpenOptions::new().append(true).open(dir.path().join(name.to_string())).unwrap();
    io::Write::write_all(&mut file, b"{\"captured_at\":\"torn").unwrap();
    let mut sorted = messages.clone();
    sorted.sort();
    sorted.reverse();
    let query = Query { order: Order::Newest, limit: Some(100), ..Query::default() };
    let (lines, summary) = found(64 << 20, dir.path(), &query);
    assert_eq!(lines, json(&sorted[..100]));
    assert!(summary.lines < 100_000, "{summary:?}");
    let query = Query { to: time(START + 50_000_000), ..query };
    let (lines, _) = found(64 << 20, dir.path(), &query);
    let before: Vec<Sent> = sorted.into_iter().filter(|sent| time(sent.captured_at_ns) < query.to).take(100).collect();
    assert_eq!(lines, json(&before));
}

#[test]
fn foreign_and_corrupt_files_do_not_stop_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..1000).map(|number| sent(START + number, 7, format!("<13>{number}"))).collect();
    let good = put(dir.path(), 1, LineFormat::Json, true, &messages);
    // Compressed by hand: one frame, no table.
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
fn folders_that_no_template_produces_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    for (number, folder) in ["", "lost+found", ".hidden"].iter().enumerate() {
        let message = sent(START, 7, format!("<13>{number}"));
        put(&dir.path().join(folder), 1, LineFormat::Json, false, &[message]);
    }
    let (lines, summary) = found(1 << 20, dir.path(), &Query::default());
    assert_eq!((lines.len(), summary.failed.len()), (1, 0));
}

#[test]
fn visitor_can_end_the_search() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..1000).map(|number| sent(START + number, 7, format!("<13>{number}"))).collect();
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

/// `cargo test --release -p sekiwake-archive -- --ignored --nocapture measure_newest`
#[test]
#[ignore = "a measurement"]
fn measure_newest_of_1_and_10_million() {
    const MILLION: u64 = 1_000_000;
    let text = "text of a message ".repeat(5);
    for compressed in [false, true] {
        let times = [1, 10].map(|millions| {
            let dir = tempfile::tempdir().unwrap();
            // One file per million, as large files are rotated.
            for number in 0..millions {
                let messages: Vec<Sent> = (number * MILLION..(number + 1) * MILLION)
                    .map(|number| sent(START + number * 100_000, (number % 200) as u8, format!("<13>{number} {text}")))
                    .collect();
                put(dir.path(), number as u32 + 1, LineFormat::Json, compressed, &messages);
            }
            let query = Query { order: Order::Newest, limit: Some(100), ..Query::default() };
            #[allow(clippy::disallowed_methods, reason = "a measurement")]
            let times = (0..5).map(|_| {
                let started = std::time::Instant::now();
                let (lines, _) = found(DEFAULT_BYTES, dir.path(), &query);
                assert_eq!(lines.len(), 100);
                assert!(lines[0].contains(&format!(">{} ", millions * MILLION - 1)), "{}", lines[0]);
                started.elapsed()
            });
            times.min().unwrap()
        });
        println!("compressed {compressed}: newest 100 of 1 million in {:?}, of 10 million in {:?}", times[0], times[1]);
        assert!(times[1].as_secs_f64() < 0.5 && times[1] < 2 * times[0].max(std::time::Duration::from_millis(20)));
    }
}

/// `cargo test --release -p sekiwake-archive -- --ignored --nocapture measure_searching`
#[test]
#[ignore = "a measurement"]
fn measure_searching() {
    let dir = tempfile::tempdir().unwrap();
    let text = "text of a message ".repeat(8);
    let messages: Vec<Sent> =
        (0..500_000).map(|number| sent(START + number * 1000, 7, format!("<13>{number} {text}"))).collect();
    for compressed in [false, true] {
        let name = put(dir.path(), 1, LineFormat::Json, compressed, &messages);
        let bytes = lines(LineFormat::Json, &messages).len();
        for (what, query) in
            [("all", Query::default()), ("one", Query { texts: vec![b"499999".to_vec()], ..Query::default() })]
        {
            #[allow(clippy::disallowed_methods, reason = "a measurement")]
            let started = std::time::Instant::now();
            let summary = search(dir.path(), &query, &|| true, &mut |_| ControlFlow::Continue(())).unwrap();
            let rate = bytes as f64 / started.elapsed().as_secs_f64() / 1e6;
            println!(
                "compressed {compressed}, {what}: {} of {}, {rate:.0} MB/s of plain text",
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
    fn search_returns_all_matches_in_order(
        files in proptest::collection::vec((
            any::<bool>(), any::<bool>(),
            proptest::collection::vec((0u64..50, 0u8..4, "(<1[0-9]>)?[a-cA-C]{0,6}"), 1..60),
        ), 1..6),
        range in (0u64..50, 0u64..60), sources in proptest::option::of(0u8..4), severity in proptest::option::of(0u8..8),
        texts in proptest::collection::vec("[a-c]{1,2}", 0..3), limit in proptest::option::of(1u64..80), max_bytes in 300usize..20_000,
        is_newest: bool, facilities in proptest::collection::vec(0u8..4, 0..2),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        let query = Query {
            kinds: Vec::new(),
            from: time(START + range.0),
            to: time(START + range.1),
            sources: sources.map(|source| format!("198.51.100.{source}").parse().unwrap()).into_iter().collect(),
            facilities: facilities.clone(),
            max_severity: severity,
            formats: vec![Format::Rfc3164],
            texts: texts.iter().cloned().map(String::into_bytes).collect(),
            order: if is_newest { Order::Newest } else { Order::Oldest },
            limit,
            decode: false,
        };
        for (number, (compressed, is_text, messages)) in files.iter().enumerate() {
            let messages: Vec<Sent> = messages.iter().map(|(at, source, payload)| sent(START + at, *source, payload.as_str())).collect();
            let format = if *is_text { LineFormat::Text } else { LineFormat::Json };
            let name = put(dir.path(), number as u32 + 1, format, *compressed, &messages);
            for (place, message) in messages.iter().enumerate() {
                let pri: Option<u8> = message.payload.strip_prefix('<').and_then(|rest| rest.split('>').next()?.parse().ok());
                let is_match = query.is_in_range(time(message.captured_at_ns))
                    && sources.is_none_or(|source| source == message.source)
                    && severity.is_none_or(|most| pri.unwrap_or(13) & 7 <= most)
                    && (facilities.is_empty() || facilities.contains(&(pri.unwrap_or(13) >> 3)))
                    && texts.iter().all(|text| message.payload.to_lowercase().contains(text.as_str()));
                if is_match {
                    expected.push(((message.captured_at_ns, name.clone(), place), message.clone()));
                }
            }
        }
        expected.sort();
        if is_newest {
            expected.reverse();
        }
        let mut expected: Vec<Sent> = expected.into_iter().map(|(_, message)| message).collect();
        expected.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        let (lines, summary) = found(max_bytes, dir.path(), &query);
        prop_assert_eq!(&lines, &json(&expected));
        prop_assert_eq!(summary.matched, lines.len() as u64);
        prop_assert_eq!(summary.corrupt, 0);
    }
}

/// Puts messages into a file of packets, with a template at its start.
fn put_packets(dir: &Path, number: u32, state: FileState, messages: &[Sent]) -> PartName {
    let encoder = PacketEncoder::new(0x1234_5678_9abc_def0);
    let format = FileFormat::Pcapng(Kind::Xflow);
    let period = Period::of(time(messages.first().map_or(START, |message| message.captured_at_ns)), 3600);
    let part = Part { run: 1, number };
    let name = PartName { period, path: "d/xflow".to_owned(), member: Name::new("m").unwrap(), part, format, state };
    let mut plain = encoder.head(Kind::Xflow);
    let (mut body, mut group) = (Vec::new(), OpenGroup::default());
    encoder.encode_template(&record(1, 9, "template"), &mut body, &mut group);
    encoder.seal(&mut body, &mut group);
    for (index, Sent { captured_at_ns, source, payload }) in messages.iter().enumerate() {
        encoder.encode(&record(*captured_at_ns, *source, payload), "capture", &mut body, &mut group);
        if index % 7 == 6 {
            encoder.seal(&mut body, &mut group);
        }
    }
    encoder.seal(&mut body, &mut group);
    plain.extend(body);
    fs::create_dir_all(dir.join("d")).unwrap();
    let mut bytes = Vec::new();
    match state {
        FileState::Compressed => compress(&plain[..], format, 1, &mut bytes).unwrap(),
        _ => bytes = plain,
    }
    fs::write(dir.join(name.to_string()), bytes).unwrap();
    name
}

/// The payloads that are selected, and those of templates.
fn selected(selection: &Selection) -> (Vec<String>, Vec<String>, SearchSummary) {
    let (mut payloads, mut templates) = (Vec::new(), Vec::new());
    let summary = read(selection, &|| true, &mut |found| {
        let message = found.message().unwrap();
        assert_eq!(message.kind, Kind::Xflow);
        let payload = String::from_utf8(message.payload.into_owned()).unwrap();
        if found.origin() == Origin::Selected {
            payloads.push(payload)
        } else {
            templates.push(payload)
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    (payloads, templates, summary)
}

fn of_flows() -> Query {
    Query { kinds: vec![Kind::Xflow], ..Query::default() }
}

#[test]
fn large_file_of_packets_is_read_by_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(1000);
    let messages: Vec<Sent> =
        (0..6000).map(|number| sent(START + number * 100_000_000, 7, format!("{number} {text}"))).collect();
    for state in [FileState::Closed, FileState::Compressed] {
        let name = put_packets(dir.path(), 1, state, &messages);
        let range = Query {
            from: time(messages[5_900].captured_at_ns),
            to: time(messages[5_910].captured_at_ns),
            ..of_flows()
        };
        let mut selection = Selection::new(dir.path(), &range);
        let (payloads, templates, summary) = selected(&selection);
        assert_eq!((payloads.len(), templates.len()), (10, 0));
        assert!(summary.lines < 3000, "{}", summary.lines);
        selection.templates = Templates::OfStart;
        assert_eq!(selected(&selection).1, ["template"]);
        selection.templates = Templates::All;
        let (_, templates, _) = selected(&selection);
        assert_eq!((templates.len(), templates[0].as_str()), (1 + 5_900, "template"));
        let newest = Query { order: Order::Newest, limit: Some(3), ..of_flows() };
        let (payloads, _, summary) = selected(&Selection::new(dir.path(), &newest));
        assert!(payloads.iter().zip(["5999 ", "5998 ", "5997 "]).all(|(payload, start)| payload.starts_with(start)));
        assert!(summary.lines < 3000, "{}", summary.lines);
        // Syslog only, unless the kind is named.
        assert_eq!(found(1 << 20, dir.path(), &Query::default()).1.files_opened, 0);
        fs::remove_file(dir.path().join(name.to_string())).unwrap();
    }
}

#[test]
fn damaged_file_of_packets_is_read_behind_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(1000);
    let messages: Vec<Sent> = (0..6000).map(|number| sent(START + number, 7, format!("{number} {text}"))).collect();
    for state in [FileState::Open, FileState::Closed, FileState::Compressed] {
        let name = put_packets(dir.path(), 1, state, &messages);
        let path = dir.path().join(name.to_string());
        let whole = fs::read(&path).unwrap();
        let places = [0, 5, 200, whole.len() / 3, whole.len() / 2, whole.len() - 100, whole.len() - 1];
        for at in places {
            let mut changed = whole.clone();
            changed[at] ^= 0x20;
            fs::write(&path, &changed).unwrap();
            for order in [Order::Oldest, Order::Newest] {
                let (payloads, _, summary) = selected(&Selection::new(dir.path(), &Query { order, ..of_flows() }));
                // A frame of 1 MiB; a group, here of seven.
                let most = if state == FileState::Compressed { 1050 } else { 7 };
                assert!(payloads.len() + most >= 6000, "{state:?} {at} {order:?}: {}", payloads.len());
                assert!(summary.failed.is_empty(), "{:?}", summary.failed);
            }
        }
        // Torn at its end, as a file that is written to may be.
        if state == FileState::Open {
            fs::write(&path, &whole[..whole.len() - 3000]).unwrap();
            let (payloads, _, summary) = selected(&Selection::new(dir.path(), &of_flows()));
            assert!(payloads.len() >= 5986 && summary.corrupt == 0, "{} {}", payloads.len(), summary.corrupt);
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn compression_keeps_every_byte_of_packets() {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Sent> = (0..4000).map(|number| sent(START + number, 7, "y".repeat(900))).collect();
    let name = put_packets(dir.path(), 1, FileState::Closed, &messages);
    let whole = fs::read(dir.path().join(name.to_string())).unwrap();
    for cut in [0, 1, 50, 300, 100_000, whole.len() - 1, whole.len()] {
        let mut changed = whole[..cut].to_vec();
        if let Some(byte) = changed.get_mut(cut / 2) {
            *byte ^= 1;
        }
        let mut compressed = Vec::new();
        compress(&changed[..], name.format, 1, &mut compressed).unwrap();
        let mut plain = Vec::new();
        let mut groups = GroupReader::of_file(&compressed[..]).unwrap();
        while let Some(Item::Group { bytes, .. } | Item::Damaged { bytes, .. }) = groups.next_item().unwrap() {
            plain.extend_from_slice(bytes);
        }
        assert!(plain == changed, "{cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn packets_are_found_in_order(
        files in proptest::collection::vec((
            0usize..3,
            proptest::collection::vec((0u64..50, 0u8..4, "[a-cA-C]{0,6}"), 1..60),
        ), 1..6),
        range in (0u64..50, 0u64..60), source in proptest::option::of(0u8..4),
        texts in proptest::collection::vec("[a-c]{1,2}", 0..2), limit in proptest::option::of(1u64..80),
        max_bytes in 300usize..20_000, is_newest: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        let query = Query {
            from: time(START + range.0),
            to: time(START + range.1),
            sources: source.map(|source| format!("198.51.100.{source}").parse().unwrap()).into_iter().collect(),
            texts: texts.iter().cloned().map(String::into_bytes).collect(),
            order: if is_newest { Order::Newest } else { Order::Oldest },
            limit,
            ..of_flows()
        };
        for (number, (state, messages)) in files.iter().enumerate() {
            let state = [FileState::Open, FileState::Closed, FileState::Compressed][*state];
            let messages: Vec<Sent> =
                messages.iter().map(|(at, source, payload)| sent(START + at, *source, payload.as_str())).collect();
            put_packets(dir.path(), number as u32 + 1, state, &messages);
            for (place, message) in messages.into_iter().enumerate() {
                let is_wanted = query.is_in_range(time(message.captured_at_ns))
                    && source.is_none_or(|source| source == message.source)
                    && texts.iter().all(|text| message.payload.to_ascii_lowercase().contains(text));
                if is_wanted {
                    expected.push((message.captured_at_ns, number, place, message.payload));
                }
            }
        }
        expected.sort();
        if is_newest {
            expected.reverse();
        }
        expected.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        let mut payloads = Vec::new();
        let summary = read_within(max_bytes, &Selection::new(dir.path(), &query), &|| true, &mut |found| {
            payloads.push(String::from_utf8(found.message().unwrap().payload.into_owned()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        prop_assert_eq!(summary.corrupt, 0);
        let expected: Vec<String> = expected.into_iter().map(|(_, _, _, payload)| payload).collect();
        prop_assert_eq!(payloads, expected);
    }
}
