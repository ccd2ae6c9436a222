//! The `explain` command: its lines, its summary, its exit status.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use sekiwake_testkit::packets::{Datagram, Gre, SaveFile, ethernet, ethernet_frame, ip_packet, tagged, with_tag};
use serde_json::{Value, json};

fn explain(options: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sekiwake-capture"))
        .arg("explain")
        .args(options)
        .arg(file)
        .output()
        .expect("the binary runs")
}

fn explain_bytes(options: &[&str], bytes: &[u8]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file.pcap");
    std::fs::write(&file, bytes).expect("the file is written");
    explain(options, &file)
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("output is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn datagram(port: u16) -> Vec<u8> {
    ethernet(&Datagram::new("198.51.100.1:5140", &format!("198.51.100.2:{port}"), "<13>hello").packet())
}

#[test]
fn line_has_all_fields_of_a_datagram_in_a_fixed_order() {
    let frame = tagged(&datagram(514), &[(0x88a8, 20), (0x8100, 30)]);
    let output = explain_bytes(&[], &SaveFile::new(1).packet(1_700_000_000_000_000_123, &frame).into_bytes());
    assert!(output.status.success(), "{}", log(&output));
    let expected = concat!(
        r#"{"kind":"syslog","format":"rfc3164","source":"198.51.100.1","source_port":5140,"#,
        r#""destination":"198.51.100.2","destination_port":514,"payload_length":9,"#,
        r#""payload_sha256":"e86623cd6c347598ae8ebe057e9944889d8efcc1bd2beb6360344b74ab21ce82","#,
        r#""captured_at":"2023-11-14T22:13:20.000000123Z","vlans":[20,30],"reassembled":false}"#,
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{expected}\n"));
}

#[test]
fn unclaimed_ports_are_printed_with_all_and_counted_without() {
    let bytes = SaveFile::new(1).packet(1, &datagram(514)).packet(2, &datagram(53)).into_bytes();
    let all = explain_bytes(&["--all"], &bytes);
    assert_eq!(lines(&all).iter().map(|line| line["kind"].clone()).collect::<Vec<_>>(), [json!("syslog"), json!(null)]);
    let claimed = explain_bytes(&[], &bytes);
    assert_eq!(lines(&claimed).len(), 1);
    assert!(log(&claimed).contains("unclaimed_port: 1"), "{}", log(&claimed));
}

#[test]
fn packets_not_printed_are_counted_by_reason() {
    let frame = datagram(514);
    let mut arp = frame.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let bytes = SaveFile::new(1).packet(1, &arp).packet_cut(2, &frame, 40).packet(3, &arp).into_bytes();
    let output = explain_bytes(&[], &bytes);
    assert_eq!(lines(&output).len(), 0);
    assert_eq!(
        log(&output),
        "3 packets, 0 datagrams\nnot_ip: 2\ntruncated: 1\nnot decoded, EtherType 0x0806 (ARP): 2\n"
    );
}

#[test]
fn what_is_not_decoded_is_named_wherever_it_is() {
    let frame = |ether_type: u16| ethernet_frame(ether_type, &[0; 46]);
    let gre = |protocol: u16| {
        ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 47, &Gre::default().packet(protocol, &[0; 28])))
    };
    let tcp = ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 6, &[0; 20]));
    let pptp = ip_packet("2001:db8::1", "2001:db8::2", 47, &[0x30, 0x01, 0x88, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0]);
    let packets = [
        (frame(0x8999), "EtherType 0x8999"),
        (tagged(&frame(0x88e5), &[(0x8100, 7)]), "EtherType 0x88e5 (MACsec)"),
        (with_tag(&frame(0x894f), 0x8926, &[0; 4]), "EtherType 0x894f (NSH)"),
        (gre(0x0099 | 0x7000), "EtherType 0x7099"),
        (ethernet_frame(38, &[0x42; 46]), "802.3 LLC 0x42 (spanning tree)"),
        (tcp, "IP protocol 6 (TCP)"),
        (ethernet(&pptp), "IP protocol 47 (GRE)"),
    ];
    for (packet, name) in packets {
        let output = explain_bytes(&[], &SaveFile::new(1).packet(1, &packet).packet(2, &packet).into_bytes());
        assert!(log(&output).ends_with(&format!("not decoded, {name}: 2\n")), "{name}: {}", log(&output));
    }
}

