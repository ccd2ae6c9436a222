//! Stored files: a search in any bytes ends and gives valid messages in order of time, and
//! compressed messages are decompressed unchanged.
//!
//! ```text
//! input  kind 1 | place 1 | change 1 | the file
//! kind   bit 0       0 JSON, 1 text
//!        bits 1, 2   0 the file as a plain file, 1 the file as a compressed file,
//!                    2 compressed, 3 compressed and one byte changed
//! ```

#![no_main]

use std::{fs, ops::ControlFlow, path::Path};

use libfuzzer_sys::fuzz_target;
use sekiwake_archive::{LineFormat, Lines, Message, Query, compress, search};

fuzz_target!(|input: &[u8]| {
    let [kind, place, change, file @ ..] = input else { return };
    let format = if kind & 1 == 0 { LineFormat::Json } else { LineFormat::Text };
    let mut compressed = Vec::new();
    compress(file, format, 1, &mut compressed).expect("compressing into memory");
    let (bytes, is_compressed) = match kind >> 1 & 3 {
        0 => (file.to_vec(), false),
        1 => (file.to_vec(), true),
        2 => (compressed, true),
        _ => {
            let at = usize::from(*place) * compressed.len() / 256;
            compressed[at] ^= change;
            (compressed, true)
        }
    };
    if kind >> 1 & 3 == 2 {
        assert_eq!(messages(&bytes), messages_of(file), "messages are decompressed unchanged");
    }

    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = parent.join(format!("sekiwake-fuzz-stored-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let name = format!("x@20260101T000000Z-86400s@m@1-1.{}{}", format.extension(), if is_compressed { ".zst" } else { "" });
    fs::write(dir.join(name), &bytes).expect("the file");
    let mut last = 0;
    let mut count = 0_u64;
    let summary = search(&dir, &Query::default(), &|| true, &mut |line| {
        let line = line.strip_suffix(b"\n").expect("a line ends with a newline");
        let message = Message::parse(LineFormat::Json, line).expect("a valid message");
        assert!(message.captured_at_ns >= last, "messages are in order of time");
        last = message.captured_at_ns;
        count += 1;
        ControlFlow::Continue(())
    })
    .expect("the directory can be read");
    assert!(summary.is_complete && summary.matched == count && summary.lines >= count);
    let _ = fs::remove_dir_all(&dir);
});

/// The messages of a plain or compressed file.
fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Lines::read(bytes).expect("memory can be read");
    let mut found = Vec::new();
    while let Ok(Some((_, message))) = lines.next_line() {
        found.extend(message.map(|message| message.payload.into_owned()));
    }
    found
}

/// The messages of a plain file.
fn messages_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let format = |line: &[u8]| if line.first() == Some(&b'{') { LineFormat::Json } else { LineFormat::Text };
    let lines = bytes.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line));
    lines.filter_map(|line| Message::parse(format(line), line)).map(|message| message.payload.into_owned()).collect()
}
