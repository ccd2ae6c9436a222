//! Hosts around a router: three servers, a capture and the members of groups, each behind a link of
//! its own that can be cut.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{
    netns::{End, Link, Namespace},
    process::Process,
};
use sekiwake_traffic::sink::{Options, Sink};
use tempfile::TempDir;

use crate::{Service, binary, nats::NatsServer};

/// Servers in the cluster.
pub(super) const SERVERS: usize = 3;
/// Hosts of members. The last one is for members that join.
pub(super) const MEMBERS: usize = 3;
/// Where servers answer questions about their health, in their own namespace.
pub(super) const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8222);
/// The forwarders of a member's host.
pub(super) const FORWARDERS: [&str; 3] =
    ["sekiwake-syslog-forwarder", "sekiwake-xflow-forwarder", "sekiwake-trap-forwarder"];

const COLLECTOR_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
const PORTS: [u16; 3] = [514, 2055, 162];
/// The address that devices send to; its link-layer address is unused, as behind a mirror port.
const MIRRORED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const UNUSED_MAC: &str = "02:00:5e:00:53:99";
/// A protocol per kind. Their datagrams are numbered one by one, and none of them is sent again by
/// a forwarder, as templates are.
const LOAD: &str = "--protocol rfc5424,sflow,snmp2c-trap --size 200 --sources 64 --from 198.19.0.0/16 --json";
/// The size of a disk that is to become full, MiB.
const DISK_MIB: u64 = 512;

/// A host behind a link of its own.
pub(super) struct Party {
    pub(super) namespace: Namespace,
    /// The link's name, at both ends.
    interface: String,
    /// Its address.
    pub(super) address: Ipv4Addr,
}

impl Party {
    fn new(label: &str, number: u8, router: &Namespace) -> anyhow::Result<Party> {
        let namespace = Namespace::new(label)?;
        let address = |last: u8| Ipv4Addr::new(203, 0, 113, 4 * number + last);
        let interface = format!("bus{number}");
        Link::new(
            End::new(&namespace, &interface).address(&format!("{}/30", address(2))),
            End::new(router, &interface).address(&format!("{}/30", address(1))),
        )
        .segmentation_offload(true)
        .checksum_offload(true)
        .create()?;
        namespace.ip(&format!("route add default via {}", address(1)))?;
        Ok(Party { namespace, interface, address: address(2) })
    }
}

/// A small disk of its own for a server's store. Dropping it unmounts it.
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    fn new(path: &Path) -> anyhow::Result<Disk> {
        fs::create_dir_all(path)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "tmpfs"]).arg(path);
        ensure!(command.status()?.success(), "cannot mount {}", path.display());
        Ok(Disk { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Leaves no room.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.ballast())?;
        let zeros = vec![0; 1 << 20];
        loop {
            match file.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("cannot fill {}", self.path.display())),
            }
        }
    }

    /// Makes room again.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server may not have closed its files yet.
        let unmounted = Command::new("umount").arg("-l").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.path.display());
        }
    }
}

/// A server, its disk, and the folder of its configuration.
pub(super) struct StoredServer<'a> {
    pub(super) server: NatsServer<'a>,
    pub(super) disk: Option<Disk>,
    _folder: TempDir,
}

/// Namespaces and links. Dropping it removes them.
pub struct ServersSite {
    devices: Namespace,
    router: Namespace,
    pub(super) servers: Vec<Party>,
    pub(super) capture: Party,
    pub(super) members: Vec<Party>,
    collector: Namespace,
}

impl ServersSite {
    /// Creates the namespaces and links.
    ///
    /// # Errors
    /// Without root, iproute2, ethtool or iptables.
    pub fn new() -> anyhow::Result<ServersSite> {
        let devices = Namespace::new("skw-dev")?;
        let router = Namespace::new("skw-router")?;
        let collector = Namespace::new("skw-coll")?;
        router.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        collector.ip(&format!("address add {COLLECTOR_ADDRESS}/32 dev lo"))?;
        let mut numbers = 0..;
        let mut party = |label: &str| Party::new(label, numbers.next().unwrap_or_default(), &router);
        let servers = (0..SERVERS).map(|_| party("skw-nats")).collect::<anyhow::Result<Vec<Party>>>()?;
        let capture = party("skw-cap")?;
        let members = (0..MEMBERS).map(|_| party("skw-mem")).collect::<anyhow::Result<Vec<Party>>>()?;
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
        for (number, member) in members.iter().enumerate() {
            let (here, there) = (100 + 4 * number + 2, 100 + 4 * number + 1);
            Link::new(
                End::new(&member.namespace, "out0").address(&format!("198.51.100.{here}/30")),
                End::new(&collector, &format!("in{number}")).address(&format!("198.51.100.{there}/30")),
            )
            .segmentation_offload(true)
            .checksum_offload(true)
            .create()?;
            member.namespace.ip(&format!("route add {COLLECTOR_ADDRESS}/32 via 198.51.100.{there}"))?;
        }
        Ok(ServersSite { devices, router, servers, capture, members, collector })
    }

