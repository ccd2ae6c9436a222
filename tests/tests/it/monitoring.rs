//! What monitors Sekiwake: Prometheus' configuration, alert rules, dashboards and the runbook agree with each other and with what services
//! expose, on a real pipeline, with a real Prometheus and a real Alertmanager.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use sekiwake_testkit::{process::Process, sink::Options, wait::wait_for};
use sekiwake_tests::{FORWARDERS, MIRRORED, Services, collector, get};
use serde_json::Value;

use crate::support::*;

const TOOLS: [&str; 4] = ["promtool", "amtool", "prometheus", "prometheus-alertmanager"];
const RULES: &str = "prometheus/rules/sekiwake.yml";
/// The job of the binary that is every role in one: not of the committed configuration, but of the alerts.
const ALL_IN_ONE: &str = "sekiwake";
/// Jobs that are not Sekiwake's, and those of a site.
const OTHER_JOBS: [&str; 3] = ["elsewhere", "prometheus", "alertmanager"];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether the tools are there; says so if not.
fn tools_or_skipped(test: &str) -> bool {
    let missing = TOOLS.into_iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        assert!(std::env::var_os("TEST_SEKIWAKE_REQUIRE_NETNS").is_none(), "{tool} is not installed");
        eprintln!("SKIPPED: {test}: {tool} is not installed");
    }
    missing.is_none()
}

/// Runs a program, which must be content, and gives what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(deploy("")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// The texts of the rules' unit tests.
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

/// What follows `key` on the lines that have it.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim_start().strip_prefix("- ").unwrap_or(line.trim_start()).strip_prefix(key))
        .map(str::trim)
}

#[test]
fn prometheus_and_alertmanager_take_their_configuration_and_the_rules_do_what_their_tests_say() {
    if !tools_or_skipped("prometheus_and_alertmanager_take_their_configuration_and_the_rules_do_what_their_tests_say") {
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
fn each_alert_has_a_paragraph_in_the_runbook_and_a_test_and_none_is_without_an_alert() {
    let rules = read(&deploy(RULES));
    let alerts: BTreeSet<&str> = values(&rules, "alert:").collect();
    assert!(!alerts.is_empty());
    let runbook = read(&deploy("../docs/runbook.md"));
    let paragraphs: BTreeSet<&str> = values(&runbook, "## ").collect();
    assert_eq!(alerts, paragraphs);
    let links: BTreeSet<String> = values(&rules, "runbook_url:").map(str::to_owned).collect();
    let expected = alerts.iter().map(|alert| format!("docs/runbook.md#{}", alert.to_lowercase()));
    assert_eq!(links, expected.collect());
    let tests: String = rule_tests().iter().map(|path| read(Path::new(path))).collect();
    for alert in &alerts {
        // One that is expected, and one that is not.
        let cases: Vec<&str> =
            tests.split("alertname: ").skip(1).filter(|case| case.starts_with(&format!("{alert}\n"))).collect();
        let is_quiet = |case: &&&str| case.lines().nth(1).is_some_and(|line| line.trim() == "exp_alerts: []");
        let quiet = cases.iter().filter(is_quiet).count();
        assert!(cases.len() > quiet, "{alert} is nowhere expected");
        assert!(quiet > 0, "{alert} is nowhere not expected");
    }
    // They look at the jobs that Prometheus has, all of them.
    let config = read(&deploy("prometheus/prometheus.yml"));
    let jobs = values(&config, "job_name:").filter(|job| !OTHER_JOBS.contains(job)).chain([ALL_IN_ONE]);
    let jobs: BTreeSet<&str> = jobs.collect();
    for (metric, label, wanted) in alternatives(&rules).filter(|(_, label, _)| label == "job") {
        assert_eq!(wanted.iter().map(String::as_str).collect::<BTreeSet<_>>(), jobs, "{metric}: {label}");
    }
    // What inhibits or is inhibited is an alert of these, or one of the detector's own.
    let alertmanager = read(&deploy("alertmanager/alertmanager.yml"));
    for name in alertmanager.split(|letter: char| !letter.is_alphanumeric()).filter(|word| word.starts_with("Sekiwake"))
    {
        assert!(alerts.contains(name), "Alertmanager's configuration has {name}");
    }
}

#[test]
fn dashboards_are_whole() {
    let provisioned = read(&deploy("grafana/provisioning/datasources/prometheus.yml"));
    let sources: BTreeSet<&str> = values(&provisioned, "uid:").collect();
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(name, format!("{uid}.json"));
        assert!(uids.insert(uid.to_owned()), "{uid} twice");
        assert!(!dashboard["title"].as_str().unwrap().is_empty());
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title} has another's id");
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{name}: {title} is wider than the page");
            for cell in (place("x")..place("x") + place("w"))
                .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
            {
                assert!(taken.insert(cell), "{name}: {title} lies over another panel");
            }
            let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
            assert!(!targets.is_empty() || panel["type"] == "row", "{name}: {title} asks nothing");
            assert!(
                panel["type"] == "row" || panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name}: {title}: unit"
            );
            for source in targets.iter().chain([panel]).filter_map(|one| one["datasource"]["uid"].as_str()) {
                assert!(sources.contains(source), "{name}: {title} asks {source}");
            }
        }
    }
    assert!(uids.len() >= 4);
}

