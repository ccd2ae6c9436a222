//! What arrives is what was sent, as different decoders see it.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sekiwake_archive::{LineEncoder, LineFormat};
use sekiwake_decode::{Decoder, Style, write_rows};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::{Format, Kind, Record, Vlans};
use sekiwake_testkit::fixtures::{batch_of, record};
use serde_json::json;

use super::{
    engine, number_of, numbered,
    receiver::{Accepted, Receiver, Rotel, installed_or_skipped, validate},
    wait_for_empty,
};
use crate::rig::{Rig, Sample, device, forward};

/// Payloads that are hard to carry.
pub(crate) fn odd_samples() -> Vec<Sample> {
    let long: Vec<u8> = (0..60_000).map(|index| b'a' + (index % 26) as u8).collect();
    let payloads: [&[u8]; 9] = [
        b"<165>1 2026-10-11T22:14:15.003Z fw-1 app 42 ID47 [a b=\"c\"] \xef\xbb\xbfsnow \xe2\x98\x83",
        b"<13>Oct 11 22:14:15 router1 link down",
        b"",
        b"no priority at all",
        b"<0>\xff\xfe\x00binary",
        b"\x00\x00\x00",
        b"<191>line one\nline \"two\"\\\t",
        b"<34>\xed\xa0\x80 surrogate",
        &long,
    ];
    let sample =
        |(index, payload): (usize, &&[u8])| Sample { source: device(index as u8 + 1), payload: payload.to_vec() };
    payloads.iter().enumerate().map(sample).collect()
}

fn assert_equal(samples: &[Sample], records: &[Accepted]) {
    assert_eq!(records.len(), samples.len());
    for (sample, record) in samples.iter().zip(records) {
        let body = &record.0["body"];
        match std::str::from_utf8(&sample.payload) {
            // A receiver may leave out an empty body.
            Ok("") => assert!(body.is_null() || body == "", "{body}"),
            Ok(text) => assert_eq!(body, text),
            Err(_) => assert_eq!(body["base64"], BASE64_STANDARD.encode(&sample.payload)),
        }
        assert_eq!(record.attribute("source.address"), &sample.source.to_string());
        assert_eq!(record.attribute("source.port"), 514);
        assert_eq!(record.attribute("network.transport"), "udp");
        assert_eq!(record.attribute("network.protocol.name"), "syslog");
        assert_eq!(record.attribute("sekiwake.kind"), "syslog");
        assert!(record.0["time"].as_u64().unwrap() > 0 && record.0["time"] == record.0["observed"]);
    }
}

