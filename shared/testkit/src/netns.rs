//! Network namespaces with veth pairs between them, made with iproute2 and ethtool, gone when dropped.
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

use crate::wait::wait_for;

/// When this variable is `1`, a test that cannot have its namespaces fails instead of being skipped.
pub const REQUIRE_VARIABLE: &str = "TEST_SEKIWAKE_REQUIRE_NETNS";

const NAMESPACE_DIRECTORY: &str = "/run/netns";
const LINK_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why namespaces cannot be had here.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Making a namespace takes SYS_ADMIN.
    #[error("not root")]
    NotRoot,
    /// iproute2 or ethtool is missing.
    #[error("`{0}` is not installed")]
    Missing(&'static str),
    /// The kernel or the container refuses.
    #[error("no network namespaces here: {0}")]
    Refused(String),
}

/// Whether this process may make network namespaces and veth pairs.
///
/// # Errors
/// What is missing.
pub fn requires_root_and_netns() -> Result<(), Why> {
    if !rustix::process::geteuid().is_root() {
        return Err(Why::NotRoot);
    }
    for tool in ["ip", "ethtool"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return Err(Why::Missing(tool));
        }
    }
    let try_it = || -> anyhow::Result<()> {
        let (left, right) = (Namespace::new("skw-try")?, Namespace::new("skw-try")?);
        Link::new(End::new(&left, "try0"), End::new(&right, "try1")).create()
    };
    try_it().map_err(|error| Why::Refused(format!("{error:#}")))
}

/// True when namespaces can be had. Else says loudly that `test` is skipped, or fails it when
/// [`REQUIRE_VARIABLE`] asks for that.
///
/// # Panics
/// When namespaces cannot be had although they are required.
#[must_use]
pub fn available_or_skipped(test: &str) -> bool {
    let Err(why) = requires_root_and_netns() else { return true };
    let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
    assert!(!required, "{test} needs network namespaces ({REQUIRE_VARIABLE}=1), but: {why}");
    eprintln!("SKIPPED: {test}: {why}");
    false
}

/// Whether the kernel can make VLAN interfaces ([`End::vlan`], [`End::qinq`]). Where it cannot, [`Namespace::inject`] puts
/// tagged frames on a link all the same.
#[must_use]
pub fn vlan_interfaces_available() -> bool {
    let try_it = || -> anyhow::Result<()> {
        let namespace = Namespace::new("skw-try")?;
        namespace.ip("link add link lo name try0 type vlan id 7").map(drop)
    };
    try_it().is_ok()
}

/// Sends the frames that standard input holds, each behind its length (4 bytes, big endian), from the interface that
/// the argument names: the one thing that takes a packet socket, which no safe crate offers.
const INJECTOR: &str = "
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind((sys.argv[1], 0))
read = sys.stdin.buffer.read
while length := read(4):
    wire.send(read(int.from_bytes(length, 'big')))