/// Every expression of a dashboard, with its panel's title and the variables replaced as "All" does.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
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
            assert!(!expression.contains('$'), "a variable that is none: {expression}");
            found.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"]["query"].as_str().unwrap();
        let metric = query.strip_prefix("label_values(").and_then(|rest| rest.split(',').next()).unwrap();
        found.push((format!("variable {}", variable["name"]), metric.to_owned()));
    }
    found
}

/// The metrics that a text names.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("sekiwake_") || word.starts_with("process_"))
}

/// What a text asks of labels: metric, label, and each of the values that it takes.
fn alternatives(text: &str) -> impl Iterator<Item = (String, String, Vec<String>)> {
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
                (metric.clone(), label, pair[1].split('|').map(str::to_owned).collect())
            })
            .collect();
        found
    })
}

/// The committed configuration, with the services' addresses in one namespace and everything a second.
fn prometheus_here(folder: &Path) -> PathBuf {
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
    // Nobody waits here for minutes to be sure.
    let rules = read(&deploy(RULES));
    let hurried = |line: &str| match line.trim() {
        wait if wait.starts_with("for:") => "        for: 2s".to_owned(),
        "interval: 1m" => "    interval: 1s".to_owned(),
        _ => line.to_owned(),
    };
    let rules: Vec<String> = rules.lines().map(hurried).collect();
    fs::create_dir(folder.join("rules")).unwrap();
    fs::write(folder.join("rules/sekiwake.yml"), rules.join("\n")).unwrap();
    path
}

struct Api<'a>(&'a TestSite);

impl Api<'_> {
    fn get(&self, port: u16, path: &str) -> Value {
        let page = self.0.host.enter(|| get(at([127, 0, 0, 1], port), path)).unwrap();
        page.ok().and_then(|page| serde_json::from_str(&page).ok()).unwrap_or_default()
    }

    /// How many results an expression has now; an error says why.
    fn query(&self, expression: &str) -> Result<usize, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(9090, &format!("/api/v1/query?query={encoded}"));
        if answer["status"] != "success" {
            return Err(format!("{answer}"));
        }
        Ok(answer["data"]["result"].as_array().map_or(1, Vec::len))
    }

    /// The alerts at Alertmanager that are on, as name, destination and whether they are told.
    fn alerts(&self) -> BTreeSet<(String, String, bool)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let answer = self.get(9093, "/api/v2/alerts");
        let alerts = answer.as_array().cloned().unwrap_or_default();
        let describe = |alert: &Value| {
            (
                text(&alert["labels"]["alertname"]),
                text(&alert["labels"]["destination"]),
                alert["status"]["state"] == "active",
            )
        };
        alerts.iter().map(describe).collect()
    }
}

