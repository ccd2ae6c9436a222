//! The compose project, with its own name and network.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Instant,
};

use serde_json::Value;
use tempfile::TempDir;

/// The project, which is removed when dropped.
pub(crate) struct Project {
    name: String,
    /// The first three octets of its network, with a dot at the end.
    prefix: String,
    environment: Vec<(String, String)>,
    /// Images that existed before.
    images_before: Vec<String>,
    started: Instant,
    is_down: bool,
    /// The configuration directory.
    _config: TempDir,
}

/// The files of the project on NATS JetStream, as `COMPOSE_FILE` lists them.
pub(crate) const JETSTREAM: &str = "docker-compose.yml:deploy/compose.jetstream.yml";

/// A running sender.
pub(crate) struct SenderRun(Child);

/// A running `deploy/story`.
pub(crate) struct Story(Child);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs docker, which must succeed. Returns its standard output.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker cannot be started");
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    text(&output)
}

fn image_list() -> Vec<String> {
    let list = docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]);
    list.lines().map(str::to_owned).collect()
}

impl Project {
    /// A project that is not started.
    pub(crate) fn new(settings: &[(&str, &str)]) -> Project {
        let name = format!("sekiwake-test-{}", std::process::id());
        let prefix = free_prefix();
        let of_network = [
            ("SUBNET", "0/24"),
            ("GATEWAY", "1"),
            ("DYNAMIC", "128/25"),
            ("CAPTURE_ADMIN", "1:9600"),
            ("PROXY_ADDRESS", "2"),
            ("NATS_ADDRESS", "3"),
            ("DEMO_COLLECTOR", "100"),
            ("DEMO_COLLECTOR_A", "101"),
            ("DEMO_COLLECTOR_B", "102"),
            ("DEMO_COLLECTOR_C", "103"),
        ]
        .map(|(name, rest)| (name.to_owned(), format!("{prefix}{rest}")));
        let own = [
            ("IMAGE_TAG", name.as_str()),
            ("PROMETHEUS_IMAGE", "sekiwake-test-prometheus"),
            ("ALERTMANAGER_IMAGE", "sekiwake-test-alertmanager"),
        ];
        let all = own.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let images_before = image_list();
        let config = tempfile::tempdir().unwrap();
        // Readable for other users, as a checkout is.
        fs::set_permissions(config.path(), Permissions::from_mode(0o755)).unwrap();
        let mut environment: Vec<(String, String)> = of_network.into_iter().chain(all).collect();
        environment.push(("CONFIG".to_owned(), config.path().display().to_string()));
        Project { environment, name, prefix, images_before, started: Instant::now(), is_down: false, _config: config }
    }

    pub(crate) fn step(&self, what: &str) {
        eprintln!("{:>4} s  {what}", self.started.elapsed().as_secs());
    }

    /// Builds the base images, and those of Prometheus and Alertmanager.
    pub(crate) fn prepare(&self) {
        self.compose(&["prepare"]);
        for name in ["prometheus", "alertmanager"] {
            let tag = format!("sekiwake-test-{name}");
            let build = [
                "build",
                "-q",
                "-f",
                "deploy/images/monitoring.Dockerfile",
                "--target",
                name,
                "-t",
                &tag,
                "deploy/images",
            ];
            let output = self
                .command("docker")
                .env("DOCKER_CONFIG", root().join("target/docker"))
                .args(["buildx"])
                .args(build)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// The built image `sekiwake-NAME`.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("sekiwake-{name}:{}", self.name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
            command.env_remove(name);
        }
        command.current_dir(root()).envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Without the .env of this checkout.
        command
            .env("COMPOSE_DISABLE_ENV_FILE", "1")
            .env("COMPOSE_PROJECT_NAME", &self.name)
            .env("COMPOSE_PROGRESS", "quiet");
        command
    }

    /// Runs compose, which must succeed. Returns its standard output.
    pub(crate) fn compose(&self, arguments: &[&str]) -> String {
        let output = self.command("deploy/compose").args(arguments).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = stderr.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        assert!(output.status.success(), "compose {arguments:?}: {}", tail.join("\n"));
        text(&output)
    }

