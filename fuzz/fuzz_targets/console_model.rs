//! Status of services: any text is shown, or counted and skipped.
//!
//! ```text
//! input  a message per line: part 1 | JSON; its topic is that of the service it claims to be of
//! ```

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sekiwake_console::model::{Model, Moment};
use serde_json::Value;

const PARTS: [&str; 10] = [
    "process", "group", "group.streams.0", "destinations.0", "interfaces.0", "stream", "store", "detector",
    "detector.series", "control",
];

fuzz_target!(|input: &[u8]| {
    let mut model = Model::default();
    let mut second = 0;
    for line in input.split(|byte| *byte == b'\n') {
        let Some((&part, json)) = line.split_first() else { continue };
        let Ok(json) = std::str::from_utf8(json) else { continue };
        second += u64::from(part >> 6);
        let now = Moment { elapsed: Duration::from_secs(second), wall: Duration::from_secs(second) };
        let part = PARTS[usize::from(part) % PARTS.len()];
        model.apply(&topic(json, part), json, now);
        model.expire(now);
        let view = model.view(now);
        assert!(view.lost() >= view.losses.iter().map(|loss| loss.lost.total).max().unwrap_or(0));
    }
});

fn topic(json: &str, part: &str) -> String {
    let head: Value = serde_json::from_str(json).unwrap_or_default();
    let [service, group, member, incarnation] =
        ["service", "group", "member", "incarnation"].map(|name| head[name].as_str().unwrap_or("-"));
    format!("status/{service}.{group}.{member}.{incarnation}/{part}")
}
