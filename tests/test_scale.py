"""The capacity model says what was measured, and reckons as its document describes."""

import json
import re

import pytest

from tests.bench.scale import (
    DISTRICT,
    DOCUMENT,
    FIGURES,
    PARTS,
    Figures,
    Load,
    campaign_seconds,
    database_gb,
    filled,
    span,
)


def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_the_document_says_what_was_measured() -> None:
    said = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert filled(document(), said) == document(), "run: python -m tests.bench.scale"


def test_the_document_has_each_part_once() -> None:
    assert sorted(re.findall(r"<!-- scale:([a-z-]+) -->", document())) == sorted(PARTS)


def test_another_figure_gives_another_document() -> None:
    said = json.loads(FIGURES.read_text(encoding="utf-8"))
    for each in said["lines"]:
        each["value"] = each["value"] and each["value"] * 1.5
    assert filled(document(), said) != document()


def invented(**values: float) -> Figures:
    return Figures(date="2021-08-16", machine="2 cores", values=values, notes={})


def test_a_campaign_goes_as_fast_as_the_slower_of_writer_and_platforms() -> None:
    figures = invented(**{"post.ours.rate": 500})
    load = Load(outlets=10_000, stories=1, reach=1, campaigns=1)
    assert campaign_seconds(load, figures, trip=0.01, slots=50) == pytest.approx(20)
    assert campaign_seconds(load, figures, trip=1, slots=50) == pytest.approx(200)
    assert campaign_seconds(load, figures, trip=60, slots=50_000) == pytest.approx(60)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0834, "83 ms"), (1.0, "1 s"), (83.33, "83 s"), (442, "7.4 min"), (22_222, "6.2 h")]
)
def test_a_span_is_said_in_the_unit_of_its_size(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_what_retention_drops_stops_growing_and_counts_do_not() -> None:
    figures = invented(**{"history.1m.bytes": 1500, "history.1m.ledger_bytes": 500})
    first, second, third = (database_gb(DISTRICT, figures, years) for years in (1, 2, 3))
    assert third - second == pytest.approx(second - first)
    assert first > 1.2 * (second - first)
    assert second - first > DISTRICT.deliveries * 365 * 500 / 1e9


def test_a_district_s_day_is_its_stories_on_its_outlets() -> None:
    assert DISTRICT.deliveries == 30 * 100
    assert Load(outlets=10_000, stories=1_000, reach=100, campaigns=10).deliveries == 990 * 100 + 10 * 10_000
