//! The traffic of the control plane: bytes per second through the proxy, both directions together.

use std::{fmt, ops::Range, time::Duration};

use super::world::{Shape, World};
use crate::{
    BootTime,
    time::{MILLISECOND, SECOND},
};

/// The time until all parties are connected and all shards are granted.
const WARM_UP: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
struct Traffic {
    bytes_per_second: u64,
    messages_per_second: u64,
    records_per_second: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traffic { bytes_per_second, messages_per_second, records_per_second } = self;
        write!(f, "{bytes_per_second} bytes/s in {messages_per_second} messages/s for {records_per_second} records/s")
    }
}

fn shape(records: Range<u64>, bytes: Range<u64>, pause: Range<Duration>) -> Shape {
    Shape {
        retain_bytes: 64 << 20,
        repair_bytes_per_second: 64 << 20,
        shards: 64,
        records,
        bytes,
        pause,
        start_age: 600 * SECOND,
        versions: false,
        single_active: false,
        roomy: true,
        mutant: None,
        slow_work: false,
        tracing: false,
        traced_shard: 1,
    }
}

fn measure(members: usize, publishers: usize, shape: Shape) -> Traffic {
    let mut world = World::new(1, shape);
    world.start_proxy();
    (0..publishers).for_each(|_| world.start_publisher());
    for _ in 0..members {
        world.start_member();
    }
    world.run_until(BootTime::ZERO + WARM_UP);
    let before = sums(&world);
    world.run_until(BootTime::ZERO + WARM_UP + MEASURED);
    let after = sums(&world);
    assert_eq!(world.failure, None);
    assert_eq!(world.ledger.given_up, 0);
    let per_second = |before: u64, after: u64| (after - before) / MEASURED.as_secs();
    Traffic {
        bytes_per_second: per_second(before.0, after.0),
        messages_per_second: per_second(before.1, after.1),
        records_per_second: per_second(before.2, after.2),
    }
}

/// Bytes, messages, records published.
fn sums(world: &World) -> (u64, u64, u64) {
    let members = world.members.iter().map(|node| &node.control);
    let links = world.publishers.iter().map(|node| &node.control).chain(members).flat_map(|(up, down)| [up, down]);
    let (bytes, messages) = links.fold((0, 0), |sum, link| (sum.0 + link.bytes, sum.1 + link.messages));
    (bytes, messages, world.ledger.sums(|_| true).0.published)
}

/// A batch in each topic of each publisher every quarter of a second, so that every commit changes
/// between two renewals.
#[test]
fn fifty_members_twenty_publishers_take_under_2_mb_per_second() {
    let pause = 250 * MILLISECOND / 64;
    let traffic = measure(50, 20, shape(1..20, 100..2000, pause / 2..3 * pause / 2));
    println!("50 members, 20 publishers, every topic busy: {traffic}");
    assert!(traffic.bytes_per_second < 2_000_000, "{traffic}");
}

/// Full batches of 63 records, 1,588 per second: 26 MB/s.
#[test]
fn one_member_at_100_000_records_per_second_takes_under_20_kb() {
    let traffic = measure(1, 1, shape(63..64, 16_384..16_385, Duration::from_micros(629)..Duration::from_micros(631)));
    println!("1 member, 1 publisher, 64 topics, 26 MB/s: {traffic}");
    assert!(traffic.records_per_second > 99_000, "{traffic}");
    assert!(traffic.bytes_per_second < 20_000, "{traffic}");
}

#[test]
fn idle_member_and_publisher_take_under_4_kb() {
    let traffic = measure(1, 1, shape(1..2, 100..101, 1000 * SECOND..1001 * SECOND));
    println!("1 member, 1 publisher, idle: {traffic}");
    assert!(traffic.bytes_per_second < 4_000, "{traffic}");
}
