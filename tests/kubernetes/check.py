"""Builds the overlays, checks what comes out, and checks the check. Started by tests/kubernetes/check."""

import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import yaml

import binaries as of_binaries
import mutations
import objects
import rules

MANIFESTS = pathlib.Path("k8s")
ALERTS = pathlib.Path("deploy/prometheus/rules")
RULES_FILE = MANIFESTS / "components/prometheus-operator/rules.yaml"
# Components that have no overlay of their own, or that people will want together.
COMBINATIONS = {
    "all components": ("default", ["prometheus-operator", "autoscaling", "curve", "mirror-port", "spool"]),
    "spoof with keys": ("spoof", ["curve", "prometheus-operator"]),
    "destinations with keys": ("destinations", ["curve", "spool"]),
}


def combined(base, components):
    """The objects of an overlay with components, as one of a user's would list them."""
    with tempfile.TemporaryDirectory(dir="target/kubernetes") as folder:
        above = pathlib.Path("../../../") / MANIFESTS
        listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [str(above / "overlays" / base)],
                  "components": [str(above / "components" / one) for one in components]}
        pathlib.Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(listed))
        return objects.build(folder)


def alerts():
    """The groups of deploy/prometheus/rules, or None where there are none yet."""
    files = sorted(ALERTS.glob("*.yml"))
    if not files:
        return None
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def write_rules():
    groups = alerts()
    if groups is None:
        raise SystemExit(f"check: there is nothing in {ALERTS}")
    rule = yaml.safe_load(RULES_FILE.read_text()) | {"spec": {"groups": groups}}
    yaml.SafeDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))
    RULES_FILE.write_text(f"# Generated from {ALERTS} by tests/kubernetes/check --write-rules.\n"
                          + yaml.safe_dump(rule, sort_keys=False, allow_unicode=True, width=140))


