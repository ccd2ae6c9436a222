//! Two captures see one link, members deliver once what both have seen, and any of them may fail.

use sekiwake_tests::{FIRST_DEVICE, Samples};

use super::*;
use crate::jetstream::server::{BUS, NatsServer};

const SECOND: Duration = Duration::from_secs(1);
const DEDUPLICATE: (&str, &str) = ("SEKIWAKE_DEDUPLICATE", "200ms");

/// Two captures of one link, the bus, and members that deduplicate, under load.
struct TwoCaptures<'a> {
    site: &'a TestSite,
    sink: Sink,
    /// With their settings, to start them again.
    captures: [Service<'a>; 2],
    bus: Bus<'a>,
    members: Members<'a>,
    load: Load<'a>,
}

/// What the datagrams pass.
enum Bus<'a> {
    Proxy(Service<'a>),
    JetStream(#[expect(dead_code, reason = "it runs until it is dropped")] NatsServer<'a>),
}

impl Bus<'_> {
    /// What every service on it is told.
    fn settings(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Bus::Proxy(_) => &[],
            Bus::JetStream(_) => &[BUS],
        }
    }
}

/// The capture of this number.
fn capture<'a>(site: &'a TestSite, bus: &Bus<'a>, number: usize) -> Service<'a> {
    let name = ["tap-a", "tap-b"][number];
    let admin = ["127.0.0.1:9690", "127.0.0.1:9691"][number];
    let settings = [("SEKIWAKE_PUBLISHER", name), ("SEKIWAKE_ADMIN", admin), ("SEKIWAKE_RETAIN", "256MiB")];
    site.start_one(CAPTURE, &[&settings[..], bus.settings()].concat())
}

impl<'a> TwoCaptures<'a> {
    fn start(site: &'a TestSite, members: usize, load: &str) -> TwoCaptures<'a> {
        let proxy = site.start_one(PROXY, &[]);
        TwoCaptures::start_on(site, Bus::Proxy(proxy), members, load)
    }

    /// The same on the other bus. `None` (and the test is skipped) without a server.
    fn start_on_jetstream(site: &'a TestSite, members: usize, load: &str) -> Option<TwoCaptures<'a>> {
        NatsServer::is_installed()
            .then(|| TwoCaptures::start_on(site, Bus::JetStream(NatsServer::start(&site.host, "")), members, load))
    }

    fn start_on(site: &'a TestSite, bus: Bus<'a>, members: usize, load: &str) -> TwoCaptures<'a> {
        site.disable_ipv6_on_the_wire();
        let sink = large_sink(site, 0);
        let captures = [0, 1].map(|number| capture(site, &bus, number));
        let mut group = Members::with(site, &[&[DEDUPLICATE], bus.settings()].concat());
        group.start("default", 0, members);
        group.wait_until_even();
        captures.iter().for_each(|capture| capture.wait_until_ready().unwrap());
        let scenario = TwoCaptures { site, sink, captures, bus, members: group, load: Load::with(site, load) };
        scenario.flow_for(SECOND);
        scenario
    }

    fn flow_for(&self, time: Duration) {
        flow_for(&self.sink, time);
    }

    fn kill_capture(&mut self, number: usize) {
        self.captures[number].kill().unwrap();
    }

    fn start_capture(&mut self, number: usize) {
        self.captures[number] = capture(self.site, &self.bus, number);
        self.captures[number].wait_until_ready().unwrap();
    }

    fn stop_capture(&mut self, number: usize) {
        self.captures[number].stop().unwrap();
    }

    /// One member becomes three, and then one again.
    fn scale(&mut self) {
        self.members.start("default", 0, 2);
        self.members.wait_until_even();
        self.flow_for(2 * SECOND);
        for _ in 0..2 {
            self.members.stop_first();
        }
        self.members.wait_for_shares(&[64]);
        self.flow_for(2 * SECOND);
    }

    fn proxy(&mut self) -> &mut Service<'a> {
        match &mut self.bus {
            Bus::Proxy(proxy) => proxy,
            Bus::JetStream(_) => panic!("no proxy on JetStream"),
        }
    }

    fn start_proxy(&mut self) {
        self.bus = Bus::Proxy(self.site.start_one(PROXY, &[]));
    }

    fn finish(self) -> Outcome {
        let sent = self.load.stop();
        settle(&self.sink, sent);
        // What one capture alone has lost is completed by the other one.
        let lost = |samples: &Samples| {
            let of = |labels: &[&str]| samples.count("sekiwake_bus_lost_records_total", labels);
            of(&[]) - of(&["reason=\"one_view\""])
        };
        let lost: u64 =
            self.members.members.iter().map(|member| member.metrics().map_or(0, |samples| lost(&samples))).sum();
        let compared = self.members.sum("sekiwake_deduplicate_duplicate_records_total");
        let status: Vec<String> =
            self.members.members.iter().filter_map(|member| member.page("/status").ok()).collect();
        let log = format!("{}\n{}", self.members.log(), status.join("\n"));
        self.members.stop();
        for mut capture in self.captures {
            capture.stop().unwrap();
        }
        if let Bus::Proxy(mut proxy) = self.bus {
            proxy.stop().unwrap();
        }
        let Completeness { missing, duplicates } = completeness(self.sink, sent);
        println!("{sent} sent, {missing} missing, {duplicates} duplicates, {compared} removed");
        assert!(compared > 0, "nothing was seen twice\n{log}");
        Outcome { sent, missing, duplicates, lost, log }
    }
}

#[test]
fn what_two_captures_see_arrives_once_while_members_scale() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 1, LOAD);
    scenario.scale();
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates), (0, 0), "{outcome}");
}

