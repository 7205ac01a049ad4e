"""A function in Python's standard library, for the images that the tests make from Debian."""

import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# Messages to the client of each session that streams.
SESSIONS = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path in ("/invoke", "/event-invoke"):
            self.answer({"server": "python", "path": path, "event": json.loads(body or b"null")})
        elif path == "/python":
            self.answer(run_python(body.decode()))
        elif path == "/sh":
            self.answer(run_shell(body.decode()))
        elif path == "/mcp":
            self.streamable()
        elif path == "/sse":
            self.sse()
        elif path == "/messages":
            self.message(body)
        else:
            self.answer(
                {
                    "server": "python",
                    "method": self.command,
                    "uri": self.path,
                    "headers": [list(pair) for pair in self.headers.items()],
                    "body": body.decode("utf-8", "replace"),
                }
            )

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_any

    def answer(self, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    # The transports of the Model Context Protocol, as far as sessions go.

    def streamable(self):
        session = self.headers.get("Mcp-Session-Id")
        if session is None:
            session = uuid.uuid4().hex
            SESSIONS[session] = None
        elif session not in SESSIONS:
            self.send_error(404)
            return
        elif self.command == "DELETE":
            del SESSIONS[session]
        self.answer({"session": session}, [("Mcp-Session-Id", session)])

    def sse(self):
        session, messages = uuid.uuid4().hex, queue.Queue()
        SESSIONS[session] = messages
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(f"event: endpoint\ndata: /messages?session_id={session}\n\n".encode())
        while (message := messages.get()) != b"bye":
            self.wfile.write(b"event: message\ndata: " + message + b"\n\n")
        del SESSIONS[session]

    def message(self, body):
        session = self.path.rpartition("=")[2]
        if session not in SESSIONS:
            self.send_error(404)
            return
        SESSIONS[session].put(body)
        self.answer({"session": session})

    def log_message(self, format, *args):
        # At once: with PYTHONUNBUFFERED, `print` writes in pieces, and another thread's lines come between.
        os.write(1, f"request {format % args}\n".encode())


def run_python(code):
    """Runs code and gives what it printed; the tests look at the sandbox by it, from inside."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {})
        return {"stdout": out.getvalue(), "error": None}
    except BaseException:
        return {"stdout": out.getvalue(), "error": traceback.format_exc(limit=1)}


def run_shell(script):
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, timeout=60)
    return {
        "status": done.returncode,
        "stdout": done.stdout.decode("utf-8", "replace"),
        "stderr": done.stderr.decode("utf-8", "replace"),
    }


if __name__ == "__main__":
    port = int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or 9000)
    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    server.daemon_threads = True
    print("python", sys.version.split()[0], "listens on", port, flush=True)
    server.serve_forever()
