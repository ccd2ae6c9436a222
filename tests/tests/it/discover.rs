//! `sekiwake-capture discover` on an interface with traffic.

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, MIRRORED_V6, WIRE};

use crate::support::*;

#[test]
fn discover_lists_ports_formats_and_settings() {
    let Some(site) = site() else { return };
    let mut senders = [
        format!("--to {MIRRORED} --protocol rfc5424,netflow5,ipfix,sflow,snmp2c-trap --rate 500"),
        format!("--to {MIRRORED_V6} --protocol netflow9 --rate 200"),
        format!("--to {MIRRORED}:5514 --from 198.19.0.0/16 --sources 7 --protocol rfc3164:2,rfc5424 --rate 300"),
    ]
    .map(|arguments| site.start_sender(&arguments));
    let mut discover = run(&site.host, CAPTURE, &["discover", "--seconds", "2", WIRE], &[]);
    let status = discover.wait(LONG).unwrap();
    assert!(status.success(), "{}", discover.stderr().join("\n"));
    for sender in &mut senders {
        sender.stop(LONG).unwrap();
    }
    let lines = discover.stdout();
    let text = lines.join("\n");
    let shown = |destination: &str| -> Vec<String> {
        let line = lines.iter().find(|line| line.starts_with(&format!("{destination} ")));
        let line = line.unwrap_or_else(|| panic!("{destination} is missing in:\n{text}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    for (destination, format, kind) in [
        (format!("{MIRRORED}:514"), "rfc5424", "syslog"),
        (format!("{MIRRORED}:2055"), "netflow5", "xflow"),
        (format!("{MIRRORED}:4739"), "ipfix", "xflow"),
        (format!("{MIRRORED}:6343"), "sflow5", "xflow"),
        (format!("{MIRRORED}:162"), "snmp2c-trap", "snmptrap"),
        (format!("[{MIRRORED_V6}]:2055"), "netflow9", "xflow"),
    ] {
        let columns = shown(&destination);
        assert_eq!(columns[4..], [kind, format, "100%"], "{text}");
    }
    let columns = shown(&format!("{MIRRORED}:5514"));
    assert_eq!(columns[3..5], ["7", "-"], "sources: {text}");
    // Two of three datagrams are of the first format.
    assert_eq!([&*columns[5], &*columns[7]], ["rfc3164", "rfc5424"], "{text}");
    let share = |column: &str| column.trim_end_matches(['%', ',']).parse::<u32>().unwrap();
    assert!((50..80).contains(&share(&columns[6])) && (20..50).contains(&share(&columns[8])), "{text}");
    let proposal = "syslog to port 5514 is not captured; to capture it: SEKIWAKE_SYSLOG_PORTS=514,5514";
    assert!(lines.iter().any(|line| line == proposal), "{text}");
    assert!(!text.contains("Look at:"), "{text}");
    let rate: f64 = columns[1].parse().unwrap();
    // 300 per second are sent; a busy machine may delay some.
    assert!((100.0..600.0).contains(&rate), "{text}");
}

#[test]
fn discover_says_what_to_look_at_when_nothing_arrives() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let discover = || {
        let mut discover = run(&site.host, CAPTURE, &["discover", "--seconds", "1", WIRE], &[]);
        let status = discover.wait(LONG).unwrap();
        assert!(status.success(), "{}", discover.stderr().join("\n"));
        discover.stdout().join("\n")
    };
    let text = discover();
    assert!(text.contains(&format!("no packets on {WIRE}. Look at:")), "{text}");
    assert!(text.contains("it is up") && text.contains("mirror session"), "{text}");
    let mut sender = site.start_sender(&format!("--to {MIRRORED}:9 --protocol rfc5424 --rate 100"));
    let proposal = "syslog to port 9 is not captured; to capture it: SEKIWAKE_SYSLOG_PORTS=514,9";
    wait_for("a proposal", LONG, || discover().contains(proposal)).unwrap();
    sender.stop(LONG).unwrap();
}
