//! Any control message: what is read is written the same, and no longer than what it was read from, but for what an older version did not write.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_group::wire::{MAX_MESSAGE_BYTES, Message};

fuzz_target!(|input: &[u8]| {
    let Ok(message) = Message::decode(input) else {
        return;
    };
    let written = message.encode();
    // Numbers are written as short as can be, and what a later version appended is left out; what an older one lacks has its default, in a
    // byte or two.
    assert!(written.len() <= input.len() + 16);
    if written.len() <= MAX_MESSAGE_BYTES {
        assert_eq!(Message::decode(&written), Ok(message));
    }
});
