//! `send-test`: sends one message through each endpoint, as the destination is configured, and
//! reports the result.
//!
//! ```text
//! each endpoint, in a thread: resolve ─▶ preflight ─▶ payload ─ rewrite ─▶ UDP: wait for ICMP errors
//!                                                                      └─▶ TCP, TLS: connect, wait for acknowledgement
//! ```
//! It needs no bus, and touches no spool. Filters and rates do not apply.

mod payload;
mod route;

use std::{
    io::{self, Write},
    sync::Arc,
    thread,
};

use sekiwake_decode::mib::Mib;
use sekiwake_record::Kind;
use sekiwake_runtime::host_name;
use sekiwake_sys::clock::wall_now_ns;

use self::payload::{DEFAULT_COMMUNITY, Test};
use crate::config::destination::{Destination, Destinations, Endpoint};

/// The arguments of the subcommand.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// For traps: a community that the collector accepts
    #[arg(long, default_value = DEFAULT_COMMUNITY)]
    pub(crate) community: String,
}

/// The result for one endpoint.
struct Outcome {
    label: String,
    /// How the message was sent, or why it was not.
    result: Result<String, String>,
    /// Checks of the path that failed.
    warnings: Vec<String>,
}

/// Sends one test message of this kind through each endpoint, as its destination is configured, and
/// writes a line about each. `community` is that of traps, `mib` has names for decoded ones.
/// Returns whether all were sent, as far as that can be known.
///
/// # Errors
/// When a thread cannot be spawned, or nothing can be written to `out`.
pub fn send_test(
    kind: Kind,
    destinations: &Destinations,
    community: &str,
    mib: &Arc<Mib>,
    out: &mut impl Write,
) -> io::Result<bool> {
    let test = Test { host: host_name().to_string(), at_ns: wall_now_ns(), community: community.to_owned() };
    writeln!(out, "{}", test.description(kind))?;
    out.flush()?;
    let outcomes = send_all(kind, destinations, mib, &test)?;
    for outcome in &outcomes {
        let result = match &outcome.result {
            Ok(how) => how.clone(),
            Err(why) => format!("FAILED: {why}"),
        };
        writeln!(out, "{}: {result}", outcome.label)?;
        for warning in &outcome.warnings {
            writeln!(out, "  {warning}")?;
        }
    }
    Ok(outcomes.iter().all(|outcome| outcome.result.is_ok()))
}

/// All at the same time, because each takes some seconds.
fn send_all(kind: Kind, destinations: &Destinations, mib: &Arc<Mib>, test: &Test) -> io::Result<Vec<Outcome>> {
    thread::scope(|threads| {
        let mut running = Vec::new();
        for destination in destinations {
            for endpoint in &destination.endpoints {
                let label = destination.label(endpoint);
                let send = move || send(kind, destination, endpoint, mib, test);
                running.push((label, thread::Builder::new().spawn_scoped(threads, send)?));
            }
        }
        let mut outcomes = Vec::new();
        for (label, thread) in running {
            let panicked = || Outcome { label, result: Err("the thread panicked".to_owned()), warnings: Vec::new() };
            outcomes.push(thread.join().unwrap_or_else(|_| panicked()));
        }
        Ok(outcomes)
    })
}

fn send(kind: Kind, destination: &Destination, endpoint: &Endpoint, mib: &Arc<Mib>, test: &Test) -> Outcome {
    let label = destination.label(endpoint);
    let payload = test.payload(kind, &destination.options, &label);
    let mut warnings = Vec::new();
    let result = route::send(kind, destination, endpoint, mib, &payload, &mut warnings);
    Outcome { label, result, warnings }
}
