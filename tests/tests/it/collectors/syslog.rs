//! rsyslog and syslog-ng with messages from `logger`, device logs and third-party captures.

use std::{net::Ipv4Addr, path::Path};

use sekiwake_record::Kind;
use sekiwake_tests::{
    FIRST_DEVICE,
    collectors::{Recipe, Rsyslogd, SyslogNg, program},
};

use super::{PLAIN, SPOOFED, Trial, Way, corpus, site_with};

/// Number of devices that send the logs.
const DEVICES: usize = 5;
/// The longest message of the logs, below the limits of all collectors.
const MAX_BYTES: usize = 16_384;
/// The last message.
const LAST: &[u8] = b"<13>the last of all messages";

fn logger<R: Recipe>(trial: &Trial<'_, R>, arguments: &[&str], message: &str) {
    let mut command = program("logger").unwrap();
    let to = trial.address();
    command.args(["--udp", "--server", &to.ip().to_string(), "--port", &to.port().to_string()]);
    assert!(trial.run(command.args(arguments).arg("--").arg(message)).success());
}

/// Sends messages with all formats of `logger`. Returns their number.
fn send_with_logger<R: Recipe>(trial: &Trial<'_, R>) -> usize {
    let forms: [&[&str]; 6] = [
        &["--rfc3164"],
        &["--rfc3164", "--priority", "local7.debug", "--tag", "sshd", "--id=4711"],
        &["--rfc5424"],
        &["--rfc5424=notime,notq,nohost"],
        &["--rfc5424", "--msgid", "LINK", "--sd-id", "zoo@32473", "--sd-param", "tiger=\"hungry\""],
        &["--rfc5424", "--priority", "kern.emerg", "--size", "9000"],
    ];
    for (number, form) in forms.iter().enumerate() {
        let message = format!("logger's number {number}: ümlaut, \"quotes\", 100%, {}", "long ".repeat(number * 250));
        logger(trial, form, message.trim());
    }
    forms.len()
}

/// Every line of the corpus's logs, and every datagram of its syslog captures.
fn third_party_messages(corpus: &Path) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, "1-telemetry-syslog");
    let captured =
        captured.into_iter().filter(|datagram| datagram.destination_port == 514).map(|datagram| datagram.payload);
    // Collectors may treat empty messages and those above their buffer size differently.
    let fits = |payload: &Vec<u8>| !payload.trim_ascii().is_empty() && payload.len() <= MAX_BYTES;
    corpus::lines(corpus, "9-text").into_iter().chain(captured).filter(fits).collect()
}

fn check<R: Recipe>(way: Way) {
    let Some(site) = site_with(&[R::PROGRAM, "logger"]) else { return };
    let messages = corpus::corpus().map(|corpus| third_party_messages(&corpus)).unwrap_or_default();
    let trial = Trial::<R>::start(&site, Kind::Syslog, 514, way);
    let from_logger = send_with_logger(&trial);
    for (number, messages) in messages.chunks(messages.len().div_ceil(DEVICES).max(1)).enumerate() {
        let device = Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::try_from(number).unwrap());
        trial.send(device.into(), messages);
    }
    trial.send(FIRST_DEVICE.into(), &[LAST.to_vec()]);
    trial.wait_for_last("the last of all messages");
    let sent = from_logger + messages.len() + 1;
    // A collector may skip a few messages, the same ones in both cases.
    let records = trial.finish(way).assert_same(sent / 100 * 99);
    println!("{} of {sent} messages were written", records.len());
    for number in 0..from_logger {
        let found = records.iter().filter(|record| record.content.contains(&format!("logger\\'s number {number}: ")));
        assert_eq!(found.count(), 1, "number {number} of logger's messages");
    }
}

#[test]
fn rsyslog_writes_the_same_as_when_fed_directly() {
    check::<Rsyslogd>(PLAIN);
}

#[test]
fn syslog_ng_writes_the_same_as_when_fed_directly() {
    check::<SyslogNg>(PLAIN);
}

#[test]
fn rsyslog_writes_the_same_when_spoofing() {
    check::<Rsyslogd>(SPOOFED);
}
