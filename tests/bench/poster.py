"""The channels that are measured: one POST for each item, a JSON answer, nothing else that could cost time.

Two kinds with the same wire. A platform that honours the idempotency key lets the core begin at once; one that
doesn't makes it commit "this call has started" first.
"""

import json
from typing import ClassVar

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Level,
    Payload,
    Proof,
    Receipt,
    Rendition,
    StoryView,
    Task,
    Traits,
)
from distributor.http import Acting, call

TITLE = "今晚八时起部分区域停水"
TEXT = "因管网检修，今晚八时至次日六时部分区域停水，请居民提前储水。" * 4


def outlet_ids(n: int) -> list[str]:
    """``o000000`` and so on."""
    return [f"o{nth:06d}" for nth in range(n)]


class PostConfig(ChannelConfig):
    """Where the items go; not part of the profile, so all outlets share one rendition."""

    address: str


class PostPayload(Payload):
    """What a small platform takes."""

    title: str
    text: str


def body_of(token: str, title: str, text: str) -> bytes:
    """The request's body; whoever is measured beside us sends the same."""
    return json.dumps({"token": token, "title": title, "text": text}, ensure_ascii=False).encode()


def headers_of(token: str) -> dict[str, str]:
    """The request's headers; whoever is measured beside us sends the same."""
    return {"content-type": "application/json", "idempotency-key": token}


class Post(Channel[PostConfig, PostPayload]):
    """An outlet that honours the idempotency key: sending again does no harm."""

    kind: ClassVar[str] = "bench_post"
    Config = PostConfig
    Payload = PostPayload
    traits = Traits(idempotent=True)

    def adapt(self, story: StoryView) -> Rendition[PostPayload]:
        return Rendition(PostPayload(title=story.title, text=story.text))

    def preview(self, rendition: Rendition[PostPayload]) -> Artefact:
        return Artefact("text/plain", f"{rendition.payload.title}\n{rendition.payload.text}".encode())

    async def deliver(self, task: Task[PostPayload]) -> Receipt:
        payload = task.rendition.payload
        answer = await call(
            self.tools.http, "POST", self.config.address, acting=Acting.DELIVER, timeout=self.traits.deadline,
            headers=headers_of(task.token), body=body_of(task.token, payload.title, payload.text),
        )  # fmt: skip
        said = answer.json()
        return Receipt(
            Proof.LIVE, Level.ACKNOWLEDGED, at=task.now, external_id=said["data"]["id"], url=said["data"]["url"]
        )

    async def withdraw(self, task: Task[PostPayload]) -> Receipt:
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now)


class PostOnce(Post):
    """An outlet where the same item sent twice stands there twice."""

    kind: ClassVar[str] = "bench_post_once"
    traits = Traits(idempotent=False)


CHANNELS: dict[str, type[Post]] = {each.kind: each for each in (Post, PostOnce)}
