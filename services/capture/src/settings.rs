//! The settings of a capture.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use sekiwake_bus::{Controlling, Publishing};
use sekiwake_record::{Kind, Name};
use sekiwake_runtime::host_name;
use sekiwake_settings::{ByteSize, List, Ports as PortList, Reader};

use crate::{
    interface::{InterfaceSettings, default_route_interface},
    ports::Ports,
};

/// The longest interface name, bytes (`IFNAMSIZ` without the NUL).
const MAX_INTERFACE_NAME: usize = 15;

/// The kernel counts the age of ring blocks in milliseconds.
const SHORTEST_RETIRE: Duration = Duration::from_millis(1);

/// The names that are accepted, for messages.
const INTERFACE_NAMES: &str = "such as eth1 or bond0.20, without quotes, wildcards or white space";

/// The source of the packets.
#[derive(Clone, Debug)]
pub enum Source {
    /// These interfaces, until the service stops.
    Interfaces(Vec<String>),
    /// This savefile, once.
    File(PathBuf),
}

/// The settings of a capture.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// The source of the packets.
    pub source: Source,
    /// The settings of interfaces; tunnels and filter apply to savefiles too.
    pub interface: InterfaceSettings,
    /// How long to wait for a subscriber before a savefile is published.
    pub wait: Duration,
    /// The ports and their kinds.
    pub ports: Arc<Ports>,
    /// The stream's name: as set, or the host name.
    pub publisher: Name,
    /// The longest time that an open batch waits to be published.
    pub tick: Duration,
    /// Memory for retained batches and those waiting for the bus.
    pub retain: ByteSize,
    /// The connection to the bus.
    pub bus: Publishing,
    /// The connection to the control plane.
    pub controlling: Controlling,
}

impl CaptureSettings {
    /// Reads and checks the settings; the reader collects mistakes.
    pub fn read(reader: &mut Reader) -> CaptureSettings {
        let file: Option<PathBuf> = reader.optional("SEKIWAKE_CAPTURE_FILE");
        let interfaces: Option<List<String>> = reader.optional("SEKIWAKE_CAPTURE_INTERFACES");
        let tick = reader.within("SEKIWAKE_TICK", Duration::from_micros(100)..=Duration::from_secs(1));
        let retire = reader.within("SEKIWAKE_CAPTURE_RETIRE", SHORTEST_RETIRE..=Duration::from_secs(1));
        CaptureSettings {
            source: source(reader, file, interfaces),
            interface: InterfaceSettings {
                ring_bytes: reader.within("SEKIWAKE_CAPTURE_RING", ByteSize(1 << 20)..=ByteSize(2047 << 20)).0 as usize,
                retire: retire.min(tick.max(SHORTEST_RETIRE)),
                threads: reader.within("SEKIWAKE_CAPTURE_THREADS", 1..=16),
                tunnels: reader.value("SEKIWAKE_CAPTURE_TUNNELS"),
                filter: filter(reader),
            },
            wait: reader.within("SEKIWAKE_CAPTURE_WAIT", Duration::ZERO..=Duration::from_secs(24 * 3600)),
            ports: Arc::new(ports(reader)),
            publisher: reader.optional("SEKIWAKE_PUBLISHER").unwrap_or_else(host_name),
            tick,
            retain: reader.within("SEKIWAKE_RETAIN", ByteSize(4 << 20)..=ByteSize(1 << 40)),
            bus: Publishing::read(reader),
            controlling: Controlling::read(reader),
        }
    }
}

fn source(reader: &mut Reader, file: Option<PathBuf>, interfaces: Option<List<String>>) -> Source {
    match (file, interfaces) {
        (Some(file), Some(_)) => {
            let takes = "it to be unset when SEKIWAKE_CAPTURE_INTERFACES is set";
            reader.mistake("SEKIWAKE_CAPTURE_FILE", &file.to_string_lossy(), takes);
            Source::File(file)
        }
        (Some(file), None) => Source::File(file),
        (None, Some(List(names))) => {
            for wrong in names.iter().filter(|name| !is_interface_name(name)) {
                reader.mistake("SEKIWAKE_CAPTURE_INTERFACES", wrong, &format!("interface names, {INTERFACE_NAMES}"));
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
                let takes = "interface names, such as eth1,eth2 (no default route to take one from)";
                reader.mistake("SEKIWAKE_CAPTURE_INTERFACES", "", takes);
                Source::Interfaces(Vec::new())
            }
        },
    }
}

/// Whether this may be the name of an interface. Linux allows more characters, but in practice
/// quotes, wildcards, white space and references to variables come from a file that no shell has
/// interpreted.
fn is_interface_name(name: &str) -> bool {
    let fits = |character: char| character.is_alphanumeric() || "-_.+@#=%~".contains(character);
    (1..=MAX_INTERFACE_NAME).contains(&name.len()) && !name.starts_with('.') && name.chars().all(fits)
}

/// Reads an interface's name on the command line.
pub fn interface_name(text: &str) -> Result<String, String> {
    let name = is_interface_name(text).then(|| text.to_owned());
    name.ok_or_else(|| format!("expected an interface name, {INTERFACE_NAMES}"))
}

/// The user's filter, compiled for Ethernet: that finds most mistakes before an interface is open.
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

/// These interfaces, or if the list is empty the interface of the default route.
///
/// # Errors
/// There is no default route.
pub fn interfaces_or_default(interfaces: Vec<String>) -> anyhow::Result<Vec<String>> {
    if !interfaces.is_empty() {
        return Ok(interfaces);
    }
    let default = default_route_interface().context("no default route found, name an interface")?;
    Ok(vec![default])
}

/// Reads the ports of the three kinds, the only settings of the subcommands.
pub fn ports(reader: &mut Reader) -> Ports {
    let mut list = |name| reader.value::<PortList>(name).iter().copied().collect::<Vec<u16>>();
    let syslog = list(variable(Kind::Syslog));
    let xflow = list(variable(Kind::Xflow));
    let trap = list(variable(Kind::SnmpTrap));
    Ports::new(syslog, xflow, trap).unwrap_or_else(|conflict| {
        let takes = format!("ports that are not in {}", variable(conflict.first));
        reader.mistake(variable(conflict.second), &conflict.port.to_string(), &takes);
        Ports::default()
    })
}

/// The variable with the ports of a kind.
fn variable(kind: Kind) -> &'static str {
    match kind {
        Kind::Syslog => "SEKIWAKE_SYSLOG_PORTS",
        Kind::Xflow => "SEKIWAKE_XFLOW_PORTS",
        Kind::SnmpTrap => "SEKIWAKE_TRAP_PORTS",
    }
}
