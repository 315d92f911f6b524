"""Each row runs and writes lines that can be read. No figure is held: a test must not depend on a machine's speed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench import celery_side, cluster
from tests.bench.lines import Line, Target, line, percentile, table
from tests.bench.race import Bench, hold_against
from tests.bench.receiver import Seen, receiver
from tests.bench.rows import ROWS, take
from tests.bench.sides import ROOT, Failed, Job, apart, here
from tests.peers.postgres import THROW_AWAY, PostgresServer

OUTLETS = 20
PEERS = {"celery": "celery", "postgres": "cluster"}  # rows that start servers, and their sides


def somewhere(job: Job, timeout: float) -> dict[str, Any]:
    return apart(job, timeout) if job.side in PEERS.values() else here(job)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A quick one: few outlets, one repeat, every side in this process that needs no server."""
    with receiver() as platform:
        yield Bench(platform, tmp_path_factory.mktemp("bench"), OUTLETS, 1, None, None, do=somewhere)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in PEERS])
def test_a_row_gives_lines_with_values(row: str, bench: Bench) -> None:
    said: list[str] = []
    lines = take(bench, [row], said.append)
    assert lines, said
    for each in lines:
        assert each.name.partition(".")[0] == row
        assert each.value is not None, each
        assert (each.holds is None) == (each.target is None)


def command(out: Path, row: str) -> dict[str, Any]:
    """What the command wrote for a row."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--outlets", str(OUTLETS), "--repeats", "1", "--out", str(out),
         "--only", row], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert len(said["lines"]) == len(done.stdout.splitlines()) - 3  # a head, an empty line, a sum
    return said


def test_the_command_writes_its_lines_and_what_it_ran_on(tmp_path: Path) -> None:
    said = command(tmp_path / "bench.json", "memory")
    assert [set(each) for each in said["lines"]] == [{field.name for field in fields(Line)}] * 2
    assert [each["value"] is None for each in said["lines"]] == [False, False]
    assert {"date", "cores", "words", "flush_ms", "python", "sqlite", "seconds"} <= set(said["machine"])


def test_a_run_whose_time_is_up_says_what_it_left_out(bench: Bench) -> None:
    (left_out,) = take(replace(bench, ends=0), ["wake"], print)
    assert (left_out.value, left_out.holds) == (None, None)
    assert left_out.note.startswith("not run: time is up")


@pytest.mark.peers
def test_the_row_of_celery_gives_lines_with_values(bench: Bench) -> None:
    if why := celery_side.missing():
        pytest.skip(why)
    lines = take(bench, ["celery"], print)
    assert [each.name for each in lines if each.value is None] == []


@pytest.mark.peers
def test_the_row_of_postgresql_gives_lines_with_values(bench: Bench) -> None:
    if why := cluster.missing():
        pytest.skip(why)
    server = PostgresServer(**THROW_AWAY)
    try:
        lines = take(replace(bench, server=server.start()), ["postgres"], print)
    finally:
        server.stop()
    assert [each.name for each in lines if each.value is None] == []


@pytest.mark.parametrize(("posts", "items"), [(4, 4), (6, 5), (5, 4)], ids=["lost", "twice", "one for another"])
def test_a_side_that_says_something_else_than_the_platform_saw_gives_no_figure(posts: int, items: int) -> None:
    def seen(posts: int, items: int) -> Seen:
        return Seen(posts, connections=1, open_most=1, first={str(nth): 0.0 for nth in range(items)})

    hold_against("honest", {"done": 5}, seen(5, 5))
    with pytest.raises(Failed, match=f"5 done, but {posts} posts of {items} items"):
        hold_against("wrong", {"done": 5}, seen(posts, items))


def test_a_target_holds_on_its_bound_and_not_beyond_it() -> None:
    assert line("a", [0.5], "×", Target("≥", 0.5, 0.75)).holds is True
    assert line("a", [0.49], "×", Target("≥", 0.5)).holds is False
    assert line("a", [0.8], "×", Target("≥", 0.5, 0.75)).then_holds is True
    assert line("a", [101], "ms", Target("≤", 250, 100)).then_holds is False
    assert "MISSED" in table([line("a", [0.4], "×", Target("≥", 0.5))])


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected
