"""The contract proves itself: right channels pass every law, and each broken one fails exactly the law it breaks."""

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, ConfigDict, SecretStr

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    ChannelError,
    Finding,
    Inbound,
    InDoubt,
    Level,
    Misconfigured,
    Payload,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    Retryable,
    Severity,
    Shelf,
    StoryView,
    Task,
    Traits,
    Verdict,
)
from distributor.testing import MOST_TAKEN_BYTES, ChannelContract, Outlet, ScriptedChannel

PASSWORD = "open-sesame-8"


# ── three right channels ────────────────────────────────────────────────────────────────────────────────────
class NoteConfig(ChannelConfig):
    profile_fields = frozenset({"lead_in"})
    lead_in: str = ""
    address: str = ""
    password: SecretStr = SecretStr("")


class NotePayload(Payload):
    title: str
    text: str


class Noting(Channel[NoteConfig, NotePayload]):
    """What the right channels have in common: title and text as they are."""

    kind = "sharp"
    Config = NoteConfig
    Payload = NotePayload

    def validate(self, story: StoryView) -> list[Finding]:
        half = any("\ud800" <= character <= "\udfff" for character in story.title + story.text)
        return [Finding(Severity.ERROR, "half", words="有半个字符。")] if half else []

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        return Rendition(NotePayload(title=self.config.lead_in + story.title, text=story.text))

    def preview(self, rendition: Rendition[NotePayload]) -> Artefact:
        return Artefact("text/plain", f"{rendition.payload.title}\n{rendition.payload.text}".encode())


class Board(Noting):
    """A shelf: one file with all items."""

    traits = Traits(idempotent=True, shelf=20)

    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        items = [one.rendition.payload.model_dump(mode="json") for one in shelf.items]
        self.tools.folder.write("board.json", json.dumps({"items": items}, ensure_ascii=False).encode())
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)


class Drawer(Noting):
    """Items: one file each."""

    traits = Traits(idempotent=True, checks=True)

    def name(self, task: Task[NotePayload]) -> str:
        return f"{task.key}.json"

    async def deliver(self, task: Task[NotePayload]) -> Receipt:
        self.tools.folder.write(self.name(task), task.rendition.payload.model_dump_json().encode())
        return Receipt(Proof.LIVE, Level.WRITTEN, at=task.now)

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        self.tools.folder.remove(self.name(task))
        return Receipt(Proof.GONE, Level.WRITTEN, at=task.now)

    async def check(self, task: Task[NotePayload]) -> Receipt:
        there = self.tools.folder.read(self.name(task)) is not None
        return Receipt(Proof.LIVE if there else Proof.GONE, Level.OBSERVED, at=task.now)


