//! The way of a test message to one endpoint: with the sockets, the changes and the framing of the
//! forwarder, but without its queues and its retries.

use std::{
    fmt::Write,
    io, iter,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use sekiwake_decode::{Decoder, mib::Mib};
use sekiwake_record::{Flags, Kind, Record, Vlans};
use sekiwake_runtime::Hangups;
use sekiwake_sys::{Outgoing, clock::wall_now_ns};
use sha2::{Digest, Sha256};

use crate::{
    config::{
        destination::{Destination, Endpoint, Host, Transport},
        preflight::preflight,
        resolve::{Resolve, SystemResolver, usable},
    },
    delivery::{
        Value,
        entries::Entries,
        outbox::Part,
        sending::{Answer, Request},
    },
    engine::{load_tls, sink},
    metrics::ErrorKind,
    rewrite::{Rewriting, Rewritten},
    spoof::{SpoofSender, Spoofed},
    stream::{
        Tls,
        connection::{Broken, Connection},
    },
    udp::{flush::DatagramOptions, socket::UdpSender},
};

/// How long ICMP errors are waited for: a host that does not answer ARP or neighbour solicitation
/// is noticed after three seconds.
const ICMP_TIME: Duration = Duration::from_secs(4);
const ICMP_PAUSE: Duration = Duration::from_millis(20);

/// How long a peer may take to acknowledge the message.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(5);

/// How long the connection has to last after that: a server that rejects a certificate or a message
/// closes it.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The longest sleep while connecting, or waiting for the acknowledgement.
const POLL_TIME: Duration = Duration::from_millis(20);

/// Sends the payload to the first address of the endpoint that takes it. Says how, or why none did.
/// Failed checks of the path are added to `warnings`.
pub(super) fn send(
    kind: Kind,
    destination: &Destination,
    endpoint: &Endpoint,
    mib: &Arc<Mib>,
    payload: &[u8],
    warnings: &mut Vec<String>,
) -> Result<String, String> {
    let options = &destination.options;
    if options.spoof {
        SpoofSender::check_privilege().map_err(|error| error.to_string())?;
    }
    if destination.transport.is_cluster() {
        return deliver_to_cluster(kind, destination, endpoint, mib, payload);
    }
    let tls = load_tls(destination, endpoint).map_err(|error| error.to_string())?;
    let mut failures = Vec::new();
    for address in addresses(endpoint)? {
        if destination.transport == Transport::Udp {
            let failed = preflight(address, options.spoof).into_iter().filter(|check| !check.ok);
            warnings.extend(failed.map(|check| format!("check {}: {}", check.name, check.detail)));
        }
        let sent = match destination.transport {
            Transport::Udp => send_datagram(kind, destination, address, payload).map_err(|error| error.to_string()),
            Transport::Tcp | Transport::Tls => send_message(destination, tls.as_ref(), address, payload),
            Transport::OtlpHttp | Transport::OtlpHttps | Transport::Kafka | Transport::Nats => {
                let towards = Towards { address, is_only: true };
                deliver_record(kind, destination, endpoint, towards, mib, payload)
                    .map(|()| format!("accepted by {address}"))
            }
        };
        match sent {
            Ok(how) => return Ok(iter::once(how).chain(failures).collect::<Vec<_>>().join("; before that: ")),
            Err(why) => failures.push(format!("{address}: {why}")),
        }
    }
    Err(failures.join("; "))
}

fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    let name = match &endpoint.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, endpoint.port)]),
        Host::Name(name) => name,
    };
    let answers =
        SystemResolver.resolve(name, endpoint.port).map_err(|error| format!("cannot resolve {name}: {error}"))?;
    match usable(&answers) {
        usable if usable.is_empty() => Err(format!("{name} has no usable address")),
        usable => Ok(usable),
    }
}

/// The payload as the destination gets it from a device with this address.
fn rewritten(kind: Kind, add_source: bool, source: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let Some(rewriting) = Rewriting::of(kind, add_source) else { return payload.to_vec() };
    let mut changed = Rewritten::default();
    changed.push(rewriting, &test_record(kind, source, payload));
    changed.payload(0, payload).to_vec()
}

/// The record of the payload from a device with this address.
fn test_record(kind: Kind, source: SocketAddr, payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: wall_now_ns(),
        source: source.ip(),
        source_port: source.port(),
        destination: source.ip(),
        destination_port: source.port(),
        format: sekiwake_identify::identify(Some(kind), payload),
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 0,
        origin: None,
    }
}

fn send_datagram(kind: Kind, destination: &Destination, address: SocketAddr, payload: &[u8]) -> io::Result<String> {
    let options = &destination.options;
    // Spoofed with its address and port, so that it gets the ICMP errors.
    let own = UdpSender::connect(address)?;
    let source = own.local_address()?;
    let payload = rewritten(kind, options.add_source, source, payload);
    let tos = DatagramOptions::of(kind, options).tos(0);
    if options.spoof {
        let datagram = Spoofed { source, payload: &payload, tos, own_address: false };
        let mut sender = SpoofSender::connect(address)?;
        sender.send(&[datagram])?;
    } else {
        own.send(&[Outgoing { slices: &[io::IoSlice::new(&payload)], tos, ..Outgoing::default() }])?;
    }
    let sent_at = Instant::now();
    while sent_at.elapsed() < ICMP_TIME {
        let mut refusal = None;
        own.take_errors(|error| refusal = Some(error));
        if let Some(error) = refusal {
            return Err(error);
        }
        thread::sleep(ICMP_PAUSE);
    }
    let how = if options.spoof { "with a raw socket, as for spoofing, " } else { "" };
    let seconds = ICMP_TIME.as_secs();
    Ok(format!(
        "{} bytes sent {how}from {source} to {address}, no ICMP error within {seconds} s; only the collector can tell \
         whether they arrived",
        payload.len()
    ))
}

