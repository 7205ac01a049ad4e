"""Calls the server of gRPC of the tests behind a target, and prints what came of each case as JSON."""

import json
import sys
import time

import grpc

TIMEOUT = 60


def tried(call):
    try:
        return call()
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


def echo(channel):
    method = channel.unary_unary("/test.Function/Echo")
    answer, call = method.with_call(b"\x00\xffhello", timeout=TIMEOUT, metadata=(("x-mine", "1"), ("x-fc-function-name", "forged")))
    return {
        "answer": answer.decode("latin-1"),
        "trailers": dict(call.trailing_metadata()),
        "headers": [key for key, _ in call.initial_metadata()],
    }


def large(channel):
    message = bytes(range(256)) * 8192
    return channel.unary_unary("/test.Function/Echo")(message, timeout=TIMEOUT) == message


def talk(channel):
    """Sends the next word when the answer to the one before has come."""
    answers = []

    def words():
        for word in (b"one", b"two", b"three"):
            yield word
            while len(answers) == 0 or answers[-1] != word.upper():
                time.sleep(0.005)

    for answer in channel.stream_stream("/test.Function/Talk")(words(), timeout=TIMEOUT):
        answers.append(answer)
    return [answer.decode() for answer in answers]


def at_once(channel):
    method = channel.unary_unary("/test.Function/Echo")
    calls = [method.future(str(number).encode(), timeout=TIMEOUT) for number in range(100)]
    return [int(call.result()) for call in calls] == list(range(100))


def begun(channel):
    came = []
    try:
        for answer in channel.unary_stream("/test.Function/BeginAndHang")(b"", timeout=TIMEOUT):
            came.append(answer.decode())
    except grpc.RpcError as error:
        return {"came": came, "code": error.code().name}
    return {"came": came, "code": "OK"}


def main(target, *cases):
    # Over a Unix socket a client makes a host's name of the path, which is none.
    options = (
        ("grpc.default_authority", "demo.function"),
        ("grpc.max_receive_message_length", 8 << 20),
        ("grpc.enable_retries", 0),
    )
    with grpc.insecure_channel(target, options) as channel:
        def unary(name, message=b""):
            return lambda: channel.unary_unary("/test.Function/" + name)(message, timeout=TIMEOUT).decode()

        known = {
            "echo": lambda: echo(channel),
            "large": lambda: large(channel),
            "count": lambda: [n.decode() for n in channel.unary_stream("/test.Function/Count")(b"5", timeout=TIMEOUT)],
            "join": lambda: channel.stream_unary("/test.Function/Join")(iter([b"a", b"b", b"c"]), timeout=TIMEOUT).decode(),
            "talk": lambda: talk(channel),
            "at_once": lambda: at_once(channel),
            "fail": unary("Fail"),
            "unknown": unary("Unknown"),
            "hang": unary("Hang"),
            "begun": lambda: begun(channel),
            "end": unary("End"),
        }
        print(json.dumps({case: tried(known[case]) for case in cases}))


if __name__ == "__main__":
    main(*sys.argv[1:])