class Wall(Noting):
    """Items on an HTTP outlet. ``meaning`` is its table of statuses; what is left out there means success."""

    traits = Traits(idempotent=True, checks=True)
    cap_bytes: ClassVar[int] = 65536
    meaning: ClassVar[dict[int, type[ChannelError]]] = {
        **dict.fromkeys((408, 425, 429, 503), Retryable),
        **dict.fromkeys((500, 502, 504, 409), InDoubt),
        **dict.fromkeys((401, 403, 301, 302, 307, 308), Misconfigured),
        **dict.fromkeys((400, 404, 410, 413, 422), Permanent),
    }

    async def probe(self) -> None:
        await self.call("GET", "/", seconds=5)

    async def deliver(self, task: Task[NotePayload]) -> Receipt:
        await self.call("PUT", f"/items/{task.key}", seconds=self.seconds(task), payload=task.rendition.payload)
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, at=task.now)

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        await self.call("DELETE", f"/items/{task.key}", seconds=self.seconds(task), gone=True)
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now)

    async def check(self, task: Task[NotePayload]) -> Receipt:
        try:
            there = await self.call("GET", f"/items/{task.key}", seconds=self.seconds(task), gone=True)
        except Permanent as error:  # the question was refused, not the item
            raise InDoubt(error.code) from error
        return Receipt(Proof.LIVE if there else Proof.GONE, Level.OBSERVED, at=task.now)

    def seconds(self, task: Task[NotePayload]) -> float:
        return (task.deadline - task.now).total_seconds()

    async def call(
        self, method: str, path: str, *, seconds: float, payload: BaseModel | None = None, gone: bool = False
    ) -> bool:
        """True when the outlet has it, False when ``gone`` is asked for and it hasn't."""
        sent = payload.model_dump(mode="json") if payload else None
        try:
            async with self.tools.http.request(
                method, self.config.address + path, json=sent, allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
                headers={"Authorization": f"Bearer {self.config.password.get_secret_value()}"},
            ) as response:  # fmt: skip
                if gone and response.status in (404, 410):
                    return False
                if response.status in self.meaning:
                    error = self.meaning[response.status](f"http_{response.status}")
                    if isinstance(error, Retryable) and "Retry-After" in response.headers:
                        error.after = self.pause(response.headers)
                    raise error
                body = await self.body(response)
        except aiohttp.ClientConnectorError as error:
            raise Retryable("unreachable") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise InDoubt("no_answer") from error
        if body[:1] != b"{":
            raise InDoubt("answer_not_json")
        return True

    def pause(self, headers: Mapping[str, str]) -> timedelta:
        """Seconds, or a date by the outlet's own clock."""
        said = headers["Retry-After"]
        if said.isdigit():
            return timedelta(seconds=int(said))
        return parsedate_to_datetime(said) - parsedate_to_datetime(headers["Date"])

    async def body(self, response: aiohttp.ClientResponse) -> bytes:
        body = b""
        while chunk := await response.content.read(self.cap_bytes):
            body += chunk
            if len(body) > self.cap_bytes:
                response.close()
                raise InDoubt("answer_too_long")
        return body


class SharpContract(ChannelContract):
    secrets = (PASSWORD,)

    def config(self, url: str) -> dict[str, Any]:
        return {"lead_in": "【云川】", "address": url, "password": PASSWORD}


class BoardContract(SharpContract):
    channel = Board

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        data = outlet.folder.read("board.json")
        return json.loads(data)["items"] if data else []


class DrawerContract(SharpContract):
    channel = Drawer

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        read = [outlet.folder.read(name) for name in outlet.folder.names() if name.endswith(".json")]
        return [json.loads(data) for data in read if data]


