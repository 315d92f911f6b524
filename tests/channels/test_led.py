"""The screen: every character that a page shows was approved, is legible, and none is missing without a word."""

import asyncio
import io
import json
from dataclasses import fields, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from channels.led import (
    BOARD_PAGES_MAX,
    BOARD_TEXT_LEAST,
    DWELL_LEAST_MS,
    GLYPH_LEAST_MM,
    PLAYLIST,
    READ_CHARS_PER_SECOND,
    Colour,
    Led,
    LedConfig,
    LedPayload,
)
from distributor import intake
from distributor.channel import Importance, Level, Misconfigured, Proof, Rendition, Severity, StoryView
from distributor.testing import MORNING, NASTY, ChannelContract, Outlet, item, shelf, story, tools

ROOT = Path(__file__).parents[2]
STORIES = sorted((ROOT / "assets/demo/stories").glob("*.md"))
GOLDEN = ROOT / "tests/golden/led"
PROFILES: dict[str, dict[str, Any]] = {
    "plaza": {"colour": "full", "width_px": 1920, "height_px": 1080, "pitch_mm": 4},
    "hall": {"colour": "mono", "width_px": 320, "height_px": 32, "pitch_mm": 10},
    "bus_inner": {"colour": "full", "width_px": 1366, "height_px": 768},
    "bus_line": {"colour": "mono", "width_px": 160, "height_px": 16, "pitch_mm": 8},
    "square": {"colour": "dual", "width_px": 192, "height_px": 96, "pitch_mm": 10},
    "notice_board": {"colour": "full", "width_px": 1080, "height_px": 1920},
    "gate": {"colour": "mono", "width_px": 128, "height_px": 32, "pitch_mm": 10},
    "river": {"colour": "full", "width_px": 960, "height_px": 540, "pitch_mm": 5},
}
STRIPS = ("hall", "bus_line", "square", "gate")


def view(path: Path) -> StoryView:
    """A demonstration story as its first revision."""
    draft = intake.load(path)
    shared = {field.name for field in fields(draft)} & {field.name for field in fields(StoryView)}
    return story(**{name: getattr(draft, name) for name in shared}, unit_name="区住建局")


def led(folder: Path, profile: str = "gate", **overrides: Any) -> Led:
    return Led(LedConfig.model_validate(PROFILES[profile] | overrides), tools(folder))


@cache
def drawn(profile: str, path: Path) -> Rendition[LedPayload]:
    """A demonstration story on a screen; boards take a while to draw, so each is drawn once."""
    return led(Path("unused"), profile).adapt(view(path))


def pictures(rendition: Rendition[LedPayload]) -> list[Image.Image]:
    opened = [Image.open(io.BytesIO(rendition.file(page.file).data)) for page in rendition.payload.pages]
    for picture in opened:
        picture.load()
    return opened


def dense(*texts: str) -> str:
    return "".join(char for text in texts for char in text if not char.isspace())


def codes(channel: Led, one: StoryView) -> set[str]:
    return {found.code for found in channel.validate(one)}


# ── every story on every screen ─────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_every_story_is_drawn_or_the_missing_character_is_named(path: Path, profile: str, tmp_path: Path) -> None:
    channel, one = led(tmp_path, profile), view(path)
    errors = [found for found in channel.validate(one) if found.severity is Severity.ERROR]
    if errors:
        assert [(found.code, found.facts["chars"]) for found in errors] == [("led_missing_glyph", "😀 (U+1F600)")]
        assert "😀" in one.text
        return
    for picture in pictures(drawn(profile, path)):
        assert picture.size == (channel.config.width_px, channel.config.height_px)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1, "an empty page"


@pytest.mark.parametrize("profile", STRIPS)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_strip_shows_the_whole_headline(path: Path, profile: str) -> None:
    one = view(path)
    pages = drawn(profile, path).payload.pages
    assert dense(*(line for page in pages for line in page.lines)) == dense(one.headline)


@pytest.mark.parametrize("profile", set(PROFILES) - set(STRIPS))
def test_a_board_shows_title_text_correction_and_source(profile: str, tmp_path: Path) -> None:
    one = view(next(path for path in STORIES if path.stem.startswith("09")))
    pages = led(tmp_path, profile).adapt(one).payload.pages
    assert dense(*(line for page in pages for line in page.lines)) == dense(one.text, "更正：", one.correction_note)
    for page in pages:
        assert dense(*page.head) == dense(one.title)
        assert dense(*page.foot) == dense("来源：", one.source)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_no_line_of_a_page_starts_with_a_mark_or_holds_nothing_else(path: Path, profile: str) -> None:
    for page in drawn(profile, path).payload.pages:
        for line in (*page.head, *page.lines, *page.foot):
            assert line[0] not in "，。、；：？！）》”’…—%℃"
            assert line[-1] not in "（《“‘"


