"""A collector of OpenTelemetry: takes spans by OTLP over HTTP and writes each as a line of JSON.

Its first line is the port. With an argument it answers so many requests with status 503 first.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

refusals = int(sys.argv[1]) if len(sys.argv) > 1 else 0


def plain(attributes):
    """Attributes by name, each with its value and without the type of that."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


def tell(line):
    print(json.dumps(line), flush=True)


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global refusals
        body = self.rfile.read(int(self.headers["content-length"]))
        if refusals > 0:
            refusals -= 1
            self.answer(503, b"", "text/plain")
            return
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = plain(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    tell(self.span(span, resource, of_scope.scope))
        self.answer(200, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def span(self, span, resource, scope):
        return {
            "path": self.path,
            "authorization": self.headers.get("authorization"),
            "resource": resource,
            "scope": scope.name,
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "state": span.trace_state,
            "name": span.name,
            "kind": span.kind,
            "start": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "status": [span.status.code, span.status.message],
            "attributes": plain(span.attributes),
        }

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Collector)
tell(server.server_port)
server.serve_forever()
