//! A client that is in no group registers destinations: captures leave them alone.

use std::net::Ipv4Addr;

use sekiwake_testkit::{
    process::{Process, Signal},
    sink::Sink,
    wait::wait_for,
};
use sekiwake_tests::{Service, binary, collector};
use serde_json::Value;

use crate::support::*;

/// The devices' end of the wire: datagrams to it leave on the captured interface.
const BACK: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

/// Sends from the captured host to the wire.
fn sender(site: &TestSite, arguments: &str, control: &str) -> Process {
    let mut command = site.host.command(binary("sekiwake-sender"));
    command.args(format!("--to {BACK}:514 {arguments} --json").split_whitespace());
    command.env("SEKIWAKE_BUS_CONTROL", control);
    Process::spawn(command).unwrap()
}

const CONTROL: &str = "tcp://127.0.0.1:5561";

/// What the proxy says of the client.
fn clients(proxy: &Service<'_>) -> Vec<Value> {
    let page: Value = serde_json::from_str(&proxy.page("/status").unwrap()).unwrap();
    page["roles"]["proxy"]["control"]["clients"].as_array().unwrap().clone()
}

#[test]
fn registered_destination_is_not_published_while_its_client_lives() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let collected = site.sink(&[at(collector(0), 514)], numbered());
    let back = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered())).unwrap().unwrap();
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let (proxy, capture) = (services.get(PROXY), services.get(CAPTURE));
    let claimed = || capture.metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    let left_alone = || proxy.metrics().unwrap().count("sekiwake_control_left_alone_datagrams_total", &["sender."]);

    // One that ends by itself, and one that is killed.
    let sent = sent_by(&mut sender(&site, "--register --count 500", CONTROL));
    assert_eq!(sent, 500);
    wait_for("the count of the first client", LONG, || left_alone() == 500).unwrap();
    let living = sender(&site, "--register --rate 100", CONTROL);
    wait_for("datagrams of the second client", LONG, || left_alone() > 600).unwrap();
    let shown = clients(proxy);
    let live = shown.iter().find(|client| client["ended"] == false).unwrap_or_else(|| panic!("{shown:?}"));
    assert!(live["client"].as_str().unwrap().starts_with("sender."), "{live}");
    assert_eq!(
        (&live["destinations"][0], &live["destinations_acknowledged"]),
        (&format!("{BACK}:514").into(), &true.into())
    );
    living.signal(Signal::KILL).unwrap();
    let _ = back.wait_for_silence(std::time::Duration::from_secs(1), LONG);
    let registered = back.report().received;
    assert!(registered > 600, "{registered} of {:?}", left_alone());
    wait_for("the end of the registration", LONG, || clients(proxy).is_empty()).unwrap();
    let own = |capture: &Service<'_>| {
        let page: Value = serde_json::from_str(&capture.page("/status").unwrap()).unwrap();
        page["roles"]["capture"]["stream"]["own_destinations"].to_string()
    };
    wait_for("captures without the destination", LONG, || !own(capture).contains(&BACK.to_string())).unwrap();
    assert_eq!((claimed(), left_alone(), collected.report().received), (0, registered, 0));

    // The same traffic without a registration.
    let sent = sent_by(&mut sender(&site, "--count 300", CONTROL));
    collected.wait_for(sent, LONG).unwrap();
    assert_eq!((claimed(), left_alone()), (300, registered));
    services.stop().unwrap();
    assert_eq!((collected.finish().received, back.finish().received), (300, registered + 300));
}

#[test]
fn sender_that_cannot_register_sends_nothing_and_says_why() {
    let Some(site) = site() else { return };
    let mut sender = sender(&site, "--register --count 5", "tcp://127.0.0.1:9");
    assert_eq!(sender.wait(LONG).unwrap().code(), Some(1));
    let (out, errors) = (sender.stdout(), sender.stderr());
    assert!(out.is_empty() && errors.len() == 1, "{out:?} {errors:?}");
    assert!(errors[0].contains("nothing sent") && errors[0].contains("no control connection"), "{errors:?}");
}
