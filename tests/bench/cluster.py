"""The product on many hosts as a side: PostgreSQL and workers as an operator starts them, all on this machine."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from distributor.app import open_distributor
from distributor.settings import load_district, load_settings
from tests.bench.district import EVERYBODY, approve, write_installation
from tests.bench.poster import CHANNELS
from tests.bench.sides import TIED, Failed, Job, Stopwatch, cpu_of, memory, stopped
from tests.peers.postgres import programs

LOOK_EVERY = 0.02  # seconds between two looks at whether all is done: each is a query


def missing() -> str:
    """What this machine lacks for it, and how to get it; "" when nothing."""
    return "" if programs() is not None else "not run: PostgreSQL is missing: make peers"


async def post(job: Job) -> dict[str, Any]:
    """One story to ``n`` outlets by ``more["workers"]`` processes of ``distributor worker``, one kind of outlet."""
    folder = Path(job.folder)
    _bring_channels(folder)
    config = write_installation(folder, job.n, "bench_post", job.address, job.more["database"])
    command = [sys.executable, "-m", "distributor", "--config", str(config)]
    subprocess.run([*command, "migrate"], check=True, stdout=subprocess.DEVNULL, timeout=60)  # noqa: ASYNC221
    settings = load_settings(config)
    assert settings.district is not None
    async with open_distributor(settings, load_district(settings.district)) as core:
        await approve(core.desk, "water")
        eye = await asyncpg.connect(job.more["database"])
        with ExitStack() as running:
            workers = [running.enter_context(_worker(command)) for _ in range(job.more["workers"])]
            planning = Stopwatch()
            used = [cpu_of(each.pid) for each in workers]
            await core.desk.plan("editor", "water", [EVERYBODY])
            planned, watch = planning.seconds, Stopwatch()
            while await eye.fetchval("SELECT 1 FROM lane WHERE next_at IS NOT NULL LIMIT 1"):
                if watch.seconds > job.more["longest"]:
                    break
                if any(each.poll() is not None for each in workers):
                    raise Failed("a worker ended")
                await asyncio.sleep(LOOK_EVERY)
            drained = watch.seconds
            cpu = sum(cpu_of(each.pid) - before for each, before in zip(workers, used, strict=True))
            most = max(memory(each.pid)["rss_most"] for each in workers)
        live = await eye.fetchval("SELECT count(*) FROM delivery WHERE state = 'live'")
        counted = await eye.fetchval("SELECT count(*) FROM ledger_line WHERE outlet_id IS NOT NULL")
        by_each = await eye.fetchval("SELECT count(DISTINCT lease_token) FROM attempt WHERE outcome = 'live'")
        await eye.close()
    if live != counted:
        raise Failed(f"{live} live and {counted} counted")
    return {
        "done": live, "seconds": drained, "cpu": cpu, "rss_most": most, "plan_seconds": planned,
        "lanes_per_claim": live / max(by_each, 1),
    }  # fmt: skip


def _bring_channels(folder: Path) -> None:
    """Declare the channels of the bench as an installed package does, for this process and those that it starts."""
    package = folder / "plugins" / "bench_channels-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-channels\nVersion: 1.0\n", encoding="utf-8")
    points = [f"{kind} = {each.__module__}:{each.__name__}" for kind, each in CHANNELS.items()]
    (package / "entry_points.txt").write_text("\n".join(["[distributor.channels]", *points, ""]), encoding="utf-8")
    sys.path.append(str(package.parent))
    os.environ["PYTHONPATH"] = str(package.parent)


@contextmanager
def _worker(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """One ``distributor worker``, once it says that it is up."""
    with stopped(subprocess.Popen([*TIED, *command, "worker", "--json"], stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise Failed(f"a worker ended with {process.wait(10)}")
        yield process
