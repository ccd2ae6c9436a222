//! Settings from environment variables: names, parsing, and every mistake at once.
//!
//! Sekiwake is configured by environment variables with one prefix, `SEKIWAKE_`, and by nothing else. This crate holds
//! the list of all of them ([`VARIABLES`]), from which `--help` and the README's table come, and reads them in two steps:
//! raw strings first ([`Environment`], through envy), then domain types ([`Reader`], [`Setting`]). A mistake does not end
//! the reading: the reader notes it, goes on with the default, and at the end gives all of them back together, one line each:
//!
//! ```text
//! SEKIWAKE_TIK="2ms": no such setting, did you mean SEKIWAKE_TICK?
//! SEKIWAKE_DRAIN="10": expected a duration such as 2ms, 10s or 1m (a unit is missing: us, ms, s, m, h or d)
//! ```
//!
//! A variable that is set to nothing, or to white space, counts as unset. A name with the prefix that no part of the project
//! knows is a mistake; a name that only another service reads is not, so that one environment file can serve all of them.
//!
//! **Invariant:** nothing here touches the process environment except [`Environment::from_process`].

mod duration;
mod endpoint;
mod environment;
mod list;
mod mistakes;
mod percent;
mod reader;
mod setting;
mod size;
mod variables;

pub use duration::show_duration;
pub use endpoint::{BindEndpoint, Endpoint};
pub use environment::{Environment, PREFIX};
pub use list::{List, Ports};
pub use mistakes::{Mistake, Mistakes};
pub use percent::percent_decoded;
pub use reader::{Reader, read};
pub use setting::Setting;
pub use size::ByteSize;
pub use variables::{EVERY_SERVICE, Group, VARIABLES, Variable, VariableDefault, variable};
