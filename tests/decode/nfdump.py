"""Flows: rows against the records that nfcapd and sfcapd store, as nfdump shows them."""
import collections
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

COLLECTORS = {"netflow5": "nfcapd", "netflow9": "nfcapd", "ipfix": "nfcapd", "sflow5": "sfcapd"}
FIRST = {
    "src": ["sourceIPv4Address", "sourceIPv6Address"], "dst": ["destinationIPv4Address", "destinationIPv6Address"],
    "proto": ["protocolIdentifier"], "src_port": ["sourceTransportPort", "udpSourcePort", "tcpSourcePort"],
    "dst_port": ["destinationTransportPort", "udpDestinationPort", "tcpDestinationPort", "icmpTypeCodeIPv4", "icmpTypeCodeIPv6"],
    "in_packets": ["packetDeltaCount", "packetTotalCount", "initiatorPackets"],
    "in_bytes": ["octetDeltaCount", "octetTotalCount", "initiatorOctets"],
}
MORE = {
    "input_snmp": ["ingressInterface"], "output_snmp": ["egressInterface"], "src_tos": ["ipClassOfService"],
    "src_as": ["bgpSourceAsNumber"], "dst_as": ["bgpDestinationAsNumber"], "src_vlan": ["vlanId"], "dst_vlan": ["postVlanId"],
    "out_packets": ["postPacketDeltaCount", "responderPackets"], "out_bytes": ["postOctetDeltaCount", "responderOctets"],
    "src_mask": ["sourceIPv4PrefixLength", "sourceIPv6PrefixLength"],
    "dst_mask": ["destinationIPv4PrefixLength", "destinationIPv6PrefixLength"],
    "ip4_next_hop": ["ipNextHopIPv4Address"], "bgp4_next_hop": ["bgpNextHopIPv4Address"],
    "first": ["flowStartMilliseconds", "flowStartSeconds"], "last": ["flowEndMilliseconds", "flowEndSeconds"],
}


def stored(collector, datagrams):
    """Records that a collector stores of (source address, payload), in this order."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "TZ": "UTC"}
        command = [collector, "-p", str(port), "-b", "127.0.0.1", "-l", folder, "-t", "3600", "-B", "8000000"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            wait(lambda: queued(port) is not None, f"{collector} does not start")
            sockets = {}
            for source, payload in datagrams:
                if source not in sockets:
                    sockets[source] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    number = len(sockets)
                    sockets[source].bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
                sockets[source].sendto(payload, ("127.0.0.1", port))
                if queued(port) > 1_000_000:
                    wait(lambda: queued(port) == 0, f"{collector} does not read")
            wait(lambda: process.poll() is not None or queued(port) == 0, f"{collector} does not read")
            for each in sockets.values():
                each.close()
        finally:
            status = stop(process)
        if status != 0:
            raise RuntimeError(f"{collector} ended with status {status}")
        output = subprocess.run(["nfdump", "-R", folder, "-o", "json"], capture_output=True, text=True, errors="replace", env=environment).stdout
    # Of no records nfdump prints no JSON.
    return json.loads(output[output.index("["):]) if "{" in output else []


def stop(process):
    """Exit status. nfcapd misses a signal that arrives just before it waits for a datagram."""
    for _ in range(50):
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    return process.wait()


def queued(port):
    """Bytes that wait at a UDP port. None if nobody listens."""
    for line in open("/proc/net/udp").read().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}"):
            return int(fields[4].split(":")[1], 16)
    return None


def wait(condition, failure):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise RuntimeError(failure)


def first_of(row, names):
    return next((row[name] for name in names if name in row), None)


def key_of_row(row):
    key = [first_of(row, names) for names in FIRST.values()]
    # nfcapd multiplies by the sampling interval in the header of NetFlow v5.
    if row["format"] == "netflow5" and row["samplingInterval"] > 1:
        key[5:] = [count * row["samplingInterval"] for count in key[5:]]
    return normal(key)


def key_of_record(record):
    source = record.get("src4_addr") or record.get("src6_addr")
    return normal([source, record.get("dst4_addr") or record.get("dst6_addr")] + [record.get(name) for name in list(FIRST)[2:]])


def normal(key):
    source, destination, protocol, source_port, destination_port, packets, octets = key
    if protocol in (1, 58):
        # nfdump shows the type and code of ICMP in place of the ports.
        source_port = destination_port = 0
    return (source, destination or "0.0.0.0", protocol or 0, source_port or 0, destination_port or 0, packets or 0, octets or 0)


def compare(report, where, collector, datagrams, rows):
    records = stored(collector, datagrams)
    flows = [row for row in rows if row["type"] == "flow" and key_of_row(row)[0]]
    records = [record for record in records if record.get("src4_addr") or record.get("src6_addr")]
    parts = slice(0, 5) if collector == "sfcapd" else slice(0, 7)
    ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
    for row in flows:
        ours[key_of_row(row)[parts]].append(row)
    for record in records:
        theirs[key_of_record(record)[parts]].append(record)
    for key in sorted(set(ours) | set(theirs), key=str):
        here, there = ours[key], theirs[key]
        report.stored += min(len(here), len(there))
        if len(here) > len(there):
            report.differ(f"flow that {collector} does not store ({flows[0]['format']})", f"{where}: {len(here) - len(there)} × {key}")
        elif len(here) < len(there):
            report.differ(f"flow that only {collector} has", f"{where}: {len(there) - len(here)} × {key}")
        elif collector == "nfcapd":
            for row, record in zip(here, there):
                compare_more(report, where, row, record)


def compare_more(report, where, row, record):
    for name, names in MORE.items():
        ours, theirs = first_of(row, names), record.get(name)
        if ours is None or theirs is None:
            continue
        if name in ("first", "last"):
            if not isinstance(ours, str):
                continue
            ours, theirs = ours[:23], theirs[:23]
            ours = re.sub(r"Z$", ".000", ours)
        report.check(f"nfdump {name}", where, str(ours), str(theirs))
