"""The demo as a stranger meets it: a program that was started, and addresses that answer.

The demo is started twice at the same moment: once to be read while it serves, once with ``--once``.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest

from distributor import intake
from distributor.channel import StoryView

ASSETS = Path(__file__).parents[2] / "assets"
DISTRICT: dict[str, Any] = tomllib.loads((ASSETS / "demo" / "district.toml").read_text("utf-8"))
OUTLETS: dict[str, dict[str, Any]] = {outlet["id"]: outlet for outlet in DISTRICT["outlets"]}
SHANGHAI = ZoneInfo("Asia/Shanghai")
STARTED_WITHIN = 240.0  # seconds; half a minute on an idle machine with two cores
ENDED_WITHIN = 15.0


def outlets_of(channel: str) -> list[str]:
    """The ids of the district's outlets of one channel, in the district file's order."""
    return [outlet["id"] for outlet in OUTLETS.values() if outlet["channel"] == channel]


# ── reading addresses ───────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Answer:
    """One HTTP answer as it came. Header names in lower case; redirects are not followed."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")


def fetch(url: str, method: str = "GET", *, body: bytes | None = None, **headers: str) -> Answer:
    """One request over a connection of its own; the path goes out as it is written."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        path = url.partition(parts.netloc)[2] or "/"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


# ── the process ─────────────────────────────────────────────────────────────────────────────────────────────
class Running:
    """One demo in a folder of its own; its output is read all the time, so that it never waits for us."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._serving = threading.Event()
        program = ["-m", "distributor", "demo", "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DISTRIBUTOR_")}
        with (folder / "stderr.txt").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *program, *options], cwd=folder, stdout=subprocess.PIPE, stderr=stderr,
                env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.append(line.decode("utf-8"))
                if "Ctrl-C" in self.lines[-1]:
                    self._serving.set()
        self._serving.set()  # it ended

    def wait_until_serving(self) -> None:
        assert self._serving.wait(STARTED_WITHIN), f"not serving after {STARTED_WITHIN} s\n{self.said}"
        assert self.process.poll() is None, f"ended with {self.process.poll()} instead of serving\n{self.said}"

    def wait_for_end(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait_for_end(ENDED_WITHIN)

    @property
    def stdout(self) -> str:
        return "".join(self.lines)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text("utf-8")

    @property
    def said(self) -> str:
        return f"--- stdout\n{self.stdout[-4000:]}\n--- stderr\n{self.stderr[-4000:]}"

    @property
    def build(self) -> Path:
        return self.folder / "build" / "demo"

    @cached_property
    def summary(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.build / "summary.json").read_text("utf-8"))
        return read


@dataclass(frozen=True)
class Demo:
    """The demo that serves, and what it says of itself."""

    running: Running

    @property
    def summary(self) -> dict[str, Any]:
        return self.running.summary

    @property
    def base(self) -> str:
        return str(self.summary["public_url"])

    @property
    def platform(self) -> str:
        return str(self.summary["platform"])

    def deliveries(self, **wanted: Any) -> list[dict[str, Any]]:
        """The summary's deliveries whose fields have these values."""
        return [row for row in self.summary["deliveries"] if all(row[name] == wanted[name] for name in wanted)]

    def story(self, story: str) -> dict[str, Any]:
        """The summary's entry of the story."""
        found: dict[str, Any] = next(each for each in self.summary["stories"] if each["id"] == story)
        return found

    def view(self, story: str, version: int = 1) -> StoryView:
        """The story as its author handed it in, with the address that the demo gave it."""
        draft = drafts()[story, version]
        names = {unit["code"]: unit["name"] for unit in DISTRICT["units"]}
        columns = {column["slug"]: column["name"] for column in DISTRICT["columns"]}
        taken = {
            name: getattr(draft, name)
            for name in (
                "title", "html", "text", "unit", "column", "short_title", "summary", "byline", "source", "source_url",
                "keywords", "kind", "importance", "expires_at", "media", "cover", "correction_note", "own_text",
            )
        }  # fmt: skip
        return StoryView(
            story=story, revision=version, unit_name=names[draft.unit], column_name=columns[draft.column],
            permalink=self.story(story)["permalink"], **taken,
        )  # fmt: skip


@cache
def drafts() -> dict[tuple[str, int], intake.Draft]:
    """The demo's manuscripts by story and version."""
    loaded = [intake.load(path) for path in sorted((ASSETS / "demo" / "stories").glob("*.md"))]
    return {(draft.story, 2 if draft.corrects else 1): draft for draft in loaded}


def moment(written: str) -> datetime:
    """A time of the summary, which must say its zone."""
    at = datetime.fromisoformat(written)
    assert at.tzinfo is not None, written
    return at.astimezone(UTC)


@dataclass(frozen=True)
class Runs:
    serving: Running
    once: Running


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = [Running(tmp_path_factory.mktemp("demo"))]
    try:
        started.append(Running(tmp_path_factory.mktemp("demo-once"), "--once"))
        yield Runs(*started)
    finally:
        for running in started:
            running.stop()


@pytest.fixture(scope="session")
def demo(runs: Runs) -> Iterator[Demo]:
    """The serving demo; at the end Ctrl-C must end it cleanly."""
    runs.serving.wait_until_serving()
    yield Demo(runs.serving)
    runs.serving.process.send_signal(signal.SIGINT)
    assert runs.serving.wait_for_end(ENDED_WITHIN) == 0, runs.serving.said
    assert "Traceback" not in runs.serving.stderr + runs.serving.stdout, runs.serving.said


@pytest.fixture(scope="session")
def once(runs: Runs) -> Running:
    """The run that was told to end by itself, ended."""
    assert runs.once.wait_for_end(STARTED_WITHIN) == 0, runs.once.said
    return runs.once
