"""The way of a call: the same server called directly, through nginx, and through Skiff, side by side with
wrk; then what Skiff's memory does with large bodies and idle connections. Called by scripts/bench."""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time

from common import (
    BIN, Node, REQUEST, check_programs, daemon, free_port, of_container, quantile, resident, run, say_load, table,
    until_answers, wait_until, work_directory,
)

CALLERS = 10
# Both programs of nginx's: the server in the container, and the proxy on as many processors as Skiff has.
NGINX = "/usr/sbin/nginx"
SERVER = """
daemon off; master_process off; pid /tmp/nginx.pid; error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; client_max_body_size 0; sendfile on;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u;
  scgi_temp_path /tmp/s;
  server {
    listen 9000;
    location = /large { alias /tmp/large; }
    location / { return 200 "hello, world\n"; }
  }
}
"""
PROXY = """
daemon off; pid %(dir)s/nginx.pid; error_log %(dir)s/error.log error; worker_processes %(processors)s;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/p; fastcgi_temp_path %(dir)s/f;
  uwsgi_temp_path %(dir)s/u; scgi_temp_path %(dir)s/s;
  upstream server { server %(server)s; keepalive 64; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:%(port)s;
    location / { proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
}
"""
# What wrk prints of latencies is rounded; this is in microseconds. With PAUSE a caller waits before each
# call, 2 to 8 ms, so that the processors are not busy all the time.
SCRIPT = """
if os.getenv("PAUSE") then function delay() return math.random(2, 8) end end
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format("RESULT %d %d %d %f %d", latency:percentile(50), latency:percentile(99), summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
LARGE = 1 << 30
# The largest body that fc takes.
UPLOAD = 32 << 20
# Fewer than a listener takes, so that there is room for calls beside them.
IDLE = 9_900


# --- The server's image ----------------------------------------------------------------------------


def image(work):
    """Debian's nginx and what it needs, with busybox to make its large file: one layer."""
    root, oci = work / "root", f"{work}/oci"
    for program in [NGINX, shutil.which("busybox")]:
        libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True).stdout)
        for file in [program, *libraries]:
            place = root / file.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nginx.conf").write_text("user root;" + SERVER)
    (root / "var/log/nginx").mkdir(parents=True)
    (root / "var/lib/nginx").mkdir(parents=True)
    busybox = shutil.which("busybox")
    start = f"{busybox} truncate -s {LARGE} /tmp/large && exec {NGINX} -c /etc/nginx.conf"
    run("umoci", "--log=error", "init", "--layout", oci)
    run("umoci", "--log=error", "new", "--image", f"{oci}:nginx")
    run("umoci", "--log=error", "insert", "--no-history", "--image", f"{oci}:nginx", root, "/")
    words = [busybox, "sh", "-c", start]
    run("umoci", "--log=error", "config", "--no-history", "--image", f"{oci}:nginx",
        *[part for word in words for part in ("--config.entrypoint", word)])
    return f"oci:{oci}:nginx"


# --- Who is called ---------------------------------------------------------------------------------


class Way:
    """A way to the server: where wrk calls, and in which network namespace."""

    def __init__(self, name, url, namespace=None):
        self.name, self.url = name, url
        self.prefix = ["nsenter", f"--net=/proc/{namespace}/ns/net"] if namespace else []

    def measure(self, work, seconds, pause):
        environment = {**os.environ, **({"PAUSE": "1"} if pause else {})}
        command = [*self.prefix, "wrk", "-t2", f"-c{CALLERS}", f"-d{seconds}s", "-s", work / "wrk.lua", self.url]
        out = run(*command, env=environment)
        found = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) (\d+)", out)
        if not found or int(found[5]) or int(found[3]) == 0:
            sys.exit(f"{self.name}: {out}")
        return {"p50": int(found[1]), "p99": int(found[2]), "rate": int(found[3]) / float(found[4])}


def skiff_run(stack, work, image, *options):
    """`skiff run` with a TCP listener; its process, its port, and the container's first process."""
    directory, port = work / "run", free_port()
    directory.mkdir()
    environment = {**os.environ, "SKIFF_STATE_DIR": f"{directory}/state", "SKIFF_RUN_DIR": f"{directory}/r",
                   "SKIFF_KEEPER": str(BIN / "skiff-keeper")}
    process = daemon(stack, "/dev/null", BIN / "skiff", "run", image, "--name", "bench", "--listen", port,
                     "--concurrency", "200", "--memory", "1GiB", "--socket", directory / "s", *options, env=environment)
    until_answers(port, process)
    keepers_children = directory / "r"
    runs = [entry.name for entry in keepers_children.iterdir() if entry.is_dir()]
    return process, port, of_container(runs[0])


def address_of(pid):
    """Where the server is reached in its namespace: a server at 127.0.0.1 alone would not be."""
    shown = run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-json", "address", "show", "lo")
    all_addresses = [entry["local"] for entry in json.loads(shown)[0]["addr_info"] if entry["family"] == "inet"]
    return next(address for address in all_addresses if not address.startswith("127."))


def nginx(stack, work, server, pid):
    directory, port = work / "nginx", free_port()
    directory.mkdir()
    values = {"dir": directory, "processors": os.cpu_count(), "server": server, "port": port}
    (directory / "nginx.conf").write_text("user root;" + PROXY % values)
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    process = daemon(stack, directory / "log", *enter, NGINX, "-c", directory / "nginx.conf", "-p", directory)
    answers = [*enter, "curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{port}/"]

    def serves():
        if process.poll() is not None:
            sys.exit(f"nginx ended: {(directory / 'log').read_text()}{(directory / 'error.log').read_text()}")
        return subprocess.run(answers).returncode == 0

    wait_until("nginx", serves)
    return port


