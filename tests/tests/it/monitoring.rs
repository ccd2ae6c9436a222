//! Monitoring: Prometheus's configuration, alert rules, dashboards and the runbook match each other
//! and the services' metrics, on a real pipeline with a real Prometheus and Alertmanager.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use sekiwake_testkit::{process::Process, sink::Options, skip::met_or_skipped, wait::wait_for};
use sekiwake_tests::{FORWARDERS, MIRRORED, Services, collector, get};
use serde_json::Value;

use crate::{documents::metrics_page::WATCHED, keys::keygen, support::*};

const TOOLS: [&str; 4] = ["promtool", "amtool", "prometheus", "prometheus-alertmanager"];
const RULES: &str = "prometheus/rules/sekiwake.yml";
/// What stands before the path of each runbook_url: the external label, if it is set.
const DOCS: &str = "{{ with $externalLabels.runbook_base }}{{ . }}/{{ end }}";
/// The job of the all-in-one, which is in the alerts but not in the committed configuration.
const ALL_IN_ONE: &str = "sekiwake";
/// Jobs other than Sekiwake's.
const OTHER_JOBS: [&str; 3] = ["elsewhere", "prometheus", "alertmanager"];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether the tools are installed. Otherwise reports that the test is skipped, or fails it.
fn tools_or_skipped() -> bool {
    let missing = TOOLS.into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    met_or_skipped(missing.map_or(Ok(()), |tool| Err(format!("{tool} is not installed"))))
}

/// Runs a program, which must succeed. Returns its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(deploy("")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {printed}");
    printed
}

/// The files of the rules' unit tests.
fn rule_tests() -> Vec<String> {
    let files = fs::read_dir(deploy("prometheus/tests")).unwrap();
    files.map(|file| file.unwrap().path().display().to_string()).collect()
}

/// The dashboards by file name.
fn dashboards() -> Vec<(String, Value)> {
    let files = fs::read_dir(deploy("grafana/dashboards")).unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<(String, Value)> = files
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, serde_json::from_str(&read(&path)).unwrap())
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// The values of `key` in YAML or Markdown.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim_start().strip_prefix("- ").unwrap_or(line.trim_start()).strip_prefix(key))
        .map(str::trim)
}

#[test]
fn prometheus_and_alertmanager_configuration_is_valid() {
    if !tools_or_skipped() {
        return;
    }
    run("promtool", &["check", "config", "prometheus/prometheus.yml"]);
    run("promtool", &["check", "rules", RULES]);
    let tests = rule_tests();
    let tests: Vec<&str> = ["test", "rules"].into_iter().chain(tests.iter().map(String::as_str)).collect();
    run("promtool", &tests);
    run("amtool", &["check-config", "alertmanager/alertmanager.yml"]);
    let config = "--config.file=alertmanager/alertmanager.yml";
    for severity in ["severity=critical", "severity=warning"] {
        let receiver = run("amtool", &["config", "routes", "test", config, "alertname=SekiwakeBusLoss", severity]);
        assert_eq!(receiver.lines().next(), Some("operators"));
    }
}

