"""Calls of functions that have no instance, and of frozen ones, beside containerd, podman and Docker Engine, and
beside the bare start of the same server. Called by scripts/bench."""

import argparse
import contextlib
import statistics
import sys
import threading
import time

from common import (
    BIN, IMAGES, Node, call, check_programs, free_port, quantile, run, say_load, table, until_answers,
    wait_until, work_directory,
)
from engines import IMAGE, Bare, Containerd, Docker, Podman

AT_ONCE = 20
PEERS = {"containerd": Containerd, "podman": Podman, "docker": Docker}
SKIFF = "Skiff"


def milliseconds(values, share=None):
    return statistics.median(values) if share is None else quantile(values, share)


class Peer:
    """What is measured of a peer or of the bare start: from the command until the first byte of a 200."""

    def __init__(self, engine):
        self.engine, self.name, self.number = engine, engine.name, 0
        self.lock = threading.Lock()

    def once(self):
        with self.lock:
            self.number += 1
            name, port = f"bench-{self.number}", free_port()
        began = time.perf_counter()
        process = self.engine.start(name, port)
        until_answers(port, process)
        took = (time.perf_counter() - began) * 1e3
        return took, name, process

    def measure(self):
        took, name, process = self.once()
        self.remove(name, process)
        return took

    def remove(self, name, process):
        if process.poll() is None and not isinstance(self.engine, Bare):
            process.wait()
        self.engine.remove(name)


class Skiff:
    """A function that is deployed and has no instance any more."""

    name = SKIFF

    def __init__(self, node, image):
        self.node = node
        self.sockets = [
            node.deploy(f"python-{number}", image, "--idle-timeout", "1s", "--max-instances", "1")
            for number in range(AT_ONCE)
        ]

    def measure(self):
        self.node.wait_for_none()
        # What the last one left is being removed.
        time.sleep(0.3)
        return call(self.sockets[0])


# --- What is measured ------------------------------------------------------------------------------


def one_at_a_time(tools, runs, few):
    """All in turn; the peers, which take long, in `few` of the rounds."""
    samples = {tool.name: [] for tool in tools}
    every = max(runs // few, 1)
    for number in range(runs):
        for tool in tools:
            if tool.name in (SKIFF, Bare.name) or number % every == 0:
                samples[tool.name].append(tool.measure())
        print(f"\r{number + 1} of {runs}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return samples


def tell(samples):
    bare = samples[Bare.name]
    median, high = statistics.median(bare), quantile(bare, 0.99)
    ours = statistics.median(samples[SKIFF]) - median
    rows = [["first call without an instance", "runs", "median", "added to the bare start", "times what Skiff adds",
             "99th percentile", "added to the bare start's"]]
    for name, found in samples.items():
        own, far = statistics.median(found), quantile(found, 0.99)
        row = [name, str(len(found)), f"{own:.1f} ms"]
        if name == Bare.name:
            row += ["", "", f"{far:.1f} ms", ""]
        else:
            enough = len(found) >= 100
            row += [f"{own - median:.1f} ms", f"{(own - median) / ours:.1f}"]
            row += [f"{far:.1f} ms", f"{far - high:.1f} ms"] if enough else [f"{max(found):.1f} ms (highest)", ""]
        rows.append(row)
    table(*rows)


def at_once(tools, rounds):
    """The first calls of 20 functions at once: when the last one is answered, and the median of all."""
    rows = [[f"{AT_ONCE} at once", "median of all", "until the last"]]
    found = {tool.name: ([], []) for tool in tools}
    for _ in range(rounds):
        for tool in tools:
            took = together(tool)
            found[tool.name][0].extend(took)
            found[tool.name][1].append(max(took))
    for name, (each, last) in found.items():
        rows.append([name, f"{statistics.median(each):.0f} ms",
                     f"{statistics.median(last):.0f} ms ({min(last):.0f} to {max(last):.0f})"])
    table(*rows)


def together(tool):
    took, made, lock, gate = [], [], threading.Lock(), threading.Barrier(AT_ONCE)
    if tool.name == SKIFF:
        tool.node.wait_for_none()
        time.sleep(0.5)

    def caller(number):
        gate.wait()
        if tool.name == SKIFF:
            one = call(tool.sockets[number])
        else:
            one, *rest = tool.once()
            with lock:
                made.append(rest)
        with lock:
            took.append(one)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(AT_ONCE)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for name, process in made:
        tool.remove(name, process)
    if len(took) != AT_ONCE:
        sys.exit(f"{tool.name}: only {len(took)} of {AT_ONCE} were answered")
    return took


def frozen(node, layout, runs):
    """Calls of an instance that is frozen, and of one that runs, in alternation."""
    cold = node.deploy("frozen", f"oci:{layout}:function", "--idle-timeout", "10m", "--provisioned", "1")
    warm = node.deploy("running", f"oci:{layout}:function", "--idle-timeout", "10m", "--provisioned", "1", freeze=False)
    paths, samples = {"frozen": cold, "running": warm}, {"frozen": [], "running": []}

    def is_frozen():
        return any(i["function"] == "frozen" and i["frozen"] for i in node.instances())

    for path in paths.values():
        call(path, b"/status/200")
    for _ in range(runs):
        wait_until("a frozen instance", is_frozen, pause=0.03)
        for name, path in paths.items():
            time.sleep(0.005)
            samples[name].append(call(path, b"/status/200"))
    rows = [["a call of an instance that is", "runs", "median", "99th percentile", "highest"]]
    for name, found in samples.items():
        rows.append([name, str(len(found)), f"{statistics.median(found):.2f} ms",
                     f"{quantile(found, 0.99):.2f} ms", f"{max(found):.2f} ms"])
    table(*rows)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench cold", description=__doc__)
    parser.add_argument("--runs", type=int, default=120, help="first calls of Skiff and bare starts")
    parser.add_argument("--peer-runs", type=int, default=20, help="starts of each peer")
    parser.add_argument("--rounds", type=int, default=3, help=f"of {AT_ONCE} at once")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--serve", default="", help="options of skiff serve, such as --network-pool=8")
    options = parser.parse_args()
    peers = [PEERS[name] for name in options.peers.split(",") if name]
    check_programs("umoci", "skopeo", BIN / "skiff", IMAGES / "oci")
    layout = IMAGES / "oci"
    with contextlib.ExitStack() as stack:
        work = work_directory(stack)
        archive = work / "python.tar"
        run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:python", f"docker-archive:{archive}:{IMAGE}")
        node = Node(stack, work / "s", *options.serve.split())
        skiff = Skiff(node, f"oci:{layout}:python")
        tools = [skiff, Peer(Bare(stack, work, archive, layout))]
        tools += [Peer(kind(stack, work, archive, layout)) for kind in peers]
        for tool in tools[1:]:
            tool.measure()
        say_load("before")
        tell(one_at_a_time(tools, options.runs, options.peer_runs))
        at_once(tools[:3], options.rounds)
        node.wait_for_none()
        frozen(node, layout, options.runs)
        say_load("after")


if __name__ == "__main__":
    main()
