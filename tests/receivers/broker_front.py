#!/usr/bin/env python3
"""A fake front of a real Kafka broker, for what the broker cannot do: SASL, TLS, and errors on
request. Everything else is passed on, and all that does not come from Sekiwake.

  broker_front.py PORT TO_PORT [--user NAME PASSWORD] [--tls CERTIFICATE KEY] [--rules FILE]

FILE has JSON, read again for each produce request: {"error": 10, "containing": "text", "times": 2}
answers batches that contain the text with the error, the first so many times, without passing them
on. {"lose": 1}: the first so many answers of the broker are lost with the connection.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import socket
import ssl
import struct
import threading

PRODUCE, HANDSHAKE, AUTHENTICATE = 0, 17, 36
HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("to", type=int)
parser.add_argument("--user", nargs=2)
parser.add_argument("--tls", nargs=2)
parser.add_argument("--rules")
arguments = parser.parse_args()
used = {"error": 0, "lose": 0}
lock = threading.Lock()


def exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def frame(connection):
    return exactly(connection, struct.unpack(">i", exactly(connection, 4))[0])


def send(connection, data):
    connection.sendall(struct.pack(">i", len(data)) + data)


def string(data, at):
    length = struct.unpack_from(">h", data, at)[0]
    return (data[at + 2 : at + 2 + max(length, 0)], at + 2 + max(length, 0))


def times(name, limit):
    with lock:
        used[name] += 1
        return used[name] <= limit


def scram_first(mechanism, message):
    name = message.decode().split(",", 2)[2].split(",")[0][2:].replace("=2C", ",").replace("=3D", "=")
    nonce = message.decode().rsplit(",r=", 1)[1] + base64.b64encode(os.urandom(9)).decode()
    salt = os.urandom(16)
    first = f"r={nonce},s={base64.b64encode(salt).decode()},i=4096"
    return {
        "hash": HASHES[mechanism],
        "name": name,
        "salt": salt,
        "bare": message.decode()[3:],
        "first": first,
        "nonce": nonce,
    }


def scram_last(state, message):
    """The server's last message, or None if the proof is wrong."""
    without_proof, proof = message.decode().rsplit(",p=", 1)
    signed = f"{state['bare']},{state['first']},{without_proof}".encode()
    sign = lambda key, text: hmac.new(key, text, state["hash"]).digest()
    salted = hashlib.pbkdf2_hmac(state["hash"], arguments.user[1].encode(), state["salt"], 4096)
    client_key = sign(salted, b"Client Key")
    signature = sign(hashlib.new(state["hash"], client_key).digest(), signed)
    expected = bytes(one ^ other for one, other in zip(client_key, signature))
    is_right = expected == base64.b64decode(proof) and state["name"] == arguments.user[0]
    if not is_right or f"r={state['nonce']}" not in without_proof:
        return None
    return b"v=" + base64.b64encode(sign(sign(salted, b"Server Key"), signed))


def authenticate(connection, request):
    """Answers until the user is authenticated. Returns whether it is."""
    mechanism = state = None
    while True:
        request = request or frame(connection)
        key, _, number = struct.unpack_from(">hhi", request)
        _, at = string(request, 8)
        head = struct.pack(">i", number)
        if key == HANDSHAKE:
            mechanism = string(request, at)[0].decode()
            known = ["PLAIN", *HASHES]
            error = 0 if mechanism in known else 33
            names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in known)
            send(connection, head + struct.pack(">hi", error, len(known)) + names)
            request = None
            continue
        if key != AUTHENTICATE:
            return False
        message = request[at + 4 :]
        request = None
        if mechanism == "PLAIN":
            answer = b"" if message == b"\0" + b"\0".join(text.encode() for text in arguments.user) else None
        elif state is None:
            state = scram_first(mechanism, message)
            send(connection, head + struct.pack(">hhi", 0, -1, len(state["first"])) + state["first"].encode())
            continue
        else:
            answer = scram_last(state, message)
        if answer is None:
            why = b"Authentication failed: invalid credentials"
            send(connection, head + struct.pack(">hh", 58, len(why)) + why + struct.pack(">i", 0))
            return False
        send(connection, head + struct.pack(">hhi", 0, -1, len(answer)) + answer)
        return True


def produce(request, rules, broker):
    """Passes on what no rule is about, and returns the answer about everything."""
    _, at = string(request, 8)
    _, at = string(request, at)
    at += 2 + 4 + 4
    topic, at = string(request, at)
    before_count = at
    (count,) = struct.unpack_from(">i", request, at)
    at += 4
    passed, refused = [], []
    for _ in range(count):
        number, length = struct.unpack_from(">ii", request, at)
        whole = request[at : at + 8 + length]
        at += 8 + length
        is_meant = "error" in rules and rules.get("containing", "").encode() in whole
        if is_meant and times("error", rules.get("times", 1 << 60)):
            refused.append(struct.pack(">ihqqq", number, rules["error"], -1, -1, -1))
        else:
            passed.append(whole)
    entries = []
    if passed:
        send(broker, request[:before_count] + struct.pack(">i", len(passed)) + b"".join(passed))
        answer = frame(broker)
        entries.append(answer[4 + 4 + 2 + len(topic) + 4 : -4])
    head = request[4:8] + struct.pack(">ih", 1, len(topic)) + topic
    return head + struct.pack(">i", count) + b"".join(entries + refused) + struct.pack(">i", 0)


def serve(connection):
    try:
        is_encrypted = arguments.tls and connection.recv(1, socket.MSG_PEEK) == b"\x16"
        if is_encrypted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*arguments.tls)
            connection = context.wrap_socket(connection, server_side=True)
        request = frame(connection)
        is_guarded = string(request, 8)[0] == b"sekiwake"
        if is_guarded and arguments.tls and not is_encrypted:
            return
        if is_guarded and arguments.user:
            if not authenticate(connection, request):
                return
            request = frame(connection)
        broker = socket.create_connection(("127.0.0.1", arguments.to))
        while True:
            key = struct.unpack_from(">h", request)[0]
            rules = {}
            if key == PRODUCE and arguments.rules:
                with open(arguments.rules) as file:
                    rules = json.load(file)
            if key == PRODUCE:
                answer = produce(request, rules, broker)
                if "lose" in rules and times("lose", rules["lose"]):
                    return
            else:
                send(broker, request)
                answer = frame(broker)
            send(connection, answer)
            request = frame(connection)
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        connection.close()


server = socket.create_server(("127.0.0.1", arguments.port))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
