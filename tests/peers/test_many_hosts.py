"""Many hosts on a real PostgreSQL: pages here, workers there, and a server that dies under them."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributor.database import PostgreSQL
from distributor.errors import Unusable
from tests.peers.postgres import THROW_AWAY, PostgresServer, programs
from tests.test_serve import answers, do, environment, free_port, run, until
from tests.town import Town, build

pytestmark = [
    pytest.mark.peers, pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: make peers"),
]  # fmt: skip
Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer(**THROW_AWAY)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def town(tmp_path: Path, server: PostgresServer) -> Iterator[Town]:
    server.drop("town")
    address = server.create("town")
    yield build(tmp_path / "town", free_port(), more=f'database = "{address}"\n')
    server.drop("town")


@pytest.fixture
def start(town: Town) -> Iterator[Callable[..., Process]]:
    """Start a part of the service; all of them are killed at the end."""
    running: list[Process] = []

    def started(*command: str) -> Process:
        log = (town.folder / f"{command[0]}{len(running)}.log").open("w", encoding="utf-8")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributor", "--config", str(town.config), *command], cwd=town.folder,
                env=environment(), stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        running.append(process)
        return process

    yield started
    for process in running:
        process.kill()
        process.wait()


def workers(server: PostgresServer) -> int:
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'distributor worker %'"
    return int(server.sql(listening))


def said(process: Process, town: Town, name: str) -> str:
    process.wait(60)
    return (town.folder / name).read_text(encoding="utf-8")


def signed(town: Town, story: str = "water") -> None:
    do(town, "story", str(town.story(story)))
    do(town, "submit", story)
    for stage in ("first", "second", "final"):
        do(town, "vote", story, "--stage", stage, person=stage)


def is_on(town: Town, outlets: int) -> Callable[[], bool]:
    def reached() -> bool:
        rows = do(town, "board")["deliveries"]
        return [row["state"] for row in rows] == ["live"] * outlets

    return reached


def test_pages_are_served_here_and_two_workers_publish_there(
    town: Town, server: PostgresServer, start: Callable[..., Process]
) -> None:
    missing = run(town, "board")
    assert (missing.returncode, "distributor migrate" in missing.stderr) == (1, True)
    first, again = do(town, "migrate"), do(town, "migrate")
    assert (first["before"], again["before"]) == ("–", first["after"])
    pages = start("web")
    until(answers(f"{town.address}/readyz", 200), pages)
    signed(town)
    planned = do(town, "publish", "water", "--to", "all")
    assert planned["dispatchers"] == []  # and it says that nobody carries it out
    one, two = start("worker"), start("worker")
    until(lambda: workers(server) == 2, one)
    assert len(do(town, "check")["dispatchers"]) == 2
    until(is_on(town, 3), two)
    until(answers(f"{town.address}/feed/rss.xml", 200), pages)
    one.kill()
    done = do(town, "withdraw", "water", "--why", "有误")
    assert done["recalling"] == 3
    until(lambda: {row["state"] for row in do(town, "board")["deliveries"]} == {"recalled"}, two)
    two.terminate()
    assert two.wait(30) == 0


def test_workers_come_back_by_themselves_when_the_server_was_killed(
    town: Town, server: PostgresServer, start: Callable[..., Process]
) -> None:
    do(town, "migrate")
    one, two = start("worker"), start("worker")
    until(lambda: workers(server) == 2, one)
    server.kill()
    refused = run(town, "board")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    server.start()
    until(lambda: workers(server) == 2, one)
    assert two.poll() is None
    signed(town)
    do(town, "publish", "water", "--to", "all")
    until(is_on(town, 3), one)
    server.sql("SELECT 1 FROM pgqueuer_schedules", "town")  # the calendar's tables are there


def test_a_worker_of_another_version_stops_with_one_clear_line(
    town: Town, server: PostgresServer, start: Callable[..., Process]
) -> None:
    do(town, "migrate")
    worker = start("worker")
    until(lambda: workers(server) == 1, worker)
    server.sql("UPDATE alembic_version SET version_num = '9999'", "town")
    last = said(worker, town, "worker0.log").splitlines()[-1]
    assert worker.returncode == 1
    assert "更新版本" in last
    late = run(town, "worker")
    assert (late.returncode, len(late.stderr.splitlines())) == (1, 1)
    assert "更新版本" in late.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://distributor@127.0.0.1:{port}/nowhere", "nowhere"),
        ("postgresql://stranger:s3cret@127.0.0.1:{port}/town", "stranger"),
        ("postgresql://distributor:s3cret@127.0.0.1:{closed}/town", "打不开"),
        ("postgresql://distributor:s3cret@no-such-host.invalid/town", "no-such-host.invalid"),
    ],
    ids=["no such database", "no such user", "nobody answers", "no such host"],
)
def test_an_address_that_leads_nowhere_is_one_clear_line_without_the_password(
    town: Town, server: PostgresServer, address: str, words: str
) -> None:
    wrong = address.format(port=server.port, closed=free_port())
    town.config.write_text(town.config.read_text().replace(server.url("town"), wrong))
    done = run(town, "worker")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert words in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


async def test_each_job_of_the_calendar_runs_once_however_many_hosts_keep_it(
    town: Town, server: PostgresServer
) -> None:
    ran: list[str] = []
    twice = asyncio.Event()

    def host(name: str) -> tuple[str, str, Callable[[], object]]:
        async def job() -> None:
            ran.append(name)
            if len(ran) >= 2:
                twice.set()

        return "report", "* * * * * *", job  # each second

    do(town, "migrate")
    databases = [PostgreSQL(server.url("town")) for _ in range(3)]
    kept = [asyncio.create_task(each.keep_calendar([host(str(n))])) for n, each in enumerate(databases)]  # type: ignore[list-item]
    try:
        await asyncio.wait_for(twice.wait(), 60)
    finally:
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)
        for each in databases:
            await each.close()
    ticks = int(server.sql("SELECT count(*) FROM pgqueuer_schedules", "town"))
    assert ticks == 1


# ── a server that is too old: nothing real can be installed, so its first words are spoken for it ────────────
class OldServer:
    """Says what PostgreSQL 9.6 says when a client connects (PostgreSQL protocol 3.0, message formats)."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        talking, _ = self._listening.accept()
        with talking:
            while True:
                length = int.from_bytes(talking.recv(4), "big")
                code = int.from_bytes(talking.recv(4), "big")
                talking.recv(length - 8)
                if code != 80877103:  # SSLRequest
                    break
                talking.sendall(b"N")
            told = {"server_version": "9.6.24", "client_encoding": "UTF8", "server_encoding": "UTF8",
                    "integer_datetimes": "on", "standard_conforming_strings": "on", "TimeZone": "UTC"}  # fmt: skip
            talking.sendall(_message(b"R", (0).to_bytes(4, "big")))
            for name, value in told.items():
                talking.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
            talking.sendall(_message(b"K", (1).to_bytes(4, "big") * 2) + _message(b"Z", b"I"))
            talking.recv(1)

    def close(self) -> None:
        self._listening.close()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


async def test_a_server_that_is_too_old_is_refused_by_name_and_version() -> None:
    old = OldServer()
    database = PostgreSQL(f"postgresql://desk:s3cret@127.0.0.1:{old.port}/town")
    try:
        with pytest.raises(Unusable) as caught:
            await database.prepare()
        assert (caught.value.code, caught.value.facts["found"]) == ("database_too_old", "9.6")
        assert "s3cret" not in json.dumps(caught.value.facts)
    finally:
        await database.close()
        old.close()
