//! `docs/metrics.md`: the metrics to watch with their queries, the meaning of every reason, and all
//! metrics of running services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use sekiwake_testkit::netns::namespaces_or_skipped;
use sekiwake_tests::{FORWARDERS, Services, Site, WIRE};

use super::{check, document};
use crate::keys::keygen;

/// A question that an operator asks first.
pub(crate) struct Watched {
    question: &'static str,
    answer: &'static str,
    /// Queries, which the test of the dashboards runs as well.
    pub(crate) queries: &'static [&'static str],
}

pub(crate) const WATCHED: [Watched; 5] = [
    Watched {
        question: "Is anything captured?",
        answer: "Datagrams taken off the wire, per second. Expect the usual rate; 0 means a broken mirror port or a \
                 wrong `SEKIWAKE_*_PORTS`.",
        queries: &["sum by (instance, kind) (rate(sekiwake_capture_claimed_datagrams_total[5m]))"],
    },
    Watched {
        question: "Is anything lost before it is captured?",
        answer: "Packets that the kernel or the network card dropped. Expect 0.",
        queries: &["sum by (instance, interface, reason) \
             (increase(sekiwake_capture_dropped_packets_total{reason=~\"kernel|interface\"}[5m]))"],
    },
    Watched {
        question: "Is anything lost on the bus?",
        answer: "Records that a forwarder, storer or detector never received. Expect 0.",
        queries: &["sum by (job, kind, reason) (increase(sekiwake_bus_lost_records_total[5m]))"],
    },
    Watched {
        question: "Does every destination get its datagrams?",
        answer: "Datagrams dropped for a destination: expect 0. Whether it is up: expect 1, or NaN with `spoof=true`, \
                 where the state is unknown.",
        queries: &[
            "sum by (destination, reason) (increase(sekiwake_forward_dropped_datagrams_total[5m]))",
            "min by (destination) (sekiwake_forward_up)",
        ],
    },
    Watched {
        question: "Does every group keep up?",
        answer: "Records captured and not yet handled (on NATS JetStream: `sekiwake_bus_shard_lag_records`). Expect less \
                 than a second of traffic. Records are lost when the value exceeds the number that captures \
                 (`SEKIWAKE_RETAIN`) or the servers retain.",
        queries: &["max by (group) (sekiwake_group_lag_records)"],
    },
];

