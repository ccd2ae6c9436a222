#!/usr/bin/env python3
"""A subscriber in a dozen lines: prints source, payload, and where it was seen, of each record.

Needs pyzmq and msgpack (Debian: python3-zmq, python3-msgpack)."""
import ipaddress, sys, msgpack, zmq

socket = zmq.Context().socket(zmq.SUB)
socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5560")
socket.subscribe(sys.argv[2] if len(sys.argv) > 2 else "syslog/")
while True:
    topic, header, body = socket.recv_multipart()
    version, stream, epoch, first_sequence, count = msgpack.unpackb(header)[:5]
    for offset, record in enumerate(msgpack.unpackb(body)):
        captured_at_ns, source, source_port, destination, destination_port, format, flags, payload = record[:8]
        ip_id, interface = record[10:12] if len(record) >= 12 else (None, None)  # earlier captures do not send them
        print(stream, topic.decode(), first_sequence + offset, ipaddress.ip_address(source), source_port, payload, ip_id, interface, flush=True)
