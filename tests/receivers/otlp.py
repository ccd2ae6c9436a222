"""An OTLP receiver of logs that decodes with the OpenTelemetry project's own types.

    otlp.py [--address ADDRESS] [--port PORT] [--tls CERTIFICATE KEY] [--only PATH AUTHORIZATION]

It prints its port. With --only, other paths are answered with 404, and requests without this header
Authorization with 401. Besides POST /v1/logs it answers
    PUT /rules            sets how requests are answered, see `Rules`
    GET /records?from=N   the accepted records from the N-th on, as JSON
    GET /requests         the number of requests, when each arrived, and headers of the last one
"""

import gzip
import json
import ssl
import sys
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

lock = threading.Lock()
records = []
requests = {"count": 0, "times": [], "headers": {}, "resource": {}}
# status, headers, body, type: the answer, if there is no other rule.
# containing, with status: only requests that have a record with this text get that answer.
# partial: records with this text are rejected by a partial success.
# per_second: how many records are taken per second.
# times: after so many requests the rules no longer hold.
rules = {}


def plain(value):
    """An AnyValue as JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "bytes_value":
        return {"base64": b64encode(value.bytes_value).decode()}
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)


def has(record, text):
    return text in json.dumps(plain(record.body))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        with lock:
            if url.path == "/records":
                first = int(parse_qs(url.query).get("from", ["0"])[0])
                body = json.dumps(records[first : first + 20_000])
            else:
                body = json.dumps(requests)
        self.answer(200, body.encode())

    def do_PUT(self):
        global rules
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with lock:
            rules = json.loads(body)
        self.answer(200)

    def do_POST(self):
        arrived = time.monotonic()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if only and self.path != only[0]:
            return self.answer(404)
        if only and self.headers.get("Authorization") != only[1]:
            return self.answer(401)
        is_json = self.headers["Content-Type"].startswith("application/json")
        request = ExportLogsServiceRequest()
        if is_json:
            json_format.Parse(body, request)
        else:
            request.ParseFromString(body)
        all_records = [
            record
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        with lock:
            now = dict(rules)
            if "times" in now:
                rules["times"] -= 1
                if now["times"] <= 0:
                    now = {}
            requests["count"] += 1
            requests["times"].append(arrived)
            requests["path"] = self.path
            requests["headers"] = {name.lower(): value for name, value in self.headers.items()}
            for resource in request.resource_logs:
                requests["resource"] = {one.key: plain(one.value) for one in resource.resource.attributes}
        if "per_second" in now:
            time.sleep(len(all_records) / now["per_second"])
        if "status" in now and ("containing" not in now or any(has(one, now["containing"]) for one in all_records)):
            body = now.get("body", '{"code":3,"message":"as told"}').encode()
            return self.answer(now["status"], body, now.get("type", "application/json"), now.get("headers", {}))
        response = ExportLogsServiceResponse()
        accepted = all_records
        if "partial" in now:
            accepted = [one for one in all_records if not has(one, now["partial"])]
            response.partial_success.rejected_log_records = len(all_records) - len(accepted)
            response.partial_success.error_message = "as told"
        with lock:
            for record in accepted:
                records.append(
                    {
                        "time": record.time_unix_nano,
                        "observed": record.observed_time_unix_nano,
                        "severity": record.severity_number,
                        "severity_text": record.severity_text,
                        "body": plain(record.body),
                        "attributes": {one.key: plain(one.value) for one in record.attributes},
                    }
                )
        if is_json:
            self.answer(200, json_format.MessageToJson(response).encode())
        else:
            self.answer(200, response.SerializeToString(), "application/x-protobuf")


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


only = None
if "--only" in sys.argv:
    at = sys.argv.index("--only")
    only = sys.argv[at + 1], sys.argv[at + 2]
port = 0
if "--port" in sys.argv:
    port = int(sys.argv[sys.argv.index("--port") + 1])
address = sys.argv[sys.argv.index("--address") + 1] if "--address" in sys.argv else "127.0.0.1"
server = Server((address, port), Handler)
if "--tls" in sys.argv:
    at = sys.argv.index("--tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[at + 1], sys.argv[at + 2])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
