"""``/metrics``: how the work stands, for Prometheus. Numbers only: no outlet's name, no story, no secret.

Each scrape reads the database once (`tally.pulse`); several hosts on one database tell the same of it, each its own of
the process and of attempts since it began.
"""

import asyncio
import ipaddress
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime

from aiohttp import web
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from distributor import __version__
from distributor.app import Distributor
from distributor.backup import last_backup
from distributor.clock import Clock
from distributor.errors import Unusable
from distributor.model import PRIORITY, WITHDRAWAL_PRIORITY, DeliveryState, Entry, LedgerKind
from distributor.tally import UNFINISHED, Pulse, Tried

__all__ = ["Gauges", "Metrics", "is_allowed"]

# Of lanes (`tally.pulse`) and of attempts (`model.Attempt.outcome`): shown from the start, so that a rate has a zero.
CONDITIONS = ("open", "paused", "breaker", "retry_after", "rate", "quota", "quiet", "quiet_hours")
OUTCOMES = ("live", "accepted", "gone", "retry", "refused", "doubt", "broken", "lost", "stopped")
PRIORITIES = {WITHDRAWAL_PRIORITY: "withdrawal"} | {number: str(name) for name, number in PRIORITY.items()}
# What a proxy adds. Its peer is the proxy, so that "the client is on this machine" would be true of the whole world.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def is_allowed(remote: str | None, headers: Mapping[str, str], networks: Sequence[str]) -> bool:
    """Whether a client may read the metrics: directly connected, from one of ``networks``. Pure."""
    if remote is None or any(name in headers for name in FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in ipaddress.ip_network(network) for network in networks)


class Gauges(Collector):
    """What was seen last, as Prometheus' families. Pure but for the process's own figures beside it."""

    def __init__(self) -> None:
        self.pulse: Pulse | None = None  # null: before the first scrape
        self.tried = Tried()
        self.free_bytes = 0
        self.backup_age: float | None = None  # seconds; null: no backup is known

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("distributor_build_info", "1, with the version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        free = "Free bytes where the data lies."
        yield GaugeMetricFamily("distributor_data_free_bytes", free, value=self.free_bytes)
        if self.backup_age is not None:
            told = "Seconds since the last complete backup."
            yield GaugeMetricFamily("distributor_backup_age_seconds", told, value=self.backup_age)
        if self.pulse is not None:
            yield from self._of(self.pulse)

    def _of(self, seen: Pulse) -> Iterator[Metric]:
        lag = "How late the oldest due work is that nothing holds back."
        yield GaugeMetricFamily("distributor_due_lag_seconds", lag, value=seen.lag.total_seconds())
        held = "1 while a district-wide hold stands."
        yield GaugeMetricFamily("distributor_hold", held, value=int(seen.held))
        doubt = "Deliveries of which nobody knows whether they are out."
        yield GaugeMetricFamily("distributor_in_doubt", doubt, value=seen.in_state(DeliveryState.IN_DOUBT))

        told = "Unfinished deliveries by state and kind of channel."
        deliveries = GaugeMetricFamily("distributor_deliveries", told, labels=["state", "channel"])
        for channel in sorted({channel for _state, channel in seen.deliveries}):
            for state in UNFINISHED:
                deliveries.add_metric([state.value, channel], seen.deliveries.get((state, channel), 0))
        yield deliveries

        lanes = GaugeMetricFamily("distributor_lanes", "Enabled outlets by condition.", labels=["condition"])
        for condition in sorted({*CONDITIONS, *seen.lanes}):
            lanes.add_metric([condition], seen.lanes.get(condition, 0))
        yield lanes

        told = "Due deliveries by priority, held back or not."
        due = GaugeMetricFamily("distributor_due", told, labels=["priority"])
        told = "Age of the oldest due delivery, held back or not."
        age = GaugeMetricFamily("distributor_queue_age_seconds", told, labels=["priority"])
        for number, name in PRIORITIES.items():
            waiting = seen.due.get(number)
            due.add_metric([name], waiting.deliveries if waiting else 0)
            age.add_metric([name], waiting.age.total_seconds() if waiting else 0)
        yield due
        yield age

        told = "Lines in the ledger of the week that runs."
        ledger = GaugeMetricFamily("distributor_ledger_lines_week", told, labels=["kind", "entry"])
        for kind in LedgerKind:
            for entry in Entry:
                ledger.add_metric([kind.value, entry.value], seen.ledger.get((kind, entry), 0))
        yield ledger

        told = "Attempts by outcome, all hosts, since this process was first asked."
        attempts = CounterMetricFamily("distributor_attempts", told, labels=["outcome"])
        for outcome in sorted({*OUTCOMES, *self.tried.ended}):
            attempts.add_metric([outcome], self.tried.ended.get(outcome, 0))
        yield attempts


class ProcessFigures(ProcessCollector):
    """The library's figures of this process, also where systemd's ``ProcSubset=pid`` hides ``/proc/stat``.

    Without the time of the last boot, which it reads there, the library tells nothing at all.
    """

    def __init__(self, clock: Clock, registry: CollectorRegistry, proc: str = "/proc") -> None:
        self._clock = clock
        super().__init__(proc=proc, registry=registry)

    def _boot_time(self) -> float:
        return self._clock.now().timestamp() - clock_gettime(CLOCK_BOOTTIME)


class Metrics:
    """One application's page."""

    def __init__(self, core: Distributor) -> None:
        self._core = core
        self._gauges = Gauges()
        self._tried: Tried | None = None
        self._turn = asyncio.Lock()  # two scrapes at once would each add the same attempts
        self._registry = CollectorRegistry()
        self._registry.register(self._gauges)
        ProcessFigures(core.clock, self._registry)

    async def page(self, request: web.Request) -> web.Response:
        """The page, or 404 to those who may not read it.

        Raises:
            Unusable: ``database_refused``, ``disk_refused``: answered with 503, for Prometheus a target that is down.
        """
        if not is_allowed(request.remote, request.headers, self._core.settings.metrics_allow):
            raise web.HTTPNotFound
        async with self._turn:
            now = self._core.clock.now()
            self._gauges.pulse, self._tried = await self._core.tally.pulse(now, self._tried)
            self._gauges.tried = self._tried
            data = self._core.settings.data_dir
            self._gauges.free_bytes = await asyncio.to_thread(_free_bytes, data)
            taken = await asyncio.to_thread(last_backup, data)
            self._gauges.backup_age = None if taken is None else max((now - taken).total_seconds(), 0.0)
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
            body = encode(self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise Unusable("disk_refused", path=str(folder), why=error.strerror or str(error)) from error
