//! Messages of a few peers to a coordinator, with time passing: everything it sends can be decoded,
//! and a shard has at most one owner.
//!
//! ```text
//! input   [peer and pause 1 | length 2 | message] …
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| sekiwake_group::fuzz(input));
