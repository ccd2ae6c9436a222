//! Prints live records, events, status and flow templates as JSON lines, records also decoded.
//!
//! An example for other subscribers: it is not a member of a group, and a slow or failing tap
//! affects no other subscriber.

mod records;
mod templates;

use std::{
    io::{self, BufWriter, ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;

use sekiwake_bus::{Bus, BusError, Controlling, EVENT_PREFIX, EventSource, STATUS_PREFIX, Subscribing};
use sekiwake_decode::{Decoder, Style, write_rows};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::{Kind, Name, Topic};
use sekiwake_runtime::{About, Metrics, MibFolder, Stop, Tool};
use sekiwake_settings::{Reader, positive_duration};
use signal_hook::consts::SIGHUP;

use self::records::Records;

/// How long to wait for records before buffered lines are flushed.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

/// The longest prefix of status that a proxy accepts, bytes.
const MAX_STATUS_FILTER: usize = 128;

/// The tap.
pub struct Tap;

/// Prints live records, events, status and flow templates as JSON lines.
///
/// One line per record, event, part of a status, or template, until the tap is stopped or has
/// printed --count lines. The tap is in no group: it receives everything published from now on, and
/// a slow or failing tap affects no other subscriber. With --since, it first prints what the
/// captures still hold of that time. With templates/, the tap first prints the flow templates that
/// a running xflow forwarder keeps; if no other topic is given, it then exits.
///
/// With --decode, a line is what a record says: a flow, a trap, a syslog message. The tap begins
/// with the flow templates that a running xflow forwarder keeps. Traps have the names of the MIB
/// files in SEKIWAKE_MIB_DIR.
#[derive(clap::Args)]
pub struct Arguments {
    /// Prefixes of topics to print: syslog/, xflow/ or snmptrap/, with a shard as in xflow/0a,
    /// anomaly/ for events, status/ for the state of all services, or templates/ for known flow
    /// templates
    #[arg(value_parser = topic_prefix, default_values = ["syslog/", "xflow/", "snmptrap/"])]
    topics: Vec<String>,

    /// Exit after printing this many lines
    #[arg(long, value_name = "LINES")]
    count: Option<u64>,

    /// Begin with records captured in the last DURATION, such as 30s, as far as the captures still
    /// hold them, and go on live. In order per source only
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    since: Option<Duration>,

    /// Print what records say: a line per flow, trap or syslog message
    #[arg(long)]
    decode: bool,

    /// With --decode: text, or json, one object per line [default: text on a terminal]
    #[arg(long, value_name = "STYLE", requires = "decode")]
    output: Option<Style>,
}

impl Tool for Tap {
    const ABOUT: About = About {
        service: "tap",
        binary: "sekiwake-tap",
        summary: "Prints live records, events, status and flow templates as JSON lines",
        admin_port: 0,
    };

    type Arguments = Arguments;
    type Settings = Settings;

    fn read(reader: &mut Reader) -> Settings {
        Settings {
            subscribing: Subscribing::read(reader),
            controlling: Controlling::read(reader),
            mib_dir: reader.optional("SEKIWAKE_MIB_DIR"),
        }
    }

    fn run(arguments: Arguments, settings: Settings, stop: &Stop) -> anyhow::Result<ExitCode> {
        let Settings { subscribing, controlling, mib_dir } = settings;
        let bus = Bus::default();
        let metrics = Metrics::new("tap");
        let mut event_prefixes = filtered(&arguments.topics, selects_events);
        // A prefix that also selects records, such as the empty one, is narrowed to events, because
        // records have a connection of their own. Status has to be asked for by its whole name,
        // because services send it only while somebody subscribes.
        for prefix in event_prefixes.iter_mut().filter(|prefix| EVENT_PREFIX.starts_with(&***prefix)) {
            EVENT_PREFIX.clone_into(prefix);
        }
        event_prefixes.extend(filtered(&arguments.topics, selects_status));
        let record_prefixes = filtered(&arguments.topics, selects_records);
        let style = arguments.output.unwrap_or_else(|| Style::of(&io::stdout()));
        let decoding = match arguments.decode {
            true => Some(Decoding::new(style, mib_dir)?),
            false => None,
        };
        let mut sources = Sources { records: None, events: None, decoding };
        if !record_prefixes.is_empty() {
            let source = match arguments.since {
                None => bus.source(&subscribing, &record_prefixes, &metrics, None)?,
                Some(age) => bus.recent_source(&subscribing, &controlling, &record_prefixes, age, &metrics, None)?,
            };
            sources.records = Some(Records::new(source, controlling.to_string()));
        }
        if !event_prefixes.is_empty() {
            sources.events = Some(bus.event_source(&subscribing, &event_prefixes, &metrics)?);
        }
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut run = || -> anyhow::Result<ExitCode> {
            let mut left = arguments.count.unwrap_or(u64::MAX);
            // After the subscriptions: what follows the templates is not missed.
            if arguments.topics.iter().any(|topic| selects_templates(topic)) {
                let printed = templates::print(&bus, &controlling, &mut out, left, stop)?;
                left -= printed.lines;
                if !sources.has_any() {
                    return Ok(if printed.is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
            }
            if let Some(decoding) = &mut sources.decoding
                && record_prefixes.iter().any(|prefix| selects_flows(prefix))
            {
                templates::learn(&bus, &controlling, &mut decoding.decoder, stop)?;
            }
            print(&mut sources, &mut out, left, stop)?;
            Ok(ExitCode::SUCCESS)
        };
        match run() {
            // The reader of the lines has closed the pipe.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            result => result,
        }
    }
}

/// The settings of the tap.
pub struct Settings {
    subscribing: Subscribing,
    controlling: Controlling,
    mib_dir: Option<PathBuf>,
}

/// The subscriptions.
struct Sources {
    records: Option<Records>,
    events: Option<Box<dyn EventSource>>,
    /// Records are decoded.
    decoding: Option<Decoding>,
}

/// How records are decoded.
struct Decoding {
    decoder: Decoder,
    style: Style,
    mibs: Option<Mibs>,
}

/// The folder of MIB files.
struct Mibs {
    folder: MibFolder,
    /// SIGHUP was received since the last reading.
    is_hung_up: Arc<AtomicBool>,
}

impl Decoding {
    fn new(style: Style, mib_dir: Option<PathBuf>) -> anyhow::Result<Decoding> {
        let mut decoder = Decoder::new();
        let mibs = match mib_dir {
            None => None,
            Some(path) => {
                let is_hung_up = Arc::new(AtomicBool::new(false));
                signal_hook::flag::register(SIGHUP, Arc::clone(&is_hung_up))?;
                let folder = MibFolder::load(&path)
                    .with_context(|| format!("cannot read SEKIWAKE_MIB_DIR ({})", path.display()))?;
                decoder.set_mib(folder.mib());
                Some(Mibs { folder, is_hung_up })
            }
        };
        Ok(Decoding { decoder, style, mibs })
    }

    /// Reads the MIB files again if SIGHUP asked for it.
    fn reload(&mut self) {
        if let Some(Mibs { folder, is_hung_up }) = &mut self.mibs
            && is_hung_up.swap(false, Ordering::Relaxed)
        {
            folder.reload();
            self.decoder.set_mib(folder.mib());
        }
    }
}

impl Sources {
    fn has_any(&self) -> bool {
        self.records.is_some() || self.events.is_some()
    }

    /// Prints received records, at most one batch, and events. Waits briefly if there are none.
    /// Returns the number of printed lines.
    fn print(&mut self, out: &mut impl Write, most: u64) -> anyhow::Result<u64> {
        let mut printed = 0;
        if let Some(decoding) = &mut self.decoding {
            decoding.reload();
        }
        if let Some(records) = &mut self.records
            && let Some(delivery) = records.receive(FLUSH_AFTER)?
        {
            let kind = Some(delivery.topic.kind);
            let since_ns = if delivery.is_retransmitted { records.since_ns() } else { 0 };
            for record in delivery.batch.records().filter(|record| record.captured_at_ns >= since_ns) {
                if printed == most {
                    break;
                }
                printed += match &mut self.decoding {
                    Some(Decoding { decoder, style, .. }) => {
                        write_rows(out, *style, decoder, kind, &record, most - printed)?
                    }
                    None => {
                        write_line(out, kind, &record, Payload::Included)?;
                        1
                    }
                };
            }
        }
        let wait = if self.records.is_some() { Duration::ZERO } else { FLUSH_AFTER };
        while printed < most
            && let Some(event) = self.next_event(wait)?
        {
            writeln!(out, "{event}")?;
            printed += 1;
        }
        Ok(printed)
    }

    fn next_event(&mut self, wait: Duration) -> Result<Option<String>, BusError> {
        let Some(events) = &mut self.events else { return Ok(None) };
        Ok(events.receive(wait)?.map(|event| event.json))
    }
}

fn print(sources: &mut Sources, out: &mut impl Write, mut left: u64, stop: &Stop) -> anyhow::Result<()> {
    while left > 0 && !stop.stopping() {
        let printed = sources.print(out, left)?;
        left -= printed;
        if printed == 0 {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(())
}

fn filtered(prefixes: &[String], selects: fn(&str) -> bool) -> Vec<String> {
    prefixes.iter().filter(|prefix| selects(prefix)).cloned().collect()
}

/// Whether a prefix selects events of all publishers, or of those whose names begin with it.
fn selects_events(prefix: &str) -> bool {
    match prefix.strip_prefix(EVENT_PREFIX) {
        Some("") => true,
        Some(name) => Name::new(name.strip_suffix('/').unwrap_or(name)).is_ok(),
        None => EVENT_PREFIX.starts_with(prefix),
    }
}

/// Whether a prefix selects status of all services, or of those whose names begin with it.
fn selects_status(prefix: &str) -> bool {
    prefix.len() <= MAX_STATUS_FILTER && prefix.starts_with(STATUS_PREFIX)
}

fn selects_templates(prefix: &str) -> bool {
    prefix == templates::TOPIC
}

fn selects_records(prefix: &str) -> bool {
    Topic::all().any(|topic| topic.as_str().starts_with(prefix))
}

fn selects_flows(prefix: &str) -> bool {
    Topic::all().any(|topic| topic.kind == Kind::Xflow && topic.as_str().starts_with(prefix))
}

/// A prefix that selects topics. With any other prefix the tap would wait endlessly.
fn topic_prefix(text: &str) -> Result<String, String> {
    match selects_events(text) || selects_records(text) || selects_templates(text) || selects_status(text) {
        true => Ok(text.to_owned()),
        false => Err(
            "expected syslog/, xflow/ and snmptrap/ with a shard from 00 to 3f, anomaly/ with a publisher's name, any \
                 prefix of these, status/ with the beginning of a service's name, or templates/"
                .to_owned(),
        ),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
