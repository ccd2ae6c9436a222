"""Manifests that are broken in one place, and what the check is to say of them."""

from dataclasses import dataclass
from typing import Callable

ALL = []


@dataclass
class Mutation:
    name: str
    overlay: str
    change: Callable
    expected: str


def broken(expected, overlay="default"):
    """Adds a mutation: a function that changes a Cluster, and a part of the complaint."""
    def add(change):
        ALL.append(Mutation(change.__name__, overlay, change, expected))
        return change
    return add


def pod(cluster, service):
    return next(pod for pod in cluster.pods if pod.service == service)


def spec(service, path, value, expected, overlay="default", of="pod"):
    """Sets one field of a pod, of its container, or of its workload; None removes it."""
    def change(cluster):
        one = pod(cluster, service)
        at = {"pod": one.spec, "container": one.container(), "workload": one.workload["spec"], "template": one.template}[of]
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        if value is None:
            at.pop(last)
        else:
            at[last] = value
    ALL.append(Mutation(f"{service} {of} {path} = {value}", overlay, change, expected))


def container(service, path, value, expected, overlay="default"):
    spec(service, path, value, expected, overlay, "container")


def workload(service, path, value, expected, overlay="default"):
    spec(service, path, value, expected, overlay, "workload")


def config(service, name, value, expected, overlay="default"):
    """Sets one variable of a ConfigMap."""
    def change(cluster):
        one = pod(cluster, service)
        reference = one.container()["envFrom"][0]["configMapRef"]["name"]
        data = cluster.find("ConfigMap", one.namespace, reference)["data"]
        data.pop(name) if value is None else data.update({name: value})
    ALL.append(Mutation(f"{service} {name} = {value}", overlay, change, expected))


# 1. Security.
for field in ("hostNetwork", "hostPID", "hostIPC"):
    spec("storer", field, True, f"storer: {field}")
container("proxy", "securityContext.privileged", True, "proxy: privileged")
container("proxy", "securityContext.capabilities.add", ["NET_RAW"], "adds the capability NET_RAW")
container("proxy", "securityContext.capabilities.add", ["CHOWN"], "adds capabilities")
container("proxy", "securityContext.capabilities.drop", ["NET_RAW"], "does not drop ALL")
container("proxy", "securityContext.allowPrivilegeEscalation", True, "privilege escalation")
container("proxy", "securityContext.readOnlyRootFilesystem", False, "can be written to")
container("proxy", "securityContext.procMount", "Unmasked", "procMount")
container("proxy", "securityContext.seLinuxOptions", {"type": "spc_t"}, "SELinux type")
container("proxy", "securityContext.seLinuxOptions", {"role": "system_r"}, "SELinux user or role")
container("proxy", "securityContext.appArmorProfile", {"type": "Unconfined"}, "AppArmor profile")
container("proxy", "securityContext.windowsOptions", {"hostProcess": True}, "HostProcess")
container("proxy", "securityContext.runAsUser", 0, "user 0")
container("proxy", "securityContext.runAsNonRoot", False, "runAsNonRoot is false")
container("proxy", "securityContext.seccompProfile", {"type": "Unconfined"}, "seccomp profile")
spec("proxy", "securityContext.runAsNonRoot", None, "runAsNonRoot is not set")
spec("proxy", "securityContext.seccompProfile", None, "no seccomp profile")
spec("proxy", "securityContext.sysctls", [{"name": "net.core.somaxconn", "value": "1"}], "sysctl net.core.somaxconn")
spec("proxy", "volumes", [{"name": "host", "hostPath": {"path": "/"}}], "is of the host")
spec("proxy", "volumes", [{"name": "nfs", "nfs": {"path": "/", "server": "a"}}], "is of another type")
spec("proxy", "metadata.annotations", {"container.apparmor.security.beta.kubernetes.io/proxy": "unconfined"}, "AppArmor annotation", of="template")
container("proxy", "ports", [{"name": "metrics", "containerPort": 9600, "hostPort": 9600}], "of the host")
container("proxy", "livenessProbe.httpGet.host", "127.0.0.1", "a probe of another host")
container("proxy", "lifecycle", {"preStop": {"sleep": {"seconds": 5}}}, "lifecycle hook")
container("proxy", "command", ["sh"], "a command that is not the image's")
spec("capture", "nodeSelector", None, "of another system")
spec("proxy", "enableServiceLinks", None, "enableServiceLinks")
spec("proxy", "automountServiceAccountToken", True, "a token of the API")
spec("proxy", "serviceAccountName", "sekiwake", "a service account")
spec("proxy", "initContainers", [{"name": "init", "image": "a:1"}], "more than one container")
spec("capture", "hostNetwork", False, "outside of the host's network")
spec("capture", "dnsPolicy", "ClusterFirst", "dnsPolicy is not")
spec("capture", "priorityClassName", "system-node-critical", "none of ours")
spec("capture", "tolerations", None, "does not tolerate")
spec("capture", "securityContext.runAsUser", 65532, "runs as (65532")
container("capture", "securityContext.capabilities.add", ["NET_RAW", "NET_ADMIN"], "other capabilities than NET_RAW")
workload("capture", "updateStrategy.rollingUpdate.maxSurge", 1, "two captures on a node")
workload("capture", "updateStrategy.rollingUpdate.maxUnavailable", "100%", "not one node at a time")
workload("capture", "updateStrategy", {"type": "OnDelete"}, "not one node at a time")
container("syslog-forwarder", "securityContext.capabilities.add", ["NET_RAW", "SYS_ADMIN"], "other capabilities", "spoof")


