use std::net::{IpAddr, Ipv4Addr};

use sekiwake_record::{BatchBuilder, Flags, Format, Header, Record, Vlans};

use super::*;

const S: u64 = 1_000_000_000;
const T0: u64 = 1_000_000 * 60 * S;

fn at(seconds: u64) -> Now {
    Now { wall_ns: T0 + seconds * S, boot_ns: seconds * S }
}

fn detector(severities: bool) -> Detector {
    let settings = Settings {
        interval_ns: 60 * S,
        grace_ns: 5 * S,
        max_open: 60,
        bands: BandSettings { window: 3, ..BandSettings::default() },
        consecutive: 1,
        severities,
    };
    Detector::new(settings, at(0))
}

fn send(detector: &mut Detector, first: u64, count: u64, captured_ns: u64) {
    let mut builder = BatchBuilder::new(Vec::new());
    let address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    for _ in 0..count {
        builder.push(&Record {
            captured_at_ns: captured_ns,
            source: address,
            source_port: 514,
            destination: address,
            destination_port: 514,
            format: Format::Unknown,
            flags: Flags::default(),
            payload: b"<11>x",
            vlans: Vlans::default(),
            dscp_ttl: 0,
        });
    }
    let closed = builder.close().unwrap();
    let header = Header {
        stream_name: "a".into(),
        stream_epoch: 1,
        first_sequence: first,
        count: closed.count,
        first_captured_at_ns: captured_ns,
        last_captured_at_ns: captured_ns,
    };
    let batch = Batch::decode(&header, closed.body).unwrap();
    detector.take(Shard::of(address), "a", 1, first, captured_ns, captured_ns, &batch);
}

fn totals(out: &[Closed]) -> Vec<Option<u64>> {
    out.iter().map(|closed| closed.series.first().map(|judged| judged.count)).collect()
}

#[test]
fn a_burst_alarms_once_and_recovers_once_and_what_comes_twice_counts_once() {
    for severities in [false, true] {
        let (mut detector, mut out, mut sequence) = (detector(severities), Vec::new(), 0);
        for (minute, count) in [9, 50, 50, 50, 500, 500, 500, 50, 50].into_iter().enumerate() {
            let captured = T0 + minute as u64 * 60 * S + S;
            detector.advance(at(minute as u64 * 60 + 2), true, &mut out);
            send(&mut detector, sequence, count, captured);
            send(&mut detector, sequence + count - 5, 5, captured);
            sequence += count;
            if minute == 6 {
                assert!(detector.firing().any(|alarm| alarm == ("total", Kind::High, T0 + 240 * S)));
            }
        }
        detector.advance(at(9 * 60 + 5), true, &mut out);
        let expected: Vec<_> = [None].into_iter().chain([50, 50, 50, 500, 500, 500, 50, 50].map(Some)).collect();
        assert_eq!(totals(&out), expected);
        let states: Vec<_> = detector.events().filter(|e| e.series == "total").map(|e| e.state).collect();
        assert_eq!(states[..2], [State::Firing, State::Resolved]);
        assert_eq!(detector.firing().count(), 0);
        let id = detector.events().next().unwrap().id.clone();
        detector.acknowledge(&id, State::Firing);
        assert_eq!(detector.events().next().unwrap().state, if severities { State::Firing } else { State::Resolved });
        if severities {
            assert_eq!(out[4].series[4].count, 500);
        }
    }
}

#[test]
fn empty_minutes_are_zeros_and_what_is_not_complete_waits() {
    let (mut detector, mut out) = (detector(false), Vec::new());
    detector.advance(at(200), false, &mut out);
    assert!(out.is_empty());
    detector.advance(at(184 + 16), true, &mut out);
    assert_eq!(totals(&out), [None, Some(0), Some(0)]);
    send(&mut detector, 0, 3, T0 + S);
    send(&mut detector, 3, 4, T0 + 400 * S);
    assert_eq!((detector.losses().late, detector.losses().ahead), (3, 4));
}

#[test]
fn a_clock_that_is_set_makes_a_gap_and_no_verdict() {
    let (mut detector, mut out) = (detector(false), Vec::new());
    let jump = 3_000 * 86_400 * S;
    detector.advance(Now { wall_ns: T0 + jump, boot_ns: S }, true, &mut out);
    assert_eq!(totals(&out), [None]);
    out.clear();
    detector.advance(Now { wall_ns: T0, boot_ns: 2 * S }, true, &mut out);
    assert!(out.is_empty());
    detector.advance(Now { wall_ns: T0 + 130 * S, boot_ns: 132 * S }, true, &mut out);
    assert_eq!(totals(&out), [None, Some(0)]);
    assert_eq!(detector.events().count(), 0);
}
