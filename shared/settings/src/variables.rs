//! The table of all variables, from which `--help`, docs/settings.md and `.env.example` are
//! generated and against which names are checked.

/// The entry of [`Variable::read_by`] that means every service.
pub const EVERY_SERVICE: &str = "all";

/// A variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// The full name.
    pub name: &'static str,
    /// The heading under which it is listed.
    pub group: Group,
    /// The services that read it, or [`EVERY_SERVICE`].
    pub read_by: &'static [&'static str],
    /// The type, in a word or two: `duration`, `endpoints`.
    pub takes: &'static str,
    /// The default, when it is unset or empty.
    pub default: VariableDefault,
    /// A description, in a few words.
    pub about: &'static str,
}

/// The default of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableDefault {
    /// This text, parsed like a value.
    Value(&'static str),
    /// A description: the default is determined at run time, or there is no default.
    Described(&'static str),
}

/// The headings, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Capturing datagrams.
    Capture,
    /// Publishing them on the bus.
    Publishing,
    /// Forwarding them.
    Forwarding,
    /// Writing them to disk.
    Storing,
    /// Detecting anomalies in their rate.
    Anomaly,
    /// Decoding what records carry.
    Decoding,
    /// The page that shows all services.
    Console,
    /// Sharing work between replicas.
    Replicas,
    /// The endpoints of the proxy.
    Proxy,
    /// Connecting to the bus, and its keys.
    Bus,
    /// Common to all services.
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
            Group::Decoding => "Decoding",
            Group::Console => "Console",
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
    /// The text for documentation.
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
const CONSOLE: &[&str] = &["console"];
const GROUPED: &[&str] = &["syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector"];
const PUBLISHERS: &[&str] = &["capture", "anomaly-detector"];
const SUBSCRIBERS: &[&str] =
    &["syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector", "console", "tap"];
const CONTROLLED: &[&str] = &[
    "capture",
    "syslog-forwarder",
    "xflow-forwarder",
    "trap-forwarder",
    "storer",
    "anomaly-detector",
    "console",
    "tap",
    "sender",
];

/// All variables, by group.
pub static VARIABLES: &[Variable] = &[
    // Capture
    Variable {
        name: "SEKIWAKE_CAPTURE_INTERFACES",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "interfaces",
        default: described("the interface of the default route"),
        about: "interfaces to capture on",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_FILE",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "path",
        default: described("none"),
        about: "savefile (pcap, pcapng) to read instead of interfaces; it is published once, then the service ends",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_WAIT",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "duration",
        default: value("10s"),
        about: "how long to wait for a subscriber before a savefile is published",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_FILTER",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "BPF",
        default: described("none"),
        about: "capture filter, in addition to the one generated from the ports",
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
        about: "decode packets inside GRE, ERSPAN, EoIP, VXLAN, Geneve, TZSP and IP-in-IP tunnels",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_RING",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "size",
        default: value("256MiB"),
        about: "size of the kernel ring per interface",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_RETIRE",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "duration",
        default: described("SEKIWAKE_TICK"),
        about: "time after which the kernel hands over a ring block, full or not; lowered to SEKIWAKE_TICK, but at least 1ms",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_THREADS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "1 to 16",
        default: value("1"),
        about: "capture threads per interface (packet fan-out)",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_DEDUPLICATE",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "duration",
        default: described("none"),
        about: "what an interface shows a second time within this time (at most 100ms) is published once",
    },
    Variable {
        name: "SEKIWAKE_CAPTURE_BIND_PORTS",
        group: Group::Capture,
        read_by: CAPTURE,
        takes: "true or false",
        default: value("false"),
        about: "bind the ports that are free, so that the kernel sends devices no ICMP port unreachable; at most 256 ports",
    },
    // Publishing
    Variable {
        name: "SEKIWAKE_PUBLISHER",
        group: Group::Publishing,
        read_by: PUBLISHERS,
        takes: "name",
        default: described("the host's name"),
        about: "name of the publisher in its streams",
    },
    Variable {
        name: "SEKIWAKE_TICK",
        group: Group::Publishing,
        read_by: CAPTURE,
        takes: "duration",
        default: value("6ms"),
        about: "longest time that a datagram waits to be published with others; at high rates it waits less on the ZeroMQ bus",
    },
    Variable {
        name: "SEKIWAKE_RETAIN",
        group: Group::Publishing,
        read_by: CAPTURE,
        takes: "size",
        default: value("256MiB"),
        about: "memory for recent batches, for retransmission to subscribers; divided between the kinds",
    },
    // Forwarding
    Variable {
        name: "SEKIWAKE_SYSLOG_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder"],
        takes: "URIs",
        default: described("none, the service idles"),
        about: "destinations of syslog, such as udp://198.51.100.7 (port 514), tls://siem.example.net (6514) or nats://n1/telemetry.syslog, separated by white space",
    },
    Variable {
        name: "SEKIWAKE_SYSLOG_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder"],
        takes: "path",
        default: described("none"),
        about: "file with the destinations, instead of the variable; reloaded when it changes and on SIGHUP",
    },
    Variable {
        name: "SEKIWAKE_SPOOL_DIR",
        group: Group::Forwarding,
        read_by: &["syslog-forwarder", "xflow-forwarder", "trap-forwarder"],
        takes: "path",
        default: value("./spool"),
        about: "directory of the spools of destinations with `spool=`, one subdirectory per destination; forwarders may share it",
    },
    Variable {
        name: "SEKIWAKE_XFLOW_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["xflow-forwarder"],
        takes: "URIs",
        default: described("none, the service idles"),
        about: "destinations of flow records, such as udp://[2001:db8::7]:2055; the port has no default",
    },
    Variable {
        name: "SEKIWAKE_XFLOW_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["xflow-forwarder"],
        takes: "path",
        default: described("none"),
        about: "file with the destinations, instead of the variable; reloaded when it changes and on SIGHUP",
    },
    Variable {
        name: "SEKIWAKE_TRAP_DESTINATIONS",
        group: Group::Forwarding,
        read_by: &["trap-forwarder"],
        takes: "URIs",
        default: described("none, the service idles"),
        about: "destinations of SNMP traps, such as udp://198.51.100.7 (port 162)",
    },
    Variable {
        name: "SEKIWAKE_TRAP_DESTINATIONS_FILE",
        group: Group::Forwarding,
        read_by: &["trap-forwarder"],
        takes: "path",
        default: described("none"),
        about: "file with the destinations, instead of the variable; reloaded when it changes and on SIGHUP",
    },
    // Storing
    Variable {
        name: "SEKIWAKE_STORE_DIR",
        group: Group::Storing,
        read_by: STORER,
        takes: "path",
        default: value("./data"),
        about: "directory to write to; the all-in-one stores nothing unless this is set",
    },
    Variable {
        name: "SEKIWAKE_STORE_KINDS",
        group: Group::Storing,
        read_by: STORER,
        takes: "kinds or all",
        default: value("syslog"),
        about: "syslog, xflow, snmptrap, several separated by commas, or all",
    },
    Variable {
        name: "SEKIWAKE_STORE_PATH",
        group: Group::Storing,
        read_by: STORER,
        takes: "path",
        default: value("{date}/{kind}"),
        about: "path of files below it, from {date} {year} {month} {day} {hour} {source} {kind} {member}; period, member, part and extension are appended",
    },
    Variable {
        name: "SEKIWAKE_STORE_FORMAT",
        group: Group::Storing,
        read_by: STORER,
        takes: "json or text",
        default: value("json"),
        about: "syslog as JSON lines, or as one line of text per message; flows and traps are stored as pcapng",
    },
    Variable {
        name: "SEKIWAKE_STORE_COMMIT",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: value("1s"),
        about: "interval at which records are fsynced; they are acknowledged only afterwards",
    },
    Variable {
        name: "SEKIWAKE_STORE_ROTATE",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: value("1h"),
        about: "period of capture time per file, from 1m to 1d",
    },
    Variable {
        name: "SEKIWAKE_STORE_ROTATE_BYTES",
        group: Group::Storing,
        read_by: STORER,
        takes: "size",
        default: value("1GiB"),
        about: "rotate a file at this size",
    },
    Variable {
        name: "SEKIWAKE_STORE_COMPRESS",
        group: Group::Storing,
        read_by: STORER,
        takes: "0 to 19",
        default: value("3"),
        about: "zstd level for closed files; 0 disables compression",
    },
    Variable {
        name: "SEKIWAKE_STORE_KEEP",
        group: Group::Storing,
        read_by: STORER,
        takes: "duration",
        default: described("keep all"),
        about: "delete closed files that have not been written to for this long; per kind: syslog=90d,xflow=2d",
    },
    Variable {
        name: "SEKIWAKE_STORE_MAX_BYTES",
        group: Group::Storing,
        read_by: STORER,
        takes: "size",
        default: described("none"),
        about: "delete the oldest closed files of a kind when all of them together exceed this size; with several kinds a size for each: syslog=100GiB,xflow=400GiB",
    },
    // Anomaly detection
    Variable {
        name: "SEKIWAKE_ANOMALY_INTERVAL",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "duration",
        default: value("60s"),
        about: "length of an interval in which messages are counted, from 1s to 1h",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_WINDOW",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("20"),
        about: "intervals in the moving average, from 2 to 1000",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SIGMA",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("3"),
        about: "distance of the bands from the average, in standard deviations",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_MIN_WIDTH",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("10"),
        about: "minimum distance of the bands from the average, in messages",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_MIN_WIDTH_PERCENT",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("1"),
        about: "minimum distance of the bands, as a percentage of the average",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_CONSECUTIVE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("1"),
        about: "consecutive intervals outside the bands that raise an alarm, or inside that resolve it",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_BY",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "names",
        default: value("total"),
        about: "series to count: total, severity, source, or several of them",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SOURCES",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("10000"),
        about: "maximum number of sources counted separately; the least recently seen are evicted",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_SILENT_AFTER",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: described("off"),
        about: "report a source as silent after this multiple of its usual pause",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_GRACE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "duration",
        default: value("5s"),
        about: "delay from the end of an interval to its evaluation",
    },
    Variable {
        name: "SEKIWAKE_ANOMALY_STATE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "path",
        default: described("none"),
        about: "file that preserves the state across a restart of the proxy and all detectors",
    },
    Variable {
        name: "SEKIWAKE_NOTIFY",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "URIs",
        default: described("log, metrics and the bus only"),
        about: "notifiers: alertmanager+http://..., webhook+http://..., syslog+udp://..., separated by white space",
    },
    Variable {
        name: "SEKIWAKE_NOTIFY_CONSECUTIVE",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "number",
        default: value("2"),
        about: "consecutive intervals on the same side of the bands after which a notification is sent",
    },
    Variable {
        name: "SEKIWAKE_NOTIFY_FORGET",
        group: Group::Anomaly,
        read_by: ANOMALY_DETECTOR,
        takes: "duration",
        default: value("24h"),
        about: "age at which an alarm ends as new_level, because its level counts as usual by then",
    },
    // Decoding
    Variable {
        name: "SEKIWAKE_MIB_DIR",
        group: Group::Decoding,
        read_by: &["tap", "trap-forwarder"],
        takes: "path",
        default: described("none"),
        about: "folder of MIB files, for the names of decoded traps. The tap reads it again on SIGHUP; destinations with `value=decoded` and sekiwake-capture explain read it once",
    },
    // Console
    Variable {
        name: "SEKIWAKE_CONSOLE_STORERS",
        group: Group::Console,
        read_by: CONSOLE,
        takes: "addresses",
        default: described("none: no search"),
        about: "admin addresses of storers, such as 127.0.0.1:9605, which the console searches",
    },
    Variable {
        name: "SEKIWAKE_CONSOLE_TOKEN_FILE",
        group: Group::Console,
        read_by: CONSOLE,
        takes: "path or none",
        default: described("no page, unless SEKIWAKE_ADMIN is a loopback address"),
        about: "file with the token that the console's page asks for, or none for a page without a token",
    },
    Variable {
        name: "SEKIWAKE_CONSOLE_HOSTS",
        group: Group::Console,
        read_by: CONSOLE,
        takes: "names",
        default: described("localhost and IP addresses only"),
        about: "further host names under which the console's page is reached",
    },
    // Replicas
    Variable {
        name: "SEKIWAKE_GROUP",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "name",
        default: value("default"),
        about: "name of the group; replicas with the same name share the work",
    },
    Variable {
        name: "SEKIWAKE_MEMBER",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "name",
        default: described("the host's name"),
        about: "name of this replica in logs and metrics",
    },
    Variable {
        name: "SEKIWAKE_GROUP_START",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "duration",
        default: value("30s"),
        about: "how far back a new group starts, or one whose state the proxy has lost",
    },
    Variable {
        name: "SEKIWAKE_DEDUPLICATE",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "duration",
        default: described("none"),
        about: "deliver once what several captures or interfaces have seen within this time (1ms to 5s; 200ms for synchronised clocks)",
    },
    Variable {
        name: "SEKIWAKE_DEDUPLICATE_BYTES",
        group: Group::Replicas,
        read_by: GROUPED,
        takes: "size",
        default: value("64MiB"),
        about: "memory for what was delivered within that time, per member",
    },
    // Proxy
    Variable {
        name: "SEKIWAKE_PROXY_PUBLISH",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5559"),
        about: "endpoint for publishers (XSUB)",
    },
    Variable {
        name: "SEKIWAKE_PROXY_SUBSCRIBE",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5560"),
        about: "endpoint for subscribers (XPUB)",
    },
    Variable {
        name: "SEKIWAKE_PROXY_CONTROL",
        group: Group::Proxy,
        read_by: PROXY,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5561"),
        about: "endpoint for control connections (ROUTER)",
    },
    // Bus
    Variable {
        name: "SEKIWAKE_BUS_PUBLISH",
        group: Group::Bus,
        read_by: PUBLISHERS,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5559"),
        about: "the proxy's endpoint for publishers",
    },
    Variable {
        name: "SEKIWAKE_BUS_SUBSCRIBE",
        group: Group::Bus,
        read_by: SUBSCRIBERS,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5560"),
        about: "the proxy's endpoint for subscribers",
    },
    Variable {
        name: "SEKIWAKE_BUS_CONTROL",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "endpoints",
        default: value("tcp://127.0.0.1:5561"),
        about: "the proxy's endpoint for control connections",
    },
    Variable {
        name: "SEKIWAKE_BUS",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "NATS URLs",
        default: described("ZeroMQ"),
        about: "servers of NATS JetStream to use as the bus instead of the proxy; tls:// requires TLS",
    },
    Variable {
        name: "SEKIWAKE_BUS_TLS_CA_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("the system's"),
        about: "certificates (PEM) of authorities that servers of SEKIWAKE_BUS are checked with",
    },
    Variable {
        name: "SEKIWAKE_BUS_TLS_CERT_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("none"),
        about: "certificate (PEM) of this client; set together with SEKIWAKE_BUS_TLS_KEY_FILE",
    },
    Variable {
        name: "SEKIWAKE_BUS_TLS_KEY_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("none"),
        about: "its private key (PEM)",
    },
    Variable {
        name: "SEKIWAKE_BUS_NKEY_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("none"),
        about: "seed of an nkey for the servers of SEKIWAKE_BUS",
    },
    Variable {
        name: "SEKIWAKE_BUS_CREDENTIALS_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("none"),
        about: "credentials file (JWT and seed) for the servers of SEKIWAKE_BUS",
    },
    Variable {
        name: "SEKIWAKE_BUS_USER",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "text",
        default: described("none"),
        about: "user name for the servers of SEKIWAKE_BUS; set together with SEKIWAKE_BUS_PASSWORD_FILE",
    },
    Variable {
        name: "SEKIWAKE_BUS_PASSWORD_FILE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "path",
        default: described("none"),
        about: "file with its password",
    },
    Variable {
        name: "SEKIWAKE_BUS_REPLICAS",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "number",
        default: described("3 in a cluster of at least 3, else 1"),
        about: "servers of SEKIWAKE_BUS that keep a copy of each record, for streams that a service creates",
    },
    Variable {
        name: "SEKIWAKE_BUS_MAX_BYTES",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "size",
        default: value("1GiB"),
        about: "most bytes that SEKIWAKE_BUS retains per kind, for streams that a service creates",
    },
    Variable {
        name: "SEKIWAKE_BUS_MAX_AGE",
        group: Group::Bus,
        read_by: CONTROLLED,
        takes: "duration",
        default: value("1d"),
        about: "how long SEKIWAKE_BUS retains records, for streams that a service creates",
    },
    Variable {
        name: "SEKIWAKE_BUS_SERVER_KEY_FILE",
        group: Group::Bus,
        read_by: ALL,
        takes: "path",
        default: described("no encryption"),
        about: "the proxy's public key; set together with SEKIWAKE_BUS_KEY_FILE, except in the proxy",
    },
    Variable {
        name: "SEKIWAKE_BUS_KEY_FILE",
        group: Group::Bus,
        read_by: ALL,
        takes: "path",
        default: described("no encryption"),
        about: "secret key of this service, created by sekiwake-proxy keygen; mode 0600",
    },
    Variable {
        name: "SEKIWAKE_BUS_ALLOWED_KEYS_FILE",
        group: Group::Bus,
        read_by: PROXY,
        takes: "path",
        default: described("no encryption"),
        about: "accepted public keys, one per line with an optional name; reloaded when the file changes",
    },
    // Service
    Variable {
        name: "SEKIWAKE_ADMIN",
        group: Group::Service,
        read_by: ALL,
        takes: "address",
        default: described("127.0.0.1, port 9600 to 9608 depending on the service"),
        about: "address of /metrics, /healthz, /readyz and /status",
    },
    Variable {
        name: "SEKIWAKE_DRAIN",
        group: Group::Service,
        read_by: ALL,
        takes: "duration",
        default: value("10s"),
        about: "time limit for draining when the service stops",
    },
    Variable {
        name: "SEKIWAKE_LOG",
        group: Group::Service,
        read_by: ALL,
        takes: "filter",
        default: value("info"),
        about: "log level, or levels by module such as info,sekiwake_bus=debug",
    },
    Variable {
        name: "SEKIWAKE_LOG_FORMAT",
        group: Group::Service,
        read_by: ALL,
        takes: "text or json",
        default: value("text"),
        about: "log format",
    },
];

const fn value(text: &'static str) -> VariableDefault {
    VariableDefault::Value(text)
}

const fn described(text: &'static str) -> VariableDefault {
    VariableDefault::Described(text)
}
