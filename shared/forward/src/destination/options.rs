//! The options of a destination: what stands after the question mark of its URI.
//!
//! ```text
//! udp        gso=true|false            runs of datagrams leave as one message that kernel or device cuts up (true)
//!            spoof=true|false          the device's address and port stay the source (false)
//!            dscp=copy|0..63           the DSCP of what is sent: as captured, or this one (the system's, 0)
//! syslog     add_source=true|false     the device's address goes into RFC 5424 structured data (false)
//!            facility=NAME,...         only these facilities: names or 0..23
//!            min_severity=NAME         only this severity and the more severe ones: a name or 0..7
//! xflow      template_refresh=TIME     templates are sent again, from what is kept, after this time (never)
//! tcp, tls   spool=SIZE                keeps on disk what the destination missed, this many bytes at most (none)
//!            replay=RATE               messages a second that are sent from the spool beside live traffic (5000)
//! tls        ca=FILE cert=FILE key=FILE  whom to trust (the system's roots), and who one is: PEM
//!            server_name=NAME          the name that the server's certificate must have (the host)
//! all        source=PREFIX,...         only these sources, for example 10.0.0.0/8,2001:db8::/32
//!            exclude_source=PREFIX,... not these, also if `source` names them
//!            format=NAME,...           only these formats, by the names that /metrics and `explain` use
//!            rate=N                    at most so many datagrams a second, and as many at once (no limit)
//! ```
//! In a value, `%` and two hexadecimal digits stand for a byte, as in every URI.

use std::{path::PathBuf, time::Duration};

use sekiwake_identify::syslog::{parse_facility, parse_severity};
use sekiwake_record::{Format, Kind, Prefix};
use sekiwake_settings::{ByteSize, Setting, percent_decoded};

use super::{
    Transport,
    uri::{Mistake, mistake},
};
use crate::filter::{Facilities, Filter};

/// What a destination asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether runs of datagrams may leave as one message that the kernel or the device cuts up.
    pub segmentation: bool,
    /// Whether the device's address stays the source.
    pub spoof: bool,
    /// The DSCP of what is sent.
    pub dscp: Dscp,
    /// Whether the device's address goes into the message.
    pub add_source: bool,
    /// What is sent there at all.
    pub filter: Filter,
    /// Datagrams a second, at most.
    pub rate: Option<u32>,
    /// How often templates are sent again.
    pub template_refresh: Option<Duration>,
    /// Bytes on disk for what a TCP or TLS destination missed.
    pub spool: Option<u64>,
    /// Messages a second from the spool.
    pub replay: u32,
    /// Whom to trust, and who one is.
    pub tls: TlsFiles,
}

/// What DSCP datagrams leave with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// What the system gives: 0.
    System,
    /// What the captured datagram had.
    Copy,
    /// This one, 0 to 63.
    Fixed(u8),
}

/// Files and names of a TLS destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities to trust; the system's without.
    pub ca: Option<PathBuf>,
    /// The certificate to show, with its chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The name that the server has to prove; the host as written without.
    pub server_name: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segmentation: true,
            spoof: false,
            dscp: Dscp::System,
            add_source: false,
            filter: Filter::default(),
            rate: None,
            template_refresh: None,
            spool: None,
            replay: 5000,
            tls: TlsFiles::default(),
        }
    }
}

/// Whom an option is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    Kind(Kind),
    Udp,
    Stream,
    Tls,
}

const OPTIONS: [(&str, For); 17] = [
    ("gso", For::Udp),
    ("spoof", For::Udp),
    ("dscp", For::Udp),
    ("add_source", For::Kind(Kind::Syslog)),
    ("facility", For::Kind(Kind::Syslog)),
    ("min_severity", For::Kind(Kind::Syslog)),
    ("template_refresh", For::Kind(Kind::Xflow)),
    ("spool", For::Stream),
    ("replay", For::Stream),
    ("ca", For::Tls),
    ("cert", For::Tls),
    ("key", For::Tls),
    ("server_name", For::Tls),
    ("source", For::All),
    ("exclude_source", For::All),
    ("format", For::All),
    ("rate", For::All),
];

impl For {
    fn concerns(self, kind: Kind, transport: Transport) -> bool {
        match self {
            For::All => true,
            For::Kind(of) => of == kind,
            For::Udp => transport == Transport::Udp,
            For::Stream => transport != Transport::Udp,
            For::Tls => transport == Transport::Tls,
        }
    }
}

/// Reads what stands after the question mark, if there is one.
pub(super) fn parse(kind: Kind, transport: Transport, query: Option<&str>) -> Result<Options, Mistake> {
    let mut options = Options::default();
    let mut seen: Vec<&str> = Vec::new();
    let mut offset = 0;
    for option in query.into_iter().flat_map(|query| query.split('&')) {
        let (name, written) = option.split_once('=').unwrap_or((option, ""));
        check_name(kind, transport, name).map_err(|problem| (offset, problem))?;
        if seen.contains(&name) {
            return mistake(offset, format!("option \"{name}\" for the second time, expected it once"));
        }
        seen.push(name);
        let at_value = offset + name.len();
        let value =
            percent_decoded(written).map_err(|problem| (at_value, format!("{name}=\"{written}\", {problem}")))?;
        set(&mut options, kind, name, &value)
            .map_err(|expected| (at_value, format!("{name}=\"{value}\", expected {expected}")))?;
        offset += option.len() + 1;
    }
    check_together(&options, &seen).map_err(|problem| (0, problem))?;
    Ok(options)
}

