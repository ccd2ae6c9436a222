"""Starts the built binaries with the environments, users and volumes of their pods."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import nats_servers
from rules import FORWARDERS, NATS, PRIVILEGED, SERVICES

BINARIES = pathlib.Path("target/release")


class Binaries:
    """Copies of the binaries that every user can run, and generated keys.

    Run as root, each service gets its pod's user and groups, and no capability that the pod does not have."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="sekiwake-check-"))
        self.folder.chmod(0o755)
        self.is_root = os.geteuid() == 0
        self.keys, self.checked = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def path(self, service):
        name = f"sekiwake-{service}"
        if not (BINARIES / name).exists():
            raise SystemExit(f"check: {BINARIES / name} is missing: make build")
        if not (self.folder / name).exists():
            shutil.copy(BINARIES / name, self.folder / name)
        return str(self.folder / name)

    def key(self, name):
        """A key pair by sekiwake-proxy keygen: (secret, public)."""
        if name not in self.keys:
            path = self.folder / f"{name}.key"
            subprocess.run([self.path("proxy"), "keygen", str(path)], check=True, capture_output=True)
            self.keys[name] = (path.read_text(), pathlib.Path(f"{path}.pub").read_text())
        return self.keys[name]

    def secret(self, name):
        """A Secret as docs/deploy-kubernetes.md describes it."""
        if name.startswith("sekiwake-nats-"):
            return {"credentials": nats_servers.credentials()}
        secret = self.key(name)[0]
        if name == "sekiwake-key-proxy":
            return {"secret": secret, "allowed": "".join(self.key(f"sekiwake-key-{one}")[1] for one in SERVICES if one != "proxy")}
        return {"secret": secret, "proxy": self.key("sekiwake-key-proxy")[1]}

    def mounted(self, cluster, pod, container, root):
        """Creates the pod's volumes under `root`, with the owners and modes that the kubelet sets."""
        group = pod.security(container, "fsGroup")
        for mount, volume in cluster.mounts(pod, container):
            if volume is None:
                continue
            folder = root / mount["mountPath"].lstrip("/")
            folder.mkdir(parents=True)
            files, mode = {}, 0o644
            if "configMap" in volume:
                found = cluster.find("ConfigMap", pod.namespace, volume["configMap"]["name"])
                files, mode = (found or {}).get("data") or {}, volume["configMap"].get("defaultMode", 0o644)
            elif "secret" in volume:
                files, mode = self.secret(volume["secret"]["secretName"]), volume["secret"].get("defaultMode", 0o644)
            elif group is not None:
                # fsGroup owns a writable volume (kubelet: SetVolumeOwnership) ...
                folder.chmod(0o2775)
                if self.is_root:
                    os.chown(folder, 0, group)
            for name, text in files.items():
                (folder / name).write_text(text)
                # ... and may read every file of a read-only one.
                (folder / name).chmod(mode | (0o440 if group is not None and self.is_root else 0))
                if self.is_root:
                    os.chown(folder / name, 0, group or 0)

    def environment(self, cluster, pod, container, root):
        environment, _ = cluster.environment(pod, container)
        paths = [mount["mountPath"] for mount, _ in cluster.mounts(pod, container)]
        for name, value in environment.items():
            if any(value == path or value.startswith(f"{path}/") for path in paths):
                environment[name] = f"{root}{value}"
        return environment

    def user(self, pod, container):
        if not self.is_root:
            return {}
        groups = [group for group in [pod.security(container, "fsGroup")] if group is not None]
        return {"user": pod.security(container, "runAsUser", 0), "group": pod.security(container, "runAsGroup", 0), "extra_groups": groups}

    def check(self, cluster, pod):
        """Runs `--check` in the pod's environment: (status, resolved settings, standard error, environment)."""
        container = pod.container()
        with tempfile.TemporaryDirectory(dir=self.folder) as root:
            os.chmod(root, 0o755)
            self.mounted(cluster, pod, container, pathlib.Path(root))
            environment = self.environment(cluster, pod, container, root)
            command = [self.path(pod.service), "--check"]
            done = subprocess.run(without_capabilities(command, self.is_root, pod), env=environment, capture_output=True, text=True, **self.user(pod, container))
            resolved = dict(line.split("=", 1) for line in done.stdout.splitlines() if re.match(r"SEKIWAKE_[A-Z_]+=", line))
            said = done.stderr.replace(root, "").strip()
        return done.returncode, resolved, said, environment

    def settings(self, cluster):
        """The rule that asks the binaries: settings are accepted, read, and agree with the pod."""
        for pod in cluster.pods:
            if pod.service == NATS:
                continue
            memo = repr([cluster.environment(pod, pod.container()), pod.workload["spec"], cluster.of("ConfigMap")])
            if memo not in self.checked:
                self.checked[memo] = list(check_pod(self, cluster, pod))
            yield from self.checked[memo]


