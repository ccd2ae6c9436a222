//! What others may have written to the subjects of the bus on JetStream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_bus::fuzz_jetstream;

fuzz_target!(|input: (&str, &[u8])| {
    let (subject, payload) = input;
    fuzz_jetstream(subject, payload);
});
