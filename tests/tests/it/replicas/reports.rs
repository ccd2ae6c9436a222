//! What logs, metrics and `/status` say of members that differ, fail and stop.

use serde_json::{Value, json};

use super::*;

/// The value of a field in a line of the log.
pub(super) fn number(line: &str, field: &str) -> u64 {
    let value = line.split_once(&format!(" {field}=")).unwrap_or_else(|| panic!("no {field} in {line}")).1;
    let digits = value.split(|character: char| !character.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap_or_else(|_| panic!("{field} in {line}"))
}

/// The lines of a log that contain this text.
fn lines_with(log: &[String], text: &str) -> Vec<String> {
    log.iter().filter(|line| line.contains(text)).cloned().collect()
}

#[test]
fn members_with_different_destinations_or_deduplication_are_reported() {
    let Some(site) = site() else { return };
    let spine = site.start(&[PROXY], &[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("destinations");
    std::fs::write(&file, format!("{} # the old collector\n", syslog_to(1))).unwrap();
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    let third = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", file.to_str().unwrap()),
        ("SEKIWAKE_ADMIN", "127.0.0.1:9760"),
        ("SEKIWAKE_MEMBER", "m3"),
    ];
    members.members.push(site.start_one(SYSLOG, &third));
    // Members without destinations.
    let store = tempfile::tempdir().unwrap();
    let storers: Vec<Service<'_>> = [("s1", "127.0.0.1:9761", "200ms"), ("s2", "127.0.0.1:9762", "")]
        .map(|(label, admin, deduplicate)| {
            let settings = [
                ("SEKIWAKE_STORE_DIR", store.path().to_str().unwrap()),
                ("SEKIWAKE_ADMIN", admin),
                ("SEKIWAKE_MEMBER", label),
                ("SEKIWAKE_DEDUPLICATE", deduplicate),
            ];
            site.start_one("sekiwake-storer", &settings)
        })
        .into();
    members.wait_until_even();
    let differ = |group: &str, expected: u64| {
        let proxy = spine.get(PROXY);
        let label = format!("group=\"{group}\"");
        let gauge =
            || proxy.metrics().map_or(2, |samples| samples.count("sekiwake_group_destinations_differ", &[&label]));
        let what = format!("destinations_differ {expected}");
        // It is not reported within the first minute.
        wait_for(&what, 3 * LONG, || gauge() == expected).unwrap();
    };
    let status = |service: &Service<'_>, pointer: &str| -> Value {
        let page: Value = serde_json::from_str(&service.page("/status").unwrap()).unwrap();
        page.pointer(pointer).cloned().unwrap_or_else(|| panic!("no {pointer} in {page}"))
    };
    let difference = |proxy| {
        let groups = status(proxy, "/roles/proxy/control/groups");
        let group = groups.as_array().unwrap().iter().find(|group| group["name"] == "syslog-forwarder.default");
        group.unwrap()["different_destinations"].clone()
    };
    assert_eq!(difference(spine.get(PROXY))["reported"], false);
    differ("syslog-forwarder.default", 1);
    let shown = difference(spine.get(PROXY));
    assert_eq!((&shown["reported"], &shown["members"]), (&json!(true), &json!([["m1", "m2"], ["m3"]])));
    let warned = "members of one group have different destinations";
    let warnings = || {
        let lines = lines_with(&spine.get(PROXY).process.stderr(), warned);
        lines_with(&lines, "group=syslog-forwarder.default")
    };
    wait_for("the proxy's warning", LONG, || !warnings().is_empty()).unwrap();
    let lines = warnings();
    assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("m1, m2 | m3"), "{lines:?}");
    for (member, others) in members.members.iter().zip(["m3", "m3", "m1, m2"]) {
        let warned = "other members of this group have other destinations";
        wait_for("a member's warning", LONG, || !lines_with(&member.process.stderr(), warned).is_empty()).unwrap();
        let lines = lines_with(&member.process.stderr(), warned);
        assert!(lines.len() == 1 && lines[0].contains(&format!("others=\"{others}\"")), "{lines:?}");
        let listed = status(member, "/roles/syslog-forwarder/group/members_with_other_destinations");
        assert_eq!(listed, json!(others.split(", ").collect::<Vec<_>>()));
    }
    differ("storer.default", 1);
    for (storer, other) in storers.iter().zip(["s2", "s1"]) {
        let warned = "the same line is about another SEKIWAKE_DEDUPLICATE";
        wait_for("a storer's warning", LONG, || !lines_with(&storer.process.stderr(), warned).is_empty()).unwrap();
        let lines = lines_with(&storer.process.stderr(), warned);
        assert!(lines.len() == 1 && lines[0].contains(&format!("others=\"{other}\"")), "{lines:?}");
        assert_eq!(status(storer, "/roles/storer/group/members_with_other_destinations"), json!([other]));
    }
    // The same destinations, in other words.
    std::fs::write(&file, format!("\n {}?gso=true\n", syslog_to(0).trim_end_matches(":514"))).unwrap();
    differ("syslog-forwarder.default", 0);
    let over = "members have the same destinations again";
    let is_over = |service: &Service<'_>| !lines_with(&service.process.stderr(), over).is_empty();
    wait_for("the end in every log", LONG, || is_over(spine.get(PROXY)) && members.members.iter().all(is_over))
        .unwrap();
    assert_eq!(difference(spine.get(PROXY)), Value::Null);
    members.stop();
    Services(storers).stop().unwrap();
    spine.stop().unwrap();
}

