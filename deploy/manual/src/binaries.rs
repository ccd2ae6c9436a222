//! The binaries, with the parts of their pages that are written by hand.

use sekiwake_runtime::{CommandLine, tool_command_line};

/// A shipped binary.
#[derive(Clone, Debug)]
pub struct Binary {
    /// Its command line and variables.
    pub line: CommandLine,
    /// The section of its page: 1 for a tool, 8 for a service.
    pub section: u8,
    /// Its description, in paragraphs.
    pub(crate) description: Vec<&'static str>,
    /// Commands to copy, with a comment each.
    pub(crate) examples: Vec<Example>,
    /// The files that SIGHUP makes it read again, as a phrase.
    pub(crate) reloads: Option<&'static str>,
}

/// An example.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Example {
    pub(crate) about: &'static str,
    pub(crate) lines: &'static str,
}

impl Binary {
    /// The name of the binary and of its page.
    pub fn name(&self) -> &'static str {
        self.line.about.binary
    }

    /// Whether it is a service, which drains when it stops.
    pub(crate) fn is_service(&self) -> bool {
        self.section == 8
    }

    fn service(line: CommandLine) -> Binary {
        Binary { line, section: 8, description: Vec::new(), examples: Vec::new(), reloads: None }
    }

    fn tool(line: CommandLine) -> Binary {
        Binary { section: 1, ..Binary::service(line) }
    }

    fn describe(mut self, paragraphs: &[&'static str]) -> Binary {
        self.description.extend(paragraphs);
        self
    }

    fn example(mut self, about: &'static str, lines: &'static str) -> Binary {
        self.examples.push(Example { about, lines });
        self
    }

    fn reloads(mut self, files: &'static str) -> Binary {
        self.reloads = Some(files);
        self
    }
}

const DESTINATIONS_FILE: &str = "The file of destinations is read again. It is also read when it changes.";
const SPOOF: &str = "A destination with spoof=true gets datagrams with the address of the device as their \
    source; this needs the capability CAP_NET_RAW.";
const SHARED_WORK: &str = "Replicas with the same SEKIWAKE_GROUP share the work: each handles a part of the \
    sources. To send everything to a second collector, add its URI, or start another forwarder with another \
    SEKIWAKE_GROUP.";

/// All shipped binaries.
pub fn binaries() -> Vec<Binary> {
    vec![
        all_in_one(),
        capture(),
        proxy(),
        syslog_forwarder(),
        xflow_forwarder(),
        trap_forwarder(),
        storer(),
        anomaly_detector(),
        console(),
        tap(),
        sender(),
        receiver(),
    ]
}

fn all_in_one() -> Binary {
    Binary::service(sekiwake_all_in_one::process().command_line())
        .describe(&[
            "Captures syslog, flow records and SNMP traps, forwards them, stores syslog and detects anomalies \
             in its rate: all services in one process, for a site with one host. The services use a bus within \
             the process. Without SEKIWAKE_STORE_DIR nothing is stored.",
            "It needs the capability CAP_NET_RAW.",
        ])
        .reloads(DESTINATIONS_FILE)
        .example(
            "Forward syslog and flow records from a mirror port:",
            "SEKIWAKE_CAPTURE_INTERFACES=eth1 \\\n\
             SEKIWAKE_SYSLOG_DESTINATIONS=udp://198.51.100.7 \\\n\
             SEKIWAKE_XFLOW_DESTINATIONS='udp://198.51.100.7:2055?spoof=true' sekiwake",
        )
        .example("Check a file of settings:", "sudo sekiwake --check --env-file /etc/sekiwake/sekiwake.env")
}

fn capture() -> Binary {
    Binary::service(sekiwake_capture::process().command_line())
        .describe(&[
            "Reads packets from network interfaces or from a savefile, and publishes each UDP datagram to a \
             configured port on the bus, with its addresses and the time of its capture. Datagrams are \
             identified as syslog, flow records or SNMP traps. Syslog over TCP is not captured.",
            "It needs the capability CAP_NET_RAW.",
        ])
        .example(
            "List the UDP traffic on an interface, before anything is configured:",
            "sekiwake-capture discover eth1",
        )
        .example(
            "Capture a mirror port, with a second port for syslog:",
            "SEKIWAKE_CAPTURE_INTERFACES=eth1 SEKIWAKE_SYSLOG_PORTS=514,5514 sekiwake-capture",
        )
}

fn proxy() -> Binary {
    Binary::service(sekiwake_proxy::process().command_line())
        .describe(&["Connects publishers and subscribers: the one address on the bus that all other services \
                     connect to. It also decides which member of a group handles which sources. It may be \
                     restarted at any time."])
        .example(
            "Listen on all addresses, for services on other hosts:",
            "SEKIWAKE_PROXY_PUBLISH='tcp://*:5559' SEKIWAKE_PROXY_SUBSCRIBE='tcp://*:5560' \\\n\
             SEKIWAKE_PROXY_CONTROL='tcp://*:5561' sekiwake-proxy",
        )
        .example("Create a key pair for a client:", "sekiwake-proxy keygen /etc/sekiwake/keys/capture")
}

