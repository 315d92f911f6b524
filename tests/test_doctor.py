"""The doctor sees what is wrong, says it in words, and changes nothing."""

import ast
import asyncio
import fcntl
import importlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from distributor import doctor as module
from distributor.backup import back_up
from distributor.channel import InDoubt, Misconfigured, Retryable
from distributor.doctor import Grade, Observation, Report, examine
from distributor.messages import PLACEHOLDER, catalogue
from distributor.store import Store
from distributor.tally import Pulse, Waiting
from distributor.testing import FrozenClock
from distributor.vault import Place, Vault, make_key
from tests.conftest import SHANGHAI, House, open_house
from tests.peers.postgres import programs
from tests.town import Town, build

cli = importlib.import_module("distributor.__main__")
NOW = datetime(2030, 1, 7, tzinfo=UTC)  # later than any file here, so that no clock seems to have jumped back


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("DISTRIBUTOR_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """An installation whose database is there, private, and was backed up."""
    town = build(tmp_path / "town")
    assert cli.main(["--config", str(town.config), "story", "--list"]) == 0
    data = town.folder / "data"
    data.chmod(0o750)
    (data / "backup.last").touch()
    return town


def looked(town: Town, now: datetime = NOW) -> Report:
    os.utime(town.folder / "data" / "backup.last", (now.timestamp(),) * 2)
    return asyncio.run(examine(town.config, FrozenClock(now)))


def codes(report: Report, *grades: Grade) -> list[str]:
    """Of what is not ok, unless other grades are named; "nobody dispatches" is true of every town here."""
    wanted = grades or (Grade.WARNING, Grade.ERROR)
    return [each.code for each in report.observations if each.grade in wanted and each.code != "dispatcher_absent"]


def files(folder: Path) -> dict[str, tuple[bytes, float]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


# ── all is well ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_sound_installation_has_nothing_to_complain_about(town: Town) -> None:
    report = looked(town)
    assert codes(report) == []
    assert {each.topic for each in report.observations} == set(catalogue().tables["word.doctor_topic"]) - {"program"}
    assert {name for name, _value, _source in report.settings} >= {"data_dir", "secret_key_file"}


def test_it_changes_nothing_and_leaves_nothing_behind(town: Town) -> None:
    looked(town)
    before = files(town.folder)
    looked(town)
    assert files(town.folder) == before


async def test_it_works_beside_a_service_that_writes(town: Town) -> None:
    from distributor.database import SQLiteFile  # noqa: PLC0415

    store = await Store.open(SQLiteFile(town.folder / "data" / "distributor.db"), FrozenClock(NOW), SHANGHAI)
    try:
        async with store.write() as tx:
            await tx.audit_line("editor", "write", "story:x")
            report = await examine(town.config, FrozenClock(NOW))
        assert "schema_right" in codes(report, Grade.OK)
        assert "database_whole" in codes(report, Grade.OK)
    finally:
        await store.close()


# ── what can be wrong, one by one ───────────────────────────────────────────────────────────────────────────
def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def spoil(town: Town, sql: str) -> None:
    connection = sqlite3.connect(town.folder / "data" / "distributor.db")
    connection.execute(sql)
    connection.commit()
    connection.close()


def break_settings(town: Town) -> None:
    change(town.config, "port = 8080", "prot = 8080")


def break_district(town: Town) -> None:
    change(town.folder / "district.toml", 'unit = "gxj"', 'unit = "gxx"')


def unname_district(town: Town) -> None:
    change(town.config, 'district = "district.toml"', "")


def break_outlet(town: Town) -> None:
    change(town.folder / "district.toml", "sponsor", "sponser")


def unknown_channel(town: Town) -> None:
    change(town.folder / "district.toml", 'channel = "crawl"', 'channel = "crwl"')


def plain_address(town: Town) -> None:
    change(town.config, "http://127.0.0.1:8080", "http://news.example.org")


def wide_network(town: Town) -> None:
    change(town.config, "port = 8080", 'port = 8080\noutbound_allow = ["0.0.0.0/0"]')


def wrong_network(town: Town) -> None:
    change(town.config, "port = 8080", 'port = 8080\noutbound_allow = ["a b"]')


def lose_data(town: Town) -> None:
    shutil.rmtree(town.folder / "data")


def lose_database(town: Town) -> None:
    (town.folder / "data" / "distributor.db").unlink()


def no_database(town: Town) -> None:
    (town.folder / "data" / "distributor.db").write_bytes(b"no database" * 1000)


def other_database(town: Town) -> None:
    lose_database(town)
    spoil(town, "CREATE TABLE other (id INTEGER)")


def damage_page(town: Town) -> None:
    path = town.folder / "data" / "distributor.db"
    data = bytearray(path.read_bytes())
    for at in range(4096 * 3, len(data), 4096 * 2):
        data[at : at + 16] = b"\xff" * 16
    path.write_bytes(bytes(data))


def newer_schema(town: Town) -> None:
    spoil(town, "UPDATE alembic_version SET version_num = '9999'")


def older_schema(town: Town) -> None:
    spoil(town, "UPDATE alembic_version SET version_num = '0001'")


def clock_back(town: Town) -> None:
    spoil(town, "INSERT INTO audit_line (at, actor, person_id, action, subject, facts) "
                "VALUES ('2031-01-01 00:00:00.000000', 'person', 'x', 'write', 's', '{}')")  # fmt: skip


def file_from_the_future(town: Town) -> None:
    os.utime(town.folder / "data" / "distributor.db", ((NOW + timedelta(hours=1)).timestamp(),) * 2)


def open_data(town: Town) -> None:
    (town.folder / "data").chmod(0o755)
    (town.folder / "data" / "distributor.db").chmod(0o644)


def open_inbound_key(town: Town) -> None:
    (town.folder / "data" / "inbound.key").chmod(0o644)


def pause(town: Town) -> None:
    spoil(town, "UPDATE lane SET paused_at = '2029-12-01 00:00:00.000000', paused_code = 'http_401' "
                "WHERE outlet_id = 'tv'")  # fmt: skip


def trip_breaker(town: Town) -> None:
    spoil(town, "UPDATE lane SET hold_until = '2030-02-01 00:00:00.000000', hold_code = 'breaker', failures = 7")


def hold(town: Town) -> None:
    assert cli.main(["--config", str(town.config), "--as", "final", "hold", "--why", "演练"]) == 0


def no_backup(town: Town) -> None:
    (town.folder / "data" / "backup.last").unlink()
    (town.folder / "data" / "backup.last").mkdir()  # `looked` sets its time


def many_calls(town: Town) -> None:
    change(town.config, "port = 8080", "port = 8080\nconcurrency = 10000")


CASES: list[tuple[Any, list[str]]] = [
    (break_settings, ["settings_wrong"]),
    (break_district, ["district_wrong"]),
    (unname_district, ["district_not_named"]),
    (break_outlet, ["outlet_wrong"]),
    (unknown_channel, ["outlet_wrong"]),
    (plain_address, ["public_url_plain"]),
    (wide_network, ["outbound_wide"]),
    (wrong_network, ["outbound_wrong"]),
    (lose_database, ["database_missing"]),
    (no_database, ["database_damaged", "database_unreadable"]),
    (other_database, ["database_unreadable"]),
    (newer_schema, ["schema_newer"]),
    (older_schema, ["schema_old"]),
    (clock_back, ["clock_jumped_back"]),
    (file_from_the_future, ["clock_behind_files"]),
    (open_data, ["data_exposed"]),
    (open_inbound_key, ["file_exposed"]),
    (pause, ["lane_paused"]),
    (trip_breaker, ["lane_broken"] * 3),
    (hold, ["hold_stands"]),
]


@pytest.mark.parametrize(("spoils", "found"), CASES, ids=[each.__name__ for each, _ in CASES])
def test_what_is_wrong_is_seen_and_nothing_else_is_blamed(town: Town, spoils: Any, found: list[str]) -> None:
    spoils(town)
    report = looked(town)
    assert codes(report) == found
    for each in report.observations:
        assert "{" not in each.message
        assert "尚无文字说明" not in each.message


def test_damage_inside_the_database_is_seen(town: Town) -> None:
    damage_page(town)
    assert "database_damaged" in codes(looked(town), Grade.ERROR)


def test_a_limit_on_open_files_below_what_is_needed_is_seen(town: Town) -> None:
    many_calls(town)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024));"
        "from distributor.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--config", str(town.config), "doctor", "--json"],
        capture_output=True, text=True, timeout=120, check=False, cwd=town.folder,
    )  # fmt: skip
    found = {each["code"]: each["facts"] for each in json.loads(done.stdout)["observations"]}
    assert found["files_few"] == {"limit": 1024, "needed": 30_200, "concurrency": 10_000}


def test_who_dispatches_is_told(town: Town) -> None:
    lock = town.folder / "data" / "distributor.dispatcher"
    lock.write_text(str(os.getpid()))
    assert "dispatcher_absent" in [each.code for each in looked(town).observations]
    with lock.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (seen,) = [each for each in looked(town).observations if each.topic == "service"]
    assert (seen.code, seen.facts["pid"]) == ("dispatcher_runs", os.getpid())


def test_the_age_of_the_backup_is_told(town: Town, tmp_path: Path) -> None:
    data = town.folder / "data"
    (data / "backup.last").unlink()
    assert "backup_never" in codes(asyncio.run(examine(town.config, FrozenClock(NOW))))
    back_up(data, data / "distributor.db", tmp_path / "copy")
    taken = datetime.fromtimestamp((data / "backup.last").stat().st_mtime, UTC)
    for days, code in ((1, "backup_fresh"), (5, "backup_old")):
        report = asyncio.run(examine(town.config, FrozenClock(taken + timedelta(days=days))))
        assert [each.code for each in report.observations if each.topic == "backup"] == [code]


# ── work, blobs ─────────────────────────────────────────────────────────────────────────────────────────────
async def seen_of(house: House) -> dict[str, Observation]:
    config = house.settings.data_dir / "distributor.toml"
    config.write_text(f'data_dir = "{house.settings.data_dir}"\n', encoding="utf-8")
    return {each.code: each for each in (await examine(config, house.clock)).observations}


async def test_lanes_and_work_are_seen_as_they_stand(tmp_path: Path) -> None:
    async with open_house(tmp_path, breaker_after=1) as house:
        house.scripts["safe"].then("deliver", Misconfigured("http_401"))
        house.scripts["safe"].then("probe", Misconfigured("http_401"))
        house.scripts["stubborn"].then("deliver", Retryable("connection_refused"))
        house.scripts["blind"].then("deliver", InDoubt("timeout"))
        await house.published(to=("safe", "stubborn", "blind"))
        seen = await seen_of(house)
        assert seen["lane_paused"].facts["outlet"] == "safe"
        assert seen["lane_broken"].facts["outlet"] == "stubborn"
        assert seen["people_needed"].facts == {"doubtful": 1, "failed": 0}
        assert seen["work_on_time"].grade is Grade.OK


def test_lateness_is_graded() -> None:
    def grade(minutes: int) -> str:
        seen = Pulse(NOW, timedelta(minutes=minutes), False, {}, {}, {3: Waiting(4, timedelta(minutes=9))}, {})
        return next(each.code for each in module._work(seen))

    assert [grade(each) for each in (0, 1, 2, 10, 11)] == [
        "work_on_time", "work_on_time", "work_late", "work_late", "work_too_late",
    ]  # fmt: skip


async def test_a_file_that_is_needed_and_missing_or_changed_is_seen(house: House) -> None:
    await house.published(to=("safe",))
    one, two = house.blobs.put(b"one"), house.blobs.put(b"two")
    connection = sqlite3.connect(house.settings.data_dir / "distributor.db")
    connection.execute(
        "UPDATE rendition SET files = ?",
        (json.dumps([{"name": "a", "media_type": "b", "sha256": s} for s in (one, two)]),),
    )
    connection.commit()
    connection.close()
    folder = house.settings.data_dir / "blobs"
    assert (await seen_of(house))["blobs_there"].facts == {"count": 2, "all": 2, "read": 2}
    (folder / one[:2] / one).write_bytes(b"other")
    (folder / two[:2] / two).unlink()
    seen = await seen_of(house)
    assert seen["blob_changed"].facts == {"sha256": one}
    assert seen["blob_lost"].facts == {"sha256": two}


def test_many_of_a_kind_are_a_number() -> None:
    many = [Observation("blobs", Grade.ERROR, "blob_lost", {"sha256": str(n)}) for n in range(module.LINES_EACH + 5)]
    few = module._few("blobs", many)
    assert len(few) == module.LINES_EACH + 1
    assert few[-1].facts == {"count": 5}
    assert module._few("blobs", many[:3]) == many[:3]


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────
ACCOUNT = """
[[outlets]]
id = "account"
unit = "rmt"
channel = "newmedia"
title = "政务新媒体"

[outlets.config]
endpoint = "https://platform.example.com/api"
account = "rmt"
secret = "{secret}"
"""
SECRET = "whsec_" + "QUJD" * 8


def with_account(town: Town, secret: str) -> None:
    path = town.folder / "district.toml"
    path.write_text(path.read_text(encoding="utf-8") + ACCOUNT.format(secret=secret), encoding="utf-8")


def test_a_password_in_clear_is_seen_and_not_shown(town: Town) -> None:
    with_account(town, SECRET)
    (town.folder / "district.toml").chmod(0o644)
    report = looked(town)
    assert codes(report) == ["secret_in_clear", "district_exposed"]
    (town.folder / "district.toml").chmod(0o600)
    assert codes(looked(town)) == ["secret_in_clear"]
    assert SECRET not in "".join(each.message for each in report.observations)


def test_a_sealed_password_is_fine_until_its_key_is_not(town: Town) -> None:
    key = town.folder / "distributor.key"
    make_key(key)
    with_account(town, Vault(key).seal(SECRET, Place("account", "secret")))
    report = looked(town)
    assert codes(report) == []
    assert next(each for each in report.observations if each.code == "key_read").facts["count"] == 1
    key.chmod(0o644)
    assert codes(looked(town)) == ["district_wrong", "key_wrong"]
    key.unlink()
    assert codes(looked(town)) == ["district_wrong", "key_missing"]


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────
def run(town: Town, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["--config", str(town.config), "doctor", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_warnings_are_exit_code_0_and_errors_1(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(town, capsys)
    assert (code, err) == (0, "")
    assert "提醒" in out
    pause(town)
    code, out, _ = run(town, capsys)
    assert code == 1
    assert "distributor reopen tv" in re.sub(r"\s+", " ", out.replace("\n", "")).replace("  ", " ")


def test_programs_get_codes_facts_and_words(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    break_settings(town)
    code, out, _ = run(town, capsys, "--json")
    said = json.loads(out)
    assert (code, said["worst"]) == (1, "error")
    first = said["observations"][0]
    assert (first["code"], first["grade"], first["topic"]) == ("settings_wrong", "error", "settings")
    assert "prot" in first["message"]


# ── a server ────────────────────────────────────────────────────────────────────────────────────────────────
def at_server(town: Town, url: str) -> Report:
    change(town.config, "port = 8080", f'port = 8080\ndatabase = "{url}"')
    return looked(town)


def test_a_server_that_cannot_be_reached_is_seen_without_its_password(town: Town) -> None:
    report = at_server(town, "postgresql://someone:hushhush@127.0.0.1:1/nothing")
    assert "database_unreadable" in codes(report, Grade.ERROR)
    said = "".join(each.message for each in report.observations) + str(report.settings)
    assert "hushhush" not in said


@pytest.mark.peers
@pytest.mark.parametrize("_on", ["postgresql"], indirect=True)
async def test_a_server_is_looked_at_like_a_file(tmp_path: Path, _on: None) -> None:
    if programs() is None:
        pytest.skip("needs PostgreSQL: make peers")
    from tests.conftest import SERVERS  # noqa: PLC0415

    async with open_house(tmp_path) as house:
        house.scripts["blind"].then("deliver", InDoubt("timeout"))
        await house.published(to=("blind", "safe"))
        config = tmp_path / "distributor.toml"
        url = await asyncio.to_thread(SERVERS.at, tmp_path)
        config.write_text(f'data_dir = "{tmp_path}"\ndatabase = "{url}"\n', encoding="utf-8")
        now = datetime.now(UTC)
        seen = {each.code: each for each in (await examine(config, FrozenClock(now))).observations}
    assert {"schema_right", "workers_absent", "lanes_open", "work_on_time", "blobs_there"} <= set(seen)
    assert seen["people_needed"].facts == {"doubtful": 1, "failed": 0}


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────
def observed() -> Iterator[tuple[Any, Any, set[str] | None]]:
    """Topic, code and names of the facts (None where they aren't literal) of each observation in the source."""
    for node in ast.walk(ast.parse(Path(module.__file__).read_bytes())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("_ok", "_warning", "_error"):
            topic, code = (each.value if isinstance(each, ast.Constant) else None for each in node.args)
            names = {each.arg for each in node.keywords}
            yield topic, code, None if None in names else {name for name in names if name}


def test_every_observation_has_words_with_facts_that_it_gives() -> None:
    seen = list(observed())
    words = catalogue().tables["doctor"]
    assert len(seen) > 50
    assert {code for _, code, _ in seen} == set(words)
    assert {topic for topic, _, _ in seen if topic} == set(catalogue().tables["word.doctor_topic"])
    for _, code, facts in seen:
        assert re.search(r"[\u4e00-\u9fff]", words[code])
        if facts is not None:
            assert {name for name, _ in PLACEHOLDER.findall(words[code])} <= facts, code


def test_every_warning_and_error_says_what_to_do() -> None:
    bad = {
        node.args[1].value
        for node in ast.walk(ast.parse(Path(module.__file__).read_bytes()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("_warning", "_error")
        and isinstance(node.args[1], ast.Constant)
    }  # fmt: skip
    words = catalogue().tables["doctor"]
    silent = [code for code in bad if not re.search(r"请|运行|自动", words[code]) and "{why}" not in words[code]]
    assert silent == []
