"""LED screens, bus screens and notice boards: a story as pictures of pages, a playlist for the players.

Two kinds of screen follow from the size. A **strip** (one or two colours, or less than 200 dots on the short side)
shows the editor's own text or the headline, dot for dot and without grey. A **board** shows title and text over several
pages, with a band above and the source below. Nothing scrolls: a page is a whole number of phrases and stands until
it can be read.

Sizes. 16 dots are the least that Chinese needs (GB/T 5199 has 15×16). The height of a character should be a 200th of
the reading distance and not below 60 mm (practice of sign makers). On boards text is never below 5 % of the short
side, the size of GY/T 288-2014 for subtitles. A line of running text holds at least 18 characters on a wide board, 13
on a tall one, 8 on a strip.

Time. A page stands for its characters at 4 a second, at least 3 s: under half of the 9 a second that the Netflix
Simplified Chinese guide allows subtitles, for people who walk past and look up late.
"""

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from functools import cache, cached_property, partial
from pathlib import Path
from typing import ClassVar

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from pydantic import Field

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    DiskTurn,
    Finding,
    Importance,
    Level,
    Media,
    Misconfigured,
    Payload,
    Proof,
    Receipt,
    Rendition,
    RenditionFile,
    Severity,
    Shelf,
    ShelfItem,
    StoryView,
    Tools,
    Traits,
)
from distributor.text import balance_lines, break_lines, clean, graphemes, name_of, one_line

__all__ = ["Colour", "Led", "LedConfig", "LedPage", "LedPayload"]

SIZES_PX = (16, 24, 32, 48, 64, 96, 128, 192, 256)
STRIP_BELOW_PX = 200
STRIP_CHARS_PER_LINE = 8
STRIP_PAGES_MAX = 12
BOARD_CHARS_PER_LINE, TALL_BOARD_CHARS_PER_LINE = 18, 13
BOARD_PAGES_MAX = 6
BOARD_TEXT_LEAST = 0.05  # of the short side
BOARD_TEXT_MOST = 0.10  # of the height: a page holds at least four lines
GLYPH_LEAST_MM = 60.0
READ_CHARS_PER_SECOND = 4
DWELL_LEAST_MS = 3000
PICTURE_DWELL_LEAST_MS = 6000
NAMED_CHARS_MAX = 12  # in a finding
PLAYLIST = "playlist.json"
PAGE_NAME = re.compile(r"[0-9a-f]{32}\.png")


class Colour(StrEnum):
    """What a screen's lamps can show."""

    MONO = "mono"  # one colour, on or off
    DUAL = "dual"  # red, green, and yellow of both
    FULL = "full"


class LedConfig(ChannelConfig):
    """One kind of screen. All of it is profile: screens of equal size and colour share one rendition."""

    profile_fields: ClassVar[frozenset[str]] = frozenset({"colour", "width_px", "height_px", "pitch_mm", "lead_in"})

    colour: Colour = Field(description="mono 单色, dual 双色, full 全彩")
    width_px: int = Field(ge=32, le=8192, description="屏体宽度（点）")
    height_px: int = Field(ge=16, le=8192, description="屏体高度（点）")
    pitch_mm: float | None = Field(default=None, gt=0, le=100, description="点间距（毫米），如 P10 为 10")
    lead_in: str = Field(default="", max_length=24, description="引导语；大屏写在页眉，小屏写在正文之前")


class LedPage(Payload):
    """One picture and how long it stands. The texts are as drawn, line by line."""

    file: str
    dwell_ms: int
    head: tuple[str, ...] = ()  # band and title; on a strip the lead-in
    lines: tuple[str, ...] = ()
    foot: tuple[str, ...] = ()


class LedPayload(Payload):
    """What a screen shows of one story."""

    title: str
    width_px: int
    height_px: int
    colour: Colour
    glyph_px: int  # height of the text's characters
    pages: tuple[LedPage, ...]


# ── faces: what can be drawn, and how ───────────────────────────────────────────────────────────────────────
@cache
def _coverage(path: Path) -> frozenset[int]:
    """The code points that a font maps to a glyph, read from its ``cmap`` (format 12: Windows, full repertoire).

    Drawing an unmapped character gives a box without a word of warning, so the table is asked instead.
    """
    with open(path, "rb") as font:
        tables = struct.unpack(">4xH6x", font.read(12))[0]
        directory = font.read(16 * tables)
        entries = (struct.unpack_from(">4s4xII", directory, 16 * at) for at in range(tables))
        start = next(offset for tag, offset, _ in entries if tag == b"cmap")
        font.seek(start)
        encodings = struct.unpack(">2xH", font.read(4))[0]
        records = [struct.unpack(">HHI", font.read(8)) for _ in range(encodings)]
        font.seek(start + next(offset for platform, encoding, offset in records if (platform, encoding) == (3, 10)))
        groups = struct.unpack(">12xI", font.read(16))[0]
        table = font.read(12 * groups)
    covered: set[int] = set()
    for first, last, glyph in struct.iter_unpack(">III", table):
        covered.update(range(first if glyph else first + 1, last + 1))
    return frozenset(covered)


