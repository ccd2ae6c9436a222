//! The tool around the library: command line in, last line out.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::Context;
use clap::error::ErrorKind;
use sekiwake_bus::Controlling;
use sekiwake_runtime::{About, Stop, Tool, print_message};
use sekiwake_settings::Reader;

use crate::{
    cli::Arguments,
    plan::Plan,
    register::{Registration, register},
    send::Sender,
    summary::Summary,
};

/// `sekiwake-sender`.
pub struct SenderTool;

impl Tool for SenderTool {
    const ABOUT: About = About {
        service: "sender",
        binary: "sekiwake-sender",
        summary: "Sends test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps, paced and numbered",
        admin_port: 0,
    };

    type Arguments = Arguments;
    type Settings = Controlling;

    fn read(reader: &mut Reader) -> Controlling {
        Controlling::read(reader)
    }

    fn run(arguments: Arguments, controlling: Controlling, stop: &Stop) -> anyhow::Result<ExitCode> {
        let plan = match Plan::new(&arguments) {
            Ok(plan) => plan,
            Err(mistake) => {
                let error = clap::Error::raw(ErrorKind::ValueValidation, mistake);
                print_message(error.render().to_string().trim_end());
                return Ok(ExitCode::from(2));
            }
        };
        let destinations = plan.destinations.clone();
        let mut sender = Sender::open(&arguments, plan)?;
        let registration =
            if arguments.register { register(&controlling, &destinations, stop)? } else { Registration::none() };
        let on_terminal = stderr().is_terminal();
        let mut progress = |summary: &Summary| {
            if on_terminal {
                let sent = summary.total().datagrams;
                let _ = write!(stderr(), "\r\x1b[K{sent} sent, {:.0} per second", summary.rate());
            }
        };
        let outcome = registration.keep(|| sender.run(stop, &mut progress))?;
        if on_terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
        let summary = sender.summary();
        let line = if arguments.json { summary.to_json().to_string() } else { summary.to_string() };
        writeln!(stdout(), "{line}").context("cannot write to standard output")?;
        outcome?;
        Ok(ExitCode::SUCCESS)
    }
}