# ── sizes, clipping, colours ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("profile", "glyph_px"),
    [("plaza", 96), ("hall", 32), ("bus_inner", 64), ("bus_line", 16), ("square", 24), ("notice_board", 64),
     ("gate", 16), ("river", 48)],
)  # fmt: skip
def test_the_size_of_the_text_follows_from_the_screen(profile: str, glyph_px: int, tmp_path: Path) -> None:
    config = LedConfig.model_validate(PROFILES[profile])
    assert led(tmp_path, profile).adapt(story()).payload.glyph_px == glyph_px
    assert glyph_px >= 16
    assert config.pitch_mm is None or glyph_px * config.pitch_mm >= GLYPH_LEAST_MM
    assert profile in STRIPS or glyph_px >= BOARD_TEXT_LEAST * min(config.width_px, config.height_px)


def test_a_short_text_is_shown_larger_where_it_fits(tmp_path: Path) -> None:
    assert led(tmp_path, "gate").adapt(story(title="停水通知")).payload.glyph_px == 32


@pytest.mark.parametrize("profile", ["gate", "bus_line", "square", "hall"])
@pytest.mark.parametrize("title", ["gjpqy（赢）|Ág", "爨龘囊警赢鬱蠶齉", "𫖯𠅤𬭎", "——“《……》”"])
def test_no_glyph_is_clipped(profile: str, title: str, tmp_path: Path) -> None:
    """The same text on a screen with room around it has not one dot more."""
    small = led(tmp_path, profile)
    usual = small.adapt(story(title=title)).payload.glyph_px
    width, height = small.config.width_px, small.config.height_px
    px = small.adapt(story(title=title))
    assert px.payload.glyph_px == usual
    from channels.led import _Strip  # noqa: PLC0415  # the plan says where the ink would be

    sheets = _Strip(small.config, ROOT / "assets/fonts").plan(story(title=title)).sheets
    for sheet, picture in zip(sheets, pictures(px), strict=True):
        roomy = Image.new("1", (width + 128, height + 128), 0)
        for run in sheet.runs:
            run.type.draw(roomy, run.x + 64, run.y + 64, run.text, 1)
        inside = roomy.crop((64, 64, 64 + width, 64 + height))
        assert sum(roomy.histogram()[1:]) == sum(inside.histogram()[1:]), "ink outside the screen"
        drawn = picture.convert("RGB").convert("L").point(lambda level: 255 if level else 0).convert("1")
        assert ImageChops.logical_xor(drawn, inside).getbbox() is None


@pytest.mark.parametrize(
    ("profile", "mode", "bits"),
    [("gate", "1", 1), ("square", "P", 2), ("river", "RGB", 8)],
)
def test_pages_hold_as_many_colours_as_the_lamps(profile: str, mode: str, bits: int, tmp_path: Path) -> None:
    made = led(tmp_path, profile).adapt(story())
    for page, picture in zip(made.payload.pages, pictures(made), strict=True):
        assert picture.mode == mode
        assert made.file(page.file).data[24] == bits  # bit depth, in the IHDR chunk
        assert not picture.info, "metadata"


def test_dual_screens_light_yellow_and_urgent_ones_red(tmp_path: Path) -> None:
    def colours(one: StoryView) -> set[Any]:
        return {rgb for p in pictures(led(tmp_path, "square").adapt(one)) for _, rgb in p.convert("RGB").getcolors()}

    assert colours(story()) == {(0, 0, 0), (255, 255, 0)}
    assert colours(story(importance=Importance.URGENT)) == {(0, 0, 0), (255, 0, 0)}


def test_an_urgent_board_has_a_red_band(tmp_path: Path) -> None:
    (page,) = pictures(led(tmp_path, "river").adapt(story(text="停水。", importance=Importance.URGENT)))
    red, green, blue = page.getpixel((2, 2))
    assert red > 150 > 3 * max(green, blue)


def test_no_grey_dots_on_strips_of_full_colour(tmp_path: Path) -> None:
    made = led(tmp_path, "gate", colour="full").adapt(story(title="综合窗口启用"))
    assert all(len(picture.getcolors()) == 2 for picture in pictures(made))