";

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose name begins with `label` (such as `skw-send`) and is unique. What earlier processes left
    /// behind under the same scheme, because they were killed, is removed.
    ///
    /// # Errors
    /// When `ip netns add` fails.
    pub fn new(label: &str) -> anyhow::Result<Namespace> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure!(label.starts_with("skw-"), "the name of a namespace begins with skw-: {label}");
        remove_orphans();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{label}-{}-{number}", std::process::id());
        checked(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name };
        namespace.enter(|| -> anyhow::Result<()> {
            for interfaces in ["all", "default"] {
                // Link-local addresses are usable at once; no router is looked for.
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

    /// The name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` inside the namespace, under the same process id.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// `command` (program, arguments, environment, directory) as one that runs inside the namespace.
    #[must_use]
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

    /// Runs `ip` inside the namespace with arguments that are separated by white space, and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        checked(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Puts link-layer frames on the wire of `interface` as they are: tagged, damaged, from anybody. Takes python3.
    ///
    /// # Errors
    /// When the kernel refuses a frame (longer than the MTU and its headers, interface down), or python3 is missing.
    pub fn inject(&self, interface: &str, frames: &[impl AsRef<[u8]>]) -> anyhow::Result<()> {
        let mut input = Vec::new();
        for frame in frames.iter().map(AsRef::as_ref) {
            input.extend_from_slice(&u32::try_from(frame.len())?.to_be_bytes());
            input.extend_from_slice(frame);
        }
        let mut python = self.command("python3");
        fed(python.args(["-c", INJECTOR, interface]), &input)
    }

    /// Runs `body` on a thread inside the namespace. Sockets that it opens and threads that it starts stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
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
    ///
    /// # Errors
    /// When the namespace cannot be entered or the address cannot be bound.
    pub fn udp_socket(&self, address: SocketAddr) -> anyhow::Result<UdpSocket> {
        self.enter(|| UdpSocket::bind(address))?
            .with_context(|| format!("cannot bind {address} in the namespace {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = checked(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes the namespaces `skw-…-PID-NUMBER` whose process is gone.
fn remove_orphans() {
    let Ok(entries) = fs::read_dir(NAMESPACE_DIRECTORY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("skw-")) else { continue };
        let pid = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another process may be quicker.
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
    #[must_use]
    pub fn new(namespace: &'a Namespace, interface: &str) -> End<'a> {
        let interface = interface.to_owned();
        End { namespace, interface, addresses: Vec::new(), neighbours: Vec::new(), vlans: Vec::new() }
    }

    /// Adds an address with its prefix length: `198.18.0.1/24`, `2001:db8::1/64`.
    #[must_use]
    pub fn address(self, address: &str) -> End<'a> {
        self.addresses([address])
    }

    /// Adds many.
    #[must_use]
    pub fn addresses<S: Into<String>>(mut self, addresses: impl IntoIterator<Item = S>) -> End<'a> {
        self.addresses.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// Pins the link-layer address of a neighbour. With one that nobody has, the other end sees frames for somebody else, as a
    /// mirror port does: captured, then dropped by its kernel. On the interface itself, not on a VLAN.
    #[must_use]
    pub fn neighbour(mut self, address: IpAddr, mac: &str) -> End<'a> {
        self.neighbours.push((address, mac.to_owned()));
        self
    }

    /// Adds the 802.1Q interface `<interface>.<id>` with its addresses.
    #[must_use]
    pub fn vlan(mut self, id: u16, addresses: &[&str]) -> End<'a> {
        let name = format!("{}.{id}", self.interface);
        self.vlans.push(Vlan::new(self.interface.clone(), name, "802.1Q", id, addresses));
        self
    }

    /// Adds the 802.1ad interface `<interface>.<outer>` and in it the 802.1Q interface `<interface>.<outer>.<inner>`.
    #[must_use]
    pub fn qinq(mut self, outer: u16, inner: u16, addresses: &[&str]) -> End<'a> {
        let outer_name = format!("{}.{outer}", self.interface);
        let inner_name = format!("{outer_name}.{inner}");
        self.vlans.push(Vlan::new(self.interface.clone(), outer_name.clone(), "802.1ad", outer, &[]));
        self.vlans.push(Vlan::new(outer_name, inner_name, "802.1Q", inner, addresses));
        self
    }

    /// What `ip -batch` is to do for this end. The pair exists.
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
        checked(command.arg("-K").arg(&self.interface).args(features)).map(drop)
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

/// A veth pair to be made. It lives as long as either namespace.
///
/// Segmentation offload is off unless asked for: a veth pair would hand the unsegmented frame to the other end, which
/// no real wire does. Checksum offload is off too, so that what is captured carries checksums as on a wire.
#[derive(Debug)]
#[must_use = "nothing exists before create()"]
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

    /// Whether frames cross the link without their checksums filled in: faster, for benches.
    pub fn checksum_offload(mut self, enabled: bool) -> Link<'a> {
        self.checksum_offload = enabled;
        self
    }

    /// Makes the pair, and waits until both ends are up and their addresses usable.
    ///
    /// # Errors
    /// When iproute2 or ethtool refuses, with what it said; when the link does not come up.
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
            // One `ip` for all commands: thousands of addresses in a moment.
            let mut batch = Command::new("ip");
            fed(batch.args(["-n", end.namespace.name(), "-batch", "-"]), end.commands(self.mtu).as_bytes())?;
        }
        for end in &self.ends {
            let what = format!("coming up of {} in {}", end.interface, end.namespace.name());
            wait_for(&what, LINK_UP_TIMEOUT, || end.is_ready())?;
        }
        Ok(())
    }
}

/// Runs a command that reads `input`.
fn fed(command: &mut Command, input: &[u8]) -> anyhow::Result<()> {
    let name = format!("{command:?}");
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = pipes.spawn().with_context(|| format!("cannot run {name}"))?;
    // A command that ends early breaks the pipe; its status and its words tell more.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a command and gives what it printed.
fn checked(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
