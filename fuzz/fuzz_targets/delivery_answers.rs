//! Answers of collectors and brokers: any bytes are read without a panic, and within bounds.
//!
//! ```text
//! input   one answer, without the head that carries its length
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_forward::read_answers;

fuzz_target!(|answer: &[u8]| read_answers(answer));