#[test]
fn every_panel_has_data_and_alerts_reach_alertmanager_and_end() {
    let test = "every_panel_has_data_and_alerts_reach_alertmanager_and_end";
    let Some(site) = site(test) else { return };
    if !tools_or_skipped(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut alertmanager = site.host.command("prometheus-alertmanager");
    alertmanager.arg(format!("--config.file={}", deploy("alertmanager/alertmanager.yml").display()));
    alertmanager.args([format!("--storage.path={}", path("alertmanager")), "--cluster.listen-address=".to_owned()]);
    let _alertmanager = Process::spawn(alertmanager).unwrap();
    let mut prometheus = site.host.command("prometheus");
    prometheus.arg(format!("--config.file={}", prometheus_here(folder.path()).display()));
    prometheus.arg(format!("--storage.tsdb.path={}", path("tsdb")));
    let prometheus = Process::spawn(prometheus).unwrap();
    let api = Api(&site);

    // A whole pipeline, one of whose destinations is not there.
    let dead = at(collector(1), 514);
    let ports = [514, 2055, 162];
    let _sink = site.sink(&ports.map(|port| at(collector(0), port)), Options::counts());
    let syslog = format!("udp://{}:514 tcp://{dead}", collector(0));
    let store = path("store");
    let environment = [
        ("SEKIWAKE_STORE_DIR", store.as_str()),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_ANOMALY_WINDOW", "2"),
        ("SEKIWAKE_NOTIFY", "alertmanager+http://127.0.0.1:9093 syslog+udp://127.0.0.1:5514"),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
        ("SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.11:2055"),
        ("SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.11:162"),
    ];
    let names =
        [&[CAPTURE, PROXY][..], &FORWARDERS.map(|(_, name)| name), &["sekiwake-storer", "sekiwake-anomaly-detector"]]
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
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", service.name);
    }

    // Every panel, and every metric of a rule.
    let asked: Vec<(String, String, String)> = dashboards()
        .iter()
        .flat_map(|(name, dashboard)| {
            expressions(dashboard).into_iter().map(move |(title, expression)| (name.clone(), title, expression))
        })
        .collect();
    let unanswered = || -> Vec<String> {
        let outcome = |(name, title, expression): &(String, String, String)| match api.query(expression) {
            Ok(0) => Some(format!("{name}: {title}: no data: {expression}")),
            Ok(_) => None,
            Err(error) => Some(format!("{name}: {title}: {error}: {expression}")),
        };
        asked.iter().filter_map(outcome).collect()
    };
    let outcome = wait_for("data in every panel", LONG, || unanswered().is_empty());
    assert!(outcome.is_ok(), "{}\n{}", unanswered().join("\n"), prometheus.stderr().join("\n"));
    let known = api.get(9090, "/api/v1/label/__name__/values");
    let known: BTreeSet<&str> = known["data"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let rules = read(&deploy(RULES));
    let rules = values(&rules, "").filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let named: BTreeSet<&str> =
        asked.iter().map(|(.., expression)| expression.as_str()).chain([rules.as_str()]).flat_map(metrics).collect();
    let unknown: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "no service exposes {unknown:?}");

    // And every value of a label that is asked for: a reason that is misspelt would never be told.
    let mut checked = 0;
    let texts = asked.iter().map(|(.., expression)| expression.as_str()).chain([rules.as_str()]);
    for (metric, label, wanted) in texts.flat_map(alternatives).filter(|(_, label, _)| label != "job") {
        for value in wanted {
            let selector = format!("{metric}{{{label}=~\"{value}\"}}");
            assert!(api.query(&selector).is_ok_and(|results| results > 0), "nothing has {selector}");
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
        assert_eq!(rule["annotations"]["runbook_url"], format!("docs/runbook.md#{}", name.to_lowercase()));
        for annotation in ["summary", "description"] {
            let text = rule["annotations"][annotation].as_str().unwrap();
            assert!(text.contains("$labels") || annotation == "description", "{name}: {annotation}: {text}");
        }
    }

    // The destination that is not there, until it is.
    let is_on =
        |name: &str, told: bool| api.alerts().iter().any(|(alert, _, is_told)| alert == name && *is_told == told);
    let is_off = |name: &str| !api.alerts().iter().any(|(alert, ..)| alert == name);
    wait_for("an alert for the destination", LONG, || is_on("SekiwakeDestinationDown", true)).unwrap();
    let alerts = api.alerts();
    let of: Vec<&str> = alerts
        .iter()
        .filter(|(name, ..)| name == "SekiwakeDestinationDown")
        .map(|(_, destination, _)| destination.as_str())
        .collect();
    assert_eq!(of, [format!("tcp://{dead}")]);
    let listener: TcpListener = site.collectors.enter(|| TcpListener::bind(dead)).unwrap().unwrap();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    wait_for("the end of that alert", LONG, || is_off("SekiwakeDestinationDown")).unwrap();

    // A proxy that is down: told once, not by everybody who misses it.
    services.take(PROXY).stop().unwrap();
    wait_for("an alert for the proxy", LONG, || is_on("SekiwakeServiceDown", true)).unwrap();
    wait_for("what follows from it, inhibited", LONG, || is_on("SekiwakeProxyUnreachable", false)).unwrap();
    services.add(site.start_one(PROXY, &[]));
    wait_for("the end of both", LONG, || is_off("SekiwakeServiceDown") && is_off("SekiwakeProxyUnreachable")).unwrap();
    // Nothing was lost over all that.
    assert!(is_off("SekiwakeBusLoss") && is_off("SekiwakeKernelDrops"), "{:?}", api.alerts());
    sender.terminate().unwrap();
    sender.wait(LONG).unwrap();
    services.stop().unwrap();
    peer.join().unwrap().unwrap();
}
