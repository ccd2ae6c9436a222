//! Members, the proxy and capture come and go.

use super::*;

use sekiwake_testkit::process::Signal;
use sekiwake_tests::Services;

/// Capture and proxy, ready.
fn spine(site: &TestSite) -> Services<'_> {
    spine_with(site, &[])
}

fn spine_with<'a>(site: &'a TestSite, more: &[(&str, &str)]) -> Services<'a> {
    site.switch_ipv6_off_on_the_wire();
    site.start(&[CAPTURE, PROXY], &[&[("SEKIWAKE_RETAIN", "512MiB")], more].concat())
}

#[test]
fn scaling_from_one_to_four_and_back_to_two_loses_and_doubles_nothing() {
    let Some(site) = site("scaling_from_one_to_four_and_back_to_two_loses_and_doubles_nothing") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    members.start("default", 0, 3);
    members.wait_for_shares(&[16, 16, 16, 16]);
    flow_for(&sink, Duration::from_secs(1));
    for _ in 0..2 {
        members.members.remove(0).stop().unwrap();
    }
    members.wait_for_shares(&[32, 32]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    let said = members.said();
    members.stop();
    spine.stop().unwrap();
    assert_eq!(judge(sink, sent), (0, 0), "missing and doubled of {sent}\n{said}");
}

#[test]
fn after_the_kill_of_one_of_three_nothing_is_missing_and_little_is_doubled() {
    let Some(site) = site("after_the_kill_of_one_of_three_nothing_is_missing_and_little_is_doubled") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 3);
    members.wait_until_even();
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(2));
    let mut victim = members.members.remove(0);
    victim.process.signal(Signal::KILL).unwrap();
    victim.process.wait(LONG).unwrap();
    members.wait_for_shares(&[32, 32]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{doubled} of {sent} doubled");
    assert_eq!(missing, 0);
    // A third of the shards, for the time between two commits and a moment on the way.
    assert!(doubled <= 50_000 / 3, "{doubled} doubled");
}

#[test]
fn the_only_member_killed_and_started_again_goes_on_where_it_was() {
    let Some(site) = site("the_only_member_killed_and_started_again_goes_on_where_it_was") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    let mut victim = members.members.remove(0);
    victim.process.signal(Signal::KILL).unwrap();
    victim.process.wait(LONG).unwrap();
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    let lost = members.sum("sekiwake_bus_lost_records_total");
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{doubled} of {sent} doubled");
    assert_eq!((missing, lost), (0, 0));
    assert!(doubled <= 50_000, "{doubled} doubled");
}

#[test]
fn a_proxy_killed_and_back_after_two_seconds_costs_nothing() {
    let Some(site) = site("a_proxy_killed_and_back_after_two_seconds_costs_nothing") else { return };
    let sink = patient_sink(&site, 0);
    let mut spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    let mut proxy = spine.take(PROXY);
    proxy.process.signal(Signal::KILL).unwrap();
    proxy.process.wait(LONG).unwrap();
    let back_at = Instant::now() + Duration::from_secs(2);
    wait_for("the end of the outage", LONG, || Instant::now() >= back_at).unwrap();
    spine.add(site.start_one(PROXY, &[]));
    flow_for(&sink, Duration::from_secs(2) + LEASE);
    members.wait_for_shares(&[32, 32]);
    let sent = load.end();
    settle(&sink, sent);
    let (said, lost) = (members.said(), members.sum("sekiwake_bus_lost_records_total"));
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{doubled} of {sent} doubled");
    assert_eq!((missing, lost), (0, 0), "{said}");
}

#[test]
fn a_member_stopped_for_five_seconds_sends_nothing_that_is_no_longer_its_own() {
    let Some(site) = site("a_member_stopped_for_five_seconds_sends_nothing_that_is_no_longer_its_own") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    members.members[0].process.signal(Signal::STOP).unwrap();
    wait_for("the other to take over", PATIENCE, || owned_shards(&members.members[1]) == 64).unwrap();
    flow_for(&sink, Duration::from_millis(1_500));
    // What the other has sent again since the last commit of the one that is stopped.
    let before = sink.report().sequence.doubled;
    members.members[0].process.signal(Signal::CONT).unwrap();
    members.wait_for_shares(&[32, 32]);
    let sent = load.end();
    settle(&sink, sent);
    let said = members.said();
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{before} doubled before it went on, {} after", doubled - before);
    assert_eq!(missing, 0, "{said}");
    assert!(before <= 50_000 / 2, "{before} doubled before it went on");
    // One call sends at most 64 messages of 64 datagrams.
    assert!(doubled - before <= 64 * 64, "{} doubled after it went on", doubled - before);
}

