"""Rules for the rendered objects of an overlay. Each takes a Cluster and yields complaints.

Schemas are checked by the library kubernetes-validate. Here is what this project must assert
itself: how its pods are confined, replaced, selected and probed, and which connections its policies allow.
"""

import re
import urllib.parse

import kubernetes_validate

from objects import Outside, Stranger, key, labels_of, name_of, selects

SERVICES = ["capture", "proxy", "syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector", "console"]
FORWARDERS = [service for service in SERVICES if service.endswith("-forwarder")]
PRIVILEGED, RESTRICTED, MONITORING = "sekiwake-capture", "sekiwake", "monitoring"
LABEL = "app.kubernetes.io/"
BUS_PORTS = {"bus-pub": 5559, "bus-sub": 5560, "bus-control": 5561}
# Servers of NATS: the component, its ports, how the server starts, and how it stops.
NATS, NATS_PORTS = "nats", {"client": 4222, "cluster": 6222, "monitor": 8222}
NATS_COMMAND = ["nats-server", "--config", "/etc/nats/nats.conf"]
NATS_STOP = {"preStop": {"exec": {"command": ["nats-server", "--signal", "ldm=1"]}}}
BUS_SETTINGS = {"SEKIWAKE_BUS_PUBLISH": "bus-pub", "SEKIWAKE_BUS_SUBSCRIBE": "bus-sub", "SEKIWAKE_BUS_CONTROL": "bus-control"}
# An address in the range that the policies give to nodes, and one outside of it.
NODE, OUTSIDE = Outside("10.11.12.13"), Outside("198.51.100.99")
# Kinds without a schema in the library: the Prometheus operator's.
CUSTOM = {"PodMonitor", "PrometheusRule"}
CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
# The oldest minor version that docs/deploy-kubernetes.md names, and the newest four of the library.
VERSIONS = ["1.27", *sorted({kubernetes_validate.utils.major_minor(one) for one in kubernetes_validate.utils.all_versions()},
                            key=lambda text: [int(part) for part in text.split(".")])[-4:]]
_validated = set()


def differences(where, found, expected):
    """Fields of `found` (dotted paths) that differ from `expected`."""
    for path, value in expected.items():
        at = found
        for part in path.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if at != value:
            yield f"{where}: {path} is {at!r}, expected {value!r}"


def schemas(cluster):
    """The API server accepts every object and knows every field."""
    for one in cluster.objects:
        if one["kind"] in CUSTOM or key(one) in _validated:
            continue
        try:
            for version in VERSIONS:
                kubernetes_validate.validate(one, version, strict=True)
            _validated.add(key(one))
        except kubernetes_validate.ValidationError as error:
            yield f"{name_of(one)}: {'.'.join(str(part) for part in error.path)}: {error.message[:200]}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{name_of(one)}: {error.message}"


def objects(cluster):
    """Every service once, names unique, namespaces that exist, no Secret and no access to the API."""
    names = [name_of(one) for one in cluster.objects]
    yield from (f"{name}: defined twice" for name in sorted({name for name in names if names.count(name) > 1}))
    for one in cluster.objects:
        if one["kind"] == "Secret" or "rbac" in one["apiVersion"] or one["kind"] == "ServiceAccount":
            yield f"{name_of(one)}: no {one['kind']} belongs in the manifests"
        if one["kind"] not in CLUSTER_SCOPED and cluster.find("Namespace", None, one["metadata"].get("namespace")) is None:
            yield f"{name_of(one)}: its namespace is not defined"
        yield from differences(name_of(one), {"labels": {name.removeprefix(LABEL): value for name, value in labels_of(one).items()}},
                               {"labels.name": "sekiwake", "labels.part-of": "sekiwake", "labels.managed-by": "kustomize"})
    found, expected = {pod.service for pod in cluster.pods}, set(SERVICES) - ({"proxy"} if cluster.on_jetstream else set())
    yield from (f"no workload for {service}" for service in sorted(expected - found))
    yield from (f"a workload for {service}" for service in sorted(found - expected - ({NATS} if cluster.on_jetstream else set())))
    for one in cluster.of("PodMonitor"):
        yield from differences(name_of(one), one["spec"], {"jobLabel": LABEL + "component"})


