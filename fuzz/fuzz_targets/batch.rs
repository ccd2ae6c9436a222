//! Any header and any body from the bus: what is accepted agrees with itself and survives being written again.
//!
//! ```text
//! input  length of the header 1 | header | body
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_record::{Batch, BatchBuilder, Header, MAX_PAYLOAD};

fuzz_target!(|input: &[u8]| {
    let Some((&length, frames)) = input.split_first() else {
        return;
    };
    let (header_frame, body) = frames.split_at(usize::from(length).min(frames.len()));
    let Ok(header) = Header::decode(header_frame) else {
        return;
    };
    let mut again = Vec::new();
    header.encode(&mut again);
    assert_eq!(Header::decode(&again).as_ref(), Ok(&header));

    let Ok(batch) = Batch::decode(&header, body) else {
        return;
    };
    assert_eq!(batch.len(), header.count as usize);
    assert_eq!(batch.body_len(), body.len());
    let mut builder = BatchBuilder::new(Vec::new());
    for record in batch.records() {
        assert!(record.payload.len() <= MAX_PAYLOAD);
        // A small batch is written again; a large one would be many.
        if builder.has_room_for(&record) {
            builder.push(&record);
        }
    }
    let Some(closed) = builder.close() else {
        return;
    };
    let rewritten = Header { count: closed.count, ..header };
    let reread = Batch::decode(&rewritten, &closed.body[..]).expect("what was written can be read");
    assert!(reread.records().eq(batch.records().take(reread.len())));
});
