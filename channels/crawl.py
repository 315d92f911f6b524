"""The running line at the foot of the television picture (飞字): one line per story, in a playlist file.

Character generators in county stations read a text file from a watched folder: one item per line or all items on
one line with a mark between them, in a national charset, replaced as a whole. No standard fixes that file; its
shape is configuration.
"""

import asyncio
import html
import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    DiskTurn,
    Finding,
    Importance,
    Level,
    Misconfigured,
    Payload,
    Proof,
    Receipt,
    Rendition,
    Severity,
    Shelf,
    ShelfItem,
    StoryKind,
    StoryView,
    Tools,
    Traits,
)  # fmt: skip
from distributor.text import clean, graphemes, name_of, one_line, removed, unencodable

__all__ = ["Crawl", "CrawlConfig", "CrawlPayload"]

COMFORTABLE_CHARS = 80  # customary upper end for one item on air; a summary joins the title only up to here
LABEL_CHARS = 8  # a title this short ("停水通知") only says what kind of thing follows
NAMED_CHARS = 8  # how many different characters one finding lists


class CrawlConfig(ChannelConfig):
    """How one character generator wants its file, and how this outlet's lines are built.

    ``max_chars`` counts characters, marks included; 40 to 80 are customary, 120 is where a line stops being one.
    ``max_bytes`` counts bytes in ``charset`` without the line end, for machines with a fixed record.
    ``characters_per_second``: 3 to 5 are customary for Chinese that moves, 4 to 5 for subtitles that stand; no
    standard fixes the rate of a crawl, so it is a setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    profile_fields = frozenset(
        {
            "charset", "separator", "max_chars", "max_bytes", "source_tag", "end_mark", "characters_per_second",
            "lead_in",
        }
    )  # fmt: skip

    charset: Literal["gbk", "gb2312", "gb18030", "utf-8"] = "gbk"
    bom: bool = False  # the three bytes EF BB BF before UTF-8
    eol: Literal["crlf", "lf"] = "crlf"
    separator: str = Field("", max_length=10)  # "": one item per line; else all items on one line, this between them
    max_chars: int = Field(120, ge=8, le=500)
    max_bytes: int | None = Field(None, ge=16, le=2000)
    max_items: int = Field(30, ge=1, le=200)
    lead_in: str = Field("", max_length=20)  # before every line, e.g. "快讯："
    source_tag: str = Field("【{source}】", max_length=20)  # "" for none
    end_mark: Literal["。", ""] = "。"
    characters_per_second: float = Field(4.0, ge=1, le=12)
    filename: str = Field("crawl.txt", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")

    @field_validator("separator", "lead_in", "source_tag")
    @classmethod
    def _on_one_line(cls, value: str) -> str:
        if value != clean(value) or "\n" in value:
            raise PydanticCustomError("crawl_not_on_one_line", "不能含换行和看不见的字符")
        return value

    @model_validator(mode="after")
    def _fits_charset(self) -> "CrawlConfig":
        for value in (self.separator, self.lead_in, self.source_tag, self.end_mark):
            if unencodable(value, self.charset):
                raise PydanticCustomError(
                    "crawl_not_in_charset", "前缀、来源标记、分隔符或句末标点中有该字符集没有的字符"
                )
        if self.bom and self.charset != "utf-8":
            raise PydanticCustomError("crawl_bom_needs_utf8", "只有字符集为 utf-8 时才能写 BOM，请去掉 bom 或改字符集")
        return self


class CrawlPayload(Payload):
    """One item: exactly the line that is aired, the charset it was made for, and how many seconds it takes to read."""

    line: str
    charset: str
    seconds: int
    expires_at: datetime | None = None


# ── from story to line (pure) ───────────────────────────────────────────────────────────────────────────────
@dataclass
class _Line:
    """A line in the making, with all that a reviewer must know of how it came about."""

    text: str = ""
    findings: list[Finding] = field(default_factory=list)

    def error(self, code: str, **facts: str | int) -> None:
        self.findings.append(Finding(Severity.ERROR, code, facts))

    def warn(self, code: str, **facts: str | int) -> None:
        self.findings.append(Finding(Severity.WARNING, code, facts))


_ALNUM = re.compile(r"[0-9A-Za-z%+.℃]+\Z")
_LABEL = re.compile(r"(图片新闻|图片报道|组图|图集|视频新闻|视频|短视频|海报|长图|直播|H5)\s*[|｜丨]\s*")
_BAR = re.compile(r"\s*[|｜丨]\s*")  # the third is the Chinese stroke U+4E28, used as a bar in titles
_POINTS_AWAY = re.compile("一图读懂|一图看懂|图解|组图|图集|视频|扫码|点击|戳图|见图|二维码|长按")
_ASKS = re.compile("哪些|哪里|什么|怎么|怎样|为何|多少|[吗呢]$")
_MARK = re.compile(r"[。！？…；!?;.]$|[。！？…!?][”’）》」』)]$")
_FULL_WIDTH = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_PAIRS = {
    "《": "》",
    "〈": "〉",
    "“": "”",
    "‘": "’",
    "（": "）",
    "(": ")",
    "【": "】",
    "「": "」",
    "『": "』",
    "[": "]",
    "〔": "〕",
}


def _in_clauses(title: str) -> str:
    """A headline as a spoken sentence: the space between its two halves becomes a comma.

    A space beside a number or Latin word that has one on both sides is typography ("共 18 项") and goes; so does one
    that pads a name ("张 三"). Between Latin words it stays.
    """
    pieces = title.split(" ")
    made = pieces[0]
    for left, right in pairwise(pieces):
        if left[-1:].isascii() and right[:1].isascii():
            joint = " "
        elif _is_set_apart(left) or _is_set_apart(right) or not _may_part(left[-1:], right[:1]):
            joint = ""
        else:
            joint = "，"
        made += joint + right
    return made


def _is_set_apart(piece: str) -> bool:
    """Whether typography or padding, not sense, put spaces around it."""
    return len(piece) == 1 or _ALNUM.match(piece) is not None


def _may_part(before: str, after: str) -> bool:
    """Whether a comma can stand between: after a letter, a digit or what closes a pair, and before no mark."""
    ends = before in _PAIRS.values() or unicodedata.category(before)[0] in "LNS" or before in "%％"
    return ends and (after in _PAIRS or unicodedata.category(after)[0] != "P")


def _tight(prose: str) -> str:
    """Prose without the spaces that typography puts between Chinese and numbers or Latin words."""
    return re.sub(r"(?<=[^\x00-\x7f]) (?=[!-~])|(?<=[!-~]) (?=[^\x00-\x7f])", "", prose)


def _spoken(story: StoryView, line: _Line) -> str:
    """The story in one sentence or two, without tag and end mark; "" when there is nothing to say."""
    title = one_line(story.headline)
    if story.kind is StoryKind.FORWARDED:  # another medium's headline is not ours to change
        return title
    label = _LABEL.match(title)
    if label and label.end() < len(title):
        line.warn("crawl_label_dropped", label=label[1])
        title = title[label.end() :]
    title = _in_clauses(_BAR.sub("：", title))
    if story.short_title or not title:
        return title
    only_label = len(title) <= LABEL_CHARS
    said = _tight(one_line(story.summary))
    if not said and only_label and "\n" not in story.text.strip():
        said = _tight(one_line(story.text))
    joint = "" if _MARK.search(title) else "。" if "：" in title else "："
    if said and len(title + joint + said) <= COMFORTABLE_CHARS:
        return title + joint + said
    if only_label:
        line.warn("crawl_only_label", title=title)
    return title


def _compose(story: StoryView, config: CrawlConfig) -> _Line:
    """The line for air and everything to be said about it. Never raises."""
    line = _Line()
    own = story.own_text.get("crawl", "")
    given = own or f"{story.headline}{story.summary}{story.source or story.unit_name}"
    for name in removed(given)[:NAMED_CHARS]:
        line.warn("crawl_character_removed", character=name)
    body = one_line(own) or _spoken(story, line)
    if not body:
        line.error("crawl_empty")
        return line
    source = one_line(story.source or story.unit_name)
    tag = config.source_tag.replace("{source}", source) if source and not own else ""
    text = (config.lead_in + tag + body).translate(_FULL_WIDTH)
    if not own and _POINTS_AWAY.search(body):
        line.warn("crawl_points_away", words=_POINTS_AWAY.findall(body)[0])
    if not _MARK.search(text):
        if config.end_mark and _ASKS.search(re.split("[，：；,:;]", text)[-1]):
            line.warn("crawl_question_without_mark")
        else:
            text += config.end_mark
    line.text = _in_charset(text, config.charset, line)
    _judge(line, config)
    return line


def _judge(line: _Line, config: CrawlConfig) -> None:
    orphans = _orphans(line.text)
    if orphans:
        line.warn("crawl_orphan", characters=" ".join(dict.fromkeys(orphans)))
    if config.separator.strip() and config.separator.strip() in line.text:
        line.error("crawl_separator_inside", separator=config.separator.strip())
    if len(line.text) > config.max_chars:
        line.error("crawl_too_long", limit=config.max_chars, length=len(line.text))
    size = len(line.text.encode(config.charset, "replace"))
    if config.max_bytes is not None and size > config.max_bytes:
        line.error("crawl_too_many_bytes", limit=config.max_bytes, length=size, charset=config.charset)


def _orphans(text: str) -> list[str]:
    """Brackets and quotes without their other half; "1）" as numbering and "it’s" are complete."""
    opened: list[str] = []
    alone: list[str] = []
    for place, character in enumerate(text):
        if character in _PAIRS:
            opened.append(character)
        elif character in _PAIRS.values():
            if opened and _PAIRS[opened[-1]] == character:
                opened.pop()
            elif not (_is_numbering(text, place) or _is_apostrophe(text, place)):
                alone.append(character)
    return alone + opened


def _is_numbering(text: str, place: int) -> bool:
    return text[place] in "）)" and text[place - 1 : place].isdigit()


def _is_apostrophe(text: str, place: int) -> bool:
    return text[place] == "’" and text[place - 1 : place].isascii() and text[place - 1 : place].isalpha()


# ── characters that a charset doesn't have ──────────────────────────────────────────────────────────────────
# Tried in this order, again and again, until the charset has every character. What a charset has is left alone.
_WRITTEN_OUT = {
    "km²": "平方公里", "m²": "平方米", "m³": "立方米",
    "㎡": "平方米", "㎥": "立方米", "㎢": "平方公里", "㎞": "公里", "㎝": "厘米", "㎜": "毫米",
    "㎏": "千克", "㎎": "毫克",
    "•": "·", "‧": "·", "∙": "·", "⋅": "·", "●": "·", "·": "・",  # GB 2312's 间隔号, as Python's codec names it
    "—": "―", "–": "-", "−": "-", "‐": "-", "‑": "-", "⸺": "——",  # and its 破折号 (A1AA)
    "⋯": "…", "〜": "～", "﹏": "＿", "〇": "○", "〝": "“", "〞": "”", "＂": "”", "«": "《", "»": "》",
} | {chr(0x246A + step): f"（{11 + step}）" for step in range(10)}  # fmt: skip
_SAFE_FORMS = ("<compat>", "<wide>", "<narrow>", "<font>", "<noBreak>")  # not <super>: 10² is not 102


def _in_charset(text: str, charset: str, line: _Line) -> str:
    """``text`` as far as ``charset`` can write it; each replacement a warning, each character without one an error."""
    for _ in range(3):  # • -> · -> ・ is the longest chain
        missing = unencodable(text, charset)
        for written, spelled in _WRITTEN_OUT.items():
            if written in text and any(character in missing for character in written):
                line.warn("crawl_character_replaced", character=name_of(written), replacement=spelled)
                text = text.replace(written, spelled)
        for character in unencodable(text, charset):
            plain = unicodedata.normalize("NFKC", character)
            if unicodedata.decomposition(character).startswith(_SAFE_FORMS) and not unencodable(plain, charset):
                line.warn("crawl_character_replaced", character=name_of(character), replacement=plain)
                text = text.replace(character, plain)
    pictures = [cluster for cluster in dict.fromkeys(graphemes(text)) if _no_glyph(cluster)]
    if pictures:
        line.error("crawl_no_glyph", characters=_named(pictures))
    refused = [one for one in unencodable(text, charset) if not any(one in cluster for cluster in pictures)]
    if refused:
        line.error("crawl_not_in_charset", characters=_named(refused), charset=charset.upper())
    return text


def _no_glyph(cluster: str) -> bool:
    """Whether no character generator draws it: pictures, piled marks, private and unassigned codes, half characters."""
    if len(cluster) > 1:
        return any(unicodedata.category(each)[0] in "MC" for each in cluster[1:]) or _no_glyph(cluster[0])
    if unicodedata.category(cluster)[0] in "MC":
        return True
    drawn = "\u2190" <= cluster <= "\u2bff" or cluster in "\u3030\u303d\u3297\u3299" or cluster >= "\U0001f000"
    return drawn and unicodedata.category(cluster)[0] == "S" and bool(unencodable(cluster, "gbk"))


def _named(clusters: list[str]) -> str:
    more = len(clusters) - NAMED_CHARS
    names = "、".join(name_of(cluster) for cluster in clusters[:NAMED_CHARS])
    return names + (f" 等 {len(clusters)} 个" if more > 0 else "")


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
class Crawl(Channel[CrawlConfig, CrawlPayload]):
    """A shelf channel: the playlist file is rewritten as a whole whenever its list changes."""

    kind = "crawl"
    Config = CrawlConfig
    Payload = CrawlPayload
    traits = Traits(idempotent=True, checks=True, shelf=30, batch_max=200)
    version: ClassVar[int] = 1

    def __init__(self, config: CrawlConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.traits = replace(type(self).traits, shelf=config.max_items)
        self._disk = DiskTurn()

    def validate(self, story: StoryView) -> list[Finding]:
        return _compose(story, self.config).findings

    def adapt(self, story: StoryView) -> Rendition[CrawlPayload]:
        line = _compose(story, self.config).text
        seconds = math.ceil(len(line) / self.config.characters_per_second)
        return Rendition(
            CrawlPayload(line=line, charset=self.config.charset, seconds=seconds, expires_at=story.expires_at)
        )

    def preview(self, rendition: Rendition[CrawlPayload]) -> Artefact:
        payload = rendition.payload
        until = payload.expires_at.astimezone(self.tools.timezone) if payload.expires_at else None
        facts = [f"{len(payload.line)} 字", f"约 {payload.seconds} 秒", payload.charset.upper()]
        if until:
            facts.append(f"{until:%Y-%m-%d %H:%M} 下线")
        page = _PREVIEW.format(line=html.escape(payload.line), facts=html.escape("　".join(facts)))
        return Artefact("text/html; charset=utf-8", page.encode(), name="crawl.html")

    def playlist(self, items: Iterable[ShelfItem[CrawlPayload]]) -> bytes:
        """The whole file: urgent items first, then the newest first. Pure. No items: an empty file (or just a BOM)."""
        in_order = sorted(items, key=lambda one: (one.published_at, one.key), reverse=True)
        in_order.sort(key=lambda one: one.importance is not Importance.URGENT)
        lines = [one.rendition.payload.line for one in in_order[: self.config.max_items]]
        end = "\r\n" if self.config.eol == "crlf" else "\n"
        text = (self.config.separator or end).join(lines) + (end if lines else "")
        bom = b"\xef\xbb\xbf" if self.config.bom else b""
        return bom + text.encode(self.config.charset)

    async def probe(self) -> None:
        root = self.tools.folder.root
        existing = next(place for place in (root, *root.parents) if place.exists())
        if not await asyncio.to_thread(os.access, existing, os.W_OK | os.X_OK):
            raise Misconfigured("disk_refused", f"{root} can't be written")

    async def show(self, shelf: Shelf[CrawlPayload]) -> Receipt:
        data = self.playlist(shelf.items)
        await self._disk.take(lambda: self._write(data))
        return Receipt(
            Proof.LIVE, Level.WRITTEN, at=shelf.now,
            evidence={"file": self.config.filename, "items": len(shelf.items), "bytes": len(data)},
        )  # fmt: skip

    def _write(self, data: bytes) -> None:
        self.tools.folder.write(self.config.filename, data)


_PREVIEW = """<!doctype html>
<html lang="zh-CN"><head><meta charset="utf-8"><title>飞字预览</title><style>
body{{margin:0;padding:16px;font:16px/1.6 "Noto Sans SC",sans-serif;color:#1d2129;background:#fff}}
.picture{{position:relative;aspect-ratio:16/5;background:linear-gradient(#46586b,#202a35);overflow:hidden;border-radius:4px}}
.strip{{position:absolute;left:0;right:0;bottom:5%;padding:.35em 5%;background:rgba(0,32,96,.85);color:#fff;
font-size:clamp(16px,3.2vw,32px);line-height:1.45;overflow-wrap:anywhere}}
.facts{{margin:8px 0 0;color:#4e5969}}
</style></head><body><div class="picture"><div class="strip">{line}</div></div>
<p class="facts">{facts}</p></body></html>
"""