@dataclass(frozen=True)
class _Glyph:
    """One drawn character: its ink, where that lies in the character's cell, and how wide the cell is."""

    ink: Image.Image | None = field(repr=False)
    left: int
    top: int
    advance: int


@dataclass
class _Face:
    """One font at one size. Cells are ``cell_px`` high; ``base`` is the baseline below a cell's top."""

    path: Path
    cell_px: int
    font_px: int
    base: int
    times: int  # each dot becomes so many
    mode: str  # "1": dots on or off; "L": with grey
    wide: dict[str, str]  # drawn twice as wide, as that character
    cells: dict[str, _Glyph] = field(default_factory=dict)

    @cached_property
    def font(self) -> ImageFont.FreeTypeFont:
        # the basic engine: whole-dot advances, and Chinese needs no shaping
        return ImageFont.truetype(self.path, self.font_px, layout_engine=ImageFont.Layout.BASIC)

    def covers(self, cluster: str) -> bool:
        return all(ord(char) in _coverage(self.path) for char in cluster)

    def glyph(self, cluster: str) -> _Glyph:
        found = self.cells.get(cluster)
        if found is None:
            if len(self.cells) >= 4096:
                self.cells.clear()
            found = self.cells[cluster] = self._drawn(cluster)
        return found

    def _drawn(self, cluster: str) -> _Glyph:
        text = self.wide.get(cluster, cluster)
        across = self.times * (2 if cluster in self.wide else 1)
        margin = self.font_px
        advance = round(self.font.getlength(text))
        canvas = Image.new(self.mode, (advance + 2 * margin, 3 * margin), 0)
        pen = ImageDraw.Draw(canvas)
        pen.fontmode = self.mode
        pen.text((margin, 2 * margin), text, fill=255, font=self.font, anchor="ls")
        box = canvas.getbbox()
        if box is None:
            return _Glyph(None, 0, 0, advance * across)
        ink = canvas.crop(box)
        if (across, self.times) != (1, 1):
            ink = ink.resize((ink.width * across, ink.height * self.times), Image.Resampling.NEAREST)
        left, top = (box[0] - margin) * across, (box[1] - 2 * margin) * self.times + self.base
        if (
            self.mode == "1"
        ):  # rows of dots stand close: a tail moves up rather than into the next row or off the screen
            ink = ink.crop((0, 0, ink.width, min(ink.height, self.cell_px)))
            top = min(max(top, 0), self.cell_px - ink.height)
        return _Glyph(ink, left, top, advance * across)


@dataclass(frozen=True)
class _Type:
    """How one kind of line is set: the face, and the one that lends what the face lacks."""

    px: int
    face: _Face
    lender: _Face

    def face_of(self, cluster: str) -> _Face | None:
        return next((face for face in (self.face, self.lender) if face.covers(cluster)), None)

    def width(self, text: str) -> int:
        return sum(self._glyph(cluster).advance for cluster in _drawable(text))

    def draw(self, page: Image.Image, x: int, y: int, text: str, fill: "_Fill") -> None:
        for cluster in _drawable(text):
            glyph = self._glyph(cluster)
            if glyph.ink is not None:
                page.paste(fill, (x + glyph.left, y + glyph.top), glyph.ink)
            x += glyph.advance

    def _glyph(self, cluster: str) -> _Glyph:
        face = self.face_of(cluster)
        return face.glyph(cluster) if face else _Glyph(None, 0, 0, self.px)  # reported; keeps its place meanwhile


_Fill = int | tuple[int, int, int]
_SELECTORS = str.maketrans("", "", "\ufe0e\ufe0f")  # text or emoji form: our faces have but one


def _drawable(text: str) -> Iterator[str]:
    return (cluster.translate(_SELECTORS) for cluster in graphemes(text))


_DOT_WIDE = {"—": "—", "…": "⋯"}  # half a cell in Unifont; Chinese has them a cell wide, the dots at mid-height


