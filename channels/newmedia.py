"""A unit's new-media account behind an HTTP endpoint: posts, corrections, withdrawals and the platform's verdicts.

The wire, version 1
===================
All requests go below the account's ``endpoint``; bodies are JSON (UTF-8) but for pictures.

``POST {endpoint}/items``, with ``Idempotency-Key: {key}.v{version}``::

    {"key": "20210816-001:plaza:1", "version": 1, "payload": {…every field of NewMediaPayload…}}

  → 200, 201 or 202 ``{"id": "…", "status": "reviewing" | "published", "url": "…"}``. A higher version of a known key
  replaces the item in place. A lower one: 409.
``PUT {endpoint}/media/{sha256}``: one picture of a payload (its ``images``), sent before the post; the body is the
  file. Any 2xx but a page of HTML; sending it again changes nothing.
``GET {endpoint}/items/{key}`` → 200 ``{"id", "version", "status": "reviewing" | "published" | "refused" | "removed",
  "url", "reason"}``, the newest version of the key; 404 or 410 when there is none or it was deleted.
``DELETE {endpoint}/items/{key}``: takes down every version. Any 2xx but a page of HTML, 404 or 410; may be repeated.
``GET {endpoint}/time`` → 200 ``{"now": 1629072000}``, unsigned; ``GET {endpoint}/account`` → 200 ``{"account": "…"}``.
Inbound, to the address that the core gives the outlet::

    {"type": "item.published" | "item.refused" | "item.removed", "timestamp": "2021-08-16T08:00:00Z",
     "data": {"key": "…", "version": 1, "id": "…", "url": "…", "reason": "…"}}

Every request but ``/time`` and every inbound message is signed as Standard Webhooks 1.0 says: ``webhook-id``,
``webhook-timestamp`` (Unix seconds), ``webhook-signature: v1,<base64 HMAC-SHA256 of "id.timestamp.body">``, the
secret being base64 of 24 to 64 bytes after ``whsec_``; the receiver allows five minutes. The id of a post is its
Idempotency-Key. A request that has no JSON body says in its id what it asks, as in ``DELETE /items/20210816-001``
(path below the endpoint), and the receiver compares: else a signed look could be replayed as a withdrawal.
"""

import base64
import binascii
import hashlib
import hmac
import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Finding,
    Inbound,
    InDoubt,
    Level,
    Media,
    Misconfigured,
    Payload,
    Permanent,
    Proof,
    Receipt,
    Rendition,
    RenditionFile,
    Retryable,
    Severity,
    StoryView,
    Task,
    Tools,
    Traits,
    Verdict,
)  # fmt: skip
from distributor.http import Acting, Answer, Promise, call
from distributor.text import clean, one_line, removed

__all__ = ["NewMedia", "NewMediaConfig", "NewMediaPayload", "sign", "verify"]

TOLERANCE = timedelta(minutes=5)  # Standard Webhooks 1.0, as its libraries have it
SHARE_OF_DEADLINE = 0.9  # so that our own timeout, which knows what was sent, comes before the core's


# ── signatures (Standard Webhooks 1.0) ──────────────────────────────────────────────────────────────────────
def _key(secret: str) -> bytes:
    """The HMAC key of ``whsec_…``.

    Raises:
        ValueError: another prefix, not base64, or not 24 to 64 bytes.
    """
    prefix, _, encoded = secret.partition("_")
    key = base64.b64decode(encoded, validate=True)  # binascii.Error is a ValueError
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError("not a signing secret")
    return key


