"""Shared by the benchmarks beside it: Skiff's programs, processes that are ended again, and figures."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BIN = Path(os.environ.get("SKIFF_BIN_DIR", TARGET / "release"))
IMAGES = Path(os.environ.get("SKIFF_TEST_IMAGES", TARGET / "test-images"))
# Seconds that a command, or a server until it answers, may take.
PATIENCE = 60


# --- Figures ---------------------------------------------------------------------------------------


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def table(*rows):
    """A table of Markdown; the first row is its head."""
    head, *body = rows
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in body:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def say_load(when):
    print(f"load {when}: {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors", file=sys.stderr)


# --- Processes -------------------------------------------------------------------------------------


def work_directory(stack):
    """A directory that goes at the end, and an end that comes by a signal too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    # The path is short because a socket's may have 107 bytes, and podman wants less.
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skiff-", dir="/var/tmp")))


def run(*command, **options):
    """A command that must succeed; what it printed."""
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def daemon(stack, log, *command, end=signal.SIGTERM, **options):
    """Starts what runs until the stack is left, in a session of its own: an interrupt reaches this program
    alone, which then ends it."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, **options,
        )
    stack.callback(end_process, process, end)
    return process


def end_process(process, number=signal.SIGTERM):
    if process.poll() is not None:
        return
    process.send_signal(number)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(what, holds, patience=PATIENCE, pause=0.05):
    until = time.monotonic() + patience
    while not holds():
        if time.monotonic() > until:
            sys.exit(f"{what} is not there after {patience} s")
        time.sleep(pause)


def status(pid, field):
    """A field of /proc/PID/status in KiB, 0 when the process has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0


def resident(pid):
    return status(pid, "VmRSS")


def processes(holds):
    """The pids of all processes that `holds` says yes to, given the directory in /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and holds(entry):
                found.append(int(entry.name))
    return found


def of_container(instance):
    """The first process of a container."""
    return min(processes(lambda entry: instance in (entry / "cgroup").read_text()))


def keeper_of(run_dir):
    """The keeper of a run, which names its directory in its arguments or holds a lock in it."""
    def holds(entry):
        if (entry / "comm").read_text().strip() != "skiff-keeper":
            # The name of what a sealed copy executes.
            if not (entry / "cmdline").read_bytes().startswith(b"skiff-keeper"):
                return False
        links = [os.readlink(link) for link in (entry / "fd").iterdir()]
        return any(link.startswith(f"{run_dir}/") for link in links)

    return min(processes(holds))


# --- Calls -----------------------------------------------------------------------------------------

REQUEST = b"GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


def call(address, path=b"/"):
    """One call on a fresh connection: milliseconds to the first byte of a 200. `address` is a Unix socket's
    path or a port of this host."""
    unix = not isinstance(address, int)
    began = time.perf_counter()
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(str(address) if unix else ("127.0.0.1", address))
        stream.sendall(REQUEST % path)
        head = stream.recv(4096)
        took = (time.perf_counter() - began) * 1e3
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise ConnectionError(f"{address} answers {head[:200]!r}")
        while stream.recv(65536):
            pass
    return took


def until_answers(port, process=None):
    """Calls a server as soon as it listens, every half a millisecond."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            return call(port)
        except (ConnectionError, OSError):
            if process and process.poll():
                break
        time.sleep(0.0005)
    sys.exit(f"nothing answers on port {port}")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# --- Skiff -----------------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("node")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


class Node:
    """`skiff serve` with directories of its own; all of it goes with the stack."""

    def __init__(self, stack, directory, *options):
        directory.mkdir()
        self.directory, self.run_dir = directory, directory / "run"
        self.environment = {
            **os.environ,
            "SKIFF_STATE_DIR": str(directory / "state"),
            "SKIFF_RUN_DIR": str(self.run_dir),
            "SKIFF_KEEPER": str(BIN / "skiff-keeper"),
        }
        # SIGINT stops all instances.
        self.process = daemon(
            stack, directory / "log", BIN / "skiff", "serve", *options,
            end=signal.SIGINT, env=self.environment,
        )
        self.socket = self.run_dir / "skiff.sock"
        wait_until("the node's socket", self.socket.exists)

    def deploy(self, name, image, *options, **keys):
        """Deploys a function of fc, or of `platform`; returns its socket."""
        platform = keys.pop("platform", "fc")
        file = self.directory / f"{name}.toml"
        lines = {"platform": platform, "image": image, "name": name, **keys}
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        run(BIN / "skiff", "deploy", file, "--quiet", *options, env=self.environment)
        file.unlink()
        full = name if platform == "fc" else f"default.{name}"
        return self.run_dir / "functions" / f"{full}.sock"

    def get(self, path):
        connection = UnixConnection(self.socket)
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def instances(self):
        found = self.get("/v1/instances")
        return found["instances"] if isinstance(found, dict) else found

    def wait_for_none(self):
        wait_until("a node without instances", lambda: not self.instances())


def check_programs(*names):
    for name in names:
        if not Path(name).exists() and not any((Path(d) / name).exists() for d in os.environ["PATH"].split(":")):
            sys.exit(f"error: {name} is missing; scripts/bench installs and builds what is needed")