/// Where the meaning of a metric's reasons is.
enum Meanings {
    Here(&'static [(&'static str, &'static str)]),
    /// In the first table after the metric's name in this document.
    In(&'static str),
}

struct Explained {
    metrics: &'static [&'static str],
    /// What the counts mean as a whole.
    about: &'static str,
    meanings: Meanings,
}

const EXPLAINED: &[Explained] = &[
    Explained {
        metrics: &["sekiwake_capture_dropped_packets_total"],
        about: "`kernel` and `interface` are losses; `not_ip`, `not_udp` and `unclaimed_offload` are not. The others may \
                have been telemetry that could not be decoded.",
        meanings: Meanings::In("docs/capturing.md"),
    },
    Explained {
        metrics: &["sekiwake_capture_unclaimed_datagrams_total"],
        about: "No loss.",
        meanings: Meanings::Here(&[
            ("other_port", "to a port that is not among `SEKIWAKE_SYSLOG_PORTS`, `_XFLOW_PORTS` and `_TRAP_PORTS`"),
            ("own_destination", "to a destination of this installation: sent by its forwarders"),
            ("duplicate", "the second copy of what the interface shows twice (`SEKIWAKE_CAPTURE_DEDUPLICATE`)"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_bus_unpublished_records_total"],
        about: "Only `bus_full` is a loss.",
        meanings: Meanings::Here(&[
            ("no_subscriber", "no subscriber; retained, so that a group that joins in time still gets them"),
            (
                "bus_full",
                "the proxy accepted no data until the memory (`SEKIWAKE_RETAIN`) was full, or the publishing thread did not keep up",
            ),
            (
                "own_destination",
                "captured before the list of this installation's destinations arrived, and found to be sent to one of them",
            ),
        ]),
    },
    Explained {
        metrics: &["sekiwake_relay_rejected_messages_total"],
        about: "At the proxy. `no_room` is repaired for groups, and lost for simple subscribers.",
        meanings: Meanings::Here(&[
            ("malformed", "not a batch or an event of the [protocol](bus.md)"),
            ("unknown_topic", "a topic that the bus does not have"),
            ("no_room", "128 MiB were waiting for the proxy's thread"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_bus_lost_records_total"],
        about: "All but `one_view` are losses. After a kill the count is an upper bound, see \
                [replicas.md](replicas.md#what-happens-when). What a member that was cut off may have handled counts \
                when it has returned; until then it is in `sekiwake_group_doubted_records`.",
        meanings: Meanings::Here(&[
            ("not_retained", "missed for longer than the capture's memory (`SEKIWAKE_RETAIN`) reaches back"),
            ("stream_gone", "not received before the capture that had them ended or restarted"),
            (
                "unknown",
                "nobody knows whether they were handled: a killed member may have handled them, or the capture has ended and the group's position is not known. An upper bound",
            ),
            (
                "one_view",
                "one of the above, while another capture showed datagrams of the same sources to a member that \
                 [deduplicates](deduplication.md): it may have shown these too",
            ),
        ]),
    },
    Explained {
        metrics: &["sekiwake_deduplicate_uncompared_records_total"],
        about: "Delivered, perhaps for the second time. See [deduplication.md](deduplication.md).",
        meanings: Meanings::Here(&[
            ("no_origin", "from a capture of an earlier version, whose records do not say enough"),
            ("late", "captured before what is remembered"),
            (
                "apart",
                "equal to a datagram of another view whose capture time differs by more than `SEKIWAKE_DEDUPLICATE`",
            ),
            ("too_many_views", "more than 64 interfaces of captures at a time"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_bus_malformed_messages_total"],
        about: "From a program that is not Sekiwake's, or of an incompatible version.",
        meanings: Meanings::Here(&[("malformed", "a message that cannot be decoded")]),
    },
    Explained {
        metrics: &["sekiwake_bus_denied_connections_total"],
        about: "At the proxy, with [keys](keys.md). The log names address and key.",
        meanings: Meanings::Here(&[
            ("key_not_allowed", "the client's key is not on the list"),
            ("not_encrypted", "the client has no keys"),
            ("wrong_server_key", "the client has another public key of the proxy"),
            (
                "handshake_failed",
                "the client closed the connection, was silent, or sent no valid handshake; a client without keys may end here too",
            ),
        ]),
    },
    Explained {
        metrics: &["sekiwake_control_rejected_messages_total"],
        about: "Messages that break the protocol. They do not affect other members. A steady rise points to a \
                program that is not Sekiwake's.",
        meanings: Meanings::Here(&[
            ("malformed", "cannot be decoded, too large, or not for this party"),
            ("joins", "a member of another kind or protocol version, too many of one connection, or no room"),
            (
                "foreign",
                "in the name of another connection's member, stream or service; or status of more than 1,024 services",
            ),
            ("stale", "older than one received before"),
            ("holdings", "a member claims a shard in a generation that was never granted"),
            ("commits", "a position of another kind, or in more streams or groups than there is room for"),
            ("destinations", "more destinations than the list has room for"),
            ("repairs", "requests for repair above the rate, or not from a member; answers that were not requested"),
            ("streams", "more streams than there is room for"),
            ("advertisements", "a publisher's oldest record is after its next one"),
            ("clients", "a registration of a client that is in no group: no room, or not the same as its first"),
            ("handoff_rate", "hand-off state above the member's rate"),
            ("status_rate", "status messages above the rate of one service, or of all services together"),
            ("reader_requests", "a reader's request that its next one replaced, or beyond 64 readers"),
            (
                "handoff_entries",
                "at a member: a malformed message about hand-off state, or an answer that was not requested",
            ),
        ]),
    },
    Explained {
        metrics: &["sekiwake_forward_dropped_datagrams_total"],
        about: "Each is a loss for that destination only; `empty` is no loss.",
        meanings: Meanings::In("docs/forwarding.md"),
    },
    Explained {
        metrics: &["sekiwake_forward_skipped_records_total"],
        about: "No loss: the destination's URI asks for it.",
        meanings: Meanings::Here(&[
            ("source", "not among `source`, or among `exclude_source`"),
            ("format", "not among `format`"),
            ("facility", "not among `facility`"),
            ("severity", "less severe than `min_severity`"),
            ("pool", "sent to another member of the pool"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_forward_spoof_fallbacks_total"],
        about: "No loss: sent, but with the forwarder's address.",
        meanings: Meanings::In("docs/forwarding.md"),
    },
    Explained {
        metrics: &["sekiwake_store_deleted_files_total", "sekiwake_store_deleted_bytes_total"],
        about: "No loss: deleted as configured.",
        meanings: Meanings::Here(&[
            ("age", "not written to for `SEKIWAKE_STORE_KEEP`"),
            ("size", "the oldest, because the total exceeded `SEKIWAKE_STORE_MAX_BYTES`"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_anomaly_uncounted_records_total"],
        about: "Messages missing from the counts. `late` and `ahead` point to a capture whose clock differs from the detector's.",
        meanings: Meanings::Here(&[
            ("late", "of an interval that had been evaluated"),
            ("ahead", "of an interval after the next one"),
            ("unknown", "of an interval that could not be evaluated, because it was incomplete"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_notify_dropped_total"],
        about: "The alarm is still in the log, in metrics and on the bus.",
        meanings: Meanings::Here(&[
            ("queue_full", "256 notifications were waiting"),
            ("gave_up", "all attempts failed"),
            ("rejected", "the receiver rejected it for good"),
            ("shutdown", "not sent at the drain deadline; the next detector sends it"),
            ("handed_over", "another detector is active now, and sends it"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_console_rejected_parts_total"],
        about: "The page says how many there were.",
        meanings: Meanings::Here(&[
            ("invalid", "not an object of the documented form"),
            ("no_room", "of more services, parts or bytes than the console keeps"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_console_denied_requests_total"],
        about: "No loss.",
        meanings: Meanings::Here(&[
            ("host", "under a name that is not in `SEKIWAKE_CONSOLE_HOSTS`"),
            ("token", "a form with a wrong token"),
        ]),
    },
    Explained {
        metrics: &["sekiwake_log_dropped_total"],
        about: "Lines of the log only; data is not affected.",
        meanings: Meanings::Here(&[
            ("queue_full", "standard error is not read"),
            ("write_failed", "the disk is full, or the pipe is closed"),
        ]),
    },
];

#[test]
fn metrics_page_lists_every_metric() {
    if !namespaces_or_skipped() {
        return;
    }
    let site = Site::new().unwrap();
    // One key for all services, because some metrics exist only with keys.
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    keygen(&key);
    let key = key.display().to_string();
    let public_key = folder.path().join("key.pub").display().to_string();
    let spool = folder.path().join("spool").display().to_string();
    let destinations = folder.path().join("destinations");
    fs::write(&destinations, "udp://198.51.100.11:514 tcp://198.51.100.11:514?spool=2MiB").unwrap();
    let destinations = destinations.display().to_string();
    let others = ["sekiwake-storer", "sekiwake-anomaly-detector", "sekiwake-console"];
    let names = [&["sekiwake-capture", "sekiwake-proxy"][..], &FORWARDERS.map(|(_, name)| name), &others].concat();
    let store = folder.path().join("store").display().to_string();
    let environment = [
        ("SEKIWAKE_STORE_DIR", &*store),
        ("SEKIWAKE_NOTIFY", "syslog+udp://127.0.0.1:5514"),
        ("SEKIWAKE_CAPTURE_INTERFACES", WIRE),
        ("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", &destinations),
        ("SEKIWAKE_SPOOL_DIR", &spool),
        ("SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.11:2055"),
        ("SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.11:162"),
        ("SEKIWAKE_BUS_KEY_FILE", &key),
        ("SEKIWAKE_BUS_SERVER_KEY_FILE", &public_key),
        ("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", &public_key),
    ];
    let services = Services::start(&site.host, &names, &environment).unwrap();
    let mut families = BTreeMap::new();
    for service in &services.0 {
        collect(&service.page("/metrics").unwrap(), &mut families);
    }
    services.stop().unwrap();
    check_reasons(&families);
    check("docs/metrics.md", &metrics_page(&families));
}

/// A metric, from the pages of all services.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeSet<String>,
    /// The values of the label `reason`.
    reasons: BTreeSet<String>,
    services: BTreeSet<String>,
}

fn collect(page: &str, families: &mut BTreeMap<String, Family>) {
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let family = base.filter(|base| families.contains_key(*base)).unwrap_or(name);
            let family = families.get_mut(family).expect("HELP comes before samples");
            for label in line.split_once('{').map_or("", |(_, rest)| rest).split("\",") {
                match label.split_once("=\"") {
                    Some(("service", value)) => {
                        family.services.insert(value.split('"').next().unwrap_or_default().to_owned());
                    }
                    Some(("le", _)) | None => {}
                    Some((label, value)) => {
                        if label == "reason" {
                            family.reasons.insert(value.split('"').next().unwrap_or_default().to_owned());
                        }
                        family.labels.insert(label.to_owned());
                    }
                }
            }
        }
    }
}

/// The services that have a metric, with one word for those that often occur together.
fn services_in_words(services: &BTreeSet<String>) -> String {
    const ALL: usize = 8;
    const FORWARDERS: [&str; 3] = ["syslog-forwarder", "trap-forwarder", "xflow-forwarder"];
    const SUBSCRIBERS: [&str; 5] =
        ["anomaly-detector", "storer", "syslog-forwarder", "trap-forwarder", "xflow-forwarder"];
    if services.len() == ALL {
        return "all".to_owned();
    }
    let mut words: BTreeSet<&str> = services.iter().map(String::as_str).collect();
    for (group, word) in [(&SUBSCRIBERS[..], "subscribers"), (&FORWARDERS[..], "forwarders")] {
        if group.iter().all(|service| words.contains(service)) {
            words.retain(|service| !group.contains(service));
            words.insert(word);
        }
    }
    words.into_iter().collect::<Vec<_>>().join(", ")
}

/// Every reason has a meaning, and every meaning a reason. All are exported as 0 from the start, so
/// that a running service shows them all.
#[track_caller]
fn check_reasons(families: &BTreeMap<String, Family>) {
    let series = |metric: &str, reason: &str| format!("{metric}{{reason=\"{reason}\"}}");
    let mut explained = BTreeSet::new();
    for one in EXPLAINED {
        for (reason, _) in one.meanings() {
            explained.extend(one.metrics.iter().map(|metric| series(metric, &reason)));
        }
    }
    let mut exported = BTreeSet::new();
    for (name, family) in families {
        exported.extend(family.reasons.iter().map(|reason| series(name, reason)));
    }
    let unexplained: Vec<_> = exported.difference(&explained).collect();
    let unknown: Vec<_> = explained.difference(&exported).collect();
    assert!(unexplained.is_empty(), "reasons without a meaning in {} or the page it names: {unexplained:?}", file!());
    assert!(unknown.is_empty(), "explained in {} or the page it names, and not exported: {unknown:?}", file!());
}

impl Explained {
    /// The meaning of each reason.
    fn meanings(&self) -> Vec<(String, String)> {
        match self.meanings {
            Meanings::Here(list) => {
                list.iter().map(|(reason, text)| ((*reason).to_owned(), (*text).to_owned())).collect()
            }
            Meanings::In(page) => {
                let text = fs::read_to_string(document(page)).unwrap();
                let name = page.trim_start_matches("docs/");
                let table = text.split_once(self.metrics[0]).unwrap_or_else(|| panic!("{page}: {}", self.metrics[0])).1;
                let rows = table.lines().skip_while(|line| !line.starts_with("| reason |")).skip(2);
                let rows = rows.map_while(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "));
                rows.map(|(reason, meaning)| (reason.to_owned(), meaning.replace("](#", &format!("]({name}#"))))
                    .collect()
            }
        }
    }
}

fn metrics_page(families: &BTreeMap<String, Family>) -> String {
    let mut page = "# Metrics\n\n".to_owned();
    page += &wrapped(
        "Metrics of all services, on `/metrics` of their admin ports ([services.md](services.md)). Generated from \
         running services. [runbook.md](runbook.md) explains the alerts, which are in \
         [deploy/prometheus/rules](../deploy/prometheus/rules).",
    );
    page += "\n## Watch these five\n";
    for (number, Watched { question, answer, queries }) in (1..).zip(&WATCHED) {
        let _ = write!(page, "\n{}\n```promql\n", wrapped(&format!("**{number}. {question}** {answer}")));
        for query in *queries {
            let _ = writeln!(page, "{query}");
        }
        page += "```\n";
    }
    page += "\n## Reasons\n\n";
    page += &wrapped(
        "Losses are counters with the label `reason`. For every service, received == sent + dropped{reason} + queued. \
         Every reason is exported from the start, as 0.",
    );
    for one in EXPLAINED {
        let metrics: Vec<String> = one.metrics.iter().map(|metric| format!("`{metric}`")).collect();
        let _ = write!(
            page,
            "\n{}\n| reason | meaning |\n|---|---|\n",
            wrapped(&format!("{}: {}", metrics.join(", "), one.about))
        );
        for (reason, meaning) in one.meanings() {
            let _ = writeln!(page, "| `{reason}` | {meaning} |");
        }
    }
    page += "\n## All metrics\n\n";
    page += &wrapped(
        "Every metric carries the label `service`, except those of the process. \"Subscribers\" are the three \
         forwarders, the storer and the anomaly detector. On servers of NATS there are some \
         [more](bus-jetstream.md#metrics).",
    );
    page += "\n| metric | type | labels | services | |\n|---|---|---|---|---|\n";
    for (name, family) in families {
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let services = services_in_words(&family.services);
        let _ =
            writeln!(page, "| `{name}` | {} | {} | {services} | {} |", family.kind, list(&family.labels), family.help);
    }
    page
}

/// The text in lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 {
            let fits = column + 1 + width <= 100;
            lines.push(if fits { ' ' } else { '\n' });
            column = if fits { column + 1 } else { 0 };
        }
        lines += word;
        column += width;
    }
    lines + "\n"
}
