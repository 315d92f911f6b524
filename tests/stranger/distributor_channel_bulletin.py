"""公示栏: the newest notices as one plain-text page, to be printed and pinned to a board."""

import asyncio
import unicodedata

from pydantic import Field

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Finding,
    Level,
    Misconfigured,
    Payload,
    Proof,
    Receipt,
    Rendition,
    Severity,
    Shelf,
    StoryView,
    Traits,
)
from distributor.errors import Unusable


class BulletinConfig(ChannelConfig):  # what an operator writes for one outlet; unknown keys are refused
    profile_fields = frozenset({"longest_chars"})  # what shapes a rendition; the heading doesn't
    heading: str = "公示栏"
    longest_chars: int = Field(default=400, ge=20)


class BulletinPayload(Payload):  # what a reviewer approves, character by character
    title: str
    text: str


class Bulletin(Channel[BulletinConfig, BulletinPayload]):
    kind = "bulletin"
    Config = BulletinConfig
    Payload = BulletinPayload
    traits = Traits(idempotent=True, shelf=20, batch_max=20)  # one page with the newest 20; all changes in one go

    def validate(self, story: StoryView) -> list[Finding]:
        findings = []  # said now, while the editor can still change it
        if any(unicodedata.category(one) in ("Cc", "Cs") and one != "\n" for one in story.title + story.text):
            findings.append(Finding(Severity.ERROR, "bulletin_unprintable", words="有无法打印的控制字符，请删除。"))
        if (chars := len(self._body(story))) > self.config.longest_chars:
            facts = {"chars": chars, "longest": self.config.longest_chars}
            words = "正文 {chars} 字，公示栏只登前 {longest} 字。请写短些，或确认可以截断。"
            findings.append(Finding(Severity.WARNING, "bulletin_cut", facts, words))
        return findings

    def adapt(self, story: StoryView) -> Rendition[BulletinPayload]:
        """The same story always gives the same bytes: no clock, no network, no chance."""
        text = self._body(story)[: self.config.longest_chars].rstrip()
        return Rendition(BulletinPayload(title=" ".join(story.title.split()), text=text))

    def preview(self, rendition: Rendition[BulletinPayload]) -> Artefact:
        return Artefact("text/plain; charset=utf-8", self._entry(rendition.payload).encode())

    async def show(self, shelf: Shelf[BulletinPayload]) -> Receipt:
        """Write the whole page anew: what was withdrawn is simply no longer in ``shelf.items``."""
        page = "\n".join([f"{self.config.heading}\n", *(self._entry(one.rendition.payload) for one in shelf.items)])
        try:
            await asyncio.to_thread(self.tools.folder.write, "bulletin.txt", page.encode())
        except Unusable as error:  # a full or broken disk: pause this outlet and alarm, don't give up the item
            raise Misconfigured(error.code, str(error)) from error
        return Receipt(Proof.LIVE, Level.WRITTEN, at=shelf.now)

    def _body(self, story: StoryView) -> str:
        return "\n".join(line for line in story.text.splitlines() if line.strip())

    def _entry(self, payload: BulletinPayload) -> str:
        return f"■ {payload.title}\n{payload.text}\n"
