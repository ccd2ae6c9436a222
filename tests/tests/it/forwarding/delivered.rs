//! Deliveries from the wire to the record: OTLP, Kafka and NATS, with a real broker, server and
//! collector.

use std::collections::{BTreeMap, BTreeSet};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{
    MIRRORED, Service, collector,
    receivers::{OtlpCollector, Tansu, lines_of, receivers_or_skipped},
};
use sekiwake_traffic::sequence_of;

use crate::{jetstream::server::NatsServer, support::*};

/// Number of syslog messages of each source, and their order.
fn sequences(payloads: impl IntoIterator<Item = String>) -> BTreeMap<u32, Vec<u64>> {
    let mut sources: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for payload in payloads {
        let number = sequence_of(payload.as_bytes()).unwrap_or_else(|| panic!("{payload} has no number"));
        sources.entry(number.source_id).or_default().push(number.sequence);
    }
    sources
}

fn is_complete(numbers: &[u64]) -> bool {
    let different: BTreeSet<u64> = numbers.iter().copied().collect();
    different.last().is_some_and(|&last| last + 1 == different.len() as u64)
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text")).to_owned()
}

fn sum(members: &[Service<'_>], metric: &str, labels: &[&str]) -> u64 {
    members.iter().map(|member| member.metrics().unwrap().count(metric, labels)).sum()
}

#[test]
fn otlp_kafka_and_nats_get_every_datagram_of_the_wire() {
    let Some(site) = receivers_or_skipped().then(site).flatten() else { return };
    let tansu = Tansu::start(&site.collectors, at(collector(0), 9092)).unwrap();
    tansu.create("logs", 4).unwrap();
    let otlp = OtlpCollector::start(&site.collectors, at(collector(1), 4318)).unwrap();
    let _nats = NatsServer::start_at(&site.collectors, collector(3), "");
    let url = format!("nats://{}:4222", collector(3));
    lines_of(&site.collectors, "subjects.py", &["create", &url, "LOGS", "logs"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let destinations = format!(
        "kafka://{}/logs?value=raw&spool=16MiB otlp+http://{}?spool=16MiB udp://{} \
         {url}/logs?value=raw&spool=16MiB",
        collector(0),
        collector(1),
        collector(2)
    );
    let services =
        site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations), ("SEKIWAKE_SPOOL_DIR", &spool)]);
    let sent = site.send(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --protocol rfc5424 --rate 2000 --duration 3s"
    ));
    services
        .get(SYSLOG)
        .wait_for_metrics("all datagrams", LONG, |samples| {
            let sent_to = |scheme: &str| {
                let label = format!("destination=\"{scheme}://");
                samples.count("sekiwake_forward_sent_datagrams_total", &[&label])
            };
            ["kafka", "otlp+http", "nats"].into_iter().all(|scheme| sent_to(scheme) == sent)
        })
        .unwrap();
    let stored = tansu.records("logs").unwrap();
    let accepted = otlp.records().unwrap();
    let published = lines_of(&site.collectors, "subjects.py", &["read", &url, "LOGS"]).unwrap();
    assert_eq!([&stored, &accepted, &published].map(|records| records.len() as u64), [sent; 3]);
    let stored_sequences = sequences(stored.iter().map(|record| text(&record["value"])));
    let accepted_sequences = sequences(accepted.iter().map(|record| text(&record["body"])));
    let published_sequences = sequences(published.iter().map(|record| text(&record["value"])));
    for sequences in [&stored_sequences, &accepted_sequences, &published_sequences] {
        assert_eq!(sequences.len(), 8);
        assert!(sequences.values().all(|numbers| is_complete(numbers) && numbers.is_sorted()), "{sequences:?}");
    }
    assert_eq!(stored_sequences, accepted_sequences);
    assert_eq!(stored_sequences, published_sequences);
    // Each has the identity of its record: publisher, epoch, topic, and a number without gaps.
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for record in &published {
        let id = text(&record["headers"]["Nats-Msg-Id"]);
        let (topic, number) = id.rsplit_once('.').unwrap();
        assert!(topic.contains(".syslog/"), "{id}");
        numbers.entry(topic.to_owned()).or_default().push(number.parse().unwrap());
    }
    for (topic, numbers) in &mut numbers {
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{topic}: {numbers:?}");
    }
    let keys: BTreeSet<String> = stored.iter().map(|record| text(&record["key"])).collect();
    let sources: BTreeSet<String> =
        accepted.iter().map(|record| text(&record["attributes"]["source.address"])).collect();
    assert_eq!(keys, sources);
    services.stop().unwrap();
}

/// The owner of shards has a spool, and is replaced while the broker is down. What it has spooled
/// arrives when it is back, after newer records of its sources perhaps.
#[test]
fn moved_shards_and_the_spool_of_their_owner_lose_nothing() {
    let Some(site) = receivers_or_skipped().then(site).flatten() else { return };
    let address = at(collector(0), 9092);
    let destination = format!("kafka://{address}/logs?value=raw&spool=16MiB");
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let spools = folders.each_ref().map(|folder| folder.path().display().to_string());
    let start = |number: usize| {
        let (admin, name) = (format!("127.0.0.1:{}", 9701 + number), format!("m{number}"));
        let settings = [
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination),
            ("SEKIWAKE_ADMIN", &admin),
            ("SEKIWAKE_MEMBER", &name),
            ("SEKIWAKE_SPOOL_DIR", &spools[number]),
            ("SEKIWAKE_DRAIN", "5s"),
        ];
        site.start_one(SYSLOG, &settings)
    };
    let services = site.start(&[PROXY, CAPTURE], &[]);
    let mut members = vec![start(0), start(1)];
    let is_even = || members.iter().all(|member| crate::replicas::owned_shards(member) == 32);
    wait_for("even shares", LONG, is_even).unwrap();
    // Nobody listens at the broker's address.
    let load = format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --protocol rfc5424 --rate 1000");
    let mut sender = site.start_sender(&format!("{load} --duration 6s"));
    let spooled = |members: &[Service<'_>]| sum(members, "sekiwake_forward_spool_datagrams", &[]);
    wait_for("both spools", LONG, || members.iter().all(|member| spooled(std::slice::from_ref(member)) > 100)).unwrap();
    // It leaves its spool on disk, and its shards to the other one.
    members.remove(0).stop().unwrap();
    wait_for("all shards", LONG, || crate::replicas::owned_shards(&members[0]) == 64).unwrap();
    let sent = sent_by(&mut sender);
    let tansu = Tansu::start(&site.collectors, address).unwrap();
    tansu.create("logs", 4).unwrap();
    wait_for("the spool of the second", LONG, || spooled(&members) == 0).unwrap();
    let before = tansu.count("logs").unwrap();
    assert!(before < sent, "{before} of {sent} without the spool of the first");
    members.push(start(0));
    let distinct = || {
        let records = tansu.records("logs").unwrap();
        let sources = sequences(records.iter().map(|record| text(&record["value"])));
        let count = sources.values().map(|numbers| numbers.iter().collect::<BTreeSet<_>>().len() as u64).sum::<u64>();
        (count, records.len() as u64 - count, sources)
    };
    wait_for("everything", LONG, || distinct().0 == sent).unwrap();
    let (_, doubles, sources) = distinct();
    println!("{sent} sent, missing 0, {doubles} twice");
    assert!(sources.values().all(|numbers| is_complete(numbers)));
    assert_eq!(sum(&members, "sekiwake_forward_dropped_datagrams_total", &[]), 0);
    for mut member in members {
        member.stop().unwrap();
    }
    services.stop().unwrap();
}