    /// Starts a server on a folder of its own, or on a small disk.
    pub(super) fn start_server(&self, number: usize, on_small_disk: bool) -> anyhow::Result<StoredServer<'_>> {
        let Party { namespace, address, .. } = &self.servers[number];
        let folder = tempfile::tempdir()?;
        let store = folder.path().join("store");
        let disk = if on_small_disk { Some(Disk::new(&store)?) } else { None };
        let routes = self.servers.iter().map(|server| format!("\"nats-route://{}:6222\"", server.address));
        let configuration = format!(
            "server_name: n{number}\nlisten: \"{address}:4222\"\nhttp: \"{HEALTH}\"\n\
             jetstream {{ store_dir: \"{}\", max_file_store: 64GB, max_memory_store: 64MB }}\n\
             cluster {{ name: test, listen: \"{address}:6222\", routes: [{}] }}\n",
            store.display(),
            routes.collect::<Vec<_>>().join(", "),
        );
        let server = NatsServer::start(namespace, folder.path(), &configuration)?;
        Ok(StoredServer { server, disk, _folder: folder })
    }

    /// `SEKIWAKE_BUS`.
    fn bus(&self) -> String {
        self.servers.iter().map(|server| format!("nats://{}:4222", server.address)).collect::<Vec<_>>().join(",")
    }

    pub(super) fn start_capture(&self) -> anyhow::Result<Service<'_>> {
        let bus = self.bus();
        let environment = [
            ("SEKIWAKE_BUS", bus.as_str()),
            ("SEKIWAKE_CAPTURE_INTERFACES", "wire0"),
            ("SEKIWAKE_CAPTURE_RING", "64MiB"),
            ("SEKIWAKE_RETAIN", "2GiB"),
        ];
        Service::start(&self.capture.namespace, "sekiwake-capture", &environment)
    }

    /// Starts the forwarders of a host.
    pub(super) fn start_members(&self, host: usize) -> anyhow::Result<Vec<Service<'_>>> {
        let (bus, label) = (self.bus(), format!("m{host}"));
        let [syslog, xflow, trap] = PORTS.map(|port| format!("udp://{COLLECTOR_ADDRESS}:{port}"));
        let environment = [
            ("SEKIWAKE_BUS", bus.as_str()),
            ("SEKIWAKE_MEMBER", &label),
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
            ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
            ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
        ];
        let namespace = &self.members[host].namespace;
        FORWARDERS.iter().map(|name| Service::start(namespace, name, &environment)).collect()
    }

    /// Counts datagrams at the collector, and checks their numbers.
    pub(super) fn sink(&self) -> anyhow::Result<Sink> {
        let options = Options { receive_buffer_bytes: 512 << 20, ..Options::counts().numbered() };
        let addresses = PORTS.map(|port| SocketAddr::new(COLLECTOR_ADDRESS.into(), port));
        self.collector.enter(|| Sink::bind(&addresses, options))?
    }

    pub(super) fn start_load(&self, rate: u64) -> anyhow::Result<Process> {
        let mut command = self.devices.command(binary("sekiwake-sender"));
        command.args(["--to", &MIRRORED.to_string(), "--rate", &rate.to_string()]).args(LOAD.split(' '));
        Process::spawn(command)
    }

    /// Cuts (`-I`) or mends (`-D`) the link of a host, both directions in the same instant: nothing
    /// answers, and nothing is reset.
    pub(super) fn cut(&self, action: &str, party: &Party) -> anyhow::Result<()> {
        let name = &party.interface;
        let table =
            format!("*filter\n{action} FORWARD -i {name} -j DROP\n{action} FORWARD -o {name} -j DROP\nCOMMIT\n");
        let mut command = self.router.command("iptables-restore");
        command.args(["-w", "--noflush"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("iptables-restore")?;
        child.stdin.take().context("no standard input")?.write_all(table.as_bytes())?;
        let output = child.wait_with_output().context("iptables-restore")?;
        ensure!(output.status.success(), "iptables-restore: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
