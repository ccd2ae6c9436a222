use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn row(datagram: &[u8]) -> Json {
    serde_json::to_value(decode(datagram)).unwrap()
}

/// A header of RFC 3164 as `timestamp | host | tag | pid | message`, and `#` before a sequence
/// number.
fn header(datagram: &str) -> String {
    let message = decode(datagram.as_bytes());
    assert!(!message.is_rfc5424, "{datagram}");
    let text = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or("-").to_owned();
    let sequence = message.sequence.map(|sequence| format!("#{sequence} ")).unwrap_or_default();
    let fields = [&message.timestamp, &message.hostname, &message.app_name, &message.procid].map(text);
    format!("{sequence}{} | {}", fields.join(" | "), message.message)
}

/// The examples of RFC 5424 §6.5, with addresses for documentation.
#[test]
fn examples_of_rfc_5424() {
    let first = "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed for lonvick on /dev/pts/8";
    assert_eq!(
        row(first.as_bytes()),
        json!({"format": "rfc5424", "type": "message", "priority": 34, "facility": "auth", "severity": "crit", "timestamp": "2003-10-11T22:14:15.003Z",
            "hostname": "mymachine.example.com", "app_name": "su", "msgid": "ID47",
            "message": "'su root' failed for lonvick on /dev/pts/8"})
    );
    let second =
        "<165>1 2003-08-24T05:14:15.000003-07:00 198.51.100.1 myproc 8710 - - %% It's time to make the do-nuts.";
    assert_eq!(
        row(second.as_bytes()),
        json!({"format": "rfc5424", "type": "message", "priority": 165, "facility": "local4", "severity": "notice",
            "timestamp": "2003-08-24T05:14:15.000003-07:00", "hostname": "198.51.100.1", "app_name": "myproc",
            "procid": "8710", "message": "%% It's time to make the do-nuts."})
    );
    let third = "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 \
        [exampleSDID@32473 iut=\"3\" eventSource=\"Application\" eventID=\"1011\"] \u{feff}An application event log entry...";
    let third = row(third.as_bytes());
    let element = json!({"exampleSDID@32473": {"iut": "3", "eventSource": "Application", "eventID": "1011"}});
    assert_eq!((&third["structured_data"], &third["message"]), (&element, &json!("An application event log entry...")));
    let fourth = "<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 \
        [exampleSDID@32473 iut=\"3\" eventSource=\"Application\" eventID=\"1011\"][examplePriority@32473 class=\"high\"]";
    let fourth = row(fourth.as_bytes());
    assert_eq!(fourth["structured_data"]["examplePriority@32473"], json!({"class": "high"}));
    assert_eq!((&fourth["message"], fourth.get("error")), (&json!(""), None));
}

