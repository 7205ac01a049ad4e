"""A server of gRPC for the tests, without generated code: its messages are bytes."""

import os
import time
from concurrent import futures

import grpc


def echo(request, context):
    """Says back what it got, and in trailers what metadata came with it."""
    seen = dict(context.invocation_metadata())
    context.set_trailing_metadata(
        (("x-seen", seen.get("x-mine", "")), ("x-function", seen.get("x-fc-function-name", "")))
    )
    return request


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def join(requests, context):
    return b",".join(requests)


def talk(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")


def hang(request, context):
    time.sleep(3600)


def begin_and_hang(request, context):
    yield b"begun"
    time.sleep(3600)


def end(request, context):
    os._exit(3)


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "BeginAndHang": grpc.unary_stream_rpc_method_handler(begin_and_hang),
    "End": grpc.unary_unary_rpc_method_handler(end),
}

if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Function", METHODS),))
    server.add_insecure_port("0.0.0.0:" + os.environ.get("FC_CUSTOM_LISTEN_PORT", "9000"))
    server.start()
    print("listens", flush=True)
    server.wait_for_termination()
