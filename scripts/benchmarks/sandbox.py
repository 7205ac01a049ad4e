"""Create, start, wait and delete of one container, side by side. Called by scripts/bench."""

import argparse
import json
import os
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BIN = Path(os.environ.get("SKIFF_BIN_DIR", TARGET / "release"))
# A place where `cargo install --root` put it; not on everybody's PATH.
YOUKI = os.environ.get("YOUKI", str(TARGET / "bench-tools/bin/youki"))
SAMPLES_OF_WARM_UP = 3
# Containers made ahead, as many as network namespaces.
AHEAD = 8
# Seconds that one command may take; one that hangs ends the benchmark.
PATIENCE = 30


def cpu_of_children():
    """Seconds of user and system time of all children that have been waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def bundle(directory, rootfs, runtime):
    """A bundle as the runtime's own `spec` makes it, with the limits that Skiff's containers get."""
    directory.mkdir()
    subprocess.run([runtime, "spec"], cwd=directory, check=True, capture_output=True)
    path = directory / "config.json"
    spec = json.loads(path.read_text())
    spec["process"].update(terminal=False, args=["/bin/true"])
    spec["root"] = {"path": str(rootfs), "readonly": True}
    resources = spec["linux"].setdefault("resources", {})
    resources.update(
        memory={"limit": 128 << 20}, cpu={"period": 100_000, "quota": 100_000}, pids={"limit": 1024}
    )
    path.write_text(json.dumps(spec))
    return directory


class Failed(Exception):
    """A runtime that cannot run a container here."""


class Peer:
    """A runtime that is a program: `run` is create + start + wait + delete in one command."""

    def __init__(self, name, program, work, rootfs):
        self.name, self.program = name, program
        self.state = work / f"{name}-state"
        self.bundle = bundle(work / f"{name}-bundle", rootfs, program)
        self.lock, self.number, self.failed = threading.Lock(), 0, 0

    def command(self, *arguments):
        command = [self.program, "--root", self.state, *arguments]
        done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise Failed(f"{arguments[0]}: {done.stderr.decode(errors='replace')}")

    def once(self):
        with self.lock:
            self.number += 1
            name = f"{self.name}-{os.getpid()}-{self.number}"
        began = time.perf_counter()
        self.container(name)
        return (time.perf_counter() - began) * 1e3

    def container(self, name):
        self.command("run", "--bundle", self.bundle, name)

    def measure(self, runs, parallel, seconds):
        took, lock, until = [], threading.Lock(), time.perf_counter() + seconds
        left, failed, most = [runs], [], max(runs // 4, 10)

        def caller():
            while True:
                with lock:
                    left[0] -= 1
                    over = time.perf_counter() >= until if seconds else left[0] < 0
                    if over or len(failed) > most:
                        return
                try:
                    sample = self.once()
                except (subprocess.SubprocessError, OSError, Failed) as error:
                    # A run that fails now and then is told, and is no reason to lose the others.
                    failed.append(error)
                    continue
                with lock:
                    took.append(sample)

        began, cpu = time.perf_counter(), cpu_of_children()
        threads = [threading.Thread(target=caller) for _ in range(parallel)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        if len(failed) > most or not took:
            raise Failed(f"{self.name}: {failed[0]}")
        self.failed += len(failed)
        used = cpu_of_children() - cpu
        return {"exit": took, "elapsed": time.perf_counter() - began, "cpu": used}


class Youki(Peer):
    """Its `run` waits forever for a container that ends at once, so the steps are commands of their own."""

    def command(self, *arguments):
        # A container inherits what `create` got, so its output may not be a pipe that is read to its end.
        command = [self.program, "--root", self.state, *arguments]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if subprocess.run(list(map(str, command)), timeout=PATIENCE, **quiet).returncode != 0:
            raise Failed(f"{arguments[0]} failed")

    def container(self, name):
        pid_file = self.bundle / f"{name}.pid"
        self.command("create", "--bundle", self.bundle, "--pid-file", pid_file, name)
        init = os.pidfd_open(int(pid_file.read_text()))
        self.command("start", name)
        select.select([init], [], [], PATIENCE)
        os.close(init)
        self.command("delete", name)


class Skiff:
    """Through the library, with a network namespace, seccomp, limits and capped disks, and containers made ahead
    (on cgroup version 1)."""

    def __init__(self, name, ahead, work, rootfs):
        self.name, self.ahead, self.work, self.rootfs, self.number = name, ahead, work, rootfs, 0

    def measure(self, runs, parallel, seconds):
        self.number += 1
        directory = self.work / f"{self.name}-{self.number}".replace(" ", "-")
        command = [BIN / "examples/sandbox", BIN / "skiff-keeper", self.rootfs, directory, runs, parallel, seconds]
        environment = {**os.environ, "AHEAD": str(self.ahead)}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(f"skiff: {done.stderr}")
        found = json.loads(done.stdout)
        columns = {key[:-3]: [sample[key] / 1e3 for sample in found["samples"]] for key in found["samples"][0]}
        return {**columns, "elapsed": found["elapsed_us"] / 1e6, "cpu": found["cpu_us"] / 1e6}


def root_filesystem(work):
    rootfs = work / "rootfs"
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc"]:
        (rootfs / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", rootfs / "bin/busybox")
    (rootfs / "bin/true").symlink_to("busybox")
    return rootfs


def rounds(tools, count, runs, parallel):
    """All tools in each round, so that what the machine does besides hits them alike."""
    all_samples = {tool.name: {} for tool in tools}
    for _ in range(count):
        for tool in tools:
            found = tool.measure(runs, parallel, 0)
            # Of each round, so that one with much else to do is told from the others.
            found["cpu"] = [found["cpu"] / len(found["exit"]) * 1e3]
            for key, values in found.items():
                if key != "elapsed":
                    all_samples[tool.name].setdefault(key, []).extend(values)
    return all_samples


def table(title, samples):
    print(f"\n| {title} | median | 99th percentile | times Skiff's median | CPU time | times Skiff's |")
    print("|---|---|---|---|---|---|")
    ours = {key: statistics.median(samples["skiff"][key]) for key in ["exit", "cpu"]}
    for name, columns in samples.items():
        median, cpu = statistics.median(columns["exit"]), statistics.median(columns["cpu"])
        columns = [f"{median:.1f} ms", f"{quantile(columns['exit'], 0.99):.1f} ms", f"{median / ours['exit']:.1f}"]
        columns += [f"{cpu:.1f} ms", f"{cpu / ours['cpu']:.1f}"]
        print(f"| {name} | {' | '.join(columns)} |")
    steps = {key: values for key, values in samples["skiff"].items() if key != "cpu"}
    print("\nSkiff's steps, medians: " + ", ".join(f"{key} {statistics.median(values):.2f} ms" for key, values in steps.items()))
    print(f"Skiff's start to the command's execution: median {statistics.median(steps['exec']):.1f} ms, 99th percentile {quantile(steps['exec'], 0.99):.1f} ms")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench sandbox")
    parser.add_argument("--runs", type=int, default=40, help="containers of each tool in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60, help="of sustained starts, each tool")
    parser.add_argument("--peers", default="runc,crun,youki")
    options = parser.parse_args()
    programs = {name: YOUKI if name == "youki" else shutil.which(name) for name in options.peers.split(",")}
    with tempfile.TemporaryDirectory(prefix="skiff-bench.", dir="/var/tmp") as work:
        work = Path(work)
        rootfs = root_filesystem(work)
        tools = [Skiff("skiff", AHEAD, work, rootfs), Skiff("skiff, none ahead", 0, work, rootfs)]
        for name, program in programs.items():
            if program and Path(program).exists():
                kind = Youki if name == "youki" else Peer
                tools.append(kind(name, program, work, rootfs))
            else:
                print(f"{name} is not here and is left out", file=sys.stderr)
        for tool in list(tools[2:]):
            try:
                tool.measure(SAMPLES_OF_WARM_UP, 1, 0)
            except Failed as error:
                print(f"{error}; it is left out", file=sys.stderr)
                tools.remove(tool)
        print(f"load before: {os.getloadavg()[0]:.1f}", file=sys.stderr)
        table("one at a time", rounds(tools, options.rounds, options.runs, 1))
        table("ten at once", rounds(tools, options.rounds, options.runs, 10))
        print(f"\n| {options.seconds} s, ten callers | starts a second |\n|---|---|")
        for tool in tools if options.seconds else []:
            found = tool.measure(0, 10, options.seconds)
            print(f"| {tool.name} | {len(found['exit']) / found['elapsed']:.0f} |")
        for tool in tools[2:]:
            if tool.failed:
                print(f"\n{tool.name} failed {tool.failed} times; these runs are not counted.")


if __name__ == "__main__":
    main()
