"""The platform of a run: one process that outlives all others, fails in every way of the fault table, and keeps books.

``python -m tests.chaos.platform LOG SEED`` serves on loopback, says ``ready PORT`` and then how much it has served.
Everything that it stores, removes or is asked about is written to its own log before it answers; `read` and `Books`
turn the log into what readers saw. Which call fails how is drawn from the seed, the outlet, the verb and the number of
the call.

A request that is read later than its caller can still be waiting is dropped. Without that, no absence would ever be
proof on a machine that is busy enough.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aiohttp import web

from tests.chaos.district import DEADLINE, kind_of
from tests.chaos.processes import die_with_parent

IDEMPOTENT = frozenset({"safe", "stubborn"})


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Fault:
    """One row of the fault table. ``does``: the work is done all the same. ``status`` 0: no answer in words."""

    name: str
    share: float  # of the calls that may meet it
    does: bool
    status: int = 0
    verbs: frozenset[str] = frozenset({"deliver", "withdraw", "check", "show"})
    retry_after: int = 0


_SENDS = frozenset({"deliver", "show"})
_NOT_A_LOOK = frozenset({"deliver", "show", "withdraw"})
FAULTS = (
    Fault("429", 0.02, False, 429, retry_after=40),
    Fault("202", 0.02, True, 202, frozenset({"deliver"})),
    Fault("204", 0.02, True, 204, _NOT_A_LOOK),
    Fault("301", 0.003, False, 301),
    Fault("401", 0.003, False, 401),
    Fault("403", 0.003, False, 403),
    # In a withdrawal or a look these say "it is not there", and a platform that lies there can't be served.
    Fault("404", 0.005, False, 404, _SENDS),
    Fault("410", 0.005, False, 410, _SENDS),
    Fault("409", 0.01, False, 409, _NOT_A_LOOK),
    Fault("422", 0.003, False, 422, frozenset({"withdraw"})),
    Fault("500", 0.01, False, 500),
    Fault("500 done", 0.01, True, 500),
    Fault("502 done", 0.01, True, 502),
    Fault("503", 0.02, False, 503),
    Fault("reset unread", 0.01, False),
    Fault("reset read", 0.01, False),
    Fault("answer lost", 0.02, True),
    Fault("slow drip", 0.01, True),
    Fault("truncated", 0.01, True),
    Fault("wrong type", 0.01, True),
    Fault("huge", 0.01, True),
)
REFUSED_IN_WORDS = frozenset({"429", "503", "301", "401", "403", "404", "410"})
DONE_IN_WORDS = frozenset({"", "202", "204"})
PROBE_FAILS = 0.05


def fault_of(seed: int, outlet: str, verb: str, nth: int, rate: float) -> Fault | None:
    """What the ``nth`` call of that verb on that outlet meets; ``rate`` scales every share."""
    drawn = random.Random(f"{seed}/{outlet}/{verb}/{nth}").random()
    if verb == "probe":
        return Fault("401", PROBE_FAILS, False, 401) if drawn < PROBE_FAILS * rate else None
    for fault in FAULTS:
        if verb in fault.verbs:
            drawn -= fault.share * rate
            if drawn < 0:
                return fault
    return None


# ── the books ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Entry:
    """One line of the log. ``effect``: what it changed for readers; "" for nothing."""

    outlet: str
    verb: str  # deliver, withdraw, check, show, probe; look (a person); shown, verdict (the platform's own)
    token: str = ""
    effect: str = ""  # stored, same, doubled, review, refused, gone
    fault: str = ""  # "" answered as it should be

    @property
    def key(self) -> str:
        return self.token.rpartition(".v")[0]


def read(log: Path) -> list[Entry]:
    with log.open() as lines:
        return [Entry(**json.loads(line)) for line in lines]


@dataclass
class Books:
    """What readers see, and ever saw, after some lines of the log."""

    on_air: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (outlet, key) -> tokens, copies too
    review: dict[tuple[str, str], str] = field(default_factory=dict)  # (outlet, key) -> token
    seen: set[tuple[str, str]] = field(default_factory=set)  # (outlet, token) that was ever on air
    refused: set[tuple[str, str]] = field(default_factory=set)  # (outlet, token) that a review refused
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)  # (outlet, token) -> posts that left an item

    def write(self, entry: Entry) -> None:
        place = (entry.outlet, entry.key)
        match entry.effect:
            case "stored":
                self.on_air[place] = [entry.token]
                self.review.pop(place, None)
            case "doubled":
                self.on_air.setdefault(place, []).append(entry.token)
            case "review":
                self.review[place] = entry.token
                self.refused.discard((entry.outlet, entry.token))
            case "refused":
                self.review.pop(place, None)
                self.refused.add((entry.outlet, entry.token))
                self.taken[entry.outlet, entry.token] = 0  # whoever sends it again sends a new one
            case "gone":
                self.on_air.pop(place, None)
                self.review.pop(place, None)
        if entry.effect in ("stored", "doubled"):
            self.seen.add((entry.outlet, entry.token))
        if entry.verb == "deliver" and entry.effect in ("stored", "doubled", "review"):
            self.taken[entry.outlet, entry.token] += 1

    def state(self, outlet: str, token: str) -> str:
        place = (outlet, token.rpartition(".v")[0])
        if token in self.on_air.get(place, ()):
            return "live"
        if self.review.get(place) == token:
            return "review"
        return "refused" if (outlet, token) in self.refused else ""


class Platform:
    """What it does when it is asked; every change goes through `_book`."""

    def __init__(self, log: Path, seed: int) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._seed = seed
        self._books = Books()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._looks: Counter[str] = Counter()
        self._closing = asyncio.Event()
        self._rate = 1.0
        self._served = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/quiet", self._quiet)
        app.router.add_post("/{outlet}/look", self._look)
        app.router.add_post("/{outlet}/{verb}", self._answer)
        return app

    def _book(self, entry: Entry) -> None:
        """Written before anybody is answered; a process that is never killed needs no more to keep it."""
        line = {name: value for name, value in asdict(entry).items() if value}
        os.write(self._log, (json.dumps(line) + "\n").encode())
        self._books.write(entry)

    async def _quiet(self, request: web.Request) -> web.Response:
        """Set how much goes wrong from now on (0: nothing). Also a way to know that all sent before was read."""
        self._rate = float((await request.json()).get("rate", self._rate))
        return web.json_response({})

    async def _look(self, request: web.Request) -> web.Response:
        """A person looks at the public side, and has the platform decide what is under its review."""
        outlet, token = request.match_info["outlet"], request.query["token"]
        self._book(Entry(outlet, "look", token))
        if self._books.state(outlet, token) == "review":
            self._decide(outlet, token)
        return web.json_response({"state": self._books.state(outlet, token)})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        outlet, verb, token = request.match_info["outlet"], request.match_info["verb"], request.query["token"]
        self._calls[outlet, verb] += 1
        fault = fault_of(self._seed, outlet, verb, self._calls[outlet, verb], self._rate)
        name = fault.name if fault else ""
        if name == "reset unread":
            self._book(Entry(outlet, verb, token, "", name))
            return self._break(request)
        asked = await request.json()
        if time.monotonic() - float(request.headers["x-sent"]) > DEADLINE.total_seconds() * 1.2:
            self._book(Entry(outlet, verb, token, "", "reset read"))
            return self._break(request)
        effect = ""
        if fault is None or fault.does:
            effect = self._do(outlet, verb, token, asked)
        self._book(Entry(outlet, verb, token, effect, name))
        self._served += 1
        print(f"served {self._served}", flush=True)
        return await self._say(request, fault, self._said(outlet, verb, token))

    # ── what it does
    def _do(self, outlet: str, verb: str, token: str, asked: dict[str, dict[str, str]]) -> str:
        match verb:
            case "deliver":
                return self._deliver(outlet, token)
            case "withdraw":
                place = (outlet, token.rpartition(".v")[0])
                return "gone" if place in self._books.on_air or place in self._books.review else ""
            case "check":
                self._looks[outlet + token] += 1
                if self._books.state(outlet, token) == "review" and self._looks[outlet + token] > 1:
                    self._decide(outlet, token)
            case "show":
                self._show(outlet, asked["items"])
        return ""

    def _deliver(self, outlet: str, token: str) -> str:
        kind = kind_of(outlet)
        if self._books.taken[outlet, token]:
            return "same" if kind in IDEMPOTENT else "doubled"
        return "review" if kind == "review" else "stored"

    def _decide(self, outlet: str, token: str) -> None:
        refuses = random.Random(f"{self._seed}/{outlet}/{token}").random() < 0.1
        self._book(Entry(outlet, "verdict", token, "refused" if refuses else "stored"))

    def _show(self, outlet: str, items: dict[str, str]) -> None:
        before = {key: tokens[0] for (place, key), tokens in self._books.on_air.items() if place == outlet}
        for token in sorted(set(items.values()) - set(before.values())):
            self._book(Entry(outlet, "shown", token, "stored"))
        for key in sorted(before.keys() - items.keys()):
            self._book(Entry(outlet, "shown", before[key], "gone"))

    # ── what it says
    def _said(self, outlet: str, verb: str, token: str) -> tuple[int, dict[str, str]]:
        state = self._books.state(outlet, token)
        return (200, {"state": state}) if state or verb != "check" else (404, {})

    async def _say(
        self, request: web.Request, fault: Fault | None, said: tuple[int, dict[str, str]]
    ) -> web.StreamResponse:
        status, body = said
        match fault.name if fault else "":
            case "":
                return web.json_response(body, status=status)
            case "202":
                return web.json_response({"state": "taken"}, status=202)
            case "204":
                return web.Response(status=204)
            case "reset read" | "answer lost":
                return self._break(request)
            case "wrong type":
                return web.Response(text="<html>维护中</html>", content_type="text/html")
            case "slow drip":
                return await self._drip(request)
            case "truncated":
                return await self._begin(request, 1000, b'{"state": "li')
            case "huge":
                return await self._begin(request, 1 << 24, bytes(1 << 22))
        assert fault is not None
        headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
        if fault.status == 301:
            headers["Location"] = "http://127.0.0.1:9/"
        return web.json_response({"message": "trouble"}, status=fault.status, headers=headers)

    async def _begin(self, request: web.Request, promised: int, given: bytes) -> web.StreamResponse:
        """Promise more than is given, and hang up."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = promised
        with suppress(ConnectionError):
            await response.prepare(request)
            await response.write(given)
        return self._break(request)

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        """A byte now and then, for longer than anybody waits."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 1000
        with suppress(ConnectionError):
            await response.prepare(request)
            for _ in range(20):
                await response.write(b" ")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), DEADLINE.total_seconds() / 10)
        return self._break(request)

    def _break(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


async def serve(log: Path, seed: int) -> None:
    runner = web.AppRunner(Platform(log, seed).app(), shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(f"ready {site.port}", flush=True)
    await asyncio.Event().wait()


def kinds(entries: list[Entry]) -> Iterator[tuple[str, int]]:
    """How often each fault was met."""
    yield from sorted(Counter(one.fault for one in entries if one.fault).items())


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
