//! MIB modules: any files end in a table, and every file is either used or named.
//!
//! ```text
//! input   the files, separated by FF
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_decode::mib::{Limits, MibFile, load};

const LIMITS: Limits = Limits { max_files: 4, max_file_bytes: 4096, max_total_bytes: 8192 };

fuzz_target!(|input: &[u8]| {
    let files: Vec<MibFile> = input
        .split(|&byte| byte == 0xff)
        .enumerate()
        .map(|(index, text)| MibFile { name: index.to_string(), text: text.to_vec() })
        .collect();
    let loaded = load(&files, LIMITS);
    assert!(loaded.skipped.len() <= files.len());
    assert!(loaded.modules > 0 || loaded.skipped.len() == files.len());
    // A node takes 32 bytes, and two bytes of text at least.
    assert!(loaded.mib.bytes() <= (64 << 10) + 64 * input.len());
    for skipped in &loaded.skipped {
        assert!(skipped.reason.len() < 300 && skipped.reason.is_ascii());
    }
    for arc in 0..4 {
        let arcs = [1, 3, 6, 1, 4, 1, arc, 1];
        if let Some(found) = loaded.mib.find(arcs.into_iter()) {
            assert!(found.arcs <= arcs.len() && !found.name.is_empty());
        }
    }
});