@broken("enforce is baseline")
def a_namespace_is_less_than_restricted(cluster):
    cluster.find("Namespace", None, "sekiwake")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


@broken("no Role is needed")
def a_role(cluster):
    labels = dict(cluster.find("Namespace", None, "sekiwake")["metadata"]["labels"])
    cluster.objects.append({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "a", "namespace": "sekiwake", "labels": labels}})


@broken("a Secret's value")
def a_secret(cluster):
    cluster.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "namespace": "sekiwake"}, "stringData": {"a": "b"}})


@broken("has no business in sekiwake-capture")
def the_storer_is_in_the_privileged_namespace(cluster):
    pod(cluster, "storer").workload["metadata"]["namespace"] = "sekiwake-capture"


# 2. Rollout.
for service in ("syslog-forwarder", "anomaly-detector"):
    workload(service, "strategy.rollingUpdate", {"maxUnavailable": 1, "maxSurge": 0}, "rolling update is")
    workload(service, "minReadySeconds", None, "no minReadySeconds")
    workload(service, "replicas", 1, "one replica")
workload("syslog-forwarder", "strategy.rollingUpdate", {"maxUnavailable": 0, "maxSurge": 1}, "rolling update is", "spoof")
workload("proxy", "replicas", 2, "two proxies")
workload("proxy", "strategy", {"type": "RollingUpdate"}, "two proxies")
workload("storer", "podManagementPolicy", "OrderedReady", "do not wait for each other")
workload("storer", "persistentVolumeClaimRetentionPolicy.whenDeleted", "Delete", "may be deleted")
workload("storer", "serviceName", "storer", "there is no Service storer")
workload("syslog-forwarder", "replicas", 2, "although they are the autoscaler's", "autoscaling")
spec("storer", "terminationGracePeriodSeconds", 30, "is killed after 30 s")
config("storer", "SEKIWAKE_DRAIN", "60s", "is killed after 45 s")
spec("storer", "topologySpreadConstraints", None, "is not spread")


@broken("has a disruption budget")
def a_budget_for_the_proxy(cluster):
    cluster.find("PodDisruptionBudget", "sekiwake", "sekiwake-storer")["spec"]["selector"] = pod(cluster, "proxy").workload["spec"]["selector"]


@broken("its disruption budget is not one pod")
def a_budget_that_forbids_everything(cluster):
    cluster.find("PodDisruptionBudget", "sekiwake", "sekiwake-storer")["spec"]["maxUnavailable"] = 0


@broken("is spread by labels that it does not have")
def spread_by_others(cluster):
    pod(cluster, "storer").spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] = {"app": "a"}


# 3. Autoscaling.
@broken("scales no forwarder", "autoscaling")
def an_autoscaler_of_the_proxy(cluster):
    cluster.of("HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"]["name"] = "sekiwake-proxy"


@broken("its bounds", "autoscaling")
def an_autoscaler_down_to_one(cluster):
    cluster.of("HorizontalPodAutoscaler")[0]["spec"]["minReplicas"] = 1


