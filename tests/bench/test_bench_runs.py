"""Each row runs and writes lines that can be read. No figure is held: a test must not depend on a machine's speed."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.bench import celery_side, cluster
from tests.bench.lines import Target, line, percentile, table
from tests.bench.race import hold_against
from tests.bench.receiver import Seen
from tests.bench.rows import ROWS
from tests.bench.sides import ROOT, Failed

OUTLETS = 20
QUICK = tuple(row for row in ROWS if row not in ("celery", "postgres"))  # these two start servers
PEERS = {"celery": celery_side.missing, "postgres": cluster.missing}


def small_run(out: Path, rows: Sequence[str]) -> dict[str, Any]:
    """What a run of some rows wrote, with few outlets and one repeat."""
    only = [word for row in rows for word in ("--only", row)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--outlets", str(OUTLETS), "--repeats", "1", "--out", str(out), *only],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert len(said["lines"]) == len(done.stdout.splitlines()) - 3  # a head, an empty line, a sum
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_run(tmp_path_factory.mktemp("bench") / "bench.json", QUICK)


@pytest.mark.parametrize("row", QUICK)
def test_a_row_gives_lines_with_a_value(row: str, run: dict[str, Any]) -> None:
    lines = [each for each in run["lines"] if each["name"].partition(".")[0] == row]
    assert lines
    for each in lines:
        assert set(each) == {"name", "value", "unit", "target", "holds", "then_holds", "note"}
        assert each["value"] is not None, each
        assert (each["holds"] is None) == (each["target"] is None)


@pytest.mark.peers
@pytest.mark.parametrize("row", PEERS)
def test_a_row_that_starts_servers_gives_lines_too(row: str, tmp_path: Path) -> None:
    if why := PEERS[row]():
        pytest.skip(why)
    run = small_run(tmp_path / "bench.json", [row])
    assert [each for each in run["lines"] if each["name"].startswith(f"{row}.") and each["value"] is None] == []


def test_a_run_says_what_it_ran_on(run: dict[str, Any]) -> None:
    assert run["machine"]["cores"] >= 1
    assert {"date", "words", "flush_ms", "python", "sqlite", "seconds"} <= set(run["machine"])


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