class WallContract(SharpContract):
    channel = Wall
    calls_out = True
    silence_seconds = 0.1  # the wall has one limit for all, so a slow connection means no other error

    def app(self) -> web.Application:
        self.held: dict[str, Any] = {}
        app = web.Application()
        app.router.add_route("*", "/items/{key}", self.items)
        app.router.add_get("/", self.hello)
        return app

    async def hello(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def items(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if request.method == "PUT":
            self.held[key] = await request.json()
        elif key not in self.held:
            return web.json_response({}, status=404)
        elif request.method == "DELETE":
            del self.held[key]
        return web.json_response({})

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        return list(self.held.values())


class ScriptedContract(SharpContract):
    channel = ScriptedChannel

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        return list(outlet.channel.script.on_air.values())


LAWS = [name for name, _ in inspect.getmembers(ChannelContract, inspect.isfunction) if name.startswith("test_")]


def broken_laws(contract: type[ChannelContract], folder: Path) -> list[str]:
    """The names of the laws that fail for ``contract``; skipped ones don't count."""
    failed = []
    for name in LAWS:
        below = folder / name
        below.mkdir()
        law = getattr(contract(), name)
        try:
            law(**({"tmp_path": below} if "tmp_path" in inspect.signature(law).parameters else {}))
        except pytest.skip.Exception:
            continue
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # a law may be broken in any way
            print(f"{name}: {type(error).__name__}: {str(error)[:2000]}")
            failed.append(name)
    return failed


@pytest.mark.parametrize("contract", [BoardContract, DrawerContract, WallContract, ScriptedContract])
def test_a_right_channel_passes_every_law(contract: type[ChannelContract], tmp_path: Path) -> None:
    assert broken_laws(contract, tmp_path) == []


# ── one broken channel per law ──────────────────────────────────────────────────────────────────────────────
class Shouting(Board):
    kind = "Sharp Board!"


class Claiming(Drawer):
    """Says that it can look, and can't."""

    check = Channel.check


class ForgivingConfig(NoteConfig):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Forgiving(Board):
    Config = ForgivingConfig


class ThawedConfig(NoteConfig):
    model_config = ConfigDict(extra="forbid", frozen=False)


class Thawed(Board):
    Config = ThawedConfig


class MisprintConfig(NoteConfig):
    profile_fields = frozenset({"lead_in", "leadin"})


class Misprint(Board):
    Config = MisprintConfig


class Addressed(Board):
    """An address shapes the payload without being named as profile."""

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        return Rendition(NotePayload(title=story.title, text=f"{story.text}{self.config.address}"))


class Fragile(Board):
    def validate(self, story: StoryView) -> list[Finding]:
        # As wrong as can be for the empty title, and right for every other.
        return super().validate(story) if story.title[0] else []


class Surprised(Board):
    """Lets a zero byte through and then chokes on it."""

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        if "\x00" in story.text:
            raise ValueError("zero byte")
        return super().adapt(story)


class Wordless(Board):
    def validate(self, story: StoryView) -> list[Finding]:
        return [*super().validate(story), Finding(Severity.WARNING, "code_that_nobody_knows")]


class Counting(Board):
    made: ClassVar[Counter[str]] = Counter()

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        self.made["all"] += 1
        return Rendition(NotePayload(title=story.title, text=f"{story.text}（第{self.made['all']}次）"))


class Hashing(Board):
    """Depends on the hash seed of the process."""

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        return Rendition(NotePayload(title=story.title, text=f"{story.text}{hash(story.story) % 1000}"))


class Local(Board):
    """Depends on the time zone of the machine."""

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        at = datetime(2021, 8, 16).astimezone().utcoffset()  # the very fault
        return Rendition(NotePayload(title=story.title, text=f"{story.text}{at}"))


class ForgetfulPayload(NotePayload):
    """Its JSON isn't what it takes: half of it is lost on the way to the database."""

    def model_dump_json(self, **_: Any) -> str:
        return json.dumps({"title": self.title, "text": self.text[:3]})


class Forgetful(Board):
    Payload = ForgetfulPayload

    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        return Rendition(ForgetfulPayload(title=story.title, text=story.text))


class Cutting(Board):
    def adapt(self, story: StoryView) -> Rendition[NotePayload]:
        return Rendition(NotePayload(title=story.title[:50], text=story.text))


class Trusting(Board):
    def preview(self, rendition: Rendition[NotePayload]) -> Artefact:
        return Artefact("text/html", f"<!doctype html><h1>{rendition.payload.title}</h1>".encode())


class OpenConfig(ChannelConfig):
    profile_fields = frozenset({"lead_in"})
    lead_in: str = ""
    address: str = ""
    password: str = ""


class OpenHearted(Board):
    """Its password is an ordinary text."""

    Config = OpenConfig  # type: ignore[assignment]


class Hasty(Drawer):
    """Its probe leaves a test item behind."""

    async def probe(self) -> None:
        self.tools.folder.write("probe.json", b'{"title": "test", "text": "test"}')


class Embellishing(Board):
    """Adds a line to what was approved."""

    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        items = [one.rendition.payload.model_dump(mode="json") for one in shelf.items]
        if len(items) > 2:
            items[0]["text"] += "（责任编辑）"
        self.tools.folder.write("board.json", json.dumps({"items": items}).encode())
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)


class Overreaching(Board):
    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        done = await super().show(shelf)
        return Receipt(done.proof, done.level, at=done.at, envelope={"media_id": "1"})


class Doubling(Drawer):
    """Each delivery adds a file; a correction knows what to replace only from the receipt."""

    async def deliver(self, task: Task[NotePayload]) -> Receipt:
        if task.last is not None:
            await self.withdraw(task)
        number = sum(1 for _ in self.tools.folder.names())
        name = f"{task.key}.{number}.json"
        self.tools.folder.write(name, task.rendition.payload.model_dump_json().encode())
        return Receipt(Proof.LIVE, Level.WRITTEN, at=task.now, external_id=name)

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        for name in list(self.tools.folder.names()):
            self.tools.folder.remove(name)
        return Receipt(Proof.GONE, Level.WRITTEN, at=task.now)

    async def check(self, task: Task[NotePayload]) -> Receipt:
        there = any(name.startswith(task.key) for name in self.tools.folder.names())
        return Receipt(Proof.LIVE if there else Proof.GONE, Level.OBSERVED, at=task.now)


class Appending(Drawer):
    """A correction stands beside what it corrects."""

    def name(self, task: Task[NotePayload]) -> str:
        return f"{task.token}.json"


class Stubborn(Drawer):
    """Fails when there is nothing left to withdraw."""

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        if not self.tools.folder.remove(self.name(task)):
            raise Permanent("not_found")
        return Receipt(Proof.GONE, Level.WRITTEN, at=task.now)


class Papers(Drawer):
    """Withdraws only who shows a receipt."""

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        if task.last is not None:
            self.tools.folder.remove(self.name(task))
        return Receipt(Proof.GONE, Level.WRITTEN, at=task.now)


class Blind(Drawer):
    async def check(self, task: Task[NotePayload]) -> Receipt:
        return Receipt(Proof.LIVE, Level.OBSERVED, at=task.now)


class Ageing(Board):
    """Each showing counts itself into the file."""

    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        done = await super().show(shelf)
        count = len(self.tools.folder.read("count.txt") or b"")
        self.tools.folder.write("count.txt", b"x" * (count + 1))
        return done


class Clinging(Board):
    """Shows on what is gone."""

    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        staying = [one.rendition.payload.model_dump(mode="json") for one in (*shelf.items, *shelf.gone)]
        self.tools.folder.write("board.json", json.dumps({"items": staying}).encode())
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)