def security(cluster):
    """Confinement, exactly as intended: the restricted Pod Security level, and the privileged one for NET_RAW alone."""
    for namespace, level in ((RESTRICTED, "restricted"), (PRIVILEGED, "privileged")):
        labels = labels_of(cluster.find("Namespace", None, namespace) or {"metadata": {}})
        for mode in ("enforce", "audit", "warn"):
            if labels.get(f"pod-security.kubernetes.io/{mode}") != level:
                yield f"namespace {namespace}: {mode} is not {level}"
    for pod in cluster.pods:
        raw = pod.namespace == PRIVILEGED
        if raw and pod.service not in ["capture", *FORWARDERS] or pod.service == "capture" and not (raw and pod.on_host):
            yield f"{pod.name}: wrong namespace or network"
        if (pod.spec.get("nodeSelector") or {}).get("kubernetes.io/os") != "linux":
            yield f"{pod.name}: not restricted to Linux nodes"
        user = 0 if raw else 65532
        yield from differences(pod.name, pod.spec, {
            # Service links would set SEKIWAKE_... variables, which are unknown settings.
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "serviceAccountName": None, "initContainers": None, "hostPID": None, "hostIPC": None,
            "dnsPolicy": "ClusterFirstWithHostNet" if pod.on_host else None,
            "securityContext.runAsUser": user, "securityContext.runAsGroup": user, "securityContext.runAsNonRoot": not raw,
            "securityContext.seccompProfile": {"type": "RuntimeDefault"},
        })
        yield from differences(pod.name, pod.container(), {
            "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"], **({"add": ["NET_RAW"]} if raw else {})}},
            "command": NATS_COMMAND if pod.service == NATS else None, "args": None, "lifecycle": NATS_STOP if pod.service == NATS else None,
        })
        if len(pod.containers) != 1:
            yield f"{pod.name}: more than one container"
        for volume in pod.spec.get("volumes") or []:
            if not {"configMap", "secret", "emptyDir", "persistentVolumeClaim"} & set(volume):
                yield f"{pod.name}: volume {volume['name']} is of another type"


