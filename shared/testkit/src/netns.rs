//! Network namespaces with veth pairs between them, created with iproute2 and ethtool, and removed
//! when dropped.
//!
//! ```text
//!   ┌ namespace skw-send-4711-0 ┐          ┌ namespace skw-wire-4711-1 ┐
//!   │  devices ──── veth "out0" ├──────────┤ veth "in0" ──── capture   │
//!   └───────────────────────────┘          └───────────────────────────┘
//! ```

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{skip::met_or_skipped, wait::wait_for};

const NAMESPACE_DIRECTORY: &str = "/run/netns";
const LINK_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// Why network namespaces are not available.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Creating a namespace requires CAP_SYS_ADMIN.
    #[error("not root")]
    NotRoot,
    /// iproute2 or ethtool is missing.
    #[error("`{0}` is not installed")]
    Missing(&'static str),
    /// The kernel or the container does not permit it.
    #[error("cannot create network namespaces: {0}")]
    NotPermitted(String),
}

/// Whether this process can create network namespaces and veth pairs.
pub fn requires_root_and_netns() -> Result<(), Unavailable> {
    if !rustix::process::geteuid().is_root() {
        return Err(Unavailable::NotRoot);
    }
    for tool in ["ip", "ethtool"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return Err(Unavailable::Missing(tool));
        }
    }
    let attempt = || -> anyhow::Result<()> {
        let left = Namespace::new("skw-try")?;
        let right = Namespace::new("skw-try")?;
        Link::new(End::new(&left, "try0"), End::new(&right, "try1")).create()
    };
    attempt().map_err(|error| Unavailable::NotPermitted(format!("{error:#}")))
}

/// True when network namespaces are available. Otherwise reports that the running test is skipped,
/// or fails it when `TEST_SEKIWAKE_REQUIRE_NETNS` is `1`.
pub fn namespaces_or_skipped() -> bool {
    met_or_skipped(requires_root_and_netns())
}

/// Whether the kernel has VLAN interfaces ([`End::vlan`], [`End::qinq`]). [`Namespace::inject`]
/// puts tagged frames on a link without them.
pub fn vlan_interfaces_available() -> bool {
    let attempt = || -> anyhow::Result<()> {
        let namespace = Namespace::new("skw-try")?;
        namespace.ip("link add link lo name try0 type vlan id 7").map(drop)
    };
    attempt().is_ok()
}

/// Sends the frames on standard input, each after its length (4 bytes, big endian), from the
/// interface in the argument. In Python because it needs a packet socket, which no safe crate
/// offers.
const INJECTOR: &str = "
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((sys.argv[1], 0))
read = sys.stdin.buffer.read
while length := read(4):
    wire.send(read(int.from_bytes(length, 'big')))
";

