//! What the control plane costs: bytes a second through the proxy on the control connections, both directions together.

use std::fmt;

use super::world::{Shape, World};
use crate::{MILLISECOND, SECOND};

/// Time to find each other, and for shards to be given out.
const WARM_UP: u64 = 10 * SECOND;
const MEASURED: u64 = 20 * SECOND;

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

fn shape(records: std::ops::Range<u64>, bytes: std::ops::Range<u64>, pause: std::ops::Range<u64>) -> Shape {
    Shape {
        retain_bytes: 64 << 20,
        repair_bytes_per_second: 64 << 20,
        shards: 64,
        records,
        bytes,
        pause,
        versions: false,
        one_works: false,
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
    world.run_until(WARM_UP);
    let before = sums(&world);
    world.run_until(WARM_UP + MEASURED);
    let after = sums(&world);
    assert_eq!(world.failure, None);
    assert_eq!(world.ledger.given_up, 0);
    let a_second = |before: u64, after: u64| (after - before) * SECOND / MEASURED;
    Traffic {
        bytes_per_second: a_second(before.0, after.0),
        messages_per_second: a_second(before.1, after.1),
        records_per_second: a_second(before.2, after.2),
    }
}

/// Bytes, messages, records published.
fn sums(world: &World) -> (u64, u64, u64) {
    let members = world.members.iter().map(|node| &node.control);
    let links = world.publishers.iter().map(|node| &node.control).chain(members).flat_map(|(up, down)| [up, down]);
    let (bytes, messages) = links.fold((0, 0), |sum, link| (sum.0 + link.bytes, sum.1 + link.messages));
    (bytes, messages, world.ledger.sums(|_| true).0.published)
}

/// A batch in each topic of each publisher every quarter of a second: every commit moves between two renewals.
#[test]
fn fifty_members_and_twenty_publishers_under_load_take_less_than_two_megabytes_a_second() {
    let pause = 250 * MILLISECOND / 64;
    let traffic = measure(50, 20, shape(1..20, 100..2000, pause / 2..pause * 3 / 2));
    println!("50 members, 20 publishers, every topic busy: {traffic}");
    assert!(traffic.bytes_per_second < 2_000_000, "{traffic}");
}

/// Full batches of 63 records, 1,588 a second: 26 MB/s.
#[test]
fn one_member_and_one_publisher_at_a_hundred_thousand_a_second_take_less_than_twenty_kilobytes() {
    let traffic = measure(1, 1, shape(63..64, 16_384..16_385, 629_000..631_000));
    println!("1 member, 1 publisher, 64 topics, 26 MB/s: {traffic}");
    assert!(traffic.records_per_second > 99_000, "{traffic}");
    assert!(traffic.bytes_per_second < 20_000, "{traffic}");
}

#[test]
fn an_idle_member_and_an_idle_publisher_take_less_than_four_kilobytes() {
    let traffic = measure(1, 1, shape(1..2, 100..101, 1000 * SECOND..1001 * SECOND));
    println!("1 member, 1 publisher, idle: {traffic}");
    assert!(traffic.bytes_per_second < 4_000, "{traffic}");
}
