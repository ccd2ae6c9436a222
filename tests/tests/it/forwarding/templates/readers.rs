//! A tap prints the templates that a forwarder keeps, and decodes with them.

use sekiwake_testkit::{sink::Options, wait::wait_for_some};
use sekiwake_tests::MIRRORED;
use serde_json::{Value, json};

use super::*;

/// Runs a tap to its end. Returns its status and its lines.
fn tap(site: &TestSite, topics: &[&str]) -> (Option<i32>, Vec<Value>, Vec<String>) {
    let mut tap = run(&site.host, "sekiwake-tap", topics, site.bus());
    let status = tap.wait(LONG).unwrap().code();
    (status, tap.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect(), tap.stderr())
}

#[test]
fn tap_prints_templates_that_were_sent_before_it_started() {
    prints_templates(Bus::ZeroMq);
}

#[test]
fn tap_prints_templates_that_were_sent_before_it_started_on_jetstream() {
    prints_templates(Bus::JetStream);
}

fn prints_templates(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let mut services = site.start(&[CAPTURE, PROXY], &[]);
    // Within the grace period of the proxy the tap waits for what members report.
    let (status, lines, log) = tap(&site, &["templates/"]);
    assert_eq!((status, lines.len(), log.len()), (Some(1), 0, 1), "{log:?}");
    assert!(log[0].contains("no xflow-forwarder"), "{log:?}");
    let sink = site.sink(&[at(collector(0), PORT)], Options::counts());
    let destination = uri(0, "");
    let forwarder =
        |group| site.start_one(XFLOW, &[("SEKIWAKE_XFLOW_DESTINATIONS", &*destination), ("SEKIWAKE_GROUP", group)]);
    let mut old = Exporter::new(&site, 1, Version::NetFlow9, at(MIRRORED, PORT));
    let mut new = Exporter::new(&site, 2, Version::Ipfix, at(MIRRORED, PORT));
    new.domain = 9;
    // The templates of a group that nobody is in any more are out of date.
    let mut former = forwarder("a");
    former.wait_until_ready().unwrap();
    new.template(400, &LAYOUT);
    new.template(401, &LAYOUT);
    new.template(402, &LAYOUT);
    wait_for("the templates of the first group", LONG, || tap(&site, &["templates/"]).1.len() == 3).unwrap();
    former.stop().unwrap();
    [400, 401, 402].into_iter().for_each(|id| new.withdraw(id));
    services.add(forwarder("default"));
    services.wait_until_datagrams_flow().unwrap();
    let before = sink.received();
    old.sampling(300, 100);
    new.template(256, &LAYOUT);
    new.template(257, &OTHER_LAYOUT);
    new.withdraw(257);
    wait_for("the datagrams", LONG, || sink.received() >= before + 5).unwrap();
    let mut printed = (None, Vec::new(), Vec::new());
    wait_for("both templates", LONG, || {
        printed = tap(&site, &["templates/"]);
        printed.1.len() == 2
    })
    .unwrap_or_else(|late| panic!("{late}: {printed:?}"));
    let (status, lines, _) = printed;
    assert_eq!(status, Some(0));
    let options = lines.iter().find(|line| line["format"] == "netflow9").unwrap();
    assert_eq!(
        (&options["exporter"], &options["domain"], &options["id"], &options["options"]),
        (&json!(old.name()), &json!(7), &json!(300), &json!(true))
    );
    let fields = json!([
        {"element": 1, "length": 4, "scope": true}, {"element": 34, "length": 4}, {"element": 35, "length": 1}
    ]);
    assert_eq!(options["fields"], fields);
    let template = lines.iter().find(|line| line["format"] == "ipfix").unwrap();
    assert_eq!(
        (&template["exporter"], &template["domain"], &template["id"], &template["options"]),
        (&json!(new.name()), &json!(9), &json!(256), &json!(false))
    );
    assert_eq!(template["fields"].as_array().unwrap().len(), LAYOUT.len());
    // A tap that starts now decodes data at once: nobody repeats the template.
    let mut decoding = run(&site.host, "sekiwake-tap", &["--decode", "--count", "1", "xflow/"], site.bus());
    let flow = wait_for_some("a decoded flow", LONG, || {
        new.flow(256, &LAYOUT, 5);
        decoding.stdout().first().cloned()
    });
    let flow: Value = serde_json::from_str(&flow.unwrap()).unwrap();
    assert_eq!((&flow["type"], &flow["domain"], &flow["template"]), (&json!("flow"), &json!(9), &json!(256)), "{flow}");
    assert_eq!((&flow["source"], &flow["octetDeltaCount"]), (&json!(new.name()), &json!(BASE_BYTES + 5)), "{flow}");
    assert_eq!(decoding.wait(LONG).unwrap().code(), Some(0));
    let age = template["age_seconds"].as_f64().unwrap();
    assert!((0.0..LONG.as_secs_f64()).contains(&age), "{template}");
    services.stop().unwrap();
}
