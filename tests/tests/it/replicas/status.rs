//! The contents of `/status`.

use sekiwake_tests::WIRE;
use serde_json::{Value, json};

use super::*;

fn status(service: &Service<'_>) -> Value {
    serde_json::from_str(&service.page("/status").unwrap()).unwrap()
}

#[test]
fn status_has_groups_members_positions_memory_and_sources() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let spine = site.start(&[CAPTURE, PROXY], &[]);
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 30 --rate 5000 --count 3000"));
    sink.wait_for(sent, LONG).unwrap();

    let control = || status(spine.get(PROXY))["roles"]["proxy"]["control"].clone();
    let committed = |page: &Value| -> u64 {
        let positions = page["topics"][0]["positions"].as_array().unwrap();
        let shards = positions.iter().flat_map(|position| position["shards"].as_array().unwrap());
        shards.map(|shard| shard["committed"].as_u64().unwrap()).sum()
    };
    // What is published is announced once a second, and may be committed before.
    wait_for("all to be committed and announced", LONG, || {
        let page = control();
        committed(&page) == sent && page["streams"][0]["published"]["syslog"] == sent
    })
    .unwrap();
    let page = control();
    let group = &page["groups"][0];
    assert_eq!(group["name"], "syslog-forwarder.default");
    assert_eq!(group["kind"], "syslog");
    let labels: Vec<&str> = group["members"].as_array().unwrap().iter().filter_map(|m| m["label"].as_str()).collect();
    assert_eq!(labels.len(), 2);
    assert!(labels.contains(&"m1") && labels.contains(&"m2"), "{labels:?}");
    let shown = group["members"].as_array().unwrap();
    assert!(shown.iter().all(|member| member["shards"] == 32) && group["unowned_shards"] == 0, "{group}");
    // The summary comes before hundreds of lines about single shards.
    let text = spine.get(PROXY).page("/status").unwrap();
    let summary = text.lines().position(|line| line.contains("\"owners\"")).unwrap();
    assert!(summary < 100 && text.find("\"groups\"") < text.find("\"streams\""), "{text}");
    let shards = page["topics"][0]["owners"].as_array().unwrap();
    assert_eq!(shards.len(), 64);
    assert!(
        shards.iter().all(|shard| shard["generation"].as_u64() > Some(0) && shard["owner"].is_string()),
        "{shards:?}"
    );
    assert_eq!(group["lag_records"], 0);
    let stream = &page["streams"][0];
    assert_eq!(stream["live"], true);
    assert_eq!(stream["published"]["syslog"], sent);
    assert_eq!(stream["retained"]["syslog"], sent);

    let member = status(&members.members[0])["roles"]["syslog-forwarder"]["group"].clone();
    assert_eq!(member["group"], "syslog-forwarder.default");
    assert_eq!(member["leased"], true);
    assert_eq!(member["shards"].as_array().unwrap().len(), 32);
    assert!(member["repair_requests"].is_u64() && member["given_up"].is_object(), "{member}");

    let shown = |member| status(&members.members[member])["roles"]["syslog-forwarder"]["destinations"][0].clone();
    let destinations = [shown(0), shown(1)];
    let counts = destinations.iter().map(|destination| destination["sent"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), sent, "{destinations:?}");
    for destination in &destinations {
        assert_eq!(destination["destination"], syslog_to(0));
        assert_eq!(destination["address"], at(collector(0), 514).to_string());
        assert_eq!((&destination["dropped"], &destination["queue"]["records"]), (&json!({}), &json!(0)));
        assert!(destination["last_error"].is_null() && destination["seconds_in_state"].is_f64(), "{destination}");
    }

    let capture = status(spine.get(CAPTURE))["roles"]["capture"].clone();
    assert!(capture["stream"]["retained"][0]["bytes"].as_u64() > Some(sent * 200), "{capture}");
    let sources = capture["sources"]["top"].as_array().unwrap();
    assert_eq!(sources.len(), 20, "the twenty with the most records of thirty");
    assert!(sources.iter().all(|source| source["records"].as_u64() > Some(0)), "{sources:?}");
    let interface = &capture["interfaces"][0];
    assert_eq!((&interface["interface"], &interface["state"]), (&json!(WIRE), &json!("up")), "{interface}");
    let published = interface["published"]["syslog"].as_object().unwrap();
    assert_eq!(published.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), sent, "{interface}");
    assert!(
        interface["packets"].as_u64() >= Some(sent) && interface["dropped_packets"]["kernel"].is_null(),
        "{interface}"
    );
    members.stop();
    spine.stop().unwrap();
}