def of_the_source():
    """What only the source shows."""
    for file in MANIFESTS.rglob("kustomization.yaml"):
        if file.parent.name != "images" and "images" in yaml.safe_load(file.read_text()):
            yield f"{file}: images are named in components/images alone"
    for file in MANIFESTS.rglob("*.yaml"):
        for one in yaml.safe_load_all(file.read_text()):
            text = yaml.safe_dump(one)
            if re.search(r"\bimage: \S+[:/]", text):
                yield f"{file}: an image with a registry or a tag"
    shell = ["tests/kubernetes/check", "tests/kubernetes/end-to-end"]
    linted = subprocess.run(["shellcheck", *shell], capture_output=True, text=True)
    if linted.returncode != 0:
        yield f"shellcheck: {linted.stdout}{linted.stderr}"
    # What the end-to-end script would apply.
    applied = subprocess.run([shell[1], "--dry-run"], capture_output=True, text=True, env={**os.environ, "KUBECTL": os.path.abspath(os.environ["KUBECTL"])})
    if applied.returncode != 0:
        yield f"end-to-end --dry-run: {applied.stderr}"
    else:
        cluster = objects.Cluster([one for one in yaml.safe_load_all(applied.stdout) if one])
        yield from (f"end-to-end: {text}" for text in rules.schemas(cluster))
        yield from (f"end-to-end: {text}" for text in rules.security_of_pods(cluster))
    groups = alerts()
    have = yaml.safe_load(RULES_FILE.read_text())["spec"]["groups"]
    if groups is None:
        print(f"  {ALERTS} is not there: the PrometheusRule is not compared")
    elif groups != have:
        yield f"{RULES_FILE} is not {ALERTS}: tests/kubernetes/check --write-rules"
    # Debian's promtool knows no discovery in Kubernetes: it checks everything else.
    config = yaml.safe_load((MANIFESTS / "prometheus.yml").read_text())
    if config["scrape_configs"][0].pop("kubernetes_sd_configs") != [{"role": "pod", "namespaces": {"names": ["sekiwake", "sekiwake-capture"]}}]:
        yield "prometheus.yml: not the pods of both namespaces"
    job = {"source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "target_label": "job"}
    if job not in config["scrape_configs"][0]["relabel_configs"]:
        yield "prometheus.yml: the job is not the service's name, which the alerts go by"
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(config, file)
        promtool = subprocess.run(["promtool", "check", "config", file.name], capture_output=True, text=True)
    if promtool.returncode != 0:
        yield f"prometheus.yml: {promtool.stdout}{promtool.stderr}"


def complaints(cluster, all_rules):
    found = []
    for rule in all_rules:
        try:
            found += [f"[{rule.__name__}] {text}" for text in rule(cluster)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            # So far from what is expected that the rule cannot be applied.
            found.append(f"[{rule.__name__}] cannot be judged: {error!r}")
    return found


def main():
    if sys.argv[1:] == ["--write-rules"]:
        return write_rules()
    begun, failures = time.monotonic(), []
    with of_binaries.Binaries() as binaries:
        settings = of_binaries.settings(binaries)
        settings.__name__ = "settings"
        all_rules = [*rules.RULES, settings, of_binaries.keyed_together]
        if not binaries.is_root:
            print("  not root: settings are read as this user, not as the pods'")
        rendered = {}
        named = sys.argv[1:]
        overlays = {name: (lambda name=name: objects.build(name)) for name in named} or {
            **{folder.name: (lambda folder=folder: objects.build(folder)) for folder in sorted((MANIFESTS / "overlays").iterdir())},
            **{name: (lambda of=of: combined(*of)) for name, of in COMBINATIONS.items()},
        }
        for name, build in overlays.items():
            try:
                rendered[name] = build()
            except RuntimeError as error:
                failures.append(f"{name}: cannot be built: {error}")
                continue
            found = complaints(objects.Cluster(rendered[name]), all_rules)
            failures += [f"{name}: {text}" for text in found]
            print(f"  {name}: {len(rendered[name])} objects, {len(found)} complaints")
        if not named:
            failures += of_the_source()
            if not failures:
                failures += probes(binaries, rendered)
            if not failures:
                failures += bites(rendered, all_rules)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"manifests: {'FAILED' if failures else 'well'}, Kubernetes {', '.join(rules.VERSIONS)}, {time.monotonic() - begun:.0f} s")
    return 1 if failures else 0


def probes(binaries, rendered):
    """Processes in the environments of their pods."""
    broken = {
        "syslog-forwarder": {"SEKIWAKE_SYSLOG_DESTINATIONS": "tcp://127.0.0.1:9 udp://no-such-host.invalid:514"},
        "xflow-forwarder": {"SEKIWAKE_XFLOW_DESTINATIONS": "udp://127.0.0.1:9"},
        "trap-forwarder": {"SEKIWAKE_TRAP_DESTINATIONS": "udp://127.0.0.1:9"},
        "anomaly-detector": {"SEKIWAKE_NOTIFY": "webhook+http://127.0.0.1:9/"},
    }
    for name, of, more in (("default", "default", None), ("default, broken destinations", "default", broken), ("curve", "curve", None)):
        found = list(of_binaries.lives(binaries, objects.Cluster(rendered[of]), more))
        print(f"  processes of {name}: {len(found)} complaints")
        yield from (f"processes of {name}: {text}" for text in found)


def bites(rendered, all_rules):
    """Breaks one thing after the other and expects a complaint that speaks of it."""
    found = 0
    for mutation in mutations.ALL:
        cluster = objects.Cluster(copy.deepcopy(rendered[mutation.overlay]))
        mutation.change(cluster)
        broken = objects.Cluster(cluster.objects)
        if list(map(objects.key, broken.objects)) == list(map(objects.key, rendered[mutation.overlay])):
            yield f"{mutation.name}: changes nothing"
            continue
        said = complaints(broken, all_rules)
        if not any(mutation.expected in text for text in said):
            yield f"{mutation.name}: is not found; said {said[:3]}"
        else:
            found += 1
    print(f"  broken on purpose: {found} of {len(mutations.ALL)} found")


if __name__ == "__main__":
    sys.exit(main())
