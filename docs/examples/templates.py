#!/usr/bin/env python3
"""Prints exporter, port, domain and number of the flow templates that the bus keeps.

Needs pyzmq and msgpack (Debian: python3-zmq, python3-msgpack)."""
import ipaddress, os, sys, msgpack, zmq

XFLOW, MORE, NO_GROUP, WAIT = 1, 0, 2, 3

socket = zmq.Context().socket(zmq.DEALER)
socket.identity = b"\1" + os.urandom(15)
socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5561")
request, outcome, cursor = 0, MORE, [0, "", 0, 0]
while outcome in (MORE, WAIT):
    request += 1
    coordinator, group, shard, after = cursor
    socket.send(msgpack.packb([1, 14, XFLOW, request, coordinator, group, shard, after]))
    if not socket.poll(5000):
        sys.exit("no answer: no connection, or a proxy that does not know the request")
    coordinator, outcome, group, shard, after, entries = msgpack.unpackb(socket.recv())[4:10]
    if outcome == NO_GROUP:
        sys.exit("no group of flows is running")
    if outcome == WAIT:
        socket.poll(300)
        continue
    cursor = [coordinator, group, shard, after]
    for _, key, value, at_ns in entries:
        if len(key) == 25 and value:  # other entries are for older forwarders, or withdrawn
            domain, template, port = (int.from_bytes(key[a:b], "big") for a, b in ((17, 21), (21, 23), (23, 25)))
            exporter = ipaddress.IPv6Address(key[1:17])
            print(exporter.ipv4_mapped or exporter, port, domain, template, flush=True)
