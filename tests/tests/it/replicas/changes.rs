//! Members, the proxy and capture stop and restart under load.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The datagrams that are sent in this time.
fn sent_in(time: Duration) -> u64 {
    time.as_millis() as u64 * RATE / 1000
}

/// The most datagrams that are sent twice after a member was killed: what it has sent since its
/// last commit. That is half a second old as a rule; a member that cannot commit does not act for
/// longer than its lease.
fn sent_since_the_last_commit(members: u64) -> u64 {
    sent_in(LEASE) / members
}

#[test]
fn scaling_from_one_to_four_to_one_has_no_loss_or_duplicates() {
    scale_up_and_down(Bus::ZeroMq);
}

#[test]
fn scaling_from_one_to_four_to_one_has_no_loss_or_duplicates_on_jetstream() {
    scale_up_and_down(Bus::JetStream);
}

fn scale_up_and_down(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let mut scenario = Scenario::start(&site, 1);
    scenario.members.start("default", 0, 3);
    scenario.members.wait_for_shares(&[16, 16, 16, 16]);
    scenario.flow_for(SECOND);
    for _ in 0..2 {
        scenario.members.stop_first();
    }
    scenario.members.wait_for_shares(&[32, 32]);
    scenario.flow_for(SECOND);
    scenario.members.stop_first();
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.duplicates, outcome.lost), (0, 0, 0), "{outcome}");
}

#[test]
fn killed_member_of_three_is_replaced_without_loss() {
    killed_member_is_replaced(Bus::ZeroMq);
}

#[test]
fn killed_member_of_three_is_replaced_without_loss_on_jetstream() {
    killed_member_is_replaced(Bus::JetStream);
}

fn killed_member_is_replaced(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let mut scenario = Scenario::start(&site, 3);
    scenario.flow_for(3 * SECOND);
    scenario.members.kill_first();
    scenario.members.wait_for_shares(&[32, 32]);
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
    assert!(outcome.duplicates <= sent_since_the_last_commit(3), "{outcome}");
}

#[test]
fn only_member_killed_and_restarted_resumes_at_its_position() {
    let Some(site) = site() else { return };
    let mut scenario = Scenario::start(&site, 1);
    scenario.flow_for(3 * SECOND);
    scenario.members.kill_first();
    scenario.members.start("default", 0, 1);
    scenario.members.wait_for_shares(&[64]);
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
    assert!(outcome.duplicates <= sent_since_the_last_commit(1), "{outcome}");
}

#[test]
fn proxy_killed_and_restarted_loses_nothing() {
    let Some(site) = site() else { return };
    let mut scenario = Scenario::start(&site, 2);
    scenario.kill_proxy();
    pause_for(2 * SECOND);
    scenario.start_proxy(&site);
    scenario.flow_for(2 * SECOND + LEASE);
    scenario.members.wait_for_shares(&[32, 32]);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
}

#[test]
fn paused_member_sends_no_shard_it_has_lost() {
    paused_member_is_fenced(Bus::ZeroMq);
}

#[test]
fn paused_member_sends_no_shard_it_has_lost_on_jetstream() {
    paused_member_is_fenced(Bus::JetStream);
}

fn paused_member_is_fenced(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let scenario = Scenario::start(&site, 2);
    scenario.flow_for(2 * SECOND);
    scenario.members.pause_first();
    wait_for("the other member to take over", LONG, || owned_shards(&scenario.members.members[1]) == 64).unwrap();
    scenario.flow_for(Duration::from_millis(1_500));
    // Sent again by the other member, since the last commit of the paused one.
    let before = scenario.sink.report().sequence.duplicates;
    scenario.members.resume_first();
    scenario.members.wait_for_shares(&[32, 32]);
    let outcome = scenario.finish();
    let after = outcome.duplicates - before;
    println!("{before} duplicates before it was resumed, {after} after");
    assert_eq!(outcome.missing, 0, "{outcome}");
    assert!(before <= RATE, "{before} duplicates before it was resumed");
    // It may finish the call in which it was paused: at most 64 messages of 64 datagrams.
    assert!(after <= 64 * 64, "{after} duplicates after it was resumed");
}