#[test]
fn every_record_arrives_in_both_encodings() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for options in ["", "&compression=none", "&encoding=json", "&encoding=json&compression=none"] {
        let rig = Rig::new();
        let receiver = Receiver::start();
        let destination = receiver.uri();
        let mut samples = odd_samples();
        samples.extend(numbered(0..5_000));
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB{options}"), folder.path());
        forward(&mut engine, &samples);
        let records = receiver.wait_for_records(samples.len());
        wait_for_empty(&rig, &destination);
        assert_equal(&samples, &records);
        let severities: Vec<u64> = records[..7].iter().map(|record| record.0["severity"].as_u64().unwrap()).collect();
        // 165 is local4.notice, 13 user.notice, as is a message without a PRI; 0 is kern.emerg, 191
        // local7.debug.
        assert_eq!(severities, [10, 10, 10, 10, 21, 10, 5], "{options}");
        assert_eq!(records[0].attribute("syslog.facility"), 20);
        assert_eq!(receiver.requests()["resource"]["service.name"], "sekiwake");
        rig.assert_ledger(&destination);
        assert_eq!(rig.sent(&destination), samples.len() as u64);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn rotel_exports_every_record() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for options in ["", "&encoding=json"] {
        let rig = Rig::new();
        let receiver = Receiver::start();
        let rotel = Rotel::start(&receiver);
        let destination = format!("otlp+http://127.0.0.1:{}", rotel.port);
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB{options}"), folder.path());
        let mut samples = odd_samples();
        samples.extend(numbered(0..5_000));
        forward(&mut engine, &samples);
        let mut records = receiver.wait_for_records(samples.len());
        // rotel exports its batches side by side.
        let rank = |record: &Accepted| {
            let body = record.0["body"].as_str().filter(|body| body.starts_with("<14>device"));
            body.map_or(0, |body| number_of(body) + 1)
        };
        records.sort_by_key(rank);
        let (odd, plain) = records.split_at(odd_samples().len());
        let mut odd = odd.to_vec();
        odd.sort_by_key(|record| record.attribute("source.address").as_str().unwrap().to_owned());
        assert_equal(&samples, &[&odd, plain].concat());
        wait_for_empty(&rig, &destination);
        rig.assert_ledger(&destination);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn envelope_and_rows_are_delivered_on_request() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let receiver = Receiver::start();
    let destination = receiver.uri();
    let both = format!("{destination}?value=json {destination}/rows?value=decoded&encoding=json");
    let mut engine = engine(&rig, Kind::Syslog, &both, folder.path());
    forward(
        &mut engine,
        &[Sample { source: device(1), payload: b"<13>Oct 11 22:14:15 router1 sshd[7]: hello".to_vec() }],
    );
    let mut records = receiver.wait_for_records(2);
    records.sort_by_key(|record| record.0["body"].is_object());
    let envelope: serde_json::Value = serde_json::from_str(records[0].body()).unwrap();
    assert_eq!(validate(format!("{}\n", records[0].body()).as_bytes()), Ok("1".to_owned()));
    assert_eq!(envelope["source"], "198.51.100.1");
    assert_eq!(envelope["payload"], "<13>Oct 11 22:14:15 router1 sshd[7]: hello");
    let row = &records[1].0["body"];
    assert_eq!(validate(format!("{row}\n").as_bytes()), Ok("1".to_owned()));
    assert_eq!((&row["app_name"], &row["message"], &row["row"]), (&json!("sshd"), &json!("hello"), &json!(0)));
    drop(engine);
    rig.stop();
}

#[test]
fn flows_are_decoded_with_templates_of_earlier_datagrams() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let receiver = Receiver::start();
    let destination = receiver.uri();
    let mut engine = engine(&rig, Kind::Xflow, &format!("{destination}?value=decoded&spool=16MiB"), folder.path());
    // NetFlow v9: a template of octetDeltaCount (1), then two flows with it.
    let header =
        |count: u16| [&[0, 9][..], &count.to_be_bytes(), &[0; 4], &[0, 0, 0, 1], &[0; 4], &[0, 0, 0, 7]].concat();
    let template = [header(1), vec![0, 0, 0, 12, 1, 0, 0, 1, 0, 1, 0, 4]].concat();
    let flows = [header(2), vec![1, 0, 0, 12, 0, 0, 0, 3, 0, 0, 0, 4]].concat();
    for payload in [&template, &flows] {
        let record = Record { format: Format::NetFlow9, ..record(payload) };
        engine.forward(&Arc::new(batch_of([record]).into_batch().unwrap().into()));
    }
    let records = receiver.wait_for_records(3);
    let octets: Vec<&serde_json::Value> = records.iter().map(|record| &record.0["body"]["octetDeltaCount"]).collect();
    assert_eq!(octets[1..], [&json!(3), &json!(4)], "{records:?}");
    let rows: Vec<&serde_json::Value> = records.iter().map(|record| &record.0["body"]["row"]).collect();
    assert_eq!(rows[1..], [&json!(0), &json!(1)]);
    wait_for_empty(&rig, &destination);
    assert_eq!(rig.sent(&destination), 2, "datagrams, not rows");
    // A collector that rejects both rows rejects one datagram.
    receiver.set_rules(&json!({ "partial": "octetDeltaCount" }));
    let record = Record { format: Format::NetFlow9, ..record(&flows) };
    engine.forward(&Arc::new(batch_of([record]).into_batch().unwrap().into()));
    let is_counted = || rig.dropped(&destination, "rejected") > 0;
    sekiwake_testkit::wait::wait_for("the rejection", crate::rig::PATIENCE, is_counted).unwrap();
    assert_eq!((rig.dropped(&destination, "rejected"), rig.sent(&destination)), (1, 2));
    assert!(folder.path().join("xflow.default").is_dir(), "kind and group");
    drop(engine);
    rig.stop();
}

