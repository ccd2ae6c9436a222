//! Values of the keys of a group: a decoded value is unchanged when encoded and decoded again, and
//! a member that reads any keys goes on.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_group::BootTime;
use sekiwake_lease::{
    Entry, Table, TableSettings,
    value::{Assignment, MemberValue},
};
use sekiwake_record::Name;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = MemberValue::decode(input) {
        assert_eq!(MemberValue::decode(&value.encode()), Ok(value));
    }
    if let Ok(value) = Assignment::decode(input) {
        let again = Assignment::decode(&value.encode()).expect("an encoded assignment is decoded");
        assert_eq!(again.shards, value.shards);
    }
    let Ok(label) = Name::new("member") else { return };
    let mut table = Table::new(TableSettings::new(label, false), 7, BootTime::ZERO);
    let names = ["a", "m.0000000000000001", "m.0000000000000007", "x"];
    for round in 1..4 {
        let now = BootTime::from_nanos(round * 5_000_000_000);
        let entries = names.iter().enumerate().map(|(index, &name)| Entry {
            name,
            revision: round * 10 + index as u64,
            value: input.get(index..).unwrap_or_default(),
        });
        table.on_read(now, entries);
        while let Some(write) = table.poll_write(now) {
            table.on_outcome(now, write.id, sekiwake_lease::Outcome::Stored(round * 10 + 9));
        }
        while table.poll_event().is_some() {}
    }
});