def without_capabilities(command, is_root, pod):
    """Root in a pod has only the capabilities that were added; other users have none."""
    if is_root and pod.namespace == PRIVILEGED:
        return ["setpriv", "--bounding-set", "-all,+net_raw", "--inh-caps", "-all", *command]
    return command


def check_pod(binaries, cluster, pod):
    status, resolved, said, environment = binaries.check(cluster, pod)
    if status != 0:
        yield f"{pod.name}: its settings are rejected: {said}"
        return
    for name in environment:
        if name.startswith("SEKIWAKE_") and name not in resolved:
            yield f"{pod.name}: {name} is unknown to it"
    port = int(resolved["SEKIWAKE_ADMIN"].rpartition(":")[2])
    host = resolved["SEKIWAKE_ADMIN"].rpartition(":")[0]
    if port != pod.port("metrics") or host.startswith("127."):
        yield f"{pod.name}: SEKIWAKE_ADMIN is {resolved['SEKIWAKE_ADMIN']}, the pod's port is {pod.port('metrics')}"
    if pod.on_host and host in ("0.0.0.0", "[::]"):
        yield f"{pod.name}: the admin port is bound to every address of the host"
    drain, grace = int(resolved["SEKIWAKE_DRAIN"].removesuffix("s")), pod.spec.get("terminationGracePeriodSeconds", 30)
    if grace < drain + 5:
        yield f"{pod.name}: is killed after {grace} s, but may drain for {drain} s"
    if pod.service == "proxy":
        for name, end in (("PUBLISH", "bus-pub"), ("SUBSCRIBE", "bus-sub"), ("CONTROL", "bus-control")):
            if resolved[f"SEKIWAKE_PROXY_{name}"] != f"tcp://*:{pod.port(end)}":
                yield f"{pod.name}: SEKIWAKE_PROXY_{name} is not port {end} on every address"
    if pod.service == "capture" and resolved["SEKIWAKE_PUBLISHER"] != cluster.FIELDS["spec.nodeName"]:
        yield f"{pod.name}: streams are not named after their node"
    if "SEKIWAKE_MEMBER" in resolved and not resolved["SEKIWAKE_MEMBER"].startswith(pod.workload["metadata"]["name"] + "-"):
        yield f"{pod.name}: members are not named after their pods"
    # The ring does not count against the limit, but the request reserves it on the node.
    request = quantity(pod.container()["resources"]["requests"]["memory"]) if "resources" in pod.container() else 0
    if pod.service == "capture" and quantity(resolved["SEKIWAKE_CAPTURE_RING"]) + quantity(resolved["SEKIWAKE_RETAIN"]) > 0.75 * request:
        yield f"{pod.name}: SEKIWAKE_CAPTURE_RING and SEKIWAKE_RETAIN exceed three quarters of the memory request"
    if pod.service == "storer":
        mounts = [mount["mountPath"] for mount, volume in cluster.mounts(pod, pod.container()) if volume and "claimTemplate" in volume]
        if cluster.environment(pod, pod.container())[0].get("SEKIWAKE_STORE_DIR") not in mounts:
            yield f"{pod.name}: SEKIWAKE_STORE_DIR is not on its volume"
        size = quantity(pod.workload["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"])
        if not resolved["SEKIWAKE_STORE_MAX_BYTES"] or quantity(resolved["SEKIWAKE_STORE_MAX_BYTES"]) > 0.9 * size:
            yield f"{pod.name}: SEKIWAKE_STORE_MAX_BYTES exceeds its volume"
    spools = [word for word in resolved.get("SEKIWAKE_SYSLOG_DESTINATIONS", "").split() if "spool=" in word]
    claims = [mount["mountPath"] for mount, volume in cluster.mounts(pod, pod.container()) if volume and "persistentVolumeClaim" in volume]
    if spools and cluster.environment(pod, pod.container())[0].get("SEKIWAKE_SPOOL_DIR") not in claims:
        yield f"{pod.name}: its spool is not on a volume"
    sources = [word for words in (value for name, value in resolved.items() if name.endswith("_DESTINATIONS")) for word in words.split()]
    if any("spoof=true" in word for word in sources) and pod.namespace != PRIVILEGED:
        yield f"{pod.name}: spoof=true needs overlays/spoof"
    keys = {name for name in environment if name.startswith("SEKIWAKE_BUS_") and name.endswith("_FILE")}
    if "SEKIWAKE_BUS" in environment:
        if keys - {"SEKIWAKE_BUS_CREDENTIALS_FILE"}:
            yield f"{pod.name}: keys of the proxy's bus on NATS"
    elif keys and keys != ({"SEKIWAKE_BUS_KEY_FILE", "SEKIWAKE_BUS_ALLOWED_KEYS_FILE"} if pod.service == "proxy" else {"SEKIWAKE_BUS_KEY_FILE", "SEKIWAKE_BUS_SERVER_KEY_FILE"}):
        yield f"{pod.name}: key settings are incomplete"


