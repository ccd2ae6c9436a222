//! `sekiwake-storer replay`: sends what was stored as if the devices had, through the engine of the
//! forwarders.
//!
//! ```text
//! files ─▶ Stored ─▶ Schedule: due? ─▶ Shift ─▶ Engine per kind ─▶ destinations
//!                                      Registration: captures leave the destinations alone
//! ```
//! A destination that is behind, or away, pauses the replay: nothing is dropped because it waited.

mod account;
mod outstanding;
mod registration;
mod schedule;
mod send;
mod shift;

use std::{
    io::{Write, stdout},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use sekiwake_archive::{Origin, Selection, Templates};
use sekiwake_bus::{Controlling, Subscribing};
use sekiwake_forward::{Destinations, Engine, EngineOptions, Registry, Transport};
use sekiwake_record::{Kind, WallTime};
use sekiwake_runtime::{Scope, Worker, run_job};
use sekiwake_settings::{Environment, Reader};

use self::{
    outstanding::{Place, time},
    registration::{Needs, Registration},
    schedule::{Pace, Schedule, planned},
    send::{Outlet, Sending},
    shift::Shift,
};
use crate::{
    selection::{Filters, kinds_of},
    stored::{Peeked, Stored},
};

/// How long a stopped replay may take to send what is on its way.
const DRAIN: Duration = Duration::from_secs(10);

/// What to send, where, and how fast.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    filters: Filters,
    /// Destination, as the forwarders take it: udp://198.51.100.7:2055?spoof=true. For one kind
    /// only: xflow=udp://... May be given several times
    #[arg(long, value_name = "[KIND=]URI", required_unless_present = "dry_run")]
    to_destination: Vec<To>,
    /// Keep the recorded spacing, divided by this: 1 as recorded, 10 ten times as fast
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = speed)]
    speed: f64,
    /// Datagrams per second, evenly spaced; 0 is as fast as the destinations take them
    #[arg(long, value_name = "NUMBER", conflicts_with = "speed")]
    rate: Option<u32>,
    /// Leave out the first datagrams of exactly the time of --from: an interrupted replay prints
    /// both
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "from")]
    skip: u64,
    /// Print how many datagrams and bytes would be sent, and how long that would take; send nothing
    #[arg(long)]
    dry_run: bool,
    /// Move the export time in headers of NetFlow v5 and v9, so that flows end now. Datagrams with
    /// absolute times, such as IPFIX, stay as they are and are counted
    #[arg(long)]
    shift_time: bool,
    /// Replay to addresses that devices send to, although captures leave those alone meanwhile
    #[arg(long)]
    allow_capture_gap: bool,
    /// Do not register the destinations with the bus: no capture sees the traffic
    #[arg(long, conflicts_with = "allow_capture_gap")]
    allow_capture: bool,
    /// Print the last line as a JSON object
    #[arg(long)]
    json: bool,
}

/// A destination, for one kind or for all that are selected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct To {
    kind: Option<Kind>,
    uri: String,
}

impl FromStr for To {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<To, Self::Err> {
        let of_kind = text.split_once('=').and_then(|(kind, uri)| Some((Kind::from_name(kind)?, uri)));
        Ok(match of_kind {
            Some((kind, uri)) => To { kind: Some(kind), uri: uri.to_owned() },
            None => To { kind: None, uri: text.to_owned() },
        })
    }
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (0.001..=1_000_000.0).contains(speed));
    speed.ok_or_else(|| "expected a factor from 0.001 to 1000000".to_owned())
}

impl Arguments {
    fn pace(&self) -> Pace {
        match self.rate {
            None => Pace::Speed(self.speed),
            Some(0) => Pace::Fastest,
            Some(rate) => Pace::Rate(f64::from(rate)),
        }
    }

    /// The destinations of each selected kind.
    fn destinations(&self, selection: &Selection) -> anyhow::Result<Vec<(Kind, Destinations)>> {
        let is_unused = |to: &&To| to.kind.is_some_and(|kind| !selection.query.has_kind(kind));
        if let Some(unused) = self.to_destination.iter().find(is_unused) {
            bail!("--to-destination {}: its kind is not selected", unused.uri);
        }
        let mut all = Vec::new();
        for kind in kinds_of(&selection.query) {
            let of_kind = self.to_destination.iter().filter(|to| to.kind.is_none_or(|only| only == kind));
            let uris: Vec<&str> = of_kind.map(|to| to.uri.as_str()).collect();
            let destinations =
                Destinations::parse(kind, &uris.join(" ")).with_context(|| format!("--to-destination for {kind}"))?;
            ensure!(!destinations.is_empty(), "--to-destination: none for {kind}, expected {kind}=URI, or a URI alone");
            if let Some(spooling) = destinations.iter().find(|one| one.options.spool.is_some()) {
                bail!(
                    "--to-destination {spooling}: spool= has no use here, because a replay waits for its destinations"
                );
            }
            all.push((kind, destinations));
        }
        Ok(all)
    }
}

/// Sends what is selected, and prints the last line.
///
/// # Errors
/// An invalid option or setting, or nothing can be read or sent.
pub(crate) fn run(arguments: &Arguments, environment: &Environment) -> anyhow::Result<ExitCode> {
    let selection = arguments.filters.selection(environment)?;
    if arguments.dry_run {
        return dry_run(arguments, selection);
    }
    let destinations = arguments.destinations(&selection)?;
    let read = |reader: &mut Reader| (Subscribing::read(reader), Controlling::read(reader));
    let (subscribing, controlling) = sekiwake_settings::read(environment, read)?;
    let arguments = arguments.clone();
    let bus = Bus { subscribing, controlling };
    run_job("replay", DRAIN, move |scope, worker| {
        let replay = Replay { arguments, selection, destinations };
        replay.run(bus, scope, worker)
    })
}

