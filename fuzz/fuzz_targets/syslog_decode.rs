//! Syslog: any datagram is a message, whose row is JSON in proportion to it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_decode::syslog;

fuzz_target!(|datagram: &[u8]| {
    let message = syslog::decode(datagram);
    let row = serde_json::to_string(&message).expect("a row is JSON");
    // A byte becomes at most six: `\u0000`.
    assert!(row.len() <= 400 + 6 * datagram.len());
    assert!(message.is_lossy || std::str::from_utf8(datagram).is_ok() || datagram.len() > message.message.len());
});
