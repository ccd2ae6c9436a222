//! The settings of a capture, resolved.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use sekiwake_bus::{Controlling, Publishing};
use sekiwake_record::Name;
use sekiwake_runtime::host_name;
use sekiwake_settings::{ByteSize, List, Ports as PortList, Reader};

use crate::{
    interface::{InterfaceSettings, default_route_interface},
    ports::Ports,
};

/// The longest name that an interface can have (`IFNAMSIZ` less the NUL).
const MAX_INTERFACE_NAME: usize = 15;

/// Where packets come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// These interfaces, until told to stop.
    Interfaces(Vec<String>),
    /// This savefile, once.
    File(PathBuf),
}

/// Everything that a capture is told.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// Where packets come from.
    pub source: Source,
    /// How interfaces are opened.
    pub interface: InterfaceSettings,
    /// How long a savefile waits for a subscriber.
    pub wait: Duration,
    /// Which ports are of which kind.
    pub ports: Arc<Ports>,
    /// The stream's name.
    pub publisher: Name,
    /// All open batches leave this often.
    pub tick: Duration,
    /// Memory for batches that the bus does not take at once.
    pub retain: ByteSize,
    /// Where to publish.
    pub bus: Publishing,
    /// The control plane.
    pub controlling: Controlling,
}

impl CaptureSettings {
    /// Reads and checks them; mistakes are collected in the reader.
    pub fn read(reader: &mut Reader) -> CaptureSettings {
        let file: Option<PathBuf> = reader.optional("SEKIWAKE_CAPTURE_FILE");
        let interfaces: Option<List<String>> = reader.optional("SEKIWAKE_CAPTURE_INTERFACES");
        CaptureSettings {
            source: source(reader, file, interfaces),
            interface: InterfaceSettings {
                ring_bytes: reader.within("SEKIWAKE_CAPTURE_RING", ByteSize(1 << 20)..=ByteSize(2047 << 20)).0 as usize,
                retire: reader.within("SEKIWAKE_CAPTURE_RETIRE", Duration::from_millis(1)..=Duration::from_secs(1)),
                threads: reader.within("SEKIWAKE_CAPTURE_THREADS", 1..=16),
                tunnels: reader.value("SEKIWAKE_CAPTURE_TUNNELS"),
                filter: filter(reader),
            },
            wait: reader.within("SEKIWAKE_CAPTURE_WAIT", Duration::ZERO..=Duration::from_secs(24 * 3600)),
            ports: Arc::new(ports(reader)),
            publisher: publisher(reader),
            tick: reader.within("SEKIWAKE_TICK", Duration::from_micros(100)..=Duration::from_secs(1)),
            retain: reader.within("SEKIWAKE_RETAIN", ByteSize(4 << 20)..=ByteSize(1 << 40)),
            bus: Publishing::read(reader),
            controlling: Controlling::read(reader),
        }
    }
}

fn source(reader: &mut Reader, file: Option<PathBuf>, interfaces: Option<List<String>>) -> Source {
    match (file, interfaces) {
        (Some(file), Some(_)) => {
            let takes = "to be unset when SEKIWAKE_CAPTURE_INTERFACES is set";
            reader.mistake("SEKIWAKE_CAPTURE_FILE", &file.to_string_lossy(), takes);
            Source::File(file)
        }
        (Some(file), None) => Source::File(file),
        (None, Some(List(names))) => {
            let fits =
                |name: &String| name.len() <= MAX_INTERFACE_NAME && !name.contains('/') && !name.starts_with('.');
            if let Some(wrong) = names.iter().find(|name| !fits(name)) {
                reader.mistake("SEKIWAKE_CAPTURE_INTERFACES", wrong, "names of interfaces, such as eth1,eth2");
            }
            let mut distinct = names.clone();
            distinct.sort();
            if distinct.windows(2).any(|pair| pair[0] == pair[1]) {
                reader.mistake("SEKIWAKE_CAPTURE_INTERFACES", &names.join(","), "each interface once");
            }
            Source::Interfaces(names)
        }
        (None, None) => match default_route_interface() {
            Some(name) => Source::Interfaces(vec![name]),
            None => {
                let takes = "names of interfaces, such as eth1,eth2 (there is no default route to take one from)";
                reader.mistake("SEKIWAKE_CAPTURE_INTERFACES", "", takes);
                Source::Interfaces(Vec::new())
            }
        },
    }
}

/// The user's filter, tried on an Ethernet link: most mistakes show there.
fn filter(reader: &mut Reader) -> Option<String> {
    let filter: Option<String> = reader.optional("SEKIWAKE_CAPTURE_FILTER");
    if let Some(expression) = &filter
        && let Err(error) =
            pcap::Capture::dead(pcap::Linktype::ETHERNET).and_then(|handle| handle.compile(expression, true).map(drop))
    {
        let takes = format!("a filter in the language of pcap-filter(7) ({error})");
        reader.mistake("SEKIWAKE_CAPTURE_FILTER", expression, &takes);
    }
    filter
}

/// These interfaces, or where there are none the one of the default route.
///
/// # Errors
/// There is no default route.
pub fn interfaces_or_default(interfaces: Vec<String>) -> anyhow::Result<Vec<String>> {
    if !interfaces.is_empty() {
        return Ok(interfaces);
    }
    let default = default_route_interface().context("there is no default route: name an interface")?;
    Ok(vec![default])
}

/// The ports of the three kinds. Also for the subcommands, which read nothing else.
pub fn ports(reader: &mut Reader) -> Ports {
    let mut list = |name| reader.value::<PortList>(name).iter().copied().collect::<Vec<u16>>();
    let (syslog, xflow, trap) =
        (list("SEKIWAKE_SYSLOG_PORTS"), list("SEKIWAKE_XFLOW_PORTS"), list("SEKIWAKE_TRAP_PORTS"));
    Ports::new(syslog, xflow, trap).unwrap_or_else(|conflict| {
        let variable = match conflict.second {
            sekiwake_record::Kind::Syslog => "SEKIWAKE_SYSLOG_PORTS",
            sekiwake_record::Kind::Xflow => "SEKIWAKE_XFLOW_PORTS",
            sekiwake_record::Kind::SnmpTrap => "SEKIWAKE_TRAP_PORTS",
        };
        let takes = format!("ports of this kind alone: {} is set for {} too", conflict.port, conflict.first);
        reader.mistake(variable, &conflict.port.to_string(), &takes);
        Ports::default()
    })
}

/// The stream's name: as set, or the host's, with what a name may not hold made into hyphens.
fn publisher(reader: &mut Reader) -> Name {
    if let Some(text) = reader.optional::<String>("SEKIWAKE_PUBLISHER") {
        return Name::new(&text).unwrap_or_else(|_| {
            let takes = "1 to 63 letters, digits, dots, hyphens or underscores";
            reader.mistake("SEKIWAKE_PUBLISHER", &text, takes);
            host_name()
        });
    }
    host_name()
}
