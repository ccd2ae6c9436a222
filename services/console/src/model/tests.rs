use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn at(seconds: u64) -> Moment {
    Moment { elapsed: Duration::from_secs(seconds), wall: Duration::from_secs(1_000_000 + seconds) }
}

/// A message of a service in the second `second`.
fn message(service: &str, part: &str, second: u64, mut body: Value) -> (String, String) {
    let members = body.as_object_mut().unwrap();
    members.insert("service".to_owned(), service.into());
    members.insert("group".to_owned(), "default".into());
    members.insert("member".to_owned(), "one".into());
    members.entry("incarnation").or_insert_with(|| "0001".into());
    members.insert("part".to_owned(), part.into());
    members.insert("sent_at_ns".to_owned(), (second * 1_000_000_000).into());
    let incarnation = members["incarnation"].as_str().unwrap();
    (format!("status/{service}.default.one.{incarnation}/{part}"), body.to_string())
}

fn apply(model: &mut Model, service: &str, part: &str, second: u64, body: Value) {
    let (topic, json) = message(service, part, second, body);
    model.apply(&topic, &json, at(second));
}

fn process(state: &str) -> Value {
    json!({ "version": "0.1.0", "state": state, "is_ready": true })
}

fn destination(sent: u64, dropped: u64) -> Value {
    json!({ "destination": "udp://198.51.100.7:514", "state": "up", "sent": sent, "dropped": { "queue_full": dropped } })
}

#[test]
fn rates_and_losses_follow_the_counts() {
    let mut model = Model::default();
    for second in 1..=20 {
        apply(&mut model, "syslog-forwarder", "process", second, process("running"));
        let lost = if second < 15 { 7 } else { 7 + (second - 14) * 10 };
        apply(&mut model, "syslog-forwarder", "destinations.0", second, destination(second * 500, lost));
    }
    let view = model.view(at(20));
    let [shown] = &view.destinations[..] else { panic!("{view:?}") };
    assert_eq!((shown.sent.total, shown.sent.rate), (10_000, Some(500.0)));
    assert_eq!((shown.lost.total, shown.lost.rate), (67, Some(6.0)));
    let [loss] = &view.losses[..] else { panic!("{view:?}") };
    assert!(loss.is_now);
    assert_eq!((loss.began_at, loss.last_at), (Some(at(15)), Some(at(20))));
    // Counted before the console started: how long ago is not known.
    let mut model = Model::default();
    apply(&mut model, "syslog-forwarder", "destinations.0", 1, destination(1, 7));
    let view = model.view(at(1));
    assert_eq!((view.losses[0].began_at, view.losses[0].is_now), (None, false));
}

#[test]
fn stop_is_shown_at_once_and_silence_after_a_while() {
    let mut model = Model::default();
    for second in 1..=10 {
        apply(&mut model, "capture", "process", second, process("running"));
        let state = if second == 10 { "stopping" } else { "running" };
        apply(&mut model, "storer", "process", second, process(state));
        if second <= 5 {
            apply(&mut model, "proxy", "process", second, process("running"));
        }
    }
    let presence = |service: &str| {
        let view = model.view(at(10));
        view.services.iter().find(|shown| shown.service.as_str() == service).map(|shown| shown.presence)
    };
    assert_eq!(presence("capture"), Some(Presence::Live));
    assert_eq!(presence("storer"), Some(Presence::Stopped { since: at(10) }));
    assert_eq!(presence("proxy"), Some(Presence::Silent { since: at(5) }));
}

#[test]
fn captures_in_trouble_come_first() {
    let mut model = Model::default();
    for (number, state) in ["up", "down", "up"].into_iter().enumerate() {
        let incarnation = number.to_string();
        let body = json!({ "interface": "eth1", "state": state, "incarnation": incarnation });
        apply(&mut model, "capture", "interfaces.0", 1, body);
    }
    let view = model.view(at(1));
    let states: Vec<&str> = view.captures.iter().map(|capture| capture.interfaces[0].state.as_str()).collect();
    assert_eq!(states, ["down", "up", "up"]);
}