@broken("not on CPU", "autoscaling")
def an_autoscaler_on_memory(cluster):
    cluster.of("HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["resource"]["name"] = "memory"


# 4. Network policies.
def policy(cluster, name, namespace="sekiwake"):
    return cluster.find("NetworkPolicy", namespace, name)


def without(name, expected, namespace="sekiwake", overlay="default"):
    ALL.append(Mutation(f"without the policy {name}", overlay, lambda cluster: cluster.objects.remove(policy(cluster, name, namespace)), expected))


without("deny", "nothing is denied by default in sekiwake")
without("deny", "nothing is denied by default in sekiwake-capture", "sekiwake-capture")
without("bus", "storer: policies keep it from the proxy's port 5560")
without("bus-from-nodes", "capture: policies keep it from the proxy's port 5559")
without("to-bus", "trap-forwarder: policies keep it from the proxy's port 5561")
without("to-bus-as-publisher", "anomaly-detector: policies keep it from the proxy's port 5559")
without("dns", "storer: policies keep it from names (UDP)")
without("metrics", "proxy: policies keep Prometheus from it")
without("siem-destinations", "no policy lets it send to 203.0.113.14", overlay="destinations")
without("xflow-destinations", "no policy lets it send to 198.51.100.7, UDP port 2055", overlay="destinations")
config("syslog-forwarder", "SEKIWAKE_SYSLOG_DESTINATIONS", "tls://siem.example.net:6514", "no policy lets it send to siem.example.net")
config("anomaly-detector", "SEKIWAKE_NOTIFY", "webhook+https://chat.example.net/hook", "no policy lets it send to chat.example.net, TCP port 443")
config("syslog-forwarder", "SEKIWAKE_BUS_CONTROL", "tcp://sekiwake-proxy.default.svc:5561", "which is no Service's port bus-control")
config("syslog-forwarder", "SEKIWAKE_BUS_SUBSCRIBE", "tcp://sekiwake-proxy.sekiwake.svc:5559", "which is no Service's port bus-sub")
config("capture", "SEKIWAKE_BUS_CONTROL", None, "ends of the bus are")


@broken("may connect to a web server outside")
def the_storer_may_go_anywhere(cluster):
    policy(cluster, "dns")["spec"]["egress"].append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"protocol": "TCP", "port": 443}]})


@broken("a pod of another namespace may connect to port 9600")
def everybody_may_scrape(cluster):
    policy(cluster, "metrics")["spec"]["ingress"][0]["from"] = [{"namespaceSelector": {}}]


@broken("a pod of another namespace may connect to port 5560")
def the_bus_is_open_to_other_namespaces(cluster):
    policy(cluster, "bus")["spec"]["ingress"][0]["from"][0]["namespaceSelector"] = {}


@broken("an address outside may connect to port 5559")
def the_bus_is_open_to_the_world(cluster):
    policy(cluster, "bus-from-nodes")["spec"]["ingress"][0]["from"].append({"ipBlock": {"cidr": "0.0.0.0/0"}})


@broken("nodes' addresses may connect to port 5560, and nobody needs it")
def nodes_may_subscribe(cluster):
    policy(cluster, "bus-from-nodes")["spec"]["ingress"][0]["ports"].append({"protocol": "TCP", "port": 5560})


@broken("a rule for everybody")
def a_rule_without_peers(cluster):
    policy(cluster, "metrics")["spec"]["ingress"][0].pop("from")


@broken("storer: may publish")
def subscribers_may_publish(cluster):
    for name in ("bus", "to-bus"):
        for direction in ("ingress", "egress"):
            for rule in policy(cluster, name)["spec"].get(direction) or []:
                rule["ports"].append({"protocol": "TCP", "port": 5559})


# 5. Probes.
container("storer", "livenessProbe.httpGet.path", "/readyz", "livenessProbe asks /readyz")
container("storer", "readinessProbe.httpGet.path", "/healthz", "readinessProbe asks /healthz")
container("capture", "readinessProbe.httpGet.path", "/readyz", "readinessProbe asks /readyz")
container("storer", "livenessProbe.httpGet.port", "admin", "at admin, expected /healthz at metrics")
container("storer", "livenessProbe.failureThreshold", 1, "given up too soon")
container("storer", "startupProbe", None, "startupProbe asks None")
container("storer", "readinessProbe.periodSeconds", 10, "asked too seldom")