#[test]
fn killed_member_is_named_with_its_shards_and_takers() {
    let Some(site) = site() else { return };
    let load = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 2000";
    let mut scenario = Scenario::with_load(&site, 2, load);
    scenario.flow_for(Duration::from_secs(2));
    scenario.members.kill_first();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(Duration::from_secs(1));
    // An orderly change makes no warning.
    scenario.members.start("default", 0, 1);
    scenario.members.wait_for_shares(&[32, 32]);
    scenario.flow_for(Duration::from_secs(1));
    scenario.members.stop_first();
    scenario.members.wait_for_shares(&[64]);
    let left = "member left";
    let proxy = || scenario.spine.get(PROXY).process.stderr();
    wait_for("the end of the second member", LONG, || !lines_with(&proxy(), left).is_empty()).unwrap();
    let log = proxy();
    let metrics = scenario.spine.get(PROXY).metrics().unwrap();
    let group = ["group=\"syslog-forwarder.default\""];
    let expired = metrics.count("sekiwake_group_expired_leases_total", &group);
    let possible = metrics.count("sekiwake_group_possible_duplicate_records_total", &group);
    let outcome = scenario.finish();
    println!("at most {possible} duplicates");
    let warnings = lines_with(&log, "WARN");
    let warnings: Vec<&String> = warnings.iter().filter(|line| line.contains("lease")).collect();
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.contains("lease of a member expired, other members take its shards"), "{warning}");
    assert!(warning.contains("member=m1") && warning.contains("shards=\"32 ("), "{warning}");
    assert!(warning.contains("taken_by=\"m2: 32 ("), "{warning}");
    assert_eq!(number(warning, "possible_duplicates"), possible);
    let departures = lines_with(&log, left);
    assert!(departures.len() == 1 && departures[0].contains("member=m2"), "{departures:?}");
    assert!(departures[0].contains("INFO"), "{departures:?}");
    assert_eq!((outcome.missing, expired), (0, 1), "{outcome}");
    assert!(possible > 0 && outcome.duplicates <= possible, "at most {possible}: {outcome}");
}

#[test]
fn stopped_forwarder_says_what_it_sent_and_dropped() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let destinations = format!("{} {}?rate=10", syslog_to(0), syslog_to(1));
    let mut services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --rate 5000 --count 1000"));
    sink.wait_for(sent, LONG).unwrap();
    let mut forwarder = services.take(SYSLOG);
    let of_reason = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        forwarder.metrics().unwrap().count("sekiwake_forward_dropped_datagrams_total", &[&label])
    };
    let forwarded = || forwarder.metrics().unwrap().count("sekiwake_forward_sent_datagrams_total", &[]);
    wait_for("all to be sent or dropped", LONG, || forwarded() + of_reason("rate") == 2 * sent).unwrap();
    let (forwarded, dropped) = (forwarded(), of_reason("rate"));
    forwarder.stop().unwrap();
    let log = forwarder.process.stderr();
    services.stop().unwrap();
    sink.finish();
    let lines = lines_with(&log, "forwarding ended");
    let [line] = &lines[..] else { panic!("{log:?}") };
    assert!(line.contains("INFO") && line.contains("kind=syslog"), "{line}");
    assert!(dropped > 0 && line.contains(&format!("reasons=\"rate {dropped}\"")), "{line}");
    let fields = ["destinations", "received", "unmatched", "sent", "dropped", "left_to_group"];
    assert_eq!(fields.map(|field| number(line, field)), [2, sent, 0, forwarded, dropped, 0]);
    assert!(log.last().unwrap().contains("service ended"), "{log:?}");
}
