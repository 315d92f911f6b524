"""The new-media wire: what is posted and signed, what answers mean, and verdicts. The platform is the sandbox."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import standardwebhooks
from aiohttp import web
from pydantic import ValidationError

from channels.newmedia import NewMedia, NewMediaConfig, sign, verify
from distributor.channel import (
    Inbound,
    InDoubt,
    Media,
    Misconfigured,
    Permanent,
    Proof,
    Retryable,
    Severity,
    StoryKind,
    StoryView,
    Task,
)
from distributor.http import OutboundPolicy, session
from distributor.sandbox import Mishap, Sandbox, Trick, payload_sha256
from distributor.testing import (
    MORNING,
    ChannelContract,
    FakeOutletServer,
    Fault,
    FrozenClock,
    Outlet,
    Seen,
    Trouble,
    story,
    task,
    tools,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the vector that Standard Webhooks publishes
NOWHERE = "http://127.0.0.1:9/unit"
PICTURE = Media("hall.png", "image/png", b"\x89PNG of the hall", 4, 3, "大厅")


def channel(folder: Path = Path("unused"), **config: Any) -> NewMedia:
    given = {"endpoint": NOWHERE, "secret": SECRET, "account": "unit"} | config
    return NewMedia(NewMediaConfig(**given), tools(folder))


def findings(one: StoryView, **config: Any) -> dict[str, Mapping[str, Any]]:
    return {found.code: found.facts for found in channel(**config).validate(one)}


class TestNewMediaContract(ChannelContract):
    """Against the sandbox as it is by default: it does not honour tokens."""

    channel = NewMedia
    calls_out = True
    reads_answers = frozenset({"deliver", "check"})
    account: ClassVar[dict[str, Any]] = {}

    def platform(self) -> Sandbox:
        return Sandbox(self.clock, "contract")

    def app(self) -> web.Application:
        self.sandbox = self.platform()
        return self.sandbox.app()

    @property
    def secrets(self) -> tuple[str, ...]:  # type: ignore[override]  # it follows from the sandbox's seed
        return (Sandbox(FrozenClock(), "contract").secret("unit"),)

    def config(self, url: str) -> dict[str, Any]:
        secret = Sandbox(FrozenClock(), "contract").secret("unit")
        return {"endpoint": f"{url}/unit", "secret": secret, "account": "unit"} | self.account

    @property
    def other_values(self) -> dict[str, Any]:  # type: ignore[override]
        return {"secret": SECRET}

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        return self.sandbox.in_view("unit")

    async def review(self, outlet: Outlet) -> None:
        self.clock.advance(timedelta(seconds=60))

    def publishes(self, seen: Seen) -> bool:
        return "/media/" not in seen.path


class TestNewMediaUnderReview(TestNewMediaContract):
    """Against a platform that reviews for half a minute."""

    def platform(self) -> Sandbox:
        return Sandbox(self.clock, "contract", review_seconds=30)


class TestNewMediaWithTokens(TestNewMediaContract):
    """Against a platform that keeps one item per Idempotency-Key."""

    account: ClassVar[dict[str, Any]] = {"honours_token": True}

    def platform(self) -> Sandbox:
        sandbox = Sandbox(self.clock, "contract")
        sandbox.account("unit").honours_token = True
        return sandbox


# ── signatures ──────────────────────────────────────────────────────────────────────────────────────────────
def test_the_published_vector_is_reproduced() -> None:
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = sign(SECRET, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", at=at, body=b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_reference_library_accepts_what_we_sign() -> None:
    body = json.dumps({"title": "一窗通办"}, ensure_ascii=False)
    now = datetime.now(UTC)  # the library asks the machine's clock
    headers = sign(SECRET, message_id="a.v1", at=now, body=body.encode())
    assert standardwebhooks.Webhook(SECRET).verify(body, headers) == {"title": "一窗通办"}


def test_what_the_reference_library_signs_is_accepted() -> None:
    body = '{"type": "item.published"}'
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(MORNING.timestamp())),
        "webhook-signature": "v1,AAAA " + standardwebhooks.Webhook(SECRET).sign("msg_1", MORNING, body),
    }
    verify(SECRET, headers=headers, body=body.encode(), now=MORNING)


# ── the payload ─────────────────────────────────────────────────────────────────────────────────────────────
def test_lead_in_tag_closing_and_correction_stand_around_the_text() -> None:
    one = story(text="正文", source="区住建局", correction_note="“5份”应为“6份”")
    payload = channel(lead_in="导语", tag="#优化营商环境#", closing="来源：{source}｜{column_name}").adapt(one).payload
    closing = "来源：区住建局｜优化营商环境 赋能高质量"
    assert payload.text.split("\n") == ["导语", "正文", "更正：“5份”应为“6份”", "#优化营商环境#", closing]
    assert payload.html.startswith("<p>导语</p>\n<p>正文</p>")
    assert payload.html.endswith(f"<p>{closing}</p>")


def test_the_editors_own_text_replaces_the_body() -> None:
    payload = channel(closing="").adapt(story(own_text={"newmedia": "第一段 <b>\n第二段"})).payload
    assert payload.html == "<p>第一段 &lt;b&gt;</p>\n<p>第二段</p>"
    assert payload.text == "第一段 <b>\n第二段"


def test_a_long_title_gives_way_to_the_short_one_and_the_reviewer_is_told() -> None:
    one = story(title="长" * 65, short_title="短标题")
    assert channel().adapt(one).payload.title == "短标题"
    assert findings(one)["newmedia_short_title_used"]["title"] == "短标题"


def test_a_title_that_is_too_long_is_an_error_and_not_cut() -> None:
    one = story(title="长" * 65)
    assert findings(one)["newmedia_title_too_long"] == {"limit": 64, "length": 65}
    assert channel().adapt(one).payload.title == one.title
    assert findings(story(title="长" * 64)) == {}


def test_the_text_limit_counts_all_that_is_posted() -> None:
    one = story(text="字" * 30)
    assert findings(one, closing="完", body_max=32) == {}
    assert findings(one, closing="完", body_max=31)["newmedia_text_too_long"] == {"limit": 31, "length": 32}


def test_pictures_are_named_by_their_hash_with_the_cover_first() -> None:
    cover = Media("cover.jpg", "image/jpeg", b"cover", 2, 1, "封面")
    made = channel().adapt(story(media=(PICTURE, cover), cover="cover.jpg"))
    assert [(one.name, one.sha256) for one in made.payload.images] == [
        ("cover.jpg", cover.sha256), ("hall.png", PICTURE.sha256),
    ]  # fmt: skip
    assert [file.sha256 for file in made.files] == [cover.sha256, PICTURE.sha256]


def test_a_picture_that_the_text_needs_must_be_there() -> None:
    one = story(html='<p><img alt="" src="hall.png"><img src="none.png"></p>', media=(PICTURE,))
    assert findings(one) == {"newmedia_image_missing": {"name": "none.png"}}


def test_too_many_pictures_are_an_error() -> None:
    many = tuple(Media(f"{number}.png", "image/png", b"x", 1, 1, "") for number in range(3))
    assert findings(story(media=many), images_max=2)["newmedia_too_many_images"] == {"limit": 2, "count": 3}


@pytest.mark.parametrize(("part", "code"), [("title", "newmedia_title_empty"), ("text", "newmedia_text_empty")])
def test_a_post_needs_title_and_text(part: str, code: str) -> None:
    found = channel().validate(story(**{part: "\u200b \n"}))
    assert (Severity.ERROR, code) in [(one.severity, one.code) for one in found]


def test_a_forwarded_story_keeps_its_source() -> None:
    one = story(kind=StoryKind.FORWARDED, source="上级媒体", source_url="https://example.org/a")
    payload = channel().adapt(one).payload
    assert (payload.source, payload.source_url, payload.title) == ("上级媒体", "https://example.org/a", one.title)


def test_the_preview_shows_pictures_from_the_rendition_itself() -> None:
    one = story(title="<i>标题</i>", html='<p>文<img src="hall.png" alt=""></p>', media=(PICTURE,))
    made = channel()
    page = made.preview(made.adapt(one)).data.decode()
    assert f'src="data:image/png;base64,{base64.b64encode(PICTURE.data).decode()}"' in page
    assert "&lt;i&gt;标题" in page
    assert "hall.png" not in page


# ── acting, against the sandbox ─────────────────────────────────────────────────────────────────────────────
@dataclass
class Stage:
    """A channel, its sandbox and the clock of both."""

    channel: NewMedia
    sandbox: Sandbox
    server: FakeOutletServer
    clock: FrozenClock

    def task(self, one: StoryView | None = None, **facts: Any) -> Task[Any]:
        return task(self.channel.adapt(one or story()), **{"key": "k/1:plaza", "now": self.clock.now()} | facts)


@asynccontextmanager
async def stage(*mishaps: Mishap, review_seconds: float = 0, **config: Any) -> AsyncIterator[Stage]:
    clock = FrozenClock()
    sandbox = Sandbox(clock, 7, review_seconds=review_seconds)
    sandbox.let("unit", *mishaps)
    async with FakeOutletServer(sandbox.app()) as server, session(OutboundPolicy(("127.0.0.1",))) as lent:
        given = {"endpoint": f"{server.url}/unit", "secret": sandbox.secret("unit"), "account": "unit"} | config
        made = NewMedia(NewMediaConfig(**given), tools(Path("unused"), lent))
        yield Stage(made, sandbox, server, clock)


async def test_a_post_carries_the_approved_payload_signed_and_with_its_token() -> None:
    async with stage() as on:
        given = on.task(version=3)
        receipt = await on.channel.deliver(given)
        post = on.server.requests[-1]
        payload = given.rendition.payload.model_dump(mode="json")
        assert json.loads(post.body) == {"key": "k/1:plaza", "version": 3, "payload": payload}
        assert post.headers["idempotency-key"] == post.headers["webhook-id"] == "k/1:plaza.v3"
        assert [entry.payload_sha256 for entry in on.sandbox.log()] == [payload_sha256(payload)]
        assert (receipt.proof, receipt.at) == (Proof.LIVE, on.clock.now())


async def test_pictures_are_sent_before_the_post() -> None:
    async with stage() as on:
        await on.channel.deliver(on.task(story(media=(PICTURE,))))
        sent = [(seen.method, seen.path) for seen in on.server.requests]
        assert sent == [("PUT", f"/unit/media/{PICTURE.sha256}"), ("POST", "/unit/items")]
        assert hashlib.sha256(on.server.requests[0].body).hexdigest() == PICTURE.sha256


async def test_a_picture_whose_answer_is_lost_leaves_no_doubt_about_the_post() -> None:
    async with stage() as on:
        on.server.fault(Trouble.ANSWER_LOST, when=lambda seen: "/media/" in seen.path)
        with pytest.raises(Retryable):
            await on.channel.deliver(on.task(story(media=(PICTURE,))))
        assert on.sandbox.log() == []


async def test_a_post_under_review_is_accepted_and_live_after_it() -> None:
    async with stage(review_seconds=60, poll_seconds=45) as on:
        receipt = await on.channel.deliver(on.task())
        assert (receipt.proof, receipt.check_after) == (Proof.ACCEPTED, timedelta(seconds=45))
        assert (await on.channel.check(on.task())).proof is Proof.ACCEPTED
        on.clock.advance(timedelta(seconds=60))
        assert (await on.channel.check(on.task())).proof is Proof.LIVE


async def test_a_refusal_in_review_is_final_and_gives_the_reason() -> None:
    async with stage(Mishap(Trick.REFUSE, "标题含糊"), review_seconds=60) as on:
        await on.channel.deliver(on.task())
        on.clock.advance(timedelta(seconds=60))
        with pytest.raises(Permanent, match="refused_in_review: 标题含糊"):
            await on.channel.check(on.task())


async def test_a_post_that_the_platform_takes_down_is_gone() -> None:
    async with stage(Mishap(Trick.REMOVE, "投诉", 600)) as on:
        assert (await on.channel.deliver(on.task())).proof is Proof.LIVE
        on.clock.advance(timedelta(seconds=600))
        found = await on.channel.check(on.task())
        assert found.proof is Proof.GONE
        assert found.evidence == {"version_found": 1, "status": "removed", "reason": "投诉"}


async def test_a_throttled_post_waits_as_long_as_it_is_told() -> None:
    async with stage(Mishap(Trick.THROTTLE, seconds=90)) as on:
        with pytest.raises(Retryable) as raised:
            await on.channel.deliver(on.task())
        assert raised.value.after == timedelta(seconds=90)


async def test_after_a_lost_answer_the_check_finds_the_post() -> None:
    async with stage(Mishap(Trick.LOSE_ANSWER)) as on:
        with pytest.raises(InDoubt):
            await on.channel.deliver(on.task())
        assert (await on.channel.check(on.task())).proof is Proof.LIVE


async def test_a_lost_correction_is_not_there_though_the_old_text_stands() -> None:
    async with stage(Mishap(Trick.LOSE_ANSWER), Mishap(Trick.LOSE_REQUEST)) as on:
        old, new = on.task(), on.task(story(title="更正后的标题"), version=2)
        with pytest.raises(InDoubt):
            await on.channel.deliver(old)
        with pytest.raises(InDoubt):
            await on.channel.deliver(new)
        found = await on.channel.check(new)
        assert found.proof is Proof.GONE
        assert found.evidence["version_found"] == 1
        await on.channel.deliver(new)
        assert [shown["title"] for shown in on.sandbox.in_view("unit")] == ["更正后的标题"]


async def test_an_older_version_is_not_there_once_a_newer_one_stands() -> None:
    async with stage() as on:
        await on.channel.deliver(on.task(version=2))
        assert (await on.channel.check(on.task(version=1))).proof is Proof.GONE
        with pytest.raises(InDoubt, match="conflict"):
            await on.channel.deliver(on.task(version=1))


async def test_withdrawing_takes_down_every_double() -> None:
    async with stage(Mishap(Trick.LOSE_ANSWER)) as on:
        with pytest.raises(InDoubt):
            await on.channel.deliver(on.task())
        await on.channel.deliver(on.task())
        assert len(on.sandbox.in_view("unit")) == 2
        assert (await on.channel.withdraw(on.task())).proof is Proof.GONE
        assert on.sandbox.in_view("unit") == []


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"id": "1"}', b'{"id": "1", "status": "odd"}', b'{"id": "", "status": "published"}']
)
async def test_an_answer_without_what_was_agreed_is_in_doubt(body: bytes) -> None:
    async with stage() as on:
        on.server.fault(Fault.answer(200, body=body))
        with pytest.raises(InDoubt, match="answer_incomplete"):
            await on.channel.deliver(on.task())


async def test_a_wrong_secret_pauses_the_outlet() -> None:
    async with stage(secret=SECRET) as on:
        for act in (on.channel.deliver, on.channel.withdraw, on.channel.check):
            with pytest.raises(Misconfigured, match="http_401"):
                await act(on.task())
        with pytest.raises(Misconfigured, match="http_401"):
            await on.channel.probe()


async def test_a_probe_needs_no_clock_of_ours() -> None:
    async with stage() as on:
        on.clock.advance(timedelta(days=400))
        await on.channel.probe()
        assert on.sandbox.log() == []


async def test_a_probe_notices_another_account() -> None:
    async with stage(account="somebody-else") as on:
        with pytest.raises(Misconfigured, match="other_account"):
            await on.channel.probe()


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────────
def inbound(said: object, *, at: datetime = MORNING, now: datetime = MORNING, secret: str = SECRET) -> Inbound:
    body = json.dumps(said, ensure_ascii=False).encode()
    return Inbound("POST", sign(secret, message_id="msg_1", at=at, body=body), {}, body, now)


def news(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": "2021-08-16T00:00:00Z", "data": {"key": "k", "version": 2, "id": "9"} | data}


def test_a_published_verdict_is_a_receipt() -> None:
    [verdict] = channel().receive(inbound(news("item.published", url="https://example.org/9")))
    assert verdict.token == "k.v2"
    assert verdict.receipt is not None
    assert (verdict.receipt.proof, verdict.receipt.level, verdict.receipt.url) == (
        "live",
        "reported",
        "https://example.org/9",
    )


def test_a_removed_verdict_says_gone() -> None:
    [verdict] = channel().receive(inbound(news("item.removed", reason="投诉")))
    assert verdict.receipt is not None
    assert verdict.receipt.proof is Proof.GONE


def test_a_refused_verdict_carries_the_reason() -> None:
    [verdict] = channel().receive(inbound(news("item.refused", reason="标题含糊")))
    assert verdict.refused is not None
    assert (verdict.refused.code, verdict.refused.detail) == ("refused_in_review", "标题含糊")


def test_an_unknown_kind_of_message_says_nothing() -> None:
    assert channel().receive(inbound(news("account.renamed"))) == []
    assert channel().receive(inbound({"type": ["item.published"], "data": {}})) == []


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_message_outside_five_minutes_is_refused(minutes: int) -> None:
    with pytest.raises(Permanent, match="inbound_stale"):
        channel().receive(inbound(news("item.published"), at=MORNING + timedelta(minutes=minutes)))


def test_a_message_with_another_secret_is_refused() -> None:
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    with pytest.raises(Permanent, match="inbound_not_authentic"):
        channel().receive(inbound(news("item.published"), secret=other))


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_message_without_one_of_the_headers_is_refused(header: str) -> None:
    whole = inbound(news("item.published"))
    headers = {name: value for name, value in whole.headers.items() if name != header}
    with pytest.raises(Permanent, match="inbound_not_authentic"):
        channel().receive(Inbound("POST", headers, {}, whole.body, MORNING))


@pytest.mark.parametrize(
    "said",
    [None, [], {}, {"type": "item.published"}, {"type": "item.removed", "data": []}, news("item.removed", version=0)],
)
def test_a_signed_message_that_is_not_as_agreed_is_refused(said: object) -> None:
    with pytest.raises(Permanent, match="inbound_unreadable"):
        channel().receive(inbound(said))


async def test_the_sandbox_and_the_channel_agree_on_verdicts() -> None:
    heard: list[Inbound] = []
    clock = FrozenClock()

    async def receive(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        heard.append(Inbound("POST", headers, {}, await request.read(), clock.now()))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/in", receive)
    async with stage(Mishap(Trick.REFUSE, "不合适"), review_seconds=60) as on, FakeOutletServer(app) as core:
        await on.channel.deliver(on.task())
        lent = on.channel.tools.http
        assert await on.sandbox.tell("unit", f"{core.url}/in", lent) == 0
        on.clock.advance(timedelta(seconds=60))
        assert await on.sandbox.tell("unit", f"{core.url}/in", lent) == 1
        assert await on.sandbox.tell("unit", f"{core.url}/in", lent) == 0
        clock.advance(timedelta(seconds=60))
        message = heard[0]
        [verdict] = on.channel.receive(Inbound("POST", message.headers, {}, message.body, clock.now()))
        assert verdict.token == "k/1:plaza.v1"
        assert verdict.refused is not None
        assert verdict.refused.detail == "不合适"


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "hunter2-hunter2"}, {"secret": "whsec_c2hvcnQ="}, {"secret": "whsec_!!!"}, {"endpoint": "ftp://x/"},
        {"endpoint": "https://u:p@x.example.org/"}, {"endpoint": "https://x.example.org/?a=1"}, {"account": ""},
        {"title_max": 0}, {"poll_seconds": 0}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_without_showing_the_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        channel(**wrong)
    assert "hunter2" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_honouring_tokens_makes_the_outlet_idempotent() -> None:
    assert not channel().traits.idempotent
    assert channel(honours_token=True).traits.idempotent
