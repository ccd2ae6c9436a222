"""What must be true of the rendered objects. Each rule takes a Cluster and gives complaints."""

import re
import urllib.parse

import kubernetes_validate

from objects import WORKLOADS, Outside, Pod, Stranger, key, labels_of, name_of, selects

SERVICES = ["capture", "proxy", "syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector"]
FORWARDERS = [service for service in SERVICES if service.endswith("-forwarder")]
PRIVILEGED, RESTRICTED = "sekiwake-capture", "sekiwake"
MONITORING = "monitoring"
LABEL = "app.kubernetes.io/"
# What the policies say of the node's addresses is for these.
NODE = Outside("10.11.12.13")
NO_NODE = Outside("198.51.100.99")
CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
CUSTOM = {"PodMonitor", "PrometheusRule"}
KINDS = CUSTOM | CLUSTER_SCOPED | {
    "ConfigMap", "DaemonSet", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget",
    "Service", "StatefulSet",
}
# The oldest minor that docs/deploy-kubernetes.md speaks of, and the newest that the package carries.
VERSIONS = ["1.27", *sorted({kubernetes_validate.utils.major_minor(one) for one in kubernetes_validate.utils.all_versions()},
                             key=lambda text: [int(part) for part in text.split(".")])[-4:]]
_validated = set()


def schemas(cluster):
    """Every object is what the API server takes, with no field that it does not know."""
    for one in cluster.objects:
        if one["kind"] in CUSTOM:
            continue
        if key(one) in _validated:
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
    """Known kinds, names once, namespaces that are there, labels, no secret, no right to the API."""
    seen = set()
    for one in cluster.objects:
        kind, meta = one["kind"], one["metadata"]
        if kind == "Secret":
            yield f"{name_of(one)}: a Secret's value in a manifest"
        elif kind not in KINDS:
            yield f"{name_of(one)}: no {kind} is needed"
        if name_of(one) in seen:
            yield f"{name_of(one)}: twice"
        seen.add(name_of(one))
        if kind not in CLUSTER_SCOPED and cluster.find("Namespace", None, meta.get("namespace")) is None:
            yield f"{name_of(one)}: its namespace is none of ours"
        wanted = {"name": "sekiwake", "instance": None, "part-of": "sekiwake", "managed-by": "kustomize"}
        if kind in WORKLOADS:
            wanted["version"] = None
        if kind in ("ConfigMap", "DaemonSet", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service", "StatefulSet"):
            wanted["component"] = None
        for name, value in wanted.items():
            found = labels_of(one).get(LABEL + name)
            if not found or value not in (None, found):
                yield f"{name_of(one)}: label {LABEL}{name} is {found!r}"
    services = {pod.service for pod in cluster.pods}
    for missing in set(SERVICES) - services:
        yield f"there is no {missing}"


def security(cluster):
    """Pod Security levels, field by field, and our own rules on top."""
    for namespace in cluster.of("Namespace"):
        level = {RESTRICTED: "restricted", PRIVILEGED: "privileged"}.get(namespace["metadata"]["name"])
        for mode in ("enforce", "audit", "warn"):
            found = labels_of(namespace).get(f"pod-security.kubernetes.io/{mode}")
            if level is None or found != level:
                yield f"{name_of(namespace)}: {mode} is {found}, expected {level}"
    for pod in cluster.pods:
        yield from (f"{pod.name}: {complaint}" for complaint in own_rules(pod))
        if pod.namespace == PRIVILEGED:
            yield from (f"{pod.name}: {complaint}" for complaint in privileged_rules(pod))
            if pod.service not in ["capture", *FORWARDERS]:
                yield f"{pod.name}: has no business in {PRIVILEGED}"
        else:
            yield from (f"{pod.name}: {complaint}" for complaint in [*baseline(pod), *restricted(pod)])
        if pod.service == "capture" and not (pod.namespace == PRIVILEGED and pod.on_host):
            yield f"{pod.name}: captures outside of the host's network, or of {PRIVILEGED}"


def security_of_pods(cluster):
    """The levels of what is no workload: the pods of the end-to-end script."""
    levels = {one["metadata"]["name"]: labels_of(one).get("pod-security.kubernetes.io/enforce") for one in cluster.of("Namespace")}
    for one in cluster.of("Pod"):
        pod = Pod({"kind": "Pod", "metadata": one["metadata"], "spec": {"template": one}})
        if levels.get(pod.namespace) != "privileged":
            yield from (f"{pod.name}: {complaint}" for complaint in [*baseline(pod), *restricted(pod)])


def every_container(pod):
    return [one for field in ("initContainers", "containers", "ephemeralContainers") for one in pod.spec.get(field) or []]


def contexts(pod):
    """The security contexts of a pod and of its containers, with where they are."""
    yield "pod", pod.spec.get("securityContext") or {}
    for container in every_container(pod):
        yield container["name"], container.get("securityContext") or {}


BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
    "SYS_CHROOT",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}