#[test]
fn alerts_runbook_and_rule_tests_match() {
    let rules = read(&deploy(RULES));
    let alerts: BTreeSet<&str> = values(&rules, "alert:").collect();
    assert!(!alerts.is_empty());
    let runbook = read(&deploy("../docs/runbook.md"));
    let paragraphs: BTreeSet<&str> = values(&runbook, "## ").collect();
    assert_eq!(alerts, paragraphs);
    let links: BTreeSet<String> = values(&rules, "runbook_url:").map(str::to_owned).collect();
    let expected = alerts.iter().map(|alert| format!("\"{DOCS}docs/runbook.md#{}\"", alert.to_lowercase()));
    assert_eq!(links, expected.collect());
    let tests: String = rule_tests().iter().map(|path| read(Path::new(path))).collect();
    for alert in &alerts {
        // One case expects the alert, another expects its absence.
        let cases: Vec<&str> =
            tests.split("alertname: ").skip(1).filter(|case| case.starts_with(&format!("{alert}\n"))).collect();
        let is_quiet = |case: &&&str| case.lines().nth(1).is_some_and(|line| line.trim() == "exp_alerts: []");
        let quiet = cases.iter().filter(is_quiet).count();
        assert!(cases.len() > quiet, "no test expects {alert}");
        assert!(quiet > 0, "no test expects the absence of {alert}");
    }
    // The rules select all jobs of Prometheus.
    let config = read(&deploy("prometheus/prometheus.yml"));
    let jobs = values(&config, "job_name:").filter(|job| !OTHER_JOBS.contains(job)).chain([ALL_IN_ONE]);
    let jobs: BTreeSet<&str> = jobs.collect();
    for Matcher { metric, label, values } in matchers(&rules).filter(|matcher| matcher.label == "job") {
        assert_eq!(values.iter().map(String::as_str).collect::<BTreeSet<_>>(), jobs, "{metric}: {label}");
    }
    // The inhibition rules name only existing alerts.
    let alertmanager = read(&deploy("alertmanager/alertmanager.yml"));
    for name in alertmanager.split(|letter: char| !letter.is_alphanumeric()).filter(|word| word.starts_with("Sekiwake"))
    {
        assert!(alerts.contains(name), "Alertmanager's configuration names {name}, which is not an alert");
    }
}

#[test]
fn dashboards_are_consistent() {
    let provisioned = read(&deploy("grafana/provisioning/datasources/prometheus.yml"));
    let sources: BTreeSet<&str> = values(&provisioned, "uid:").collect();
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(name, format!("{uid}.json"));
        assert!(uids.insert(uid.to_owned()), "two dashboards have the uid {uid}");
        assert!(!dashboard["title"].as_str().unwrap().is_empty());
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title} has the id of another panel");
            let position = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(position("x") + position("w") <= 24, "{name}: {title} is wider than the page");
            for cell in (position("x")..position("x") + position("w"))
                .flat_map(|x| (position("y")..position("y") + position("h")).map(move |y| (x, y)))
            {
                assert!(taken.insert(cell), "{name}: {title} overlaps another panel");
            }
            let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
            assert!(!targets.is_empty() || panel["type"] == "row", "{name}: {title} has no query");
            assert!(
                panel["type"] == "row" || panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name}: {title}: unit"
            );
            for source in targets.iter().chain([panel]).filter_map(|one| one["datasource"]["uid"].as_str()) {
                assert!(sources.contains(source), "{name}: {title} uses the unknown data source {source}");
            }
        }
    }
    assert!(uids.len() >= 4);
}

/// A query of a dashboard.
struct Query {
    dashboard: String,
    title: String,
    expression: String,
}

/// Every query of a dashboard, with variables replaced as by "All".
fn queries(dashboard_name: &str, dashboard: &Value) -> Vec<Query> {
    let names = dashboard["templating"]["list"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    let names: Vec<&str> = names.collect();
    let replaced = |text: &str| {
        let text = text.replace("$__rate_interval", "10s");
        names.iter().fold(text, |text, name| text.replace(&format!("${name}"), ".*"))
    };
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = replaced(target["expr"].as_str().unwrap());
            assert!(!expression.contains('$'), "unknown variable in {expression}");
            let title = panel["title"].as_str().unwrap().to_owned();
            found.push(Query { dashboard: dashboard_name.to_owned(), title, expression });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"]["query"].as_str().unwrap();
        let metric = query.strip_prefix("label_values(").and_then(|rest| rest.split(',').next()).unwrap();
        let title = format!("variable {}", variable["name"]);
        found.push(Query { dashboard: dashboard_name.to_owned(), title, expression: metric.to_owned() });
    }
    found
}

/// The metrics named in a text.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("sekiwake_") || word.starts_with("process_"))
}

/// A label matcher of a query.
struct Matcher {
    metric: String,
    label: String,
    /// The alternatives.
    values: Vec<String>,
}

