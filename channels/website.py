"""The district's website: article pages, column pages and a home page, written as files that the core serves.

An article page is made once, at `adapt`, and is the approved payload down to its style sheet and pictures. Three
things in it are the core's envelope and stand as holes (see `fill`): when it was published, when it was last changed,
and when it was corrected. Column pages and the home page are pure functions of the shelf.

Files in the outlet's public folder::

    index.html  <column>/index.html        lists of the window, newest first
    <path>                                 an article; <path> is the permalink without the site's base address
    <path without .html>.files/…           its pictures, named by content
    <path>.gone                            the notice left by a withdrawal: to be served for <path> with status 410
    static/site-<hash>.css                 every style sheet that a page still uses

Page tags: 《政府网站发展指引》国办发〔2017〕47号，附件“网页标签规范”. Names are case-sensitive, ``PubDate`` is
``YYYY-MM-DD HH:MM`` in the district's time.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from html import escape
from html.parser import HTMLParser
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from distributor.channel import (
    Artefact,
    Channel,
    ChannelConfig,
    DiskTurn,
    Finding,
    GoneReason,
    Importance,
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
    StoryKind,
    StoryView,
    Tools,
    Traits,
)  # fmt: skip
from distributor.text import from_html, one_line

__all__ = ["Article", "SiteColumn", "Website", "WebsiteConfig", "fill", "unfill"]

TEMPLATES = ("base.html", "article.html", "column.html", "home.html", "gone.html")
STYLESHEET = "static/site/site.css"
SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.~-]*/)*[A-Za-z0-9_][A-Za-z0-9_.~-]*\.html")
# What no page may hold: control characters but newline and tab, noncharacters (not allowed in HTML, WHATWG §13.2.3.5)
# and surrogates, which UTF-8 has no bytes for.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
HOME_NEWEST = 6  # lines in the home page's list of new stories
HOME_PER_COLUMN = 6
URGENT_ON_HOME = 3
SAMPLE = "待发布"
NOTICES = {
    GoneReason.WITHDRAWN: ("该稿件已撤回", "您访问的稿件已由发布单位撤回，不再提供浏览。"),
    GoneReason.ENDED: ("该信息已过期下线", "您访问的信息已过有效期，不再提供浏览。"),
}


# ── the envelope's holes ────────────────────────────────────────────────────────────────────────────────────
BODY = '<div class="body">'
# (what stands before it, its name, what stands after it): enough to find a hole again once it is filled.
HOLES = (
    ('<meta name="PubDate" content="', "published", '"/>'),
    ('<time datetime="', "published_iso", '">'),
    ('<span class="published">', "published", "</span>"),
    ('<span class="modified">', "modified", "</span>"),
    ('<span class="corrected">', "corrected", "</span>"),
)


def fill(page: str, *, published_at: datetime, modified_at: datetime, timezone: ZoneInfo) -> str:
    """The page as readers get it: an approved page with the envelope's times in its holes.

    A hole is a comment (``<!--published-->``). Only what stands before the body is looked at: there every story text
    was escaped, so a comment in it can only be the template's; a body that holds the same words stays as it is.
    """
    published = _minute(published_at, timezone)
    modified = _minute(modified_at, timezone)
    values = {
        "published": published,
        "published_iso": published_at.astimezone(timezone).isoformat(timespec="seconds"),
        "modified": f"更新时间：{modified}" if modified != published else "",
        "corrected": modified,
    }
    return _put_in(page, values)


def unfill(page: str) -> str:
    """The inverse of `fill`: a published page with its holes put back, which is the approved payload's page."""
    head, body, rest = page.partition(BODY)
    for before, name, after in HOLES:
        # Once: behind the publication's time, another one may say until when the story holds.
        head = re.sub(f'({re.escape(before)})[^<>"]*(?={re.escape(after)})', rf"\g<1><!--{name}-->", head, count=1)
    return head + body + rest


