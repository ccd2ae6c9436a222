//! Throughput and CPU cost. A measurement: `cargo test --release -p sekiwake-bus -- --ignored
//! --nocapture cost`.

use std::time::{Duration, Instant};

use sekiwake_bus::{Overflow, Source, names};
use sekiwake_record::Batcher;

use crate::support::*;

/// CPU time of the threads of this process by name, microseconds. (proc_pid_schedstat: the first
/// number is nanoseconds.)
fn thread_times() -> Vec<(String, u64)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut times: Vec<(String, u64)> = threads
        .filter_map(|thread| {
            let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
            let time = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let id = thread.file_name().into_string().ok()?;
            Some((format!("{} {id}", name.trim()), time.split(' ').next()?.parse::<u64>().ok()? / 1_000))
        })
        .collect();
    times.sort();
    times
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_record() {
    for (topic_count, rate) in [(8, 200_000.0), (64, 200_000.0), (8, f64::INFINITY), (64, f64::INFINITY)] {
        let relay = TestRelay::start();
        let mut publisher = TestPublisher::with(&relay.publish, 64 << 20, Overflow::Wait);
        let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
        let topics = topics(topic_count);
        join(&mut publisher, &topics, &mut [&mut subscriber]);
        let metrics = subscriber.metrics.clone();
        let producer = publisher.producer.clone();
        let before = thread_times();
        let received_before = value(&metrics, names::RECEIVED_RECORDS);
        let started = Instant::now();
        let records: u64 = 1_000_000;
        let feeder = std::thread::Builder::new()
            .name("feeder".to_owned())
            .spawn(move || {
                let mut batcher = Batcher::default();
                let payload = vec![b'x'; 200];
                let mut sent = 0;
                let tick = Duration::from_millis(2);
                while sent < records {
                    let ticked = Instant::now();
                    let due = ((ticked - started).as_secs_f64() * rate).min(records as f64) as u64;
                    for _ in 0..(due - sent).min(10_000) {
                        batcher.push(topics[(sent % topics.len() as u64) as usize], &record(&payload));
                        sent += 1;
                    }
                    producer.offer(batcher.take_all());
                    while let Some(buffer) = producer.recycled() {
                        batcher.recycle(buffer);
                    }
                    if rate.is_finite() {
                        std::thread::sleep(tick.saturating_sub(ticked.elapsed()));
                    }
                }
            })
            .unwrap();
        let mut count = 0;
        let lost_before = subscriber.lost();
        while count + subscriber.lost() - lost_before < records {
            if let Some(delivery) = subscriber.subscriber.receive(Duration::from_millis(100)).unwrap() {
                count += delivery.batch.len() as u64;
            }
        }
        let elapsed = started.elapsed();
        assert_eq!(value(&metrics, names::RECEIVED_RECORDS) - received_before, count);
        println!(
            "{topic_count} topics: {records} records in {elapsed:.2?}, {:.0}/s, {:.1} records per batch",
            records as f64 / elapsed.as_secs_f64(),
            records as f64 / publisher.value(names::PUBLISHED_BATCHES) as f64,
        );
        for (name, time) in thread_times() {
            let earlier = before.iter().find(|(other, _)| *other == name).map_or(0, |(_, time)| *time);
            if time - earlier > 1_000 {
                println!("    {name:24} {:.3} µs per record", (time - earlier) as f64 / records as f64);
            }
        }
        feeder.join().unwrap();
    }
}