/// How the bus is reached.
struct Bus {
    subscribing: Subscribing,
    controlling: Controlling,
}

/// What the command line says.
struct Replay {
    arguments: Arguments,
    selection: Selection,
    destinations: Vec<(Kind, Destinations)>,
}

impl Replay {
    fn run(self, bus: Bus, scope: &Scope, worker: &Worker) -> anyhow::Result<ExitCode> {
        let Replay { arguments, selection, destinations } = self;
        let is_udp = destinations.iter().flat_map(|(_, list)| list).any(|one| one.transport == Transport::Udp);
        let is_registered = is_udp && !arguments.allow_capture;
        let registry = if is_registered { Registry::new() } else { Registry::open() };
        let mut outlets = Vec::new();
        for (kind, destinations) in &destinations {
            let options = EngineOptions {
                registry: registry.clone(),
                // Without spool= nothing is written, and what other services have left is theirs.
                spool_dir: PathBuf::from("/nonexistent"),
                ..EngineOptions::default()
            };
            outlets.push(Outlet::new(*kind, Engine::start(*kind, destinations, options, scope)?));
        }
        let registration = match is_registered {
            false => None,
            true => {
                let Bus { subscribing, controlling } = bus;
                let allows_gap = arguments.allow_capture_gap;
                let needs = Needs { subscribing, controlling, allows_gap, selection: selection.clone() };
                Some(Registration::start(registry, needs, scope)?)
            }
        };
        let start = Place { from: selection.query.from, skip: arguments.skip };
        let sending = Sending {
            worker,
            stored: Stored::open(selection)?,
            outlets,
            registration,
            allows_gap: arguments.allow_capture_gap,
            schedule: Schedule::new(arguments.pace()),
            shift: arguments.shift_time.then(Shift::new),
            start,
        };
        let (account, outcome) = sending.run();
        let line = if arguments.json { account.to_json().to_string() } else { account.to_string() };
        writeln!(stdout(), "{line}").context("cannot write to standard output")?;
        outcome?;
        Ok(if account.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What would be sent.
#[derive(Default)]
struct Planned {
    datagrams: u64,
    bytes: u64,
    by_kind: [u64; Kind::ALL.len()],
    first: Option<WallTime>,
    last: WallTime,
}

/// Prints what would be sent.
fn dry_run(arguments: &Arguments, selection: Selection) -> anyhow::Result<ExitCode> {
    if !arguments.to_destination.is_empty() {
        arguments.destinations(&selection)?;
    }
    let skipped = Place { from: selection.query.from, skip: arguments.skip };
    let mut stored = Stored::open(Selection { templates: Templates::None, ..selection })?;
    let mut planned_datagrams = Planned::default();
    let mut place = Place { skip: 0, ..skipped };
    loop {
        let datagram = match stored.peek(Duration::from_secs(1)) {
            Peeked::Datagram(datagram) => datagram,
            Peeked::Nothing => continue,
            Peeked::End => break,
        };
        let captured_at = WallTime::from_nanos(datagram.record.captured_at_ns);
        let is_sent_before = captured_at == skipped.from && place.skip < skipped.skip;
        place = place.after(captured_at);
        if datagram.origin == Origin::Selected && !is_sent_before {
            planned_datagrams.datagrams += 1;
            planned_datagrams.bytes += datagram.record.payload.len() as u64;
            planned_datagrams.by_kind[datagram.kind.index()] += 1;
            planned_datagrams.first.get_or_insert(captured_at);
            planned_datagrams.last = captured_at;
        }
        stored.advance();
    }
    let summary = stored.finish()?;
    planned_datagrams.print(arguments)?;
    Ok(if summary.failed.is_empty() && summary.corrupt == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Planned {
    fn print(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let Planned { datagrams, bytes, by_kind, first, last } = self;
        let span = first.map_or(Duration::ZERO, |first| *last - first);
        let duration = planned(arguments.pace(), *datagrams, span);
        let by_kind = || Kind::ALL.into_iter().zip(by_kind);
        let line = if arguments.json {
            let counts: serde_json::Map<String, serde_json::Value> =
                by_kind().map(|(kind, count)| (kind.to_string(), (*count).into())).collect();
            serde_json::json!({
                "datagrams": datagrams,
                "bytes": bytes,
                "by_kind": counts,
                "first": first.map(time),
                "last": first.map(|_| time(*last)),
                "seconds": duration.map(|duration| duration.as_secs_f64()),
            })
            .to_string()
        } else {
            let counts = by_kind().filter(|(_, count)| **count > 0).map(|(kind, count)| format!("{kind} {count}"));
            let counts = counts.collect::<Vec<_>>().join(", ");
            let range = first.map_or(String::new(), |first| format!(", {} to {}", time(first), time(*last)));
            let takes = match duration {
                Some(duration) => format!("would take {:.1} s", duration.as_secs_f64()),
                None => "as fast as the destinations take them".to_owned(),
            };
            let counts = if counts.is_empty() { counts } else { format!(" ({counts})") };
            format!("{datagrams} datagrams{counts}, {bytes} bytes{range}; {takes}")
        };
        writeln!(stdout(), "{line}").context("cannot write to standard output")
    }
}