#[test]
fn bus_that_carries_no_status_is_named() {
    let mut model = Model::default();
    assert_eq!(model.view(at(1)).bus, BusState::Connecting);
    model.set_connected(true, at(2));
    assert_eq!(model.view(at(3)).bus, BusState::Waiting);
    assert_eq!(model.view(at(12)).bus, BusState::NoStatus);
    apply(&mut model, "proxy", "process", 13, process("running"));
    assert_eq!(model.view(at(13)).bus, BusState::Live);
    let lost = BusState::Lost { since: at(13), is_connected: true };
    assert_eq!(model.view(at(20)).bus, lost);
    // Only the bus is lost: nothing is known of the services.
    assert_eq!(model.view(at(20)).services[0].presence, Presence::Live);
}

#[test]
fn new_run_replaces_the_old_one() {
    let mut model = Model::default();
    apply(&mut model, "storer", "process", 1, process("running"));
    for second in 2..=20 {
        let mut body = process("running");
        body["incarnation"] = "0002".into();
        apply(&mut model, "storer", "process", second, body);
        model.expire(at(second));
    }
    let view = model.view(at(20));
    assert_eq!(view.services.len(), 1);
    assert_eq!(model.parts, 1);
}

#[test]
fn removed_destination_is_forgotten() {
    let mut model = Model::default();
    apply(&mut model, "syslog-forwarder", "destinations.0", 1, destination(1, 0));
    for second in 2..=15 {
        apply(&mut model, "syslog-forwarder", "process", second, process("running"));
        model.expire(at(second));
    }
    assert!(model.view(at(15)).destinations.is_empty());
}

#[test]
fn members_are_those_of_the_proxy() {
    let mut model = Model::default();
    let groups = json!([{ "name": "syslog-forwarder.default", "kind": "syslog", "lag_records": 5, "unowned_shards": 2,
        "members": [{ "label": "one", "incarnation": "0001", "shards": 40 },
                    { "label": "two", "incarnation": "0002", "shards": 22 }] }]);
    apply(&mut model, "proxy", "control", 1, json!({ "groups": groups, "incarnation": "00ff" }));
    for (second, handled) in [(1, 900), (2, 909)] {
        let streams = json!([{ "stream": "s", "handled": handled, "lag_records": 3 }]);
        apply(&mut model, "syslog-forwarder", "group", second, json!({ "streams": streams }));
    }
    let view = model.view(at(2));
    let group = view.groups.iter().find(|group| group.name.as_str() == "syslog-forwarder.default").unwrap();
    assert_eq!((group.lag, group.unowned), (Some(5), 2));
    let members: Vec<_> =
        group.members.iter().map(|member| (member.name.as_str(), member.shards, member.handled.total)).collect();
    assert_eq!(members, [("one", 40, 9), ("two", 22, 0)]);
}

#[test]
fn series_have_their_window_and_bands() {
    let mut model = Model::default();
    for second in 1..=3u64 {
        let series = json!({ "total": { "window": [1, 2, second], "count": second, "lower": 0.5, "upper": 4.0,
            "verdict": if second == 3 { "high" } else { "normal" } } });
        let detector = json!({ "phase": "counting", "interval_seconds": 1.0, "next_interval": 100 + second,
            "firing": [{ "series": "total" }], "series": series });
        apply(&mut model, "anomaly-detector", "detector", second, detector);
    }
    let view = model.view(at(3));
    let (name, history) = &view.detectors[0].series[0];
    let points: Vec<_> = history.points.iter().map(|point| (point.start, point.count.unwrap())).collect();
    assert_eq!((name.as_str(), points), ("total", vec![(98, 1.0), (99, 2.0), (100, 1.0), (101, 2.0), (102, 3.0)]));
    assert_eq!(
        history.points.back().map(|point| (point.verdict.as_str(), point.bands)),
        Some(("high", Some((0.5, 4.0))))
    );
}

#[test]
fn services_and_bytes_are_bounded() {
    let mut model = Model::default();
    for number in 0..MAX_SERVICES + 10 {
        let mut body = process("running");
        body["incarnation"] = number.to_string().into();
        apply(&mut model, "storer", "process", 1, body);
    }
    assert_eq!((model.services(), model.no_room), (MAX_SERVICES, 10));
}

