"""A web function: `GET /hello?name=World`, and a 404 for everything else."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Function(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as the platforms want it

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/hello":
            name = parse_qs(url.query).get("name", ["World"])[0]
            self.answer(200, f"Hello, {name}!\n")
        else:
            self.answer(404, "There is only /hello.\n")

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("ready for requests", flush=True)
ThreadingHTTPServer(("0.0.0.0", 9000), Function).serve_forever()
