"""The laws of chaos are sharp: each names what it is there to find, and says nothing of a run in which all is well."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from distributor.channel import Level, Proof
from distributor.model import Delivery, DeliveryState, Entry, LedgerKind, LedgerLine, Reason
from tests.chaos.laws import End, broken
from tests.chaos.platform import Entry as Logged

AT = datetime(2021, 8, 16, 1, tzinfo=UTC)
KEY = "water.{outlet}.e1"


def row(outlet: str = "risky1", version: int = 1, **overrides: Any) -> Delivery:
    given: dict[str, Any] = {
        "id": 1, "story_id": "water", "outlet_id": outlet, "episode": 1, "key": KEY.format(outlet=outlet),
        "version": version, "state": DeliveryState.LIVE, "live_at": AT,
    }  # fmt: skip
    return Delivery(**{**given, **overrides})


def line(outlet: str = "risky1", entry: Entry = Entry.COUNT) -> LedgerLine:
    return LedgerLine(
        kind=LedgerKind.PUBLISH, entry=entry, n=1 if entry is Entry.COUNT else -1, outlet_id=outlet, story_id="water",
        episode=1, evidence={"proof": Proof.LIVE, "level": Level.ACKNOWLEDGED},
    )  # fmt: skip


def log(verb: str, effect: str = "", fault: str = "", outlet: str = "risky1", version: int = 1) -> Logged:
    return Logged(outlet, verb, f"{KEY.format(outlet=outlet)}.v{version}", effect, fault)


def well(**overrides: Any) -> End:
    """One item that was posted, is shown and counted."""
    end = End([row()], [line()], [log("deliver", "stored")], {}, frozenset())
    return replace(end, **overrides)


def off(reason: Reason) -> dict[str, Any]:
    """The same item taken down again."""
    return {
        "deliveries": [row(state=DeliveryState.RECALLED, reason=reason)],
        "log": [log("deliver", "stored"), log("withdraw", "gone")],
    }


WITHDRAWN = frozenset({("water", 1)})
BLIND_DOUBT = {
    "deliveries": [row("blind1")], "lines": [line("blind1")],
    "log": [log("deliver", "stored", "answer lost", "blind1")],
}  # fmt: skip


@pytest.mark.parametrize(
    "end",
    [
        well(),
        well(**off(Reason.WITHDRAWN), lines=[line(), line(entry=Entry.REVERSAL)], retracted=WITHDRAWN),
        well(**off(Reason.ENDED)),
        well(log=[log("deliver", fault="503"), log("deliver", "stored")]),
        well(log=[log("deliver", fault="reset read"), log("check"), log("deliver", "stored")]),
        well(**BLIND_DOUBT, asked=frozenset({("blind1", "water.blind1.e1.v1")})),
        well(boards={"board1": {}}),
    ],
    ids=["shown", "withdrawn", "ended", "refused once", "looked, then sent again", "a person was asked", "empty board"],
)
def test_the_laws_say_nothing_where_all_is_well(end: End) -> None:
    assert list(broken(end)) == []


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (well(deliveries=[row(state=DeliveryState.QUEUED, live_at=None)], lines=[]), "v1 is queued"),
        (well(log=[], lines=[line()]), "v1 is live, the platform shows None"),
        (well(log=[log("deliver", "stored"), log("withdraw", "gone")]), "v1 is live, the platform shows None"),
        (well(deliveries=[row(state=DeliveryState.FAILED, live_at=None)], lines=[]), "v1 is failed, and the platform"),
        (
            well(deliveries=[row(state=DeliveryState.FAILED, live_at=None)], lines=[], log=off(Reason.NONE)["log"]),
            "v1 failed, and readers have seen it",
        ),
        (well(**{**off(Reason.WITHDRAWN), "log": []}, lines=[]), "nobody has ever seen it"),
        (well(boards={"board1": {"x": "x.v1"}}), "board1 shows ['x.v1'] of no live delivery"),
        (well(lines=[]), "counts otherwise than 1"),
        (well(lines=[line(), line()]), "stands 2 times"),
        (well(**off(Reason.WITHDRAWN), retracted=WITHDRAWN), "counts otherwise than 0"),
        (well(**off(Reason.ENDED), lines=[line(), line(entry=Entry.REVERSAL)]), "counts otherwise than 1"),
        (well(lines=[line(), line("safe1")]), "is counted and was never proven live"),
        (well(log=[log("deliver", "stored"), log("check"), log("deliver", "doubled")]), "was published 2 times"),
        (well(log=[log("deliver", fault="500"), log("deliver", "stored")]), "was sent again after 500"),
        (well(**BLIND_DOUBT), "is doubtful (answer lost) and no person was asked"),
        (well(loose=["lease of risky1"]), "left behind: lease of risky1"),
    ],
)
def test_each_law_names_what_breaks_it(end: End, said: str) -> None:
    assert any(said in each for each in broken(end)), list(broken(end))
