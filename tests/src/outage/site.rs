//! A site whose parties each have a link of their own to the proxy, and outages of these links.
//!
//! ```text
//!  devices ─wire─ capture ──┐                      ┌── member 0 ──┐
//!                           ├── proxy (203.0.113.1)│              ├── collector (198.51.100.11)
//!                           └──────────────────────┴── member 1 ──┘
//! ```
//!
//! An outage drops TCP segments without an answer, as a failed switch or a firewall does, at the
//! proxy's end of the parties' links: packets of the control connection, of the data connection, or
//! of both.
//!
//! The proxy also has a second address (203.0.113.2), to which its name moves in
//! [`OutageSite::move_proxy`].

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{
    netns::{End, Link, Namespace},
    process::Process,
};
use sekiwake_traffic::sink::{Options, Sink};

use super::{Parties, Plane};
use crate::{Service, binary};

pub(super) const PROXY_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The proxy's address after a move.
pub(super) const MOVED_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The proxy's name, for clients that look it up.
pub(super) const PROXY_NAME: &str = "proxy.example";
const COLLECTOR_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
/// The address that devices send to; its link-layer address is unused, as behind a mirror port.
const MIRRORED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const UNUSED_MAC: &str = "02:00:5e:00:53:99";
const SOURCES: u64 = 64;
const MEMBERS: usize = 2;
pub(super) const LONG: Duration = Duration::from_secs(180);

/// A namespace's own `/etc/hosts`, in which the proxy's name has one address. Dropping it removes
/// the file.
pub(super) struct Hosts {
    directory: PathBuf,
}

impl Hosts {
    pub(super) fn new(namespace: &Namespace, address: Ipv4Addr) -> anyhow::Result<Hosts> {
        let directory = Path::new("/etc/netns").join(namespace.name());
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let hosts = Hosts { directory };
        hosts.set(address)?;
        Ok(hosts)
    }

    /// Writes the file in place: running processes have it mounted.
    pub(super) fn set(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        let path = self.directory.join("hosts");
        let text = format!("127.0.0.1 localhost\n{address} {PROXY_NAME}\n");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(super) struct Party {
    pub(super) namespace: Namespace,
    /// The name of the link to the proxy, at both ends.
    interface: String,
}

impl Party {
    /// A party with a link of its own to the proxy.
    fn new(label: &str, number: u8, proxy: &Namespace) -> anyhow::Result<Party> {
        let namespace = Namespace::new(label)?;
        let (here, there) = (8 + 4 * number + 2, 8 + 4 * number + 1);
        let interface = format!("bus{number}");
        Link::new(
            End::new(&namespace, &interface).address(&format!("203.0.113.{here}/30")),
            End::new(proxy, &interface).address(&format!("203.0.113.{there}/30")),
        )
        .create()?;
        for address in [PROXY_ADDRESS, MOVED_ADDRESS] {
            namespace.ip(&format!("route add {address}/32 via 203.0.113.{there}"))?;
        }
        Ok(Party { namespace, interface })
    }

    /// Drops everything to and from the proxy's first address.
    pub(super) fn swallow(&self) -> anyhow::Result<()> {
        for (chain, end) in [("OUTPUT", "-d"), ("INPUT", "-s")] {
            let mut command: Command = self.namespace.command("iptables");
            command.args(["-w", "-A", chain, end, &PROXY_ADDRESS.to_string(), "-j", "DROP"]);
            let output = command.output().context("iptables")?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "iptables in {}: {error}", self.interface);
        }
        Ok(())
    }
}

/// A program of the site, and its settings.
pub(super) struct Program<'a> {
    namespace: &'a Namespace,
    name: &'static str,
    environment: Vec<(&'static str, String)>,
}

impl<'a> Program<'a> {
    pub(super) fn start(&self) -> anyhow::Result<Service<'a>> {
        self.start_binary(&binary(self.name))
    }

    /// Starts another version's binary, from this directory.
    pub(super) fn start_from(&self, directory: &Path) -> anyhow::Result<Service<'a>> {
        self.start_binary(&directory.join(self.name))
    }

    fn start_binary(&self, path: &Path) -> anyhow::Result<Service<'a>> {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(variable, value)| (*variable, value.as_str())).collect();
        Service::start_binary(self.namespace, path, self.name, &environment)
    }
}

/// Namespaces and links. Dropping it removes them.
pub struct OutageSite {
    devices: Namespace,
    proxy: Namespace,
    capture: Party,
    members: Vec<Party>,
    collector: Namespace,
}

