//! Status on the bus: what services say of themselves while somebody subscribes to it.
//!
//! ```text
//! status/<service>.<group>.<member>.<incarnation>/<part> | {"service": …}     group: - for a service without one
//! ```

mod text;

pub use sekiwake_group::STATUS_PREFIX;
pub(crate) use text::texts;

/// Whether this is the topic of a part of a status.
pub(crate) fn is_status_topic(topic: &[u8]) -> bool {
    topic.starts_with(STATUS_PREFIX.as_bytes())
}