fn send_message(
    destination: &Destination,
    tls: Option<&Tls>,
    address: SocketAddr,
    payload: &[u8],
) -> Result<String, String> {
    let options = &destination.options;
    let explained = |error: Broken| match tls.and_then(|tls| tls.files.question()) {
        Some(question) if error.kind() == ErrorKind::Closed => format!("{error}: {question}"),
        _ => error.to_string(),
    };
    let mut connection = connect(address, tls).map_err(explained)?;
    let source = connection.local_address().map_err(|error| error.to_string())?;
    let mut frame = Vec::new();
    // A test message is not empty, so that it has a frame.
    let _ = options.framing.frame(&rewritten(Kind::Syslog, options.add_source, source, payload), &mut frame);
    deliver(&mut connection, &frame).map_err(|error| format!("connected, then: {}", explained(error)))?;
    let mut how = format!("connected to {address}");
    if let (Some(tls), Some(certificate)) = (tls, connection.certificate()) {
        let security = connection.security();
        let name = tls.server_name.to_str();
        // Writing to a string never fails.
        let _ = write!(how, ", {security} with {name}, certificate SHA-256 {}", fingerprint(certificate));
    }
    connection.finish();
    let seconds = SETTLE_TIME.as_secs();
    Ok(format!("{how}; {} bytes acknowledged by its TCP, connection kept for {seconds} s", frame.len()))
}

fn connect(address: SocketAddr, tls: Option<&Tls>) -> Result<Connection, Broken> {
    let mut connection = Connection::begin(address, tls, Instant::now())?;
    while !connection.is_open() {
        connection.wait(false, POLL_TIME);
        connection.advance(Instant::now())?;
    }
    Ok(connection)
}

/// Writes the frame, and waits until the peer's TCP has acknowledged it and the connection has
/// lasted a while longer.
fn deliver(connection: &mut Connection, frame: &[u8]) -> Result<(), Broken> {
    let end = connection.push(frame)?;
    let pushed_at = Instant::now();
    let mut acknowledged_at: Option<Instant> = None;
    while acknowledged_at.is_none_or(|at| at.elapsed() < SETTLE_TIME) {
        connection.advance(Instant::now())?;
        connection.wait(false, POLL_TIME);
        if acknowledged_at.is_none() && connection.acknowledged() >= end {
            acknowledged_at = Some(Instant::now());
        }
        if acknowledged_at.is_none() && pushed_at.elapsed() >= ACKNOWLEDGE_TIME {
            let seconds = ACKNOWLEDGE_TIME.as_secs();
            return Err(io::Error::other(format!("no acknowledgement of the message within {seconds} s")).into());
        }
    }
    Ok(())
}

fn deliver_to_cluster(
    kind: Kind,
    destination: &Destination,
    endpoint: &Endpoint,
    mib: &Arc<Mib>,
    payload: &[u8],
) -> Result<String, String> {
    let mut servers = destination.servers();
    let address = servers.find_map(|server| addresses(server).ok()?.first().copied());
    let address = address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, endpoint.port).into());
    deliver_record(kind, destination, endpoint, Towards { address, is_only: false }, mib, payload)?;
    let place = destination.path.trim_start_matches('/');
    Ok(match destination.transport {
        Transport::Nats => format!("acknowledged by the stream that takes subject {place}"),
        _ => format!("stored in topic {place}, acknowledged by all in-sync replicas"),
    })
}

/// The address that a message is sent to.
struct Towards {
    address: SocketAddr,
    /// The message goes there and nowhere else. Otherwise it only tells which address of this host
    /// is that of the message.
    is_only: bool,
}

/// Delivers the payload as that of a device with the address that this host has on the way there.
fn deliver_record(
    kind: Kind,
    destination: &Destination,
    endpoint: &Endpoint,
    towards: Towards,
    mib: &Arc<Mib>,
    payload: &[u8],
) -> Result<(), String> {
    let mut sink = sink(kind, destination, endpoint, Hangups::default())?;
    let Towards { address, is_only } = towards;
    let own = UdpSender::connect(address).and_then(|own| own.local_address()).map_err(|error| error.to_string())?;
    let record = test_record(kind, own, payload);
    let mut decoder = (destination.options.delivery.value == Value::Decoded).then(|| {
        let mut decoder = Decoder::new();
        decoder.set_mib(Arc::clone(mib));
        decoder
    });
    let mut entries = Entries::default();
    entries.push(kind, &record, "", decoder.as_mut());
    let part = Part { range: 0..entries.len(), entries: Arc::new(entries) };
    match sink.send(&Request { parts: vec![part], address: is_only.then_some(address) }) {
        Answer::Accepted { rejected: 0, .. } => Ok(()),
        Answer::Accepted { why, .. } => Err(format!("rejected: {}", why.unwrap_or_default())),
        Answer::Rejected { why } | Answer::Failed { why, .. } => Err(why),
    }
}

/// As `openssl x509 -fingerprint -sha256` prints it.
fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    let octets: Vec<String> = digest.iter().map(|octet| format!("{octet:02X}")).collect();
    octets.join(":")
}
