//! Any bytes as a stored file: a search ends, what it gives are messages, and what is packed is what comes out.
//!
//! ```text
//! input  kind 1: bit 0 text, bits 1 and 2: as it is and plain, as it is and packed, packed by us, packed by us and one byte changed
//!        place 1 | change 1 | the file
//! ```

#![no_main]

use std::{fs, ops::ControlFlow, path::Path};

use libfuzzer_sys::fuzz_target;
use sekiwake_store::{LineFormat, Lines, Message, Query, pack, search};

fuzz_target!(|input: &[u8]| {
    let [kind, place, change, file @ ..] = input else { return };
    let format = if kind & 1 == 0 { LineFormat::Json } else { LineFormat::Text };
    let mut packed = Vec::new();
    pack(file, format, 1, &mut packed).expect("packing into memory");
    let (bytes, is_packed) = match kind >> 1 & 3 {
        0 => (file.to_vec(), false),
        1 => (file.to_vec(), true),
        2 => (packed, true),
        _ => {
            let at = usize::from(*place) * packed.len() / 256;
            packed[at] ^= change;
            (packed, true)
        }
    };
    if kind >> 1 & 3 == 2 {
        assert_eq!(messages(&bytes), messages_of(file), "what was packed comes out");
    }

    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = parent.join(format!("sekiwake-fuzz-stored-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let name = format!("x@20260101T000000Z-86400s@m@1-1.{}{}", format.extension(), if is_packed { ".zst" } else { "" });
    fs::write(dir.join(name), &bytes).expect("the file");
    let (mut last, mut count) = (0, 0_u64);
    let summary = search(&dir, &Query::default(), &|| true, &mut |line| {
        let line = line.strip_suffix(b"\n").expect("a line ends");
        let message = Message::parse(LineFormat::Json, line).expect("a message");
        assert!(message.captured_at_ns >= last, "the order of time");
        last = message.captured_at_ns;
        count += 1;
        ControlFlow::Continue(())
    })
    .expect("the directory can be read");
    assert!(summary.is_complete && summary.matched == count && summary.lines >= count);
    let _ = fs::remove_dir_all(&dir);
});

/// The messages in bytes that may be packed.
fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Lines::read(bytes).expect("memory can be read");
    let mut found = Vec::new();
    while let Ok(Some((_, message))) = lines.next_line() {
        found.extend(message.map(|message| message.payload.into_owned()));
    }
    found
}

/// The messages in plain bytes, of the format that their first one tells.
fn messages_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let format = if bytes.first() == Some(&b'{') { LineFormat::Json } else { LineFormat::Text };
    let lines = bytes.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line));
    lines.filter_map(|line| Message::parse(format, line)).map(|message| message.payload.into_owned()).collect()
}