#[test]
fn hostile_parts_are_counted() {
    let mut model = Model::default();
    let many: serde_json::Map<String, Value> = (0..100).map(|n| (n.to_string(), 1.into())).collect();
    for (part, body) in [
        ("process", json!({ "cpu_seconds": "much" })),
        ("destinations.0", json!({ "dropped": many })),
        ("destinations.0", json!({ "sent": -1 })),
        ("group", json!({ "streams": 1 })),
    ] {
        apply(&mut model, "storer", part, 1, body);
    }
    model.apply("status/a/process", "{}", at(1));
    model.apply("status", "{}", at(1));
    assert_eq!((model.invalid, model.services()), (6, 0));
    apply(&mut model, "storer", "topics", 1, json!({}));
    assert_eq!(model.invalid, 6);
}

#[test]
fn service_is_that_of_the_topic() {
    let mut model = Model::default();
    let (topic, json) = message("storer", "process", 1, process("stopping"));
    let foreign = ["proxy.default.one.0001", "storer.-.one.0001", "storer.default.two.0001", "storer.default.one.0002"];
    for origin in foreign {
        model.apply(&format!("status/{origin}/process"), &json, at(1));
    }
    model.apply("status/storer.default.one.0001/group", &json, at(1));
    assert_eq!((model.invalid, model.services()), (5, 0));
    let no_group = json.replace("\"default\"", "\"-\"");
    model.apply("status/storer.-.one.0001/process", &no_group, at(1));
    assert_eq!((model.invalid, model.services()), (6, 0));
    model.apply("status/storer.-.one.0001/process", &json.replace("\"default\"", "null"), at(1));
    model.apply(&topic, &json, at(1));
    assert_eq!((model.invalid, model.services()), (6, 2));
}

fn headline(model: &Model, second: u64) -> String {
    crate::views::flow::page(&model.view(at(second))).0
}

#[test]
fn silent_service_leaves_losses_unknown_until_it_is_replaced() {
    for (service, part) in [("syslog-forwarder", "destinations.0"), ("capture", "interfaces.0"), ("proxy", "control")] {
        let mut model = Model::default();
        apply(&mut model, service, part, 1, destination(1, 1));
        assert!(headline(&model, 2).contains("Nothing is being lost"), "{service}");
        for second in [5, 3600, 7200, 86_400].into_iter().flat_map(|second| second..second + 10) {
            apply(&mut model, "console", "process", second, process("running"));
            model.expire(at(second));
        }
        let page = headline(&model, 86_409);
        assert!(page.contains("Unknown: ") && !page.contains("Nothing is being lost"), "{service}: {page}");
        let mut replaced = process("running");
        replaced["incarnation"] = "0002".into();
        apply(&mut model, service, "process", 86_409, replaced);
        model.expire(at(86_409));
        assert!(headline(&model, 86_409).contains("Nothing is being lost"), "{service}");
    }
    // An orderly stop is no silence, and neither is a detector's.
    let mut model = Model::default();
    apply(&mut model, "capture", "process", 1, process("stopping"));
    apply(&mut model, "anomaly-detector", "process", 1, process("running"));
    apply(&mut model, "console", "process", 9, process("running"));
    assert!(headline(&model, 9).contains("Nothing is being lost"));
}

#[test]
fn room_is_made_of_silent_services() {
    let mut model = Model::default();
    for number in 0..MAX_SERVICES + 10 {
        let mut body = process("running");
        body["incarnation"] = number.to_string().into();
        let second = match number {
            0..10 => 1,
            10..20 => 4,
            _ => 8,
        };
        apply(&mut model, "storer", "process", second, body);
    }
    assert_eq!((model.services(), model.parts, model.no_room), (MAX_SERVICES, MAX_SERVICES, 0));
}

#[test]
fn outage_of_the_bus_is_no_silence_of_services() {
    let mut model = Model::default();
    for service in ["capture", "storer"] {
        apply(&mut model, service, "process", 1, process("running"));
    }
    let back = 5 * 86_400;
    apply(&mut model, "proxy", "process", back, process("running"));
    model.expire(at(back));
    let view = model.view(at(back + 1));
    assert_eq!(view.services.len(), 3);
    assert!(view.services.iter().all(|service| service.presence == Presence::Live), "{view:?}");
    for second in back..back + 6 {
        apply(&mut model, "proxy", "process", second, process("running"));
    }
    assert!(
        model.view(at(back + 6)).services.iter().any(|service| service.presence == Presence::Silent { since: at(1) })
    );
}

