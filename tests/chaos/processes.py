"""The processes of a run, as whoever conducts it holds them: the platform, and the workers that are killed."""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[2]
PATIENCE = 60  # seconds for a process to begin, or to end when it is asked to


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that began it has died: a run leaves nothing behind."""
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)


@asynccontextmanager
async def _python(module: str, *words: str, under: Sequence[str] = ()) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *under, sys.executable, "-m", module, *words, cwd=HOME,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


class PlatformProcess:
    """`platform` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._moved = asyncio.Event()
        self.url = ""
        self.served = 0

    @classmethod
    @asynccontextmanager
    async def started(cls, log: Path, seed: int) -> AsyncIterator["PlatformProcess"]:
        async with _python("tests.chaos.platform", str(log), str(seed)) as process:
            platform = cls(process)
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE):
                word, _, port = (await process.stdout.readline()).decode().strip().partition(" ")
            assert word == "ready"
            platform.url = f"http://127.0.0.1:{port}"
            listening = asyncio.create_task(platform._listen(process.stdout))
            try:
                yield platform
            finally:
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self, said: asyncio.StreamReader) -> None:
        while line := await said.readline():
            self.served = int(line.split()[1])
            self._moved.set()

    async def reached(self, served: int, within: float) -> bool:
        """Wait until so many calls have been served, at most ``within`` seconds; whether they were."""
        try:
            async with asyncio.timeout(within):
                while self.served < served:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True


class Nursery:
    """A process that has imported the product once, and forks a worker whenever it is told to: one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._ended.set()
        self._pid = 0  # of the worker that lives now, or lived last
        self._status = 0  # of the one that ended last; negative: the signal that ended it

    @classmethod
    @asynccontextmanager
    async def started(cls, log: Path, under: Sequence[str] = ()) -> AsyncIterator["Nursery"]:
        """``under``: a command to run it under (``ip netns exec …``)."""
        async with _python("tests.chaos.worker", str(log), under=under) as process:
            nursery = cls(process)
            listening = asyncio.create_task(nursery._listen())
            try:
                assert await nursery._hear() == "ready"
                yield nursery
            finally:
                nursery.kill()
                listening.cancel()
                await asyncio.wait([listening])

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode().strip():
            word, _, status = line.partition(" ")
            if word == "ended":
                self._status = int(status)
                self._ended.set()
            else:
                self._said.put_nowait(line)

    async def _hear(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return await self._said.get()

    async def begin(self, **order: Any) -> None:
        """Let a worker live; nobody waits until it works."""
        assert self.has_ended, "the last one still lives"
        assert self._process.stdin is not None
        self._ended.clear()
        self._process.stdin.write((json.dumps(order) + "\n").encode())
        word, _, pid = (await self._hear()).partition(" ")
        assert word == "began"
        self._pid = int(pid)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def kill(self) -> None:
        """-9."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end when what is under way has settled."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if not self.has_ended:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._pid, number)

    async def ended(self) -> int:
        """Wait until the worker has ended; how."""
        async with asyncio.timeout(PATIENCE):
            await self._ended.wait()
        return self._status
