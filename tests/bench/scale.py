"""The capacity model of docs/scale.md: figures of a run, two loads, and what follows from them. Pure but for `main`.

``python -m tests.bench.scale`` fills the marked parts of docs/scale.md from docs/scale.json; with the file of a run
(``build/bench.json``) it first takes the figures of that run over into docs/scale.json.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributor.dispatch import Policy
from distributor.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT, FIGURES = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.json"

# What the model assumes; everything else is measured.
BUSIEST_HOUR = 0.2  # of a day's deliveries go out in its busiest hour
STAYS_SHARE = 0.1  # of the deliveries stay on their outlets for good, so that their rows are never dropped
PICTURES_MB = 1.0  # of pictures, adapted ones included, that a story leaves among the blobs
# Calls at a time as shipped, without those that are kept for withdrawals and urgent stories.
SLOTS = Settings.model_fields["concurrency"].default - Policy.reserved
RETENTION_DAYS = Settings.model_fields["retention_days"].default  # how long what is off is remembered
USUAL_TRIP, SLOW_TRIP = 0.1, 1.0  # seconds that a platform takes to answer


@dataclass(frozen=True)
class Load:
    """What an installation has to carry in a day."""

    outlets: int
    stories: int
    reach: int  # outlets of a usual story
    campaigns: int  # of them to every outlet

    @property
    def deliveries(self) -> int:
        return (self.stories - self.campaigns) * self.reach + self.campaigns * self.outlets


DISTRICT = Load(outlets=100, stories=30, reach=100, campaigns=0)
PROVINCE = Load(outlets=10_000, stories=1_000, reach=100, campaigns=10)
EVERYTHING = Load(outlets=10_000, stories=1_000, reach=0, campaigns=1_000)


@dataclass(frozen=True)
class Figures:
    """The figures of one run."""

    date: str
    machine: str
    values: Mapping[str, float | None]
    notes: Mapping[str, str]

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Figures":
        lines = said["lines"]
        return cls(
            said["machine"]["date"], said["machine"]["words"], {each["name"]: each["value"] for each in lines},
            {each["name"]: each["note"] for each in lines},
        )  # fmt: skip

    def __getitem__(self, name: str) -> float:
        value = self.values[name]
        if value is None:
            raise KeyError(f"{name} was not measured: {self.notes[name]}")
        return value

    @property
    def rate(self) -> float:
        """Deliveries a second by one process on SQLite, settled and counted."""
        return self["post.ours.rate"]

    @property
    def kilobytes_for_outlet(self) -> float:
        return (self["growth.100k.memory"] - self["growth.10k.memory"]) / 90_000 * 1024

    @property
    def bytes_for_delivery(self) -> float:
        """Delivery, attempt and receipt: what retention drops."""
        return self["history.1m.bytes"] - self["history.1m.ledger_bytes"]


def campaign_seconds(load: Load, figures: Figures, trip: float, slots: int = SLOTS) -> float:
    """One story to every outlet: as fast as the writer writes, or as the platforms answer, whichever is slower.

    Never sooner than the first answer.
    """
    return max(trip, load.outlets / min(figures.rate, slots / trip))


def database_gb(load: Load, figures: Figures, years: float) -> float:
    """Size after ``years``: the rows that retention keeps, those that stay for good, and every count."""
    days = years * 365
    remembered = min(days, RETENTION_DAYS) * (1 - STAYS_SHARE) + days * STAYS_SHARE
    rows = load.deliveries * remembered * figures.bytes_for_delivery
    return (rows + load.deliveries * days * figures["history.1m.ledger_bytes"]) / 1e9


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────
def short(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def span(seconds: float) -> str:
    """Two significant digits, in the unit that a person would use."""
    for unit, of, least in (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 1)):
        if seconds >= least:
            return f"{_two(seconds / of)} {unit}"
    return f"{_two(seconds * 1000)} ms"


def _two(value: float) -> str:
    return short(float(f"{value:.2g}"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def summary(f: Figures) -> str:
    needed = PROVINCE.deliveries * BUSIEST_HOUR / 3600
    return (
        f"One small server ({f.machine}) sends and counts {short(f.rate)} deliveries a second. A district's day of "
        f"{short(DISTRICT.deliveries)} deliveries is {span(DISTRICT.deliveries / f.rate)} of work. A province's usual "
        f"day of {short(PROVINCE.deliveries)} is {span(PROVINCE.deliveries / f.rate)}; its busiest hour needs "
        f"{short(needed)} a second. One story to all {short(PROVINCE.outlets)} outlets of a province is out after "
        f"{span(campaign_seconds(PROVINCE, f, USUAL_TRIP))} where platforms answer in {span(USUAL_TRIP)}, after "
        f"{span(campaign_seconds(PROVINCE, f, SLOW_TRIP))} where they take {span(SLOW_TRIP)}. An urgent story behind "
        f"a hundred thousand others reaches its outlets within {span(f['urgent.lag.p99'] / 1000)} (99 of 100)."
    )


def summary_zh(f: Figures) -> str:
    needed = PROVINCE.deliveries * BUSIEST_HOUR / 3600
    return (
        f"一台小服务器（{_zh(f.machine)}）每秒能投放并计数 {short(f.rate)} 次。一个区县一天 "
        f"{short(DISTRICT.deliveries)} 次投放，合计用时 {span_zh(DISTRICT.deliveries / f.rate)}；一个省平常一天 "
        f"{short(PROVINCE.deliveries)} 次，合计 {span_zh(PROVINCE.deliveries / f.rate)}，最忙的一小时每秒需要 "
        f"{short(needed)} 次。一条稿件发到全省 {short(PROVINCE.outlets)} 个终端：平台 {span_zh(USUAL_TRIP)}应答时要 "
        f"{span_zh(campaign_seconds(PROVINCE, f, USUAL_TRIP))}，{span_zh(SLOW_TRIP)}应答时要 "
        f"{span_zh(campaign_seconds(PROVINCE, f, SLOW_TRIP))}。前面排着十万次普通投放时，急稿在 "
        f"{span_zh(f['urgent.lag.p99'] / 1000)}内送到终端（百分之九十九的情况）。"
    )


def _zh(machine: str) -> str:
    return machine.replace(" cores", " 核").replace(", ", "，").replace(" GB", " GB 内存")


def span_zh(seconds: float) -> str:
    words = span(seconds)
    for unit, said in ((" ms", " 毫秒"), (" min", " 分钟"), (" h", " 小时"), (" s", " 秒")):
        words = words.replace(unit, said)
    return words


MEASURED = (
    ("post.ours.rate", "deliveries a second: sent, settled, counted; SQLite, one process"),
    ("post.bare.rate", "the same POSTs by the bare client, connections kept"),
    ("post.bare_closing.rate", "the same POSTs by the bare client, a connection for each"),
    ("post.ratio", "the product against the bare client that keeps its connections, in one run"),
    ("post.ratio_closing", "against the bare client that opens one for each"),
    ("post.ratio_once", "outlets that are not idempotent, against the bare client that keeps its connections"),
    ("post.ratio_cpu", "the same in processor time, which other work on the machine does not change"),
    ("post.ours.cpu", "CPU seconds of the product for 10,000"),
    ("celery.ratio", "against Celery and Redis doing the POSTs alone"),
    ("postgres.ratio_1", "PostgreSQL, one worker, against the bare client"),
    ("postgres.ratio_2", "PostgreSQL, two workers, against the bare client"),
    ("wake.all.p99", "commit of a plan to first byte, all of 100 outlets, 99 of 100"),
    ("urgent.lag.p99", "urgent story behind 100,000 deliveries, 99 of 100"),
    ("memory.most", "memory of the process after 10,000 deliveries, at its highest"),
    ("roundtrip.20ms", "deliveries a second where the platform takes 20 ms"),
    ("roundtrip.100ms", "deliveries a second where the platform takes 100 ms"),
    ("growth.1k.rate", "deliveries a second with 1,000 outlets due"),
    ("growth.10k.rate", "deliveries a second with 10,000 outlets due"),
    ("growth.100k.rate", "deliveries a second with 100,000 outlets due"),
    ("history.1m.rate", "deliveries a second with 10,000 outlets due, beside a million finished deliveries"),
    ("growth.1k.claim", "claim of 64 lanes among 1,000 outlets"),
    ("growth.100k.claim", "claim of 64 lanes among 100,000 outlets"),
    ("history.1m.claim", "claim of 64 lanes with a million finished deliveries"),
    ("growth.1k.settle", "settle of 64 rows among 1,000 outlets"),
    ("growth.100k.settle", "settle of 64 rows among 100,000 outlets"),
    ("history.1m.settle", "settle of 64 rows with a million finished deliveries"),
    ("growth.10k.plan", "plan of one story for 10,000 outlets"),
    ("history.1m.bytes", "database for each delivery with attempt, receipt and count"),
    ("history.1m.ledger_bytes", "of these for its line in the ledger"),
    ("start.again", "start with 2,000 outlets when nothing has changed"),
)


def figures(said: Mapping[str, Any]) -> str:
    lines = {each["name"]: each for each in said["lines"]}
    rows = []
    for name, words in MEASURED:
        one = lines.get(name)
        if one is None:
            continue
        value = "not measured" if one["value"] is None else f"{short(one['value'])} {one['unit']}".strip()
        held = {True: "holds", False: "missed", None: ""}[one["holds"]]
        rows.append((f"`{name}`", words, value, one["target"] or "", held))
    return _table(("figure", "what", "measured", "target", ""), rows)


def loads(f: Figures) -> str:
    columns = (DISTRICT, PROVINCE, EVERYTHING)
    names = ("a district", "a province", "everything everywhere")
    every: tuple[tuple[str, Callable[[Load], str]], ...] = (
        ("outlets", lambda one: short(one.outlets)),
        ("stories a day", lambda one: short(one.stories)),
        ("of them to every outlet", lambda one: short(one.campaigns) if one.campaigns else "–"),
        ("deliveries a day", lambda one: short(one.deliveries)),
        ("the writer at work", lambda one: f"{span(one.deliveries / f.rate)} a day"),
        ("needed in the busiest hour", lambda one: f"{short(one.deliveries * BUSIEST_HOUR / 3600)}/s"),
        ("of what one process does", lambda one: f"{short(one.deliveries * BUSIEST_HOUR / 36 / f.rate)} %"),
        ("one story to all, platforms in 100 ms", lambda one: span(campaign_seconds(one, f, USUAL_TRIP))),
        ("one story to all, platforms in 1 s", lambda one: span(campaign_seconds(one, f, SLOW_TRIP))),
        ("database after a year", lambda one: f"{short(database_gb(one, f, 1))} GB"),
        ("of it lines of the ledger",
         lambda one: f"{short(one.deliveries * 365 * f['history.1m.ledger_bytes'] / 1e9)} GB"),
        ("blobs after a year", lambda one: f"{short(one.stories * 365 * PICTURES_MB / 1000)} GB"),
        ("memory for its outlets", lambda one: f"{short(one.outlets * f.kilobytes_for_outlet / 1024)} MB"),
        ("start", lambda one: span(f["start.again"] * one.outlets / 2000)),
    )  # fmt: skip
    return _table(("", *names), [(name, *(say(one) for one in columns)) for name, say in every])


def limits(f: Figures) -> str:
    rows = (
        ("the writer: one process, one SQLite file", f"{short(f.rate)} deliveries a second, "
         f"{short(f.rate * 3600)} an hour", "PostgreSQL with several workers"),
        (f"round trip: {SLOTS} calls at a time ÷ time of an answer",
         f"{short(SLOTS / USUAL_TRIP)}/s at {span(USUAL_TRIP)}, {short(SLOTS / SLOW_TRIP)}/s at {span(SLOW_TRIP)}",
         "raise `concurrency`: a call that waits costs memory, no CPU"),
        ("one outlet: one call at a time", f"{short(1 / USUAL_TRIP)}/s at {span(USUAL_TRIP)}",
         "nothing: platforms allow less (their daily quota)"),
        ("claim, as rows pile up", f"{short(f['growth.10k.claim'])} ms for 64 of 10,000 lanes that are due, "
         f"{short(f['history.1m.claim'])} ms beside a million finished deliveries", "`retention_days`"),
        ("claim, as outlets are added", f"{short(f['growth.1k.claim'])} ms for 64 of 1,000 lanes that are due, "
         f"{short(f['growth.100k.claim'])} ms of 100,000", "several districts, each with a database of its own"),
        ("planning: one transaction", f"{span(f['growth.10k.plan'])} for 10,000 outlets, during which nothing settles",
         "several publications of some thousand outlets each"),
        ("database", f"{short(f.bytes_for_delivery)} bytes a delivery until it is forgotten, "
         f"{short(f['history.1m.ledger_bytes'])} a count for ever", "`retention_days`; closed years to an archive"),
        ("memory", f"{short(f['memory.most'])} MB with 10,000 outlets, {short(f.kilobytes_for_outlet)} KB for one more",
         "more memory: each worker knows all outlets"),
        ("start", f"{span(f['start.again'] / 2)} for 1,000 outlets, for each command too", "nothing: starts are rare"),
    )  # fmt: skip
    return _table(("part", "limit here", "what takes over"), rows)


def taken(machine: Mapping[str, Any]) -> str:
    """When and on what; a machine that had other work gives figures that are too low, and says so."""
    words = f"Taken on {machine['date']} on {machine['words']}."
    if machine["load_before"] > machine["cores"] / 2:
        words += f" Other work kept it busy (load {machine['load_before']:g}): rates are low, ratios rough."
    return words


PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "summary": lambda said: summary(Figures.of(said)),
    "summary-zh": lambda said: summary_zh(Figures.of(said)),
    "figures": figures,
    "loads": lambda said: loads(Figures.of(said)),
    "limits": lambda said: limits(Figures.of(said)),
    "taken": lambda said: taken(said["machine"]),
}


def filled(document: str, said: Mapping[str, Any]) -> str:
    """The document with each marked part as the figures say it."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}{PARTS[found[2]](said)}\n{found[3]}"

    return re.sub(r"(<!-- scale:([a-z-]+) -->\n).*?(<!-- /scale:\2 -->)", fill, document, flags=re.DOTALL)


def taken_over(run: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: its lines in place of those of the same name, without long errors; what it ran on."""
    lines = {each["name"]: each for each in kept.get("lines", [])}
    lines |= {each["name"]: {**each, "note": each["note"].partition("\n")[0]} for each in run["lines"]}
    return {"machine": run["machine"], "lines": list(lines.values())}


def main(arguments: Sequence[str]) -> None:
    for argument in arguments:
        before = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
        kept = taken_over(json.loads(Path(argument).read_text(encoding="utf-8")), before)
        FIGURES.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    said = json.loads(FIGURES.read_text(encoding="utf-8"))
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8"), said), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