#[test]
fn jetstream_carries_what_two_captures_see_once_while_members_scale() {
    let Some(site) = site() else { return };
    let Some(mut scenario) = TwoCaptures::start_on_jetstream(&site, 1, LOAD) else { return };
    scenario.scale();
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates, outcome.lost), (0, 0, 0), "{outcome}");
}

#[test]
fn jetstream_capture_and_member_are_killed_and_nothing_is_missing() {
    let Some(site) = site() else { return };
    let Some(mut scenario) = TwoCaptures::start_on_jetstream(&site, 2, LOAD) else { return };
    scenario.kill_capture(0);
    scenario.flow_for(2 * SECOND);
    scenario.start_capture(0);
    scenario.flow_for(SECOND);
    scenario.stop_capture(1);
    scenario.flow_for(SECOND);
    let before = scenario.sink.report().sequence.duplicates;
    assert_eq!(before, 0, "before a member is killed");
    scenario.members.kill_first();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!(outcome.missing, 0, "{outcome}");
    // Its half of the shards since its last commit, as with one capture.
    assert!(outcome.duplicates <= LEASE.as_millis() as u64 * RATE / 1_000 / 2, "{outcome}");
}

#[test]
fn either_capture_is_killed_and_the_other_completes_it() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 2, LOAD);
    for number in [0, 1] {
        scenario.kill_capture(number);
        scenario.flow_for(2 * SECOND);
        scenario.start_capture(number);
        scenario.flow_for(2 * SECOND);
    }
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates), (0, 0), "{outcome}");
}

#[test]
fn capture_is_stopped_and_restarted_beside_the_other() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 1, LOAD);
    scenario.stop_capture(1);
    scenario.flow_for(SECOND);
    scenario.start_capture(1);
    scenario.flow_for(2 * SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates, outcome.lost), (0, 0, 0), "{outcome}");
}

#[test]
fn killed_member_beside_two_captures_loses_nothing() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 2, LOAD);
    scenario.flow_for(2 * SECOND);
    scenario.members.kill_first();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(2 * SECOND);
    let outcome = scenario.finish();
    assert_eq!(outcome.missing, 0, "{outcome}");
    // Its half of the shards since its last commit, as with one capture.
    assert!(outcome.duplicates <= LEASE.as_millis() as u64 * RATE / 1_000 / 2, "{outcome}");
}

#[test]
fn proxy_restarts_beside_two_captures_lose_nothing() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 2, LOAD);
    scenario.proxy().stop().unwrap();
    scenario.start_proxy();
    scenario.members.wait_for_shares(&[32, 32]);
    scenario.flow_for(SECOND + LEASE);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates), (0, 0), "{outcome}");
}

#[test]
fn killed_proxy_beside_two_captures_loses_nothing() {
    let Some(site) = site() else { return };
    let mut scenario = TwoCaptures::start(&site, 2, LOAD);
    scenario.proxy().kill().unwrap();
    pause_for(2 * SECOND);
    scenario.start_proxy();
    scenario.flow_for(2 * SECOND + LEASE);
    scenario.members.wait_for_shares(&[32, 32]);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
    // What was handled since the last commit that reached anybody.
    assert!(outcome.duplicates <= LEASE.as_millis() as u64 * RATE / 1_000, "{outcome}");
}

/// Every change and failure in turn, at five times the rate of the others.
#[test]
#[ignore = "takes a minute and both cores: make chaos"]
fn two_captures_at_50_000_per_second_survive_every_failure() {
    let Some(site) = site() else { return };
    let load = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 50000";
    let mut scenario = TwoCaptures::start(&site, 1, load);
    scenario.scale();
    for number in [0, 1] {
        scenario.kill_capture(number);
        scenario.flow_for(2 * SECOND);
        scenario.start_capture(number);
        scenario.flow_for(3 * SECOND);
    }
    scenario.proxy().stop().unwrap();
    scenario.start_proxy();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(SECOND + LEASE);
    scenario.stop_capture(1);
    scenario.flow_for(SECOND);
    scenario.start_capture(1);
    scenario.members.start("default", 0, 1);
    scenario.members.wait_until_even();
    scenario.flow_for(2 * SECOND);
    let doubled = scenario.sink.report().sequence.duplicates;
    // The only change that may double.
    scenario.members.kill_first();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(3 * SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost, doubled), (0, 0, 0), "{outcome}");
    assert!(outcome.duplicates <= LEASE.as_millis() as u64 * 50 / 2, "{outcome}");
}

/// A device that sends one line again and again is not silenced.
#[test]
fn every_repetition_of_a_device_arrives() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let mut bus = Bus::Proxy(site.start_one(PROXY, &[]));
    let mut captures = [0, 1].map(|number| capture(&site, &bus, number));
    let mut members = Members::with(&site, &[DEDUPLICATE]);
    members.start("default", 0, 1);
    members.wait_until_even();
    captures.iter().for_each(|capture| capture.wait_until_ready().unwrap());
    let line = b"<13>link down".to_vec();
    for _ in 0..20 {
        site.send_payloads(at(FIRST_DEVICE, 40_000), at(MIRRORED, 514), &vec![line.clone(); 10]);
    }
    let _ = sink.wait_for(200, LONG);
    wait_for("all copies", LONG, || members.sum("sekiwake_deduplicate_duplicate_records_total") == 200).unwrap();
    let _ = sink.wait_for_silence(Duration::from_millis(500), LONG);
    members.stop();
    captures.iter_mut().for_each(|capture| capture.stop().unwrap());
    if let Bus::Proxy(proxy) = &mut bus {
        proxy.stop().unwrap();
    }
    assert_same("repetitions", &in_order(sink.finish()), &vec![line; 200]);
}
