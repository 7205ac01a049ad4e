"""What an answer says: that it worked, or whose fault it was that it did not."""

import json
from dataclasses import dataclass

SUCCESS = "success"
REPORTED = "reported by the function"
EXITED = "process exited"
MEMORY = "out of memory"
TIME = "time limit"
BROKEN = "connection to the function broke"
NOT_STARTED = "no instance came up"
THROTTLED = "throttled"
# Where no instance was there to work on the call: no record of it.
WITHOUT_INSTANCE = (NOT_STARTED, THROTTLED)
# What a call may be told when its instance is killed from outside.
OF_A_KILL = (EXITED, MEMORY, BROKEN, NOT_STARTED)

SCF = {405: NOT_STARTED, 432: THROTTLED, 433: TIME, 434: MEMORY, 439: EXITED, 443: BROKEN, 445: NOT_STARTED}
SCF |= {446: NOT_STARTED, 449: NOT_STARTED, 450: NOT_STARTED, 500: NOT_STARTED}
FC = {"FunctionNotStarted": NOT_STARTED, "CAExited": NOT_STARTED, "InternalServerError": NOT_STARTED}
FC |= {"ResourceExhausted": THROTTLED}
# By the status of an answer whose body is not read.
OF_HEADS = {412: NOT_STARTED, 429: THROTTLED, **SCF}


class Nameless(Exception):
    """An answer that is neither what was asked for nor names a fault."""


@dataclass
class Said:
    name: str
    # As the platform writes it.
    text: str
    request_id: str
    # Of the function itself.
    body: bytes


def read(platform, way, answer, whole=True):
    """What the answer to a call says, or its head alone. An HTTP answer of the function's own is a success."""
    if not whole:
        headers = answer.headers
        request_id = headers.get("x-fc-request-id") or headers.get("x-scf-request-id", "")
        # What the functions that are left early answer themselves is 200.
        name = OF_HEADS.get(answer.status, SUCCESS)
        return Said(name, "head alone", request_id, b"")
    if platform == "scf":
        return scf_event(answer) if way == "event" else scf_http(answer)
    return fc(answer, way)


def fields(body):
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def fc(answer, way):
    request_id = answer.headers.get("x-fc-request-id", "")
    kind, body = answer.headers.get("x-fc-error-type"), fields(answer.body)
    if kind == "HandledInvocationError":
        return Said(REPORTED, kind, request_id, answer.body)
    if kind:
        text = body.get("errorMessage", "")
        name = EXITED if text.startswith("Process exited") else TIME if text.startswith("Function timed") else None
        return Said(named(name, answer), text, request_id, answer.body)
    code = body.get("Code") or body.get("ErrorCode")
    if answer.status >= 400 and code:
        text = f"{code}: {body.get('Message') or body.get('ErrorMessage')}"
        return Said(named(FC.get(code), answer), text, request_id, answer.body)
    if way == "event" and answer.status != 200:
        raise Nameless(shown(answer))
    return Said(SUCCESS, "", request_id, answer.body)


def scf_http(answer):
    request_id, body = answer.headers.get("x-scf-request-id", ""), fields(answer.body)
    if set(body) == {"errorMessage", "statusCode"} and body["statusCode"] == answer.status:
        return Said(named(SCF.get(answer.status), answer), body["errorMessage"], request_id, answer.body)
    return Said(SUCCESS, "", request_id, answer.body)


def scf_event(answer):
    result = fields(answer.body).get("Response", {}).get("Result")
    if answer.status != 200 or result is None:
        raise Nameless(shown(answer))
    request_id, body = result["FunctionRequestId"], result["RetMsg"].encode()
    if result["InvokeResult"] == 0:
        return Said(SUCCESS, "", request_id, body)
    if result["InvokeResult"] == 1 and "errorCode" not in fields(body):
        return Said(REPORTED, result["ErrMsg"], request_id, body)
    error = fields(body)
    return Said(named(SCF.get(error.get("statusCode")), answer), error["errorMessage"], request_id, body)


def named(name, answer):
    if name is None:
        raise Nameless(shown(answer))
    return name


def shown(answer):
    return f"{answer.status} {answer.headers} {answer.body[:500]!r}"
