"""Builds the overlays and checks the rendered objects. Started by tests/kubernetes/check."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import yaml

import binaries as service_binaries
import nats_servers
import objects
import rules

MANIFESTS = pathlib.Path("k8s")
ALERTS = pathlib.Path("deploy/prometheus/rules")
RULES_FILE = MANIFESTS / "components/prometheus-operator/rules.yaml"
# Components without an overlay of their own, and combinations that users are likely to want: resources, components.
COMBINATIONS = {
    "all components": (["overlays/default"], ["prometheus-operator", "autoscaling", "curve", "mirror-port", "spool"]),
    "spoof with keys": (["overlays/spoof"], ["curve", "prometheus-operator"]),
    "destinations with keys": (["overlays/destinations"], ["curve", "spool"]),
    "jetstream with all components": (["overlays/jetstream"], ["nats-credentials", "prometheus-operator", "autoscaling", "mirror-port", "spool"]),
    "spoof on jetstream": (["overlays/spoof", "base/nats"], ["jetstream", "nats-credentials", "prometheus-operator"]),
    "destinations on jetstream": (["overlays/destinations", "base/nats"], ["jetstream", "spool"]),
}
BROKEN_DESTINATIONS = {
    "syslog-forwarder": {"SEKIWAKE_SYSLOG_DESTINATIONS": "tcp://127.0.0.1:9 udp://no-such-host.invalid:514"},
    "xflow-forwarder": {"SEKIWAKE_XFLOW_DESTINATIONS": "udp://127.0.0.1:9"},
    "trap-forwarder": {"SEKIWAKE_TRAP_DESTINATIONS": "udp://127.0.0.1:9"},
    "anomaly-detector": {"SEKIWAKE_NOTIFY": "webhook+http://127.0.0.1:9/"},
}


def combined(resources, components):
    """The objects of overlays with components, listed as a user would list them."""
    with tempfile.TemporaryDirectory(dir="target/kubernetes") as folder:
        above = pathlib.Path("../../../") / MANIFESTS
        listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [str(above / one) for one in resources],
                  "components": [str(above / "components" / one) for one in components]}
        pathlib.Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(listed))
        return objects.build(folder)


def alerts():
    return [group for file in sorted(ALERTS.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]


def write_rules():
    rule = yaml.safe_load(RULES_FILE.read_text()) | {"spec": {"groups": alerts()}}
    yaml.SafeDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))
    RULES_FILE.write_text(f"# Generated from {ALERTS} by tests/kubernetes/check --write-rules.\n"
                          + yaml.safe_dump(rule, sort_keys=False, allow_unicode=True, width=140))


def run(*command, **options):
    """Runs a command; yields a complaint if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        yield f"{' '.join(command)}: {done.stdout}{done.stderr}"


def sources():
    """Complaints about files that no overlay shows: scripts, the replay, the PrometheusRule, prometheus.yml."""
    yield from run("shellcheck", "tests/kubernetes/check", "tests/kubernetes/end-to-end")
    yield from run("tests/kubernetes/end-to-end", "--dry-run", env={**os.environ, "KUBECTL": os.path.abspath(os.environ["KUBECTL"])})
    for file in MANIFESTS.rglob("kustomization.yaml"):
        if file.parent.name != "images" and "images" in yaml.safe_load(file.read_text()):
            yield f"{file}: images belong in components/images alone"
    yield from (f"k8s/replay: {text}" for text in rules.schemas(objects.Cluster(objects.build(MANIFESTS / "replay"))))
    if alerts() != yaml.safe_load(RULES_FILE.read_text())["spec"]["groups"]:
        yield f"{RULES_FILE} differs from {ALERTS}: run tests/kubernetes/check --write-rules"
    config = yaml.safe_load((MANIFESTS / "prometheus.yml").read_text())
    scrape = config["scrape_configs"][0]
    # Debian's promtool has no Kubernetes service discovery, so that part is compared here.
    if scrape.pop("kubernetes_sd_configs") != [{"role": "pod", "namespaces": {"names": ["sekiwake", "sekiwake-capture"]}}]:
        yield "prometheus.yml: not the pods of both namespaces"
    if {"source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "target_label": "job"} not in scrape["relabel_configs"]:
        yield "prometheus.yml: the job is not the service's name, which the alerts rely on"
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(config, file)
        yield from run("promtool", "check", "config", file.name)


def complaints(cluster, all_rules):
    for rule in all_rules:
        try:
            yield from (f"[{rule.__name__}] {text}" for text in rule(cluster))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
            yield f"[{rule.__name__}] cannot be applied: {error!r}"


def main():
    if sys.argv[1:] == ["--write-rules"]:
        return write_rules()
    started, failures, rendered, named = time.monotonic(), [], {}, sys.argv[1:]
    overlays = {name: lambda name=name: objects.build(name) for name in named} or {
        **{folder.name: lambda folder=folder: objects.build(folder) for folder in sorted((MANIFESTS / "overlays").iterdir())},
        **{name: lambda parts=parts: combined(*parts) for name, parts in COMBINATIONS.items()},
    }
    with service_binaries.Binaries() as binaries:
        if not binaries.is_root:
            print("  not root: settings are read as this user, not as the pods' users")
        for name, build in overlays.items():
            try:
                rendered[name] = objects.Cluster(build())
            except RuntimeError as error:
                failures.append(f"{name}: cannot be built: {error}")
                continue
            found = list(complaints(rendered[name], [*rules.RULES, nats_servers.nats, binaries.settings, service_binaries.keyed_together]))
            failures += [f"{name}: {text}" for text in found]
            print(f"  {name}: {len(rendered[name].objects)} objects, {len(found)} complaints")
        if not named:
            failures += sources()
        if not named and not failures:
            for name, overlay, environment in (("default", "default", {}), ("default, broken destinations", "default", BROKEN_DESTINATIONS), ("curve", "curve", {}),
                                                ("jetstream", "jetstream", {})):
                failures += [f"processes of {name}: {text}" for text in service_binaries.probes(binaries, rendered[overlay], environment)]
                print(f"  processes of {name}: started, probed, stopped")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"manifests: {'FAILED' if failures else 'passed'}, Kubernetes {', '.join(rules.VERSIONS)}, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
