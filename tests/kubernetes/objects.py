"""Rendered objects, and their effect in a cluster: pods, environments, files, allowed connections.

NetworkPolicy v1 is evaluated here because no Python package does, and a missing rule shows only as a timeout
in a cluster.
"""

import copy
import ipaddress
import json
import os
import re
import subprocess

import yaml

WORKLOADS = ("DaemonSet", "Deployment", "StatefulSet")


def build(folder):
    """The objects of a kustomization. Raises RuntimeError with kubectl's message if it cannot be built."""
    done = subprocess.run([os.environ["KUBECTL"], "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return [one for one in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if one]


def name_of(one):
    meta = one["metadata"]
    return "/".join(filter(None, [one["kind"], meta.get("namespace"), meta["name"]]))


def labels_of(one):
    return one["metadata"].get("labels") or {}


def selects(selector, labels):
    """Whether a LabelSelector matches labels. An empty one matches everything, None nothing."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        key, values = rule["key"], rule.get("values") or []
        fits = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[rule["operator"]]
        if not fits:
            return False
    return True


class Pod:
    """The pod of a workload."""

    def __init__(self, workload):
        self.workload = workload
        self.template = workload["spec"]["template"]
        self.spec = self.template["spec"]
        self.namespace = workload["metadata"]["namespace"]
        self.labels = self.template["metadata"].get("labels") or {}
        self.annotations = self.template["metadata"].get("annotations") or {}
        self.name = name_of(workload)
        self.service = self.labels.get("app.kubernetes.io/component", "")
        self.on_host = bool(self.spec.get("hostNetwork"))
        self.containers = self.spec.get("containers") or []

    def container(self):
        return self.containers[0]

    def port(self, name):
        """The number of a named port, or None. A number is returned unchanged."""
        if isinstance(name, int):
            return name
        found = [port["containerPort"] for one in self.containers for port in one.get("ports") or [] if port.get("name") == name]
        return found[0] if found else None

    def security(self, container, field, default=None):
        """A field of the security context: the container's, or else the pod's."""
        for context in (container.get("securityContext") or {}, self.spec.get("securityContext") or {}):
            if context.get(field) is not None:
                return context[field]
        return default


class Cluster:
    """The objects of an overlay."""

    # Values that the kubelet would fill in.
    FIELDS = {"status.hostIP": "198.18.0.11", "spec.nodeName": "node-1.example.net"}

    def __init__(self, objects):
        self.objects = copy.deepcopy(objects)
        self.pods = [Pod(one) for one in self.of(*WORKLOADS)]
        # Whether services use NATS JetStream as the bus, instead of the proxy.
        self.on_jetstream = any("SEKIWAKE_BUS" in (one.get("data") or {}) for one in self.of("ConfigMap"))

    def of(self, *kinds):
        return [one for one in self.objects if one["kind"] in kinds]

    def find(self, kind, namespace, name):
        for one in self.of(kind):
            if one["metadata"]["name"] == name and one["metadata"].get("namespace") == namespace:
                return one
        return None

    def namespace_labels(self, name):
        found = self.find("Namespace", None, name)
        return {**(labels_of(found) if found else {}), "kubernetes.io/metadata.name": name}

    def environment(self, pod, container):
        """The variables of a container, and complaints about their sources."""
        variables, wrong = {}, []
        for source in container.get("envFrom") or []:
            reference = source.get("configMapRef") or source.get("secretRef")
            if "secretRef" in source:
                if not reference.get("optional"):
                    wrong.append(f"{pod.name}: Secret {reference['name']} is not optional")
                continue
            config = self.find("ConfigMap", pod.namespace, reference["name"])
            if config is None:
                wrong.append(f"{pod.name}: no ConfigMap {reference['name']}")
                continue
            variables.update(config.get("data") or {})
        fields = {**self.FIELDS, "metadata.name": f"{pod.workload['metadata']['name']}-7d4b9c6f5d-x2x4z", "metadata.namespace": pod.namespace}
        for variable in container.get("env") or []:
            if "valueFrom" in variable:
                path = (variable["valueFrom"].get("fieldRef") or {}).get("fieldPath")
                if path not in fields:
                    wrong.append(f"{pod.name}: {variable['name']} comes from an unknown field")
                    continue
                variables[variable["name"]] = fields[path]
            else:
                # Kubernetes expands earlier variables only.
                expand = lambda found: variables.get(found[1], found[0])
                variables[variable["name"]] = re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", expand, variable.get("value") or "")
        return variables, wrong

    def mounts(self, pod, container):
        """Pairs of a mount and its volume, or None where the volume is missing."""
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
        for template in pod.workload["spec"].get("volumeClaimTemplates") or []:
            volumes[template["metadata"]["name"]] = {"name": template["metadata"]["name"], "claimTemplate": template}
        mounts = container.get("volumeMounts") or []
        return [(mount, volumes.get(mount["name"])) for mount in mounts]

    def file(self, pod, path):
        """The text of a mounted ConfigMap's file, or an empty one."""
        for mount, volume in self.mounts(pod, pod.container()):
            folder, _, name = path.rpartition("/")
            if volume and "configMap" in volume and mount["mountPath"] == folder:
                config = self.find("ConfigMap", pod.namespace, volume["configMap"]["name"]) or {}
                return (config.get("data") or {}).get(name, "")
        return ""

    def sends(self, pod, protocol, host, port):
        """Whether policies let a pod send to a destination. The address of a name is unknown here, so its port decides."""
        if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:.]+:[0-9a-fA-F:.]*", host):
            return self.allows(pod, Outside(host), protocol, port)
        return any(self._is_port(one, None, protocol, port) for policy in self._policies(pod, "Egress")
                   for rule in policy["spec"].get("egress") or [] for one in rule.get("ports") or [])


    def allows(self, source, target, protocol, port):
        """Whether the policies of both ends allow a connection (NetworkPolicy v1)."""
        if port is None:
            return False
        out = self._passes("egress", source, target, protocol, port)
        return out and self._passes("ingress", target, source, protocol, port)

    def _passes(self, direction, of, peer, protocol, port):
        if not isinstance(of, (Pod, Stranger)) or of.on_host:
            return True
        kind, key = ("Egress", "to") if direction == "egress" else ("Ingress", "from")
        policies = self._policies(of, kind)
        if not policies:
            return True
        target = of if direction == "ingress" else peer
        for policy in policies:
            for rule in policy["spec"].get(direction) or []:
                peers = rule.get(key)
                if peers and not any(self._is_peer(one, policy["metadata"]["namespace"], peer) for one in peers):
                    continue
                ports = rule.get("ports")
                if not ports or any(self._is_port(one, target, protocol, port) for one in ports):
                    return True
        return False

    def _policies(self, of, kind):
        return [one for one in self.of("NetworkPolicy") if one["metadata"]["namespace"] == of.namespace
                and selects(one["spec"]["podSelector"], of.labels) and kind in one["spec"]["policyTypes"]]

    def _is_peer(self, rule, namespace, peer):
        if "ipBlock" in rule:
            address = getattr(peer, "address", None)
            if address is None:
                return False
            address, block = ipaddress.ip_address(address), rule["ipBlock"]
            inside = lambda cidr: address in ipaddress.ip_network(cidr)
            return inside(block["cidr"]) and not any(inside(cidr) for cidr in block.get("except") or [])
        if not isinstance(peer, (Pod, Stranger)) or peer.on_host:
            return False
        if "namespaceSelector" in rule:
            if not selects(rule["namespaceSelector"], self.namespace_labels(peer.namespace)):
                return False
        elif peer.namespace != namespace:
            return False
        return selects(rule["podSelector"], peer.labels) if "podSelector" in rule else True

    @staticmethod
    def _is_port(rule, target, protocol, port):
        if rule.get("protocol", "TCP") != protocol:
            return False
        wanted = rule.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, str):
            wanted = target.port(wanted) if isinstance(target, Pod) else None
        return wanted is not None and wanted <= port <= rule.get("endPort", wanted)


class Stranger:
    """A pod of another project."""

    def __init__(self, namespace, labels=None, address=None):
        self.namespace, self.labels, self.on_host = namespace, labels or {}, False
        if address:
            self.address = address


class Outside:
    """An address outside of the cluster, or a node's."""

    def __init__(self, address):
        self.address = address


def key(one):
    return json.dumps(one, sort_keys=True)