fn check_name(kind: Kind, transport: Transport, name: &str) -> Result<(), String> {
    let usable = || {
        let names = OPTIONS.iter().filter(|(_, of)| of.concerns(kind, transport));
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    match OPTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, of)) if of.concerns(kind, transport) => Ok(()),
        Some(_) => {
            let scheme = transport.scheme();
            Err(format!("option \"{name}\" has no meaning for {kind} over {scheme}, expected one of {}", usable()))
        }
        None => Err(format!("no such option: \"{name}\", expected one of {}", usable())),
    }
}

/// What only shows when options are looked at together.
fn check_together(options: &Options, seen: &[&str]) -> Result<(), String> {
    let tls = &options.tls;
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err("a client certificate needs both cert= and key=".to_owned());
    }
    if seen.contains(&"replay") && options.spool.is_none() {
        return Err("replay= says how fast a spool is sent, and there is no spool=".to_owned());
    }
    Ok(())
}

/// Sets one option; gives what was expected if the value is not it.
fn set(options: &mut Options, kind: Kind, name: &str, value: &str) -> Result<(), String> {
    let filter = &mut options.filter;
    match name {
        "gso" => options.segmentation = truth(value)?,
        "spoof" => options.spoof = truth(value)?,
        "add_source" => options.add_source = truth(value)?,
        "dscp" => options.dscp = dscp(value)?,
        "facility" => {
            let names = list(value, "facilities by name or number (0 to 23), separated by commas", parse_facility)?;
            filter.facilities = Some(Facilities::of(&names));
        }
        "min_severity" => {
            let expected = "a severity: emerg, alert, crit, err, warning, notice, info, debug, or 0 to 7";
            filter.min_severity = Some(parse_severity(value).ok_or(expected)?);
        }
        "template_refresh" => options.template_refresh = Some(setting::<Duration>(value, |d| !d.is_zero())?),
        "spool" => options.spool = Some(setting::<ByteSize>(value, |size| size.0 >= MIN_SPOOL)?.0),
        "replay" => options.replay = setting(value, |&rate: &u32| rate > 0)?,
        "rate" => options.rate = Some(setting(value, |&rate: &u32| rate > 0)?),
        "ca" => options.tls.ca = Some(path(value)?),
        "cert" => options.tls.certificate = Some(path(value)?),
        "key" => options.tls.key = Some(path(value)?),
        "server_name" if !value.is_empty() => options.tls.server_name = Some(value.to_owned()),
        "server_name" => return Err("a name".to_owned()),
        "source" => filter.sources = Some(prefixes(value)?),
        "exclude_source" => filter.excluded_sources = prefixes(value)?,
        "format" => {
            let names = formats_of(kind).map(Format::as_str).collect::<Vec<_>>().join(", ");
            let parse = |text: &str| formats_of(kind).find(|format| format.as_str() == text);
            filter.formats = Some(list(value, &format!("formats out of {names}, separated by commas"), parse)?);
        }
        _ => return Err("no such option".to_owned()),
    }
    Ok(())
}

/// A spool smaller than this holds not even one of the largest messages in two segments.
const MIN_SPOOL: u64 = 1 << 20;

fn truth(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true or false".to_owned())
}

fn dscp(value: &str) -> Result<Dscp, String> {
    match value {
        "copy" => Ok(Dscp::Copy),
        _ => match u32::parse(value) {
            Ok(number @ 0..=63) => Ok(Dscp::Fixed(number as u8)),
            _ => Err("copy, or a number from 0 to 63".to_owned()),
        },
    }
}

fn setting<T: Setting>(value: &str, is_valid: impl Fn(&T) -> bool) -> Result<T, String> {
    match T::parse(value) {
        Ok(parsed) if is_valid(&parsed) => Ok(parsed),
        Ok(_) => Err(format!("{}, and more of it", T::takes())),
        Err(wrong) if wrong.is_empty() => Err(T::takes().to_owned()),
        Err(wrong) => Err(format!("{} ({wrong})", T::takes())),
    }
}

fn path(value: &str) -> Result<PathBuf, String> {
    if value.is_empty() { Err("a path".to_owned()) } else { Ok(PathBuf::from(value)) }
}

fn prefixes(value: &str) -> Result<Vec<Prefix>, String> {
    list(value, "addresses or prefixes such as 10.0.0.0/8,2001:db8::/32, separated by commas", |text| text.parse().ok())
}

fn list<T>(value: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let parse = |text: &str| parse(text).ok_or_else(|| format!("{expected} (\"{text}\" is none)"));
    value.split(',').map(parse).collect()
}

/// The formats that a destination of this kind can tell apart.
fn formats_of(kind: Kind) -> impl Iterator<Item = Format> {
    use Format::{
        Ipfix, NetFlow5, NetFlow9, Rfc3164, Rfc5424, Sflow5, Snmp1Trap, Snmp2cInform, Snmp2cTrap, Snmp3, Unknown,
    };
    let of_kind: &[Format] = match kind {
        Kind::Syslog => &[Rfc3164, Rfc5424, Unknown],
        Kind::Xflow => &[NetFlow5, NetFlow9, Ipfix, Sflow5, Unknown],
        Kind::SnmpTrap => &[Snmp1Trap, Snmp2cTrap, Snmp2cInform, Snmp3, Unknown],
    };
    of_kind.iter().copied()
}