# ── what can't be shown ─────────────────────────────────────────────────────────────────────────────────────
def test_a_missing_character_is_an_error_that_names_it(tmp_path: Path) -> None:
    (found,) = led(tmp_path).validate(story(title="笑脸😀与\U000f0000"))
    assert (found.severity, found.code) == (Severity.ERROR, "led_missing_glyph")
    assert found.facts == {"chars": "😀 (U+1F600)、U+F0000 PRIVATE USE", "count": 2}


def test_a_lent_glyph_is_a_warning_that_names_it(tmp_path: Path) -> None:
    (found,) = led(tmp_path, "bus_line").validate(story(title="王𫖯"))
    assert (found.severity, found.code, found.facts["chars"]) == (Severity.WARNING, "led_lent_glyph", "𫖯 (U+2B5AF)")


def test_no_screen_lacks_characters_of_the_standard_list(tmp_path: Path) -> None:
    """Samples of all three levels of 通用规范汉字表, its characters outside the BMP included."""
    sample = "一乙的国媒营丂丌卬𠅤䶮㙍𫖯𬭎𬺈𫍽𬶋𬭊𫓧"
    for profile in PROFILES:
        assert "led_missing_glyph" not in codes(led(tmp_path, profile), story(title=sample))


def test_long_text_is_cut_after_a_sentence_and_says_so(tmp_path: Path) -> None:
    one = story(text="云川区持续优化营商环境。" * 200)
    channel = led(tmp_path, "river")
    made = channel.adapt(one)
    (found,) = made.findings
    lines = [line for page in made.payload.pages for line in page.lines]
    assert (found.severity, found.code, found.facts["chars"]) == (Severity.WARNING, "led_text_cut", 2400)
    assert found.facts["shown"] == len(dense(*lines[:-1]))
    assert (lines[-2][-1], lines[-1]) == ("。", "（有删节）")
    assert len(made.payload.pages) == BOARD_PAGES_MAX


@pytest.mark.parametrize(("profile", "code"), [("gate", "led_text_too_long"), ("river", "led_title_too_long")])
def test_a_headline_is_never_cut(profile: str, code: str, tmp_path: Path) -> None:
    assert codes(led(tmp_path, profile), story(title="长" * 300)) == {code}


def test_a_story_without_words_is_refused(tmp_path: Path) -> None:
    for profile in ("gate", "river"):
        assert codes(led(tmp_path, profile), story(title=" ", text="\n")) == {"led_nothing_to_show"}


def test_a_broken_cover_is_left_out_with_a_warning(tmp_path: Path) -> None:
    photo = view(next(path for path in STORIES if path.stem.startswith("10")))
    whole = led(tmp_path, "river").adapt(photo)
    broken = replace(photo, media=(replace(photo.media[0], data=b"no picture"),))
    made = led(tmp_path, "river").adapt(broken)
    assert [found.code for found in made.findings] == ["led_picture_left_out"]
    assert made.sha256 != whole.sha256


# ── the editor's own words ──────────────────────────────────────────────────────────────────────────────────
def test_own_text_takes_the_headlines_place(tmp_path: Path) -> None:
    pages = led(tmp_path, "bus_line").adapt(story(own_text={"led": "6路绕行\n8路绕行"})).payload.pages
    assert [page.lines for page in pages] == [("6路绕行",), ("8路绕行",)]


def test_a_lead_in_stands_before_the_text(tmp_path: Path) -> None:
    first, *_ = led(tmp_path, "gate", lead_in="优化营商环境").adapt(story(title="综合窗口启用")).payload.pages
    assert (first.head, first.lines) == (("优化营商环境",), ("综合窗口启用",))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_page_stands_until_it_can_be_read(profile: str) -> None:
    for page in drawn(profile, STORIES[0]).payload.pages:
        needed = len(dense(*page.lines)) / READ_CHARS_PER_SECOND * 1000
        assert page.dwell_ms >= max(DWELL_LEAST_MS, needed)


# ── pixels ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(("profile", "stem"), [("bus_line", "04"), ("gate", "05"), ("square", "02"), ("hall", "06")])
def test_pages_look_as_they_were_signed(profile: str, stem: str, tmp_path: Path) -> None:
    """Compared are decoded pixels. A change of a font, a size or a rule of breaking must be looked at and committed."""
    one = view(next(path for path in STORIES if path.stem.startswith(stem)))
    for number, picture in enumerate(pictures(led(tmp_path, profile).adapt(one)), 1):
        with Image.open(GOLDEN / f"{profile}-{stem}-{number}.png") as golden:
            assert golden.size == picture.size
            assert golden.convert("RGB").tobytes() == picture.convert("RGB").tobytes()