def node(stack, work, image, name, *options):
    """A node, called by the path that FC 2.0's HTTP functions have on its TCP listener."""
    port = free_port()
    Node(stack, work / name, "--api-listen", f"127.0.0.1:{port}", *options).deploy(
        "bench", image, "--max-instances", "1", platform="fc2", concurrency=100)
    return f"http://127.0.0.1:{port}/2016-08-15/proxy/default/bench/hello"


# --- What is measured ------------------------------------------------------------------------------


def compare(title, ways, work, rounds, seconds, pause):
    samples = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            samples[way.name].append(way.measure(work, seconds, pause))
    median = {
        name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }
    direct, proxy = median["direct"], median["nginx"]
    rows = [[title, "median", "added", "99th percentile", "added", "calls a second", "of nginx's"]]
    for name, found in median.items():
        rates = [sample["rate"] for sample in samples[name]]
        rows.append([
            name,
            f"{found['p50']:.0f} µs", "" if name == "direct" else f"{found['p50'] - direct['p50']:+.0f} µs",
            f"{found['p99']:.0f} µs", "" if name == "direct" else f"{found['p99'] - direct['p99']:+.0f} µs",
            f"{found['rate']:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{found['rate'] / proxy['rate']:.0%}",
        ])
    table(*rows)


class Peak:
    """The most memory of a process while something goes on: what the kernel has kept since it was reset."""

    def __init__(self, pid):
        self.pid, self.before = pid, resident(pid)
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")

    def __str__(self):
        with open(f"/proc/{self.pid}/status") as file:
            peak = int(re.search(r"VmHWM:\s+(\d+)", file.read())[1])
        return f"{self.before / 1024:.1f} MiB | {peak / 1024:.1f} MiB | {resident(self.pid) / 1024:.1f} MiB"


def bodies(process, port, work):
    """Bodies in both directions, and what the process needed for them."""
    upload = work / "upload"
    with open(upload, "wb") as file:
        file.truncate(UPLOAD)
    curl = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download} %{size_upload}"]
    rows = [["Skiff's memory", "before", "peak", "after"]]

    def row(title, expected, count, *arguments):
        peak = Peak(process.pid)
        url = f"http://127.0.0.1:{port}"
        command = [*curl, *[argument.replace("URL", url) for argument in arguments]]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        for one in running:
            out = one.communicate()[0]
            if one.returncode or sum(map(int, out.split()[-2:])) < expected:
                sys.exit(f"{title}: {out}")
        rows.append([title, *str(peak).split(" | ")])

    row("an answer of 64 KiB", 1 << 16, 1, "-r", "0-65535", "URL/large")
    row("an answer of 1 GiB", LARGE, 1, "URL/large")
    row("ten of 1 GiB at once", LARGE, 10, "URL/large")
    row("ten requests of 32 MiB at once", UPLOAD, 10, "-H", "Expect:", "--data-binary", f"@{upload}", "URL/")
    return rows


def idle(process, port):
    """Connections that do nothing: some that never said anything, and some that have had an answer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * IDLE), hard))
    rows = []
    for title, says in [("that have said nothing", False), ("that have had an answer", True)]:
        peak, streams = Peak(process.pid), []
        with contextlib.ExitStack() as stack:
            for _ in range(IDLE):
                stream = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                if says:
                    stream.sendall(REQUEST.replace(b"Connection: close\r\n", b"") % b"/")
                    if not stream.recv(4096).startswith(b"HTTP/1.1 200"):
                        sys.exit("an idle connection got no answer")
                streams.append(stream)
            time.sleep(1)
            held = resident(process.pid)
            rows.append([f"{IDLE:,} connections {title}", *str(peak).split(" | ")[:2], f"{held / 1024:.1f} MiB"])
            each = (held - peak.before) * 1024 / IDLE
            rows[-1][0] += f" ({each / 1024:.1f} KiB each)"
        time.sleep(2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rows.append(["after they have gone", "", "", f"{resident(process.pid) / 1024:.1f} MiB"])
    return rows


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    options = parser.parse_args()
    check_programs("wrk", NGINX, "umoci", "nsenter", "ip", "curl", "busybox", BIN / "skiff")
    with contextlib.ExitStack() as stack:
        work = work_directory(stack)
        (work / "wrk.lua").write_text(SCRIPT)
        of_server = image(work)
        # Frozen, it would not answer those who call it directly.
        process, port, pid = skiff_run(stack, work, of_server, "--no-freeze")
        server = f"{address_of(pid)}:9000"
        ways = [
            Way("direct", f"http://{server}/hello", pid),
            Way("nginx", f"http://127.0.0.1:{nginx(stack, work, server, pid)}/hello", pid),
            Way("skiff run", f"http://127.0.0.1:{port}/hello"),
            Way("skiff serve --no-metering", node(stack, work, of_server, "n", "--no-metering")),
            Way("skiff serve", node(stack, work, of_server, "m")),
        ]
        for way in ways:
            way.measure(work, 1, False)
        say_load("before")
        compare(f"{CALLERS} callers without a pause", ways, work, options.rounds, options.seconds, False)
        compare(f"{CALLERS} callers, 2 to 8 ms between calls", ways, work, options.rounds, options.seconds, True)
        table(*bodies(process, port, work), *idle(process, port))
        say_load("after")


if __name__ == "__main__":
    main()