def _put_in(page: str, values: dict[str, str]) -> str:
    head, body, rest = page.partition(BODY)
    for name, value in values.items():
        head = head.replace(f"<!--{name}-->", value)
    return head + body + rest


def _minute(at: datetime, timezone: ZoneInfo) -> str:
    """``YYYY-MM-DD HH:MM``, the form that the guideline demands of PubDate, in the district's time."""
    return at.astimezone(timezone).strftime("%Y-%m-%d %H:%M")


# ── configuration and payload ───────────────────────────────────────────────────────────────────────────────
def _printable(value: str) -> str:
    if UNPRINTABLE.search(value):
        raise ValueError("control characters can't stand on a page")
    return value


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("needs http(s)://host[:port][/path]")
    return value


def _base_address(value: str) -> str:
    return _web_address(value).rstrip("/") + "/"


Text = Annotated[str, AfterValidator(_printable)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]


class SiteColumn(BaseModel):
    """One column as the guideline wants it described. ``type``: the guideline's word, e.g. 工作动态, 政策解读."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    slug: Annotated[str, Field(pattern=f"^{SLUG.pattern}$")]
    name: Name
    description: Text = ""
    keywords: tuple[Text, ...] = ()
    type: Name = "工作动态"


class WebsiteConfig(ChannelConfig):
    """What stands on every page. All of it is profile: the approved page holds it."""

    profile_fields = frozenset(
        {
            "base_url", "site_name", "site_domain", "site_id_code", "sponsor", "contact", "icp", "police_record",
            "description", "feed_url", "columns", "theme", "demo",
        }
    )  # fmt: skip

    base_url: Annotated[str, AfterValidator(_base_address)]  # permalinks begin with it
    site_name: Name  # 网站名称, the official one
    site_domain: Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:\d+)?$")]  # without scheme, e.g. www.example.org
    site_id_code: Annotated[str, Field(pattern=r"^(\d{10}|bm\d{8})$")]  # 政府网站标识码
    sponsor: Name  # 主办单位
    contact: Text = ""
    icp: Text = ""
    police_record: Text = ""  # 公安备案号
    description: Text = ""
    feed_url: Annotated[str, AfterValidator(lambda value: _web_address(value) if value else "")] = ""
    columns: tuple[SiteColumn, ...] = ()  # in the order of the navigation; others are listed behind them
    theme: Literal["district"] = "district"
    demo: bool = False  # marks every page 演示数据 and keeps search engines away


class Article(Payload):
    """One article page and what lists say of it.

    ``page`` is the complete HTML with holes. The rendition's files are named by their place in the public folder:
    the style sheet that the page was made with and its pictures.
    """

    path: str
    permalink: str
    title: str
    headline: str  # the short title where the editor wrote one: for the strip of urgent stories
    column: str
    column_name: str
    source: str
    summary: str
    cover: str  # a file's name, or ""
    corrected: bool
    page: str


# ── pictures in the body ────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class _Img:
    """One ``img`` tag: where it stands in the HTML and what it says."""

    start: int
    end: int
    name: str
    alt: str


class _ImgFinder(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[_Img] = []
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", html))]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            line, column = self.getpos()
            start = self._line_starts[line - 1] + column
            said = dict(attrs)
            end = start + len(self.get_starttag_text() or "")
            self.found.append(_Img(start, end, said.get("src") or "", said.get("alt") or ""))


def _pictures_folder(path: str) -> str:
    return f"{path.removesuffix('.html')}.files"


def _picture_name(path: str, media: Media) -> str:
    return f"{_pictures_folder(path)}/{media.sha256[:16]}.{SUFFIXES.get(media.media_type, 'bin')}"


def _lead(story: StoryView) -> str:
    """What lists and the Description tag say: the summary, else the whole first paragraph (nothing is cut)."""
    paragraphs = (one_line(from_html(found[1])) for found in re.finditer(r"<p>(.*?)</p>", story.html, re.DOTALL))
    return one_line(story.summary) or next((text for text in paragraphs if text), "")


def _root(path: str) -> str:
    """From the page at ``path`` up to the site's root: relative, so that pages work behind any proxy."""
    return "../" * path.count("/")