def rollout(cluster):
    """How pods are replaced, spread and protected from eviction."""
    for pod in cluster.pods:
        workload = {"kind": pod.workload["kind"], **pod.workload["spec"]}
        scaled = any(one["spec"]["scaleTargetRef"]["name"] == pod.workload["metadata"]["name"] for one in cluster.of("HorizontalPodAutoscaler"))
        if pod.service == "capture":
            # Two captures on one node would publish every datagram twice.
            expected = {"kind": "DaemonSet", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
                        "template.spec.tolerations": [{"operator": "Exists"}]}
        elif pod.service == "proxy":
            expected = {"kind": "Deployment", "replicas": 1, "strategy": {"type": "Recreate"}}
        elif pod.service in ("storer", NATS):
            # One server of three alone is never ready, so all start at once.
            expected = {"kind": "StatefulSet", "podManagementPolicy": "Parallel", **({"replicas": 3} if pod.service == NATS else {}),
                        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"}}
        else:
            surge = {"maxUnavailable": 1, "maxSurge": 0} if pod.on_host else {"maxUnavailable": 0, "maxSurge": 1}
            expected = {"kind": "Deployment", "strategy.rollingUpdate": surge, "minReadySeconds": 5,
                        "replicas": None if scaled else 1 if pod.service == "console" else 2}
        yield from differences(pod.name, workload, expected)
        # The template of a claim is immutable: a version in it would make the next version impossible to apply.
        if any(LABEL + "version" in labels_of(claim) for claim in pod.workload["spec"].get("volumeClaimTemplates") or []):
            yield f"{pod.name}: a volumeClaimTemplate carries the version"
        # The scheduler ignores nodes that lack the label of any ScheduleAnyway constraint, for all of them: a
        # constraint on zones would disable the one on nodes in clusters without zone labels.
        spread = pod.spec.get("topologySpreadConstraints") or []
        apart = [one["podAffinityTerm"] for one in ((pod.spec.get("affinity") or {}).get("podAntiAffinity") or {})
                 .get("preferredDuringSchedulingIgnoredDuringExecution") or []]
        on_data_path = pod.service in ("capture", "proxy", NATS)
        unsatisfiable = "DoNotSchedule" if pod.service == NATS else "ScheduleAnyway"
        if not (on_data_path and pod.service != NATS) and ([one["topologyKey"] for one in spread] != ["kubernetes.io/hostname"]
                                 or [one["topologyKey"] for one in apart] != ["topology.kubernetes.io/zone"]):
            yield f"{pod.name}: not spread over nodes and zones"
        if any(not one["labelSelector"].get("matchLabels") or not selects(one["labelSelector"], pod.labels) for one in apart):
            yield f"{pod.name}: kept apart from {apart}"
        for one in spread:
            if not (one["labelSelector"].get("matchLabels") and selects(one["labelSelector"], pod.labels) and one["whenUnsatisfiable"] == unsatisfiable):
                yield f"{pod.name}: spread by {one}"
        if on_data_path and cluster.find("PriorityClass", None, pod.spec.get("priorityClassName")) is None:
            yield f"{pod.name}: no priority class"
        budgets = [one["spec"].get("maxUnavailable") for one in cluster.of("PodDisruptionBudget")
                   if one["metadata"]["namespace"] == pod.namespace and selects(one["spec"].get("selector"), pod.labels)]
        if budgets != ([] if on_data_path and pod.service != NATS else [1]):
            yield f"{pod.name}: disruption budgets are {budgets}"
    for one in cluster.of("HorizontalPodAutoscaler"):
        scaled = cluster.find(one["spec"]["scaleTargetRef"]["kind"], one["metadata"]["namespace"], one["spec"]["scaleTargetRef"]["name"])
        if scaled is None or labels_of(scaled).get(LABEL + "component") not in FORWARDERS or one["spec"].get("minReplicas", 1) < 2:
            yield f"{name_of(one)}: scales no forwarder, or below two"


def selectors(cluster):
    """Each selector selects its own objects; ports, probes and scraping agree."""
    for pod in cluster.pods:
        for other in cluster.pods:
            hit = other.namespace == pod.namespace and selects(pod.workload["spec"]["selector"], other.labels)
            if hit != (other is pod):
                yield f"{pod.name}: its selector {'also selects' if hit else 'does not select'} the pods of {other.name}"
        ports = {one["name"]: one["containerPort"] for one in pod.container().get("ports") or []}
        if pod.service == NATS:
            yield from _nats(cluster, pod, ports)
            continue
        if set(ports) != {"metrics", *(BUS_PORTS if pod.service == "proxy" else [])}:
            yield f"{pod.name}: ports are {ports}"
        # A capture without its proxy must not be replaced, and subscribers must reach a proxy before data flows.
        # The console's page says that the bus is lost.
        ready = "/healthz" if pod.service in ("capture", "proxy", "console") else "/readyz"
        yield from differences(pod.name, pod.container(), {
            f"{probe}.httpGet": {"path": path, "port": "metrics"}
            for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", ready))})
        yield from _resources(pod)
        annotated = all(pod.annotations.get(f"prometheus.io/{name}") == value
                        for name, value in (("scrape", "true"), ("port", str(ports.get("metrics"))), ("path", "/metrics")))
        monitors = [one for one in cluster.of("PodMonitor") if pod.namespace in one["spec"]["namespaceSelector"]["matchNames"]
                    and selects(one["spec"]["selector"], pod.labels) and one["spec"]["podMetricsEndpoints"][0]["port"] in ports]
        if annotated + len(monitors) != 1:
            yield f"{pod.name}: Prometheus finds it {annotated + len(monitors)} times"
        service = pod.workload["spec"].get("serviceName")
        if pod.workload["kind"] == "StatefulSet" and cluster.find("Service", pod.namespace, service) is None:
            yield f"{pod.name}: no Service {service}"
    for one in cluster.of("Service"):
        hits = [pod for pod in cluster.pods if pod.namespace == one["metadata"]["namespace"] and selects({"matchLabels": one["spec"].get("selector") or {"": ""}}, pod.labels)]
        ports = {port["name"]: port["port"] for port in one["spec"]["ports"]}
        if len(hits) != 1 or any(hits[0].port(name) != port for name, port in ports.items()):
            yield f"{name_of(one)}: not the ports of one workload"
        elif hits[0].service == "proxy" and (ports != BUS_PORTS or one["spec"].get("publishNotReadyAddresses")):
            yield f"{name_of(one)}: not the three bus ports of a ready proxy"
        elif hits[0].service == NATS and (one["spec"].get("clusterIP"), one["spec"].get("publishNotReadyAddresses")) != ("None", True):
            yield f"{name_of(one)}: servers that are not ready do not find each other by it"
        if one["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(one)}: reachable from outside of the cluster"


def _resources(pod):
    resources = pod.container().get("resources") or {}
    if any(not {"cpu", "memory"} <= set(resources.get(side) or {}) for side in ("requests", "limits")) or \
            resources["requests"]["memory"] != resources["limits"]["memory"]:
        yield f"{pod.name}: resources are {resources}"


def _nats(cluster, pod, ports):
    """Ports and probes of the servers of NATS. Prometheus does not scrape them."""
    if ports != NATS_PORTS:
        yield f"{pod.name}: ports are {ports}"
    yield from differences(pod.name, pod.container(), {
        f"{probe}.httpGet": {"path": path, "port": "monitor"}
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz?js-enabled-only=true"), ("readinessProbe", "/healthz?js-server-only=true"))})
    yield from _resources(pod)
    if any(name.startswith("prometheus.io/") for name in pod.annotations):
        yield f"{pod.name}: it has no metrics for Prometheus"
    if cluster.find("Service", pod.namespace, pod.workload["spec"].get("serviceName")) is None:
        yield f"{pod.name}: no Service {pod.workload['spec'].get('serviceName')}"


def defaults(cluster):
    """No field that the API server drops: `kubectl diff` would never be empty."""
    for one in cluster.objects:
        if one["kind"] == "NetworkPolicy" and any(one["spec"].get(side) == [] for side in ("ingress", "egress")) or one.get("globalDefault") is False:
            yield f"{name_of(one)}: a field that the API server drops"


def images(cluster):
    """One version of everything, the same as the label's. NATS has a version of its own: Sekiwake's does not restart it."""
    sekiwake = [pod for pod in cluster.pods if pod.service != NATS]
    for pod in cluster.pods:
        name, _, tag = pod.container()["image"].rpartition(":")
        if pod.service == NATS:
            if not re.fullmatch(r"(.*/)?nats", name) or not re.match(r"[0-9]+[.][0-9]+", tag) or LABEL + "version" in pod.labels:
                yield f"{pod.name}: image {pod.container()['image']}, label {pod.labels.get(LABEL + 'version')}"
            continue
        if not re.fullmatch(rf"(.*/)?sekiwake-{pod.service}", name) or tag == "latest" or tag != pod.labels.get(LABEL + "version"):
            yield f"{pod.name}: image {pod.container()['image']}, label {pod.labels.get(LABEL + 'version')}"
    if len({pod.container()["image"].rpartition(":")[2] for pod in sekiwake}) > 1:
        yield "images of several versions"


def references(cluster):
    """What pods name exists, and every ConfigMap is used."""
    used = set()
    for pod in cluster.pods:
        used |= {("ConfigMap", pod.namespace, one["configMapRef"]["name"]) for one in pod.container().get("envFrom") or [] if "configMapRef" in one}
        for volume in pod.spec.get("volumes") or []:
            if "configMap" in volume:
                used.add(("ConfigMap", pod.namespace, volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                used.add(("PersistentVolumeClaim", pod.namespace, volume["persistentVolumeClaim"]["claimName"]))
        yield from (f"{pod.name}: no volume {mount['name']}" for mount, volume in cluster.mounts(pod, pod.container()) if volume is None)
    yield from (f"missing: {'/'.join(one)}" for one in sorted(used) if cluster.find(*one) is None)
    for one in cluster.of("ConfigMap"):
        if ("ConfigMap", one["metadata"]["namespace"], one["metadata"]["name"]) not in used:
            yield f"{name_of(one)}: unused"


def destinations(environment, read):
    """The targets of a pod according to its settings and destination files: (protocol, host, port)."""
    texts = [value for name, value in environment.items() if name.endswith("_DESTINATIONS") or name == "SEKIWAKE_NOTIFY"]
    texts += [read(value) for name, value in environment.items() if name.endswith("_DESTINATIONS_FILE")]
    default_ports = {"http": 80, "https": 443, "udp": 514, "tls": 6514}
    for word in " ".join(texts).split():
        scheme, _, rest = word.partition("://")
        scheme = scheme.rpartition("+")[2]
        for place in re.split(r"[/?#]", rest)[0].split(","):
            parsed = urllib.parse.urlsplit(f"//{place}")
            yield "UDP" if scheme == "udp" else "TCP", parsed.hostname, parsed.port or default_ports[scheme]


def policies(cluster):
    """The policies allow the connections that the settings need, and no others."""
    prometheus = Stranger(MONITORING, {"app": "prometheus"})
    resolvers = (Stranger("kube-system", {"k8s-app": "kube-dns"}), Outside("169.254.20.10"))
    strangers = (Stranger("default", {LABEL + "part-of": "sekiwake", LABEL + "component": "anomaly-detector"}), OUTSIDE, Stranger(RESTRICTED))
    ports_of_buses = (*BUS_PORTS.values(), *NATS_PORTS.values())
    yield from (_to_nats if cluster.on_jetstream else _to_proxy)(cluster)
    for pod in cluster.pods:
        environment, wrong = cluster.environment(pod, pod.container())
        yield from wrong
        if pod.on_host:
            continue
        if pod.service != "proxy" and not all(cluster.allows(pod, one, protocol, 53) for one in resolvers for protocol in ("UDP", "TCP")):
            yield f"{pod.name}: policies block name resolution"
        if pod.service != NATS and not cluster.allows(prometheus, pod, "TCP", pod.port("metrics")):
            yield f"{pod.name}: policies block Prometheus"
        for protocol, host, port in destinations(environment, lambda path: cluster.file(pod, path)):
            if not cluster.sends(pod, protocol, host, port):
                yield f"{pod.name}: policies block {host}, {protocol} port {port}"
        for target, port in ((Outside("203.0.113.200"), 443), (Outside("10.96.0.1"), 443), (Stranger("default"), 8080), (Outside("169.254.169.254"), 80)):
            if cluster.allows(pod, target, "TCP", port):
                yield f"{pod.name}: policies allow a connection to {vars(target)}, port {port}"
        for port in (pod.port("metrics"), *ports_of_buses):
            if any(cluster.allows(one, pod, "TCP", port) for one in strangers) or \
                    port in ports_of_buses and cluster.allows(prometheus, pod, "TCP", port):
                yield f"{pod.name}: policies let strangers connect to port {port}"
    for one in cluster.of("NetworkPolicy"):
        for direction, side in (("ingress", "from"), ("egress", "to")):
            if any(not rule.get(side) or not rule.get("ports") for rule in one["spec"].get(direction) or []):
                yield f"{name_of(one)}: a rule without peers or ports"
        unknown = set((one["spec"]["podSelector"].get("matchLabels") or {}).items()) & {(LABEL + "component", "proxy"), (LABEL + "component", NATS)}
        if unknown and not any(selects(one["spec"]["podSelector"], pod.labels) for pod in cluster.pods):
            yield f"{name_of(one)}: for a bus that is not here"
    for namespace in (RESTRICTED, PRIVILEGED):
        deny = cluster.find("NetworkPolicy", namespace, "deny")
        if deny is None or deny["spec"] != {"podSelector": {}, "policyTypes": deny["spec"]["policyTypes"]} or set(deny["spec"]["policyTypes"]) != {"Ingress", "Egress"}:
            yield f"namespace {namespace}: nothing is denied by default"


def _to_proxy(cluster):
    """Settings and policies of the bus on the proxy."""
    proxy = next(pod for pod in cluster.pods if pod.service == "proxy")
    nodes_need = set()
    own = Stranger(RESTRICTED, {LABEL + "part-of": "sekiwake"})
    for port in (5560, 5561):
        if not cluster.allows(own, proxy, "TCP", port):
            yield f"a subscriber with the documented label cannot reach the proxy's port {port}"
    for pod in cluster.pods:
        environment, _ = cluster.environment(pod, pod.container())
        source = NODE if pod.on_host else pod
        for setting, port_name in BUS_SETTINGS.items():
            needed = pod.service != "proxy" and {
                "bus-pub": pod.service in ("capture", "anomaly-detector"), "bus-sub": pod.service != "capture", "bus-control": True}[port_name]
            port = BUS_PORTS[port_name]
            names = [f"sekiwake-proxy.{RESTRICTED}.svc", *(["sekiwake-proxy"] if pod.namespace == RESTRICTED else [])]
            if environment.get(setting) not in ([f"tcp://{name}:{port}" for name in names] if needed else [None]):
                yield f"{pod.name}: {setting} is {environment.get(setting)}"
            if needed and pod.on_host:
                nodes_need.add(port)
            if pod.service != "proxy" and not pod.on_host and cluster.allows(pod, proxy, "TCP", port) != needed or \
                    needed and not cluster.allows(source, proxy, "TCP", port):
                yield f"{pod.name}: policies {'block' if needed else 'allow'} {port_name} at the proxy"
    for port in (*BUS_PORTS.values(), proxy.port("metrics")):
        if port not in nodes_need and cluster.allows(NODE, proxy, "TCP", port):
            yield f"{proxy.name}: policies let nodes connect to port {port}"


def _to_nats(cluster):
    """Settings and policies of the bus on NATS: on servers of the overlay, or on those that the site has."""
    server = next((pod for pod in cluster.pods if pod.service == NATS), None)
    clients = [pod for pod in cluster.pods if pod.service != NATS]
    for pod in clients:
        environment, _ = cluster.environment(pod, pod.container())
        for setting in BUS_SETTINGS:
            if environment.get(setting):
                yield f"{pod.name}: {setting} is set together with SEKIWAKE_BUS"
        urls = [urllib.parse.urlsplit(one) for one in (environment.get("SEKIWAKE_BUS") or "").split(",")]
        if not all(one.scheme in ("nats", "tls") and one.hostname for one in urls):
            yield f"{pod.name}: SEKIWAKE_BUS is {environment.get('SEKIWAKE_BUS')}"
            continue
        if server is None:
            yield from (f"{pod.name}: policies block {one.hostname}" for one in urls
                        if not pod.on_host and not cluster.sends(pod, "TCP", one.hostname, one.port or 4222))
            continue
        if {(one.hostname, one.port) for one in urls} != {(name, NATS_PORTS["client"]) for name in server_names(server)}:
            yield f"{pod.name}: SEKIWAKE_BUS does not name each server: {environment['SEKIWAKE_BUS']}"
        for name, port in NATS_PORTS.items():
            if pod.on_host:
                allowed = cluster.allows(NODE, server, "TCP", port)
            else:
                allowed = cluster.allows(pod, server, "TCP", port)
            if allowed != (name == "client"):
                yield f"{pod.name}: policies {'allow' if allowed else 'block'} port {name} of NATS"
    if server is not None:
        if not cluster.allows(Stranger(RESTRICTED, {LABEL + "part-of": "sekiwake"}), server, "TCP", NATS_PORTS["client"]):
            yield "a client with the documented label cannot reach NATS"
        for name, port in NATS_PORTS.items():
            if cluster.allows(server, server, "TCP", port) != (name == "cluster"):
                yield f"{server.name}: policies between servers, port {name}"


def server_names(server):
    """The names of the servers' pods in the cluster's DNS."""
    workload = server.workload
    return [f"{workload['metadata']['name']}-{number}.{workload['spec']['serviceName']}.{server.namespace}.svc"
            for number in range(workload["spec"]["replicas"])]


RULES = [schemas, objects, security, rollout, selectors, defaults, images, references, policies]
