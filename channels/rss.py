"""An RSS 2.0 feed of the newest stories, written as one file that the core serves.

Profile: RSS 2.0 (rssboard.org) with the RSS Advisory Board's best practices: description before content:encoded, at
most one enclosure, absolute addresses only, ``atom:link rel="self"``, dc:creator instead of an e-mail address, and
``&`` and ``<`` written as hexadecimal references, which readers that decode twice survive.

An item's id is a tag URI (RFC 4151) of the story: it outlives corrections, a new address and a new episode. The
bytes depend on the shelf alone: ``lastBuildDate`` is the newest change on it, so that the core's ETag holds as long
as nothing changed.

Files in the outlet's public folder: the feed, and ``media/…`` with the pictures that its items show.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from html.parser import HTMLParser
from typing import Annotated, ClassVar
from urllib.parse import quote, urljoin, urlsplit

from feedgen.feed import FeedGenerator
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import AfterValidator, Field

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    DiskTurn,
    Finding,
    Level,
    Media,
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
)  # fmt: skip
from distributor.text import from_html, one_line

__all__ = ["FeedItem", "Rss", "RssConfig"]

MEDIA = "media"
SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
# What XML 1.0 §2.2 forbids, and the control characters that it only discourages.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
NEVER_BUILT = datetime(2000, 1, 1, tzinfo=UTC)  # lastBuildDate of a feed without items: fixed, for equal bytes
PREVIEW = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
    """<!DOCTYPE html>
