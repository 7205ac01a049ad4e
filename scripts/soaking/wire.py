"""One HTTP/1.1 request over a Unix socket, by callers of all manners: quick, slow, and gone before the end."""

import asyncio
import socket
from dataclasses import dataclass, field

# Bytes of an answer that are read at once.
CHUNK = 64 * 1024
LONGEST_HEAD = 256 * 1024


class Ended(Exception):
    """Nothing more comes."""


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


class Stream:
    """What comes over a socket. Asyncio's own streams forget what has come when a write fails."""

    def __init__(self, peer):
        self.peer, self.buffer, self.loop = peer, b"", asyncio.get_running_loop()

    async def more(self, size=CHUNK):
        try:
            part = await self.loop.sock_recv(self.peer, size)
        except ConnectionError as error:
            raise Ended from error
        if not part:
            raise Ended
        self.buffer += part

    async def until(self, end):
        while end not in self.buffer:
            if len(self.buffer) > LONGEST_HEAD:
                raise Malformed("a head without an end")
            await self.more()
        found, _, self.buffer = self.buffer.partition(end)
        return found

    async def exactly(self, size, pause):
        parts = []
        while size > 0:
            if not self.buffer:
                await self.more(min(size, CHUNK))
            part, self.buffer = self.buffer[:size], self.buffer[size:]
            parts.append(part)
            size -= len(part)
            await asyncio.sleep(pause)
        return b"".join(parts)

    async def at_end(self):
        try:
            await self.more(1)
        except Ended:
            return True
        return False


async def exchange(path, request, manner=Manner()):
    """Sends the bytes of a request, which must ask for `Connection: close`, and gives its answer."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(peer, path)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise Refused(str(error)) from error
        sending = asyncio.create_task(send(peer, request, manner))
        try:
            return await talk(Stream(peer), sending, manner)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def talk(stream, sending, manner):
    answer = None
    try:
        if manner.never_reads_for or manner.hangs_up_after:
            await sending
            await asyncio.sleep(manner.never_reads_for or manner.hangs_up_after)
            raise Left
        # It may be there before the whole request is: `echo` sends back what it has.
        answer = head(await stream.until(b"\r\n\r\n"))
        if manner.leaves_at_head:
            raise Left(answer)
        answer.body = await read_body(stream, answer, manner.read_pause)
    except Ended as error:
        raise Cut(error, answer) from error
    if stream.buffer or not await stream.at_end():
        raise Malformed("there is more behind the end of the answer")
    return answer


async def send(peer, request, manner):
    """Sends a request, or as much of it as is wanted."""
    step = max(1, len(request) // 8) if manner.write_pause else len(request)
    for place in range(0, len(request), step):
        try:
            await asyncio.get_running_loop().sock_sendall(peer, request[place : place + step])
        except ConnectionError:
            return
        await asyncio.sleep(manner.write_pause)


def head(text):
    lines = text.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or words[0] != "HTTP/1.1" or not words[1].isdigit():
        raise Malformed(f"no status line: {lines[0]!r}")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    return Answer(int(words[1]), {name.lower(): value.strip() for name, value in pairs})


async def read_body(stream, answer, pause):
    if "content-length" in answer.headers:
        return await stream.exactly(int(answer.headers["content-length"]), pause)
    if answer.headers.get("transfer-encoding", "").lower() != "chunked":
        raise Malformed(f"a body without a length: {answer.headers}")
    parts = []
    while True:
        size = int((await stream.until(b"\r\n")).split(b";")[0], 16)
        parts.append(await stream.exactly(size, pause))
        if await stream.exactly(2, 0) != b"\r\n":
            raise Malformed("a chunk without an end")
        if size == 0:
            return b"".join(parts)


def request(method, target, body=b"", headers=()):
    """The bytes of a request that has its connection to itself."""
    lines = [f"{method} {target} HTTP/1.1", "Host: soak", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