def baseline(pod):
    """Pod Security Standards, baseline."""
    for where, context in contexts(pod):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{where}: HostProcess"
        if context.get("privileged"):
            yield f"{where}: privileged"
        for capability in set((context.get("capabilities") or {}).get("add") or []) - BASELINE_CAPABILITIES:
            yield f"{where}: adds the capability {capability}"
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: AppArmor profile"
        selinux = context.get("seLinuxOptions") or {}
        if selinux.get("type", "") not in ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"):
            yield f"{where}: SELinux type"
        if selinux.get("user") or selinux.get("role"):
            yield f"{where}: SELinux user or role"
        if context.get("procMount", "Default") != "Default":
            yield f"{where}: procMount"
        if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: seccomp profile"
        for sysctl in context.get("sysctls") or []:
            if sysctl["name"] not in SAFE_SYSCTLS:
                yield f"{where}: sysctl {sysctl['name']}"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield field
    for name, value in pod.annotations.items():
        if name.startswith("container.apparmor.security.beta.kubernetes.io/") and not re.match(r"runtime/default$|localhost/", value):
            yield f"AppArmor annotation {value}"
    for volume in pod.spec.get("volumes") or []:
        if "hostPath" in volume:
            yield f"volume {volume['name']} is of the host"
    for container in every_container(pod):
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield f"{container['name']}: port {port['hostPort']} of the host"
        handlers = [container.get(field) or {} for field in ("livenessProbe", "readinessProbe", "startupProbe")]
        handlers += list((container.get("lifecycle") or {}).values())
        if any((handler.get(kind) or {}).get("host") for handler in handlers for kind in ("httpGet", "tcpSocket")):
            yield f"{container['name']}: a probe of another host"


RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def restricted(pod):
    """Pod Security Standards, restricted, on top of the baseline."""
    for volume in pod.spec.get("volumes") or []:
        if not RESTRICTED_VOLUMES & set(volume):
            yield f"volume {volume['name']} is of another type"
    for where, context in contexts(pod):
        if context.get("runAsNonRoot") is False:
            yield f"{where}: runAsNonRoot is false"
        if context.get("runAsUser") == 0:
            yield f"{where}: user 0"
    for container in every_container(pod):
        name, context = container["name"], container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: privilege escalation"
        if pod.security(container, "runAsNonRoot") is not True:
            yield f"{name}: runAsNonRoot is not set"
        if (pod.security(container, "seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: no seccomp profile"
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"{name}: does not drop ALL capabilities"
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            yield f"{name}: adds capabilities"


def own_rules(pod):
    """What is so in every pod of ours, whatever its level."""
    if (pod.spec.get("nodeSelector") or {}).get("kubernetes.io/os") != "linux":
        yield "may be placed on a node of another system"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false: Services named sekiwake-... would become variables that nobody knows"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "a token of the API is mounted"
    if pod.spec.get("serviceAccountName") not in (None, "default"):
        yield "a service account"
    if len(every_container(pod)) != 1:
        yield "more than one container"
    for container in every_container(pod):
        context = container.get("securityContext") or {}
        if context.get("readOnlyRootFilesystem") is not True:
            yield "its root file system can be written to"
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield "privilege escalation"
        if (context.get("capabilities") or {}).get("drop") != ["ALL"]:
            yield "does not drop ALL capabilities"
        if pod.security(container, "seccompProfile") != {"type": "RuntimeDefault"}:
            yield "seccomp profile is not RuntimeDefault"
        user = (pod.security(container, "runAsUser"), pod.security(container, "runAsGroup"))
        if user != ((0, 0) if pod.namespace == PRIVILEGED else (65532, 65532)):
            yield f"runs as {user}"
        if container.get("lifecycle"):
            yield "a lifecycle hook, which nothing here needs"
        if container.get("command") or container.get("args"):
            yield "a command that is not the image's"


def privileged_rules(pod):
    for container in every_container(pod):
        if ((container.get("securityContext") or {}).get("capabilities") or {}).get("add") != ["NET_RAW"]:
            yield "adds other capabilities than NET_RAW"
    if pod.on_host and pod.spec.get("dnsPolicy") != "ClusterFirstWithHostNet":
        yield "does not find the proxy's name: dnsPolicy is not ClusterFirstWithHostNet"
    if any("hostPath" in volume for volume in pod.spec.get("volumes") or []):
        yield "a volume of the host"
    if pod.spec.get("hostPID") or pod.spec.get("hostIPC"):
        yield "the host's processes"


def rollout(cluster):
    """How pods are replaced."""
    for pod in cluster.pods:
        spec, kind = pod.workload["spec"], pod.workload["kind"]
        if pod.service == "capture":
            strategy = spec.get("updateStrategy") or {}
            rolling = strategy.get("rollingUpdate") or {}
            if kind != "DaemonSet" or strategy.get("type") != "RollingUpdate" or rolling != {"maxUnavailable": 1, "maxSurge": 0}:
                yield f"{pod.name}: not one node at a time, or two captures on a node"
            if not any(one == {"operator": "Exists"} for one in pod.spec.get("tolerations") or []):
                yield f"{pod.name}: does not tolerate every taint"
        elif pod.service == "proxy":
            if kind != "Deployment" or spec.get("replicas") != 1 or spec.get("strategy") != {"type": "Recreate"}:
                yield f"{pod.name}: there may be two proxies"
        elif pod.service == "storer":
            if kind != "StatefulSet" or spec.get("podManagementPolicy") != "Parallel" or not spec.get("volumeClaimTemplates"):
                yield f"{pod.name}: no StatefulSet with a volume whose pods do not wait for each other"
            if (spec.get("persistentVolumeClaimRetentionPolicy") or {}) != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
                yield f"{pod.name}: its volume may be deleted"
        else:
            rolling = ((spec.get("strategy") or {}).get("rollingUpdate")) or {}
            wanted = {"maxUnavailable": 1, "maxSurge": 0} if pod.on_host else {"maxUnavailable": 0, "maxSurge": 1}
            if kind != "Deployment" or rolling != wanted:
                yield f"{pod.name}: rolling update is {rolling}, expected {wanted}"
            scaled = any(one["spec"]["scaleTargetRef"]["name"] == pod.workload["metadata"]["name"] for one in cluster.of("HorizontalPodAutoscaler"))
            if scaled == ("replicas" in spec):
                yield f"{pod.name}: replicas are set {'although they are' if scaled else 'neither here nor'} the autoscaler's"
            if not scaled and spec.get("replicas", 1) < 2:
                yield f"{pod.name}: one replica"
            if not spec.get("minReadySeconds"):
                yield f"{pod.name}: no minReadySeconds"
        if pod.service in ("capture", "proxy"):
            priority = pod.spec.get("priorityClassName")
            if cluster.find("PriorityClass", None, priority) is None:
                yield f"{pod.name}: priority class {priority} is none of ours"
        elif {one.get("topologyKey") for one in pod.spec.get("topologySpreadConstraints") or []} != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
            yield f"{pod.name}: is not spread over nodes and zones"
        for constraint in pod.spec.get("topologySpreadConstraints") or []:
            if not (constraint.get("labelSelector") or {}).get("matchLabels") or not selects(constraint["labelSelector"], pod.labels):
                yield f"{pod.name}: is spread by labels that it does not have"
            if constraint.get("whenUnsatisfiable") != "ScheduleAnyway":
                yield f"{pod.name}: a small cluster cannot schedule it"
        budgets = [one for one in cluster.of("PodDisruptionBudget")
                   if one["metadata"]["namespace"] == pod.namespace and selects(one["spec"].get("selector"), pod.labels)]
        if pod.service in ("capture", "proxy"):
            if budgets:
                yield f"{pod.name}: has a disruption budget"
        elif [one["spec"].get("maxUnavailable") for one in budgets] != [1]:
            yield f"{pod.name}: its disruption budget is not one pod"


def selectors(cluster):
    """What selects pods selects the right ones."""
    for pod in cluster.pods:
        selector = pod.workload["spec"]["selector"]
        if set(selector.get("matchLabels") or {}) != {LABEL + one for one in ("name", "instance", "component")} or "matchExpressions" in selector:
            yield f"{pod.name}: selects by {sorted(selector.get('matchLabels') or {})}"
        for other in cluster.pods:
            hit = other.namespace == pod.namespace and selects(selector, other.labels)
            if hit != (other is pod):
                yield f"{pod.name}: its selector {'also takes' if hit else 'does not take'} the pods of {other.name}"
        for name in ("name", "instance", "component", "part-of", "version"):
            if pod.labels.get(LABEL + name) != labels_of(pod.workload).get(LABEL + name) or not pod.labels.get(LABEL + name):
                yield f"{pod.name}: pods and workload disagree about the label {name}"
    for one in cluster.of("PodDisruptionBudget"):
        hits = [pod for pod in cluster.pods if pod.namespace == one["metadata"]["namespace"] and selects(one["spec"].get("selector"), pod.labels)]
        if len(hits) != 1:
            yield f"{name_of(one)}: selects {len(hits)} workloads"
    for one in cluster.of("NetworkPolicy"):
        of = [pod for pod in cluster.pods if pod.namespace == one["metadata"]["namespace"]]
        selector = one["spec"]["podSelector"]
        if selector != {} and not any(selects(selector, pod.labels) for pod in of):
            yield f"{name_of(one)}: selects no pod"
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in one["spec"].get(direction) or []:
                if not rule.get(side) or not rule.get("ports"):
                    yield f"{name_of(one)}: a rule for everybody, or every port"
                for peer in rule.get(side) or []:
                    if "podSelector" in peer and "namespaceSelector" not in peer and not any(selects(peer["podSelector"], pod.labels) for pod in of):
                        yield f"{name_of(one)}: names peers that there are not"
            if direction in one["spec"] and direction.capitalize() not in one["spec"]["policyTypes"]:
                yield f"{name_of(one)}: has {direction} and is not for it"
    for one in cluster.of("HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        hit = cluster.find(target["kind"], one["metadata"]["namespace"], target["name"])
        if hit is None or labels_of(hit).get(LABEL + "component") not in FORWARDERS:
            yield f"{name_of(one)}: scales no forwarder"
        metrics = [metric["resource"]["name"] for metric in one["spec"]["metrics"] if metric["type"] == "Resource"]
        if one["apiVersion"] != "autoscaling/v2" or metrics != ["cpu"] or not one["spec"].get("behavior"):
            yield f"{name_of(one)}: not on CPU, or without behaviour"
        if one["spec"].get("minReplicas", 1) < 2 or one["spec"]["maxReplicas"] <= one["spec"].get("minReplicas", 1):
            yield f"{name_of(one)}: its bounds"


def ports(cluster):
    """Ports, Services and probes agree."""
    bus = {"bus-pub": 5559, "bus-sub": 5560, "bus-control": 5561}
    for pod in cluster.pods:
        names = [port.get("name") for container in pod.containers for port in container.get("ports") or []]
        wanted = ["metrics", *(bus if pod.service == "proxy" else [])]
        if sorted(map(str, names)) != sorted(wanted):
            yield f"{pod.name}: its ports are {names}, expected {wanted}"
        if any(port.get("protocol", "TCP") != "TCP" for container in pod.containers for port in container.get("ports") or []):
            yield f"{pod.name}: a port that is not TCP"
        container = pod.container()
        # A capture that misses the proxy is not to be replaced for that, and a proxy is reached before data flows.
        ready = "/healthz" if pod.service in ("capture", "proxy") else "/readyz"
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", ready)):
            found = container.get(probe) or {}
            get = found.get("httpGet") or {}
            if get.get("path") != path or get.get("port") != "metrics" or get.get("scheme", "HTTP") != "HTTP":
                yield f"{pod.name}: {probe} asks {get.get('path')} at {get.get('port')}, expected {path} at metrics"
            if probe == "livenessProbe" and found.get("failureThreshold", 3) * found.get("periodSeconds", 10) < 20:
                yield f"{pod.name}: liveness is given up too soon"
            if probe == "readinessProbe" and found.get("periodSeconds", 10) > 2:
                yield f"{pod.name}: readiness is asked too seldom"
        annotated = pod.annotations.get("prometheus.io/scrape") == "true"
        if annotated and (pod.annotations.get("prometheus.io/port"), pod.annotations.get("prometheus.io/path")) != (str(pod.port("metrics")), "/metrics"):
            yield f"{pod.name}: its annotations name another port than metrics"
        monitors = [one for one in cluster.of("PodMonitor") if pod.namespace in (one["spec"].get("namespaceSelector") or {}).get("matchNames", [one["metadata"]["namespace"]])
                    and selects(one["spec"]["selector"], pod.labels)
                    and any(end.get("port") in names and end.get("path", "/metrics") == "/metrics" for end in one["spec"]["podMetricsEndpoints"])]
        if len(monitors) + annotated != 1:
            yield f"{pod.name}: Prometheus finds it {len(monitors) + annotated} times"
        resources = container.get("resources") or {}
        for side in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(side) or {}):
                yield f"{pod.name}: {side} of resources are not set"
        if (resources.get("requests") or {}).get("memory") != (resources.get("limits") or {}).get("memory"):
            yield f"{pod.name}: memory is promised that it does not have"
    for one in cluster.of("Service"):
        hits = [pod for pod in cluster.pods if pod.namespace == one["metadata"]["namespace"] and selects({"matchLabels": one["spec"].get("selector")}, pod.labels)]
        if len(hits) != 1 or not one["spec"].get("selector"):
            yield f"{name_of(one)}: selects {len(hits)} workloads"
        for port in one["spec"]["ports"]:
            if not all(pod.port(port.get("targetPort")) == port["port"] for pod in hits) or port.get("name") != port.get("targetPort"):
                yield f"{name_of(one)}: port {port.get('name')} is not the pods'"
        if one["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(one)}: reachable from outside"
        if any(pod.service == "proxy" for pod in hits):
            if {port["name"]: port["port"] for port in one["spec"]["ports"]} != bus:
                yield f"{name_of(one)}: not the bus's ports"
            if one["spec"].get("publishNotReadyAddresses"):
                yield f"{name_of(one)}: a proxy that ends is reached, and the next one too"
    for pod in cluster.pods:
        name = pod.workload["spec"].get("serviceName")
        if pod.workload["kind"] == "StatefulSet" and cluster.find("Service", pod.namespace, name) is None:
            yield f"{pod.name}: there is no Service {name}"


def images(cluster):
    """One version of everything, and none that changes under its name."""
    versions = set()
    for pod in cluster.pods:
        image = pod.container()["image"]
        name, _, tag = image.rpartition(":")
        if not re.fullmatch(rf"(.*/)?sekiwake-{pod.service}", name) or tag in ("", "latest"):
            yield f"{pod.name}: image {image}"
        if tag != pod.labels.get(LABEL + "version"):
            yield f"{pod.name}: image {image} is not the version of its label"
        for claim in pod.workload["spec"].get("volumeClaimTemplates") or []:
            if LABEL + "version" in (claim["metadata"].get("labels") or {}):
                yield f"{pod.name}: the next version cannot be applied, for the template of a claim never changes"
        if pod.container().get("imagePullPolicy", "IfNotPresent") != "IfNotPresent":
            yield f"{pod.name}: pulls its image at each start"
        versions.add(tag)
    if len(versions) > 1:
        yield f"several versions: {sorted(versions)}"


def references(cluster):
    """What pods name is there, and what is there is named."""
    used = set()
    for pod in cluster.pods:
        container = pod.container()
        for source in container.get("envFrom") or []:
            if "configMapRef" in source:
                used.add((pod.namespace, source["configMapRef"]["name"]))
        for volume in pod.spec.get("volumes") or []:
            if "configMap" in volume:
                used.add((pod.namespace, volume["configMap"]["name"]))
                if cluster.find("ConfigMap", pod.namespace, volume["configMap"]["name"]) is None:
                    yield f"{pod.name}: there is no ConfigMap {volume['configMap']['name']}"
            if "persistentVolumeClaim" in volume and cluster.find("PersistentVolumeClaim", pod.namespace, volume["persistentVolumeClaim"]["claimName"]) is None:
                yield f"{pod.name}: there is no PersistentVolumeClaim {volume['persistentVolumeClaim']['claimName']}"
            if "secret" in volume and not any(mount["name"] == volume["name"] and mount.get("readOnly") for mount, _ in cluster.mounts(pod, container)):
                yield f"{pod.name}: a Secret that is not mounted, or not read-only"
        for mount, volume in cluster.mounts(pod, container):
            if volume is None:
                yield f"{pod.name}: there is no volume {mount['name']}"
    for one in cluster.of("ConfigMap"):
        if (one["metadata"]["namespace"], one["metadata"]["name"]) not in used:
            yield f"{name_of(one)}: nobody uses it"


def destinations(environment, files):
    """What a pod sends to by its settings, and where it says so: (protocol, host, port)."""
    texts = [value for name, value in environment.items() if name.endswith("_DESTINATIONS") or name == "SEKIWAKE_NOTIFY"]
    texts += [files(value) for name, value in environment.items() if name.endswith("_DESTINATIONS_FILE")]
    ports = {"http": 80, "https": 443, "udp": 514}
    for word in " ".join(texts).split():
        scheme, _, rest = word.partition("://")
        scheme = scheme.rpartition("+")[2]
        for place in re.split(r"[/?#]", rest)[0].split(","):
            parsed = urllib.parse.urlsplit(f"//{place}")
            yield "UDP" if scheme == "udp" else "TCP", parsed.hostname, parsed.port or ports[scheme]


def endpoints(environment):
    """Ends of the bus by a pod's settings: (variable, host, port)."""
    for name, value in environment.items():
        if name.startswith("SEKIWAKE_BUS_") and not name.endswith("_FILE"):
            for place in re.split(r"[,\s]+", value):
                host, _, port = place.removeprefix("tcp://").rpartition(":")
                yield name, host, int(port)


def flows(cluster):
    """Policies let through what is needed and refuse what is not."""
    proxies = [pod for pod in cluster.pods if pod.service == "proxy"]
    prometheus = Stranger(MONITORING, {"app": "prometheus"})
    names = Stranger("kube-system", {"k8s-app": "kube-dns"})
    stranger = Stranger("default", {LABEL + "part-of": "sekiwake", LABEL + "component": "anomaly-detector"})
    named = {"SEKIWAKE_BUS_PUBLISH": "bus-pub", "SEKIWAKE_BUS_SUBSCRIBE": "bus-sub", "SEKIWAKE_BUS_CONTROL": "bus-control"}
    for pod in cluster.pods:
        environment, wrong = cluster.environment(pod, pod.container())
        yield from wrong
        said = list(endpoints(environment))
        wants = set() if pod.service == "proxy" else {"SEKIWAKE_BUS_CONTROL"}
        wants |= {"SEKIWAKE_BUS_PUBLISH"} if pod.service in ("capture", "anomaly-detector") else set()
        wants |= {"SEKIWAKE_BUS_SUBSCRIBE"} if pod.service not in ("capture", "proxy") else set()
        if {name for name, _, _ in said} != wants:
            yield f"{pod.name}: ends of the bus are {sorted(name for name, _, _ in said)}, expected {sorted(wants)}"
        for name, host, port in said:
            service = host.split(".")
            found = cluster.find("Service", service[1] if len(service) > 1 else pod.namespace, service[0])
            offered = [one for one in (found or {"spec": {"ports": []}})["spec"]["ports"] if one["port"] == port and one["name"] == named[name]]
            if not offered or (len(service) > 1 and service[2:] != ["svc"]):
                yield f"{pod.name}: {name} names {host}:{port}, which is no Service's port {named[name]}"
                continue
            source = pod if not pod.on_host else NODE
            for proxy in proxies:
                if not cluster.allows(source, proxy, "TCP", proxy.port(offered[0]["targetPort"])):
                    yield f"{pod.name}: policies keep it from the proxy's port {port}"
        if not pod.on_host and pod.service != "proxy":
            for protocol in ("UDP", "TCP"):
                if not cluster.allows(pod, names, protocol, 53):
                    yield f"{pod.name}: policies keep it from names ({protocol})"
                if not cluster.allows(pod, Outside("169.254.20.10"), protocol, 53):
                    yield f"{pod.name}: policies keep it from the node's cache of names ({protocol})"
        if not pod.on_host and not cluster.allows(prometheus, pod, "TCP", pod.port("metrics")):
            yield f"{pod.name}: policies keep Prometheus from it"
        texts = {f"{mount['mountPath']}/{name}": text for mount, volume in cluster.mounts(pod, pod.container()) if volume and "configMap" in volume
                 for name, text in ((cluster.find("ConfigMap", pod.namespace, volume["configMap"]["name"]) or {}).get("data") or {}).items()}
        sends = list(destinations(environment, lambda path: texts.get(path, "")))
        for protocol, host, port in sends:
            if not pod.on_host and not reaches(cluster, pod, protocol, host, port):
                yield f"{pod.name}: no policy lets it send to {host}, {protocol} port {port}"
        if pod.on_host:
            continue
        # What nobody needs.
        for what, target, port in [
            ("a web server outside", Outside("203.0.113.200"), 443), ("the API server", Outside("10.96.0.1"), 443),
            ("a pod of another namespace", Stranger("default"), 8080), ("the metadata of a cloud", Outside("169.254.169.254"), 80),
        ]:
            if cluster.allows(pod, target, "TCP", port):
                yield f"{pod.name}: may connect to {what}"
        for source, who in ((stranger, "a pod of another namespace"), (NO_NODE, "an address outside"), (Stranger(pod.namespace), "a pod that is not ours")):
            for port in (pod.port("metrics"), 5559, 5560, 5561):
                if cluster.allows(source, pod, "TCP", port):
                    yield f"{pod.name}: {who} may connect to port {port}"
        for port in (5559, 5560, 5561):
            if cluster.allows(prometheus, pod, "TCP", port):
                yield f"{pod.name}: Prometheus may connect to port {port}"
        if cluster.allows(NODE, pod, "TCP", pod.port("metrics")):
            yield f"{pod.name}: nodes' addresses may connect to the admin port"
    on_host = {name for pod in cluster.pods if pod.on_host for name, _, _ in endpoints(cluster.environment(pod, pod.container())[0])}
    for proxy in proxies:
        for name, port in (("SEKIWAKE_BUS_PUBLISH", 5559), ("SEKIWAKE_BUS_SUBSCRIBE", 5560), ("SEKIWAKE_BUS_CONTROL", 5561)):
            if cluster.allows(NODE, proxy, "TCP", port) and name not in on_host:
                yield f"{proxy.name}: nodes' addresses may connect to port {port}, and nobody needs it"
        for pod in cluster.pods:
            if pod.service in [*FORWARDERS, "storer"] and not pod.on_host and cluster.allows(pod, proxy, "TCP", 5559):
                yield f"{pod.name}: may publish"
    for namespace in (RESTRICTED, PRIVILEGED):
        denies = [one for one in cluster.of("NetworkPolicy") if one["metadata"]["namespace"] == namespace and one["spec"]["podSelector"] == {}
                  and sorted(one["spec"]["policyTypes"]) == ["Egress", "Ingress"] and not one["spec"].get("ingress") and not one["spec"].get("egress")]
        if not denies:
            yield f"nothing is denied by default in {namespace}"


def reaches(cluster, pod, protocol, host, port):
    """Whether a policy lets a pod send there. Of a name only the cluster knows the address, so there the port must do."""
    if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.]+:[0-9a-fA-F:.]*", host):
        return cluster.allows(pod, Outside(host), protocol, port)
    for policy in cluster.of("NetworkPolicy"):
        if policy["metadata"]["namespace"] != pod.namespace or not selects(policy["spec"]["podSelector"], pod.labels):
            continue
        for rule in policy["spec"].get("egress") or []:
            if any(cluster._is_port(one, None, protocol, port) for one in rule.get("ports") or []):
                return True
    return False


def quantity(text):
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()
    return float(number) * units.get(unit, 1)


def monitoring(cluster):
    """What the Prometheus operator takes; there are no schemas of it here."""
    for one in cluster.of(*CUSTOM):
        if one["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"{name_of(one)}: {one['apiVersion']}"
    for one in cluster.of("PodMonitor"):
        for end in one["spec"]["podMetricsEndpoints"]:
            if set(end) - {"port", "path", "interval"} or not re.fullmatch(r"[0-9]+s", end.get("interval", "")):
                yield f"{name_of(one)}: an endpoint with {sorted(end)}"
        if one["spec"].get("jobLabel") != LABEL + "component":
            yield f"{name_of(one)}: the job is not the service's name, which the alerts go by"
        if set(one["spec"]) - {"jobLabel", "namespaceSelector", "selector", "podMetricsEndpoints"}:
            yield f"{name_of(one)}: {sorted(one['spec'])}"
    for one in cluster.of("PrometheusRule"):
        if set(one["spec"]) != {"groups"}:
            yield f"{name_of(one)}: {sorted(one['spec'])}"


RULES = [schemas, objects, security, rollout, selectors, ports, images, references, flows, monitoring]
