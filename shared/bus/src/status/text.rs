//! The parts of a status as JSON objects of bounded size. No socket.

use sekiwake_group::{StatusIdentity, wire::MAX_STATUS_PART};
use sekiwake_record::Name;
use serde_json::{Map, Value};

/// The most parts of one status: a forwarder has at most 64 destinations, and a group 256 streams.
const MAX_PARTS: usize = 512;
/// The most bytes of the members that say whose part it is.
const HEAD: usize = 512;
/// The longest name of a part that has been divided, without its number.
const MAX_PART_NAME: usize = 50;

/// The texts of these parts by name, at most 16 KiB each.
///
/// A list is divided into a part per element: `destinations.0`. From an object that is too large,
/// its largest lists and objects become parts of their own, until the rest fits: `group.streams.0`
/// has as many streams as fit. What does not fit in either way is left out, and `is_truncated` says
/// so.
pub(crate) fn texts(identity: &StatusIdentity, sent_at_ns: u64, parts: Vec<(String, Value)>) -> Vec<(Name, Vec<u8>)> {
    let mut texts = Vec::new();
    for (name, value) in parts {
        divide(&name, value, &mut |name, members| {
            if let (Ok(name), true) = (Name::new(name), texts.len() < MAX_PARTS) {
                let text = text(identity, sent_at_ns, &name, members);
                texts.push((name, text));
            }
        });
    }
    texts
}

fn divide(name: &str, value: Value, out: &mut impl FnMut(&str, Map<String, Value>)) {
    if name.len() > MAX_PART_NAME {
        return;
    }
    match value {
        Value::Array(elements) => {
            for (index, element) in elements.into_iter().enumerate() {
                divide(&format!("{name}.{index}"), element, out);
            }
        }
        Value::Object(mut members) => {
            while too_large(&members) {
                let Some(largest) = largest(name, &members) else { break };
                match members.remove(&largest) {
                    Some(Value::Array(elements)) => divide_list(&format!("{name}.{largest}"), &largest, elements, out),
                    Some(value) => divide(&format!("{name}.{largest}"), value, out),
                    None => break,
                }
            }
            fit(&mut members);
            out(name, members);
        }
        other => {
            let mut members = Map::from_iter([("value".to_owned(), other)]);
            fit(&mut members);
            out(name, members);
        }
    }
}

/// As many elements of a list per part as fit into one.
fn divide_list(name: &str, member: &str, elements: Vec<Value>, out: &mut impl FnMut(&str, Map<String, Value>)) {
    let mut chunk = Vec::new();
    let mut length = 0;
    let mut number = 0;
    let mut emit = |chunk: Vec<Value>| {
        let mut members = Map::from_iter([(member.to_owned(), Value::from(chunk))]);
        fit(&mut members);
        out(&format!("{name}.{number}"), members);
        number += 1;
    };
    for element in elements {
        let more = bytes(&element) + 1;
        if length + more + member.len() + 8 > MAX_STATUS_PART - HEAD && !chunk.is_empty() {
            emit(std::mem::take(&mut chunk));
            length = 0;
        }
        length += more;
        chunk.push(element);
    }
    if !chunk.is_empty() {
        emit(chunk);
    }
}

/// Leaves out the largest members until the rest fits.
fn fit(members: &mut Map<String, Value>) {
    while too_large(members) {
        let largest = members.iter().max_by_key(|(_, value)| bytes(value)).map(|(name, _)| name.clone());
        let Some(largest) = largest else { return };
        members.remove(&largest);
        members.insert("is_truncated".to_owned(), true.into());
    }
}

/// The largest list or object among the members whose name can be that of a part.
fn largest(part: &str, members: &Map<String, Value>) -> Option<String> {
    let divisible = members.iter().filter(|(name, value)| {
        let can_be_part = part.len() + 1 + name.len() <= MAX_PART_NAME && Name::new(name).is_ok();
        can_be_part && (value.is_array() || value.is_object())
    });
    divisible.max_by_key(|(_, value)| bytes(value)).map(|(name, _)| name.clone())
}

fn too_large(members: &Map<String, Value>) -> bool {
    members.iter().map(|(name, value)| name.len() + 4 + bytes(value)).sum::<usize>() > MAX_STATUS_PART - HEAD
}

