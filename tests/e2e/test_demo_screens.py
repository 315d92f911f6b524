"""Screens and the running line: the files that players and character generators fetch."""

import io
import json
from functools import cache
from math import ceil
from typing import Any

import pytest
from PIL import Image

from channels.crawl import CrawlPayload
from channels.led import LedPayload
from distributor.channel import Rendition, RenditionFile
from tests.e2e.conftest import OUTLETS, Demo, fetch, outlets_of

pytestmark = pytest.mark.e2e

get = cache(fetch)
SCREENS = outlets_of("led")
MODES = {"mono": "1", "dual": "P", "full": "RGB"}
GONE = ("04-urgent-water", "05-bus-screen")


def playlist(demo: Demo, outlet: str) -> dict[str, Any]:
    answer = get(f"{demo.base}/{outlet}/playlist.json")
    assert answer.status == 200
    read: dict[str, Any] = json.loads(answer.body)
    return read


def page(demo: Demo, outlet: str, name: str) -> bytes:
    answer = get(f"{demo.base}/{outlet}/{name}")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    return answer.body


def names(item: dict[str, Any]) -> list[str]:
    return [each["file"] for each in item["pages"]]


@pytest.mark.parametrize("outlet", SCREENS)
def test_a_screen_plays_the_approved_pages_and_nothing_else(demo: Demo, outlet: str) -> None:
    shown = playlist(demo, outlet)
    signed = {
        (row["key"], row["version"]): row["rendition_sha256"] for row in demo.deliveries(outlet=outlet, state="live")
    }
    made = {}
    for item in shown["items"]:
        files = tuple(RenditionFile(name, "image/png", page(demo, outlet, name)) for name in dict.fromkeys(names(item)))
        payload = LedPayload(
            title=item["title"], width_px=shown["width_px"], height_px=shown["height_px"], colour=shown["colour"],
            glyph_px=item["glyph_px"], pages=item["pages"],
        )  # fmt: skip
        made[item["key"], item["version"]] = Rendition(payload, files).sha256
    assert made == signed
    assert len(shown["items"]) == len(signed)


@pytest.mark.parametrize("outlet", SCREENS)
def test_every_picture_has_the_screens_dots_and_colours(demo: Demo, outlet: str) -> None:
    profile, shown = OUTLETS[outlet]["config"], playlist(demo, outlet)
    size = (profile["width_px"], profile["height_px"])
    assert (shown["width_px"], shown["height_px"], shown["colour"]) == (*size, profile["colour"])
    for item in shown["items"]:
        for each in item["pages"]:
            with Image.open(io.BytesIO(page(demo, outlet, each["file"]))) as picture:
                assert (picture.format, picture.size, picture.mode) == ("PNG", size, MODES[profile["colour"]])
                grey = picture.convert("L").getextrema()
                assert grey[0] != grey[1], "an empty page"
            assert each["dwell_ms"] >= 3000


@pytest.mark.parametrize("outlet", SCREENS)
def test_what_ended_or_was_withdrawn_is_in_no_list_and_on_no_disk(demo: Demo, outlet: str) -> None:
    shown = playlist(demo, outlet)
    assert not [item["key"] for item in shown["items"] if item["key"].startswith(GONE)]
    folder = demo.running.build / "data" / "public" / outlet
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"playlist.json"} | {name for item in shown["items"] for name in names(item)}


@pytest.mark.parametrize("outlet", SCREENS)
def test_a_removed_page_no_longer_answers(demo: Demo, outlet: str) -> None:
    blobs = demo.running.build / "data" / "blobs"
    shown = {name for item in playlist(demo, outlet)["items"] for name in names(item)}
    # A page is named by the first half of its hash; the store of renditions still has those that were taken down.
    others = {f"{path.name[:32]}.png" for path in blobs.glob("*/*")} - shown
    assert others
    assert {name for name in others if get(f"{demo.base}/{outlet}/{name}").status != 404} == set()


def test_the_correction_is_on_the_boards_once(demo: Demo) -> None:
    corrected = [row["outlet"] for row in demo.deliveries(story="03-service-hall", version=2)]
    boards = [outlet for outlet in SCREENS if outlet in corrected]
    assert len(boards) == 4
    for outlet in boards:
        (item,) = [one for one in playlist(demo, outlet)["items"] if one["key"].startswith("03-service-hall.")]
        said = "".join(line for each in item["pages"] for line in each["lines"])
        assert item["version"] == 2
        assert "更正" in said
        assert "14份精简到6份，" in said.replace(" ", "")


# ── the running line ────────────────────────────────────────────────────────────────────────────────────────
def test_the_running_line_is_the_approved_lines_in_the_machines_charset(demo: Demo) -> None:
    answer = get(f"{demo.base}/tv_crawl/crawl.txt")
    assert answer.status == 200
    assert answer.body.endswith(b"\r\n")
    lines = answer.body.decode("gbk").removesuffix("\r\n").split("\r\n")
    made = [
        Rendition(CrawlPayload(line=line, charset="gbk", seconds=ceil(len(line) / 4.0), expires_at=None)).sha256
        for line in lines
    ]
    signed = [row["rendition_sha256"] for row in demo.deliveries(outlet="tv_crawl", state="live")]
    assert sorted(made) == sorted(signed)
    assert len(set(made)) == len(made)


def test_nothing_else_lies_beside_the_running_line(demo: Demo) -> None:
    folder = demo.running.build / "data" / "public" / "tv_crawl"
    assert [path.name for path in folder.iterdir()] == ["crawl.txt"]
    text = get(f"{demo.base}/tv_crawl/crawl.txt").body.decode("gbk")
    for word in ("停水", "公交", "生僻字"):
        assert word not in text