def quantity(text):
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()
    return float(number) * units.get(unit, 1)


def keyed_together(cluster):
    """Either all pods have keys or credentials, or none has."""
    names = ("SEKIWAKE_BUS_KEY_FILE", "SEKIWAKE_BUS_CREDENTIALS_FILE")
    with_keys = {any(cluster.environment(pod, pod.container())[0].get(name) for name in names) for pod in cluster.pods if pod.service != NATS}
    if len(with_keys) > 1:
        yield "some pods have keys and others none"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(port, path):
    """The HTTP status of an admin page, or None without an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(wanted, get, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if get() == wanted:
            return True
        time.sleep(0.1)
    return False


def probes(binaries, cluster, more):
    """Starts every service but the capture on loopback, with its pod's environment, user and volumes plus
    `more[service]`, and asks the probes: without a bus, then with the proxy or the servers of NATS. Captures
    need an interface; the end-to-end tests have them."""
    servers = nats_servers.Servers(binaries.folder, cluster, free_port) if cluster.on_jetstream else None
    bus = {name: free_port() for name in ("PUBLISH", "SUBSCRIBE", "CONTROL")}
    running, roots = {}, []

    def start(pod):
        container = pod.container()
        root = tempfile.TemporaryDirectory(dir=binaries.folder)
        roots.append(root)
        os.chmod(root.name, 0o755)
        binaries.mounted(cluster, pod, container, pathlib.Path(root.name))
        environment = binaries.environment(cluster, pod, container, root.name)
        environment.update(more.get(pod.service, {}))
        port = free_port()
        environment["SEKIWAKE_ADMIN"] = f"127.0.0.1:{port}"
        if servers:
            environment["SEKIWAKE_BUS"] = servers.url()
        for name, number in bus.items():
            for prefix in ("SEKIWAKE_BUS_", "SEKIWAKE_PROXY_"):
                if f"{prefix}{name}" in environment:
                    environment[f"{prefix}{name}"] = f"tcp://127.0.0.1:{number}"
        log = open(binaries.folder / f"{pod.service}.log", "w")
        process = subprocess.Popen([binaries.path(pod.service)], env=environment, cwd="/", stdout=log, stderr=log, **binaries.user(pod, container))
        running[pod.service] = (process, port)

    try:
        pods = {pod.service: pod for pod in cluster.pods if pod.service not in ("capture", NATS)}
        for service in pods:
            if service != "proxy":
                start(pods[service])
        for service, (process, port) in running.items():
            if not wait_for(200, lambda: ask(port, "/healthz")):
                yield f"{service}: not alive without a bus: {(binaries.folder / (service + '.log')).read_text()[-400:]}"
            idles = service in FORWARDERS and service not in more
            wanted = 200 if idles else 503
            if not wait_for(wanted, lambda: ask(port, "/readyz")):
                yield f"{service}: /readyz is {ask(port, '/readyz')} without a bus, expected {wanted}"
        if servers:
            servers.start()
            yield from servers.probes(ask, wait_for)
        else:
            start(pods["proxy"])
        for service, (process, port) in running.items():
            if not wait_for(200, lambda: ask(port, "/readyz")):
                yield f"{service}: not ready with a bus: {(binaries.folder / (service + '.log')).read_text()[-400:]}"
            if ask(port, "/healthz") != 200 or process.poll() is not None:
                yield f"{service}: not alive with a bus"
    finally:
        for service, (process, _) in running.items():
            process.terminate()
        for service, (process, _) in running.items():
            try:
                if process.wait(45) != 0:
                    yield f"{service}: exited with status {process.returncode}"
            except subprocess.TimeoutExpired:
                process.kill()
                yield f"{service}: does not stop"
        if servers:
            yield from servers.stop()
        for root in roots:
            root.cleanup()