#[test]
fn headers_of_a_file_and_tls_are_used() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let identity = rcgen::generate_simple_self_signed(["collector.example".to_owned()]).unwrap();
    let certificate = file("certificate.pem", &identity.cert.pem());
    let key = file("key.pem", &identity.signing_key.serialize_pem());
    let headers = file("headers", "# of the tenant\nX-Scope-OrgID: blue\nAuthorization: Bearer secret\n");
    let receiver = Receiver::start_with(
        0,
        &["--tls".as_ref(), &certificate, &key, "--only".as_ref(), "/otlp/v1/logs".as_ref(), "Bearer secret".as_ref()],
    );
    let rig = Rig::new();
    let destination = format!("otlp+https://127.0.0.1:{}/otlp", receiver.port);
    let uri = |options: &str| format!("{destination}?headers={}{options}", headers.display());
    let trusted = format!("&ca={}&server_name=collector.example", certificate.display());
    let mut engine = engine(&rig, Kind::Syslog, &uri(&trusted), folder.path());
    forward(&mut engine, &numbered(0..10));
    sekiwake_testkit::wait::wait_for("all records", crate::rig::PATIENCE, || rig.sent(&destination) == 10).unwrap();
    drop(engine);
    // It trusts no such certificate.
    let mut engine = super::engine(&rig, Kind::Syslog, &uri(&format!("&ca={}", certificate.display())), folder.path());
    forward(&mut engine, &numbered(0..10));
    sekiwake_testkit::wait::wait_for("a drop", crate::rig::PATIENCE, || {
        rig.dropped(&destination, "disconnected") == 10
    })
    .unwrap();
    let error = engine.status()[0]["last_error"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("certificate"), "{error}");
    assert!(!engine.status().to_string().contains("secret"));
    drop(engine);
    rig.stop();
}

#[test]
fn every_output_matches_the_schema_of_the_envelope() {
    if !installed_or_skipped() {
        return;
    }
    let mut lines = Vec::new();
    let mut decoder = Decoder::new();
    let mut stored = LineEncoder::new(LineFormat::Json);
    let payloads = odd_samples().into_iter().map(|sample| sample.payload);
    for payload in payloads.chain([vec![0, 5, 0, 0], b"\x30\x03\x02\x01\x01".to_vec()]) {
        for kind in [None, Some(Kind::Syslog), Some(Kind::Xflow), Some(Kind::SnmpTrap)] {
            let format = sekiwake_identify::identify(kind, &payload);
            let one = Record { format, vlans: Vlans::from_iter([7, 4095]), ..record(&payload) };
            write_line(&mut lines, kind, &one, Payload::Included).unwrap();
            write_line(&mut lines, kind, &one, Payload::Omitted).unwrap();
            write_rows(&mut lines, Style::Json, &mut decoder, kind, &one, u64::MAX).unwrap();
            stored.encode(&one, &mut lines);
        }
    }
    let count = lines.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(validate(&lines), Ok(count.to_string()));
    // It rejects something.
    assert!(validate(b"{\"source\":\"198.51.100.7\"}\n").is_err());
    let forged = String::from_utf8(lines).unwrap().replacen("\"source_port\":40000", "\"source_port\":\"40000\"", 1);
    assert!(validate(forged.as_bytes()).unwrap_err().contains("'40000' is not of type 'integer'"));
}
