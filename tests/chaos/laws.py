"""What must hold at the end, as pure functions: the database against the platform's own log.

Each law yields a sentence for each thing that breaks it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distributor.model import Delivery, DeliveryState, Entry, LedgerKind, LedgerLine, Reason
from tests.chaos.district import kind_of
from tests.chaos.platform import IDEMPOTENT, REFUSED_IN_WORDS, Books
from tests.chaos.platform import Entry as Logged

AT_REST = frozenset({
    DeliveryState.LIVE, DeliveryState.RECALLED, DeliveryState.REPLACED, DeliveryState.FAILED, DeliveryState.CANCELLED,
})  # fmt: skip


@dataclass
class End:
    """What a run left behind. ``boards``: outlet -> item key -> token, of the shelves that are files."""

    deliveries: Sequence[Delivery]
    lines: Sequence[LedgerLine]
    log: Sequence[Logged]
    boards: Mapping[str, Mapping[str, str]]
    retracted: frozenset[tuple[str, int]]  # (story, episode) that a person withdrew
    loose: Sequence[str] = ()  # leases, attempts without an end, lanes that didn't know when they are due
    asked: frozenset[tuple[str, str]] = field(default_factory=frozenset)  # (outlet, token) shown to a person

    def books(self) -> Books:
        books = Books()
        for entry in self.log:
            books.write(entry)
        for outlet, items in self.boards.items():
            for key, token in items.items():
                books.on_air[outlet, key] = [token]
                books.seen.add((outlet, token))
        return books


def _token(row: Delivery) -> str:
    return f"{row.key}.v{row.version}"


def broken(end: End) -> Iterator[str]:
    """Every law that the run broke."""
    books = end.books()
    yield from nothing_is_lost(end, books)
    yield from the_ledger_is_exact(end, books)
    yield from nothing_is_sent_on_a_guess(end, books)
    yield from every_doubt_is_shown_to_a_person(end, books)
    for what in end.loose:
        yield f"left behind: {what}"


def nothing_is_lost(end: End, books: Books) -> Iterator[str]:
    """Every delivery has come to rest where the platform's log says it is."""
    shown = dict(books.on_air)
    for row in end.deliveries:
        token, place = _token(row), (row.outlet_id, row.key)
        seen = (row.outlet_id, token) in books.seen
        if row.state not in AT_REST:
            yield f"{token} is {row.state}"
        elif row.state is DeliveryState.LIVE:
            if shown.pop(place, None) != [token]:
                yield f"{token} is live, the platform shows {books.on_air.get(place)}"
        elif token in books.on_air.get(place, ()):
            yield f"{token} is {row.state}, and the platform shows it"
        elif row.state is DeliveryState.FAILED and seen and row.reason is not Reason.RESOLVED:
            yield f"{token} failed, and readers have seen it"
        elif row.live_at and not seen and kind_of(row.outlet_id) != "board":  # a file keeps no log of what it showed
            yield f"{token} is {row.state}, and nobody has ever seen it"
    yield from (f"{outlet} shows {tokens} of no live delivery" for (outlet, _), tokens in shown.items())


def the_ledger_is_exact(end: End, books: Books) -> Iterator[str]:
    """Counted once for each (outlet, story, episode) that was proven live, reversed exactly where it was withdrawn."""
    sums: Counter[tuple[str, str, int]] = Counter()
    entries: Counter[tuple[str, str, int, Entry]] = Counter()
    for line in end.lines:
        if line.kind in (LedgerKind.PUBLISH, LedgerKind.PUSHED):
            assert line.outlet_id is not None
            sums[line.outlet_id, line.story_id, line.episode] += line.n
            entries[line.outlet_id, line.story_id, line.episode, line.entry] += 1
    for place, n in entries.items():
        if n > 1:
            yield f"{place} stands {n} times in the ledger"
    proven: dict[tuple[str, str, int], list[Delivery]] = {}
    for row in end.deliveries:
        if row.live_at is not None:
            proven.setdefault((row.outlet_id, row.story_id, row.episode), []).append(row)
    for place, rows in proven.items():
        outlet, story, episode = place
        if kind_of(outlet) != "board" and not any((outlet, _token(row)) in books.seen for row in rows):
            yield f"{place} was counted as live, and nobody has ever seen it"
        expected = int((story, episode) not in end.retracted)  # what ran its full course stays counted
        if sums.pop(place, 0) != expected:
            yield f"{place} counts otherwise than {expected}"
    yield from (f"{place} is counted and was never proven live" for place in sums)


def nothing_is_sent_on_a_guess(end: End, books: Books) -> Iterator[str]:
    """No second post on outlets that honour the token or can be checked; no post after one that may have gone out."""
    for (_, token), n in books.taken.items():
        if n > 1:
            yield f"{token} was published {n} times"
    last: dict[tuple[str, str], Logged] = {}
    for entry in end.log:
        if entry.verb not in ("deliver", "check", "look", "withdraw") or kind_of(entry.outlet) in IDEMPOTENT:
            continue
        before = last.get((entry.outlet, entry.token))
        again = entry.verb == "deliver" and before is not None and before.verb == "deliver"
        if again and before.fault not in REFUSED_IN_WORDS:
            yield f"{entry.token} was sent again after {before.fault or 'a success'}, and nobody had looked"
        last[entry.outlet, entry.token] = entry


def every_doubt_is_shown_to_a_person(end: End, books: Books) -> Iterator[str]:
    """Where nobody but a person can look, whatever was posted without a clear answer was put before one."""
    withdrawn = {(one.outlet, one.key) for one in end.log if one.verb == "withdraw"}
    for entry in end.log:
        unclear = entry.fault not in REFUSED_IN_WORDS and entry.fault not in ("", "202", "204")
        told = (entry.outlet, entry.token) in end.asked or (entry.outlet, entry.key) in withdrawn
        if entry.verb == "deliver" and kind_of(entry.outlet) == "blind" and unclear and not told:
            yield f"{entry.token} is doubtful ({entry.fault}) and no person was asked"
