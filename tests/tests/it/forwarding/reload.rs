//! Destinations from a file that changes while datagrams flow.

use std::{fs, time::Duration};

use sekiwake_testkit::{process::Signal, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, collector};

use super::{reloads, replace};
use crate::support::*;

fn is_in_use(forwarder: &Service<'_>) -> u64 {
    forwarder.metrics().unwrap().count("sekiwake_forward_destinations_file_in_use", &[])
}

#[test]
fn destinations_change_under_load_and_nothing_is_lost() {
    let Some(site) = site() else { return };
    let sinks: Vec<_> = (0..3).map(|number| site.sink(&[at(collector(number), 514)], numbered())).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("destinations");
    let [stays, goes, comes] = [0, 1, 2].map(syslog_to);
    fs::write(&file, format!("# the collectors\n{stays}\n{goes}   # the old one\n")).unwrap();
    let settings = [("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", file.to_str().unwrap())];
    let services = site.start(&SYSLOG_PATH, &settings);
    let forwarder = services.get(SYSLOG);

    let to_mirror = format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 200 --rate 5000 --count 60000");
    let mut sender = site.start_sender(&to_mirror);
    wait_for("a second of traffic", LONG, || sinks[0].received() > 5000).unwrap();

    // Add a destination.
    replace(&file, &format!("{stays}\n{goes}\n{comes}\n"));
    wait_for("the new destination", LONG, || sinks[2].received() > 0).unwrap();
    assert_eq!((reloads(forwarder, "applied"), reloads(forwarder, "rejected"), is_in_use(forwarder)), (1, 0, 1));

    // An invalid file changes nothing and is reported, on SIGHUP once more.
    replace(&file, &format!("{stays}\n{goes}\ntcp://{}\n", collector(3)));
    wait_for("a rejection", LONG, || reloads(forwarder, "rejected") == 1).unwrap();
    forwarder.process.signal(Signal::HUP).unwrap();
    wait_for("another rejection", LONG, || reloads(forwarder, "rejected") == 2).unwrap();
    assert_eq!(is_in_use(forwarder), 0);
    let is_shown = |line: &str| line.contains("line 3, column 20: expected a colon");
    forwarder.process.wait_for_line(LONG, is_shown).unwrap();
    let before = sinks[1].received();
    wait_for("the old destinations to continue", LONG, || sinks[1].received() > before + 1000).unwrap();

    // Remove a destination.
    replace(&file, &format!("{stays}\n{comes}\n"));
    wait_for("the third change", LONG, || reloads(forwarder, "applied") == 2).unwrap();
    assert_eq!(is_in_use(forwarder), 1);
    let sent = sent_by(&mut sender);
    sinks[0].wait_for(sent, LONG).unwrap();
    wait_for("both to have the end", LONG, || sinks[2].wait_for_silence(Duration::from_millis(300), LONG).is_ok())
        .unwrap();

    let mut reports = sinks.into_iter().map(|sink| sink.finish());
    let stays = reports.next().unwrap();
    let goes = reports.next().unwrap();
    let comes = reports.next().unwrap();
    assert_eq!((stays.received, stays.sequence.missing, stays.sequence.duplicates), (sent, 0, 0));
    assert_eq!(
        (goes.sequence.missing, goes.sequence.duplicates),
        (0, 0),
        "each source without a gap until its removal"
    );
    assert!(goes.received < sent);
    // Only datagrams from before its addition are missing, up to the end of the one that stayed.
    assert_eq!((comes.received + comes.sequence.missing, comes.sequence.duplicates), (sent, 0));
    assert_eq!(comes.sequence.next, stays.sequence.next);
    assert_eq!(comes.sequence.out_of_order, 0);
    services.stop().unwrap();
}
