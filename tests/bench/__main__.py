"""``make bench``: take the figures, print a table, write ``build/bench.json``. Exit code 0 also where one is missed."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.lines import Line, line, machine, table, write
from tests.bench.race import (
    BARE,
    BARE_CLOSING,
    MEMORY,
    OURS,
    OURS_ONCE,
    RATIO,
    Bench,
    Runner,
    lines_of,
    race,
    ratios,
)
from tests.bench.receiver import receiver

ROOT = Path(__file__).resolve().parent.parent.parent

# What takes part in the race for each row; the bare client and the product always do.
RUNNERS: dict[str, list[Runner]] = {"post": [BARE_CLOSING, OURS_ONCE], "memory": []}
TRANSACTIONS = (("plan_seconds", "s", ""), ("lanes_per_claim", "", ""), ("rows_per_settle", "", ""))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _race(bench: Bench, rows: set[str]) -> list[Line]:
    runners = [BARE, OURS, *(each for row, some in RUNNERS.items() if row in rows for each in some)]
    found = race(bench, runners, _say)
    lines: list[Line] = []
    if "post" in rows:
        lines += [
            ratios("post.ratio", found, "ours", "bare", RATIO, "bare client keeps its connections"),
            ratios("post.ratio_closing", found, "ours", "bare_closing", None, "bare client opens one for each POST"),
            ratios("post.ratio_once", found, "ours_once", "bare", None, "outlet that is not idempotent"),
            *lines_of("post.bare", found["bare"]),
            *lines_of("post.bare_closing", found["bare_closing"]),
        ]
        for name, key in (("post.ours", "ours"), ("post.ours_once", "ours_once")):
            lines += lines_of(
                name, found[key], (("plan_seconds", "s", ""), ("lanes_per_claim", "", ""), ("rows_per_settle", "", ""))
            )
    if "memory" in rows and not isinstance(ours := found["ours"], str):
        lines.append(line("memory.most", [each["rss_most"] for each in ours], "MB", MEMORY, "after 10,000 outlets"))
        lines.append(line("memory.before", [each["rss_before"] for each in ours], "MB"))
    return lines


ROWS: tuple[str, ...] = ("post", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}; repeatable"
    )
    parser.add_argument("--outlets", type=int, default=10_000, help="of the race (10000)")
    parser.add_argument("--repeats", type=int, default=3, help="of the race (3); the figure is the median")
    parser.add_argument(
        "--profile", action="store_true", help="look where the product's time goes: build/profile/*.txt"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    asked = parser.parse_args()
    rows = set(asked.only or ROWS)
    profiles = None
    if asked.profile:
        profiles = asked.out.parent / "profile"
        profiles.mkdir(parents=True, exist_ok=True)
    facts, began = machine(), time.monotonic()
    with receiver() as platform, tempfile.TemporaryDirectory(prefix="distributor-bench-") as folder:
        bench = Bench(platform, Path(folder), asked.outlets, asked.repeats, profiles)
        lines = _race(bench, rows)
    facts["seconds"] = round(time.monotonic() - began)
    write(asked.out, lines, facts)
    print(table(lines))
    print(f"\n{facts['words']}; {facts['seconds']} s; written to {asked.out}")
    for each in sorted(profiles.glob("*.txt")) if profiles else ():
        print(f"profile: {each}")


if __name__ == "__main__":
    main()
