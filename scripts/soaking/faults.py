"""What goes wrong: kills of containers, keeper and daemon, a registry that is away, and deploys all the while."""

import asyncio
import http.client
import os
import signal
import time
from dataclasses import dataclass

from wire import Cut, Malformed, Refused

CONTAINER, KEEPER, DAEMON, OUTAGE = "container", "keeper", "daemon", "registry"
# How often each is killed, in a hundred kills.
VICTIMS = {CONTAINER: 68, KEEPER: 14, DAEMON: 18}
# How long a caller may be told of a kill after it, in seconds; a host under load sees it late.
SEEN_S = 6
OUTAGE_S = (1, 6)
DEPLOY_PATIENCE_S = 180


@dataclass
class Event:
    kind: str
    # Whose instances it hits; `None` for all.
    function: object
    begun: float
    ended: float = float("inf")

    def meets(self, begun, ended, function=None):
        hit = self.function is None or function is None or self.function == function
        return hit and self.begun <= ended and begun <= self.ended


@dataclass
class Deploy:
    function: object
    begun: float
    ended: float
    # `success`, `cut`, or the kind of the error.
    name: str
    text: str = ""


class Storm:
    def __init__(self, node, registry, functions, random, violations, pace):
        self.node, self.registry, self.functions = node, registry, functions
        self.random, self.violations, self.pace = random, violations, pace
        self.events, self.deploys, self.over = [], [], False

    async def run(self):
        await asyncio.gather(self.kills(), self.outages(), self.redeploys())

    async def pause(self, mean):
        """As long as it is until the next of things that happen at random."""
        until = time.monotonic() + self.random.expovariate(1 / mean)
        while not self.over and time.monotonic() < until:
            await asyncio.sleep(min(0.2, max(0.0, until - time.monotonic())))

    async def kills(self):
        """One after the other: the next comes when the node is there again."""
        while not self.over:
            await self.pause(self.pace)
            if not self.over:
                victim = self.random.choices(list(VICTIMS), list(VICTIMS.values()))[0]
                await {CONTAINER: self.container, KEEPER: self.keeper, DAEMON: self.daemon}[victim]()

    def begin(self, kind, function=None):
        event = Event(kind, function, time.monotonic())
        self.events.append(event)
        return event

    async def container(self):
        """Kills the first process of an instance that takes calls."""
        try:
            _, told = await self.node.ask("GET", "/v1/instances")
        except (Cut, Refused, Malformed) as error:
            self.violations.add("the control API does not answer", repr(error))
            return
        inits = self.node.inits()
        known = [one for one in told["instances"] if one["state"] == "ready" and one["id"] in inits]
        if not known:
            # All may have died with their keeper just now.
            return
        victim = self.random.choice(known)
        name = (victim["namespace"], victim["function"])
        function = next(f for f in self.functions if (f.namespace, f.name) == name)
        event = self.begin(CONTAINER, function)
        if inits[victim["id"]].is_alive():
            os.kill(inits[victim["id"]].pid, signal.SIGKILL)
            # As the kernel does with what it kills; until then a frozen process of version 1 does not die.
            inits[victim["id"]].thaw()
        event.ended = time.monotonic() + SEEN_S

    async def keeper(self):
        # It may not have been seen while another took its place.
        until = time.monotonic() + SEEN_S
        while not (keeper := self.node.keeper()) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if not keeper:
            self.violations.add("there is no keeper", self.node.log_end())
            return
        self.node.sample()
        before = self.node.successors()
        event = self.begin(KEEPER)
        os.kill(keeper.pid, signal.SIGKILL)
        # Who kills the daemon before that has killed both, and nobody has the sockets.
        await self.node.wait_for_successor(before)
        await self.node.wait_until_it_serves()
        event.ended = time.monotonic() + SEEN_S

    async def daemon(self):
        event = self.begin(DAEMON)
        self.node.kill()
        # The calls that were under way are cut now and not later.
        event.ended = time.monotonic() + 0.5
        await asyncio.sleep(0.05)
        await self.node.wait_until_it_serves()

    async def outages(self):
        while not self.over:
            await self.pause(8 * self.pace)
            if self.over:
                return
            event = self.begin(OUTAGE)
            self.registry.stop()
            await self.pause(self.random.uniform(*OUTAGE_S))
            await self.registry.start()
            event.ended = time.monotonic() + SEEN_S

    async def redeploys(self):
        """New revisions of functions, each of an image that was never pulled."""
        while not self.over:
            await self.pause(2 * self.pace)
            await self.registry.restock()
            if self.registry.stock and not self.over:
                await self.deploy(self.random.choice(self.functions), self.registry.stock.pop(0))

    async def deploy(self, function, image):
        begun = time.monotonic()
        try:
            status, told = await asyncio.wait_for(self.node.deploy(function, image), DEPLOY_PATIENCE_S)
        except (Cut, http.client.HTTPException):
            self.deploys.append(Deploy(function, begun, time.monotonic(), "cut"))
            return
        except (TimeoutError, Refused, Malformed) as error:
            self.violations.add("a deploy without an answer", f"{function.name}: {error!r}", begun)
            return
        error = told.get("error", {})
        name = "success" if status == 200 else error.get("kind", "nameless")
        if status == 200 and told["function"]["image"] != image:
            self.violations.add("a deploy of another image", str(told), begun)
        self.deploys.append(Deploy(function, begun, time.monotonic(), name, error.get("message", "")))