@cache
def _dots(fonts: Path, px: int) -> _Face:
    """Unifont, its 16 dots made as many times larger as ``px`` holds, centred in the cell."""
    times = max(1, px // 16)
    return _Face(fonts / "Unifont.otf", px, 16, 14 * times + (px - 16 * times) // 2, times, "1", _DOT_WIDE)


@cache
def _crisp(fonts: Path, px: int) -> _Face:
    """Noto Sans SC without grey, small enough that rows may touch."""
    font_px = round(px * 0.92)
    weight = "Regular" if px < 24 else "Bold"
    base = round(px * 0.5 + font_px * 0.385)  # Chinese characters stand in the middle of the cell
    return _Face(fonts / f"NotoSansSC-{weight}.otf", px, font_px, base, 1, "1", {})


@cache
def _smooth(fonts: Path, px: int, weight: str) -> _Face:
    return _Face(fonts / f"NotoSansSC-{weight}.otf", px, px, round(px * 0.88), 1, "L", {})


@cache
def _strip_type(fonts: Path, px: int) -> _Type:
    dots, outline = _dots(fonts, px), _crisp(fonts, px)
    return _Type(px, dots, outline) if px == 16 else _Type(px, outline, dots)


@cache
def _board_type(fonts: Path, px: int, weight: str = "Regular") -> _Type:
    return _Type(px, _smooth(fonts, px, weight), _dots(fonts, px))


# ── colours ─────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Theme:
    """Colours by what they are for. Dark grounds: a white ground blinds at night and ages the lamps."""

    ground: _Fill
    text: _Fill
    head: _Fill  # lead-in of a strip, title of a board
    band: _Fill
    band_text: _Fill
    quiet: _Fill  # source and page number
    rule: _Fill


_ON, _RED, _GREEN, _YELLOW = 1, 1, 2, 3
_DUAL_PALETTE = (0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 0)  # black, red, green, yellow
_PREVIEW_RED = (255, 40, 24)
_MONO = _Theme(0, _ON, _ON, _ON, 0, _ON, _ON)
_WHITE, _GOLD = (255, 255, 255), (255, 208, 96)
_THEMES: dict[tuple[Colour, bool], _Theme] = {
    (Colour.MONO, False): _MONO,
    (Colour.MONO, True): _MONO,
    (Colour.DUAL, False): _Theme(0, _YELLOW, _GREEN, _GREEN, 0, _GREEN, _GREEN),
    (Colour.DUAL, True): _Theme(0, _RED, _YELLOW, _RED, 0, _YELLOW, _RED),
    (Colour.FULL, False): _Theme((6, 28, 66), _WHITE, _GOLD, (10, 58, 130), _WHITE, (176, 200, 232), _GOLD),
    (Colour.FULL, True): _Theme((44, 6, 10), _WHITE, _GOLD, (204, 16, 24), _WHITE, (240, 196, 190), (204, 16, 24)),
}


# ── the plan of a story's pages ─────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Run:
    """One line of text at its place."""

    text: str
    x: int
    y: int
    type: _Type
    fill: _Fill


@dataclass(frozen=True)
class _Sheet:
    """One page before it is drawn."""

    runs: tuple[_Run, ...]
    lines: tuple[str, ...]
    head: tuple[str, ...] = ()
    foot: tuple[str, ...] = ()
    boxes: tuple[tuple[tuple[int, int, int, int], _Fill], ...] = ()
    picture: tuple[int, int, Image.Image] | None = None
    dwell_ms: int = DWELL_LEAST_MS


@dataclass(frozen=True)
class _Plan:
    """All pages of a story on one screen and what is to be said about them."""

    title: str
    glyph_px: int
    sheets: tuple[_Sheet, ...]
    findings: tuple[Finding, ...]


def _dwell_ms(texts: Iterable[str], least: int = DWELL_LEAST_MS) -> int:
    """How long a page stands that holds these lines, in whole tenths of a second."""
    chars = sum(not cluster.isspace() for text in texts for cluster in graphemes(text))
    return max(least, math.ceil(chars * 10 / READ_CHARS_PER_SECOND) * 100)


def _evenly(count: int, most: int) -> list[int]:
    """``count`` lines on as few pages of ``most`` as can be, filled alike, fuller ones first."""
    pages = -(-count // most)
    each, more = divmod(count, pages)
    return [each + (at < more) for at in range(pages)]


def _paragraphs(text: str) -> list[str]:
    """Cleaned lines of text; cells of a table row stay two spaces apart, every other white space is one space."""
    lines = (
        re.sub(r"[^\S\n]+", lambda gap: "  " if len(gap[0]) > 1 else " ", line) for line in clean(text).split("\n")
    )
    return [line.strip() for line in lines if line.strip()]


def _error(code: str, **facts: str | int | float) -> Finding:
    return Finding(Severity.ERROR, code, facts)


def _warning(code: str, **facts: str | int | float) -> Finding:
    return Finding(Severity.WARNING, code, facts)


def _glyph_findings(sheets: Sequence[_Sheet]) -> list[Finding]:
    """What no face has, and what the second face lends; each character once, in reading order."""
    missing: dict[str, None] = {}
    lent: dict[str, None] = {}
    for run in (run for sheet in sheets for run in sheet.runs):
        for cluster in _drawable(run.text):
            face = run.type.face_of(cluster)
            if face is None:
                missing[cluster] = None
            elif face is run.type.lender:
                lent[cluster] = None
    found = []
    if missing:
        found.append(_error("led_missing_glyph", chars=_named(missing), count=len(missing)))
    if lent:
        found.append(_warning("led_lent_glyph", chars=_named(lent), count=len(lent)))
    return found


def _named(clusters: Iterable[str]) -> str:
    names = [name_of(cluster) for cluster in clusters]
    return "、".join(names[:NAMED_CHARS_MAX]) + (f"……（共 {len(names)} 个）" if len(names) > NAMED_CHARS_MAX else "")


class _Strip:
    """The plan for a strip: the headline or the editor's own text, centred, as large as the screen reads well."""

    def __init__(self, config: LedConfig, fonts: Path) -> None:
        self.config = config
        self.fonts = fonts
        fitting = [px for px in SIZES_PX if px <= config.height_px and px * 2 <= config.width_px]
        far = [px for px in fitting if config.pitch_mm is None or px * config.pitch_mm >= GLYPH_LEAST_MM]
        self.sizes = far or fitting[-1:]
        usual = [px for px in self.sizes if config.width_px // px >= STRIP_CHARS_PER_LINE]
        self.usual_px = max(usual, default=self.sizes[0])

    def plan(self, story: StoryView) -> _Plan:
        title = one_line(story.headline)
        own = story.own_text.get(Led.kind, "")
        texts = [one_line(line) for line in _paragraphs(own)] or [title]
        lead = one_line(self.config.lead_in)
        if not any(texts):
            return _Plan(title, self.usual_px, (), (_error("led_nothing_to_show"),))
        length, rows = sum(map(len, texts)), self.config.height_px // self.usual_px
        room = STRIP_PAGES_MAX * rows * (self.config.width_px // self.usual_px)
        too_long = _error("led_text_too_long", chars=length, room=room, pages_max=STRIP_PAGES_MAX)
        if length > 2 * room + 20:  # half-width letters at the most
            return _Plan(title, self.usual_px, (), (too_long,))
        px, heads, lines = self._set(lead, texts)
        rows = self.config.height_px // px
        set_lines = [(line, True) for line in heads] + [(line, False) for line in lines]
        counts = _evenly(len(set_lines), rows)
        if len(counts) > STRIP_PAGES_MAX:
            return _Plan(title, px, (), (too_long,))
        theme = _THEMES[self.config.colour, story.importance is Importance.URGENT]
        sheets, start = [], 0
        for count in counts:
            sheets.append(self._sheet(set_lines[start : start + count], px, theme))
            start += count
        return _Plan(title, px, tuple(sheets), tuple(_glyph_findings(sheets)))

    def _set(self, lead: str, texts: Sequence[str]) -> tuple[int, list[str], list[str]]:
        """The size and the lines: the largest size that shows all on one page, else the screen's usual one."""
        for px in sorted((px for px in self.sizes if px >= self.usual_px), reverse=True):
            type_, rows = _strip_type(self.fonts, px), self.config.height_px // px
            few = self.config.width_px // px < STRIP_CHARS_PER_LINE // 2
            if px > self.usual_px and (few or sum(map(type_.width, texts)) > self.config.width_px * rows):
                continue
            heads = balance_lines(lead, self.config.width_px, type_.width)
            lines = [line for text in texts for line in self._lines(text, type_, rows)]
            if px == self.usual_px or len(heads) + len(lines) <= rows:
                return px, heads, lines
        raise AssertionError("the usual size always ends the search")

    def _lines(self, text: str, type_: _Type, rows: int) -> list[str]:
        """Lines of one paragraph; where it takes several pages, each page holds whole phrases if that costs no page."""
        width = self.config.width_px
        lines = balance_lines(text, width, type_.width, more=1 if rows == 1 else 0)
        pages = -(-len(lines) // rows)
        if rows == 1 or pages == 1:
            return lines
        by_page = [balance_lines(part, width, type_.width) for part in balance_lines(text, width * rows, type_.width)]
        whole = len(by_page) == pages and all(len(page) <= rows for page in by_page)
        return [line for page in by_page for line in page] if whole else lines

    def _sheet(self, set_lines: Sequence[tuple[str, bool]], px: int, theme: _Theme) -> _Sheet:
        type_ = _strip_type(self.fonts, px)
        count, height = len(set_lines), self.config.height_px
        gap = min(px // 2, (height - count * px) // (count + 1))
        y = (height - count * px - gap * (count - 1)) // 2
        runs = []
        for text, is_head in set_lines:
            x = max(0, (self.config.width_px - type_.width(text)) // 2)
            runs.append(_Run(text, x, y, type_, theme.head if is_head else theme.text))
            y += px + gap
        heads, lines = (tuple(text for text, is_head in set_lines if is_head is kind) for kind in (True, False))
        ground = ((0, 0, self.config.width_px, height), theme.ground)
        return _Sheet(tuple(runs), lines, heads, boxes=(ground,), dwell_ms=_dwell_ms((*heads, *lines)))


URGENT_LABEL = "紧急通知"
CUT_MARK = "（有删节）"
_SENTENCE_END = re.compile(r".*[。！][”’』」）》]*", re.DOTALL)
BOARD_LEADINGS = (1.5, 1.35)  # line pitch in character heights: the usual one, and the closest that still reads well


@dataclass(frozen=True)
class _Line:
    """One line of running text."""

    text: str
    indent: int
    starts: bool  # a paragraph
    ends: bool  # a paragraph

    @property
    def is_row(self) -> bool:
        return "  " in self.text

    @property
    def is_heading(self) -> bool:
        return self.starts and self.ends and self.text[-1] not in "。！？；……”）》"


@dataclass(frozen=True)
class _Flow:
    """Lines at one pitch and how many of them stand on each page."""

    pitch: int
    lines: tuple[_Line, ...]
    counts: tuple[int, ...]
    total: int
    shown: int


def _paged(lines: Sequence[_Line], first: int, later: int) -> list[int]:
    """How many lines stand on each of as few pages as can be: a page rather ends with a paragraph or a sentence, never
    with a heading, and pages are about equally full. ``first`` may be 0: then a title stands alone."""
    if len(lines) <= first or not lines:
        return [len(lines)]
    rooms = [first] + [later] * (-(-(len(lines) - first) // later))
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for number, room in enumerate(rooms):
        reached: dict[int, tuple[float, list[int]]] = {}
        for start, (weight, counts) in best.items():
            for count in range(1 if room else 0, min(room, len(lines) - start) + 1):
                end = start + count
                last = number == len(rooms) - 1
                if last != (end == len(lines)):
                    continue
                spare = ((room - count) / room) ** 2 if room else 0.0
                total = weight + 3 * spare + (0.0 if last or not count else _page_cut(lines, end, count))
                if end not in reached or total < reached[end][0]:
                    reached[end] = (total, [*counts, count])
        best = reached
    return best[len(lines)][1]


def _page_cut(lines: Sequence[_Line], end: int, count: int) -> float:
    """How much a page that ends before line ``end`` hurts the reading."""
    before, after = lines[end - 1], lines[end]
    heads_table = before.is_row and after.is_row and (end < 2 or not lines[end - 2].is_row)
    if heads_table or (before.is_heading and not before.is_row and not after.is_heading):
        return 4.0
    if after.starts:
        return 0.0
    lonely = before.starts or after.ends  # one line of a paragraph apart from the rest
    sentence = before.text[-1] in "。！？；"
    return (0.5 if sentence else 1.0) + (0.5 if lonely and count > 1 else 0.0)


class _Board:
    """The plan for a board: band, title, text over pages of equal fullness, source; a cover picture on a page first."""

    def __init__(self, config: LedConfig, fonts: Path) -> None:
        self.config = config
        self.fonts = fonts
        self.width, self.height = config.width_px, config.height_px
        short = min(self.width, self.height)
        per_line = BOARD_CHARS_PER_LINE if self.width >= self.height else TALL_BOARD_CHARS_PER_LINE
        least = max(short * BOARD_TEXT_LEAST, GLYPH_LEAST_MM / config.pitch_mm if config.pitch_mm else 0)
        usable = [px for px in SIZES_PX if px >= least]
        fitting = [
            px for px in usable if (self.width - 2 * px) // px >= per_line and px <= self.height * BOARD_TEXT_MOST
        ]
        self.px = max(fitting, default=usable[0] if usable else SIZES_PX[-1])
        at = SIZES_PX.index(self.px)
        self.small_px = SIZES_PX[max(0, at - 1)]
        self.title_px = SIZES_PX[min(len(SIZES_PX) - 1, at + 1)]
        self.title_lines_max = 2 if self.width >= self.height else 3
        self.margin = self.px
        self.measure_px = self.width - 2 * self.margin
        self.bar = round(self.small_px * 1.6)

    def plan(self, story: StoryView) -> _Plan:
        title = one_line(story.title)
        own = story.own_text.get(Led.kind, "")
        paragraphs = _paragraphs(own) or _paragraphs(story.summary) or _paragraphs(story.text)
        if story.correction_note and not own:
            paragraphs += _paragraphs(f"更正：{one_line(story.correction_note)}")
        if not title and not paragraphs:
            return _Plan(title, self.px, (), (_error("led_nothing_to_show"),))
        if len(title) > BALANCED_TITLE_MAX:
            return _Plan(title, self.px, (), (_error("led_title_too_long", chars=len(title), chars_max=self._most()),))
        page = _BoardPage(self, story, title)
        if page.too_long:
            return _Plan(title, self.px, (), page.too_long)
        sheets, findings = self._flow(page, paragraphs)
        return _Plan(title, self.px, tuple(sheets), (*page.findings, *findings, *_glyph_findings(sheets)))

    def _most(self) -> int:
        return (self.title_lines_max + 1) * (self.measure_px // self.px)

    def _flow(self, page: "_BoardPage", paragraphs: Sequence[str]) -> tuple[list[_Sheet], list[Finding]]:
        """Text lines over pages: not more than the cap; the lines move closer where that saves a page."""
        flows = [self._flow_at(page, paragraphs, round(self.px * leading)) for leading in BOARD_LEADINGS]
        flow = min(flows, key=lambda one: (one.total - one.shown, len(one.counts)))
        sheets, start = [], 0
        for number, count in enumerate(flow.counts, 1):
            lines = flow.lines[start : start + count]
            sheets.append(page.sheet(lines, number, len(flow.counts), flow.pitch))
            start += count
        cut = flow.shown < flow.total
        facts = {"chars": flow.total, "shown": flow.shown, "pages_max": BOARD_PAGES_MAX}
        return sheets, [_warning("led_text_cut", **facts)] if cut else []

    def _flow_at(self, page: "_BoardPage", paragraphs: Sequence[str], pitch: int) -> "_Flow":
        rows, rows_later = page.rows(pitch, first=True), page.rows(pitch, first=False)
        if page.picture is not None or rows < 2:
            rows = 0  # the title stands alone
        lines, total, shown = self._lines(paragraphs, rows + (BOARD_PAGES_MAX - 1) * rows_later)
        return _Flow(pitch, tuple(lines), tuple(_paged(lines, rows, rows_later)), total, shown)

    def _lines(self, paragraphs: Sequence[str], room: int) -> tuple[list[_Line], int, int]:
        """At most ``room`` lines, with how many characters there were and how many are shown.

        What doesn't fit is cut after a sentence, and the last line says so.
        """
        measure, indent = _board_type(self.fonts, self.px).width, 2 * self.px
        total = sum(map(_count, paragraphs))
        lines: list[_Line] = []
        for paragraph in paragraphs:
            # twice the room in half-width letters is more than the room holds: a line of more is never needed
            part = paragraph[: 2 * room * (self.measure_px // self.px + 2)]
            first = 0 if "  " in part else indent  # rows of a table stand at the margin
            broken = break_lines(part, self.measure_px, measure, indent=first)
            for at, line in enumerate(broken):
                lines.append(_Line(line, 0 if at else first, starts=at == 0, ends=at == len(broken) - 1))
            if len(lines) > room:
                break
        if len(lines) <= room:
            return lines, total, sum(_count(line.text) for line in lines)
        kept = lines[: room - 1]
        for at in range(len(kept) - 1, max(len(kept) - 6, 0), -1):
            ended = _SENTENCE_END.match(kept[at].text)
            if ended:
                kept = [*kept[:at], replace(kept[at], text=ended[0], ends=True)]
                break
        mark = _Line(CUT_MARK, indent, starts=True, ends=True)
        return [*kept, mark], total, sum(_count(line.text) for line in kept)


BALANCED_TITLE_MAX = 200


def _count(text: str) -> int:
    return sum(not char.isspace() for char in text)


class _BoardPage:
    """What all pages of one story on one board have: band, title, source, picture."""

    def __init__(self, board: _Board, story: StoryView, title: str) -> None:
        self.board = board
        self.title = title
        self.theme = _THEMES[board.config.colour, story.importance is Importance.URGENT]
        self.findings: list[Finding] = []
        self.too_long: tuple[Finding, ...] = ()
        fonts, width = board.fonts, board.measure_px
        self.small = _board_type(fonts, board.small_px)
        self.body = _board_type(fonts, board.px)
        self.big = _board_type(fonts, board.title_px, "Bold")
        self.later = _board_type(fonts, board.small_px, "Bold")
        urgent = story.importance is Importance.URGENT
        label = URGENT_LABEL if urgent else one_line(board.config.lead_in) or one_line(story.column_name)
        # a column's name is furniture: one that is wider than the band stays away rather than being cut
        self.label = label if self.small.width(label) <= width - 4 * board.small_px else ""
        self.title_lines = balance_lines(title, width, self.big.width)
        if len(self.title_lines) > board.title_lines_max:
            self.big = _board_type(fonts, board.px, "Bold")
            self.title_lines = balance_lines(title, width, self.big.width)
        self.later_lines = balance_lines(title, width, self.later.width)
        source = one_line(story.source) or one_line(story.unit_name)
        self.foot = balance_lines(f"来源：{source}" if source else "", width, self.small.width)
        if len(self.title_lines) > board.title_lines_max + 1:
            self.too_long += (_error("led_title_too_long", chars=len(title), chars_max=board._most()),)
        if len(self.foot) > 2:
            self.too_long += (
                _error("led_source_too_long", chars=len(source), chars_max=2 * (width // board.small_px)),
            )
        self.picture = self._cover(story)

    def _cover(self, story: StoryView) -> Image.Image | None:
        media = {one.name: one for one in story.media}.get(story.cover)
        if media is None:
            return None
        try:
            return _decoded(media)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, UnidentifiedImageError):
            self.findings.append(_warning("led_picture_left_out", picture=media.name))
            return None

    @property
    def top(self) -> int:
        return self.board.bar + self.board.px // 2

    @property
    def bottom(self) -> int:
        return self.board.height - self._foot_height - self.board.px // 2

    @property
    def _foot_height(self) -> int:
        return self.board.bar * len(self.foot)

    def _title_height(self, *, first: bool) -> int:
        lines, type_ = (self.title_lines, self.big) if first else (self.later_lines, self.later)
        return round(len(lines) * type_.px * 1.3 + self.board.px * 0.5) if lines else 0

    def rows(self, pitch: int, *, first: bool) -> int:
        """How many lines of text stand below the title."""
        room = self.bottom - self.top - self._title_height(first=first) + pitch - self.board.px
        return max(0 if first else 1, room // pitch)

    def sheet(self, lines: Sequence[_Line], number: int, of: int, pitch: int) -> _Sheet:
        board, theme, first = self.board, self.theme, number == 1
        title, type_ = (self.title_lines, self.big) if first else (self.later_lines, self.later)
        boxes = [((0, 0, board.width, board.height), theme.ground), ((0, 0, board.width, board.bar), theme.band)]
        above = (board.bar - board.small_px) // 2
        runs = [_Run(self.label, board.margin, above, self.small, theme.band_text)] if self.label else []
        if of > 1:
            count = f"{number}/{of}"
            x = board.width - board.margin - self.small.width(count)
            runs.append(_Run(count, x, above, self.small, theme.band_text))
        picture, y = None, self.top
        text_height = len(lines) * pitch - (pitch - board.px) if lines else 0
        spare = self.bottom - self.top - self._title_height(first=first) - text_height
        if first and self.picture is not None:
            gap = board.px // 2
            fitted = ImageOps.contain(self.picture, (board.measure_px, max(1, spare - gap)), Image.Resampling.LANCZOS)
            y += max(0, spare - gap - fitted.height) // 2
            picture = ((board.width - fitted.width) // 2, y, fitted)
            y += fitted.height + gap
        elif of == 1 or not lines:
            y += max(0, spare) // 2
        for text in title:
            x = max(0, (board.width - type_.width(text)) // 2)
            runs.append(_Run(text, x, y, type_, theme.head))
            y += round(type_.px * 1.3)
        y += round(board.px * 0.5) if title else 0
        for line in lines:
            runs.append(_Run(line.text, board.margin + line.indent, y, self.body, theme.text))
            y += pitch
        y = board.height - self._foot_height + (board.bar - board.small_px) // 2
        boxes.append(((board.margin, board.height - self._foot_height, board.width - board.margin,
                       board.height - self._foot_height + max(1, board.px // 32)), theme.rule))  # fmt: skip
        for text in self.foot:
            x = board.width - board.margin - self.small.width(text)
            runs.append(_Run(text, x, y, self.small, theme.quiet))
            y += board.bar
        texts = tuple(line.text for line in lines)
        least = PICTURE_DWELL_LEAST_MS if picture else DWELL_LEAST_MS
        return _Sheet(
            tuple(runs), texts, tuple(title), tuple(self.foot), tuple(boxes), picture,
            _dwell_ms((*(title if first else ()), *texts), least),
        )  # fmt: skip


def _decoded(media: Media) -> Image.Image:
    with Image.open(io.BytesIO(media.data), formats=("JPEG", "PNG", "WEBP")) as opened:
        return opened.convert("RGBA")


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────
_MODES = {Colour.MONO: "1", Colour.DUAL: "P", Colour.FULL: "RGB"}


def _page(config: LedConfig, sheet: _Sheet) -> Image.Image:
    page = Image.new(_MODES[config.colour], (config.width_px, config.height_px), 0)
    if config.colour is Colour.DUAL:
        page.putpalette(_DUAL_PALETTE)
    for box, fill in sheet.boxes:
        page.paste(fill, box)
    if sheet.picture is not None:
        left, top, picture = sheet.picture
        page.paste(picture.convert("RGB"), (left, top), picture.getchannel("A"))
    for run in sheet.runs:
        run.type.draw(page, run.x, run.y, run.text, run.fill)
    return page


def _png(image: Image.Image) -> bytes:
    """The same bytes for the same pixels: fixed compression, no metadata."""
    out = io.BytesIO()
    if image.mode == "P":
        image.save(out, "PNG", compress_level=6, bits=2)
    else:
        image.save(out, "PNG", compress_level=6)
    return out.getvalue()


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
class Led(Channel[LedConfig, LedPayload]):
    """A shelf channel: pages as PNG files, named by their content, and a playlist that names them."""

    kind = "led"
    Config = LedConfig
    Payload = LedPayload
    traits = Traits(idempotent=True, shelf=100, batch_max=1000, deadline=timedelta(seconds=60))

    def __init__(self, config: LedConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self._disk = DiskTurn()

    async def probe(self) -> None:
        """See whether the folder can be written.

        Raises:
            Misconfigured: ``disk_refused``.
        """
        await self._disk.take(self._require_writable)

    def validate(self, story: StoryView) -> list[Finding]:
        return list(self._plan(story).findings)

    def adapt(self, story: StoryView) -> Rendition[LedPayload]:
        plan = self._plan(story)
        files: dict[str, RenditionFile] = {}
        pages = []
        for sheet in plan.sheets:
            data = _png(_page(self.config, sheet))
            name = f"{hashlib.sha256(data).hexdigest()[:32]}.png"
            files[name] = RenditionFile(name, "image/png", data)
            pages.append(
                LedPage(file=name, dwell_ms=sheet.dwell_ms, head=sheet.head, lines=sheet.lines, foot=sheet.foot)
            )
        payload = LedPayload(
            title=plan.title, width_px=self.config.width_px, height_px=self.config.height_px,
            colour=self.config.colour, glyph_px=plan.glyph_px, pages=tuple(pages),
        )  # fmt: skip
        return Rendition(payload, tuple(files.values()), plan.findings)

    def _plan(self, story: StoryView) -> _Plan:
        fonts = self.tools.asset("fonts/Unifont.otf").parent
        small = min(self.config.width_px, self.config.height_px) < STRIP_BELOW_PX
        if small or self.config.colour is not Colour.FULL:
            return _Strip(self.config, fonts).plan(story)
        return _Board(self.config, fonts).plan(story)

    def preview(self, rendition: Rendition[LedPayload]) -> Artefact:
        """All pages on one sheet, each with its seconds; small screens so large that one sees the dots."""
        payload = rendition.payload
        label = _board_type(self.tools.asset("fonts/Unifont.otf").parent, 24)
        return Artefact("image/png", _contact_sheet(rendition, payload, label), "preview.png")

    async def show(self, shelf: Shelf[LedPayload]) -> Receipt:
        """Write pages, then the playlist, then drop the pages that no item uses. Idempotent.

        Pages are named by their content, so the playlist that a player holds stays true until the new one is whole.

        Raises:
            Misconfigured: the disk refused; the old playlist still stands, with all its pages.
        """
        await self._disk.take(partial(self._write, shelf))
        pages = sum(len(item.rendition.payload.pages) for item in shelf.items)
        return Receipt(
            Proof.LIVE, Level.WRITTEN, shelf.now,
            evidence={"items": len(shelf.items), "pages": pages, "playlist": PLAYLIST},
        )  # fmt: skip

    def _write(self, shelf: Shelf[LedPayload]) -> None:
        folder = self.tools.folder
        needed: set[str] = set()
        for item in shelf.items:
            for file in item.rendition.files:
                needed.add(file.name)
                folder.write(file.name, file.data)
        folder.write(PLAYLIST, self._playlist(shelf.items))
        for name in list(folder.names()):
            if PAGE_NAME.fullmatch(name) and name not in needed:
                folder.remove(name)

    def _playlist(self, items: Sequence[ShelfItem[LedPayload]]) -> bytes:
        """Urgent items first, else as on the shelf (newest first). Without the time of writing: equal shelves, equal
        bytes."""
        ordered = sorted(items, key=lambda item: item.importance is not Importance.URGENT)
        playlist = {
            "format": 1,
            "width_px": self.config.width_px,
            "height_px": self.config.height_px,
            "colour": self.config.colour.value,
            "items": [
                {
                    "key": item.key,
                    "version": item.version,
                    "importance": item.importance.value,
                    "expires_at": item.expires_at.isoformat() if item.expires_at else None,
                    "title": item.rendition.payload.title,
                    "glyph_px": item.rendition.payload.glyph_px,
                    "pages": [page.model_dump(mode="json") for page in item.rendition.payload.pages],
                }
                for item in ordered
            ],
        }
        return (json.dumps(playlist, ensure_ascii=False, indent=1) + "\n").encode()

    def _require_writable(self) -> None:
        root = self.tools.folder.root
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise Misconfigured("disk_refused", "the outlet's folder can't be written")


SHEET_WIDTH_PX = 1000


def _contact_sheet(rendition: Rendition[LedPayload], payload: LedPayload, label: _Type) -> bytes:
    """Pages in columns on grey, below each "第 1 页 · 8.5 秒"; enlarged or reduced by a whole factor."""
    gap, foot = 16, 40
    enlarge = max(1, min(640 // payload.width_px, 480 // payload.height_px))
    reduce = max(1, -(-payload.width_px // 960), -(-payload.height_px // 720))
    width, height = payload.width_px * enlarge // reduce, payload.height_px * enlarge // reduce
    columns = max(1, min(len(payload.pages) or 1, SHEET_WIDTH_PX // (width + gap)))
    rows = -(-len(payload.pages) // columns)
    cell = max(width, 240)
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + max(1, rows) * (height + foot + gap)), (72, 72, 76))
    for at, page in enumerate(payload.pages):
        x, y = gap + at % columns * (cell + gap), gap + at // columns * (height + foot + gap)
        with Image.open(io.BytesIO(rendition.file(page.file).data), formats=("PNG",)) as opened:
            picture = opened.convert("RGB")
        if payload.colour is Colour.MONO:
            lamps = picture.convert("L")
            picture = Image.new("RGB", picture.size, (0, 0, 0))
            picture.paste(_PREVIEW_RED, (0, 0), lamps)
        if enlarge > 1:
            picture = _lamps(picture, enlarge)
        elif reduce > 1:
            picture = picture.reduce(reduce)
        sheet.paste(picture, (x, y))
        seconds = f"{page.dwell_ms / 1000:.1f}".removesuffix(".0")
        label.draw(sheet, x, y + height + 6, f"第 {at + 1} 页 · {seconds} 秒", _WHITE)
    return _png(sheet)


def _lamps(picture: Image.Image, times: int) -> Image.Image:
    """Each dot so many times as large; from four times on with a dark seam, as lamps on a board."""
    large = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    if times >= 4:
        pen = ImageDraw.Draw(large)
        for x in range(times - 1, large.width, times):
            pen.line(((x, 0), (x, large.height)), fill=(12, 12, 12))
        for y in range(times - 1, large.height, times):
            pen.line(((0, y), (large.width, y)), fill=(12, 12, 12))
    return large
