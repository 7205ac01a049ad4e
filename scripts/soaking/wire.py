"""One HTTP/1.1 request over a Unix socket, by callers of all manners: quick, slow, and gone before the end."""

import asyncio
from dataclasses import dataclass, field

# Bytes of an answer that are read at once, and that the stream keeps at most twice.
CHUNK = 64 * 1024


class Refused(Exception):
    """Nobody listens."""


class Cut(Exception):
    """The connection ended before the answer had; with the head of the answer, where that had come."""

    def __init__(self, error, answer=None):
        super().__init__(repr(error))
        self.answer = answer


class Left(Exception):
    """The caller went away itself; with the head of the answer, where that had come."""

    def __init__(self, answer=None):
        super().__init__("left")
        self.answer = answer


class Malformed(Exception):
    """What came is no answer, or more than one."""


@dataclass
class Manner:
    """How a caller behaves; pauses in seconds."""

    write_pause: float = 0.0
    read_pause: float = 0.0
    # Goes after so long without having read anything.
    never_reads_for: float = 0.0
    # Goes so long after it has sent its request.
    hangs_up_after: float = 0.0
    # Goes when the head of the answer has come.
    leaves_at_head: bool = False


@dataclass
class Answer:
    status: int
    headers: dict = field(default_factory=dict)
    body: bytes = b""


async def exchange(path, request, manner=Manner()):
    """Sends the bytes of a request, which must ask for `Connection: close`, and gives its answer."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=CHUNK)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise Refused(str(error)) from error
    answer = None
    sending = asyncio.create_task(send(writer, request, manner))
    try:
        if manner.never_reads_for or manner.hangs_up_after:
            await sending
            await asyncio.sleep(manner.never_reads_for or manner.hangs_up_after)
            raise Left
        # It may be there before the whole request is: `echo` sends back what it has.
        answer = await read_head(reader)
        if manner.leaves_at_head:
            raise Left(answer)
        answer.body = await read_body(reader, answer, manner.read_pause)
        if await reader.read(1):
            raise Malformed("there is more behind the end of the answer")
        return answer
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Cut(error, answer) from error
    finally:
        sending.cancel()
        writer.transport.abort()


async def send(writer, request, manner):
    step = max(1, len(request) // 8) if manner.write_pause else len(request)
    for place in range(0, len(request), step):
        writer.write(request[place : place + step])
        try:
            await writer.drain()
        except ConnectionError:
            return
        await asyncio.sleep(manner.write_pause)


async def read_head(reader):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise Malformed("a head without an end") from error
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or words[0] != "HTTP/1.1" or not words[1].isdigit():
        raise Malformed(f"no status line: {lines[0]!r}")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return Answer(int(words[1]), {name.lower(): value.strip() for name, value in pairs})


async def read_body(reader, answer, pause):
    if "content-length" in answer.headers:
        return await read_exactly(reader, int(answer.headers["content-length"]), pause)
    if answer.headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.read()
    parts = []
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        parts.append(await read_exactly(reader, size, pause))
        if await reader.readexactly(2) != b"\r\n":
            raise Malformed("a chunk without an end")
        if size == 0:
            return b"".join(parts)


async def read_exactly(reader, size, pause):
    parts = []
    while size > 0:
        part = await reader.readexactly(min(size, CHUNK))
        parts.append(part)
        size -= len(part)
        await asyncio.sleep(pause)
    return b"".join(parts)


def request(method, target, body=b"", headers=()):
    """The bytes of a request that has its connection to itself."""
    lines = [f"{method} {target} HTTP/1.1", "Host: soak", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
