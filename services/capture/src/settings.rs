//! The settings of a capture.

use std::{
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use sekiwake_bus::{Controlling, Publishing};
use sekiwake_record::{Kind, Name};
use sekiwake_runtime::host_name;
use sekiwake_settings::{ByteSize, List, Ports as PortList, Reader, Setting};

use crate::{
    bind_ports::MAX_PORTS,
    deduplicate::DeduplicateSettings,
    interface::{InterfaceSettings, default_route_interface},
    ports::Ports,
};

/// The longest interface name, bytes (`IFNAMSIZ` without the NUL).
const MAX_INTERFACE_NAME: usize = 15;

/// The kernel counts the age of ring blocks in milliseconds.
const SHORTEST_RETIRE: Duration = Duration::from_millis(1);

const LONGEST_RETIRE: Duration = Duration::from_secs(1);

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
    /// The settings of interfaces; tunnels, deduplication and filter apply to savefiles too.
    pub interface: InterfaceSettings,
    /// How long to wait for a subscriber before a savefile is published.
    pub wait: Duration,
    /// The ports and their kinds.
    pub ports: Arc<Ports>,
    /// Whether sockets on these ports keep ICMP port unreachable from the devices.
    pub bind_ports: bool,
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
        // The bus comes first, because the default tick depends on it.
        let bus = Publishing::read(reader);
        let tick = reader.within("SEKIWAKE_TICK", Duration::from_micros(100)..=Duration::from_secs(1));
        let ports = ports(reader);
        CaptureSettings {
            bind_ports: bind_ports(reader, &ports, file.is_some()),
            source: source(reader, file, interfaces),
            interface: InterfaceSettings {
                ring_bytes: reader.within("SEKIWAKE_CAPTURE_RING", ByteSize(1 << 20)..=ByteSize(2047 << 20)).0 as usize,
                retire: retire(reader, tick),
                threads: reader.within("SEKIWAKE_CAPTURE_THREADS", 1..=16),
                tunnels: reader.value("SEKIWAKE_CAPTURE_TUNNELS"),
                deduplicate: deduplicate(reader),
                filter: filter(reader),
            },
            wait: reader.within("SEKIWAKE_CAPTURE_WAIT", Duration::ZERO..=Duration::from_secs(24 * 3600)),
            ports: Arc::new(ports),
            publisher: reader.optional("SEKIWAKE_PUBLISHER").unwrap_or_else(host_name),
            tick,
            retain: reader.within("SEKIWAKE_RETAIN", ByteSize(4 << 20)..=ByteSize(1 << 40)),
            bus,
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

/// How old a block of the ring becomes: a tick, unless it is to be younger.
fn retire(reader: &mut Reader, tick: Duration) -> Duration {
    const NAME: &str = "SEKIWAKE_CAPTURE_RETIRE";
    let retire: Option<Duration> = reader.optional(NAME);
    let range = SHORTEST_RETIRE..=LONGEST_RETIRE;
    if let Some(wrong) = retire.filter(|retire| !range.contains(retire)) {
        reader.mistake(NAME, &wrong.show(), "a duration, from 1ms to 1s");
    }
    retire.map_or(tick, |retire| retire.min(tick)).max(SHORTEST_RETIRE)
}

/// How copies are recognised, with a seed that nobody knows.
fn deduplicate(reader: &mut Reader) -> Option<DeduplicateSettings> {
    const NAME: &str = "SEKIWAKE_CAPTURE_DEDUPLICATE";
    const RANGE: RangeInclusive<Duration> = Duration::from_micros(1)..=Duration::from_millis(100);
    let window: Duration = reader.optional(NAME)?;
    if !RANGE.contains(&window) {
        reader.mistake(NAME, &window.show(), "a duration, from 1us to 100ms");
    }
    Some(DeduplicateSettings { window, seed: RandomState::new().hash_one(NAME) })
}

/// Whether to bind the ports: not for a savefile, and not so many that descriptors run out.
fn bind_ports(reader: &mut Reader, ports: &Ports, is_file: bool) -> bool {
    const NAME: &str = "SEKIWAKE_CAPTURE_BIND_PORTS";
    let is_set: bool = reader.value(NAME);
    if is_set && is_file {
        reader.mistake(NAME, "true", "it to be unset when SEKIWAKE_CAPTURE_FILE is set");
    }
    let mut distinct: Vec<u16> = ports.iter().collect();
    distinct.sort_unstable();
    distinct.dedup();
    if is_set && distinct.len() > MAX_PORTS {
        let takes = format!("at most {MAX_PORTS} ports to bind, not {}: each takes two descriptors", distinct.len());
        reader.mistake(NAME, "true", &takes);
    }
    is_set
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

#[cfg(test)]
mod tests {
    use sekiwake_settings::{Environment, read};

    use super::*;

    fn retire_of(variables: &[(&str, &str)]) -> Result<Duration, String> {
        let read = read(&Environment::from_pairs(variables.iter().copied()), CaptureSettings::read);
        read.map(|settings| settings.interface.retire).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn ports_are_bound_of_interfaces_and_up_to_256() {
        let bind = ("SEKIWAKE_CAPTURE_BIND_PORTS", "true");
        let read = |more: (&str, &str)| {
            let pairs = [("SEKIWAKE_CAPTURE_INTERFACES", "lo"), bind, more];
            let pairs = pairs.into_iter().filter(|(name, _)| !(more.0.ends_with("FILE") && name.ends_with("FACES")));
            let read = read(&Environment::from_pairs(pairs), CaptureSettings::read);
            read.map(|settings| settings.bind_ports).map_err(|mistakes| mistakes.to_string())
        };
        // With those of the other kinds.
        let ports = |count: u16| (10_001..10_001 + count).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        assert_eq!(read(("SEKIWAKE_SYSLOG_PORTS", &ports(250))), Ok(true));
        let mistake = read(("SEKIWAKE_SYSLOG_PORTS", &ports(251))).unwrap_err();
        assert!(mistake.contains(bind.0) && mistake.contains("at most 256 ports to bind, not 257"), "{mistake}");
        let mistake = read(("SEKIWAKE_CAPTURE_FILE", "traffic.pcap")).unwrap_err();
        assert!(mistake.contains(bind.0) && mistake.contains("SEKIWAKE_CAPTURE_FILE is set"), "{mistake}");
    }

    #[test]
    fn copies_are_at_most_100_milliseconds_apart() {
        let name = "SEKIWAKE_CAPTURE_DEDUPLICATE";
        let read = |pairs: &[(&str, &str)]| {
            let pairs = [("SEKIWAKE_CAPTURE_INTERFACES", "lo")].iter().chain(pairs).copied();
            let read = read(&Environment::from_pairs(pairs), CaptureSettings::read);
            let window = |settings: CaptureSettings| settings.interface.deduplicate.map(|settings| settings.window);
            read.map(window).map_err(|mistakes| mistakes.to_string())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(name, "100ms")]), Ok(Some(Duration::from_millis(100))));
        for wrong in ["0s", "101ms", "5s"] {
            let mistake = read(&[(name, wrong)]).unwrap_err();
            assert!(mistake.contains(name) && mistake.contains("from 1us to 100ms"), "{mistake}");
        }
    }

    #[test]
    fn ring_blocks_are_at_most_a_tick_old() {
        let (tick, retire) = ("SEKIWAKE_TICK", "SEKIWAKE_CAPTURE_RETIRE");
        assert_eq!(retire_of(&[]), Ok(Duration::from_millis(6)));
        assert_eq!(retire_of(&[(tick, "20ms")]), Ok(Duration::from_millis(20)));
        assert_eq!(retire_of(&[(tick, "100us")]), Ok(Duration::from_millis(1)));
        assert_eq!(retire_of(&[(retire, "3ms")]), Ok(Duration::from_millis(3)));
        assert_eq!(retire_of(&[(retire, "1s")]), Ok(Duration::from_millis(6)));
        for wrong in ["0ms", "2s"] {
            let mistake = retire_of(&[(retire, wrong)]).unwrap_err();
            assert!(mistake.contains(retire) && mistake.contains("from 1ms to 1s"), "{mistake}");
        }
    }
}
