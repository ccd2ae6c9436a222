//! Prints live records, and events, as JSON lines. The model for subscribers of one's own: it takes part in no group, and whatever it
//! does or fails to do, nobody else notices.

use std::{
    io::{self, BufWriter, ErrorKind, Write},
    process::ExitCode,
    time::Duration,
};

use sekiwake_bus::{Bus, BusError, EVENT_PREFIX, EventSubscriber, Subscriber, Subscribing};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::{Name, Topic};
use sekiwake_runtime::{About, Metrics, Stop, Tool};
use sekiwake_settings::Reader;

/// How long a line may wait in the buffer when nothing follows it.
const PATIENCE: Duration = Duration::from_millis(50);

/// The tap.
pub struct Tap;

/// What to print.
#[derive(clap::Args)]
pub struct Arguments {
    /// Topics to listen to, as prefixes: syslog/ xflow/ snmptrap/, one shard as in xflow/0a, or anomaly/ for events
    #[arg(value_parser = topic_prefix, default_values = ["syslog/", "xflow/", "snmptrap/"])]
    topics: Vec<String>,

    /// End after so many records and events
    #[arg(long, value_name = "RECORDS")]
    count: Option<u64>,
}

impl Tool for Tap {
    const ABOUT: About = About {
        service: "tap",
        binary: "sekiwake-tap",
        summary: "Prints live records, or events, as JSON lines",
        admin_port: 0,
    };

    type Arguments = Arguments;
    type Settings = Subscribing;

    fn read(reader: &mut Reader) -> Subscribing {
        Subscribing::read(reader)
    }

    fn run(arguments: Arguments, settings: Subscribing, stop: &Stop) -> anyhow::Result<ExitCode> {
        let (bus, metrics) = (Bus::default(), Metrics::new("tap"));
        let mut of_events = filtered(&arguments.topics, selects_events);
        // Whoever asks for everything is not sent the records on this connection too.
        for prefix in of_events.iter_mut().filter(|prefix| EVENT_PREFIX.starts_with(&***prefix)) {
            EVENT_PREFIX.clone_into(prefix);
        }
        let of_records = filtered(&arguments.topics, selects_records);
        let mut sources = Sources { records: None, events: None };
        if !of_records.is_empty() {
            sources.records = Some(Subscriber::connect(&bus, &settings, &of_records, &metrics, None)?);
        }
        if !of_events.is_empty() {
            sources.events = Some(EventSubscriber::connect(&bus, &settings, &of_events, &metrics)?);
        }
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        match print(&mut sources, &mut out, arguments.count.unwrap_or(u64::MAX), stop) {
            // Whoever read the lines has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            result => result.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Where lines come from.
struct Sources {
    records: Option<Subscriber>,
    events: Option<EventSubscriber>,
}

impl Sources {
    /// Prints what has come, of records a batch at most. Says how many lines that were; waits a moment when there is nothing.
    fn print(&mut self, out: &mut impl Write, most: u64) -> anyhow::Result<u64> {
        let mut printed = 0;
        if let Some(records) = &mut self.records
            && let Some(delivery) = records.receive(PATIENCE)?
        {
            for record in delivery.batch.records().take(usize::try_from(most).unwrap_or(usize::MAX)) {
                write_line(out, Some(delivery.topic.kind), &record, Payload::Included)?;
                printed += 1;
            }
        }
        let patience = if self.records.is_some() { Duration::ZERO } else { PATIENCE };
        while printed < most
            && let Some(event) = self.next_event(patience)?
        {
            writeln!(out, "{event}")?;
            printed += 1;
        }
        Ok(printed)
    }

    fn next_event(&mut self, patience: Duration) -> Result<Option<String>, BusError> {
        let Some(events) = &mut self.events else { return Ok(None) };
        Ok(events.receive(patience)?.map(|event| event.json))
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

/// Whether a prefix selects events, of all publishers or of those whose names may begin like this.
fn selects_events(prefix: &str) -> bool {
    match prefix.strip_prefix(EVENT_PREFIX) {
        Some("") => true,
        Some(name) => Name::new(name.strip_suffix('/').unwrap_or(name)).is_ok(),
        None => EVENT_PREFIX.starts_with(prefix),
    }
}

fn selects_records(prefix: &str) -> bool {
    Topic::all().any(|topic| topic.as_str().starts_with(prefix))
}

/// A prefix that selects topics: with another one the tap would wait for ever.
fn topic_prefix(text: &str) -> Result<String, String> {
    match selects_events(text) || selects_records(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("topics are syslog/, xflow/ and snmptrap/ with a shard from 00 to 3f, anomaly/ with a publisher's name, or any \
                 prefix of these"
                .to_owned())
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