#[test]
fn hand_over_of_shards_is_no_traffic() {
    let mut model = Model::default();
    for second in 1..=30u64 {
        let is_more = second >= 15;
        let shards: Vec<Value> = (0..if is_more { 64 } else { 32 })
            .map(|shard| json!({ "shard": format!("{shard:02x}"), "state": "owned" }))
            .collect();
        let before = if is_more { 10_000_000 } else { 0 };
        let streams = json!([{ "stream": "s", "handled": before + second * 100, "located_shards": shards.len() }]);
        apply(&mut model, "storer", "group", second, json!({ "shards": shards, "streams": streams }));
        let handled = model.view(at(second)).groups[0].handled;
        let expected = if second == 1 || second == 15 { None } else { Some(100.0) };
        assert_eq!(handled.rate, expected, "{second}");
        assert!(handled.total <= second * 100, "{second}: {handled:?}");
    }
    assert_eq!(model.view(at(30)).groups[0].handled.total, 2800);
}

#[test]
fn other_destination_with_the_same_number_begins_anew() {
    let mut model = Model::default();
    apply(&mut model, "syslog-forwarder", "destinations.0", 1, destination(1000, 0));
    let mut other = destination(5000, 500);
    other["destination"] = "udp://198.51.100.8:514".into();
    apply(&mut model, "syslog-forwarder", "destinations.0", 2, other.clone());
    let view = model.view(at(2));
    assert_eq!((view.destinations[0].sent.rate, view.losses[0].is_now), (None, false));
    // Reasons that are no longer sent are forgotten.
    for second in 3..100 {
        other["dropped"] = json!({ second.to_string(): 1 });
        apply(&mut model, "syslog-forwarder", "destinations.0", second, other.clone());
    }
    assert_eq!(model.view(at(99)).losses.len(), 1);
}

#[test]
fn rate_of_the_proxy_has_all_streams_once() {
    let mut model = Model::default();
    let stream = |number: u64, second: u64| json!({ "stream": format!("s{number}"), "published": { "syslog": second * 10, "xflow": second, "snmptrap": 1 } });
    let group = json!({ "name": "storer.default", "members": [{ "label": "one", "incarnation": "1" }] });
    for second in 1..=8 {
        for chunk in 0..4 {
            let streams: Vec<Value> = (chunk * 25..(chunk + 1) * 25).map(|number| stream(number, second)).collect();
            let body = json!({ "incarnation": "01", "streams": streams });
            apply(&mut model, "proxy", &format!("control.streams.{chunk}"), second, body);
        }
        let groups = json!({ "incarnation": "01", "groups": [&group] });
        apply(&mut model, "proxy", "control.groups.0", second, groups);
        apply(&mut model, "proxy", "control", second, json!({ "incarnation": "01" }));
    }
    let rate = |view: &View, kind: &str| view.published[&Text::from(kind)].rate;
    let view = model.view(at(8));
    assert_eq!((rate(&view, "syslog"), rate(&view, "xflow")), (Some(1000.0), Some(100.0)));
    // Now all fits into one part, and a part of the former list is left behind.
    let all = json!({ "incarnation": "01", "groups": [group, group], "streams": [stream(0, 9)] });
    apply(&mut model, "proxy", "control", 9, all);
    let view = model.view(at(9));
    assert_eq!(view.groups[0].members.len(), 1);
    // Another run of the proxy: the newest counts.
    let other = json!({ "incarnation": "02", "groups": [{ "name": "storer.other" }] });
    apply(&mut model, "proxy", "control", 10, other);
    let names: Vec<String> = model.view(at(10)).groups.iter().map(|group| group.name.0.clone()).collect();
    assert_eq!(names, ["storer.other"]);
}