/// A network namespace with its loopback interface up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace with a unique name that begins with `label` (such as `skw-send`).
    /// Removes the namespaces of earlier processes that were killed.
    pub fn new(label: &str) -> anyhow::Result<Namespace> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure!(label.starts_with("skw-"), "label {label:?}: expected a name that begins with skw-");
        remove_orphans();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{label}-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name };
        namespace.enter(|| -> anyhow::Result<()> {
            for interfaces in ["all", "default"] {
                // Link-local addresses are usable at once, and no router is solicited.
                for setting in ["accept_dad", "router_solicitations", "accept_ra"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{interfaces}/{setting}");
                    fs::write(&path, "0").with_context(|| format!("cannot write {path}"))?;
                }
            }
            Ok(())
        })??;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` inside the namespace, with the same process id.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `command` (program, arguments, environment, directory) as a command that runs inside the
    /// namespace.
    pub fn exec(&self, command: &Command) -> Command {
        let mut inside = self.command(command.get_program());
        inside.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        inside
    }

    /// Runs `ip` inside the namespace with arguments separated by white space. Returns its
    /// standard output.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Sends link-layer frames from `interface` unmodified: tagged, damaged, with any source.
    /// Requires python3.
    pub fn inject(&self, interface: &str, frames: &[impl AsRef<[u8]>]) -> anyhow::Result<()> {
        let mut input = Vec::new();
        for frame in frames.iter().map(AsRef::as_ref) {
            input.extend_from_slice(&u32::try_from(frame.len())?.to_be_bytes());
            input.extend_from_slice(frame);
        }
        let mut python = self.command("python3");
        run_with_input(python.args(["-c", INJECTOR, interface]), &input)
    }

    /// Runs `body` on a thread inside the namespace. Sockets that it opens and threads that it
    /// starts stay in the namespace.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = Path::new(NAMESPACE_DIRECTORY).join(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        thread::scope(|scope| {
            let inside = thread::Builder::new().name(self.name.clone()).spawn_scoped(scope, || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("cannot enter the namespace {}", self.name))?;
                Ok(body())
            })?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A UDP socket that is bound inside the namespace.
    pub fn udp_socket(&self, address: SocketAddr) -> anyhow::Result<UdpSocket> {
        self.enter(|| UdpSocket::bind(address))?
            .with_context(|| format!("cannot bind {address} in the namespace {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes the namespaces `skw-…-PID-NUMBER` whose process has ended.
fn remove_orphans() {
    let Ok(entries) = fs::read_dir(NAMESPACE_DIRECTORY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("skw-")) else { continue };
        let pid = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another process may remove it at the same time.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// One end of a [`Link`].
#[derive(Debug)]
pub struct End<'a> {
    namespace: &'a Namespace,
    interface: String,
    addresses: Vec<String>,
    neighbours: Vec<(IpAddr, String)>,
    vlans: Vec<Vlan>,
}

#[derive(Debug)]
struct Vlan {
    parent: String,
    name: String,
    protocol: &'static str,
    id: u16,
    addresses: Vec<String>,
}

impl<'a> End<'a> {
    /// The end of a veth pair that appears as `interface` in `namespace`.
    pub fn new(namespace: &'a Namespace, interface: &str) -> End<'a> {
        let interface = interface.to_owned();
        End { namespace, interface, addresses: Vec::new(), neighbours: Vec::new(), vlans: Vec::new() }
    }

    /// Adds an address with its prefix length: `198.18.0.1/24`, `2001:db8::1/64`.
    pub fn address(self, address: &str) -> End<'a> {
        self.addresses([address])
    }

    /// Adds addresses with their prefix lengths.
    pub fn addresses<S: Into<String>>(mut self, addresses: impl IntoIterator<Item = S>) -> End<'a> {
        self.addresses.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// Sets a permanent link-layer address of a neighbour. With an unused address, the other end
    /// receives frames for another host, as a mirror port does: they are captured, then dropped by
    /// its kernel. Applies to the interface itself, not to a VLAN.
    pub fn neighbour(mut self, address: IpAddr, mac: &str) -> End<'a> {
        self.neighbours.push((address, mac.to_owned()));
        self
    }

    /// Adds the 802.1Q interface `<interface>.<id>` with its addresses.
    pub fn vlan(mut self, id: u16, addresses: &[&str]) -> End<'a> {
        let name = format!("{}.{id}", self.interface);
        self.vlans.push(Vlan::new(self.interface.clone(), name, "802.1Q", id, addresses));
        self
    }

    /// Adds the 802.1ad interface `<interface>.<outer>` and in it the 802.1Q interface
    /// `<interface>.<outer>.<inner>`.
    pub fn qinq(mut self, outer: u16, inner: u16, addresses: &[&str]) -> End<'a> {
        let outer_name = format!("{}.{outer}", self.interface);
        let inner_name = format!("{outer_name}.{inner}");
        self.vlans.push(Vlan::new(self.interface.clone(), outer_name.clone(), "802.1ad", outer, &[]));
        self.vlans.push(Vlan::new(outer_name, inner_name, "802.1Q", inner, addresses));
        self
    }

    /// The commands of `ip -batch` for this end. The pair must exist.
    fn commands(&self, mtu: u32) -> String {
        let mut commands = String::new();
        let interface = &self.interface;
        // Writing to a string cannot fail.
        let _ = writeln!(commands, "link set {interface} mtu {mtu} txqueuelen 10000 up");
        for Vlan { parent, name, protocol, id, addresses } in &self.vlans {
            let _ = writeln!(commands, "link add link {parent} name {name} type vlan protocol {protocol} id {id}");
            let _ = writeln!(commands, "link set {name} up");
            add_addresses(&mut commands, name, addresses);
        }
        add_addresses(&mut commands, interface, &self.addresses);
        for (address, mac) in &self.neighbours {
            let _ = writeln!(commands, "neighbour replace {address} lladdr {mac} nud permanent dev {interface}");
        }
        commands
    }

    fn ethtool(&self, features: &[&str]) -> anyhow::Result<()> {
        let mut command = self.namespace.command("ethtool");
        run(command.arg("-K").arg(&self.interface).args(features)).map(drop)
    }

    fn is_ready(&self) -> bool {
        let shown = |arguments: &str| self.namespace.ip(arguments).unwrap_or_default();
        let up = shown(&format!("-br link show dev {}", self.interface)).contains("LOWER_UP");
        up && shown(&format!("-6 addr show dev {} tentative", self.interface)).trim().is_empty()
    }
}

impl Vlan {
    fn new(parent: String, name: String, protocol: &'static str, id: u16, addresses: &[&str]) -> Vlan {
        Vlan { parent, name, protocol, id, addresses: addresses.iter().map(|&address| address.to_owned()).collect() }
    }
}

fn add_addresses(commands: &mut String, interface: &str, addresses: &[String]) {
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        let _ = writeln!(commands, "address add {address} dev {interface}{nodad}");
    }
}

/// A veth pair to be created. It exists as long as both namespaces.
///
/// Segmentation offload is off by default, because a veth pair passes unsegmented frames to the
/// other end, which no real wire does. Checksum offload is off by default, so that captured frames
/// have checksums, as on a wire.
#[derive(Debug)]
#[must_use = "the pair exists only after create()"]
pub struct Link<'a> {
    ends: [End<'a>; 2],
    mtu: u32,
    segmentation_offload: bool,
    checksum_offload: bool,
}

impl<'a> Link<'a> {
    /// A link of 1,500 bytes MTU between two ends.
    pub fn new(left: End<'a>, right: End<'a>) -> Link<'a> {
        Link { ends: [left, right], mtu: 1500, segmentation_offload: false, checksum_offload: false }
    }

    /// The largest IP packet, in bytes.
    pub fn mtu(mut self, bytes: u32) -> Link<'a> {
        self.mtu = bytes;
        self
    }

    /// Whether unsegmented frames (TCP, `UDP_SEGMENT`) may cross the link.
    pub fn segmentation_offload(mut self, enabled: bool) -> Link<'a> {
        self.segmentation_offload = enabled;
        self
    }

    /// Whether frames cross the link without checksums: faster, for benchmarks.
    pub fn checksum_offload(mut self, enabled: bool) -> Link<'a> {
        self.checksum_offload = enabled;
        self
    }

    /// Creates the pair, and waits until both ends are up and their addresses usable.
    pub fn create(self) -> anyhow::Result<()> {
        let [left, right] = &self.ends;
        left.namespace.ip(&format!(
            "link add {} type veth peer name {} netns {}",
            left.interface,
            right.interface,
            right.namespace.name()
        ))?;
        for end in &self.ends {
            if !self.segmentation_offload {
                end.ethtool(&["tx-udp-segmentation", "off", "tso", "off", "gso", "off"])?;
            }
            if !self.checksum_offload {
                end.ethtool(&["tx", "off", "rx", "off"])?;
            }
            // One `ip` for all commands, because there may be thousands of addresses.
            let mut batch = Command::new("ip");
            run_with_input(batch.args(["-n", end.namespace.name(), "-batch", "-"]), end.commands(self.mtu).as_bytes())?;
        }
        for end in &self.ends {
            let what = format!("link up of {} in {}", end.interface, end.namespace.name());
            wait_for(&what, LINK_UP_TIMEOUT, || end.is_ready())?;
        }
        Ok(())
    }
}

/// Runs a command with `input` on its standard input.
fn run_with_input(command: &mut Command, input: &[u8]) -> anyhow::Result<()> {
    let name = format!("{command:?}");
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = pipes.spawn().with_context(|| format!("cannot run {name}"))?;
    // A command that ends early breaks the pipe; its status and standard error say why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a command and returns its standard output.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
