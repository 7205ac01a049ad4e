"""The kinds of calls: what each sends, how its caller behaves, and what it must be answered."""

import json
from dataclasses import dataclass, field

from answers import EXITED, MEMORY, REPORTED, SUCCESS, TIME
from functions import DISK_MIB, TOO_LONG_S
from wire import Manner, request

FULL = ("ENOSPC", "EDQUOT")


@dataclass
class Call:
    id: str
    kind: str
    # `event` (by the invoke API) or `http` (by the function's own socket).
    way: str
    function: object
    request: bytes
    manner: Manner = field(default_factory=Manner)
    # The names that an answer may have, none of them for want of luck.
    names: tuple = (SUCCESS,)
    # Whether the body of a success is the right one.
    is_right: object = lambda body: True
    # Ends its instance, and so the calls that this works on beside it.
    harms: bool = False
    # Takes no longer than it must.
    quick: bool = False


def event_request(function, event):
    """A call by the invoke API of the function's platform."""
    text = json.dumps(event)
    if function.platform == "scf":
        body = {"FunctionName": function.name, "Namespace": function.namespace, "ClientContext": text}
        headers = [("X-TC-Action", "Invoke"), ("X-TC-Version", "2018-04-16")]
        return request("POST", "/", json.dumps(body).encode(), headers)
    if function.platform == "fc2":
        target = f"/2021-04-06/services/{function.namespace}/functions/{function.name}/invocations"
    else:
        target = f"/2023-03-30/functions/{function.name}/invocations"
    return request("POST", target, text.encode())


def event(id, function, kind, event, **more):
    return Call(id, kind, "event", function, event_request(function, event), **more)


def http(id, function, kind, target, method="GET", body=b"", **more):
    join = "&" if "?" in target else "?"
    sent = request(method, f"{target}{join}call={id}", body)
    return Call(id, kind, "http", function, sent, **more)


def echoed(id):
    return lambda body: json.loads(body)["event"] == {"call": id}


def seen(id):
    return lambda body: json.loads(body)["uri"].endswith(f"call={id}")


def is_full(body):
    """It came to the cap and no further, and was told so."""
    told = json.loads(body)
    return told["error"] in FULL and told["bytes"] <= DISK_MIB << 20


def is_full_or_emptied(body):
    """Another call in the instance may have begun the file anew meanwhile."""
    return json.loads(body)["error"] in (None, *FULL)


def plain_event(id, function, random):
    return event(id, function, "event", {"call": id}, is_right=echoed(id), quick=True)


def plain_http(id, function, random):
    return http(id, function, "http", "/request", is_right=seen(id), quick=True)


def posted(id, function, random):
    body = random.randbytes(random.randrange(1, 100_000))
    return http(id, function, "echo", "/echo", "POST", body, is_right=lambda got: got == body, quick=True)


def function_error(id, function, random):
    return event(id, function, "function error", {"call": id, "fail": True}, names=(REPORTED,))


def sleeps(id, function, random):
    ms = random.randrange(20, 400)
    return http(id, function, "sleep", f"/sleep/{ms}", is_right=lambda body: body == b"slept %d ms\n" % ms)


def streams(id, function, random):
    right = b"".join(b"chunk %d\n" % number for number in range(20))
    return http(id, function, "stream", "/stream?n=20&ms=10", is_right=lambda body: body == right)


def large(id, function, random):
    size = random.randrange(100_000, 3_000_000)
    return http(id, function, "large", f"/large?bytes={size}", is_right=lambda body: body == b"x" * size)


def fills(id, function, random):
    where = random.choice(["/", "/tmp"])
    target = f"/fill?dir={where}&mib={DISK_MIB + 1}"
    right = is_full if function.concurrency == 1 else is_full_or_emptied
    return http(id, function, f"fills {where}", target, is_right=right)


def out_of_memory(id, function, random):
    # On a busy host memory may take longer to fill than the call may last.
    names = (MEMORY if function.platform == "scf" else EXITED, TIME)
    if random.random() < 0.5:
        return event(id, function, "out of memory", {"call": id, "oom": True}, names=names, harms=True)
    return http(id, function, "out of memory", "/oom", names=names, harms=True)


def exits(id, function, random):
    if random.random() < 0.5:
        return event(id, function, "exit", {"call": id, "exit": 3}, names=(EXITED,), harms=True)
    return http(id, function, "exit", "/exit/3", names=(EXITED,), harms=True)


def too_long(id, function, random):
    late = {"call": id, "sleep_ms": TOO_LONG_S * 1000}
    return event(id, function, "too long", late, names=(TIME,))


def slow_reader(id, function, random):
    size = 1_500_000
    right = lambda body: body == b"x" * size  # noqa: E731
    manner = Manner(read_pause=random.uniform(0.01, 0.08))
    return http(id, function, "slow reader", f"/large?bytes={size}", manner=manner, is_right=right)


def slow_writer(id, function, random):
    body = random.randbytes(40_000)
    manner = Manner(write_pause=random.uniform(0.02, 0.15))
    right = lambda got: got == body  # noqa: E731
    return http(id, function, "slow writer", "/echo", "POST", body, manner=manner, is_right=right)


def never_reads(id, function, random):
    manner = Manner(never_reads_for=random.uniform(0.5, 3))
    return http(id, function, "never reads", "/large?bytes=3000000", manner=manner)


def hangs_up(id, function, random):
    manner = Manner(hangs_up_after=random.uniform(0.001, 0.2))
    return http(id, function, "hangs up", "/sleep/100", manner=manner)


def leaves_at_head(id, function, random):
    return http(id, function, "leaves at head", "/stream?n=50&ms=20", manner=Manner(leaves_at_head=True))


# How often each is made, in a thousand.
KINDS = [
    (plain_event, 300),
    (plain_http, 300),
    (posted, 100),
    (function_error, 30),
    (sleeps, 60),
    (streams, 40),
    (large, 30),
    (fills, 25),
    (out_of_memory, 12),
    (exits, 12),
    (too_long, 4),
    (slow_reader, 25),
    (slow_writer, 25),
    (never_reads, 7),
    (hangs_up, 20),
    (leaves_at_head, 10),
]


def choose(id, functions, random):
    """A call at random. Half of them are for a fifth of the functions, so that instances are shared."""
    busy = functions[: max(1, len(functions) // 5)]
    function = random.choice(busy if random.random() < 0.5 else functions)
    kinds, weights = zip(*KINDS)
    return random.choices(kinds, weights)[0](id, function, random)
