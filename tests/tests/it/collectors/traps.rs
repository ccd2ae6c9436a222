//! snmptrapd with notifications from net-snmp's `snmptrap` and `snmpinform`, and third-party
//! captures.

use std::{path::Path, process::Command};

use sekiwake_record::Kind;
use sekiwake_testkit::process::Process;
use sekiwake_tests::{
    DEVICES_WIRE, HOST,
    collectors::{Record, Snmptrapd, TRAP_ENGINE, program, tool},
};

use super::{PLAIN, SPOOFED, TOOL_TIMEOUT, Trial, Way, Written, corpus, site_with};
use crate::support::*;

/// linkUp and sysName, RFC 3418 and RFC 2863.
const LINK_UP: &str = "1.3.6.1.6.3.1.1.5.4";
const NAME: [&str; 3] = ["1.3.6.1.2.1.1.5.0", "s", "access switch, \"third\" floor\nrack 7"];

/// The users of [`Snmptrapd`] by security level.
const USERS: [&[&str]; 3] = [
    &["-u", "nobody", "-l", "noAuthNoPriv"],
    &["-u", "author", "-l", "authNoPriv", "-a", "SHA", "-A", "authenticate"],
    &["-u", "secret", "-l", "authPriv", "-a", "SHA", "-A", "authenticate", "-x", "AES", "-X", "keepsecret"],
];

/// The command `name` with `arguments` and the receiver's address; the notification follows.
fn sender(trial: &Trial<'_, Snmptrapd>, name: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = tool(name, folder).unwrap();
    command.args(arguments).arg(format!("udp:{}", trial.address()));
    command
}

/// Appends a notification, with a number as the agent's uptime.
fn v2_notification(command: &mut Command, number: usize) -> &mut Command {
    command.args([&number.to_string(), LINK_UP]).args(NAME)
}

#[test]
fn snmptrapd_logs_the_same_as_when_fed_directly() {
    check_traps(PLAIN);
}

/// Sends traps of every version and security level from several agents. Returns their number.
fn send_traps(trial: &Trial<'_, Snmptrapd>, folder: &Path) -> usize {
    let mut count = 0;
    let mut send = |arguments: &[&str]| {
        count += 1;
        let agent = format!("--clientaddr=198.19.0.{}", count % 7 + 1);
        let mut command = sender(trial, "snmptrap", folder, &[arguments, &[&agent]].concat());
        let command = if arguments.starts_with(&["-v", "1"]) {
            let [generic, specific] = if count % 2 == 0 { ["3", "0"] } else { ["6", "17"] };
            let uptime = count.to_string();
            command.args(["1.3.6.1.4.1.8072.3.2.10", "198.19.0.77", generic, specific, &uptime]).args(NAME)
        } else {
            v2_notification(&mut command, count)
        };
        assert!(trial.run(command).success());
    };
    for _ in 0..2 {
        send(&["-v", "1", "-c", "public"]);
        send(&["-v", "2c", "-c", "private"]);
        for user in USERS {
            send(&[&["-v", "3", "-e", TRAP_ENGINE], user].concat());
        }
    }
    count
}

/// The corpus's SNMP datagrams: complete, truncated, of unknown users, and not notifications.
fn third_party_snmp(corpus: &Path) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, "1-telemetry-trap");
    let captured =
        captured.into_iter().filter(|datagram| datagram.destination_port == 162).map(|datagram| datagram.payload);
    captured.chain(corpus::datagrams(corpus, "9-datagrams-snmp")).collect()
}

fn check_traps(way: Way) {
    let Some(site) = site_with(&["snmptrapd", "snmptrap"]) else { return };
    let payloads = corpus::corpus().map(|corpus| third_party_snmp(&corpus));
    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::<Snmptrapd>::start(&site, Kind::SnmpTrap, 162, way);
    let count = send_traps(&trial, folder.path());
    trial.send(way.exporter(0), payloads.as_deref().unwrap_or_default());
    // Once the last one is logged, all earlier ones are.
    let mut last = sender(&trial, "snmptrap", folder.path(), &["-v", "2c", "-c", "last"]);
    assert!(trial.run(v2_notification(&mut last, 1)).success());
    trial.wait_for_last("community last");
    let records = informs_as_traps(trial.finish(way)).assert_same(count + 1 + if payloads.is_some() { 10 } else { 0 });
    for user in ["nobody", "author", "secret"] {
        let found = records.iter().filter(|record| record.content.contains(&format!("user {user},")));
        assert_eq!(found.count(), 2, "{user}: {records:#?}");
    }
}

#[test]
fn informs_are_answered_only_by_the_agents_collector() {
    check_informs(PLAIN);
}

/// The new collector receives an inform of version 2c as a trap with the same content.
fn informs_as_traps(mut written: Written) -> Written {
    for records in [&mut written.old, &mut written.new] {
        records.iter_mut().for_each(|record| record.content = record.content.replacen("INFORM,", "TRAP2,", 1));
    }
    written
}

