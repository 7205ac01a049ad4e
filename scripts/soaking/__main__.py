"""Load and faults on one node, and whether every call was answered and billed once. Called by scripts/soak."""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import calls
import figures
import host
import verdict
from callers import ANSWERED, Callers
from faults import Storm
from functions import plan
from node import Node, find_programs
from registry import Registry
from wire import Cut, Malformed, Refused

# Deploys at once, at the beginning.
DEPLOYS = 4
QUIET_PATIENCE_S = 60


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="how long there is load (600)")
    parser.add_argument("--seed", type=int, default=None, help="what is chosen at random is chosen by it")
    parser.add_argument("--functions", type=int, default=50, help="how many are deployed (50)")
    parser.add_argument("--instances", type=int, default=200, help="that are there without a call (200)")
    parser.add_argument("--callers", type=int, default=32, help="with one call at a time each (32)")
    parser.add_argument("--pace", type=float, default=2.0, help="mean seconds between two kills (2)")
    parser.add_argument("--programs", help="the directory of skiff and skiff-keeper (target/debug)")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


async def deploy_all(node, registry, functions, violations):
    """All functions, from one image."""
    image = await asyncio.to_thread(registry.push)
    turns = asyncio.Semaphore(DEPLOYS)

    async def one(function):
        async with turns:
            status, told = await node.deploy(function, image)
            if status != 200:
                raise SystemExit(f"{function.name} cannot be deployed: {told}")

    await asyncio.gather(*(one(function) for function in functions))
    await registry.restock()


async def watch(node, heights):
    """Notes memory and numbers of instances each second."""
    while True:
        try:
            now = [function["instances"] for function in await node.functions()]
            heights.append(sum(one["warm"] + one["starting"] + one["leaving"] for one in now))
        except (Cut, Refused, Malformed):
            pass
        node.sample()
        await asyncio.sleep(1)


async def load(options, node, registry, functions, violations):
    """Callers and faults for the time that was asked for, then one call of each function."""
    chance = random.Random(options.seed)
    callers = Callers(node, functions, options.callers, random.Random(chance.random()), violations)
    storm = Storm(node, registry, functions, random.Random(chance.random()), violations, options.pace)
    heights = []
    tasks = [asyncio.create_task(work) for work in (callers.run(), storm.run())]
    watching = asyncio.create_task(watch(node, heights))
    begun = time.monotonic()
    await asyncio.sleep(options.seconds)
    storm.over = True
    await tasks[1]
    callers.over = True
    await tasks[0]
    seconds = time.monotonic() - begun
    watching.cancel()
    await node.wait_until_it_serves()
    await last_calls(node, callers, functions, violations)
    return callers, storm, heights, seconds


async def last_calls(node, callers, functions, violations):
    """Nothing runs on, and each function works."""
    until = time.monotonic() + QUIET_PATIENCE_S
    while time.monotonic() < until:
        if not any(f["instances"]["running"] + f["instances"]["leaving"] for f in await node.functions()):
            break
        await asyncio.sleep(0.5)
    verdict.check_quiet(await node.functions(), violations)
    # What the storm has left is over: only success counts.
    await asyncio.sleep(verdict.SEEN_S)
    before = len(callers.results)
    for function in functions:
        await callers.call(calls.plain_event(f"last-{function.name}", function, None))
        await callers.call(calls.plain_http(f"last-{function.name}", function, None))
    for result in callers.results[before:]:
        if result.how != ANSWERED or result.said.name != "success":
            violations.add("a function does not work any more", result.shown)


async def soak(options, directory, programs, target):
    violations = verdict.Violations()
    images = Path(os.environ.get("SKIFF_TEST_IMAGES", target / "test-images"))
    registry = Registry(directory / "registry", images / "oci")
    node = Node(directory, programs, violations)
    functions = plan(options.functions, options.instances)
    await registry.start()
    try:
        await node.start()
        print(f"deploying {len(functions)} functions", flush=True)
        await deploy_all(node, registry, functions, violations)
        print(f"{options.seconds} s of load and faults, seed {options.seed}", flush=True)
        callers, storm, heights, seconds = await load(options, node, registry, functions, violations)
        records = await node.lines("/v1/usage/records")
        _, usage = await node.ask("GET", "/v1/usage")
    finally:
        if node.process:
            await node.stop()
        registry.stop()
    verdict.check_answers(callers.results, storm.events, violations)
    verdict.check_deploys(storm.deploys, storm.events, violations)
    verdict.check_records(callers.results, records, storm.events, violations)
    verdict.check_sums(usage, records, violations)
    verdict.check_log(node.log, violations)
    verdict.check_faults(storm.events, options.pace, seconds, violations)
    figures.show(figures.rows(options, seconds, callers, storm, node, heights, records))
    return violations


def main():
    options = arguments()
    programs, target = find_programs(options.programs)
    before = host.snapshot()
    # Not below the checkout: a socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="skiff-soak.", dir="/var/tmp"))
    violations = asyncio.run(soak(options, directory, programs, target))
    verdict.check_nothing_is_left(before, violations)
    if violations.found:
        print(f"\nsoak: {len(violations.found)} violations, seed {options.seed}; see {directory}")
        sys.exit(1)
    shutil.rmtree(directory)
    print("\nsoak: ok")


main()