#[test]
fn the_only_member_stopped_for_five_seconds_catches_up() {
    let Some(site) = site("the_only_member_stopped_for_five_seconds_catches_up") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    members.members[0].process.signal(Signal::STOP).unwrap();
    let on_at = Instant::now() + Duration::from_secs(5);
    wait_for("the stop to last", LONG, || Instant::now() >= on_at).unwrap();
    members.members[0].process.signal(Signal::CONT).unwrap();
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    let (said, lost) = (members.said(), members.sum("sekiwake_bus_lost_records_total"));
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{doubled} of {sent} doubled");
    assert_eq!((missing, lost), (0, 0), "{said}");
}

#[test]
fn a_member_stopped_while_the_proxy_is_restarted_commits_nothing_that_it_has_not_sent() {
    let test = "a_member_stopped_while_the_proxy_is_restarted_commits_nothing_that_it_has_not_sent";
    let Some(site) = site(test) else { return };
    let sink = patient_sink(&site, 0);
    let mut spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    members.members[0].process.signal(Signal::STOP).unwrap();
    let mut proxy = spine.take(PROXY);
    proxy.process.signal(Signal::KILL).unwrap();
    proxy.process.wait(LONG).unwrap();
    spine.add(site.start_one(PROXY, &[]));
    wait_for("the other to take over", PATIENCE, || owned_shards(&members.members[1]) == 64).unwrap();
    members.members[0].process.signal(Signal::CONT).unwrap();
    members.wait_for_shares(&[32, 32]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    let (said, lost) = (members.said(), members.sum("sekiwake_bus_lost_records_total"));
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{doubled} of {sent} doubled");
    assert_eq!((missing, lost), (0, 0), "{said}");
}

#[test]
fn groups_beside_each_other_each_get_everything() {
    let Some(site) = site("groups_beside_each_other_each_get_everything") else { return };
    let (old_sink, new_sink) = (patient_sink(&site, 0), patient_sink(&site, 1));
    let spine = spine(&site);
    let (mut old, mut new) = (Members::new(&site), Members::new(&site));
    new.started = 50;
    old.start("default", 0, 2);
    old.wait_for_shares(&[32, 32]);
    let load = Load::start(&site);
    flow_for(&old_sink, Duration::from_secs(2));
    new.start("second", 1, 1);
    new.wait_for_shares(&[64]);
    flow_for(&new_sink, Duration::from_secs(2));
    let sent = load.end();
    settle(&old_sink, sent);
    settle(&new_sink, sent);
    old.stop();
    new.stop();
    spine.stop().unwrap();
    assert_eq!(judge(old_sink, sent), (0, 0), "the old group, of {sent}");
    assert_eq!(judge(new_sink, sent), (0, 0), "the new group begins with what is younger than 30 s");
}

#[test]
fn four_members_started_at_one_moment_forward_each_datagram_once() {
    let Some(site) = site("four_members_started_at_one_moment_forward_each_datagram_once") else { return };
    let sink = patient_sink(&site, 0);
    let spine = spine(&site);
    let load = Load::start(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 4);
    members.wait_for_shares(&[16, 16, 16, 16]);
    flow_for(&sink, Duration::from_secs(2));
    let sent = load.end();
    settle(&sink, sent);
    members.stop();
    spine.stop().unwrap();
    assert_eq!(judge(sink, sent), (0, 0), "missing and doubled of {sent}");
}

#[test]
fn a_capture_stopped_under_load_and_started_again_delivers_everything_that_it_captured() {
    let test = "a_capture_stopped_under_load_and_started_again_delivers_everything_that_it_captured";
    let Some(site) = site(test) else { return };
    let sink = patient_sink(&site, 0);
    let mut spine = spine(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    let mut first = spine.take(CAPTURE);
    first.stop().unwrap();
    let captured_by_the_first = captured(&first);
    spine.add(site.start_one(CAPTURE, &[("SEKIWAKE_RETAIN", "512MiB")]));
    spine.get(CAPTURE).wait_until_ready().unwrap();
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    let _ = sink.wait_for_silence(Duration::from_secs(1), PATIENCE);
    members.stop();
    let mut second = spine.take(CAPTURE);
    second.stop().unwrap();
    let captured_by_the_second = captured(&second);
    spine.stop().unwrap();
    let report = sink.finish();
    println!("{sent} sent, {captured_by_the_first} and {captured_by_the_second} captured");
    assert!(captured_by_the_first > 0 && captured_by_the_second > 0);
    assert_eq!((report.received, report.sequence.doubled), (captured_by_the_first + captured_by_the_second, 0));
}

/// What a capture that has ended says it has captured.
fn captured(capture: &Service<'_>) -> u64 {
    let lines = capture.process.stderr();
    let number = |line: &String| line.split("offered=").nth(1)?.split(' ').next()?.parse().ok();
    lines.iter().filter(|line| line.contains("the stream has ended")).find_map(number).unwrap_or_else(|| {
        panic!("no count in {}", lines.join("\n"));
    })
}