/// Informs of version 2c and 3 are acknowledged once, by the collector that the agent addressed,
/// and logged once by the new one.
fn check_informs(way: Way) {
    let Some(site) = site_with(&["snmptrapd", "snmpinform", "tcpdump"]) else { return };
    // A route from the new collector back to the agents, so that its answers would arrive.
    site.host.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
    site.collectors.ip("route add 198.18.0.0/15 via 198.51.100.1").unwrap();
    let mut tcpdump = program("tcpdump").unwrap();
    tcpdump.args(["-n", "-l", "--immediate-mode", "-T", "snmp", "-i", DEVICES_WIRE, "udp"]);
    let mut wire = Process::spawn(site.devices.exec(&tcpdump)).unwrap();
    wire.wait_for_line(LONG, |line| line.contains("listening on")).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::<Snmptrapd>::start(&site, Kind::SnmpTrap, 162, way);
    let timeout = TOOL_TIMEOUT.as_secs().to_string();
    let once = ["-r", "0", "-t", &timeout];
    let v2c: [&[&str]; 2] = [&["-v", "2c", "-c", "public"], &["-v", "2c", "-c", "another"]];
    let informs: Vec<Vec<&str>> =
        v2c.into_iter().map(<[&str]>::to_vec).chain(USERS.map(|user| [&["-v", "3"], user].concat())).collect();
    for (number, arguments) in informs.iter().enumerate() {
        let mut command = sender(&trial, "snmpinform", folder.path(), &[&arguments[..], &once].concat());
        assert!(trial.run(v2_notification(&mut command, number)).success(), "the agent received no answer");
    }
    trial.wait_for_records(informs.len());
    let records = informs_as_traps(trial.finish(way)).assert_same(informs.len());
    assert_eq!(records.len(), informs.len(), "{records:#?}");

    wire.terminate().unwrap();
    wire.wait(LONG).unwrap();
    let seen = wire.stdout();
    // One inform and its answer are encrypted, so that tcpdump does not decode them.
    let count = |pdu: &str| seen.iter().filter(|line| line.contains(pdu)).count();
    assert_eq!(count(" Inform("), informs.len() - 1, "{seen:#?}");
    assert_eq!(count(" GetResponse("), informs.len() - 1, "{seen:#?}");
    // Only the addressed collector has sent to an agent: an answer to each inform and, for version
    // 3, a report with the id and clock of its engine before (RFC 3414 §4).
    let from_collector = format!("IP {HOST}.162 > ");
    let to_agents = seen.iter().filter(|line| line.contains(" > ") && !line.contains(&format!(" > {HOST}.162:")));
    let foreign: Vec<_> = to_agents.filter(|line| !line.contains(&from_collector)).collect();
    assert!(foreign.is_empty(), "{foreign:#?}");
}

#[test]
fn add_source_appends_the_agents_address_to_v2c_traps() {
    let way = Way { options: "?add_source=true", keeps_addresses: false };
    let Some(site) = site_with(&["snmptrapd", "snmptrap", "snmpinform"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::<Snmptrapd>::start(&site, Kind::SnmpTrap, 162, way);
    let count = send_traps(&trial, folder.path());
    for agent in ["198.19.0.9", "198.19.0.10"] {
        let client = format!("--clientaddr={agent}");
        let mut command = sender(&trial, "snmpinform", folder.path(), &["-v", "2c", "-c", "inform", &client]);
        assert!(trial.run(v2_notification(&mut command, 1)).success(), "the agent received no answer");
    }
    // An agent behind a proxy: its address stays.
    let mut proxied = sender(&trial, "snmptrap", folder.path(), &["-v", "2c", "-c", "proxied"]);
    let address = ["1.3.6.1.6.3.18.1.3.0", "a", "203.0.113.50"];
    assert!(trial.run(v2_notification(&mut proxied, 1).args(address)).success());
    trial.wait_for_records(count + 3);
    let Written { old, new, .. } = trial.finish(way);
    assert_eq!((old.len(), new.len()), (count + 3, count + 3));
    let source_of = |record: &Record| record.source.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    let mut expected: Vec<String> = Vec::new();
    for record in &old {
        let content = record.content.replacen("INFORM,", "TRAP2,", 1);
        // The version is in neither, but only v2c traps have these communities.
        let is_v2c = ["community private", "community inform"].iter().any(|text| content.contains(text));
        let added = format!("\\t.1.3.6.1.6.3.18.1.3.0 = IpAddress: {}", source_of(record));
        expected.push(if is_v2c { format!("{content}{added}") } else { content });
    }
    let mut written: Vec<String> = new.iter().map(|record| record.content.clone()).collect();
    expected.sort();
    written.sort();
    assert_eq!(written, expected);
    let with_address = written.iter().filter(|content| content.contains("18.1.3.0 = IpAddress: 198.19.0."));
    assert!(with_address.count() >= 4, "{written:#?}");
}

#[test]
fn snmptrapd_logs_the_same_when_spoofing() {
    check_traps(SPOOFED);
}

#[test]
fn informs_are_answered_once_when_spoofing() {
    // Informs of version 3 would be answered twice, so they are sent from the forwarder's address.
    let way = Way { keeps_addresses: false, ..SPOOFED };
    check_informs(way);
}