    /// The identifiers of a service's containers, including stopped ones.
    pub(crate) fn containers(&self, service: &str) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let service = format!("label=com.docker.compose.service={service}");
        docker(&["ps", "-aq", "--filter", &project, "--filter", &service]).lines().map(str::to_owned).collect()
    }

    /// Their addresses on the project's network.
    pub(crate) fn addresses(&self, service: &str) -> Vec<Ipv4Addr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        self.containers(service).iter().filter_map(|id| docker(&["inspect", "-f", format, id]).parse().ok()).collect()
    }

    /// The state of a service's first container.
    pub(crate) fn state(&self, service: &str) -> String {
        self.containers(service)
            .first()
            .map_or_else(String::new, |id| docker(&["inspect", "-f", "{{.State.Status}}", id]))
    }

    /// The state of each container by name, with its health, exit status and restarts.
    pub(crate) fn states(&self) -> BTreeMap<String, String> {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let ids = docker(&["ps", "-aq", "--filter", &project]);
        let describe = |id: &str| {
            let one: Value = serde_json::from_str(&docker(&["inspect", "-f", "{{json .}}", id])).unwrap();
            let state = &one["State"];
            let mut words = vec![state["Status"].as_str().unwrap().to_owned()];
            words.extend(state["Health"]["Status"].as_str().map(str::to_owned));
            if state["Status"] == "exited" {
                words.push(state["ExitCode"].to_string());
            }
            if one["RestartCount"] != 0 {
                words.push(format!("restarted {} times", one["RestartCount"]));
            }
            (one["Name"].as_str().unwrap().trim_start_matches('/').to_owned(), words.join(" "))
        };
        ids.lines().map(describe).collect()
    }

    /// The standard output of a service's first container.
    pub(crate) fn log(&self, service: &str) -> String {
        self.containers(service).first().map_or_else(String::new, |id| docker(&["logs", id]))
    }

    /// Sends to the old collector. Returns the number of datagrams.
    pub(crate) fn send(&self, rate: u64, duration: &str) -> u64 {
        self.start_sending(rate, duration).finish()
    }

    /// Starts sending to the old collector.
    pub(crate) fn start_sending(&self, rate: u64, duration: &str) -> SenderRun {
        let arguments = format!(
            "--profile demo run --rm --no-deps -T demo-devices --to {}100 --from 198.18.0.0/16 --sources 64 \
             --protocol rfc5424:4,rfc3164:4,snmp2c-trap,ipfix --size 120-1400 --rate {rate} --duration {duration} --json",
            self.prefix
        );
        let mut command = self.command("deploy/compose");
        command.args(arguments.split_ascii_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped());
        SenderRun(command.spawn().unwrap())
    }

    /// Starts `deploy/story`, with a pause after each event, and `burst` messages per second.
    pub(crate) fn start_story(&self, pause_seconds: u64, burst: u64) -> Story {
        let mut command = self.command("deploy/story");
        let settings = [("STORY_PAUSE", pause_seconds), ("STORY_BURST", burst)];
        command.envs(settings.map(|(name, value)| (name, value.to_string())));
        Story(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Enables keys on the bus, generated by `deploy/keys` in a folder of the test.
    pub(crate) fn use_keys(&mut self) {
        let files = "docker-compose.yml:deploy/compose.keys.yml:tests/tests/compose/keys.yml";
        self.environment.push(("COMPOSE_FILE".to_owned(), files.to_owned()));
        // The demonstration's forwarders that spoof run as root: their keys are made as for
        // compose.spoof.yml.
        let root = ["capture-demo", "demo-syslog-forwarder", "demo-xflow-forwarder", "demo-trap-forwarder", "demo-tap"];
        let others = ["demo-log-forwarder", "demo-anomaly-detector"];
        for (spoof, names) in [("1", &root[..]), ("", &others)] {
            let output = self.command("deploy/keys").env("SPOOF", spoof).args(names).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Puts the bus on NATS JetStream, and provides the server's image.
    pub(crate) fn use_jetstream(&mut self) {
        self.environment.retain(|(name, _)| name != "COMPOSE_FILE");
        self.environment.push(("COMPOSE_FILE".to_owned(), JETSTREAM.to_owned()));
        self.compose(&["prepare"]);
    }

    /// Sets the number of syslog forwarders, both of the demonstration and of the others.
    pub(crate) fn scale(&self, number: u32) {
        let one = format!("syslog-forwarder={number}");
        let other = format!("demo-syslog-forwarder={number}");
        self.compose(&[
            "--profile",
            "demo",
            "up",
            "--detach",
            "--no-deps",
            "--no-recreate",
            "--scale",
            &one,
            "--scale",
            &other,
            "syslog-forwarder",
            "demo-syslog-forwarder",
        ]);
    }

    /// Removes everything, and checks that nothing is left.
    pub(crate) fn down(mut self) {
        self.remove();
        let label = format!("label=com.docker.compose.project={}", self.name);
        for what in [&["ps", "-aq"][..], &["volume", "ls", "-q"]] {
            assert_eq!(docker(&[what, &["--filter", &label]].concat()), "", "docker {what:?}");
        }
        let networks = docker(&["network", "ls", "-q", "--filter", &label]);
        for network in networks.lines() {
            assert!(is_kept_by_the_engine(network), "network {network} is left");
            eprintln!("the engine keeps an endpoint of a removed container, and with it network {network}");
        }
        assert_eq!(self.images_to_remove(), Vec::<String>::new());
    }

    /// The images of this test and the base images that it built; with `TEST_SEKIWAKE_KEEP_IMAGES`,
    /// for repeated runs, only the images of this test.
    fn images_to_remove(&self) -> Vec<String> {
        let keeps = std::env::var_os("TEST_SEKIWAKE_KEEP_IMAGES").is_some();
        let is_removed = |image: &String| match image.as_str() {
            "debian:bookworm-slim" | "rust:1.95-bookworm" | "nats:2.14-alpine" => !keeps,
            "sekiwake-test-prometheus:latest" | "sekiwake-test-alertmanager:latest" => !keeps,
            image => image.ends_with(&self.name),
        };
        image_list().into_iter().filter(|image| !self.images_before.contains(image) && is_removed(image)).collect()
    }

    fn remove(&mut self) {
        if std::mem::replace(&mut self.is_down, true) {
            return;
        }
        let down = ["--profile", "demo", "--profile", "monitoring", "down", "--volumes", "--remove-orphans"];
        let _ = self.command("deploy/compose").args(down).output();
        for image in &self.images_to_remove() {
            let _ = Command::new("docker").args(["image", "rm", image]).output();
        }
    }
}

/// A /24 of 198.19.96.0/19 that no network of the engine has: one may be left by an engine that
/// kept an endpoint (see [`is_kept_by_the_engine`]), and two networks cannot share addresses.
fn free_prefix() -> String {
    let mut taken = String::new();
    for network in docker(&["network", "ls", "-q"]).lines() {
        taken += &docker(&["network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", network]);
        taken.push(' ');
    }
    let is_free = |prefix: &String| !taken.split(' ').any(|subnet| subnet.starts_with(prefix.as_str()));
    (96..128).map(|third| format!("198.19.{third}.")).find(is_free).expect("a free network of 198.19.96.0/19")
}

/// Whether the engine rejects the removal of a network although no container is connected: engines
/// may keep the endpoint of a container that is removed while another one is, until they are
/// started again.
fn is_kept_by_the_engine(network: &str) -> bool {
    let connected = docker(&["network", "inspect", "--format", "{{len .Containers}}", network]);
    let removal = Command::new("docker").args(["network", "rm", network]).output().expect("docker runs");
    connected == "0" && String::from_utf8_lossy(&removal.stderr).contains("has active endpoints")
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containers at the time of failure: {:#?}", self.states());
            for (name, state) in self.states() {
                if name.contains("anomaly-detector") || !["running healthy", "running", "exited 0"].contains(&&*state) {
                    let output = Command::new("docker").args(["logs", "--tail", "40", &name]).output();
                    eprintln!(
                        "{name}: {}",
                        output.map_or_else(
                            |error| error.to_string(),
                            |output| text(&output) + &String::from_utf8_lossy(&output.stderr)
                        )
                    );
                }
            }
        }
        self.remove();
    }
}

impl Story {
    /// Waits for its end.
    pub(crate) fn finish(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "deploy/story: {status}");
    }
}

impl SenderRun {
    /// Waits for its end. Returns the number of datagrams.
    pub(crate) fn finish(self) -> u64 {
        let output = self.0.wait_with_output().unwrap();
        let printed = text(&output);
        let summary: Value = printed.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        summary["sent"].as_u64().unwrap_or_else(|| panic!("no count in {printed:?}"))
    }
}
