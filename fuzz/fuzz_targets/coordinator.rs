//! Any messages of a few peers to a coordinator, with time passing: what it sends can be read, and a shard has one holder.
//!
//! ```text
//! input   [peer and pause 1 | length 2 | message] …
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| sekiwake_group::fuzz(input));