/// The length of a value as text.
fn bytes(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 2 + elements.iter().map(|element| 1 + bytes(element)).sum::<usize>(),
        Value::Object(members) => 2 + members.iter().map(|(name, value)| name.len() + 4 + bytes(value)).sum::<usize>(),
        // Escapes may be six bytes long.
        Value::String(text) => {
            2 + text
                .chars()
                .map(|c| if c < ' ' { 6 } else { c.len_utf8() + usize::from(matches!(c, '"' | '\\')) })
                .sum::<usize>()
        }
        Value::Number(_) => 24,
        Value::Null | Value::Bool(_) => 5,
    }
}

fn text(identity: &StatusIdentity, sent_at_ns: u64, part: &Name, mut members: Map<String, Value>) -> Vec<u8> {
    let StatusIdentity { service, group, member, incarnation } = identity;
    members.insert("service".to_owned(), service.as_str().into());
    members.insert("group".to_owned(), group.as_ref().map(Name::as_str).into());
    members.insert("member".to_owned(), member.as_str().into());
    members.insert("incarnation".to_owned(), format!("{incarnation:016x}").into());
    members.insert("part".to_owned(), part.as_str().into());
    members.insert("sent_at_ns".to_owned(), sent_at_ns.into());
    serde_json::to_vec(&members).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn identity() -> StatusIdentity {
        let name = |text: &str| Name::new(text).unwrap();
        StatusIdentity {
            service: name("storer"),
            group: Some(name(&"g".repeat(40))),
            member: name(&"m".repeat(63)),
            incarnation: 7,
        }
    }

    fn of(name: &str, value: Value) -> Vec<(String, Value)> {
        let texts = texts(&identity(), 5, vec![(name.to_owned(), value)]);
        let read = |(name, text): (Name, Vec<u8>)| {
            assert!(text.len() <= MAX_STATUS_PART, "{name}: {} bytes", text.len());
            (name.to_string(), serde_json::from_slice(&text).unwrap())
        };
        texts.into_iter().map(read).collect()
    }

    #[test]
    fn small_object_is_one_part_with_its_origin() {
        let parts = of("group", json!({ "leased": true }));
        let expected = json!({
            "service": "storer", "group": "g".repeat(40), "member": "m".repeat(63),
            "incarnation": "0000000000000007", "part": "group", "sent_at_ns": 5, "leased": true,
        });
        assert_eq!(parts, [("group".to_owned(), expected)]);
    }

    #[test]
    fn lists_are_divided_and_so_are_objects_that_are_too_large() {
        let parts = of("destinations", json!([{ "state": "up" }, { "state": "down" }]));
        assert_eq!(
            parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["destinations.0", "destinations.1"]
        );
        assert_eq!(parts[1].1["state"], "down");
        let streams: Vec<Value> =
            (0..100).map(|number| json!({ "stream": format!("{number}"), "text": "x".repeat(500) })).collect();
        let parts = of("group", json!({ "leased": true, "streams": streams }));
        assert!((4..10).contains(&parts.len()) && parts[0].0 == "group.streams.0", "{}", parts.len());
        let (last, streams) = parts.split_last().unwrap();
        assert_eq!((last.0.as_str(), &last.1["leased"]), ("group", &json!(true)));
        let numbers = streams.iter().flat_map(|(_, part)| part["streams"].as_array().unwrap());
        assert!(
            numbers
                .map(|stream| stream["stream"].as_str().unwrap())
                .eq((0..100).map(|n| n.to_string()).collect::<Vec<_>>().iter())
        );
        let parts = of("store", json!({ "error": "x".repeat(20_000), "files": 3 }));
        assert_eq!((&parts[0].1["files"], &parts[0].1["is_truncated"]), (&json!(3), &json!(true)));
    }

    #[test]
    fn members_whose_names_no_part_can_have_are_left_out_visibly() {
        let series = (0..50).map(|n| (format!("source/2001:db8::{n:x}"), json!({ "counts": "x".repeat(1_000) })));
        let parts = of("detector", json!({ "series": Value::Object(series.collect()), "window": 20 }));
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["detector.series", "detector"]);
        assert_eq!((&parts[0].1["is_truncated"], &parts[1].1["window"]), (&json!(true), &json!(20)));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (prop::sample::select(vec!["x", "\n", "\"", "\u{fffd}"]), 0..9_000_usize)
                .prop_map(|(text, times)| Value::from(text.repeat(times))),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map("[a-z/:]{1,30}", inner, 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_part_exceeds_the_limit(value in value()) {
            of("part", value);
        }
    }
}
