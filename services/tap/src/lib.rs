//! Prints live records as JSON lines. The model for subscribers of one's own: it takes part in no group, and whatever it
//! does or fails to do, nobody else notices.

use std::{
    io::{self, BufWriter, ErrorKind, Write},
    process::ExitCode,
    time::Duration,
};

use sekiwake_bus::{Bus, Subscriber, Subscribing};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::Topic;
use sekiwake_runtime::{About, Metrics, Stop, Tool};
use sekiwake_settings::Reader;

/// How long a line may wait in the buffer when nothing follows it.
const PATIENCE: Duration = Duration::from_millis(50);

/// The tap.
pub struct Tap;

/// What to print.
#[derive(clap::Args)]
pub struct Arguments {
    /// Topics to listen to, as prefixes: syslog/ xflow/ snmptrap/, or one shard as in xflow/0a
    #[arg(value_parser = topic_prefix, default_values = ["syslog/", "xflow/", "snmptrap/"])]
    topics: Vec<String>,

    /// End after so many records
    #[arg(long, value_name = "RECORDS")]
    count: Option<u64>,
}

impl Tool for Tap {
    const ABOUT: About =
        About { service: "tap", binary: "sekiwake-tap", summary: "Prints live records as JSON lines", admin_port: 0 };

    type Arguments = Arguments;
    type Settings = Subscribing;

    fn read(reader: &mut Reader) -> Subscribing {
        Subscribing::read(reader)
    }

    fn run(arguments: Arguments, settings: Subscribing, stop: &Stop) -> anyhow::Result<ExitCode> {
        let (bus, metrics) = (Bus::default(), Metrics::new("tap"));
        let mut subscriber = Subscriber::connect(&bus, &settings, &arguments.topics, &metrics, None)?;
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        match print(&mut subscriber, &mut out, arguments.count.unwrap_or(u64::MAX), stop) {
            // Whoever read the lines has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            result => result.map(|()| ExitCode::SUCCESS),
        }
    }
}

fn print(subscriber: &mut Subscriber, out: &mut impl Write, mut left: u64, stop: &Stop) -> anyhow::Result<()> {
    while left > 0 && !stop.stopping() {
        let Some(delivery) = subscriber.receive(PATIENCE)? else {
            out.flush()?;
            continue;
        };
        for record in delivery.batch.records().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            write_line(out, Some(delivery.topic.kind), &record, Payload::Included)?;
            left -= 1;
        }
    }
    out.flush()?;
    Ok(())
}

/// A prefix that selects topics: with another one the tap would wait for ever.
fn topic_prefix(text: &str) -> Result<String, String> {
    match Topic::all().any(|topic| topic.as_str().starts_with(text)) {
        true => Ok(text.to_owned()),
        false => {
            Err("topics are syslog/, xflow/ and snmptrap/ with a shard from 00 to 3f, or any prefix of these"
                .to_owned())
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
