"""`skiff serve` with directories of its own, started again at once whenever it is killed."""

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path
from urllib.parse import quote

import host
from wire import Cut, Malformed, Refused, exchange, request

# How long it may take until it serves, and until all its functions are there.
PATIENCE_S = 120
STOP_PATIENCE_S = 120
# `…/skiff/RUN/CONTAINER`
CONTAINER_GROUP = re.compile(r"/skiff/[0-9a-f]{12}/([^/\n]+)")


class Node:
    def __init__(self, directory, programs, violations):
        self.state, self.run = directory / "state", directory / "run"
        self.log = directory / "node.log"
        self.programs, self.violations = programs, violations
        self.process, self.serves, self.stopping, self.killed = None, None, False, False
        self.starts = 0
        self.peaks = {"daemon": 0, "keeper": 0}

    @property
    def socket(self):
        return str(self.run / "skiff.sock")

    def function_socket(self, function):
        return str(self.run / "functions" / function.socket)

    async def start(self):
        await self.spawn()
        self.serves = asyncio.create_task(self.keep_serving())
        await self.wait_until_it_serves()

    async def spawn(self):
        command = [self.programs / "skiff", "--state-dir", self.state, "--run-dir", self.run]
        command += ["--keeper", self.programs / "skiff-keeper", "serve", "--plain-http"]
        with open(self.log, "ab") as log:
            log.write(f"-- started at {time.time():.3f}\n".encode())
            log.flush()
            self.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1

    async def keep_serving(self):
        """As a service manager does. That it ends by itself is a fault."""
        while True:
            status = await self.process.wait()
            if self.stopping:
                return
            if not self.killed:
                self.violations.add("the daemon ended by itself", f"status {status}; {self.log_end()}")
            self.killed = False
            await self.spawn()

    def log_end(self):
        return self.log.read_text(errors="replace")[-1500:]

    async def ask(self, method, target, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        answer = await exchange(self.socket, request(method, target, data))
        return answer.status, json.loads(answer.body)

    async def lines(self, target):
        answer = await exchange(self.socket, request("GET", target))
        return [json.loads(line) for line in answer.body.splitlines()]

    async def functions(self):
        return (await self.ask("GET", "/v1/functions"))[1]["functions"]

    async def wait_until_it_serves(self):
        """Until it answers, all functions are there, and its keeper is."""
        until = time.monotonic() + PATIENCE_S
        seen = "nothing"
        while time.monotonic() < until:
            try:
                functions = await asyncio.wait_for(self.functions(), PATIENCE_S)
                seen = [f["name"] for f in functions if f["state"] != "Active"]
                if not seen and self.keeper():
                    return
            except (Cut, Refused, Malformed, TimeoutError) as error:
                seen = repr(error)
            await asyncio.sleep(0.1)
        self.violations.add("the node does not come back", f"{seen}; {self.log_end()}")

    def kill(self):
        self.sample()
        self.killed = True
        os.kill(self.process.pid, signal.SIGKILL)

    def keeper(self):
        """The living keeper: of those that hold the run's lock, the one that is there longest."""
        try:
            lock = self.run / os.readlink(self.run / "node") / "lock"
        except OSError:
            return None
        of_that_name = (p for p in host.processes() if p.name == "skiff-keeper" and p.state != "Z")
        found = [process for process in of_that_name if host.holds(process.pid, lock)]
        return min(found, key=lambda process: process.started, default=None)

    async def wait_for_successor(self, before):
        """Until another keeper has all that the former had: the node says so then, and not before."""
        until = time.monotonic() + PATIENCE_S
        while self.successors() == before:
            if time.monotonic() > until:
                self.violations.add("a keeper is not replaced", self.log_end())
                return
            await asyncio.sleep(0.1)

    def successors(self):
        return self.log.read_bytes().count(b"another has taken its place")

    def inits(self):
        """The first process of each container, by the container's id."""
        keeper = self.keeper()
        found = {}
        for process in host.processes():
            if keeper and process.parent == keeper.pid and process.state != "Z":
                # In each hierarchy of version 1, or in that of version 2.
                group = CONTAINER_GROUP.search(process.cgroup())
                if group:
                    found[group[1]] = process
        return found

    def sample(self):
        """Notes how much memory daemon and keeper have had."""
        keeper = self.keeper()
        for name, pid in (("daemon", self.process.pid), ("keeper", keeper.pid if keeper else 0)):
            self.peaks[name] = max(self.peaks[name], host.peak_rss(pid))

    async def deploy(self, function, image):
        return await self.ask("POST", "/v1/functions", function.deployment(image))

    async def delete(self, function):
        target = f"/v1/functions/{function.name}?namespace={quote(function.namespace)}"
        return await self.ask("DELETE", target)

    async def stop(self):
        """Has it end with all its instances."""
        self.sample()
        self.stopping = True
        self.process.send_signal(signal.SIGINT)
        try:
            status = await asyncio.wait_for(self.process.wait(), STOP_PATIENCE_S)
            if status != 0:
                self.violations.add("the node ended badly", f"status {status}; {self.log_end()}")
        except TimeoutError:
            self.violations.add("the node does not end", self.log_end())
            self.process.kill()
            await self.process.wait()


def find_programs(given):
    """The directory of `skiff` and `skiff-keeper`: as given, as built, or on the PATH."""
    root = Path(__file__).resolve().parents[2]
    target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    directory = Path(given) if given else target / "debug"
    if not (directory / "skiff").exists():
        raise SystemExit(f"no skiff in {directory}: build it, or say --programs")
    return directory.resolve(), target
