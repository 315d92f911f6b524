"""The rows: what is measured for each, and the lines that come of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench import celery_side, cluster
from tests.bench.lines import Line, Target, failed, line, percentile, skipped
from tests.bench.race import Bench, Found, Runner, lines_of, race, ratios
from tests.bench.sides import CONCURRENCY, Failed

RATIO = Target("≥", 0.5, 0.75)
AGAINST_CELERY = Target("≥", 5, 8)
SOON = Target("≤", 250, 100)
MEMORY = Target("≤", 200)

BARE = Runner("bare", "bare", {"keeps_connections": True})
BARE_CLOSING = Runner("bare_closing", "bare", {"keeps_connections": False})
OURS = Runner("ours", "ours", {"kind": "bench_post"})
OURS_ONCE = Runner("ours_once", "ours", {"kind": "bench_post_once"})
CELERY = Runner("celery", "celery", {}, share=0.3, missing=celery_side.missing)
POSTGRES_1 = Runner("postgres_1", "cluster", {"workers": 1}, missing=cluster.missing)
POSTGRES_2 = Runner("postgres_2", "cluster", {"workers": 2}, missing=cluster.missing)

# Who takes part in the race for which row, beside the product and the bare client.
RACING: dict[str, tuple[Runner, ...]] = {
    "post": (BARE_CLOSING, OURS_ONCE),
    "memory": (),
    "postgres": (POSTGRES_1, POSTGRES_2),
    "celery": (CELERY,),
}
TRANSACTIONS = (("plan_seconds", "s"), ("lanes_per_claim", ""), ("rows_per_settle", ""))


# ── the race ────────────────────────────────────────────────────────────────────────────────────────────────
def _post(found: Found) -> Iterable[Line]:
    yield ratios("post.ratio", found, "ours", "bare", RATIO, "bare client keeps its connections")
    yield ratios("post.ratio_closing", found, "ours", "bare_closing", None, "bare client opens one for each POST")
    yield ratios("post.ratio_once", found, "ours_once", "bare", None, "outlet that is not idempotent")
    yield _cpu(found)
    yield from lines_of("post.bare", found["bare"])
    yield from lines_of("post.bare_closing", found["bare_closing"])
    yield from lines_of("post.ours", found["ours"], TRANSACTIONS)
    yield from lines_of("post.ours_once", found["ours_once"], TRANSACTIONS)


def _cpu(found: Found) -> Line:
    """The same in processor time: what other work on the machine does to the clock of either side is not in it."""
    ours, bare = found["ours"], found["bare"]
    if isinstance(ours, str) or isinstance(bare, str):
        return failed("post.ratio_cpu", "×", None, ours if isinstance(ours, str) else str(bare))
    spent = [(theirs["cpu"] / theirs["done"]) / (mine["cpu"] / mine["done"])
             for mine, theirs in zip(ours, bare, strict=True)]  # fmt: skip
    return line("post.ratio_cpu", spent, "×", None, "CPU seconds of the bare client for one of ours")


def _memory(found: Found) -> Iterable[Line]:
    ours = found["ours"]
    if isinstance(ours, str):
        yield failed("memory.most", "MB", MEMORY, ours)
        return
    yield line("memory.most", [each["rss_most"] for each in ours], "MB", MEMORY, "after the race, at its highest")
    yield line("memory.before", [each["rss_before"] for each in ours], "MB", None, "before its first delivery")


def _postgres(found: Found) -> Iterable[Line]:
    yield ratios(
        "postgres.ratio_1", found, "postgres_1", "bare", RATIO, "one worker; bare client keeps its connections"
    )
    yield ratios("postgres.ratio_2", found, "postgres_2", "bare", None, "two workers, the server beside them")
    yield ratios("postgres.second_worker", found, "postgres_2", "postgres_1", None, "two workers against one")
    for name in ("postgres_1", "postgres_2"):
        yield from lines_of(name.replace("_", "."), found[name], (("plan_seconds", "s"), ("lanes_per_claim", "")))


def _celery(found: Found) -> Iterable[Line]:
    yield ratios("celery.ratio", found, "ours", "celery", AGAINST_CELERY, "the POSTs alone, on kept connections")
    yield from lines_of("celery.posts", found["celery"], (("enqueue_seconds", "s"),))


RACED: dict[str, Callable[[Found], Iterable[Line]]] = {
    "post": _post,
    "memory": _memory,
    "postgres": _postgres,
    "celery": _celery,
}


# ── by themselves ───────────────────────────────────────────────────────────────────────────────────────────
def _late(name: str, lags: Sequence[float], target: Target | None, note: str) -> Iterable[Line]:
    note = f"{note}; {len(lags)} samples"
    yield line(f"{name}.p50", [percentile(lags, 0.5)], "ms", None, note)
    yield line(f"{name}.p99", [percentile(lags, 0.99)], "ms", target, note)


def _wake(bench: Bench) -> Iterable[Line]:
    outlets = bench.at_most(100)
    found = bench.run("wake", "wake", outlets, {"rounds": bench.times(12)})
    yield from _late("wake.all", found["lags"], SOON, f"commit of the plan to first byte, all of {outlets} outlets")
    yield line("wake.first", found["first_lags"], "ms", None, f"to the first byte at the first of {outlets} outlets")


def _urgent(bench: Bench) -> Iterable[Line]:
    outlets, stories = bench.at_most(2000), bench.times(50)
    more = {"rounds": bench.times(40), "stories": stories, "pause": 0.25}
    found = bench.run("urgent", "urgent", outlets, more, timeout=150)
    note = f"behind {outlets * stories:,} normal deliveries, {found['still_waiting']:,} still waiting at the end"
    yield from _late("urgent.lag", found["lags"], SOON, note)
    yield from _late("urgent.plan", found["plans"], None, "the planning itself, ten outlets")


def _growth(bench: Bench) -> Iterable[Line]:
    for outlets in (1_000, 10_000, 100_000):
        name = f"growth.{outlets // 1000}k"
        yield from _grown(name, bench, name, bench.at_most(outlets), {})


def _history(bench: Bench) -> Iterable[Line]:
    outlets = bench.at_most(10_000)
    yield from _grown("history.1m", bench, "history", outlets, {"history": outlets * 100})


def _grown(name: str, bench: Bench, folder: str, outlets: int, more: dict[str, Any]) -> Iterable[Line]:
    try:
        found = bench.run(folder, "growth", outlets, {"longest": 10.0, **more}, timeout=240)
    except Failed as error:
        yield failed(f"{name}.rate", "1/s", None, str(error))
        return
    yield line(f"{name}.rate", [found["done"] / found["seconds"]], "1/s", None, f"{found['done']} of {outlets} outlets")
    yield line(f"{name}.plan", [found["plan_seconds"]], "s", None, "fan-out to all of them, one transaction")
    yield line(f"{name}.claim", found["claims"], "ms", None, f"{found['lanes']} lanes")
    yield line(f"{name}.settle", found["settles"], "ms", None, f"{found['lanes']} rows")
    grown = found["bytes"]
    if not grown:  # inserting the past takes memory of its own
        yield line(f"{name}.memory", [found["rss_most"]], "MB")
    else:
        yield line(f"{name}.bytes", [sum(grown.values())], "bytes", None, "delivery, attempt, receipt, count, indexes")
        yield line(f"{name}.ledger_bytes", [grown["ledger_line"]], "bytes", None, "the count alone, kept for ever")


def _roundtrip(bench: Bench) -> Iterable[Line]:
    for wait in (20, 100):
        outlets = bench.at_most(2000)
        found = bench.run(f"roundtrip-{wait}", "ours", outlets, {"kind": "bench_post", "below": f"/wait/{wait}",
                                                                 "longest": 20.0})  # fmt: skip
        note = f"the platform takes {wait} ms; {CONCURRENCY} calls at a time could be {CONCURRENCY * 1000 // wait}/s"
        yield line(f"roundtrip.{wait}ms", [found["done"] / found["seconds"]], "1/s", None, note)


def _start(bench: Bench) -> Iterable[Line]:
    outlets = bench.at_most(2000)
    found = bench.run("start", "start", outlets, {})
    yield line("start.first", [found["first"]], "s", None, f"open a district file of {outlets} outlets")
    yield line("start.again", [found["again"]], "s", None, "the same when nothing has changed: each command does it")


ALONE: dict[str, Callable[[Bench], Iterable[Line]]] = {
    "wake": _wake, "urgent": _urgent, "roundtrip": _roundtrip, "growth": _growth, "history": _history, "start": _start,
}  # fmt: skip

ROWS = (*RACED, *ALONE)


def take(bench: Bench, rows: Sequence[str], say: Callable[[str], None]) -> list[Line]:
    """All lines of the rows that are asked for. A row that fails is a line that says so; the others go on."""
    lines: list[Line] = []
    racing = [row for row in rows if row in RACED]
    if racing:
        runners = [BARE, OURS, *(each for row in racing for each in RACING[row])]
        found = race(bench, runners, say)
        for row in racing:
            lines += RACED[row](found)
    for row in rows:
        if row in ALONE and not bench.may_begin():
            lines.append(skipped(row, "", None, "not run: time is up; --minutes gives it more"))
        elif row in ALONE:
            say(row)
            try:
                lines += ALONE[row](bench)
            except Failed as error:
                say(f"{row}: {error}")
                lines.append(failed(row, "", None, str(error)))
    return lines