#[test]
fn only_member_paused_for_five_seconds_catches_up() {
    let Some(site) = site() else { return };
    let scenario = Scenario::start(&site, 1);
    scenario.members.pause_first();
    pause_for(5 * SECOND);
    scenario.members.resume_first();
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
}

#[test]
fn member_paused_over_a_proxy_restart_loses_nothing() {
    let Some(site) = site() else { return };
    let mut scenario = Scenario::start(&site, 2);
    scenario.members.pause_first();
    scenario.kill_proxy();
    scenario.start_proxy(&site);
    wait_for("the other member to take over", LONG, || owned_shards(&scenario.members.members[1]) == 64).unwrap();
    scenario.members.resume_first();
    scenario.members.wait_for_shares(&[32, 32]);
    scenario.flow_for(SECOND);
    let outcome = scenario.finish();
    assert_eq!((outcome.missing, outcome.lost), (0, 0), "{outcome}");
}

#[test]
fn independent_groups_each_receive_everything() {
    let Some(site) = site() else { return };
    let scenario = Scenario::start(&site, 2);
    scenario.flow_for(SECOND);
    let second_sink = large_sink(&site, 1);
    let mut second = Members::of_second_group(&site);
    second.start("second", 1, 1);
    second.wait_for_shares(&[64]);
    flow_for(&second_sink, 2 * SECOND);
    let Scenario { sink, spine, members, load } = scenario;
    let sent = load.stop();
    settle(&sink, sent);
    settle(&second_sink, sent);
    members.stop();
    second.stop();
    spine.stop().unwrap();
    assert_eq!(completeness(sink, sent), COMPLETE, "first group, {sent} sent");
    // A new group starts up to 30 s back.
    assert_eq!(completeness(second_sink, sent), COMPLETE, "second group, {sent} sent");
}

#[test]
fn four_members_started_at_once_send_each_datagram_once() {
    let Some(site) = site() else { return };
    let sink = large_sink(&site, 0);
    let spine = start_spine(&site, "512MiB");
    let load = Load::start(&site);
    let mut members = Members::new(&site);
    members.start("default", 0, 4);
    members.wait_for_shares(&[16, 16, 16, 16]);
    flow_for(&sink, 2 * SECOND);
    let outcome = Scenario { sink, spine, members, load }.finish();
    assert_eq!((outcome.missing, outcome.duplicates), (0, 0), "{outcome}");
}

#[test]
fn capture_restarted_under_load_delivers_everything_captured() {
    let Some(site) = site() else { return };
    let mut scenario = Scenario::start(&site, 2);
    let mut first = scenario.spine.take(CAPTURE);
    first.stop().unwrap();
    scenario.spine.add(site.start_one(CAPTURE, &[("SEKIWAKE_RETAIN", "512MiB")]));
    scenario.spine.get(CAPTURE).wait_until_ready().unwrap();
    scenario.flow_for(SECOND);
    let Scenario { sink, mut spine, members, load } = scenario;
    let sent = load.stop();
    let _ = sink.wait_for_silence(SECOND, LONG);
    members.stop();
    let mut second = spine.take(CAPTURE);
    second.stop().unwrap();
    spine.stop().unwrap();
    let [first, second] = [first, second].map(|capture| captured(&capture));
    let report = sink.finish();
    println!("{sent} sent, {first} captured by the first, {second} by the second");
    assert!(first > 0 && second > 0);
    assert_eq!((report.received, report.sequence.duplicates), (first + second, 0));
}

/// The number of captured datagrams that a capture logged when it ended.
fn captured(capture: &Service<'_>) -> u64 {
    let lines = capture.process.stderr();
    let number = |line: &String| line.split("offered=").nth(1)?.split(' ').next()?.parse().ok();
    lines.iter().find_map(number).unwrap_or_else(|| panic!("no count in {}", lines.join("\n")))
}
