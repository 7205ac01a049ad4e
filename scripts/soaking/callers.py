"""Callers, each with one call at a time, and what has become of their calls."""

import asyncio
import time
from dataclasses import dataclass

import answers
import calls
from wire import Cut, Left, Malformed, Refused, exchange

# Seconds within which a call must be over, waits for restarts and starts included.
PATIENCE_S = 120
# A caller's longest pause between two calls.
PAUSE_S = 0.04

ANSWERED, CUT, LEFT = "answered", "cut", "left"
# Its head had come: there is no other way to tell that the rest does not.
BROKEN_OFF = "broken off"


@dataclass
class Result:
    """What became of a call."""

    call: object
    begun: float
    ended: float
    how: str
    said: object = None

    @property
    def shown(self):
        call, said = self.call, self.said
        told = f"{said.name}: {said.text} ({said.request_id})" if said else ""
        took = self.ended - self.begun
        to = f"{call.function.name} ({call.function.platform}, by {call.way})"
        return f"{call.id} {call.kind} to {to} {self.how} {told} after {took:.2f} s"


class Callers:
    def __init__(self, node, functions, count, random, violations):
        self.node, self.functions, self.count = node, functions, count
        self.random, self.violations = random, violations
        self.results, self.number, self.over = [], 0, False

    async def run(self):
        await asyncio.gather(*(self.one() for _ in range(self.count)))

    async def one(self):
        while not self.over:
            await self.call(self.next())
            await asyncio.sleep(self.random.uniform(0, PAUSE_S))

    def next(self):
        self.number += 1
        return calls.choose(f"c{self.number}", self.functions, self.random)

    async def call(self, call):
        """Makes one call and notes the one thing that became of it."""
        path = self.node.socket if call.way == "event" else self.node.function_socket(call.function)
        begun = time.monotonic()
        try:
            how, answer = await asyncio.wait_for(self.outcome(path, call), PATIENCE_S)
        except (TimeoutError, Refused, Malformed) as error:
            what = {TimeoutError: "no answer", Refused: "a call was refused"}.get(type(error), "no HTTP answer")
            self.violations.add(what, f"{call.id} {call.kind} to {path}: {error!r}", begun)
            return
        result = Result(call, begun, time.monotonic(), how)
        try:
            if answer:
                result.said = answers.read(call.function.platform, call.way, answer, whole=how == ANSWERED)
        except (answers.Nameless, KeyError, ValueError, AttributeError) as error:
            self.violations.add("an answer that names no fault", f"{result.shown}: {error!r}", begun)
            return
        self.results.append(result)
        if how == ANSWERED:
            self.look_at(result)
        # There are many of them.
        call.request, call.is_right = b"", None
        if result.said:
            result.said.body = b""

    async def outcome(self, path, call):
        try:
            return ANSWERED, await exchange(path, call.request, call.manner)
        except Cut as cut:
            return (BROKEN_OFF if cut.answer else CUT), cut.answer
        except Left as left:
            return LEFT, left.answer

    def look_at(self, result):
        said = result.said
        if said.name == answers.SUCCESS and not self.is_right(result):
            self.violations.add("a wrong answer", f"{result.shown}: {said.body[:300]!r}", result.begun)
        if not said.request_id:
            self.violations.add("an answer without a request's id", result.shown, result.begun)

    def is_right(self, result):
        try:
            return answers.SUCCESS in result.call.names and result.call.is_right(result.said.body)
        except (ValueError, KeyError, TypeError):
            return False