class Deaf(Board):
    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        with suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return await super().show(shelf)


class Sloppy(Board):
    """Writes its file in two parts, with a pause between."""

    async def show(self, shelf: Shelf[NotePayload]) -> Receipt:
        items = [one.rendition.payload.model_dump(mode="json") for one in shelf.items]
        data = json.dumps({"items": items}).encode()
        path = self.tools.folder.path("board.json")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data[:20])
        await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0)
        with path.open("ab") as file:
            file.write(data[20:])
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)


class Gullible(Board):
    def receive(self, inbound: Inbound) -> list[Verdict]:
        return [Verdict(token=str(json.loads(inbound.body)["token"]))]


# On the wire.
class Serene(Wall):
    """Its probe finds every outlet well."""

    async def probe(self) -> None:
        try:
            await super().probe()
        except ChannelError:
            return


class Rash(Wall):
    """Takes a gateway's error for a proof that nothing was published."""

    async def deliver(self, task: Task[NotePayload]) -> Receipt:
        try:
            return await super().deliver(task)
        except InDoubt as doubt:
            if doubt.code == "http_502":
                raise Retryable("http_502") from doubt
            raise


class Insistent(Wall):
    """Takes "not found" for a failure of a withdrawal."""

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        there = await self.call("DELETE", f"/items/{task.key}", seconds=self.seconds(task), gone=True)
        if not there and task.last is None:
            raise Permanent("not_found")
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now)


class Leaking(Wall):
    """Lets the library's own exceptions out of a check."""

    async def check(self, task: Task[NotePayload]) -> Receipt:
        try:
            return await super().check(task)
        except Retryable as error:
            if error.code == "unreachable":
                raise aiohttp.ClientPayloadError("leaked") from error
            raise


