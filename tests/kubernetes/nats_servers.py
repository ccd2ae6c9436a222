"""Checks the configuration of the servers of NATS, and starts them with it."""

import base64
import os
import pathlib
import re
import subprocess
import sys

from rules import NATS, NATS_PORTS, server_names

SERVER = str(pathlib.Path(sys.executable).parent / "nats-server")
# What streams of three kinds leave for the state of groups, at least.
REST = 2 * 2**30
KINDS = 3


def server_of(cluster):
    return next((pod for pod in cluster.pods if pod.service == NATS), None)


def configuration(cluster, server):
    """The text of the server's configuration file."""
    return cluster.file(server, server.container()["command"][-1])


def size(text, name):
    """A size of the configuration, in bytes, by the server's own units."""
    found = re.search(rf"^\s*{name}:\s*([0-9]+)([KMGT]?)B$", text, re.MULTILINE)
    return int(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[found[2]] if found else 0


def seconds(text, name):
    return int(re.search(rf"^\s*{name}:\s*([0-9]+)s$", text, re.MULTILINE)[1])


def nats(cluster):
    """The rule: the server accepts its configuration, which agrees with pods, volumes and settings."""
    from binaries import quantity
    server = server_of(cluster)
    if server is None:
        return
    text = configuration(cluster, server)
    done = subprocess.run([SERVER, "-t", "-c", "/dev/stdin"], input=text, env=cluster.environment(server, server.container())[0], capture_output=True, text=True)
    if done.returncode != 0:
        yield f"{server.name}: its configuration is rejected: {done.stderr.strip()}"
    for number, name in enumerate(server_names(server)):
        if f"nats://{name}:{NATS_PORTS['cluster']}" not in text:
            yield f"{server.name}: no route to server {number}"
    store = size(text, "max_file_store")
    volume = quantity(server.workload["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"])
    kept = max(quantity(cluster.environment(pod, pod.container())[0].get("SEKIWAKE_BUS_MAX_BYTES") or "1GiB") for pod in cluster.pods)
    if store < KINDS * kept + REST:
        yield f"{server.name}: max_file_store does not hold {KINDS} streams of {kept:.0f} bytes"
    if store > 0.9 * volume:
        yield f"{server.name}: max_file_store exceeds its volume"
    stop = seconds(text, "lame_duck_duration") + seconds(text, "lame_duck_grace_period")
    if server.spec["terminationGracePeriodSeconds"] < stop + 20:
        yield f"{server.name}: is killed before lame duck mode ends"


def credentials():
    """A credentials file in the right form, of no account."""
    def key(prefix):
        raw = bytes(prefix) + bytes(range(32))
        crc = 0
        for byte in raw:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
        return base64.b32encode(raw + crc.to_bytes(2, "little")).decode().rstrip("=")
    part = lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    # 18: a seed; 20: of a user, spread over two bytes (nkeys).
    seed = key([(18 << 3) | (20 >> 5 << 0) | (20 << 3 >> 5), (20 << 3 & 31) << 3])
    token = ".".join((part('{"typ":"JWT","alg":"ed25519-nkey"}'), part('{"sub":"U","nats":{}}'), part("signature")))
    return (f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n")


class Servers:
    """The servers of an overlay on loopback, each with its pod's configuration but for addresses."""

    def __init__(self, folder, cluster, free_port):
        self.server = server_of(cluster)
        self.text = configuration(cluster, self.server)
        self.folder, self.processes = folder, []
        self.ports = [{name: free_port() for name in NATS_PORTS} for _ in server_names(self.server)]

    def url(self):
        return ",".join(f"nats://127.0.0.1:{ports['client']}" for ports in self.ports)

    def start(self):
        text = self.text
        for name, ports in zip(server_names(self.server), self.ports):
            text = text.replace(f"{name}:{NATS_PORTS['cluster']}", f"127.0.0.1:{ports['cluster']}")
        for number, ports in enumerate(self.ports):
            own = text.replace("store_dir: /data", f"store_dir: {self.folder}/data-{number}")
            for name, port in NATS_PORTS.items():
                own = own.replace(f"0.0.0.0:{port}", f"127.0.0.1:{ports[name]}")
            path = self.folder / f"nats-{number}.conf"
            path.write_text(own)
            log = open(self.folder / f"nats-{number}.log", "w")
            environment = {"POD_NAME": f"{self.server.workload['metadata']['name']}-{number}"}
            self.processes.append(subprocess.Popen([SERVER, "--config", str(path)], env=environment, stdout=log, stderr=log))

    def log(self, number):
        return (self.folder / f"nats-{number}.log").read_text()

    def probes(self, ask, wait_for):
        """All probes of all servers."""
        for number, ports in enumerate(self.ports):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                path = self.server.container()[probe]["httpGet"]["path"]
                if not wait_for(200, lambda: ask(ports["monitor"], path)):
                    yield f"NATS {number}: {probe} is {ask(ports['monitor'], path)}: {self.log(number)[-400:]}"

    def stop(self):
        """As the kubelet does: first the command of the pod, then SIGTERM."""
        command = self.server.container()["lifecycle"]["preStop"]["exec"]["command"]
        for number, process in enumerate(self.processes):
            done = subprocess.run([SERVER, *command[1:-1], command[-1].replace("=1", f"={process.pid}")], capture_output=True, text=True)
            if done.returncode != 0:
                yield f"NATS {number}: {' '.join(command)}: {done.stderr}"
            process.terminate()
        for number, process in enumerate(self.processes):
            try:
                if process.wait(60) != 0:
                    yield f"NATS {number}: exited with status {process.returncode}"
            except subprocess.TimeoutExpired:
                process.kill()
                yield f"NATS {number}: does not stop"
            if "lame duck mode" not in self.log(number):
                yield f"NATS {number}: no lame duck mode: {self.log(number)[-400:]}"