@dataclass(frozen=True)
class _Entry:
    """One line of a list."""

    path: str
    title: str
    headline: str
    summary: str
    source: str
    cover: str
    corrected: bool
    ended: bool  # its time has run out; the page stays, the lists say so
    published: str
    day: str


@dataclass(frozen=True)
class _Block:
    column: SiteColumn
    entries: tuple[_Entry, ...]


# ── the channel ─────────────────────────────────────────────────────────────────────────────────────────────
class Website(Channel[WebsiteConfig, Article]):
    """One website. `show` writes what changed and is idempotent: the same shelf leaves the same bytes."""

    kind = "website"
    Config: ClassVar[type[ChannelConfig]] = WebsiteConfig
    Payload: ClassVar[type[Payload]] = Article
    traits = Traits(
        idempotent=True, withdraws=True, corrects=True, expires=False, gives_permalink=True,
        shelf=200, batch_max=500, deadline=timedelta(seconds=60),
    )  # fmt: skip
    envelope = frozenset({"published_at", "modified_at"})
    version = 1

    def __init__(self, config: WebsiteConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self._columns = {column.slug: column for column in config.columns}
        self._disk = DiskTurn()

    @property
    def adapter(self) -> str:
        """Code version and a hash of the templates and the style sheet: another look is another approval."""
        return self._look

    @cached_property
    def _look(self) -> str:
        digest = hashlib.sha256(self._style)
        for name in TEMPLATES:
            digest.update(b"\0" + self.tools.asset(f"templates/site/{name}").read_bytes())
        return f"{self.version}-{digest.hexdigest()[:12]}"

    @cached_property
    def _style(self) -> bytes:
        return self.tools.asset(STYLESHEET).read_bytes()

    @cached_property
    def _style_file(self) -> RenditionFile:
        return RenditionFile(f"static/site-{hashlib.sha256(self._style).hexdigest()[:12]}.css", "text/css", self._style)

    @cached_property
    def _templates(self) -> Environment:
        folder = self.tools.asset(f"templates/site/{TEMPLATES[0]}").parent
        return Environment(
            loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        )  # fmt: skip

    def _render(self, template: str, path: str, **said: object) -> str:
        return self._templates.get_template(template).render(
            {"site": self.config, "root": _root(path), "stylesheet": self._style_file.name, "navigation": (),
             "here": None, "hidden": False, **said}
        )  # fmt: skip

    def _column(self, slug: str, name: str) -> SiteColumn:
        """The column with every tag that the guideline requires filled."""
        known = self._columns.get(slug)
        name = known.name if known else name
        return SiteColumn(
            slug=slug,
            name=name,
            description=(known.description if known else "") or name,
            keywords=(known.keywords if known else ()) or (name,),
            type=known.type if known else "工作动态",
        )

    def _path(self, permalink: str) -> str:
        return permalink.removeprefix(self.config.base_url)

    async def probe(self) -> None:
        """See whether templates can be read and the folder can be written."""
        await self._disk.take(self._try_folder)

    def _try_folder(self) -> None:
        self._render("gone.html", "", words="", advice="", hidden=True)
        self.tools.folder.write("probe.tmp", b"")
        self.tools.folder.remove("probe.tmp")

    # ── before approval ─────────────────────────────────────────────────────────────────────────────────────
    def validate(self, story: StoryView) -> list[Finding]:
        return [*self._address_findings(story), *_text_findings(story), *self._column_findings(story),
                *_picture_findings(story)]  # fmt: skip

    def _address_findings(self, story: StoryView) -> Iterator[Finding]:
        path = self._path(story.permalink)
        if not story.permalink.startswith(self.config.base_url):
            yield Finding(Severity.ERROR, "site_permalink_foreign", {"base_url": self.config.base_url})
        elif not PATH.fullmatch(path) or len(path) > 200 or path.startswith("static/") or path.endswith("index.html"):
            yield Finding(Severity.ERROR, "site_permalink_unusable", {"path": path[:200]})
        if story.source_url and not story.source_url.startswith(("https://", "http://")):
            yield Finding(Severity.ERROR, "site_source_url_unusable")

    def _column_findings(self, story: StoryView) -> Iterator[Finding]:
        if not SLUG.fullmatch(story.column) or story.column == "static":
            yield Finding(Severity.ERROR, "site_column_unusable", {"column": story.column})
        elif story.column not in self._columns:
            if not story.column_name.strip():
                yield Finding(Severity.ERROR, "site_column_unnamed", {"column": story.column})
            if self._columns:
                yield Finding(Severity.WARNING, "site_column_undescribed", {"column": story.column})

    def adapt(self, story: StoryView) -> Rendition[Article]:
        path = self._path(story.permalink)
        root = _root(path)
        by_name = {media.name: media for media in story.media}
        imgs = _ImgFinder(story.html).found
        body, at = [], 0
        for img in imgs:
            media = by_name[img.name]
            body += [story.html[at : img.start], _img_tag(root + _picture_name(path, media), media, img.alt)]
            at = img.end
        body.append(story.html[at:])
        shown = [img.name for img in imgs]
        pictures = {_picture_name(path, by_name[name]): by_name[name] for name in [story.cover, *shown] if name}
        first = next(iter(pictures), "")
        on_top = by_name[story.cover] if story.cover and story.cover not in shown else None
        source = one_line(story.source or story.unit_name)
        column = self._column(story.column, one_line(story.column_name))
        page = self._render(
            "article.html", path,
            navigation=self.config.columns,
            here=story.column,
            title=one_line(story.title),
            column=column,
            source=source,
            source_url=story.source_url,
            reprint=story.kind is StoryKind.FORWARDED or bool(story.source_url),
            author=one_line(story.byline),
            keywords=[one_line(keyword) for keyword in story.keywords],
            summary=_lead(story),
            image=self.config.base_url + first if first else "",
            permalink=story.permalink,
            # A site keeps what it published: what has run out stays readable and says so.
            valid_until=story.expires_at.astimezone(self.tools.timezone) if story.expires_at else None,
            correction_note=story.correction_note,
            cover=on_top and {
                "path": _picture_name(path, on_top), "description": on_top.description,
                "width_px": on_top.width_px, "height_px": on_top.height_px,
            },
            body=Markup("".join(body)),  # noqa: S704 - cleaned by intake, the contract of StoryView.html
        )  # fmt: skip
        payload = Article(
            path=path, permalink=story.permalink, title=one_line(story.title), headline=one_line(story.headline),
            column=story.column, column_name=column.name, source=source, summary=_lead(story), cover=first,
            corrected=bool(story.correction_note), page=page,
        )  # fmt: skip
        files = [RenditionFile(name, media.media_type, media.data) for name, media in sorted(pictures.items())]
        return Rendition(payload, (self._style_file, *files))

    def preview(self, rendition: Rendition[Article]) -> Artefact:
        """The page with 待发布 for the times; style sheet and pictures are put into it, for it stands alone."""
        page = rendition.payload.page
        root = _root(rendition.payload.path)
        for file in rendition.files:
            inline = f"data:{file.media_type};base64,{base64.b64encode(file.data).decode()}"
            for attribute in ("src", "href"):
                page = page.replace(f'{attribute}="{root}{file.name}"', f'{attribute}="{inline}"')
        values = {"published": SAMPLE, "published_iso": "", "modified": "", "corrected": SAMPLE}
        return Artefact("text/html", _put_in(page, values).encode(), "preview.html")

    # ── after approval ──────────────────────────────────────────────────────────────────────────────────────
    async def show(self, shelf: Shelf[Article]) -> Receipt:
        """Write what changed, leave a notice where something went, bring the lists up to date.

        An article of the window whose file is missing (a restored disk) is written again.

        Raises:
            Misconfigured: the disk refused, or templates are missing; whatever was written is whole.
        """
        await self._disk.take(partial(self._write, shelf))
        urls = {one.key: one.rendition.payload.permalink for one in (*shelf.items, *shelf.changed)}
        urls |= {one.key: one.rendition.payload.permalink for one in shelf.gone}  # they answer 410 there
        return Receipt(
            Proof.LIVE, Level.WRITTEN, shelf.now,
            url=self.config.base_url,
            urls=urls,
            evidence={
                "written": [item.rendition.payload.path for item in shelf.changed],
                "removed": [one.rendition.payload.path for one in shelf.gone],
            },
        )  # fmt: skip

    def _write(self, shelf: Shelf[Article]) -> None:
        folder = self.tools.folder
        changed = {item.rendition.payload.path: item for item in shelf.changed}
        window = {item.rendition.payload.path: item for item in shelf.items}
        for path, item in (window | changed).items():
            if path in changed or not folder.path(path).is_file():
                self._put_up(item)
        for one in shelf.gone:
            path = one.rendition.payload.path
            if path not in window and path not in changed:  # else it went up again in a new episode
                self._take_down(path, one.reason)
        self._write_lists(shelf.items, shelf.now)

    def _put_up(self, item: ShelfItem[Article]) -> None:
        """Pictures and style first, so that no reader meets a page without them."""
        folder, payload = self.tools.folder, item.rendition.payload
        for file in item.rendition.files:
            folder.write(file.name, file.data)
        page = fill(
            payload.page,
            published_at=item.published_at,
            modified_at=item.modified_at,
            timezone=self.tools.timezone,
        )
        folder.write(payload.path, page.encode())
        folder.remove(f"{payload.path}.gone")
        self._drop_pictures(payload.path, keep=[file.name for file in item.rendition.files])

    def _take_down(self, path: str, reason: GoneReason) -> None:
        """The notice first, so that the address never answers with nothing. It tells no word of the story."""
        words, advice = NOTICES[reason]
        folder = self.tools.folder
        folder.write(self._style_file.name, self._style_file.data)
        notice = self._render(
            "gone.html", path, navigation=self.config.columns, words=words, advice=advice, hidden=True
        )
        folder.write(f"{path}.gone", notice.encode())
        folder.remove(path)
        self._drop_pictures(path, keep=())

    def _drop_pictures(self, path: str, keep: Iterable[str]) -> None:
        pictures = _pictures_folder(path)
        kept = set(keep)
        for name in list(self.tools.folder.below(pictures).names()):
            if f"{pictures}/{name}" not in kept:
                self.tools.folder.remove(f"{pictures}/{name}")

    def _write_lists(self, items: Sequence[ShelfItem[Article]], now: datetime) -> None:
        folder = self.tools.folder
        folder.write(self._style_file.name, self._style_file.data)
        names = {column.slug: column.name for column in self.config.columns}
        for item in items:
            names.setdefault(item.rendition.payload.column, item.rendition.payload.column_name)
        columns = [self._column(slug, name) for slug, name in names.items()]
        entries = {column.slug: tuple(self._entries(items, now, column.slug)) for column in columns}
        for column in columns:
            path = f"{column.slug}/index.html"
            page = self._render(
                "column.html", path, navigation=columns, here=column.slug, column=column, entries=entries[column.slug]
            )
            folder.write(path, page.encode())
        home = self._home(items, now, [_Block(one, entries[one.slug]) for one in columns])
        folder.write("index.html", home.encode())
        # A column that nobody configured and that is empty now must not keep listing what was taken down.
        for stale in folder.root.glob("*/index.html"):
            if stale.parent.name not in names:
                folder.remove(f"{stale.parent.name}/index.html")

    def _home(self, items: Sequence[ShelfItem[Article]], now: datetime, blocks: Sequence[_Block]) -> str:
        every = list(self._entries(items, now))
        with_importance = list(zip(items, every, strict=True))
        urgent = [one for item, one in with_importance if item.importance is Importance.URGENT and not one.ended]
        key = [entry for item, entry in with_importance if item.importance is Importance.KEY]
        return self._render(
            "home.html", "",
            navigation=[block.column for block in blocks],
            here="",
            urgent=urgent[:URGENT_ON_HOME],
            lead=next(iter([*key, *every]), None),
            pictured=next((entry for entry in every if entry.cover), None),
            newest=every[:HOME_NEWEST],
            blocks=[_Block(block.column, block.entries[:HOME_PER_COLUMN]) for block in blocks],
        )  # fmt: skip

    def _entries(
        self, items: Iterable[ShelfItem[Article]], now: datetime, column: str | None = None
    ) -> Iterator[_Entry]:
        for item in items:
            payload = item.rendition.payload
            if column in (None, payload.column):
                published = _minute(item.published_at, self.tools.timezone)
                yield _Entry(
                    path=payload.path, title=payload.title, headline=payload.headline, summary=payload.summary,
                    source=payload.source,
                    cover=payload.cover, corrected=payload.corrected,
                    ended=item.expires_at is not None and item.expires_at <= now,
                    published=published, day=published[:10],
                )  # fmt: skip


def _img_tag(src: str, media: Media, alt: str) -> str:
    return (
        f'<img src="{escape(src)}" alt="{escape(alt or media.description)}"'
        f' width="{media.width_px}" height="{media.height_px}">'
    )


def _text_findings(story: StoryView) -> Iterator[Finding]:
    if not story.title.strip():
        yield Finding(Severity.ERROR, "site_title_missing")
    if not (story.source or story.unit_name).strip():
        yield Finding(Severity.ERROR, "site_source_missing")
    if not story.text.strip() and not story.media:
        yield Finding(Severity.ERROR, "site_body_missing")
    if story.kind is StoryKind.FORWARDED and not story.source_url:
        yield Finding(Severity.WARNING, "site_reprint_without_link")
    written = {
        "title": (story.title,), "body": (story.html, story.text), "summary": (story.summary,),
        "source": (story.source, story.source_url, story.unit_name), "byline": (story.byline,),
        "keywords": story.keywords, "column": (story.column, story.column_name),
        "correction_note": (story.correction_note,),
        "pictures": tuple(text for media in story.media for text in (media.name, media.description)),
    }  # fmt: skip
    for field, texts in written.items():
        found = next((match for text in texts if (match := UNPRINTABLE.search(text))), None)
        if found:
            yield Finding(
                Severity.ERROR, "site_character_unprintable", {"field": field, "code_point": f"U+{ord(found[0]):04X}"}
            )


def _picture_findings(story: StoryView) -> Iterator[Finding]:
    by_name = {media.name: media for media in story.media}
    imgs = _ImgFinder(story.html).found
    alts = {story.cover: "", **{img.name: img.alt for img in imgs}}
    for name in [story.cover, *(img.name for img in imgs)]:
        if name and name not in by_name:
            yield Finding(Severity.ERROR, "site_picture_missing", {"name": name[:80]})
    if any(not img.name for img in imgs):
        yield Finding(Severity.ERROR, "site_picture_missing", {"name": ""})
    for name, alt in alts.items():
        if name in by_name and not alt and not by_name[name].description.strip():
            # 无障碍: GB/T 37668-2019 wants a text for every picture that says something.
            yield Finding(Severity.WARNING, "site_picture_undescribed", {"name": name[:80]})
