"""``make bench``: take the figures, print a table, write ``build/bench.json``. Exit code 0 also where one is missed."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.lines import machine, table, write
from tests.bench.race import Bench
from tests.bench.receiver import receiver
from tests.bench.rows import ROWS, take

ROOT = Path(__file__).resolve().parent.parent.parent


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help="of " + ", ".join(ROWS))
    parser.add_argument("--outlets", type=int, default=10_000, help="of the race (10000); others in proportion")
    parser.add_argument("--repeats", type=int, default=3, help="of the race (3); the figure is the median")
    parser.add_argument("--profile", action="store_true", help="where the product's time goes: build/profile")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    asked = parser.parse_args()
    profiles = None
    if asked.profile:
        profiles = asked.out.parent / "profile"
        profiles.mkdir(parents=True, exist_ok=True)
    facts, began = machine(), time.monotonic()
    with receiver() as platform, tempfile.TemporaryDirectory(prefix="distributor-bench-") as folder:
        bench = Bench(platform, Path(folder), asked.outlets, asked.repeats, profiles)
        lines = take(bench, asked.only or ROWS, _say)
    facts["seconds"] = round(time.monotonic() - began)
    write(asked.out, lines, facts)
    print(table(lines))
    missed = sum(each.holds is False for each in lines)
    print(f"\n{len(lines)} figures, {missed} missed; {facts['words']}; {facts['seconds']} s; written to {asked.out}")
    for each in sorted(profiles.glob("*.txt")) if profiles else ():
        print(f"profile: {each}")


if __name__ == "__main__":
    main()