/// The label matchers of a text, without negative ones.
fn matchers(text: &str) -> impl Iterator<Item = Matcher> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.match_indices('{').flat_map(move |(at, _)| {
        let before = &text[..at];
        let metric = before[before.trim_end_matches(is_word).len()..].to_owned();
        let matchers = text[at + 1..].split('}').next().unwrap_or_default().to_owned();
        let is_selector = !metric.is_empty() && matchers.contains('"');
        let mut parts = if is_selector { matchers.split('"').map(str::to_owned).collect() } else { Vec::new() };
        parts.truncate(parts.len() / 2 * 2);
        let found: Vec<_> = parts
            .chunks_exact(2)
            .filter(|pair| !pair[0].contains('!'))
            .map(|pair| {
                let label: String = pair[0].chars().filter(|&letter| is_word(letter)).collect();
                let values = pair[1].split('|').map(str::to_owned).collect();
                Matcher { metric: metric.clone(), label, values }
            })
            .collect();
        found
    })
}

/// Writes the committed configuration with the services' addresses in one namespace and intervals
/// of one second. Returns its path.
fn write_prometheus_configuration(folder: &Path) -> PathBuf {
    let committed = read(&deploy("prometheus/prometheus.yml"));
    let mut job = "";
    let mut text = String::new();
    for line in committed.lines() {
        if let Some(name) = line.trim().strip_prefix("- job_name: ") {
            job = name;
        }
        let port = match job {
            "proxy" => 9601,
            "syslog-forwarder" => 9602,
            "xflow-forwarder" => 9603,
            "trap-forwarder" => 9604,
            "storer" => 9605,
            "anomaly-detector" => 9606,
            "console" => 9608,
            _ => 0,
        };
        if line.trim().starts_with("dns_sd_configs:") {
            assert!(line.contains(&format!("names: [{job}]")) && port != 0, "{line}");
            text += &format!("    static_configs: [{{targets: [\"127.0.0.1:{port}\"]}}]\n");
        } else {
            let line = line.replace("capture:9600", "127.0.0.1:9600").replace("alertmanager:9093", "127.0.0.1:9093");
            text += &(line.replace("_interval: 15s", "_interval: 1s") + "\n");
        }
    }
    let path = folder.join("prometheus.yml");
    fs::write(&path, text).unwrap();
    // With short waits before alerts fire.
    let rules = read(&deploy(RULES));
    let shortened = |line: &str| match line.trim() {
        wait if wait.starts_with("for:") => "        for: 2s".to_owned(),
        "interval: 1m" => "    interval: 1s".to_owned(),
        _ => line.to_owned(),
    };
    let rules: Vec<String> = rules.lines().map(shortened).collect();
    fs::create_dir(folder.join("rules")).unwrap();
    fs::write(folder.join("rules/sekiwake.yml"), rules.join("\n")).unwrap();
    path
}

/// Metrics of rules and panels that this site lacks, because its bus is ZeroMQ. The tests of
/// JetStream look for them.
pub(crate) const ON_JETSTREAM: [&str; 6] = [
    "sekiwake_bus_lease_age_seconds",
    "sekiwake_bus_reconnects_total",
    "sekiwake_bus_shard_lag_records",
    "sekiwake_bus_stream_seconds",
    "sekiwake_bus_unacknowledged_seconds",
    "sekiwake_bus_without_leader_seconds_total",
];

/// An alert at Alertmanager.
#[derive(Debug)]
struct Alert {
    name: String,
    destination: String,
    /// Whether it is sent, not inhibited.
    is_active: bool,
}

struct Api<'a>(&'a TestSite);

