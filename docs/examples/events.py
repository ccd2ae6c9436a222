#!/usr/bin/env python3
"""Prints events as they are published. Needs pyzmq (Debian: python3-zmq)."""
import json, sys, zmq

socket = zmq.Context().socket(zmq.SUB)
socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5560")
socket.subscribe("anomaly/")
while True:
    topic, body = socket.recv_multipart()
    publisher, event = topic.decode().split("/")[1], json.loads(body)
    print(publisher, event.get("status"), event.get("summary"), flush=True)
