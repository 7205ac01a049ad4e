"""What instances cost this host: memory of Skiff's processes and of everything, with many idle instances, and how
long freezing and thawing take. Called by scripts/bench."""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path

from common import (
    BIN, IMAGES, Node, call, check_programs, keeper_of, of_container, quantile, resident, run, say_load, table,
    wait_until, work_directory,
)


def available():
    """KiB that programs could still get, with what the kernel can give back."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def settled():
    """The same when it does not change any more."""
    time.sleep(3)
    return statistics.median(available() for _ in range(5) if not time.sleep(0.2))


def own(pid):
    """KiB that go with the process: shared pages count for each by its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def instances(stack, work, layout, count):
    node = Node(stack, work / "s")
    node.deploy("one", f"oci:{layout}:function", "--provisioned", "1", "--max-instances", "1", "--idle-timeout", "10m")
    wait_until("the first instance", lambda: len(node.instances()) == 1)
    keeper, daemon = keeper_of(node.run_dir), node.process.pid
    before = settled(), resident(daemon), resident(keeper)
    began = time.monotonic()
    words = ["--provisioned", str(count), "--max-instances", str(count), "--idle-timeout", "10m"]
    node.deploy("many", f"oci:{layout}:function", *words, memory="128MiB")

    wait_until(f"{count} instances", lambda: sum(i["state"] == "ready" for i in node.instances()) > count, 300, 0.3)
    took = time.monotonic() - began
    wait_until("frozen instances", lambda: sum(i["frozen"] for i in node.instances()) > count, pause=1)
    one = next(i for i in node.instances() if i["function"] == "many")
    call(node.run_dir / "functions/many.sock", b"/status/200")
    time.sleep(5)
    after = settled(), resident(daemon), resident(keeper)
    server = own(of_container(one["id"]))
    skiffs = (after[1] + after[2]) / count
    table(
        [f"{count} idle instances", "before", "with them", "for each"],
        ["skiff, resident", f"{before[1] / 1024:.1f} MiB", f"{after[1] / 1024:.1f} MiB", f"{(after[1] - before[1]) / count:.1f} KiB"],
        ["skiff-keeper, resident", f"{before[2] / 1024:.1f} MiB", f"{after[2] / 1024:.1f} MiB", f"{(after[2] - before[2]) / count:.1f} KiB"],
        ["all processes of Skiff, divided", "", f"{(after[1] + after[2]) / 1024:.1f} MiB", f"{skiffs:.1f} KiB"],
        ["memory that the host has less", "", f"{(before[0] - after[0]) / 1024:.1f} MiB", f"{(before[0] - after[0]) / count:.1f} KiB"],
        ["of it, the function's own process", "", "", f"{server:.1f} KiB"],
    )
    print(f"\nThey were started in {took:.1f} s.")


def freezing(work, layout, runs):
    run("umoci", "--log=error", "unpack", "--image", f"{layout}:function", work / "bundle")
    out = run(BIN / "examples/freeze", BIN / "skiff-keeper", work / "bundle/rootfs", work / "f", runs)
    found = json.loads(out)
    rows = [["", "runs", "median", "99th percentile", "highest"]]
    for name, key in [("freeze", "freeze_us"), ("thaw", "thaw_us")]:
        values = [value / 1e3 for value in found[key]]
        rows.append([name, str(len(values)), f"{statistics.median(values):.3f} ms",
                     f"{quantile(values, 0.99):.3f} ms", f"{max(values):.3f} ms"])
    table(*rows)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--runs", type=int, default=500, help="of freezing")
    options = parser.parse_args()
    check_programs("umoci", BIN / "skiff", BIN / "examples/freeze", IMAGES / "oci")
    with contextlib.ExitStack() as stack:
        work = work_directory(stack)
        say_load("before")
        freezing(work, IMAGES / "oci", options.runs)
        instances(stack, work, IMAGES / "oci", options.instances)
        say_load("after")


if __name__ == "__main__":
    main()
