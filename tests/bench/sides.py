"""Those who are measured, each in a process of its own: ``python -m tests.bench.sides`` with a `Job` as JSON.

A side is an async function that takes its job and returns what it found as a dict, ``done`` (items posted) among it.
Start-up and set-up are never part of a figure.
"""

import asyncio
import importlib
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distributor import logs
from distributor.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
CONCURRENCY = Settings.model_fields["concurrency"].default  # everybody has as many calls under way
# A program that dies with whoever started it, however that ends: nothing is left behind.
TIED = ("setpriv", "--pdeathsig", "KILL")

SIDES = {  # imported in the process that needs it: what a side has in memory is its own matter
    "bare": "tests.bench.bare:post",
    "cluster": "tests.bench.cluster:post",
    "celery": "tests.bench.celery_side:post",
    "ours": "tests.bench.product:post",
    "wake": "tests.bench.product:wake",
    "urgent": "tests.bench.product:urgent",
    "growth": "tests.bench.product:growth",
    "start": "tests.bench.product:start",
}


@dataclass(frozen=True)
class Job:
    """What one side has to do. ``folder`` is its own and empty; ``port`` is the platform's; ``n`` outlets."""

    side: str
    folder: str
    port: int
    n: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Failed(Exception):
    """A side did not do what it was to do; its figure would mean nothing."""


def apart(job: Job, timeout: float) -> dict[str, Any]:
    """Let a side do its job in a process of its own; returns what it found.

    Raises:
        Failed: with the end of what it said.
    """
    folder = Path(job.folder)
    with (folder / "said").open("wb") as said:
        try:
            done = subprocess.run(
                [*TIED, sys.executable, "-m", "tests.bench.sides", json.dumps(asdict(job))], cwd=ROOT, timeout=timeout,
                stdout=subprocess.PIPE, stderr=said, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{job.side}: not done after {timeout:.0f} s") from error
    if done.returncode:
        tail = (folder / "said").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Failed(f"{job.side}: exit code {done.returncode}\n{tail}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass
class Stopwatch:
    """Wall and CPU seconds of this process since it was started."""

    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.wall

    def read(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu": time.process_time() - self.cpu}


def memory(pid: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MB: now and at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)
                 if name in ("VmRSS", "VmHWM")}  # fmt: skip
    return {"rss": kilobytes["VmRSS"] / 1024, "rss_most": kilobytes["VmHWM"] / 1024}


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # user and system, in ticks that Linux fixes at 1/100 s


@contextmanager
def stopped(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """The process while the block lasts; asked to end after it, and made to when it doesn't."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)


def here(job: Job) -> dict[str, Any]:
    """Let a side do its job in this process; returns what it found."""
    module, _, name = SIDES[job.side].partition(":")
    found: dict[str, Any] = asyncio.run(getattr(importlib.import_module(module), name)(job))
    return found


def main() -> None:
    logs.configure("console", level=logging.INFO)  # as `serve` does; it goes to a file
    print(json.dumps(here(Job(**json.loads(sys.argv[1])))), flush=True)


if __name__ == "__main__":
    main()