impl Api<'_> {
    fn get(&self, port: u16, path: &str) -> Value {
        let page = self.0.host.enter(|| get(at([127, 0, 0, 1], port), path)).unwrap();
        page.ok().and_then(|page| serde_json::from_str(&page).ok()).unwrap_or_default()
    }

    /// The number of results of an expression, or the error.
    fn query(&self, expression: &str) -> Result<usize, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(9090, &format!("/api/v1/query?query={encoded}"));
        if answer["status"] != "success" {
            return Err(format!("{answer}"));
        }
        Ok(answer["data"]["result"].as_array().map_or(1, Vec::len))
    }

    /// The alerts at Alertmanager.
    fn alerts(&self) -> Vec<Alert> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let answer = self.get(9093, "/api/v2/alerts");
        let alerts = answer.as_array().cloned().unwrap_or_default();
        let describe = |alert: &Value| Alert {
            name: text(&alert["labels"]["alertname"]),
            destination: text(&alert["labels"]["destination"]),
            is_active: alert["status"]["state"] == "active",
        };
        alerts.iter().map(describe).collect()
    }
}

#[test]
fn panels_have_data_and_alerts_fire_and_resolve() {
    let Some(site) = site() else { return };
    if !tools_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut alertmanager = site.host.command("prometheus-alertmanager");
    alertmanager.arg(format!("--config.file={}", deploy("alertmanager/alertmanager.yml").display()));
    alertmanager.args([format!("--storage.path={}", path("alertmanager")), "--cluster.listen-address=".to_owned()]);
    let _alertmanager = Process::spawn(alertmanager).unwrap();
    let mut prometheus = site.host.command("prometheus");
    prometheus.arg(format!("--config.file={}", write_prometheus_configuration(folder.path()).display()));
    prometheus.arg(format!("--storage.tsdb.path={}", path("tsdb")));
    let prometheus = Process::spawn(prometheus).unwrap();
    let api = Api(&site);

    // A complete pipeline, with one unreachable destination.
    let dead = at(collector(1), 514);
    let ports = [514, 2055, 162];
    let _sink = site.sink(&ports.map(|port| at(collector(0), port)), Options::counts());
    let syslog = format!("udp://{}:514 tcp://{dead}?spool=1MiB", collector(0));
    let [store, spool] = ["store", "spool"].map(path);
    // One key for all, which is enough for the metrics of keys.
    let [key, public, allowed] = ["bus.key", "bus.key.pub", "allowed.keys"].map(path);
    fs::write(&allowed, keygen(Path::new(&key))).unwrap();
    let environment = [
        ("SEKIWAKE_BUS_KEY_FILE", key.as_str()),
        ("SEKIWAKE_BUS_SERVER_KEY_FILE", &public),
        ("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", &allowed),
        ("SEKIWAKE_STORE_DIR", store.as_str()),
        ("SEKIWAKE_SPOOL_DIR", &spool),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_ANOMALY_WINDOW", "2"),
        ("SEKIWAKE_NOTIFY", "alertmanager+http://127.0.0.1:9093 syslog+udp://127.0.0.1:5514"),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
        ("SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.11:2055"),
        ("SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.11:162"),
    ];
    let names = [
        &[CAPTURE, PROXY][..],
        &FORWARDERS.map(|(_, name)| name),
        &["sekiwake-storer", "sekiwake-anomaly-detector", "sekiwake-console"],
    ]
    .concat();
    let mut services: Services<'_> = site.start(&names, &environment);
    let mut sender = site.start_sender(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --protocol rfc5424:4,netflow9,snmp2c-trap --rate 400 --duration 100s"
    ));

    for service in &services.0 {
        let page = service.page("/metrics").unwrap();
        let mut command = Command::new("promtool");
        let mut child = command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let writer = thread::spawn(move || input.write_all(page.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && printed.is_empty(), "{}: {printed}", service.name);
    }

    // Every panel, every query of docs/metrics.md, and every metric of a rule.
    let mut asked: Vec<Query> = dashboards().iter().flat_map(|(name, dashboard)| queries(name, dashboard)).collect();
    let watched = WATCHED.iter().flat_map(|one| one.queries);
    asked.extend(watched.map(|query| Query {
        dashboard: "docs/metrics.md".to_owned(),
        title: "to watch".to_owned(),
        expression: (*query).to_owned(),
    }));
    asked.retain(|query| !metrics(&query.expression).any(|name| ON_JETSTREAM.contains(&name)));
    let unanswered = || -> Vec<String> {
        let outcome = |query: &Query| {
            let Query { dashboard, title, expression } = query;
            match api.query(expression) {
                Ok(0) => Some(format!("{dashboard}: {title}: no data: {expression}")),
                Ok(_) => None,
                Err(error) => Some(format!("{dashboard}: {title}: {error}: {expression}")),
            }
        };
        asked.iter().filter_map(outcome).collect()
    };
    let outcome = wait_for("data in every panel", LONG, || unanswered().is_empty());
    assert!(outcome.is_ok(), "{}\n{}", unanswered().join("\n"), prometheus.stderr().join("\n"));
    let known = api.get(9090, "/api/v1/label/__name__/values");
    let known: BTreeSet<&str> = known["data"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let rules = read(&deploy(RULES));
    let rules = values(&rules, "").filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let texts = || asked.iter().map(|query| query.expression.as_str()).chain([rules.as_str()]);
    let named: BTreeSet<&str> = texts().flat_map(metrics).collect();
    let is_unknown = |name: &&&str| !known.contains(**name) && !ON_JETSTREAM.contains(*name);
    let unknown: Vec<&&str> = named.iter().filter(is_unknown).collect();
    assert!(unknown.is_empty(), "no service exposes {unknown:?}");

    // And every value of a label in a query: an alert with a misspelt reason would never fire.
    let mut checked = 0;
    for Matcher { metric, label, values } in texts().flat_map(matchers).filter(|matcher| matcher.label != "job") {
        for value in values {
            let selector = format!("{metric}{{{label}=~\"{value}\"}}");
            assert!(api.query(&selector).is_ok_and(|results| results > 0), "no series has {selector}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
    let loaded = api.get(9090, "/api/v1/rules");
    let groups = loaded["data"]["groups"].as_array().unwrap();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert_eq!(rule["annotations"]["runbook_url"], format!("{DOCS}docs/runbook.md#{}", name.to_lowercase()));
        for annotation in ["summary", "description"] {
            let text = rule["annotations"][annotation].as_str().unwrap();
            assert!(text.contains("$labels") || annotation == "description", "{name}: {annotation}: {text}");
        }
    }

    // The unreachable destination fires until it is reachable.
    let fires =
        |name: &str, active: bool| api.alerts().iter().any(|alert| alert.name == name && alert.is_active == active);
    let is_resolved = |name: &str| !api.alerts().iter().any(|alert| alert.name == name);
    wait_for("an alert for the destination", LONG, || fires("SekiwakeDestinationDown", true)).unwrap();
    let alerts = api.alerts();
    let down = alerts.iter().filter(|alert| alert.name == "SekiwakeDestinationDown");
    let down: Vec<&str> = down.map(|alert| alert.destination.as_str()).collect();
    assert_eq!(down, [format!("tcp://{dead}")]);
    let listener: TcpListener = site.collectors.enter(|| TcpListener::bind(dead)).unwrap().unwrap();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    wait_for("the end of that alert", LONG, || is_resolved("SekiwakeDestinationDown")).unwrap();

    // A proxy that is down fires one alert, and inhibits those of its clients.
    wait_for("every service to be up", LONG, || is_resolved("SekiwakeServiceDown")).unwrap();
    services.take(PROXY).stop().unwrap();
    wait_for("an alert for the proxy", LONG, || fires("SekiwakeServiceDown", true)).unwrap();
    wait_for("the inhibited alerts of its clients", LONG, || fires("SekiwakeBusUnreachable", false)).unwrap();
    services.add(site.start_one(PROXY, &environment));
    wait_for("the end of both", LONG, || is_resolved("SekiwakeServiceDown") && is_resolved("SekiwakeBusUnreachable"))
        .unwrap();
    // Nothing was lost.
    assert!(is_resolved("SekiwakeBusLoss") && is_resolved("SekiwakeKernelDrops"), "{:?}", api.alerts());
    sender.terminate().unwrap();
    sender.wait(LONG).unwrap();
    services.stop().unwrap();
    peer.join().unwrap().unwrap();
}
