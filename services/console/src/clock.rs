//! The clocks.

use std::time::Duration;

use sekiwake_sys::clock::{boot_now_ns, wall_now_ns};

use crate::model::Moment;

pub(crate) fn now() -> Moment {
    Moment { elapsed: Duration::from_nanos(boot_now_ns()), wall: Duration::from_nanos(wall_now_ns()) }
}
