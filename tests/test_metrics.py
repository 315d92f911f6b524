"""The metrics page: true numbers, for those who may read it, at a cost that follows the work."""

import asyncio
import re
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from distributor.backup import back_up
from distributor.channel import Importance, InDoubt, Level, Misconfigured, Proof, Receipt, Retryable
from distributor.clock import SystemClock
from distributor.database import SQLiteFile
from distributor.model import DeliveryState
from distributor.outlets import Limits
from distributor.web.metrics import ProcessFigures, is_allowed
from distributor.web.public import make_app
from tests.conftest import House, open_house
from tests.test_docs import first_cells, read, section

ROOT = Path(__file__).resolve().parent.parent


class Monitor:
    """Reads a house's page as Prometheus does."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def families(self) -> dict[str, Any]:
        answer = await self._client.get("/metrics")
        assert answer.status == 200
        return {each.name: each for each in text_string_to_metric_families(await answer.text())}

    async def values(self) -> dict[str, float]:
        """``name/value/…`` -> value, the labels in the order of their names."""
        return {
            each.name + "".join(f"/{value}" for _label, value in sorted(each.labels.items())): each.value
            for family in (await self.families()).values()
            for each in family.samples
        }


@pytest.fixture
async def monitor(house: House, aiohttp_client: Any) -> Monitor:
    return Monitor(await aiohttp_client(make_app(house.core())))


# ── what it says ────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_quiet_district_has_zeros_not_gaps(monitor: Monitor) -> None:
    said = await monitor.values()
    assert said["distributor_due_lag_seconds"] == 0
    assert said["distributor_in_doubt"] == 0
    assert said["distributor_lanes/open"] == 8
    assert said["distributor_lanes/breaker"] == 0
    assert said["distributor_queue_age_seconds/urgent"] == 0
    assert said["distributor_attempts_total/live"] == 0
    assert said["process_resident_memory_bytes"] > 0
    assert said["distributor_data_free_bytes"] > 0


async def test_lag_and_queue_age_say_how_late_the_machine_is(house: House, monitor: Monitor) -> None:
    await house.approved()
    await house.approved("fire", importance=Importance.URGENT)
    await house.desk.plan("editor", "water", ["safe", "led"])
    house.clock.advance(timedelta(seconds=30))
    await house.desk.plan("editor", "fire", ["safe"])
    house.clock.advance(timedelta(seconds=12))
    said = await monitor.values()
    assert said["distributor_due_lag_seconds"] == 42
    assert (said["distributor_queue_age_seconds/normal"], said["distributor_queue_age_seconds/urgent"]) == (42, 12)
    assert (said["distributor_due/normal"], said["distributor_due/urgent"]) == (2, 1)
    assert said["distributor_deliveries/safe/queued"] == 2
    await house.dispatcher.drain()
    said = await monitor.values()
    assert said["distributor_due_lag_seconds"] == 0
    assert said["distributor_due/normal"] == 0
    assert not any(value for name, value in said.items() if name.startswith("distributor_deliveries/"))


async def test_what_is_planned_for_later_is_not_late(house: House, monitor: Monitor) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"], go_at=house.clock.now() + timedelta(hours=1))
    said = await monitor.values()
    assert (said["distributor_due_lag_seconds"], said["distributor_due/normal"]) == (0, 0)
    assert said["distributor_deliveries/safe/queued"] == 1


async def test_what_a_hold_holds_back_is_old_but_not_late(house: House, monitor: Monitor) -> None:
    await house.approved()
    await house.desk.plan("editor", "water", ["safe"])
    await house.desk.hold("editor", "演练")
    house.clock.advance(timedelta(minutes=5))
    said = await monitor.values()
    assert said["distributor_hold"] == 1
    assert said["distributor_due_lag_seconds"] == 0
    assert said["distributor_queue_age_seconds/normal"] == 300


async def test_each_condition_of_a_lane_is_told(tmp_path: Path, aiohttp_client: Any) -> None:
    limits = {"led": Limits(per_day=1), "site": Limits(per_minute=1)}
    async with open_house(tmp_path, limits=limits, breaker_after=1) as house:
        house.scripts["safe"].then("deliver", Misconfigured("http_401"))
        house.scripts["safe"].then("probe", *[Misconfigured("http_401")] * 3)
        house.scripts["stubborn"].then("deliver", Retryable("http_429", after=timedelta(minutes=9)))
        house.scripts["archive"].then("show", Retryable("connection_refused"))
        await house.published(to=("safe", "led", "site", "stubborn", "archive"))
        monitor = Monitor(await aiohttp_client(make_app(house.core())))
        said = await monitor.values()
        told = {name.rpartition("/")[2]: n for name, n in said.items() if name.startswith("distributor_lanes/") and n}
        assert told == {"paused": 1, "quota": 1, "rate": 1, "retry_after": 1, "breaker": 1, "open": 3}


async def test_doubt_is_counted_until_somebody_has_looked(house: House, monitor: Monitor) -> None:
    house.scripts["blind"].then("deliver", InDoubt("timeout"))
    await house.published(to=("blind",))
    said = await monitor.values()
    assert (said["distributor_in_doubt"], said["distributor_deliveries/blind/in_doubt"]) == (1, 1)
    row = await house.delivery("blind")
    assert row.id is not None
    await house.desk.resolve("editor", row.id, DeliveryState.LIVE, note="看到了")
    assert (await monitor.values())["distributor_in_doubt"] == 0


async def test_the_weeks_ledger_is_counted_by_kind_and_entry(house: House, monitor: Monitor) -> None:
    await house.published(to=("safe", "risky"))
    await house.desk.withdraw("editor", "water", "有误")
    await house.dispatcher.drain()
    said = await monitor.values()
    assert said["distributor_ledger_lines_week/count/publish"] == 1
    assert said["distributor_ledger_lines_week/reversal/publish"] == 1
    assert said["distributor_ledger_lines_week/count/pushed"] == 1
    assert said["distributor_ledger_lines_week/count/submitted"] == 1
    house.clock.advance(timedelta(days=7))
    assert (await monitor.values())["distributor_ledger_lines_week/count/publish"] == 0


async def test_attempts_are_counted_once_also_those_that_were_open_at_a_look(house: House, monitor: Monitor) -> None:
    def outcomes(said: Mapping[str, float]) -> dict[str, float]:
        return {
            name.rpartition("/")[2]: n for name, n in said.items() if name.startswith("distributor_attempts_") and n
        }

    answers, asked = asyncio.Event(), asyncio.Event()

    async def slow(task: Any) -> Receipt:
        asked.set()
        await answers.wait()
        return Receipt(Proof.LIVE, Level.ACKNOWLEDGED, at=task.now)

    await monitor.values()  # from here on
    house.scripts["risky"].then("deliver", slow)
    await house.approved()
    await house.desk.plan("editor", "water", ["risky", "safe"])
    working = asyncio.create_task(house.dispatcher.drain())
    await asyncio.wait_for(asked.wait(), 30)
    for _ in range(2):  # it is waited for as long as it takes
        assert outcomes(await monitor.values()).get("live", 0) <= 1
    answers.set()
    await asyncio.wait_for(working, 30)
    assert outcomes(await monitor.values()) == {"live": 2}
    assert outcomes(await monitor.values()) == {"live": 2}
    await house.desk.withdraw("editor", "water", "有误")
    await house.dispatcher.drain()
    assert outcomes(await monitor.values()) == {"live": 2, "gone": 2}


@pytest.mark.sqlite
async def test_the_age_of_the_last_backup_is_told_once_there_is_one(
    house: House, monitor: Monitor, tmp_path: Path
) -> None:
    assert "distributor_backup_age_seconds" not in await monitor.values()
    data = house.settings.data_dir
    await asyncio.to_thread(back_up, data, data / "distributor.db", tmp_path / "copy")
    assert "distributor_backup_age_seconds" in await monitor.values()


@pytest.mark.sqlite
async def test_a_database_that_cannot_be_read_is_a_target_that_is_down(house: House, aiohttp_client: Any) -> None:
    client = await aiohttp_client(make_app(house.core()))
    connection = sqlite3.connect(house.settings.data_dir / "distributor.db")
    connection.execute("ALTER TABLE lane RENAME TO lane_away")
    connection.commit()
    connection.close()
    assert (await client.get("/metrics")).status == 503


async def test_the_page_speaks_openmetrics_to_those_who_ask_for_it(house: House, aiohttp_client: Any) -> None:
    client = await aiohttp_client(make_app(house.core()))
    answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert (await answer.text()).endswith("# EOF\n")


async def test_two_applications_in_one_process_have_pages_of_their_own(house: House, aiohttp_client: Any) -> None:
    one, two = [Monitor(await aiohttp_client(make_app(house.core()))) for _ in range(2)]
    await one.values()
    await house.published(to=("safe",))
    assert (await one.values())["distributor_attempts_total/live"] == 1
    assert (await two.values())["distributor_attempts_total/live"] == 0  # it was not asked before


@pytest.mark.sqlite
def test_the_figures_of_the_process_are_told_where_the_rest_of_proc_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("/proc/self")  # ProcSubset=pid leaves the processes and hides /proc/stat
    registry = CollectorRegistry()
    ProcessFigures(SystemClock(), registry, str(tmp_path))
    told = {each.name: each.samples[0].value for each in registry.collect()}
    assert told["process_resident_memory_bytes"] > 0
    assert told["process_open_fds"] > 0
    before, now = told["process_start_time_seconds"], datetime.now(UTC).timestamp()
    assert now - 24 * 3600 < before < now


# ── who may read it ─────────────────────────────────────────────────────────────────────────────────────────
LOOPBACK = ("127.0.0.0/8", "::1/128")


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("remote", "networks", "allowed"),
    [
        ("127.0.0.1", LOOPBACK, True), ("127.8.8.8", LOOPBACK, True), ("::1", LOOPBACK, True),
        ("::ffff:127.0.0.1", LOOPBACK, True), ("10.8.0.4", LOOPBACK, False), ("::2", LOOPBACK, False),
        ("10.8.0.4", ("10.8.0.0/16",), True), ("127.0.0.1", ("10.8.0.0/16",), False),
        ("fe80::1%eth0", ("fe80::/10",), True), ("127.0.0.1", (), False), (None, LOOPBACK, False),
        ("", LOOPBACK, False), ("unix:", LOOPBACK, False),
    ],
)  # fmt: skip
def test_only_clients_of_the_networks_that_are_named_may_read(
    remote: str | None, networks: tuple[str, ...], allowed: bool
) -> None:
    assert is_allowed(remote, {}, networks) is allowed


async def test_a_client_outside_gets_the_answer_of_a_page_that_is_not_there(house: House, aiohttp_client: Any) -> None:
    core = house.core()
    shut = core.settings.model_copy(update={"metrics_allow": ("192.0.2.0/24",)})
    client = await aiohttp_client(make_app(type(core)(**{**vars(core), "settings": shut})))
    assert (await client.get("/metrics")).status == 404


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_nobody_reads_it_through_a_proxy_on_this_machine(house: House, aiohttp_client: Any, header: str) -> None:
    client = await aiohttp_client(make_app(house.core()))
    assert (await client.get("/metrics", headers={header: "127.0.0.1"})).status == 404
    assert (await client.get("/metrics")).status == 200


async def test_it_names_no_story_and_no_outlets_title(house: House, aiohttp_client: Any) -> None:
    await house.published(to=("safe", "blind"), title="秘密标题")
    said = await (await (await aiohttp_client(make_app(house.core()))).get("/metrics")).text()
    assert "秘密标题" not in said
    assert "water" not in said


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.sqlite
async def test_no_scrape_reads_history(house: House, monitor: Monitor) -> None:
    await house.published(to=("safe", "led"))
    await monitor.values()
    asked: list[tuple[str, Any]] = []
    database = house.store.database
    assert isinstance(database, SQLiteFile)
    engine = database._reader.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *a: asked.append((a[2], a[3])))
    await house.desk.withdraw("editor", "water", "有误")
    await house.dispatcher.drain()
    asked.clear()
    await monitor.values()
    assert len(asked) > 5
    connection = sqlite3.connect(house.settings.data_dir / "distributor.db")
    plans = [
        line[3] for statement, values in asked if statement.startswith("SELECT")
        for line in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
    ]  # fmt: skip
    connection.close()
    assert plans
    scans = [line for line in plans if re.match(r"SCAN (delivery|attempt|ledger_line|receipt|audit_line)\b", line)]
    assert scans == []


# ── the documents ───────────────────────────────────────────────────────────────────────────────────────────
DOCUMENTS = (("docs/operations.md", "## Metrics"), ("docs/operations.zh-CN.md", "## 监控指标"))


async def exposed(house: House, monitor: Monitor) -> dict[str, Any]:
    await house.published(to=("safe",))
    (house.settings.data_dir / "backup.last").touch()
    return await monitor.families()


@pytest.mark.parametrize(("document", "heading"), DOCUMENTS)
@pytest.mark.sqlite
async def test_every_metric_is_documented_and_no_other(
    house: House, monitor: Monitor, document: str, heading: str
) -> None:
    families = await exposed(house, monitor)
    names = {name + ("_total" if each.type == "counter" else "") for name, each in families.items()}
    assert first_cells(section(read(document), heading)) == names


@pytest.mark.sqlite
async def test_every_alert_asks_for_metrics_and_labels_that_exist(house: House, monitor: Monitor) -> None:
    families = await exposed(house, monitor)
    known: dict[str, set[str]] = {}
    for family in families.values():
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(f'{k}="{v}"' for k, v in sample.labels.items())
    rules = yaml.safe_load(read("docs/deploy/alerts.yml"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 8
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"\d+[smhd]", rule["for"])
        assert rule["labels"]["severity"] in ("now", "today", "week")
        assert set(rule["annotations"]) == {"summary", "do"}
        used = re.findall(r"\b((?:distributor|process)_[a-z_]+)(\{[^}]*\})?", rule["expr"])
        assert used or "up{" in rule["expr"], rule["expr"]
        for name, labels in used:
            assert name in known, f"{rule['alert']}: {name}"
            for label in re.findall(r"\w+=\"[^\"]*\"", labels):
                assert label in known[name] or label.startswith("job="), f"{rule['alert']}: {label}"
