//! Headers and bodies from the bus: accepted ones are consistent, and unchanged when encoded and
//! decoded again.
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

    let Ok(batch) = Batch::decode(body, header.count) else {
        return;
    };
    assert_eq!(batch.len(), header.count as usize);
    assert_eq!(batch.body_len(), body.len());
    let mut builder = BatchBuilder::new(Vec::new());
    for record in batch.records() {
        assert!(record.payload.len() <= MAX_PAYLOAD);
        // Only the records that fit in one batch are encoded again.
        if builder.has_room_for(&record) {
            builder.push(&record);
        }
    }
    let Some(closed) = builder.close() else {
        return;
    };
    let reread = Batch::decode(&closed.body[..], closed.count).expect("an encoded batch can be decoded");
    assert!(reread.records().eq(batch.records().take(reread.len())));
});