class Greedy(Wall):
    cap_bytes = 1 << 40

    async def body(self, response: aiohttp.ClientResponse) -> bytes:
        return await response.read()


class Guessing(Wall):
    """Claims to check, but asks its own memory, which a lost answer never reached."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.remembered: set[str] = set()

    traits = Traits(idempotent=False, checks=True)

    async def deliver(self, task: Task[NotePayload]) -> Receipt:
        done = await super().deliver(task)
        self.remembered.add(task.key)
        return done

    async def withdraw(self, task: Task[NotePayload]) -> Receipt:
        done = await super().withdraw(task)
        self.remembered.discard(task.key)
        return done

    async def check(self, task: Task[NotePayload]) -> Receipt:
        done = await super().check(task)
        proof = done.proof if task.key in self.remembered else Proof.GONE
        return Receipt(proof, Level.OBSERVED, at=task.now)


def contract_of(broken: type[Channel[Any, Any]]) -> type[ChannelContract]:
    """The contract of the right channel that ``broken`` descends from, for ``broken``."""
    base = next(one for one in (BoardContract, DrawerContract, WallContract) if issubclass(broken, one.channel))
    less = MOST_TAKEN_BYTES + (1 << 20)  # enough to see that it takes all of it
    return type(f"{broken.__name__}Contract", (base,), {"channel": broken, "huge_bytes": less})


BROKEN: dict[type[Channel[Any, Any]], str] = {
    Shouting: "test_kind_names_the_entry_point",
    Claiming: "test_what_the_traits_claim_is_implemented",
    Forgiving: "test_config_refuses_unknown_keys",
    Thawed: "test_config_and_payload_are_frozen",
    Misprint: "test_profile_fields_exist_in_the_config",
    Addressed: "test_only_profile_fields_shape_a_rendition",
    Fragile: "test_validate_never_raises",
    Surprised: "test_no_error_finding_means_adapt_succeeds",
    Wordless: "test_findings_have_words",
    Counting: "test_validate_and_adapt_are_deterministic",
    Hashing: "test_another_process_makes_the_same",
    Local: "test_another_process_makes_the_same",
    Forgetful: "test_payload_is_storable_as_json",
    Cutting: "test_nothing_is_cut_silently",
    Trusting: "test_preview_escapes_what_people_wrote",
    OpenHearted: "test_secrets_never_show",
    Hasty: "test_probe_publishes_nothing",
    Embellishing: "test_payload_survives",
    Overreaching: "test_receipts_are_evidence_within_the_envelope",
    Doubling: "test_same_token_twice_leaves_one_item",
    Appending: "test_correction_replaces_in_place",
    Stubborn: "test_withdrawing_may_be_repeated",
    Papers: "test_withdrawing_works_without_a_receipt",
    Blind: "test_check_tells_what_the_outlet_shows",
    Ageing: "test_same_shelf_twice_leaves_the_same_bytes",
    Clinging: "test_what_is_gone_leaves_the_shelf",
    Deaf: "test_cancellation_propagates",
    Sloppy: "test_cancellation_leaves_no_partial_file",
    Gullible: "test_receive_refuses_garbage",
    Serene: "test_probe_of_a_dead_outlet_says_so",
    Rash: "test_faults_while_publishing_become_contract_errors",
    Insistent: "test_faults_while_withdrawing_become_contract_errors",
    Leaking: "test_faults_while_checking_become_contract_errors",
    Greedy: "test_answers_are_read_up_to_a_cap",
    Guessing: "test_a_lost_answer_is_never_guessed",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_a_broken_channel_fails_exactly_its_law(broken: type[Channel[Any, Any]], tmp_path: Path) -> None:
    assert broken_laws(contract_of(broken), tmp_path) == [BROKEN[broken]]


def test_every_law_has_a_channel_that_breaks_it() -> None:
    assert sorted(set(BROKEN.values())) == sorted(LAWS)
