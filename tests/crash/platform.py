"""The platforms that outlive the killed process: one real HTTP server in the test's process, one log per world.

A world is one run of the story of `life`; its platforms do what platforms do: take posts, show them, hold some for
review, break now and then. The log is append-only and is what the database is held against in the end.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web


@dataclass(frozen=True)
class Entry:
    """One thing that reached a platform. ``effect``: what it changed; "" for a question or a refusal."""

    outlet: str
    verb: str  # deliver, withdraw, check, show, probe, look (a person), verdict (the platform's own)
    key: str = ""
    token: str = ""
    effect: str = ""  # live, review, doubled, gone
    status: int = 200


@dataclass
class World:
    """The platforms of one run. ``idempotent``: outlets where the same token twice leaves one item."""

    idempotent: frozenset[str]
    log: list[Entry] = field(default_factory=list)
    on_air: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (outlet, key) -> tokens shown
    review: dict[tuple[str, str], str] = field(default_factory=dict)  # (outlet, key) -> token
    decided: list[tuple[str, str]] = field(default_factory=list)  # (outlet, token) whose verdict is to be pushed
    # Called "before" and "after" the platform does what call number n asks; True: whoever asked is dead by now.
    while_serving: Callable[[str, int], bool] = lambda _edge, _nth: False
    served: list[str] = field(default_factory=list)  # the verb of each call

    def write(self, entry: Entry) -> None:
        self.log.append(entry)

    def went_live(self) -> set[tuple[str, str]]:
        """(outlet, key) of everything that a reader has ever seen."""
        return {(one.outlet, one.key) for one in self.log if one.effect == "live"}

    def effective_posts(self) -> Counter[tuple[str, str]]:
        """How often each (outlet, token) was posted with an effect, a second copy included."""
        return Counter(
            (one.outlet, one.token) for one in self.log
            if one.verb == "deliver" and one.effect in ("live", "review", "doubled")
        )  # fmt: skip

    # ── what goes wrong, each once
    def fault(self, outlet: str, verb: str, token: str, changed: int) -> tuple[int, bool]:
        """Status to answer instead of success (0: none) and whether the work is done all the same."""
        story, version = token.partition(".")[0], token.rpartition(".v")[2]
        seen = [one for one in self.log if one.outlet == outlet and one.verb == verb and one.token == token]
        shows = [one for one in self.log if one.outlet == outlet and one.verb == "show"]
        probes = [one for one in self.log if one.outlet == outlet and one.verb == "probe"]
        match verb, story, version:
            case "deliver", "water", "1" if not seen:
                return 503, False
            case "deliver", "bus", _ if not seen:
                return 401, False
            case "deliver", "water", "2" if not seen and outlet != "blind":
                return 502, True  # done, and the answer is lost
            case "probe", _, _ if not probes:
                return 401, False
            case "show", _, _ if not shows:
                return 503, False
            case "show", _, _ if 401 not in [one.status for one in shows]:
                return 401, False
            case "show", _, _ if changed > 1 and 422 not in [one.status for one in shows]:
                return 422, False
            case "show", _, _ if changed == 1 and 502 not in [one.status for one in shows]:
                return 502, True
        return 0, True

    # ── what a platform does
    def deliver(self, outlet: str, key: str, token: str) -> str:
        place = (outlet, key)
        shown = self.on_air.get(place, [])
        if token in shown or self.review.get(place) == token:
            if outlet in self.idempotent:
                return "same"
            self.on_air.setdefault(place, []).append(token)
            return "doubled"
        if key.startswith("bus."):
            self.review[place] = token
            return "review"
        self.on_air[place] = [token]
        return "live"

    def withdraw(self, outlet: str, key: str) -> str:
        had = self.on_air.pop((outlet, key), None), self.review.pop((outlet, key), None)
        return "gone" if any(had) else ""

    def state(self, outlet: str, token: str) -> str:
        key = token.rpartition(".v")[0]
        if token in self.on_air.get((outlet, key), []):
            return "live"
        return "review" if self.review.get((outlet, key)) == token else ""

    def show(self, outlet: str, tokens: dict[str, str]) -> None:
        before = {key: shown for (place, key), shown in self.on_air.items() if place == outlet}
        for key, token in tokens.items():
            if before.get(key) != [token]:
                self.on_air[outlet, key] = [token]
                self.write(Entry(outlet, "shown", key, token, "live"))
        for key in before.keys() - tokens.keys():
            del self.on_air[outlet, key]
            self.write(Entry(outlet, "shown", key, before[key][0], "gone"))

    def decide(self) -> list[tuple[str, str]]:
        """Let everything under review through; returns all verdicts so far, to be pushed (again)."""
        for (outlet, key), token in sorted(self.review.items()):
            self.on_air[outlet, key] = [token]
            self.decided.append((outlet, token))
            self.write(Entry(outlet, "verdict", key, token, "live"))
        self.review.clear()
        return self.decided


class Platforms:
    """The server. Each world is served below its own path."""

    def __init__(self) -> None:
        self._worlds: dict[str, World] = {}
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{world}/{outlet}/{verb}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def open(self, name: str, world: World) -> str:
        """Serve ``world``; returns its address."""
        self._worlds[name] = world
        return f"{self.url}/{name}"

    async def _answer(self, request: web.Request) -> web.Response:
        world = self._worlds[request.match_info["world"]]
        outlet, verb = request.match_info["outlet"], request.match_info["verb"]
        asked = json.loads(await request.read() or b"{}")
        if verb == "decide":
            return web.json_response({"verdicts": world.decide()})
        if verb == "look":
            token = asked["token"]
            state = world.state(outlet, token)
            world.write(Entry(outlet, "look", token.rpartition(".v")[0], token))
            return web.json_response({"state": state})
        world.served.append(verb)
        nth = len(world.served)
        if world.while_serving("before", nth):
            return web.json_response({})  # to nobody; nothing was done
        status, does = world.fault(outlet, verb, asked.get("token", ""), len(asked.get("changed", ())))
        answer = self._do(world, outlet, verb, asked, status, does=does)
        world.while_serving("after", nth)
        return answer

    def _do(
        self, world: World, outlet: str, verb: str, asked: dict[str, object], status: int, *, does: bool
    ) -> web.Response:
        key, token = str(asked.get("key", "")), str(asked.get("token", ""))
        effect, state = "", ""
        if does:
            match verb:
                case "deliver":
                    effect = world.deliver(outlet, key, token)
                    state = world.state(outlet, token)
                case "withdraw":
                    effect = world.withdraw(outlet, key)
                case "check":
                    state = world.state(outlet, token)
                case "show":
                    world.show(outlet, asked["items"])  # type: ignore[arg-type]
        world.write(Entry(outlet, verb, key, token, effect, status or 200))
        if status:
            return web.json_response({"message": "trouble"}, status=status)
        if verb == "check" and not state:
            return web.json_response({}, status=404)
        return web.json_response({"state": state})
