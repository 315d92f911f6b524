"""``distributor serve`` as an operator runs it: a process of its own, with the other commands beside it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.town import Town, build

PATIENCE_SECONDS = 60  # generous: the machine may be busy; what is awaited normally takes about a second


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(town: Town, *arguments: str, person: str = "editor") -> subprocess.CompletedProcess[str]:
    """One command beside the service."""
    command = [sys.executable, "-m", "distributor", "--config", str(town.config), "--as", person, *arguments]
    return subprocess.run(
        command, cwd=town.folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def do(town: Town, *arguments: str, person: str = "editor") -> Any:
    """One command that must succeed; what it says as JSON."""
    done = run(town, *arguments, "--json", person=person)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DISTRIBUTOR_")}


def get(url: str, **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def until(reached: Callable[[], bool], server: "subprocess.Popen[str]") -> None:
    """Look again and again until it is so; fails after a generous time, or when the server has died."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "it never came"
        # Waiting for the process's end, not sleeping: a server that dies is noticed at once.
        with_timeout(server, 0.1)


def with_timeout(server: "subprocess.Popen[str]", seconds: float) -> None:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def answers(url: str, status: int) -> Callable[[], bool]:
    def reached() -> bool:
        try:
            return get(url)[0] == status
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    return reached


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return build(tmp_path / "town", free_port())


@pytest.fixture
def server(town: Town) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "distributor", "--config", str(town.config), "serve"]
    with (town.folder / "serve.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=town.folder, env=environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            until(answers(f"{town.address}/readyz", 200), process)
            yield process
        finally:
            process.kill()
            process.wait()


def test_the_whole_way_beside_a_running_service(town: Town, server: "subprocess.Popen[str]") -> None:
    do(town, "story", str(town.story()))
    submitted = do(town, "submit", "water")
    assert len(submitted["needs_votes"]) == 3
    for stage in ("first", "second", "final"):
        do(town, "vote", "water", "--stage", stage, person=stage)
    planned = do(town, "publish", "water", "--to", "all")
    assert planned["dispatchers"] == [str(server.pid)]

    page = do(town, "story", "--show", "water")["story"]["permalink"]
    assert page.startswith(f"{town.address}/site/")
    until(answers(page, 200), server)
    _status, _headers, body = get(page)
    assert "今晚八时起部分区域停水" in body.decode()

    feed = f"{town.address}/feed/rss.xml"
    until(answers(feed, 200), server)
    until(lambda: page.encode() in get(feed)[2], server)
    _status, headers, _ = get(feed)
    assert headers["ETag"].startswith('"')
    assert headers["Content-Type"].startswith("application/rss+xml")
    assert get(feed, **{"If-None-Match": headers["ETag"]})[0] == 304

    until(lambda: {row["state"] for row in do(town, "board", "water")["deliveries"]} == {"live"}, server)
    counted = {row["unit"]: row for row in do(town, "stats")["units"]}
    assert (counted["rmt"]["publish"], counted["gxj"]["pushed"], counted["rmt"]["submitted"]) == (2, 1, 1)

    do(town, "withdraw", "water", "--why", "检修取消")
    until(answers(page, 410), server)
    assert page.encode() not in get(feed)[2]
    until(lambda: {row["state"] for row in do(town, "board", "water")["deliveries"]} == {"recalled"}, server)
    assert all(row["total"] == 0 for row in do(town, "stats")["units"])


def test_a_second_service_on_the_same_data_is_refused_in_one_line(town: Town, server: "subprocess.Popen[str]") -> None:
    second = run(town, "serve", "--port", "0")
    assert second.returncode == 1
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert str(server.pid) in second.stderr
    assert get(f"{town.address}/readyz")[0] == 200


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_asked(town: Town, server: "subprocess.Popen[str]", asked: signal.Signals) -> None:
    server.send_signal(asked)
    assert server.wait(timeout=20) == 0
    assert "Traceback" not in (town.folder / "serve.log").read_text(encoding="utf-8")
    assert do(town, "check")["dispatchers"] == []


def test_a_port_that_is_taken_is_one_line(town: Town) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(town, "serve", "--port", str(port))
    assert done.returncode == 1
    assert str(port) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
