//! `sekiwake-capture discover` on an interface with traffic.

use sekiwake_tests::{MIRRORED, MIRRORED_V6, WIRE};

use crate::support::*;

#[test]
fn discover_names_ports_formats_and_what_would_be_captured() {
    let Some(site) = site("discover_names_ports_formats_and_what_would_be_captured") else { return };
    let mut senders = [
        format!("--to {MIRRORED} --protocol rfc5424,netflow5,ipfix,sflow,snmp2c-trap --rate 500"),
        format!("--to {MIRRORED_V6} --protocol netflow9 --rate 200"),
        format!("--to {MIRRORED}:5514 --from 198.19.0.0/16 --sources 7 --protocol rfc3164 --rate 300"),
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
        let line = line.unwrap_or_else(|| panic!("{destination} is not in:\n{text}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    for (destination, format, kind) in [
        (format!("{MIRRORED}:514"), "rfc5424", "syslog"),
        (format!("{MIRRORED}:2055"), "netflow5", "xflow"),
        (format!("{MIRRORED}:4739"), "ipfix", "xflow"),
        (format!("{MIRRORED}:6343"), "sflow5", "xflow"),
        (format!("{MIRRORED}:162"), "snmp2c-trap", "snmptrap"),
        (format!("[{MIRRORED_V6}]:2055"), "netflow9", "xflow"),
        (format!("{MIRRORED}:5514"), "rfc3164", "-"),
    ] {
        let columns = shown(&destination);
        assert_eq!(columns[4..], [format, kind], "{text}");
    }
    let columns = shown(&format!("{MIRRORED}:5514"));
    assert_eq!(columns[3], "7", "sources: {text}");
    let rate: f64 = columns[1].parse().unwrap();
    assert!((200.0..400.0).contains(&rate), "{text}");
}
