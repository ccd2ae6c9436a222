//! snmptrapd, fed by net-snmp's `snmptrap` and `snmpinform`, and by captures of others.

use std::{path::Path, process::Command};

use sekiwake_record::Kind;
use sekiwake_testkit::process::Process;
use sekiwake_tests::{
    DEVICES_WIRE, HOST,
    collectors::{Snmptrapd, TRAP_ENGINE, program, tool},
};

use super::{PATIENCE, PLAIN, SPOOFED, Trial, Way, Written, corpus, site_with};
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

/// `name` with `arguments`, for what follows the address of the receiver.
fn sender(trial: &Trial<'_, Snmptrapd>, name: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = tool(name, folder).unwrap();
    command.args(arguments).arg(format!("udp:{}", trial.address()));
    command
}

/// One notification with a number of its own as the agent's uptime.
fn v2_notification(command: &mut Command, number: usize) -> &Command {
    command.args([&number.to_string(), LINK_UP]).args(NAME)
}

#[test]
fn snmptrapd_logs_what_it_logs_when_it_is_fed_directly() {
    check_traps("snmptrapd_logs_what_it_logs_when_it_is_fed_directly", PLAIN);
}

/// Traps of every version and security level from several agents; gives their number.
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

/// What the corpus has that is sent to snmptrapd's port, or to an agent's: whole, cut, of unknown users, no notification at all.
fn of_others(corpus: &Path) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, "1-telemetry-trap");
    let captured = captured.into_iter().filter(|(port, _)| *port == 162).map(|(_, payload)| payload);
    captured.chain(corpus::datagrams(corpus, "9-datagrams-snmp")).collect()
}

fn check_traps(test: &str, way: Way) {
    let Some(site) = site_with(test, &["snmptrapd", "snmptrap"]) else { return };
    let payloads = corpus::corpus(test).map(|corpus| of_others(&corpus));
    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::<Snmptrapd>::start(&site, Kind::SnmpTrap, 162, way);
    let count = send_traps(&trial, folder.path());
    trial.send(way.exporter(0), payloads.as_deref().unwrap_or_default());
    // A last one tells that those before it have been logged.
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
fn an_agent_that_sends_an_inform_sees_the_answer_of_its_collector_and_no_other() {
    check_informs("an_agent_that_sends_an_inform_sees_the_answer_of_its_collector_and_no_other", PLAIN);
}

/// To other collectors than the one that answers it, an inform of version 2c goes as the trap of the same content.
fn informs_as_traps(mut written: Written) -> Written {
    for records in [&mut written.old, &mut written.new] {
        records.iter_mut().for_each(|record| record.content = record.content.replacen("INFORM,", "TRAP2,", 1));
    }
    written
}

/// Informs of version 2c and 3: acknowledged once, by the collector that the agent addressed; logged once by the new one.
fn check_informs(test: &str, way: Way) {
    let Some(site) = site_with(test, &["snmptrapd", "snmpinform", "tcpdump"]) else { return };
    // There is a way back from the new collector to the agents: an answer of its own to a foreign address would arrive.
    site.host.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
    site.collectors.ip("route add 198.18.0.0/15 via 198.51.100.1").unwrap();
    let mut tcpdump = program("tcpdump").unwrap();
    tcpdump.args(["-n", "-l", "--immediate-mode", "-T", "snmp", "-i", DEVICES_WIRE, "udp"]);
    let mut wire = Process::spawn(site.devices.exec(&tcpdump)).unwrap();
    wire.wait_for_line(LONG, |line| line.contains("listening on")).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let trial = Trial::<Snmptrapd>::start(&site, Kind::SnmpTrap, 162, way);
    let patience = PATIENCE.as_secs().to_string();
    let once = ["-r", "0", "-t", &patience];
    let v2c: [&[&str]; 2] = [&["-v", "2c", "-c", "public"], &["-v", "2c", "-c", "another"]];
    let informs: Vec<Vec<&str>> =
        v2c.into_iter().map(<[&str]>::to_vec).chain(USERS.map(|user| [&["-v", "3"], user].concat())).collect();
    for (number, arguments) in informs.iter().enumerate() {
        let mut command = sender(&trial, "snmpinform", folder.path(), &[&arguments[..], &once].concat());
        assert!(trial.run(v2_notification(&mut command, number)).success(), "the agent has no answer");
    }
    trial.wait_for_records(informs.len());
    let records = informs_as_traps(trial.finish(way)).assert_same(informs.len());
    assert_eq!(records.len(), informs.len(), "{records:#?}");

    wire.terminate().unwrap();
    wire.wait(LONG).unwrap();
    let seen = wire.stdout();
    // One inform and its answer cannot be read on the wire: they are encrypted.
    let count = |pdu: &str| seen.iter().filter(|line| line.contains(pdu)).count();
    assert_eq!(count(" Inform("), informs.len() - 1, "{seen:#?}");
    assert_eq!(count(" GetResponse("), informs.len() - 1, "{seen:#?}");
    // Nobody but the collector that was addressed has said anything to an agent, and that only what was due: an answer to each
    // inform, and to each that is of version 3 the name and clock of its engine before (RFC 3414 §4, one report for each).
    let from_collector = format!("IP {HOST}.162 > ");
    let to_agents = seen.iter().filter(|line| line.contains(" > ") && !line.contains(&format!(" > {HOST}.162:")));
    let foreign: Vec<_> = to_agents.filter(|line| !line.contains(&from_collector)).collect();
    assert!(foreign.is_empty(), "{foreign:#?}");
}

#[test]
fn snmptrapd_logs_the_same_in_the_names_of_the_agents() {
    check_traps("snmptrapd_logs_the_same_in_the_names_of_the_agents", SPOOFED);
}

#[test]
fn informs_are_answered_once_when_agents_addresses_are_kept() {
    // Those of version 3 would be answered again, and so come from the forwarder.
    let way = Way { keeps_addresses: false, ..SPOOFED };
    check_informs("informs_are_answered_once_when_agents_addresses_are_kept", way);
}