proptest! {
    #[test]
    fn any_status_can_be_shown(
        messages in prop::collection::vec((0..9usize, any::<u64>(), any::<f64>(), ".{0,40}", 0..40u64), 1..40),
    ) {
        let parts = ["process", "group", "destinations.0", "interfaces.0", "store", "detector", "control", "stream", "detector.series"];
        let mut model = Model::default();
        for (part, count, number, text, second) in messages {
            let body = json!({
                "state": text, "destination": text, "interface": text, "phase": "counting", "uptime_seconds": number,
                "cpu_seconds": number, "seconds_in_state": number, "last_error": { "error": text, "seconds_ago": number },
                "sent": count, "packets": count, "dropped": { &text: count }, "dropped_packets": { &text: count },
                "given_up": { &text: count }, "queue": { "records": count, "bytes": count },
                "spool": { "datagrams": count, "bytes": count }, "written_records": count,
                "published": { &text: { &text: count } }, "interval_seconds": number, "next_interval": count as i64,
                "series": { &text: { "window": [number], "count": number, "lower": number, "upper": number, "verdict": text } },
                "groups": [{ "name": text, "lag_records": count, "unowned_shards": count,
                    "members": [{ "label": text, "incarnation": text, "shards": count }] }],
                "streams": [{ "stream": text, "handled": count, "lag_records": count, "published": { &text: count } }],
                "firing": [{ &text: { &text: number } }],
            });
            let (topic, json) = message("storer", parts[part], count.wrapping_add(second) >> 30, body);
            model.apply(&topic, &json, at(second));
            model.expire(at(second));
        }
        let view = model.view(at(40));
        prop_assert!(crate::views::flow::page(&view).0.len() > 100);
        crate::views::destinations::page(&view);
        crate::views::anomalies::page(&view);
    }
}

#[test]
fn markup_in_names_and_errors_is_text() {
    const EVIL: &str = "<script>evil()</script>\"'<b>";
    let mut model = Model::default();
    for (part, body) in [
        ("process", json!({ "version": EVIL, "state": EVIL, "waits_for": [EVIL], "is_ready": false })),
        (
            "destinations.0",
            json!({ "destination": EVIL, "address": EVIL, "state": EVIL, "dropped": { EVIL: 1 },
            "last_error": { "error": EVIL, "seconds_ago": 1.0 } }),
        ),
        (
            "interfaces.0",
            json!({ "interface": EVIL, "state": EVIL, "published": { EVIL: { EVIL: 1 } },
            "dropped_packets": { EVIL: 1 } }),
        ),
        ("store", json!({ "directory": EVIL, "error": EVIL })),
        (
            "detector",
            json!({ "phase": "counting", "interval_seconds": 1.0, "next_interval": 9, "firing": [{ EVIL: EVIL }],
            "series": { EVIL: { "count": 1, "window": [1, 1], "verdict": EVIL } } }),
        ),
        (
            "control",
            json!({ "groups": [{ "name": EVIL, "kind": EVIL, "members": [{ "label": EVIL }] }],
            "streams": [{ "stream": EVIL, "published": { EVIL: 1 } }],
            "clients": [{ "client": EVIL, "destinations": [EVIL] }] }),
        ),
    ] {
        for (service, member) in [("storer", EVIL), (EVIL, "one"), ("capture", EVIL)] {
            let mut message: Value = body.clone();
            let members = message.as_object_mut().unwrap();
            members.extend([
                ("service".to_owned(), service.into()),
                ("group".to_owned(), EVIL.into()),
                ("member".to_owned(), member.into()),
                ("incarnation".to_owned(), EVIL.into()),
                ("part".to_owned(), part.into()),
                ("sent_at_ns".to_owned(), 1.into()),
            ]);
            model.apply(&format!("status/{service}.{EVIL}.{member}.{EVIL}/{part}"), &message.to_string(), at(1));
        }
    }
    assert_eq!(model.invalid, 0);
    let view = model.view(at(1));
    let pages = [
        crate::views::flow::page(&view).0,
        crate::views::destinations::page(&view).0,
        crate::views::anomalies::page(&view).0,
        crate::views::access::wrong_host(EVIL).0,
    ];
    for page in pages {
        assert!(page.contains("&lt;script&gt;evil()"), "{page}");
        for raw in ["<script>evil", "<b>", "\"'<"] {
            assert!(!page.contains(raw), "{raw} in {page}");
        }
    }
}

/// Parts that services sent: a part that does not fit the types would not be shown at all.
#[test]
fn real_parts_are_read() {
    let mut model = Model::default();
    for line in include_str!("testdata/status.jsonl").lines() {
        let text: Value = serde_json::from_str(line).unwrap();
        let of = |name: &str| text[name].as_str().unwrap_or("-").to_owned();
        let origin = ["service", "group", "member", "incarnation"].map(of).join(".");
        model.apply(&format!("status/{origin}/{}", of("part")), line, at(1));
        assert_eq!(model.invalid, 0, "{line}");
    }
    assert_eq!(model.services(), 5);
}
