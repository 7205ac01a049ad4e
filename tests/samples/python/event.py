"""A function for events: `{"name": "World"}` is answered with `{"greeting": "Hello, World!"}`.

Alibaba FC posts events to /invoke, Tencent SCF to /event-invoke.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Function(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as the platforms want it

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"greeting": f"Hello, {event['name']}!"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


print("ready for events", flush=True)
ThreadingHTTPServer(("0.0.0.0", 9000), Function).serve_forever()
