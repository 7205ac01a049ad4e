"""Whether what was seen is what may be: every answer explained, every call billed once, nothing left."""

import time
from collections import Counter, defaultdict

import answers
import host
from callers import ANSWERED, BROKEN_OFF, CUT, LEFT
from faults import CONTAINER, DAEMON, KEEPER, OUTAGE, SEEN_S, VICTIMS, Event

# What a deploy may be told, by what was going on.
OF_DEPLOYS = {
    OUTAGE: ("registry_unreachable", "registry_failed"),
    KEEPER: ("keeper_lost", "start_failed"),
    CONTAINER: ("start_failed",),
}
LEFT_BEHIND_PATIENCE_S = 120
# How long a call that nobody waits for any more may go on in its instance.
GOES_ON_S = 60
# A call that ends its instance.
HARM = "harm"


class Violations:
    """What must not have been, with the evidence."""

    def __init__(self):
        self.found, self.begun = [], time.monotonic()

    def add(self, what, evidence, when=None):
        seconds = (when or time.monotonic()) - self.begun
        self.found.append((what, f"at {seconds:.2f} s: {evidence}"))
        if len(self.found) <= 20:
            print(f"VIOLATION {what} {self.found[-1][1]}", flush=True)


def harms(results):
    """The calls that end the instance which works on them, and so the others in it."""
    for result in results:
        if result.call.harms or result.said and result.said.name == answers.TIME:
            # One that is cut by a kill of the daemon goes on in its instance, as long as it takes.
            late = SEEN_S if result.how == ANSWERED else GOES_ON_S
            yield Event(HARM, result.call.function, result.begun, result.ended + late)


def check_answers(results, events, violations):
    """Each call has an answer that its own kind or a fault of that time explains."""
    everywhere = [event for event in events if event.function is None]
    by_function = defaultdict(list)
    for event in [*events, *harms(results)]:
        if event.function:
            by_function[event.function].append(event)
    for result in results:
        if result.how == LEFT or result.how == ANSWERED and result.said.name in result.call.names:
            continue
        events_here = everywhere + by_function[result.call.function]
        near = {event.kind for event in events_here if event.meets(result.begun, result.ended)}
        killed = bool(near & {CONTAINER, KEEPER, HARM})
        if result.how in (CUT, BROKEN_OFF):
            # Only who had a part of the answer may be left with it when the instance is killed.
            if DAEMON not in near and not (result.how == BROKEN_OFF and killed):
                violations.add("a call without an answer", result.shown, result.begun)
        elif not killed or result.said.name not in answers.OF_A_KILL:
            violations.add("an answer that nothing explains", result.shown, result.begun)


def check_deploys(deploys, events, violations):
    for deploy in deploys:
        if deploy.name == "success":
            continue
        near = {event.kind for event in events if event.meets(deploy.begun, deploy.ended, deploy.function)}
        allowed = {name for kind in near for name in OF_DEPLOYS.get(kind, ())}
        allowed |= {"cut"} if DAEMON in near else set()
        if deploy.name not in allowed:
            text = f"{deploy.function.name}: {deploy.name} {deploy.text}; near were {sorted(near)}"
            violations.add("a deploy's end that nothing explains", text, deploy.begun)


def has_record(result):
    return result.how == ANSWERED and result.said.name not in answers.WITHOUT_INSTANCE


def check_records(results, records, events, violations):
    """Each call with a whole answer has one record; who was cut or has gone has one at most."""
    for number, record in enumerate(records, 1):
        if record["sequence"] != number:
            violations.add("records' numbers have a gap", f"{record['sequence']} is not {number}")
            break
    billed = Counter(r["request_id"] for r in records if r["kind"] == "invocation")
    twice = [id for id, count in billed.items() if count > 1]
    if twice:
        violations.add("calls with several records", f"{len(twice)}, such as {twice[:5]}")
    kills = [event for event in events if event.kind == DAEMON]
    known = set()
    for result in results:
        request_id = result.said.request_id if result.said else None
        if request_id and result.how == ANSWERED and request_id in known:
            violations.add("a request's id twice", result.shown, result.begun)
        known.add(request_id)
        here = billed.get(request_id, 0)
        if has_record(result) and here != 1:
            violations.add("an answered call without a record", result.shown, result.begun)
        if result.how == ANSWERED and not has_record(result) and here:
            violations.add("a record of a call that reached no instance", result.shown, result.begun)
        cut = any(kill.meets(result.begun, result.ended + SEEN_S) for kill in kills)
        met_instance = request_id and result.said.name not in answers.WITHOUT_INSTANCE
        if result.how in (LEFT, BROKEN_OFF) and met_instance and here != 1 and not cut:
            violations.add("no record of a call that ended early", result.shown, result.begun)
    check_others(results, records, known, violations)


def check_others(results, records, known, violations):
    """Records that no caller knows are of calls that were cut or whose callers left before the head."""
    allowed = Counter(
        (r.call.function.namespace, r.call.function.name) for r in results if r.how != ANSWERED and not r.said
    )
    others = Counter(
        (r["namespace"], r["function"])
        for r in records
        if r["kind"] == "invocation" and r["request_id"] not in known
    )
    for function, count in others.items():
        if count > allowed[function]:
            text = f"{function}: {count} records of unknown calls, {allowed[function]} calls without an end"
            violations.add("records of calls that nobody made", text)


def check_sums(usage, records, violations):
    told = sum(function["invocations"] for function in usage["functions"])
    kept = sum(1 for record in records if record["kind"] == "invocation")
    if told != kept or usage["missing"] or usage["damages"] or usage["meter"]["failing"]:
        violations.add("the sums are wrong", f"{kept} records, told are {usage}")


def check_faults(events, pace, seconds, violations):
    """A run in which nothing goes wrong shows nothing: each kind is there, unless it was too short for it."""
    counted = Counter(event.kind for event in events)
    for kind, share in VICTIMS.items():
        # Five were to be expected.
        if not counted[kind] and share / 100 * seconds / (4 * pace) > 5:
            violations.add("a fault that did not happen", kind)


def check_quiet(functions, violations):
    for function in functions:
        left = {name: function["instances"][name] for name in ("running", "waiting", "leaving")}
        if any(left.values()):
            violations.add("calls that do not end", f"{function['name']}: {left}")


def check_log(log, violations):
    lines = log.read_text(errors="replace").splitlines()
    for line in lines:
        if "panicked" in line or "internal_error" in line:
            violations.add("a panic", line)


def check_nothing_is_left(before, violations):
    """What is new now must be gone soon; what others make meanwhile is theirs."""
    new = host.snapshot() - before
    until = time.monotonic() + LEFT_BEHIND_PATIENCE_S
    while new and time.monotonic() < until:
        time.sleep(0.5)
        new &= host.snapshot()
    for line in sorted(new):
        violations.add("left behind", line)
