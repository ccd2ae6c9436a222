//! A log that cannot be written, or that nobody reads, costs its lines and nothing else.

use sekiwake_testkit::bad_log::BadLog;
use sekiwake_tests::{MIRRORED, Service, Services, binary, collector};

use crate::support::*;

const STORER: &str = "sekiwake-storer";
const NAMES: [&str; 4] = [CAPTURE, PROXY, SYSLOG, STORER];

fn check_pipeline_with(log: BadLog) {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let folder = tempfile::tempdir().unwrap();
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    // The second one refuses connections, so that there is something to log.
    let destinations = format!("{} tcp://{}:6514", syslog_to(0), collector(1));
    let environment = [
        &CAPTURE_SETTINGS[..],
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()),
            ("SEKIWAKE_STORE_DIR", folder.path().to_str().unwrap()),
            ("SEKIWAKE_LOG", "trace"),
        ],
    ]
    .concat();
    let mut readers = Vec::new();
    let mut start = |name: &&str| {
        let (stderr, reader) = log.open().unwrap();
        readers.push(reader);
        Service::start_with_stderr(&site.host, &binary(name), name, &environment, stderr).unwrap()
    };
    let services = Services(NAMES.iter().map(&mut start).collect());
    services.wait_until_datagrams_flow().unwrap();
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --rate 5000 --count 15000"));
    sink.wait_for(sent, LONG).unwrap();
    let storer = services.get(STORER);
    storer
        .wait_for_metrics("all to be stored", LONG, |samples| {
            samples.count("sekiwake_store_written_records_total", &[]) == sent
        })
        .unwrap();
    // In the unread pipe's case, the queue has room for these few lines.
    if log != BadLog::FullPipe {
        for name in NAMES {
            let counted = services.get(name).wait_for_metrics("dropped lines", LONG, |samples| {
                samples.count("sekiwake_log_dropped_total", &["reason=\"write_failed\""]) > 0
            });
            counted.unwrap();
        }
    }
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!((report.received, report.sequence.missing, report.sequence.duplicates), (sent, 0, 0), "{log:?}");
}

#[test]
fn full_disk_for_the_log_costs_no_datagram() {
    check_pipeline_with(BadLog::FullDisk);
}

#[test]
fn closed_pipe_for_the_log_costs_no_datagram() {
    check_pipeline_with(BadLog::ClosedPipe);
}

#[test]
fn unread_pipe_for_the_log_costs_no_datagram() {
    check_pipeline_with(BadLog::FullPipe);
}
