//! Every variable of the project, in one place: what `--help` prints, what the README's table says, what a name is checked against.

/// What stands in [`Variable::read_by`] for "every service".
pub const EVERY_SERVICE: &str = "all";

/// A variable that some part of the project reads.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// The full name.
    pub name: &'static str,
    /// Under which heading it is listed.
    pub group: Group,
    /// The services that read it, or [`EVERY_SERVICE`].
    pub read_by: &'static [&'static str],
    /// What it takes, in a word or two: `duration`, `endpoints`.
    pub takes: &'static str,
    /// What holds when it is unset or set to nothing.
    pub default: VariableDefault,
    /// What it is, in a few words.
    pub about: &'static str,
}

/// What holds when a variable is unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableDefault {
    /// This text, parsed as a value would be.
    Value(&'static str),
    /// Something that is found out at run time, or nothing at all: a description for people.
    Described(&'static str),
}

/// The headings, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Taking datagrams off the wire.
    Capture,
    /// Publishing them.
    Publishing,
    /// Sending them on.
    Forwarding,
    /// Writing them to disk.
    Storing,
    /// Watching their rate.
    Anomaly,
    /// Sharing work among replicas.
    Replicas,
    /// Where the proxy binds.
    Proxy,
    /// Where the bus is, and its keys.
    Bus,
    /// What every service has.
    Service,
}

impl Group {
    /// The heading.
    pub const fn heading(self) -> &'static str {
        match self {
            Group::Capture => "Capture",
            Group::Publishing => "Publishing",
            Group::Forwarding => "Forwarding",
            Group::Storing => "Storing",
            Group::Anomaly => "Anomaly detection",
            Group::Replicas => "Replicas",
            Group::Proxy => "Proxy",
            Group::Bus => "Bus",
            Group::Service => "Service",
        }
    }
}

impl Variable {
    /// Whether this service reads it.
    pub fn concerns(&self, service: &str) -> bool {
        self.read_by.iter().any(|reader| *reader == service || *reader == EVERY_SERVICE)
    }
}

impl VariableDefault {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            VariableDefault::Value(text) | VariableDefault::Described(text) => text,
        }
    }
}