def test_the_preview_shows_every_page(tmp_path: Path) -> None:
    channel = led(tmp_path, "bus_line")
    one, three = (channel.adapt(story(title=title)) for title in ("停水", "因道路施工，公交六路绕行，恢复时间另行通知"))
    low, high = (Image.open(io.BytesIO(channel.preview(made).data)) for made in (one, three))
    assert (len(one.payload.pages), len(three.payload.pages)) == (1, 3)
    assert high.height > 2 * low.height


# ── the shelf ───────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_playlist_names_urgent_items_first_and_every_page(tmp_path: Path) -> None:
    channel = led(tmp_path)
    usual, urgent = channel.adapt(story()), channel.adapt(story(title="停水通知", importance=Importance.URGENT))
    until = MORNING + timedelta(hours=8)
    receipt = await channel.show(
        shelf(
            item(usual, key="usual", published_at=MORNING + timedelta(minutes=5)),
            item(urgent, key="urgent", importance=Importance.URGENT, expires_at=until),
        )
    )
    playlist = json.loads((tmp_path / PLAYLIST).read_bytes())
    assert [entry["key"] for entry in playlist["items"]] == ["urgent", "usual"]
    assert playlist["items"][0]["expires_at"] == until.isoformat()
    for entry in playlist["items"]:
        assert all((tmp_path / page["file"]).is_file() for page in entry["pages"])
    assert (receipt.proof, receipt.level) == (Proof.LIVE, Level.WRITTEN)
    assert receipt.evidence["pages"] == len(usual.payload.pages) + len(urgent.payload.pages)


async def test_pages_that_nothing_shows_any_more_are_removed(tmp_path: Path) -> None:
    channel = led(tmp_path)
    (tmp_path / "logo.png").write_bytes(b"not ours")
    await channel.show(shelf(item(channel.adapt(story(title="旧闻一则")))))
    kept = channel.adapt(story(title="新闻一则"))
    await channel.show(shelf(item(kept)))
    assert set(channel.tools.folder.names()) == {PLAYLIST, "logo.png", *(file.name for file in kept.files)}


async def test_a_refusing_disk_pauses_the_outlet(tmp_path: Path) -> None:
    blocked = tmp_path / "outlet"
    blocked.write_text("a file where the folder should be")
    channel = led(blocked)
    with pytest.raises(Misconfigured, match="disk_refused"):
        await channel.show(shelf(item(channel.adapt(story()))))
    with pytest.raises(Misconfigured, match="disk_refused"):
        await channel.probe()


def test_nasty_stories_are_drawn_or_refused_on_every_kind_of_screen(tmp_path: Path) -> None:
    for profile in ("bus_line", "square", "notice_board"):
        channel = led(tmp_path, profile)
        for one in NASTY:
            if not any(found.severity is Severity.ERROR for found in channel.validate(one)):
                assert channel.adapt(one).payload.pages


class TestLedContract(ChannelContract):
    """A strip: all it shows is its lines."""

    channel = Led

    def config(self, url: str) -> dict[str, Any]:
        return PROFILES["gate"]

    def said(self, rendition: Rendition[LedPayload]) -> str:
        return " ".join(line for page in rendition.payload.pages for line in page.lines)

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        raw = await asyncio.to_thread(outlet.folder.read, PLAYLIST)
        playlist = json.loads(raw) if raw else {"items": []}
        screen = {name: playlist[name] for name in ("width_px", "height_px", "colour") if name in playlist}
        payloads = []
        for entry in playlist["items"]:
            missing = [page["file"] for page in entry["pages"] if outlet.folder.read(page["file"]) is None]
            assert not missing, f"the playlist names pages that are not there: {missing}"
            payloads.append(screen | {name: entry[name] for name in ("title", "glyph_px", "pages")})
        return payloads


class TestLedBoardContract(TestLedContract):
    """A board: title above, lines of text, source below."""

    def config(self, url: str) -> dict[str, Any]:
        return PROFILES["river"] | {"width_px": 640, "height_px": 360}

    def said(self, rendition: Rendition[LedPayload]) -> str:
        first = rendition.payload.pages[0]
        return " ".join((*first.head, super().said(rendition)))


def test_colours_are_the_three_of_the_trade() -> None:
    assert [colour.value for colour in Colour] == ["mono", "dual", "full"]
