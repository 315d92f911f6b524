"""信使: posts each story to a bulletin service over HTTP, as somebody outside this project would write it."""

from pydantic import SecretStr

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    Finding,
    Level,
    Payload,
    Proof,
    Receipt,
    Rendition,
    Severity,
    StoryView,
    Task,
    Traits,
)
from distributor.http import Acting, call


class CourierConfig(ChannelConfig):
    address: str
    password: SecretStr


class CourierPayload(Payload):
    title: str
    text: str


class Courier(Channel[CourierConfig, CourierPayload]):
    """The service answers a POST with a body and the others without one, and keeps what it got under its key."""

    kind = "courier"
    Config = CourierConfig
    Payload = CourierPayload
    traits = Traits(checks=False, corrects=False)  # not idempotent, and nobody can look: each doubt is a person's

    def validate(self, story: StoryView) -> list[Finding]:
        whole = (story.title + story.text).isprintable() or "\n" in story.text
        if whole and not any("\ud800" <= one <= "\udfff" for one in story.title + story.text):
            return []
        return [Finding(Severity.ERROR, "courier_unprintable", words="有不能发送的字符，请删除。")]

    def adapt(self, story: StoryView) -> Rendition[CourierPayload]:
        return Rendition(CourierPayload(title=story.title, text=story.text))

    def preview(self, rendition: Rendition[CourierPayload]) -> Artefact:
        return Artefact("text/plain", f"{rendition.payload.title}\n{rendition.payload.text}".encode())

    async def deliver(self, task: Task[CourierPayload]) -> Receipt:
        await self._ask("POST", task, Acting.DELIVER, body=task.rendition.payload.model_dump_json().encode())
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, at=task.now)

    async def withdraw(self, task: Task[CourierPayload]) -> Receipt:
        await self._ask("DELETE", task, Acting.WITHDRAW)
        return Receipt(Proof.GONE, Level.ACKNOWLEDGED, at=task.now)

    async def _ask(self, method: str, task: Task[CourierPayload], acting: Acting, body: bytes | None = None) -> None:
        await call(
            self.tools.http, method, f"{self.config.address}/notes/{task.key}", acting=acting, body=body,
            timeout=(task.deadline - task.now) * 0.9, promises="json" if body else "no_page",
            headers={"Authorization": f"Bearer {self.config.password.get_secret_value()}"},
        )  # fmt: skip
