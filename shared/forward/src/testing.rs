//! Batches for the unit tests.

use std::sync::Arc;

use sekiwake_record::{Format, Record};
use sekiwake_testkit::fixtures::{batch_of, record};

use crate::Parcel;

/// A parcel with these payloads, from one source.
pub(crate) fn batch(payloads: &[&[u8]]) -> Arc<Parcel<Vec<u8>>> {
    let records = payloads.iter().map(|payload| Record { format: Format::Unknown, dscp_ttl: 0, ..record(payload) });
    Arc::new(batch_of(records).into_batch().unwrap().into())
}