# 6. Names, ports, labels, resources, images.
container("storer", "ports", [{"name": "http", "containerPort": 9600}], "its ports are")
container("storer", "ports", [{"name": "metrics", "containerPort": 9601}], "the admin port is 0.0.0.0:9600")
container("storer", "resources.requests", {"memory": "512Mi"}, "requests of resources are not set")
container("storer", "resources.limits.memory", None, "limits of resources are not set")
container("storer", "resources.limits.memory", "1Gi", "memory is promised")
container("storer", "image", "sekiwake-storer:latest", "image sekiwake-storer:latest")
container("storer", "image", "sekiwake-storer", "image sekiwake-storer")
container("storer", "image", "sekiwake-proxy:0.1.0", "image sekiwake-proxy")
container("storer", "image", "sekiwake-storer:0.2.0", "is not the version of its label")
container("storer", "imagePullPolicy", "Always", "pulls its image")
workload("storer", "selector.matchLabels", {"app.kubernetes.io/name": "sekiwake"}, "also takes the pods of")
spec("storer", "metadata.annotations", {"prometheus.io/scrape": "true", "prometheus.io/port": "9605", "prometheus.io/path": "/metrics"}, "its annotations name another port", of="template")
spec("storer", "metadata.annotations", None, "Prometheus finds it 0 times", of="template")


@broken("label app.kubernetes.io/part-of is None")
def a_label_is_missing(cluster):
    cluster.find("Service", "sekiwake", "sekiwake-proxy")["metadata"]["labels"].pop("app.kubernetes.io/part-of")


@broken("selects 0 workloads")
def a_service_selects_nothing(cluster):
    cluster.find("Service", "sekiwake", "sekiwake-proxy")["spec"]["selector"]["app.kubernetes.io/component"] = "prox"


@broken("port bus-pub is not the pods'")
def a_service_has_another_port(cluster):
    cluster.find("Service", "sekiwake", "sekiwake-proxy")["spec"]["ports"][0]["port"] = 5558


@broken("a proxy that ends is reached, and the next one too")
def the_proxy_is_found_before_it_is_ready(cluster):
    cluster.find("Service", "sekiwake", "sekiwake-proxy")["spec"]["publishNotReadyAddresses"] = True


@broken("the next version cannot be applied")
def a_claim_has_a_version(cluster):
    claim = cluster.find("StatefulSet", "sekiwake", "sekiwake-storer")["spec"]["volumeClaimTemplates"][0]
    claim["metadata"].setdefault("labels", {})["app.kubernetes.io/version"] = "0.1.0"


@broken("reachable from outside")
def the_bus_is_a_load_balancer(cluster):
    cluster.find("Service", "sekiwake", "sekiwake-proxy")["spec"]["type"] = "LoadBalancer"


@broken("Prometheus finds it 0 times", "prometheus-operator")
def a_monitor_misses_the_captures(cluster):
    cluster.of("PodMonitor")[0]["spec"]["namespaceSelector"]["matchNames"] = ["sekiwake"]


@broken("Prometheus finds it 0 times", "prometheus-operator")
def a_monitor_names_another_port(cluster):
    cluster.of("PodMonitor")[0]["spec"]["podMetricsEndpoints"][0]["port"] = "admin"


# 7. Schemas, settings, references.
@broken("Additional properties are not allowed")
def a_field_that_nobody_knows(cluster):
    pod(cluster, "proxy").spec["hostNetworks"] = False


@broken("is not of type")
def a_field_of_another_type(cluster):
    pod(cluster, "proxy").workload["spec"]["replicas"] = "1"