def sign(secret: str, *, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The three headers for ``body`` sent at ``at``."""
    timestamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signature = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"}


def verify(secret: str, *, headers: Mapping[str, str], body: bytes, now: datetime) -> None:
    """See that ``body`` was signed with ``secret`` within `TOLERANCE` of ``now``. Header names in lower case.

    Raises:
        Permanent: ``inbound_not_authentic`` or ``inbound_stale``.
    """
    timestamp = headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,11}", timestamp):
        raise Permanent("inbound_not_authentic", "no readable webhook-timestamp")
    at = datetime.fromtimestamp(int(timestamp), UTC)
    message_id = headers.get("webhook-id", "")
    expected = sign(secret, message_id=message_id, at=at, body=body)["webhook-signature"]
    given = headers.get("webhook-signature", "").split()
    if not message_id or not any(hmac.compare_digest(one.encode(), expected.encode()) for one in given):
        raise Permanent("inbound_not_authentic", "no signature matches")
    if abs(now - at) > TOLERANCE:
        raise Permanent("inbound_stale", f"signed at {at.isoformat()}")


# ── configuration and payload ───────────────────────────────────────────────────────────────────────────────
class NewMediaConfig(ChannelConfig):
    """One account. The profile is what shapes its posts; address, secret and account name are not.

    ``closing`` is the account's template for the last line: ``{source}``, ``{unit_name}``, ``{column_name}`` and
    ``{permalink}`` are filled in. ``title_max`` and ``body_max`` count characters of the title and of the plain text;
    64 and 20,000 are what official accounts customarily allow, set what your platform says.
    ``honours_token``: the platform keeps one item per Idempotency-Key; only then may a doubtful post be repeated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    profile_fields = frozenset({"lead_in", "tag", "closing", "title_max", "body_max", "images_max"})

    endpoint: str
    secret: SecretStr
    account: str = Field(min_length=1, max_length=100)
    honours_token: bool = False
    poll_seconds: int = Field(300, ge=5, le=86_400)
    lead_in: str = Field("", max_length=200)
    tag: str = Field("", max_length=60)  # e.g. "#优化营商环境#", after the text
    closing: str = Field("来源：{source}", max_length=200)
    title_max: int = Field(64, ge=4, le=500)
    body_max: int = Field(20_000, ge=20, le=200_000)
    images_max: int = Field(20, ge=0, le=50)

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError as error:
            raise PydanticCustomError(
                "not_a_web_address", "应为 http:// 或 https:// 开头的完整网址，不带账号、问号和井号"
            ) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
            raise PydanticCustomError(
                "not_a_web_address", "应为 http:// 或 https:// 开头的完整网址，不带账号、问号和井号"
            )
        return value.rstrip("/")

    @field_validator("secret")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        try:
            _key(value.get_secret_value())
        except (ValueError, binascii.Error) as error:
            raise PydanticCustomError(
                "not_a_signing_secret", "签名密钥应为 whsec_ 加 Base64（24 至 64 字节），请向平台重新索取"
            ) from error
        return value


class Image(BaseModel):
    """One picture of a post; ``html`` refers to it by ``name``, the platform has it under ``sha256``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str
    media_type: str
    description: str


class NewMediaPayload(Payload):
    """What is posted. ``text`` is ``html`` without markup; both hold lead-in, tag, closing and correction note."""

    title: str
    html: str
    text: str
    source: str
    source_url: str
    permalink: str
    column: str
    keywords: tuple[str, ...]
    images: tuple[Image, ...]
    correction_note: str


# ── what the platform answers ───────────────────────────────────────────────────────────────────────────────
class Status(StrEnum):
    """Of an item on the platform."""

    REVIEWING = "reviewing"
    PUBLISHED = "published"
    REFUSED = "refused"
    REMOVED = "removed"


class _Item(BaseModel):
    """An item as the platform tells it; what else it says is not our business."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str = Field(min_length=1)
    status: Status
    version: int | None = None
    url: str = ""
    reason: str = ""


class _News(BaseModel):
    """``data`` of an inbound message."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    key: str = Field(min_length=1)
    version: int = Field(ge=1)
    id: str = ""
    url: str = ""
    reason: str = ""


def _item(answer: Answer) -> _Item:
    """Raises: InDoubt, ``answer_incomplete``."""
    try:
        return _Item.model_validate(answer.json())
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) or "all of it" for each in error.errors())
        raise InDoubt("answer_incomplete", f"{answer.status}, wrong or missing: {fields}") from None


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
class NewMedia(Channel[NewMediaConfig, NewMediaPayload]):
    """An item channel over the wire that this module's docstring gives."""

    kind = "newmedia"
    Config = NewMediaConfig
    Payload = NewMediaPayload
    traits = Traits(checks=True, absence_proves_after=timedelta(seconds=60), expires=False, holds_permalink=True)
    version = 1

    def __init__(self, config: NewMediaConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.traits = replace(type(self).traits, idempotent=config.honours_token)

    # ── text ────────────────────────────────────────────────────────────────────────────────────────────────
    def validate(self, story: StoryView) -> list[Finding]:
        payload = self._payload(story)
        found: list[Finding] = []

        def say(severity: Severity, code: str, **facts: str | int) -> None:
            found.append(Finding(severity, code, facts))

        title, own = one_line(story.title), story.own_text.get("newmedia", "")
        if not title:
            say(Severity.ERROR, "newmedia_title_empty")
        elif len(payload.title) > self.config.title_max:
            say(Severity.ERROR, "newmedia_title_too_long", limit=self.config.title_max, length=len(payload.title))
        elif payload.title != title:
            say(Severity.WARNING, "newmedia_short_title_used", limit=self.config.title_max, title=payload.title)
        if not clean(own or story.text).strip():
            say(Severity.ERROR, "newmedia_text_empty")
        if len(payload.text) > self.config.body_max:
            say(Severity.ERROR, "newmedia_text_too_long", limit=self.config.body_max, length=len(payload.text))
        names = {media.name for media in story.media}
        for name in dict.fromkeys(html.unescape(src) for src in _SRC.findall("" if own else story.html)):
            if name not in names:
                say(Severity.ERROR, "newmedia_image_missing", name=name[:100])
        if len(payload.images) > self.config.images_max:
            say(Severity.ERROR, "newmedia_too_many_images", limit=self.config.images_max, count=len(payload.images))
        lost = removed(story.title + (own or story.html))
        if lost:
            say(Severity.WARNING, "newmedia_characters_removed", characters="、".join(lost[:8]), count=len(lost))
        return found

    def adapt(self, story: StoryView) -> Rendition[NewMediaPayload]:
        files = tuple(RenditionFile(one.name, one.media_type, one.data) for one in _pictures(story))
        return Rendition(self._payload(story), files)

    def _payload(self, story: StoryView) -> NewMediaPayload:
        own = clean(story.own_text.get("newmedia", "")).strip()
        source = one_line(story.source or story.unit_name)
        closing = one_line(
            self.config.closing.replace("{source}", source)
            .replace("{unit_name}", story.unit_name)
            .replace("{column_name}", story.column_name)
            .replace("{permalink}", story.permalink)
        )
        note = clean(story.correction_note).strip()
        first = [one_line(self.config.lead_in)] if self.config.lead_in else []
        last = [part for part in (f"更正：{note}" if note else "", one_line(self.config.tag), closing) if part]
        body_html = _paragraphs(own.split("\n")) if own else clean(story.html).strip()
        body_text = own or clean(story.text).strip()
        return NewMediaPayload(
            title=self._title(story),
            html="\n".join(part for part in (_paragraphs(first), body_html, _paragraphs(last)) if part),
            text="\n".join([*first, body_text, *last]),
            source=source,
            source_url=clean(story.source_url),
            permalink=clean(story.permalink),
            column=clean(story.column),
            keywords=tuple(one_line(word) for word in story.keywords),
            images=tuple(
                Image(
                    name=one.name, sha256=one.sha256, media_type=one.media_type, description=one_line(one.description)
                )
                for one in _pictures(story)
            ),
            correction_note=note,
        )

    def _title(self, story: StoryView) -> str:
        """The title; where it is longer than the platform allows, the editor's short title if that fits."""
        title, short = one_line(story.title), one_line(story.short_title)
        return short if short and len(title) > self.config.title_max >= len(short) else title

    def preview(self, rendition: Rendition[NewMediaPayload]) -> Artefact:
        payload = rendition.payload
        inline = {
            file.name: f"data:{file.media_type};base64,{base64.b64encode(file.data).decode()}"
            for file in rendition.files
        }

        def shown(found: re.Match[str]) -> str:
            name = html.unescape(found[1])
            return f'src="{html.escape(inline.get(name, found[1]))}"'

        placed = {html.unescape(name) for name in _SRC.findall(payload.html)}
        above = "".join(
            f'<img src="{inline[one.name]}" alt="{html.escape(one.description)}">'
            for one in payload.images
            if one.name not in placed and one.name in inline
        )
        page = _PREVIEW.format(
            title=html.escape(payload.title), source=html.escape(payload.source), above=above,
            body=_SRC.sub(shown, payload.html), link=html.escape(payload.permalink),
        )  # fmt: skip
        return Artefact("text/html; charset=utf-8", page.encode(), name="newmedia.html")

    # ── acting ──────────────────────────────────────────────────────────────────────────────────────────────
    async def probe(self) -> None:
        """Ask the platform for its time (a probe has no task, and so no "now"), then for the account, signed."""
        timeout = type(self).traits.deadline * SHARE_OF_DEADLINE / 2
        heard = await call(self.tools.http, "GET", f"{self.config.endpoint}/time", acting=Acting.PROBE, timeout=timeout)
        said = _object(heard).get("now")
        if not isinstance(said, int | float) or isinstance(said, bool) or not 0 <= said < 1e11:
            raise Misconfigured("not_this_wire", "GET /time gave no time")
        answer = await self._ask(
            "GET", "/account", acting=Acting.PROBE, now=datetime.fromtimestamp(said, UTC), timeout=timeout
        )
        account = _object(answer).get("account")
        if account != self.config.account:
            raise Misconfigured("other_account", f"the endpoint belongs to {str(account)[:60]!r}")

    async def deliver(self, task: Task[NewMediaPayload]) -> Receipt:
        """Send the pictures, then the post. Only the post can be in doubt: a picture alone publishes nothing."""
        left = (task.deadline - task.now) * SHARE_OF_DEADLINE
        pictures = {file.sha256: file for file in task.rendition.files}
        for sha256, file in pictures.items():
            try:
                await self._ask(
                    "PUT", f"/media/{sha256}", acting=Acting.DELIVER, now=task.now, timeout=left / 2 / len(pictures),
                    body=file.data, headers={"content-type": file.media_type}, promises="no_page",
                )  # fmt: skip
            except InDoubt as doubt:
                raise Retryable(doubt.code, doubt.detail) from None
        payload = task.rendition.payload.model_dump(mode="json")
        body = json.dumps({"key": task.key, "version": task.version, "payload": payload}, ensure_ascii=False).encode()
        answer = await self._ask(
            "POST", "/items", acting=Acting.DELIVER, now=task.now, timeout=left / 2 if pictures else left,
            body=body, message_id=task.token,
            headers={"content-type": "application/json; charset=utf-8", "idempotency-key": task.token},
        )  # fmt: skip
        item = _item(answer)
        if item.status in {Status.REFUSED, Status.REMOVED}:
            raise Permanent("refused_in_review", item.reason[:200])
        return self._receipt(item, task.now)

    async def withdraw(self, task: Task[NewMediaPayload]) -> Receipt:
        path = f"/items/{quote(task.key, safe='')}"
        left = (task.deadline - task.now) * SHARE_OF_DEADLINE
        answer = await self._ask("DELETE", path, acting=Acting.WITHDRAW, now=task.now, timeout=left, promises="no_page")
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now, evidence={"http_status": answer.status})

    async def check(self, task: Task[NewMediaPayload]) -> Receipt:
        """Ask for the key's newest version and say what that means for the task's.

        Another version there means that the task's is not: after a lost correction the old text still stands, and
        "it isn't there" makes the core send the correction again, which is right. The evidence names the version
        found, so that nobody reads this as "nothing of this key can be seen".
        """
        path = f"/items/{quote(task.key, safe='')}"
        left = (task.deadline - task.now) * SHARE_OF_DEADLINE
        answer = await self._ask("GET", path, acting=Acting.CHECK, now=task.now, timeout=left)
        if answer.status in {404, 410}:
            return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now, evidence={"http_status": answer.status})
        item = _item(answer)
        if item.version is None:
            raise InDoubt("answer_incomplete", "wrong or missing: version")
        if item.version != task.version or item.status is Status.REMOVED:
            evidence = {"version_found": item.version, "status": item.status.value, "reason": item.reason[:200]}
            return Receipt(
                Proof.GONE, Level.ACKNOWLEDGED, at=task.now, external_id=item.id, url=item.url, evidence=evidence
            )
        if item.status is Status.REFUSED:
            raise Permanent("refused_in_review", item.reason[:200])
        return self._receipt(item, task.now)

    def _receipt(self, item: _Item, at: datetime) -> Receipt:
        published = item.status is Status.PUBLISHED
        return Receipt(
            Proof.LIVE if published else Proof.ACCEPTED, Level.ACKNOWLEDGED, at=at, external_id=item.id, url=item.url,
            evidence={"status": item.status.value},
            check_after=None if published else timedelta(seconds=self.config.poll_seconds),
        )  # fmt: skip

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        acting: Acting,
        now: datetime,
        timeout: timedelta,
        body: bytes | None = None,
        message_id: str = "",
        headers: Mapping[str, str] | None = None,
        promises: Promise = "json",
    ) -> Answer:
        """One signed call; without ``message_id`` the id says what is asked."""
        signed = sign(
            self.config.secret.get_secret_value(), message_id=message_id or f"{method} {path}", at=now, body=body or b""
        )
        return await call(
            self.tools.http, method, self.config.endpoint + path, acting=acting, timeout=timeout,
            headers={**(headers or {}), **signed}, body=body, promises=promises,
        )  # fmt: skip

    # ── verdicts ────────────────────────────────────────────────────────────────────────────────────────────
    def receive(self, inbound: Inbound) -> list[Verdict]:
        """A signed message of the platform. A type that we don't know says nothing about an item: no verdict."""
        verify(self.config.secret.get_secret_value(), headers=inbound.headers, body=inbound.body, now=inbound.now)
        try:
            said = json.loads(inbound.body)
            kind, news = said["type"], said["data"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise Permanent("inbound_unreadable", type(error).__name__) from None
        if kind not in ("item.published", "item.refused", "item.removed"):  # no set: it may be any JSON
            return []
        try:
            item = _News.model_validate(news)
        except ValidationError:
            raise Permanent("inbound_unreadable", "data is not as agreed") from None
        token = f"{item.key}.v{item.version}"
        if kind == "item.refused":
            return [Verdict(token, refused=Permanent("refused_in_review", item.reason[:200]))]
        proof = Proof.LIVE if kind == "item.published" else Proof.GONE
        evidence = {"type": kind, "message": inbound.headers.get("webhook-id", ""), "reason": item.reason[:200]}
        return [Verdict(token, Receipt(proof, Level.REPORTED, inbound.now, item.id, item.url, evidence))]


def _object(answer: Answer) -> dict[str, Any]:
    said = answer.json()
    return said if isinstance(said, dict) else {}


_SRC = re.compile(r'(?<=\s)src="([^"]*)"')


def _paragraphs(lines: list[str]) -> str:
    return "\n".join(f"<p>{html.escape(line.strip(), quote=False)}</p>" for line in lines if line.strip())


def _pictures(story: StoryView) -> list[Media]:
    """The cover first, then the others in their order, each once."""
    by_name = {media.name: media for media in story.media}
    names = ([story.cover] if story.cover in by_name else []) + list(by_name)
    return [by_name[name] for name in dict.fromkeys(names)]


_PREVIEW = """<!doctype html>
<html lang="zh-CN"><head><meta charset="utf-8"><title>{title}</title><style>
body{{margin:0;background:#f2f3f5}}
article{{box-sizing:border-box;max-width:420px;min-height:100vh;margin:0 auto;padding:20px 16px;background:#fff;
font:17px/1.75 "Noto Sans SC",sans-serif;color:#1d2129;overflow-wrap:anywhere}}
h1{{font-size:22px;line-height:1.4;margin:0 0 8px}}.meta{{color:#86909c;font-size:14px;margin:0 0 16px}}
img{{max-width:100%;height:auto}}table{{border-collapse:collapse}}td,th{{border:1px solid #c9cdd4;padding:2px 8px}}
footer{{margin-top:24px;font-size:13px;color:#86909c}}
</style></head><body><article><h1>{title}</h1><p class="meta">{source}</p>{above}
{body}
<footer>阅读原文：{link}</footer></article></body></html>
"""
