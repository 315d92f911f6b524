"""The platform that everybody posts to: a process of its own on loopback, as small as HTTP allows.

``python -m tests.bench.receiver`` prints its port and serves until its standard input ends, so that it can't outlive
whoever started it. ``POST /…`` is an item: answered with a platform's JSON, noted by its idempotency key; below
``/wait/<milliseconds>/`` it is answered that much later. ``GET /posts`` and ``GET /seen`` give what came since
``POST /forget``.

Times are CLOCK_MONOTONIC, which all processes of one machine share.
"""

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class _Platform(asyncio.Protocol):
    """One connection: parses just enough HTTP to answer what our clients send (a length, no chunks)."""

    first: dict[str, float] = {}  # noqa: RUF012  # idempotency key -> when the first byte of its request came
    posts = 0
    connections = 0
    open_now = 0
    open_most = 0

    def __init__(self) -> None:
        self._kept = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _Platform.connections += 1
        _Platform.open_now += 1
        _Platform.open_most = max(_Platform.open_most, _Platform.open_now)

    def connection_lost(self, _why: Exception | None) -> None:
        _Platform.open_now -= 1

    def data_received(self, data: bytes) -> None:
        if not self._kept:
            self._began = time.monotonic()
        self._kept += data
        while (end := self._kept.find(b"\r\n\r\n")) >= 0:
            head = self._kept[:end].decode("latin-1").split("\r\n")
            named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            whole = end + 4 + int(named.get("content-length", "0"))
            if len(self._kept) < whole:
                return
            self._kept = self._kept[whole:]
            self._answer(head[0], named)
            self._began = time.monotonic()

    def _answer(self, request: str, named: dict[str, str]) -> None:
        verb, path, _ = request.split(" ", 2)
        closing = named.get("connection", "").lower() == "close"
        kind = type(self)
        if verb == "GET" and path == "/posts":
            self._say({"posts": kind.posts}, closing)
            return
        if verb == "GET":
            self._say({"posts": kind.posts, "connections": kind.connections, "open_most": kind.open_most,
                       "first": kind.first}, closing)  # fmt: skip
            return
        if path == "/forget":
            kind.first, kind.posts, kind.connections, kind.open_most = {}, 0, 0, kind.open_now
            self._say({}, closing)
            return
        token = named.get("idempotency-key", "")
        kind.posts += 1
        kind.first.setdefault(token, self._began)
        said = {
            "code": 0,
            "message": "ok",
            "data": {"id": token, "url": f"https://platform.example/a/{token}", "status": "published"},
        }
        if path.startswith("/wait/"):
            asyncio.get_running_loop().call_later(int(path.split("/")[2]) / 1000, self._say, said, closing)
        else:
            self._say(said, closing)

    def _say(self, what: dict[str, Any], closing: bool) -> None:
        body = json.dumps(what).encode()
        last = b"Connection: close\r\n" if closing else b""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
            % (len(body), last, body)
        )
        if closing:
            self._transport.close()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Platform, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1() or over.set())
    async with server:
        await over.wait()


@dataclass(frozen=True)
class Seen:
    """What reached the platform."""

    posts: int
    connections: int
    open_most: int  # connections at the same time
    first: dict[str, float]  # idempotency key -> monotonic seconds of its first byte


@dataclass(frozen=True)
class Receiver:
    """The running platform, as who measures sees it."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Start counting anew."""
        self._ask("POST", "/forget")

    def seen(self) -> Seen:
        """What came since `forget`."""
        return Seen(**self._ask("GET", "/seen"))

    def posts(self) -> int:
        """How many came since `forget`."""
        return int(self._ask("GET", "/posts")["posts"])

    def _ask(self, verb: str, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(verb, path, headers={"Connection": "close"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A platform of one's own while the block lasts."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.receiver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Receiver(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(timeout=10)


if __name__ == "__main__":
    asyncio.run(_serve())
