//! The newest data of an options template, such as sampling rates and names of interfaces: without
//! it a collector cannot make sense of the flows, and exporters repeat it only every few minutes.

use crate::template::Layout;

/// The limits on the data of one options template.
const MAX_RECORDS: usize = 64;
pub(crate) const MAX_BYTES: usize = 4000;

/// The newest record of each scope, in the order in which the scopes were first seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptionsData {
    records: Vec<Box<[u8]>>,
    bytes: usize,
}

impl OptionsData {
    /// Keeps the records in the contents of a data set. Of more than 64 records, or `max_bytes`,
    /// the first are removed. True if that changed anything.
    pub(crate) fn keep(&mut self, scope: &Layout, layout: &Layout, mut contents: &[u8], max_bytes: usize) -> bool {
        let mut changed = false;
        while let Some(length) = layout.length_of_first(contents) {
            let (record, rest) = contents.split_at(length);
            contents = rest;
            if record.len() <= max_bytes {
                let of_scope = &record[..scope.length_of_first(record).unwrap_or(0)];
                changed |= self.keep_record(of_scope, record, max_bytes);
            }
        }
        changed
    }

    fn keep_record(&mut self, of_scope: &[u8], record: &[u8], max_bytes: usize) -> bool {
        match self.records.iter_mut().find(|known| known.starts_with(of_scope)) {
            Some(known) if **known == *record => return false,
            Some(known) => {
                self.bytes = self.bytes - known.len() + record.len();
                *known = record.into();
            }
            None => {
                self.bytes += record.len();
                self.records.push(record.into());
            }
        }
        while self.records.len() > MAX_RECORDS || self.bytes > max_bytes {
            self.bytes -= self.records.remove(0).len();
        }
        true
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.records.iter().map(|record| &**record)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Its size on the heap, bytes.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes + self.records.len() * size_of::<Box<[u8]>>()
    }
}