/// The variable of this full name.
pub fn variable(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

const ALL: &[&str] = &[EVERY_SERVICE];
const CAPTURE: &[&str] = &["capture"];
const PROXY: &[&str] = &["proxy"];
const STORER: &[&str] = &["storer"];
const ANOMALY_DETECTOR: &[&str] = &["anomaly-detector"];
const GROUPED: &[&str] = &["syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector"];
const PUBLISHERS: &[&str] = &["capture", "anomaly-detector"];
const SUBSCRIBERS: &[&str] =
    &["syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector", "tap"];
const CONTROLLED: &[&str] =
    &["capture", "syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector"];

/// The whole list, by group.
pub static VARIABLES: &[Variable] = &[
    // Capture
    Variable {
        name: "SEKIWAKE_CAPTURE_INTERFACES",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "interfaces",
        default: described("the interface of the default route"),
        about: "where to listen",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_FILE",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "path",
        default: described("none"),
        about: "a savefile to read instead of interfaces: published once, then the service ends",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_WAIT",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "duration",
        default: value("10s"),
        about: "how long a savefile waits for a subscriber",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_FILTER",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "BPF",
        default: described("none"),
        about: "a filter in addition to the one that is made from the ports",
    },
    Variable {
        name: "SEKIWAKE_SYSLOG_PORTS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "ports",
        default: value("514"),
        about: "destination ports of syslog",
    },
    Variable {
        name: "SEKIWAKE_XFLOW_PORTS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "ports",
        default: value("2055,9995,9996,4739,6343"),
        about: "destination ports of NetFlow, IPFIX and sFlow",
    },
    Variable {
        name: "SEKIWAKE_TRAP_PORTS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "ports",
        default: value("162"),
        about: "destination ports of SNMP traps and informs",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_TUNNELS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "true or false",
        default: value("true"),
        about: "look into GRE, ERSPAN, VXLAN, Geneve and IP-in-IP tunnels",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_RING",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "size",
        default: value("256MiB"),
        about: "kernel ring per interface",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_RETIRE",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "duration",
        default: value("2ms"),
        about: "a ring block closes after this time, full or not",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_THREADS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "1 to 16",
        default: value("1"),
        about: "threads per interface (packet fan-out)",
    },
    // Publishing
    Variable {
        name: "SEKIWAKE_PUBLISHER",
        group: Group::Publishing,
        read_by: PUBLISHERS,
        takes: "name",
        default: described("the host's name"),
        about: "the name of the streams that it publishes",
    },
    Variable {
        name: "SEKIWAKE_TICK",
        group: Group::Publishing,
        read_by: CAPTURE,
        takes: "duration",
        default: value("2ms"),
        about: "open batches leave after this time, full or not",
    },
    Variable {
        name: "SEKIWAKE_RETAIN",
        group: Group::Publishing,
        read_by: CAPTURE,
        takes: "size",
        default: value("256MiB"),
        about: "memory for recent batches, to repeat what subscribers missed; a share for each kind",
    },
    // Forwarding
    Variable {
        name: "SEKIWAKE_SYSLOG_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder"],
        takes: "URIs",
        default: described("none: it idles"),
        about: "where syslog goes, such as udp://198.51.100.7:514, separated by white space",
    },
    Variable {
        name: "SEKIWAKE_SYSLOG_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder"],
        takes: "path",
        default: described("none"),
        about: "a file with such URIs instead, read again when it changes and at SIGHUP",
    },
    Variable {
        name: "SEKIWAKE_SPOOL_DIR",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder"],
        takes: "path",
        default: value("./spool"),
        about: "where destinations with `spool=` keep what they miss, a folder each",
    },
    Variable {
        name: "SEKIWAKE_XFLOW_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["xflow-forwarder"],
        takes: "URIs",
        default: described("none: it idles"),
        about: "where flow records go, such as udp://[2001:db8::7]:2055",
    },
    Variable {
        name: "SEKIWAKE_XFLOW_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["xflow-forwarder"],
        takes: "path",
        default: described("none"),
        about: "a file with such URIs instead, read again when it changes and at SIGHUP",
    },
    Variable {
        name: "SEKIWAKE_TRAP_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["trap-forwarder"],
        takes: "URIs",
        default: described("none: it idles"),
        about: "where SNMP traps go, such as udp://198.51.100.7:162",
    },
    Variable {
        name: "SEKIWAKE_TRAP_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["trap-forwarder"],
        takes: "path",
        default: described("none"),
        about: "a file with such URIs instead, read again when it changes and at SIGHUP",
    },
    // Storing
    Variable {
        name: "SEKIWAKE_STORE_DIR",
        group: Group::Storing,
        read_by: STORER,
        takes: "path",
        default: value("./data"),
        about: "the directory to write to; where every role is in one process, nothing is stored unless this is set",
    },
    Variable {
        name: "SEKIWAKE_STORE_PATH",
        group: Group::Storing,
        read_by: STORER,
        takes: "path",
        default: value("{date}/{kind}"),
        about: "the path of a file in it, from {date} {year} {month} {day} {hour} {source} {kind} {member}; period, member, part and ending are added",
    },
    Variable {
        name: "SEKIWAKE_STORE_FORMAT",
        group: Group::Storing,
        read_by: STORER,
        takes: "json or text",
        default: value("json"),
        about: "JSON lines, or a line of text a message",
    },
    Variable {
        name: "SEKIWAKE_STORE_COMMIT",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: value("1s"),
        about: "what came is on the disk after this time, and done with only then",
    },
    Variable {
        name: "SEKIWAKE_STORE_ROTATE",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: value("1h"),
        about: "a file has the messages that were captured in this time, from 1m to 1d",
    },
    Variable {
        name: "SEKIWAKE_STORE_ROTATE_BYTES",
        group: Group::Storing,
        read_by: STORER,
        takes: "size",
        default: value("1GiB"),
        about: "a file that has this size is followed by another",
    },
    Variable {
        name: "SEKIWAKE_STORE_COMPRESS",
        group: Group::Storing,
        read_by: STORER,
        takes: "0 to 19",
        default: value("3"),
        about: "level of zstd for closed files; 0: none",
    },
    Variable {
        name: "SEKIWAKE_STORE_KEEP",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: described("none: for ever"),
        about: "closed files are deleted when nothing has come into them for this time",
    },
    Variable {
        name: "SEKIWAKE_STORE_MAX_BYTES",
        group: Group::Storing,
        read_by: STORER,
        takes: "size",
        default: described("none"),
        about: "the oldest closed files are deleted when all are larger than this together",
    },
    // Anomaly detection
    Variable {
        name: "SEKIWAKE_ANOMALY_INTERVAL",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "duration",
        default: value("60s"),
        about: "messages are counted over this time, from 1s to 1h",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_WINDOW",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("20"),
        about: "intervals in the moving average, 2 to 1000",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SIGMA",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("3"),
        about: "standard deviations from the average to either band",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_MIN_WIDTH",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("10"),
        about: "messages from the average to either band at least",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_MIN_WIDTH_PERCENT",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("1"),
        about: "the same in percent of the average",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_CONSECUTIVE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("1"),
        about: "intervals outside the bands that make an alarm, and inside that end it",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_BY",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "names",
        default: value("total"),
        about: "what is counted: total, severity, source, or several of them",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SOURCES",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("10000"),
        about: "sources that are counted apart at most; the least recently seen goes",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SILENT_AFTER",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: described("none: off"),
        about: "a source is reported when it is silent for so many times its usual pause",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_GRACE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "duration",
        default: value("5s"),
        about: "an interval is judged this long after its end",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_STATE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "path",
        default: described("none"),
        about: "a file that keeps the state when proxy and detectors all restart",
    },
    Variable {
        name: "SEKIWAKE_NOTIFY",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "URIs",
        default: described("none: log, metrics and the bus only"),
        about: "whom to notify: alertmanager+http://..., webhook+http://..., syslog+udp://..., separated by white space",
    },
    // Replicas
    Variable {
        name: "SEKIWAKE_GROUP",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "name",
        default: value("default"),
        about: "replicas with one group's name share the work",
    },
    Variable {
        name: "SEKIWAKE_MEMBER",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "name",
        default: described("the host's name"),
        about: "a label for this replica",
    },
    Variable {
        name: "SEKIWAKE_GROUP_START",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "duration",
        default: value("30s"),
        about: "how far back a group begins that is new, or that the proxy has forgotten",
    },
    // Proxy
    Variable {
        name: "SEKIWAKE_PROXY_PUBLISH",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5559"),
        about: "where publishers connect to (XSUB)",
    },
    Variable {
        name: "SEKIWAKE_PROXY_SUBSCRIBE",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5560"),
        about: "where subscribers connect to (XPUB)",
    },
    Variable {
        name: "SEKIWAKE_PROXY_CONTROL",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5561"),
        about: "where everybody's control connection goes (ROUTER)",
    },
    // Bus
    Variable {
        name: "SEKIWAKE_BUS_PUBLISH",
        group: Group::Bus,
        read_by: PUBLISHERS,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5559"),
        about: "the proxy's end for publishers",
    },
    Variable {
        name: "SEKIWAKE_BUS_SUBSCRIBE",
        group: Group::Bus,
        read_by: SUBSCRIBERS,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5560"),
        about: "the proxy's end for subscribers",
    },
    Variable {
        name: "SEKIWAKE_BUS_CONTROL",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5561"),
        about: "the proxy's end for control",
    },
    Variable {
        name: "SEKIWAKE_BUS_SERVER_KEY_FILE",
        group: Group::Bus,
        read_by: ALL,
        takes: "path",
        default: described("none: no encryption"),
        about: "the proxy's public key; set together with SEKIWAKE_BUS_KEY_FILE by all but the proxy",
    },
    Variable {
        name: "SEKIWAKE_BUS_KEY_FILE",
        group: Group::Bus,
        read_by: ALL,
        takes: "path",
        default: described("none: no encryption"),
        about: "this party's own secret key, made by sekiwake-proxy keygen; mode 0600",
    },
    Variable {
        name: "SEKIWAKE_BUS_ALLOWED_KEYS_FILE",
        group: Group::Bus,
        read_by: PROXY,
        takes: "path",
        default: described("none: no encryption"),
        about: "the public keys of those who may connect, one a line with an optional name; read again when it changes",
    },
    // Service
    Variable {
        name: "SEKIWAKE_ADMIN",
        group: Group::Service,
        read_by: ALL,
        takes: "address",
        default: described("127.0.0.1, port 9600 and up by service"),
        about: "where /metrics, /healthz, /readyz and /status are served",
    },
    Variable {
        name: "SEKIWAKE_DRAIN",
        group: Group::Service,
        read_by: ALL,
        takes: "duration",
        default: value("10s"),
        about: "how long a stop may take to deliver what is under way",
    },
    Variable {
        name: "SEKIWAKE_LOG",
        group: Group::Service,
        read_by: ALL,
        takes: "filter",
        default: value("info"),
        about: "what is logged: a level, or levels by module such as info,sekiwake_bus=debug",
    },
    Variable {
        name: "SEKIWAKE_LOG_FORMAT",
        group: Group::Service,
        read_by: ALL,
        takes: "text or json",
        default: value("text"),
        about: "how it is logged",
    },
];

const fn value(text: &'static str) -> VariableDefault {
    VariableDefault::Value(text)
}

const fn described(text: &'static str) -> VariableDefault {
    VariableDefault::Described(text)
}
