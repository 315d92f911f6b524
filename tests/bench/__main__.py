"""``make bench``: take the figures, print a table, write ``build/bench.json``. Exit code 0 also where one is missed."""

import argparse
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.bench import cluster
from tests.bench.lines import machine, table, write
from tests.bench.race import Bench
from tests.bench.receiver import receiver
from tests.bench.rows import ROWS, take
from tests.peers.postgres import PostgresServer

ROOT = Path(__file__).resolve().parent.parent.parent


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, metavar="ROW", help="of " + ", ".join(ROWS))
    parser.add_argument("--outlets", type=int, default=10_000, help="of the race (10000); others in proportion")
    parser.add_argument("--repeats", type=int, default=3, help="of the race (3); the figure is the median")
    parser.add_argument("--minutes", type=float, default=9, help="what has not begun by then is not run (9)")
    parser.add_argument("--profile", action="store_true", help="where the product's time goes: build/profile")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    asked = parser.parse_args()
    profiles = None
    if asked.profile:
        profiles = asked.out.parent / "profile"
        profiles.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # as an exception: what was started is stopped
    rows = asked.only or ROWS
    facts, began = machine(), time.monotonic()
    with ExitStack() as started:
        server = None
        if "postgres" in rows and not cluster.missing():
            server = PostgresServer()  # durable, as an operator would run it
            started.callback(server.stop)
            server.start()
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="distributor-bench-")))
        platform = started.enter_context(receiver())
        ends = began + asked.minutes * 60
        bench = Bench(platform, folder, asked.outlets, asked.repeats, server, profiles, ends=ends)
        lines = take(bench, rows, _say)
    facts["seconds"] = round(time.monotonic() - began)
    write(asked.out, lines, facts)
    print(table(lines))
    missed = sum(each.holds is False for each in lines)
    print(f"\n{len(lines)} figures, {missed} missed; {facts['words']}; {facts['seconds']} s; written to {asked.out}")
    for each in sorted(profiles.glob("*.txt")) if profiles else ():
        print(f"profile: {each}")


if __name__ == "__main__":
    main()