#[test]
fn truncated_savefile_is_explained_with_a_warning() {
    let bytes = SaveFile::new(1).packet(1, &datagram(514)).packet(2, &datagram(514)).into_bytes();
    let output = explain_bytes(&[], &bytes[..bytes.len() - 3]);
    assert!(output.status.success());
    assert_eq!(lines(&output).len(), 1);
    assert!(log(&output).contains("warning"), "{}", log(&output));
}

#[test]
fn unsupported_link_type_fails_with_one_line_that_names_it() {
    let output = explain_bytes(&["--all"], &SaveFile::new(127).packet(1, &datagram(514)).into_bytes());
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert_eq!(log(&output).lines().count(), 1);
    assert!(log(&output).contains("link type 127"), "{}", log(&output));
}

#[test]
fn file_that_is_not_a_savefile_fails_with_one_line() {
    for bytes in [&b""[..], b"abc", b"this is text, not a savefile"] {
        let output = explain_bytes(&[], bytes);
        assert_eq!((output.status.code(), log(&output).lines().count()), (Some(1), 1), "{}", log(&output));
    }
    let output = explain(&[], Path::new("no such file"));
    assert_eq!((output.status.code(), log(&output).lines().count()), (Some(1), 1));
}

#[test]
fn hyphen_reads_standard_input() {
    let bytes = SaveFile::new(1).packet(1, &datagram(514)).into_bytes();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-capture"));
    command.args(["explain", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(&bytes).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", log(&output));
    assert_eq!(lines(&output).len(), 1);
}

#[test]
fn compressed_file_fails_with_the_command_that_helps() {
    let forms: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b, 8, 0, 0, 0], "zcat"),
        (&[0x28, 0xb5, 0x2f, 0xfd, 4], "zstdcat"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xzcat"),
        (b"BZh91AY", "bzcat"),
    ];
    for (bytes, tool) in forms {
        let output = explain_bytes(&[], bytes);
        assert_eq!((output.status.code(), log(&output).lines().count()), (Some(1), 1), "{}", log(&output));
        assert!(log(&output).contains(&format!("{tool} FILE | sekiwake-capture explain -")), "{}", log(&output));
    }
}

#[test]
fn out_of_range_times_are_printed() {
    let mut bytes = SaveFile::new(1).packet(0, &datagram(514)).into_bytes();
    bytes[24..32].fill(0xff);
    let output = explain_bytes(&[], &bytes);
    assert_eq!(lines(&output)[0]["captured_at"], "2106-02-07T06:28:19.294967295Z");
}

#[test]
fn closed_output_pipe_ends_explain_quietly() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file.pcap");
    let frame = datagram(514);
    (0..5000).fold(SaveFile::new(1), |file, time| file.packet(time, &frame)).write_to(&file).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sekiwake-capture"))
        .arg("explain")
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", log(&output));
    assert_eq!(log(&output), "");
}

#[test]
fn decoded_savefile_begins_with_templates_that_come_later() {
    let exporter =
        |payload: Vec<u8>| ethernet(&Datagram::new("198.51.100.1:50000", "198.51.100.2:2055", payload).packet());
    let message = |set: &[u8]| [&[0, 10, 0, 16 + u8::try_from(set.len()).unwrap()][..], &[0; 12], set].concat();
    let template = exporter(message(&[0, 2, 0, 12, 1, 0, 0, 1, 0, 1, 0, 4]));
    let data = exporter(message(&[1, 0, 0, 8, 0, 0, 2, 1]));
    let bytes = SaveFile::new(1).packet(1_000_000_000, &data).packet(2_000_000_000, &template).into_bytes();
    let output = explain_bytes(&["--decode"], &bytes);
    assert!(output.status.success(), "{}", log(&output));
    let types: Vec<Value> = lines(&output).iter().map(|line| line["type"].clone()).collect();
    assert_eq!(types, ["flow", "template"]);
    assert_eq!(lines(&output)[0]["octetDeltaCount"], 513);
    assert_eq!(log(&output).lines().next(), Some("2 packets, 2 datagrams"));
    let text = explain_bytes(&["--decode", "--output", "text"], &bytes);
    let first = String::from_utf8_lossy(&text.stdout).lines().next().unwrap_or_default().to_owned();
    assert_eq!(first, "1970-01-01T00:00:01.000Z 198.51.100.1 ipfix flow octetDeltaCount=513");
    assert_eq!(explain_bytes(&["--output", "text"], &bytes).status.code(), Some(2));
}
