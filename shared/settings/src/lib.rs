//! Settings from environment variables: names, parsing, and all mistakes at once.
//!
//! Sekiwake is configured by environment variables with the prefix `SEKIWAKE_`. This crate has the
//! table of all of them ([`VARIABLES`]), from which `--help`, docs/settings.md and `.env.example`
//! are generated. It reads them in two steps: the variables of the [`Environment`], then domain
//! types ([`Reader`], [`Setting`]). A mistake does not end the reading: the reader records it,
//! continues with the default, and reports all mistakes at the end, one line per mistake:
//!
//! ```text
//! SEKIWAKE_TIK="2ms": no such setting, did you mean SEKIWAKE_TICK?
//! SEKIWAKE_DRAIN="10": expected a duration such as 2ms, 10s or 1m (missing unit, expected us, ms, s, m, h, d or w)
//! ```
//!
//! The reader and the table are written by hand because figment and clap neither report all
//! mistakes with value and expectation nor generate the documents.
//!
//! Variables may also come from a file in the syntax of systemd ([`Environment::with_file`]); a
//! mistake in it begins with file and line.
//!
//! A variable that is empty or white space counts as unset. An unknown name with the prefix is a
//! mistake; a variable that only another service reads is not, so that one environment file can
//! serve all services.
//!
//! **Invariant:** nothing here reads the process environment except
//! [`Environment::from_process`].

mod duration;
mod endpoint;
mod env_file;
mod environment;
mod list;
mod mistakes;
mod nats_url;
mod percent;
mod printable;
mod reader;
mod setting;
mod size;
mod units;
mod variables;

pub use duration::{positive_duration, show_duration};
pub use endpoint::{BindEndpoint, Endpoint};
pub use environment::{Environment, PREFIX};
pub use list::{List, Ports};
pub use mistakes::{Mistake, Mistakes};
pub use nats_url::NatsUrl;
pub use percent::{percent_decoded, percent_decoded_bytes};
pub use printable::{printable, without_byte_order_mark};
pub use reader::{Reader, read};
pub use setting::Setting;
pub use size::ByteSize;
pub use units::{UNITS, Units};
pub use variables::{EVERY_SERVICE, Group, VARIABLES, Variable, VariableDefault, variable};