config("proxy", "SEKIWAKE_PROXY_PUBLISHER", "a", "no such setting")
config("proxy", "SEKIWAKE_STORE_KEEP", "90d", "SEKIWAKE_STORE_KEEP is not read by it")
config("storer", "SEKIWAKE_STORE_COMMIT", "soon", "SEKIWAKE_STORE_COMMIT")
config("storer", "SEKIWAKE_STORE_MAX_BYTES", "60GiB", "fills its volume")
config("storer", "SEKIWAKE_STORE_MAX_BYTES", None, "fills its volume")
config("storer", "SEKIWAKE_STORE_DIR", "/data", "does not store on its volume")
config("storer", "SEKIWAKE_ADMIN", "127.0.0.1:9600", "the admin port is 127.0.0.1:9600")
config("proxy", "SEKIWAKE_PROXY_SUBSCRIBE", "tcp://127.0.0.1:5560", "SEKIWAKE_PROXY_SUBSCRIBE is not its port")
config("capture", "SEKIWAKE_RETAIN", "1GiB", "three quarters of the limit")
config("syslog-forwarder", "SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.7:514?spoof=true", "may not keep the source address")
config("syslog-forwarder", "SEKIWAKE_SYSLOG_DESTINATIONS", "tcp://198.51.100.7:514?spool=1GiB", "its spool goes with the pod")
config("syslog-forwarder", "SEKIWAKE_SYSLOG_DESTINATIONS", "ftp://198.51.100.7", "its settings are refused")


def variable(service, name, change, expected, overlay="default"):
    def mutate(cluster):
        change(next(one for one in pod(cluster, service).container()["env"] if one["name"] == name))
    ALL.append(Mutation(f"{service} variable {name}", overlay, mutate, expected))


variable("capture", "SEKIWAKE_ADMIN", lambda one: one.update(value="0.0.0.0:9600"), "on every address of the host")
variable("capture", "SEKIWAKE_ADMIN", lambda one: one.update(value="$(NODE_IP):9600"), "its settings are refused")
variable("capture", "SEKIWAKE_PUBLISHER", lambda one: one["valueFrom"]["fieldRef"].update(fieldPath="metadata.name"), "not named by their node")
variable("storer", "SEKIWAKE_MEMBER", lambda one: one["valueFrom"]["fieldRef"].update(fieldPath="spec.nodeName"), "not named by their pods")
variable("storer", "SEKIWAKE_BUS_KEY_FILE", lambda one: one.update(value="/etc/sekiwake/keys/key"), "its settings are refused", "curve")
variable("storer", "SEKIWAKE_BUS_SERVER_KEY_FILE", lambda one: one.update(name="SEKIWAKE_BUS_ALLOWED_KEYS_FILE"), "its settings are refused", "curve")


@broken("there is no ConfigMap sekiwake-none")
def a_config_map_is_missing(cluster):
    pod(cluster, "proxy").container()["envFrom"][0]["configMapRef"]["name"] = "sekiwake-none"


@broken("is not optional")
def a_secret_is_required(cluster):
    pod(cluster, "anomaly-detector").container()["envFrom"][1]["secretRef"].pop("optional")


@broken("there is no volume keys", "curve")
def a_mount_without_a_volume(cluster):
    pod(cluster, "proxy").spec["volumes"] = []


@broken("its settings are refused", "curve")
def a_key_that_everybody_may_read(cluster):
    pod(cluster, "proxy").spec["volumes"][0]["secret"]["defaultMode"] = 0o444


@broken("its settings are refused", "curve")
def a_key_that_the_pod_may_not_read(cluster):
    pod(cluster, "proxy").spec["securityContext"].pop("fsGroup")


@broken("some have keys and others none", "curve")
def a_forwarder_without_keys(cluster):
    one = pod(cluster, "trap-forwarder")
    one.container()["env"] = [variable for variable in one.container()["env"] if "KEY" not in variable["name"]]


@broken("there is no PersistentVolumeClaim", "all components")
def a_claim_is_missing(cluster):
    cluster.objects.remove(cluster.find("PersistentVolumeClaim", "sekiwake", "sekiwake-spool"))


@broken("nobody uses it")
def a_config_map_that_nobody_uses(cluster):
    found = cluster.of("ConfigMap")[0]
    cluster.objects.append({**found, "metadata": {**found["metadata"], "name": "sekiwake-left"}})


@broken("there is no capture")
def no_capture(cluster):
    cluster.objects.remove(pod(cluster, "capture").workload)


@broken("monitoring.coreos.com/v2", "prometheus-operator")
def a_version_of_the_operator(cluster):
    cluster.of("PodMonitor")[0]["apiVersion"] = "monitoring.coreos.com/v2"


@broken("the job is not the service's name", "prometheus-operator")
def a_monitor_with_a_job_of_its_own(cluster):
    cluster.of("PodMonitor")[0]["spec"].pop("jobLabel")
