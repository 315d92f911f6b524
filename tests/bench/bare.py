"""The same POSTs by aiohttp alone: the ceiling for anything that sends with it from one process."""

import asyncio
import json
from typing import Any

import aiohttp

from tests.bench.poster import TEXT, TITLE, body_of, headers_of, outlet_ids
from tests.bench.sides import CONCURRENCY, Job, Stopwatch, memory


async def post(job: Job) -> dict[str, Any]:
    """``more["keeps_connections"]``: for the next POST, else each has its own."""
    ids = iter(outlet_ids(job.n))
    connector = aiohttp.TCPConnector(limit=CONCURRENCY, force_close=not job.more["keeps_connections"])

    async def send() -> None:
        for each in ids:
            token = f"bare.{each}.e1.v1"
            body = body_of(token, TITLE, TEXT)
            async with session.post(f"{job.address}/{each}", data=body, headers=headers_of(token)) as response:
                assert response.status == 200
                assert json.loads(await response.read())["data"]["id"] == token

    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        watch = Stopwatch()
        async with asyncio.TaskGroup() as senders:
            for _ in range(CONCURRENCY):
                senders.create_task(send())
        return {"done": job.n, **watch.read(), **memory()}
