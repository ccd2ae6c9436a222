//! Control messages: a decoded message is unchanged when encoded and decoded again, and its
//! encoding is not longer, except for elements that an older version did not have.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_group::wire::{MAX_MESSAGE_BYTES, Message};

fuzz_target!(|input: &[u8]| {
    let Ok(message) = Message::decode(input) else {
        return;
    };
    let written = message.encode();
    // Numbers get their shortest form, and elements that a later version appended are dropped.
    // Elements that an older version did not have get their default, in a byte or two each.
    assert!(written.len() <= input.len() + 16);
    if written.len() <= MAX_MESSAGE_BYTES {
        assert_eq!(Message::decode(&written), Ok(message));
    }
});
