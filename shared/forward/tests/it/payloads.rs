//! Payloads arrive unmodified, in their order.

use crate::rig::*;

fn assert_arrive_in_order(payloads: Vec<Vec<u8>>, options: &str) {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = rig.engine(&format!("{uri}{options}"));
    forward(&mut engine, &samples(payloads.clone()));
    assert!(arrived(sink, payloads.len()) == payloads, "payloads differ or are out of order");
    rig.assert_ledger(&uri);
    assert_eq!(rig.sent(&uri), payloads.len() as u64);
    rig.stop();
}

fn every_form_of_payload() -> Vec<Vec<u8>> {
    let lengths = [0, 0, 1, 1, 200, 200, 200, 200, 80, 0, 80, 81, 1472, 1472, 1473, 65_507, 7, 65_507, 65_507, 3];
    let numbered = lengths.iter().enumerate();
    numbered.map(|(index, &length)| (0..length).map(|byte| (byte * 7 + index * 31) as u8).collect()).collect()
}

#[test]
fn every_payload_arrives_unmodified_and_in_order() {
    assert_arrive_in_order(every_form_of_payload(), "");
}

#[test]
fn every_payload_arrives_without_segmentation() {
    assert_arrive_in_order(every_form_of_payload(), "?gso=false");
}

#[test]
fn mixed_sizes_of_one_source_arrive_in_order() {
    let mut random = pseudo_random(0x5ec1);
    let payloads = (0..5000u32).map(|number| {
        let mut payload = vec![0xa5; 4 + random(1400) as usize];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        payload
    });
    assert_arrive_in_order(payloads.collect(), "");
}

#[test]
fn long_runs_of_equal_size_arrive_in_order() {
    let payloads = (0..5000u32).map(|number| number.to_be_bytes().repeat(50));
    assert_arrive_in_order(payloads.collect(), "");
}

#[test]
fn each_source_keeps_its_order_among_others() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = rig.engine(&uri);
    let mut random = pseudo_random(0x50c5);
    let mut next = [0u32; 16];
    for _ in 0..400 {
        let source = random(16) as u8;
        let burst: Vec<Sample> = (0..random(40))
            .map(|_| {
                let mut payload = vec![0; 5 + random(600) as usize];
                payload[0] = source;
                payload[1..5].copy_from_slice(&next[usize::from(source)].to_be_bytes());
                next[usize::from(source)] += 1;
                Sample { source: device(source), payload }
            })
            .collect();
        forward(&mut engine, &burst);
    }
    let total: u32 = next.iter().sum();
    let mut seen = [0u32; 16];
    for payload in arrived(sink, total as usize) {
        let source = usize::from(payload[0]);
        assert_eq!(u32::from_be_bytes(payload[1..5].try_into().unwrap()), seen[source], "source {source}");
        seen[source] += 1;
    }
    assert_eq!(seen, next);
    rig.stop();
}

#[test]
fn too_long_datagram_is_counted_and_others_arrive() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = rig.engine(&uri);
    let payloads = [vec![1; 100], vec![2; 65_508], vec![3; 100], vec![4; 65_527], vec![5; 100]];
    forward(&mut engine, &samples(payloads.clone()));
    assert_eq!(arrived(sink, 3), [payloads[0].clone(), payloads[2].clone(), payloads[4].clone()]);
    rig.assert_ledger(&uri);
    assert_eq!(rig.dropped(&uri, "too_big"), 2);
    rig.stop();
}
