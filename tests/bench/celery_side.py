"""Celery with Redis as a side: a broker and a worker of its own on loopback, doing the POSTs and nothing else."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.poster import outlet_ids
from tests.bench.receiver import Receiver
from tests.bench.sides import CONCURRENCY, TIED, Failed, Job, Stopwatch, cpu_of, memory, stopped


def missing() -> str:
    """What this machine lacks for it, and how to get it; "" when nothing."""
    if shutil.which("redis-server") is None:
        return "not run: redis-server is missing: make peers"
    return ""


async def post(job: Job) -> dict[str, Any]:
    """All tasks are in the broker before the worker starts; its clock runs from its first POST to its last."""
    folder = Path(job.folder)
    with _redis(folder) as port:
        os.environ |= {"BENCH_BROKER": f"redis://127.0.0.1:{port}/0", "BENCH_PORT": str(job.port)}
        from tests.bench.celery_app import post as task  # noqa: PLC0415  # reads the environment when it is imported

        sending = Stopwatch()
        for each in outlet_ids(job.n):
            task.delay(each)
        sent = sending.seconds
        with stopped(subprocess.Popen(  # noqa: ASYNC220  # nothing else runs in this loop
            [*TIED, sys.executable, "-m", "celery", "-A", "tests.bench.celery_app", "worker", "--pool", "threads",
             "--concurrency", str(CONCURRENCY), "--loglevel", "WARNING", "--without-gossip", "--without-mingle",
             "--without-heartbeat"],
            stdout=subprocess.DEVNULL,
        )) as worker:  # fmt: skip
            platform, watch = Receiver(job.port), Stopwatch()
            while (done := platform.posts()) < job.n and watch.seconds < job.more["longest"]:
                if worker.poll() is not None:
                    raise Failed(f"the worker ended with {worker.returncode}")
                await asyncio.sleep(0.05)
            cpu, used = cpu_of(worker.pid), memory(worker.pid)
        came = sorted(platform.seen().first.values())
    if len(came) < 2:
        raise Failed(f"{done} posts came")
    return {"done": len(came), "seconds": came[-1] - came[0], "cpu": cpu, "enqueue_seconds": sent, **used}


@contextmanager
def _redis(folder: Path) -> Iterator[int]:
    """A Redis that flushes its log each second, as it is shipped for queues; gone with its data afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*TIED, "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "",
               "--appendonly", "yes", "--appendfsync", "everysec"]  # fmt: skip
    with stopped(subprocess.Popen(command, stdout=subprocess.DEVNULL)):
        _reachable(port)
        yield port


def _reachable(port: int) -> None:
    watch = Stopwatch()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError as error:
            if watch.seconds > 10:
                raise Failed("redis-server does not answer") from error
        else:
            return