impl OutageSite {
    /// Creates the namespaces and links.
    ///
    /// # Errors
    /// Without root, iproute2, ethtool or iptables.
    pub fn new() -> anyhow::Result<OutageSite> {
        let devices = Namespace::new("skw-dev")?;
        let proxy = Namespace::new("skw-proxy")?;
        let collector = Namespace::new("skw-coll")?;
        for address in [PROXY_ADDRESS, MOVED_ADDRESS] {
            proxy.ip(&format!("address add {address}/32 dev lo"))?;
        }
        collector.ip(&format!("address add {COLLECTOR_ADDRESS}/32 dev lo"))?;
        let capture = Party::new("skw-cap", 0, &proxy)?;
        Link::new(
            End::new(&devices, "dev0").address("198.18.255.254/15").neighbour(IpAddr::V4(MIRRORED), UNUSED_MAC),
            End::new(&capture.namespace, "wire0").address("198.18.0.1/15"),
        )
        .create()?;
        // Neighbour discovery would be captured frames that no device sent.
        for (namespace, interface) in [(&devices, "dev0"), (&capture.namespace, "wire0")] {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            namespace.enter(|| fs::write(&path, "1"))??;
        }
        let mut members = Vec::new();
        for number in 0..MEMBERS as u8 {
            let member = Party::new("skw-mem", 1 + number, &proxy)?;
            let (here, there) = (100 + 4 * number + 2, 100 + 4 * number + 1);
            Link::new(
                End::new(&member.namespace, "out0").address(&format!("198.51.100.{here}/30")),
                End::new(&collector, &format!("in{number}")).address(&format!("198.51.100.{there}/30")),
            )
            .segmentation_offload(true)
            .checksum_offload(true)
            .create()?;
            member.namespace.ip(&format!("route add {COLLECTOR_ADDRESS}/32 via 198.51.100.{there}"))?;
            members.push(member);
        }
        Ok(OutageSite { devices, proxy, capture, members, collector })
    }

    pub(super) fn parties(&self, parties: Parties) -> Vec<&Party> {
        match parties {
            Parties::Member => vec![&self.members[0]],
            Parties::Capture => vec![&self.capture],
            Parties::All => self.members.iter().chain([&self.capture]).collect(),
        }
    }

    /// Begins (`-A`) or ends (`-D`) an outage, for all of these parties in the same instant.
    pub(super) fn filter(&self, action: &str, parties: Parties, plane: Plane) -> anyhow::Result<()> {
        let ports = match plane {
            Plane::Control => "5561",
            Plane::Data => "5559,5560",
            Plane::Both => "5559,5560,5561",
        };
        let mut table = "*filter\n".to_owned();
        for Party { interface, .. } in self.parties(parties) {
            for (chain, direction) in [("INPUT -i", "--dports"), ("OUTPUT -o", "--sports")] {
                table += &format!("{action} {chain} {interface} -p tcp -m multiport {direction} {ports} -j DROP\n");
            }
        }
        table += "COMMIT\n";
        let mut command: Command = self.proxy.command("iptables-restore");
        command.args(["-w", "--noflush"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("iptables-restore")?;
        child.stdin.take().context("no standard input")?.write_all(table.as_bytes())?;
        let output = child.wait_with_output().context("iptables-restore")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "iptables-restore: {error}");
        Ok(())
    }

    /// The proxy's program.
    pub(super) fn proxy_program(&self) -> Program<'_> {
        let environment = [
            ("SEKIWAKE_PROXY_PUBLISH", "tcp://*:5559"),
            ("SEKIWAKE_PROXY_SUBSCRIBE", "tcp://*:5560"),
            ("SEKIWAKE_PROXY_CONTROL", "tcp://*:5561"),
        ];
        let environment = environment.map(|(name, value)| (name, value.to_owned())).to_vec();
        Program { namespace: &self.proxy, name: "sekiwake-proxy", environment }
    }

    /// The capture's program. It finds the proxy at `host`.
    pub(super) fn capture_program(&self, host: &str, retain: &str) -> Program<'_> {
        let environment = vec![
            ("SEKIWAKE_BUS_CONTROL", format!("tcp://{host}:5561")),
            ("SEKIWAKE_BUS_PUBLISH", format!("tcp://{host}:5559")),
            ("SEKIWAKE_CAPTURE_INTERFACES", "wire0".to_owned()),
            ("SEKIWAKE_CAPTURE_RING", "64MiB".to_owned()),
            ("SEKIWAKE_RETAIN", retain.to_owned()),
        ];
        Program { namespace: &self.capture.namespace, name: "sekiwake-capture", environment }
    }

    /// The programs of the members. They find the proxy at `host`.
    pub(super) fn member_programs<'a>(&'a self, host: &str) -> Vec<Program<'a>> {
        let program = |(number, member): (usize, &'a Party)| Program {
            namespace: &member.namespace,
            name: "sekiwake-syslog-forwarder",
            environment: vec![
                ("SEKIWAKE_BUS_CONTROL", format!("tcp://{host}:5561")),
                ("SEKIWAKE_BUS_SUBSCRIBE", format!("tcp://{host}:5560")),
                ("SEKIWAKE_SYSLOG_DESTINATIONS", format!("udp://{COLLECTOR_ADDRESS}:514")),
                ("SEKIWAKE_MEMBER", format!("m{number}")),
            ],
        };
        self.members.iter().enumerate().map(program).collect()
    }

    /// Counts datagrams at the collector, and checks their numbers.
    pub(super) fn sink(&self) -> anyhow::Result<Sink> {
        let options = Options { receive_buffer_bytes: 512 << 20, ..Options::counts().numbered() };
        self.collector.enter(|| Sink::bind(&[SocketAddr::new(COLLECTOR_ADDRESS.into(), 514)], options))?
    }

    pub(super) fn start_load(&self, rate: u64) -> anyhow::Result<Process> {
        let mut command = self.devices.command(binary("sekiwake-sender"));
        command.args(["--to", &format!("{MIRRORED}:514"), "--from", "198.19.0.0/16", "--size", "200", "--json"]);
        command.args(["--sources", &SOURCES.to_string(), "--rate", &rate.to_string()]);
        Process::spawn(command)
    }
}
