//! Records of syslog ports: text without a PRI is a message there, and what is no text says so.

use sekiwake_decode::Decoder;
use sekiwake_record::{Format, Kind};
use serde_json::{Value, json};

use crate::datagram::{EXPORTER, record};

fn row(kind: Option<Kind>, format: Format, payload: &[u8]) -> Value {
    let mut rows = Vec::new();
    Decoder::new()
        .decode(kind, &record(EXPORTER, format, payload), |row| rows.push(serde_json::to_value(row).unwrap()));
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

#[test]
fn text_without_a_pri_is_a_message_where_syslog_is_expected() {
    let text = b"Jan  5 10:11:12 sw-1 sshd[42]: Accepted";
    let message = row(Some(Kind::Syslog), Format::Unknown, text);
    assert_eq!((&message["hostname"], &message["error"]), (&json!("sw-1"), &json!("the PRI is missing")));
    for kind in [None, Some(Kind::Xflow), Some(Kind::SnmpTrap)] {
        assert_eq!(row(kind, Format::Unknown, text)["reason"], json!("format is not decoded"));
    }
    for (bytes, reason) in [
        (&b"\x16\x03\x01\x00"[..], "no PRI, and the bytes are not text"),
        (b"", "datagram has no text"),
        (b"\0\n", "datagram has no text"),
    ] {
        assert_eq!(row(Some(Kind::Syslog), Format::Unknown, bytes)["reason"], json!(reason));
    }
    // Flows that arrive at a port for syslog stay flows.
    let flows = row(Some(Kind::Syslog), Format::NetFlow5, b"\0\x05\0\x01");
    assert_eq!(flows["format"], json!("netflow5"));
}
