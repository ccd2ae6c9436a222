//! Traps: any datagram is a row or an error, and rows are JSON of bounded size. The community and
//! the user name are in none.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sekiwake_decode::{
    mib::{Limits, Mib, MibFile, load},
    trap::{self, MAX_VARBINDS},
};

/// Labels, bits and a hint on what a mutation reaches.
static MIB: LazyLock<Mib> = LazyLock::new(|| {
    let text = b"F-MIB DEFINITIONS ::= BEGIN
        fEnum OBJECT-TYPE SYNTAX INTEGER { a(1), b(-1) } ::= { enterprises 1 }
        fBits OBJECT-TYPE SYNTAX BITS { a(0), b(9) } ::= { enterprises 2 }
        F ::= TEXTUAL-CONVENTION DISPLAY-HINT \"*1x:/2d-1a\" SYNTAX OCTET STRING
        fHint OBJECT-TYPE SYNTAX F ::= { enterprises 3 }
        fTrap NOTIFICATION-TYPE ::= { enterprises 0 1 }
    END";
    load(&[MibFile { name: "f".into(), text: text.to_vec() }], Limits::default()).mib
});

fuzz_target!(|datagram: &[u8]| {
    let Ok(trap) = trap::decode(datagram, &MIB) else { return };
    assert!(trap.varbinds.len() <= MAX_VARBINDS);
    let row = serde_json::to_string(&trap).expect("a row is JSON");
    assert!(row.len() <= 1000 + 300 * datagram.len());
    let line = trap.to_string();
    assert!(!line.chars().any(char::is_control));
});