<html lang="zh-CN">
<head><meta charset="utf-8"><title>{{ item.title }}</title>
<style>
body { max-width: 760px; margin: 24px auto; padding: 0 16px; color: #1f2329; font: 17px/1.8 sans-serif; }
dl { display: grid; grid-template-columns: 5em 1fr; gap: 2px 12px; padding: 12px 16px; background: #f3f5f8;
  font-size: 15px; overflow-wrap: anywhere; }
dt { color: #5b6470; } dd { margin: 0; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; } td, th { padding: 4px 10px; border: 1px solid #c9d3df; }
</style></head>
<body>
<h1>{{ item.title }}</h1>
<dl>
<dt>发布时间</dt><dd>待发布</dd>
{% if item.author %}
<dt>作者</dt><dd>{{ item.author }}</dd>
{% endif %}
<dt>来源</dt><dd>{{ item.source }}{% if item.source_url %} {{ item.source_url }}{% endif %}</dd>
<dt>分类</dt><dd>{{ item.categories | join("、") }}</dd>
<dt>链接</dt><dd>{{ item.link }}</dd>
<dt>标识</dt><dd>{{ item.guid }}</dd>
<dt>摘要</dt><dd>{{ item.summary }}</dd>
</dl>
<article>{{ body }}</article>
</body>
</html>
"""
)


# ── configuration and payload ───────────────────────────────────────────────────────────────────────────────
def _printable(value: str) -> str:
    if UNPRINTABLE.search(value):
        raise ValueError("control characters can't stand in XML")
    return value


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("needs http(s)://host[:port]/path")
    return value


def _feed_address(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+\.xml", _web_address(value).rpartition("/")[2]):
        raise ValueError("needs to end with the feed's file name, e.g. /rss.xml")
    return value


Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]


class RssConfig(ChannelConfig):
    """One feed. What shapes an item is profile: where its pictures stand and how its id is made."""

    profile_fields = frozenset({"feed_url", "id_authority", "id_date"})

    feed_url: Annotated[str, AfterValidator(_feed_address)]  # its public address; the last part is the file's name
    site_url: Annotated[str, AfterValidator(_web_address)]  # the site that it is the feed of
    title: Name
    description: Name
    # tag:<authority>,<date>: a domain that the publisher owned on that day (RFC 4151 §2.1). Never change them: every
    # reader would see every story again as new.
    id_authority: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    id_date: Annotated[str, Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")] = "2021"
    copyright: Annotated[str, AfterValidator(_printable)] = ""
    ttl_minutes: Annotated[int, Field(ge=1, le=1440)] = 15
    demo: bool = False  # says 演示数据 in the feed's title and description


class FeedItem(Payload):
    """One item, complete but for its times. ``summary`` is plain text, ``html`` the body with absolute addresses.

    ``enclosure`` names one of the rendition's files (the cover) or is "". Files are named by their place in the
    public folder.
    """

    guid: str
    title: str
    link: str
    summary: str
    html: str
    author: str
    source: str
    source_url: str
    categories: tuple[str, ...]
    enclosure: str


# ── addresses in the body ───────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Tag:
    """One ``img`` or ``a`` tag with an address: where it stands in the HTML and what it says."""

    start: int
    end: int
    name: str
    attributes: dict[str, str]


class _TagFinder(HTMLParser):
    ADDRESSED: ClassVar = {"img": "src", "a": "href"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[_Tag] = []
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", html))]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" or (tag == "a" and "href" in dict(attrs)):
            line, column = self.getpos()
            start = self._line_starts[line - 1] + column
            end = start + len(self.get_starttag_text() or "")
            self.found.append(_Tag(start, end, tag, {name: value or "" for name, value in attrs}))

    def images(self) -> list[str]:
        return [tag.attributes.get("src", "") for tag in self.found if tag.name == "img"]


def _written(tag: _Tag, **changed: str) -> str:
    said = [f' {name}="{escape(value)}"' for name, value in (tag.attributes | changed).items()]
    return f"<{tag.name}{''.join(said)}>"


def _absolute(address: str, base: str) -> str:
    try:
        return urljoin(base, address)
    except ValueError:  # a broken IPv6 literal is at least not relative
        return address


def _file_name(media: Media) -> str:
    return f"{MEDIA}/{media.sha256[:16]}.{SUFFIXES.get(media.media_type, 'bin')}"


def _summary(story: StoryView) -> str:
    """The summary, else the whole first paragraph, else the title: an item with content needs a description."""
    paragraphs = (one_line(from_html(found[1])) for found in re.finditer(r"<p>(.*?)</p>", story.html, re.DOTALL))
    return one_line(story.summary) or next((text for text in paragraphs if text), "") or one_line(story.title)


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
class Rss(Channel[RssConfig, FeedItem]):
    """One feed. `show` writes it whole and is idempotent: the same shelf leaves the same bytes."""

    kind = "rss"
    Config: ClassVar[type[ChannelConfig]] = RssConfig
    Payload: ClassVar[type[Payload]] = FeedItem
    traits = Traits(
        idempotent=True, withdraws=True, corrects=True, expires=False, holds_permalink=True,
        shelf=50, batch_max=500, deadline=timedelta(seconds=30),
    )  # fmt: skip
    envelope = frozenset({"published_at", "modified_at"})
    version = 1

    def __init__(self, config: RssConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self._disk = DiskTurn()

    @property
    def _base_url(self) -> str:
        """Where the public folder is served; pictures stand below it."""
        return self.config.feed_url.rpartition("/")[0] + "/"

    @property
    def _file(self) -> str:
        return self.config.feed_url.rpartition("/")[2]

    async def probe(self) -> None:
        """See whether the folder can be written."""
        await self._disk.take(self._try_folder)

    def _try_folder(self) -> None:
        self.tools.folder.write("probe.tmp", b"")
        self.tools.folder.remove("probe.tmp")

    # ── before approval ─────────────────────────────────────────────────────────────────────────────────────
    def validate(self, story: StoryView) -> list[Finding]:
        return [*_findings(story)]

    def adapt(self, story: StoryView) -> Rendition[FeedItem]:
        by_name = {media.name: media for media in story.media}
        tags = _TagFinder(story.html)
        shown = tags.images()
        parts, at = [], 0
        for tag in tags.found:
            parts += [story.html[at : tag.start], self._with_absolute_address(tag, story, by_name)]
            at = tag.end
        parts.append(story.html[at:])
        cover = by_name[story.cover] if story.cover else None
        if cover and story.cover not in shown:
            address = self._base_url + _file_name(cover)
            parts.insert(0, f'<p><img src="{escape(address)}" alt="{escape(cover.description)}"></p>\n')
        if story.correction_note:
            parts.insert(0, f"<p><strong>更正：</strong>{escape(one_line(story.correction_note), quote=False)}</p>\n")
        pictures = {_file_name(by_name[name]): by_name[name] for name in [story.cover, *shown] if name}
        keywords = (one_line(keyword) for keyword in story.keywords)
        categories = dict.fromkeys(name for name in (one_line(story.column_name), *keywords) if name)
        payload = FeedItem(
            guid=f"tag:{self.config.id_authority},{self.config.id_date}:{quote(story.story, safe='-._~')}",
            title=one_line(story.title),
            link=story.permalink,
            summary=_summary(story),
            html="".join(parts),
            author=one_line(story.byline),
            source=one_line(story.source or story.unit_name),
            source_url=story.source_url,
            categories=tuple(categories),
            enclosure=_file_name(cover) if cover else "",
        )
        files = [RenditionFile(name, media.media_type, media.data) for name, media in sorted(pictures.items())]
        return Rendition(payload, tuple(files))

    def _with_absolute_address(self, tag: _Tag, story: StoryView, by_name: dict[str, Media]) -> str:
        if tag.name == "img":
            media = by_name[tag.attributes.get("src", "")]
            alt = tag.attributes.get("alt") or media.description
            return _written(tag, src=self._base_url + _file_name(media), alt=alt)
        return _written(tag, href=_absolute(tag.attributes["href"], story.permalink))

    def preview(self, rendition: Rendition[FeedItem]) -> Artefact:
        """What a reader shows of the item; pictures are put into the page, for it stands alone."""
        body = rendition.payload.html
        for file in rendition.files:
            inline = f"data:{file.media_type};base64,{base64.b64encode(file.data).decode()}"
            body = body.replace(f'src="{escape(self._base_url + file.name)}"', f'src="{inline}"')
        cleaned = Markup(body)  # noqa: S704 - cleaned by intake, the contract of StoryView.html
        return Artefact("text/html", PREVIEW.render(item=rendition.payload, body=cleaned).encode(), "preview.html")

    # ── after approval ──────────────────────────────────────────────────────────────────────────────────────
    async def show(self, shelf: Shelf[FeedItem]) -> Receipt:
        """Write the feed of the window, its pictures before it; drop the pictures that no item shows any more.

        Raises:
            Misconfigured: the disk refused; whatever was written is whole.
        """
        await self._disk.take(partial(self._write, shelf))
        keys = [item.key for item in (*shelf.items, *shelf.changed)]
        return Receipt(
            Proof.LIVE, Level.WRITTEN, shelf.now,
            url=self.config.feed_url,
            urls=dict.fromkeys(keys, self.config.feed_url),
            evidence={"items": len(shelf.items), "file": self._file},
        )  # fmt: skip

    def _write(self, shelf: Shelf[FeedItem]) -> None:
        folder = self.tools.folder
        files = {file.name: file for item in shelf.items for file in item.rendition.files}
        for file in files.values():
            folder.write(file.name, file.data)
        folder.write(self._file, self._feed(shelf.items))
        for name in list(folder.below(MEDIA).names()):
            if f"{MEDIA}/{name}" not in files:
                folder.remove(f"{MEDIA}/{name}")

    def _feed(self, items: tuple[ShelfItem[FeedItem], ...]) -> bytes:
        feed = FeedGenerator()
        feed.load_extension("dc")
        note = "（演示数据）" if self.config.demo else ""
        feed.title(self.config.title + note)
        feed.description(self.config.description + note)
        # feedgen takes the last link that it is given as the channel's: the site must come after the feed itself.
        feed.link(href=self.config.feed_url, rel="self", type="application/rss+xml")
        feed.link(href=self.config.site_url, rel="alternate")
        feed.language("zh-CN")
        feed.ttl(self.config.ttl_minutes)
        feed.generator("Distributor 一稿多发")
        if self.config.copyright:
            feed.copyright(self.config.copyright)
        newest = max((item.modified_at for item in items), default=NEVER_BUILT)
        feed.lastBuildDate(newest.astimezone(self.tools.timezone))
        for item in items:
            self._add(feed, item)
        xml: bytes = feed.rss_str(pretty=True)
        # Nothing stands in CDATA, so that every & and < of the text is one of these references.
        return xml.replace(b"&amp;", b"&#x26;").replace(b"&lt;", b"&#x3C;")

    def _add(self, feed: FeedGenerator, item: ShelfItem[FeedItem]) -> None:
        payload = item.rendition.payload
        entry = feed.add_entry(order="append")
        entry.title(payload.title)
        entry.link(href=payload.link)
        entry.guid(payload.guid, permalink=False)
        # Readers take a description for HTML: plain text has to be escaped to be shown as it is.
        entry.description(escape(payload.summary, quote=False))
        entry.content(payload.html)
        entry.pubDate(item.published_at.astimezone(self.tools.timezone))
        for category in payload.categories:
            entry.category(term=category)
        if payload.author:
            entry.dc.dc_creator(payload.author)
        if payload.source_url:
            entry.source(url=payload.source_url, title=payload.source)
        else:
            entry.dc.dc_source(payload.source)  # <source> needs an address
        if payload.enclosure:
            file = item.rendition.file(payload.enclosure)
            entry.enclosure(self._base_url + file.name, str(len(file.data)), file.media_type)


def _findings(story: StoryView) -> Iterator[Finding]:
    if not story.title.strip():
        yield Finding(Severity.ERROR, "feed_title_missing")
    if not story.text.strip() and not story.media:
        yield Finding(Severity.ERROR, "feed_body_missing")
    if not story.permalink.startswith(("https://", "http://")):
        yield Finding(Severity.ERROR, "feed_permalink_unusable")
    if story.source_url and not story.source_url.startswith(("https://", "http://")):
        yield Finding(Severity.ERROR, "feed_source_url_unusable")
    known = {media.name for media in story.media}
    wanted = [*([story.cover] if story.cover else []), *_TagFinder(story.html).images()]
    for name in dict.fromkeys(name for name in wanted if name not in known):
        yield Finding(Severity.ERROR, "feed_picture_missing", {"name": name[:80]})
    written = {
        "title": (story.title,), "body": (story.html, story.text), "summary": (story.summary,),
        "source": (story.source, story.source_url, story.unit_name), "byline": (story.byline,),
        "keywords": story.keywords, "column": (story.column_name,), "correction_note": (story.correction_note,),
        "permalink": (story.story, story.permalink),
        "pictures": tuple(media.description for media in story.media),
    }  # fmt: skip
    for field, texts in written.items():
        found = next((match for text in texts if (match := UNPRINTABLE.search(text))), None)
        if found:
            yield Finding(
                Severity.ERROR, "feed_character_unprintable", {"field": field, "code_point": f"U+{ord(found[0]):04X}"}
            )