#[test]
fn structured_data_of_all_forms() {
    let data = |text: &str| row(format!("<34>1 2003-10-11T22:14:15Z host app 1 ID47 {text}").as_bytes());
    assert_eq!(data(r#"[a x="\"\\\]\n"] m"#)["structured_data"], json!({"a": {"x": r#""\]\n"#}}));
    assert_eq!(
        data(r#"[a ip="1" ip="2" b=""][c][a z="3"] m"#)["structured_data"],
        json!({"a": {"ip": ["1", "2"], "b": "", "z": "3"}, "c": {}})
    );
    for malformed in
        [r#"[a x=]"#, r#"[a x="1]"#, r#"[a x="1"]m"#, "[]", "[a x]", "x", r#"[a  b = "1"]"#, r#"[ax="1"] m"#]
    {
        let row = data(malformed);
        assert_eq!(row["error"], json!("the structured data is malformed"), "{malformed}");
        assert_eq!((&row["message"], row.get("structured_data")), (&json!(malformed), None));
    }
    let many = data(&format!("[a {}]", vec!["x=\"1\""; 257].join(" ")));
    assert_eq!(many["error"], json!("more than 256 parameters of structured data"));
    let many = data(&"[a]".repeat(65));
    assert_eq!(many["error"], json!("more than 64 elements of structured data"));
}

#[test]
fn incomplete_header_of_rfc_5424_says_so() {
    let incomplete = row(b"<34>1 2003-10-11T22:14:15.003Z host app");
    assert_eq!(
        incomplete,
        json!({"format": "rfc5424", "type": "message", "priority": 34, "facility": "auth", "severity": "crit", "timestamp": "2003-10-11T22:14:15.003Z",
            "hostname": "host", "app_name": "app", "message": "", "error": "the header is not complete"})
    );
    let nothing = row(b"<14>1 - - - - - -");
    assert_eq!(
        nothing,
        json!({"format": "rfc5424", "type": "message", "priority": 14, "facility": "user", "severity": "info", "message": ""})
    );
}

/// Lines as devices write them.
#[test]
fn device_lines() {
    let lines = [
        // RFC 3164 §5.4
        (
            "<34>Oct 11 22:14:15 mymachine su: 'su root' failed",
            "Oct 11 22:14:15 | mymachine | su | - | 'su root' failed",
        ),
        ("<13>Feb  5 17:32:18 198.51.100.99 Use the BFG!", "Feb  5 17:32:18 | 198.51.100.99 | - | - | Use the BFG!"),
        ("<13>Feb  5 17:32:18 ::1 sshd[7]: x", "Feb  5 17:32:18 | ::1 | sshd | 7 | x"),
        ("Use the BFG!", "- | - | - | - | Use the BFG!"),
        // programs
        ("<38>Feb  5 17:32:18 h sshd[4242]: Accepted", "Feb  5 17:32:18 | h | sshd | 4242 | Accepted"),
        (
            "<13>Feb 13 20:07:26 74794bfb6795 root[8539]:message",
            "Feb 13 20:07:26 | 74794bfb6795 | root | 8539 | message",
        ),
        (
            "<133>Jan 13 16:33:35 haproxy[73411]: Proxy started.",
            "Jan 13 16:33:35 | - | haproxy | 73411 | Proxy started.",
        ),
        ("<13>May  1 20:51:40 myprogram: ciao", "May  1 20:51:40 | - | myprogram | - | ciao"),
        ("<34>Oct 11 22:14:15 mymachine singleword", "Oct 11 22:14:15 | mymachine | - | - | singleword"),
        ("<34>Oct 11 22:14:15 singleword", "Oct 11 22:14:15 | - | - | - | singleword"),
        ("<34>Oct 11 22:14:15", "Oct 11 22:14:15 | - | - | - | "),
        ("<14>INFO     leaving (1) step", "- | - | - | - | INFO     leaving (1) step"),
        ("<190>2019-02-13T21:53:30.605850+00:00 h app: x", "2019-02-13T21:53:30.605850+00:00 | h | app | - | x"),
        ("<4>Jan 26 05:59:54 ubnt kernel: [D]IN=eth0", "Jan 26 05:59:54 | ubnt | kernel | - | [D]IN=eth0"),
        // Cisco IOS
        (
            "<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured from console",
            "#1234 Mar  1 18:46:11.123 | - | %SYS-5-CONFIG_I | - | Configured from console",
        ),
        ("<189>84027: Jan  5 10:11:12.4 AKST: %SYS-5-X: y", "#84027 Jan  5 10:11:12.4 AKST | - | %SYS-5-X | - | y"),
        ("<189>7: router1: .Jan  5 10:11:12: %SYS-6-X: y", "#7 Jan  5 10:11:12 | router1 | %SYS-6-X | - | y"),
        ("<189>Jan  5 10:11:12 UTC: %SYS-6-X: y", "Jan  5 10:11:12 UTC | - | %SYS-6-X | - | y"),
        ("<189>7: Jan  5 2024 10:11:12 CEST: %SYS-6-X: y", "#7 Jan  5 2024 10:11:12 CEST | - | %SYS-6-X | - | y"),
        ("<189>%SYS-6-X: y", "- | - | %SYS-6-X | - | y"),
        // Cisco IOS XR
        (
            "<149>2647599: vmx01 RP/0/RSP1/CPU0:Mar 28 15:08:30.941 UTC: bgp[1051]: %ROUTING-BGP-5-MAXPFX : No.",
            "#2647599 Mar 28 15:08:30.941 UTC | vmx01 | bgp | 1051 | %ROUTING-BGP-5-MAXPFX : No.",
        ),
        // Cisco NX-OS, UCS
        (
            "<190>2018 Apr 20 13:15:15 nexus %ETHPORT-5-IF_DUPLEX: Interface",
            "2018 Apr 20 13:15:15 | nexus | %ETHPORT-5-IF_DUPLEX | - | Interface",
        ),
        ("<187>: 2018 Apr 20 13:15:15 UTC: %ETH-3-X: y", "2018 Apr 20 13:15:15 UTC | - | %ETH-3-X | - | y"),
        ("<190>: Jan  5 10:11:12 ucs : %UCSM-6-AUDIT: [s]", "Jan  5 10:11:12 | ucs | %UCSM-6-AUDIT | - | [s]"),
        // Cisco ASA
        ("<166>%ASA-6-302013: Built", "- | - | %ASA-6-302013 | - | Built"),
        ("<166>Jan 05 2024 10:11:12: %ASA-6-3: Built", "Jan 05 2024 10:11:12 | - | %ASA-6-3 | - | Built"),
        ("<134> Jan  5 10:11:12 fw-1 : %ASA-3-3: denied", "Jan  5 10:11:12 | fw-1 | %ASA-3-3 | - | denied"),
        // Juniper
        ("<28>Jun 21 14:03:12  vmx01 rpd[2902]: RPD_X: BGP", "Jun 21 14:03:12 | vmx01 | rpd | 2902 | RPD_X: BGP"),
        ("<4>Jul 20 21:23:00 vmx01 /kernel: tcp", "Jul 20 21:23:00 | vmx01 | /kernel | - | tcp"),
        // Huawei, HPE
        (
            "<29>2018-7-23 01:00:33.270.1 sw %%01IFNET/4/IF_STATE(l)[4997]:Interface",
            "2018-7-23 01:00:33.270.1 | sw | %%01IFNET/4/IF_STATE(l) | 4997 | Interface",
        ),
        ("<189>Apr 26 12:06:33 2013 HPE %%10SC/6/X(l): -A", "Apr 26 12:06:33 2013 | HPE | %%10SC/6/X(l) | - | -A"),
        // Check Point
        (
            "<134>1 2025-02-03 04:05:06 gw-1 CheckPoint 4711 - [action:\"Accept\"; ]",
            "2025-02-03 04:05:06 | gw-1 | CheckPoint | 4711 | [action:\"Accept\"; ]",
        ),
        // Meraki
        ("<134>1 1650972789.422013 MX67 events type=vpn", "1650972789.422013 | MX67 | - | - | events type=vpn"),
        ("<134> 1704449472 ap-1 flows src=198.51.100.1", "1704449472 | ap-1 | - | - | flows src=198.51.100.1"),
        // FortiGate, Palo Alto, CEF, LEEF
        (
            "<189>date=2024-01-05 time=10:11:12 devname=\"FGT\" logid=\"1\"",
            "- | - | - | - | date=2024-01-05 time=10:11:12 devname=\"FGT\" logid=\"1\"",
        ),
        ("<14>Jan  5 10:11:12 pa 1,2024,TRAFFIC,end", "Jan  5 10:11:12 | pa | - | - | 1,2024,TRAFFIC,end"),
        ("<14>Jan  5 10:11:12 CEF:0|A|B|1|2|N|3|", "Jan  5 10:11:12 | - | - | - | CEF:0|A|B|1|2|N|3|"),
        ("<14>Jan  5 10:11:12 h CEF:0|A|B|1|2|N|3|", "Jan  5 10:11:12 | h | - | - | CEF:0|A|B|1|2|N|3|"),
        // F5, Zebra (a host that begins as a zone does)
        ("<134>Jan  5 10:11:12 slot1/h notice mcpd[6]: x", "Jan  5 10:11:12 | slot1/h | - | - | notice mcpd[6]: x"),
        ("<134>Jan  5 10:11:12 Zebra x: y", "Jan  5 10:11:12 | Zebra | x | - | y"),
        ("<134>Jan  5 10:11:12 2001-sw x: y", "Jan  5 10:11:12 | 2001-sw | x | - | y"),
    ];
    for (line, expected) in lines {
        assert_eq!(header(line), expected, "{line}");
    }
    let xr = decode(b"<149>1: vmx01 RP/0/RSP1/CPU0:Mar 28 15:08:30.941 UTC: bgp[1051]: x");
    assert_eq!(xr.node.as_deref(), Some("RP/0/RSP1/CPU0"));
}

#[test]
fn what_is_almost_a_timestamp_is_message() {
    for line in [
        "<13>Mai  1 20:51:40 h x: y",
        "<13>May 32 20:51:40 h",
        "<13>May  1 25:51:40 h",
        "<13>May  1 20:61:40 h",
        "<13>2024-13-01 00:00:00 h",
        "<13>1704449472x h",
        "<13>12345678901 h",
        "<13>20:51:40 h",
    ] {
        assert_eq!(decode(line.as_bytes()).timestamp, None, "{line}");
    }
}

#[test]
fn priority_is_read_without_a_header_and_missing_ones_are_absent() {
    let row = row(b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x");
    assert_eq!((&row["facility"], &row["severity"]), (&json!("local7"), &json!("notice")));
    for none in ["no PRI", "<192>x", "<>x", ""] {
        let message = decode(none.as_bytes());
        assert_eq!((message.priority, &*message.message), (None, none));
    }
}

/// Many devices leave the PRI out. What is behind it is read, and the row says what is missing.
#[test]
fn header_without_a_pri_is_read() {
    assert_eq!(
        row(b"Jan  5 10:11:12 sw-1 sshd[42]: Accepted\n"),
        json!({"format": "unknown", "type": "message", "timestamp": "Jan  5 10:11:12", "hostname": "sw-1", "app_name": "sshd",
            "procid": "42", "message": "Accepted", "error": "the PRI is missing"})
    );
    assert_eq!(header("1234: *Mar  1 18:46:11.123: %SYS-5-X: y"), "#1234 Mar  1 18:46:11.123 | - | %SYS-5-X | - | y");
    assert_eq!(
        row(b"1 2003-10-11T22:14:15Z h app - ID47 [a x=\"1\"] m"),
        json!({"format": "unknown", "type": "message", "timestamp": "2003-10-11T22:14:15Z", "hostname": "h", "app_name": "app",
            "msgid": "ID47", "structured_data": {"a": {"x": "1"}}, "message": "m", "error": "the PRI is missing"})
    );
    assert_eq!(row(b"1 2003-10-11T22:14:15Z h app")["error"], json!("the header is not complete"));
    for malformed in ["<192>Jan  5 10:11:12 h x: y", "<>x", "<0013>x"] {
        let row = row(malformed.as_bytes());
        assert_eq!((&row["error"], &row["message"]), (&json!("the PRI is malformed"), &json!(malformed)));
    }
    assert_eq!(row(b"<Event xmlns='x'>")["error"], json!("the PRI is missing"));
    assert_eq!(decode(b"x: y").to_string(), "unknown x: y (the PRI is missing)");
}

#[test]
fn text_is_recognised_in_any_charset() {
    for text in [
        &b"plain\ttext\r\n\0"[..],
        b"\x1b[1mbold\x1b[0m",
        b"\xc5\xe4\xd6\xc3",
        "größe".as_bytes(),
        b"\xef\xbb\xbfx",
        b"a text of twenty \x01",
    ] {
        assert_eq!(why_no_text(text), None, "{text:x?}");
    }
    for none in [&b""[..], b"\n\0", b"a\0b\0c\0", b"\x00\x01", b"x\x7f", b"\x16\x03\x01"] {
        assert!(why_no_text(none).is_some(), "{none:x?}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_replaced_and_said() {
    let message = decode(b"<13>Feb  5 17:32:18 h\xfcst t\xe4g: \xfcber\0\n");
    assert_eq!(message.hostname.as_deref(), Some("h\u{fffd}st"));
    assert_eq!((message.app_name.as_deref(), &*message.message), (Some("t\u{fffd}g"), "\u{fffd}ber"));
    assert!(message.is_lossy);
    let whole = decode("<46>Jan  5 10:01:00 Übergröße außer: größen\n".as_bytes());
    assert_eq!((whole.hostname.as_deref(), whole.is_lossy), (Some("Übergröße"), false));
    assert!(decode(b"<34>1 2003-10-11T22:14:15Z h a 1 I [a x=\"\\\"\xff\"] m").is_lossy);
    assert!(!decode(b"<34>1 2003-10-11T22:14:15Z h a 1 I [a x=\"\\\"\"] m").is_lossy);
}

#[test]
fn terminal_sees_no_control_characters() {
    let line = |datagram: &[u8]| decode(datagram).to_string();
    let ssh = line(b"<38>Feb  5 17:32:18 h sshd[4242]: \x1b[2J\nx");
    assert_eq!(ssh, r#"rfc3164 auth.info h sshd[4242]: "\u{1b}[2J\u{a}x""#);
    let data = line(b"<34>1 2003-10-11T22:14:15Z h a 1 I [e x=\"1 2\"] m");
    assert_eq!(data, "rfc5424 auth.crit h a[1]: x=\"1 2\" m");
}

proptest! {
    /// Any bytes are a message, and the row is JSON of bounded size.
    #[test]
    fn any_bytes_are_a_message(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let text = serde_json::to_string(&decode(&bytes)).unwrap();
        prop_assert!(text.len() < 300 + 6 * bytes.len());
    }

    /// Nothing of the text is lost: what is no field is message.
    #[test]
    fn every_letter_is_in_a_field(
        line in "(<13>)?(1 )?([0-9]{1,3}: )?([*.]?Mar  1 18:46:11(\\.123)?( UTC)?:? )?([a-z:\\[\\]%= -]{0,12} ){0,4}[a-z=\\[\\]\" ]{0,20}",
    ) {
        let message = decode(line.as_bytes());
        let mut found = message.message.to_string();
        let fields = [&message.timestamp, &message.hostname, &message.node, &message.app_name, &message.procid, &message.msgid];
        for field in fields.into_iter().flatten() {
            found.push_str(field);
        }
        for element in &message.structured_data {
            found.push_str(&element.id);
            for parameter in &element.parameters {
                found.push_str(&parameter.name);
                found.push_str(&parameter.value);
            }
        }
        let letters = |text: &str| text.chars().filter(char::is_ascii_alphabetic).count();
        prop_assert_eq!(letters(&found), letters(&line), "{:?}", message);
    }
}

/// `cargo test --release -p sekiwake-decode -- --ignored cost --nocapture`
#[test]
#[ignore = "measures"]
fn cost_of_a_line() {
    for line in [
        "<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured from console by admin on vty0 (198.51.100.7)",
        "<38>Feb  5 17:32:18 host sshd[4242]: Accepted publickey for root from 198.51.100.7 port 42 ssh2",
        "<165>1 2003-10-11T22:14:15.003Z h.example.com evntslog - ID47 [exampleSDID@32473 iut=\"3\" eventSource=\"A\"] entry",
    ] {
        let count = 1_000_000;
        let start = std::time::Instant::now();
        for _ in 0..count {
            std::hint::black_box(&decode(std::hint::black_box(line.as_bytes())));
        }
        println!("{} ns per line: {line}", start.elapsed().as_nanos() / count);
    }
}