fn syslog_forwarder() -> Binary {
    Binary::service(sekiwake_syslog_forwarder::process().command_line())
        .describe(&[
            "Sends the captured syslog datagrams to one or more destinations, over UDP, TCP or TLS.",
            SPOOF,
            SHARED_WORK,
        ])
        .reloads(DESTINATIONS_FILE)
        .example(
            "Send to two collectors, to one of them over TLS:",
            "SEKIWAKE_SYSLOG_DESTINATIONS='udp://198.51.100.7 tls://siem.example.net' \\\n\
             sekiwake-syslog-forwarder",
        )
}

fn xflow_forwarder() -> Binary {
    Binary::service(sekiwake_xflow_forwarder::process().command_line())
        .describe(&[
            "Sends the captured NetFlow, IPFIX and sFlow datagrams to one or more collectors. A collector that \
             starts late gets the templates first.",
            SPOOF,
            SHARED_WORK,
        ])
        .reloads(DESTINATIONS_FILE)
        .example(
            "Send with the addresses of the exporters:",
            "SEKIWAKE_XFLOW_DESTINATIONS='udp://198.51.100.7:2055?spoof=true' sekiwake-xflow-forwarder",
        )
}

fn trap_forwarder() -> Binary {
    Binary::service(sekiwake_trap_forwarder::process().command_line())
        .describe(&["Sends the captured SNMP traps and informs to one or more destinations.", SPOOF, SHARED_WORK])
        .reloads(DESTINATIONS_FILE)
        .example(
            "Send with the addresses of the agents:",
            "SEKIWAKE_TRAP_DESTINATIONS='udp://198.51.100.7?spoof=true' sekiwake-trap-forwarder",
        )
}

fn storer() -> Binary {
    Binary::service(sekiwake_storer::process().command_line())
        .describe(&["Stores the captured syslog as files of JSON lines or text, compresses closed files and \
                     deletes old ones. A message is acknowledged when it is on disk. The admin server answers \
                     searches at /search."])
        .example(
            "Keep 90 days, 500 GiB at most:",
            "SEKIWAKE_STORE_DIR=/var/lib/sekiwake SEKIWAKE_STORE_KEEP=90d \\\n\
             SEKIWAKE_STORE_MAX_BYTES=500GiB sekiwake-storer",
        )
        .example(
            "Search the last day, without a running service:",
            "sekiwake-storer search --dir /var/lib/sekiwake --from -1d --text LINK-3-UPDOWN",
        )
        .example(
            "Send what one site sent on a day to a new collector, from the devices' addresses, ten times as fast:",
            "sekiwake-storer replay --from 2026-01-02 --to 2026-01-03 --source 10.1.0.0/16 --speed 10 \\\n\
             --to-destination 'udp://198.51.100.7?spoof=true'",
        )
        .example(
            "Write the flows of a day to a file for Wireshark:",
            "sekiwake-storer export --kind xflow --from 2026-01-02 --to 2026-01-03 --output friday.pcapng",
        )
}

fn anomaly_detector() -> Binary {
    Binary::service(sekiwake_anomaly_detector::process().command_line())
        .describe(&["Counts syslog messages per interval and compares each count with bands around a moving \
                     average. Alarms are logged, published on the bus, and sent to notifiers. In a group one \
                     detector works, the others stand by."])
        .example(
            "Notify Alertmanager of unusual rates in total and per severity:",
            "SEKIWAKE_ANOMALY_BY=total,severity \\\n\
             SEKIWAKE_NOTIFY=alertmanager+http://198.51.100.9:9093 sekiwake-anomaly-detector",
        )
}

fn console() -> Binary {
    Binary::service(sekiwake_console::process().command_line())
        .describe(&[
            "Serves one page that shows captures, the bus, groups and destinations with their rates and \
             losses, the anomalies, and live records. It reads everything from the bus; only a search needs \
             the addresses of storers.",
            "The page listens on loopback. On any other address it asks for a token \
             (SEKIWAKE_CONSOLE_TOKEN_FILE).",
        ])
        .example(
            "Serve it to a network, with a token, and search two storers:",
            "SEKIWAKE_ADMIN=0.0.0.0:9608 SEKIWAKE_CONSOLE_TOKEN_FILE=/etc/sekiwake/console.token \\\n\
             SEKIWAKE_CONSOLE_STORERS=198.51.100.7:9605,198.51.100.8:9605 sekiwake-console",
        )
}

fn tap() -> Binary {
    Binary::tool(tool_command_line::<sekiwake_tap::Tap>())
        .example("Print ten syslog records:", "sekiwake-tap --count 10 syslog/")
        .example("Print the state of all services, once per second:", "sekiwake-tap status/")
        .example("Print the flow templates that are known, then live flows:", "sekiwake-tap templates/ xflow/")
}

fn sender() -> Binary {
    Binary::tool(tool_command_line::<sekiwake_sender::SenderTool>()).example(
        "Send NetFlow v9 of 50 exporters, 1000 datagrams per second for ten seconds:",
        "sekiwake-sender --to 198.51.100.7 --protocol netflow9 --from 198.18.0.0/24 --sources 50 \\\n\
         --rate 1000 --duration 10s",
    )
}

fn receiver() -> Binary {
    Binary::tool(tool_command_line::<sekiwake_receiver::Receiver>())
        .example("Count datagrams to two ports:", "sekiwake-receiver --listen 0.0.0.0:514,0.0.0.0:2055 --every 5s")
}
