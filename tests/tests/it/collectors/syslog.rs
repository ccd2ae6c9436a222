//! rsyslog and syslog-ng, fed by `logger`, by the logs of many devices, and by captures of others.

use std::{net::Ipv4Addr, path::Path};

use sekiwake_record::Kind;
use sekiwake_tests::{
    FIRST_DEVICE,
    collectors::{Recipe, Rsyslogd, SyslogNg, program},
};

use super::{PLAIN, SPOOFED, Trial, Way, corpus, site_with};

/// Devices that send the texts, in turn.
const DEVICES: usize = 5;
/// The longest message of the texts; no collector here is told to cut what is shorter.
const LONGEST: usize = 16_384;
/// What is sent when all else has arrived.
const LAST: &[u8] = b"<13>the last of all messages";

fn logger<R: Recipe>(trial: &Trial<'_, R>, arguments: &[&str], message: &str) {
    let mut command = program("logger").unwrap();
    let to = trial.address();
    command.args(["--udp", "--server", &to.ip().to_string(), "--port", &to.port().to_string()]);
    assert!(trial.run(command.args(arguments).arg("--").arg(message)).success());
}

/// Messages of `logger` in all its forms; gives their number.
fn send_of_logger<R: Recipe>(trial: &Trial<'_, R>) -> usize {
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
fn of_others(corpus: &Path) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, "1-telemetry-syslog");
    let captured = captured.into_iter().filter(|(port, _)| *port == 514).map(|(_, payload)| payload);
    // What is empty, or longer than a collector's buffer, is each collector's own affair.
    let fits = |payload: &Vec<u8>| !payload.trim_ascii().is_empty() && payload.len() <= LONGEST;
    corpus::lines(corpus, "9-text").into_iter().chain(captured).filter(fits).collect()
}

fn check<R: Recipe>(test: &str, way: Way) {
    let Some(site) = site_with(test, &[R::PROGRAM, "logger"]) else { return };
    let messages = corpus::corpus(test).map(|corpus| of_others(&corpus)).unwrap_or_default();
    let trial = Trial::<R>::start(&site, Kind::Syslog, 514, way);
    let of_logger = send_of_logger(&trial);
    for (number, messages) in messages.chunks(messages.len().div_ceil(DEVICES).max(1)).enumerate() {
        let device = Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::try_from(number).unwrap());
        trial.send(device.into(), messages);
    }
    trial.send(FIRST_DEVICE.into(), &[LAST.to_vec()]);
    trial.wait_for_last("the last of all messages");
    let sent = of_logger + messages.len() + 1;
    // A collector may have reasons not to write a message; it must have the same ones here and there, and few.
    let records = trial.finish(way).assert_same(sent / 100 * 99);
    println!("{} of {sent} messages were written", records.len());
    for number in 0..of_logger {
        let found = records.iter().filter(|record| record.content.contains(&format!("logger\\'s number {number}: ")));
        assert_eq!(found.count(), 1, "number {number} of logger's messages");
    }
}

#[test]
fn rsyslog_writes_what_it_writes_when_it_is_fed_directly() {
    check::<Rsyslogd>("rsyslog_writes_what_it_writes_when_it_is_fed_directly", PLAIN);
}

#[test]
fn syslog_ng_writes_what_it_writes_when_it_is_fed_directly() {
    check::<SyslogNg>("syslog_ng_writes_what_it_writes_when_it_is_fed_directly", PLAIN);
}

#[test]
fn rsyslog_writes_the_same_in_the_names_of_the_devices() {
    check::<Rsyslogd>("rsyslog_writes_the_same_in_the_names_of_the_devices", SPOOFED);
}
