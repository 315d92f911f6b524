"""What comes in: a story as Markdown with its pictures becomes a clean, complete `Draft`, or is refused with a reason.

Everything here is pure except `load`, which reads files. What would change the words that readers see is never done
in silence: it is refused (the author must change it) or it is done and reported as a warning `Finding`.
"""

import colorsys
import difflib
import hashlib
import io
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import nh3
import yaml
from markdown_it import MarkdownIt
from PIL import Image, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError

from distributor import text as texts
from distributor.channel import Finding, Importance, Media, Severity, StoryKind
from distributor.desk import STORY_ID, Manuscript
from distributor.errors import Refused

__all__ = ["Draft", "Limits", "generate", "load", "read_markdown", "reencode"]


@dataclass(frozen=True)
class Limits:
    """How much one story may bring. Bytes and pixels as they arrive, before anything is decoded."""

    story_bytes: int = 1 << 20
    front_matter_bytes: int = 64 << 10
    picture_bytes: int = 20 << 20
    picture_pixels: int = 40_000_000  # a full frame of today's cameras; below Pillow's own guard of 89 million
    pictures: int = 50
    long_edge_px: int = 2560  # longer ones are scaled down: the widest outlet shows 1920
    jpeg_quality: int = 88


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Draft(Manuscript):
    """One revision as it came in. ``findings`` are warnings: what was taken out of text and pictures on the way."""

    story: str = ""  # the story's id: of the story that it corrects, else made from the file's name
    corrects: str = ""  # id of the story whose next revision this is, or ""


# ── Markdown with front matter ──────────────────────────────────────────────────────────────────────────────
def read_markdown(
    data: bytes, *, name: str, media: Mapping[str, bytes] | None = None, limits: Limits = DEFAULT_LIMITS
) -> Draft:
    """Read one story. ``name`` is its file's name, ``media`` its pictures by file name, as they arrived.

    The same input always gives the same draft.

    Raises:
        Refused: one mistake with its own code, or ``story_mistakes`` whose fact ``mistakes`` holds several. Facts
            ``where`` (file and line) and ``key`` say what to change.
    """
    head, body, body_line = _split(_decoded(data, name=name, limits=limits), name=name, limits=limits)
    findings = [*_invisible(head, name), *_invisible(body, name)]
    # Inside a value a pasted line break (VT, FF, NEL …) is a space: as a new line it would break the YAML.
    front = _FrontMatter(texts.clean(PASTED_BREAKS.sub(" ", head)), name)
    findings += front.findings
    body = texts.clean(body)
    raw_html = MARKDOWN.render(body)
    seen = _Seen(raw_html)
    pictures, cover, unused = _pictures(front, seen, media or {}, _Place(name, body, body_line), limits)
    html, cleaned = _clean_html(raw_html, seen, {original: made.name for original, made in pictures.items()}, name)
    findings += cleaned
    findings += [Finding(Severity.WARNING, "picture_unused", {"name": original}) for original in unused]
    plain = texts.clean(texts.from_html(html)).strip()
    if not plain and not seen.pictures:
        raise Refused("story_body_empty", where=f"{name}:{body_line}")
    return Draft(
        story=front.corrects or _story_id(name), title=front.title, html=html, text=plain, unit=front.unit,
        column=front.column, short_title=front.short_title, summary=front.summary, byline=front.byline,
        source=front.source, source_url=front.source_url, keywords=front.keywords, kind=front.kind,
        importance=front.importance, expires_at=front.expires_at, media=tuple(pictures.values()),
        cover=cover, corrects=front.corrects, correction_note=front.correction_note, own_text=front.own_text,
        findings=tuple(_each_once(findings)),
    )  # fmt: skip


def load(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Draft:
    """Read a Markdown file with the pictures beside it that it names, or a folder with ``story.md`` and pictures.

    Raises:
        Refused: ``story_file_missing``, ``file_unreadable``, ``picture_too_big`` or what `read_markdown` raises.
    """
    story = path / "story.md" if path.is_dir() else path
    if not story.is_file():
        raise Refused("story_file_missing", where=str(story))
    try:
        data = _read(story, limits.story_bytes, "story_too_big")
        beside = sorted(
            each for each in story.parent.iterdir() if each.suffix.lower() in PICTURE_SUFFIXES and each.is_file()
        )
        if not path.is_dir():
            # Some systems store names decomposed: compare as `_pictures` does.
            mentioned = unicodedata.normalize("NFC", unquote(data.decode("utf-8", "replace")))
            beside = [each for each in beside if unicodedata.normalize("NFC", each.name) in mentioned]
        if len(beside) > limits.pictures:
            raise Refused("too_many_pictures", where=story.name, count=len(beside), limit=limits.pictures)
        media = {each.name: _read(each, limits.picture_bytes, "picture_too_big") for each in beside}
    except OSError as error:
        raise Refused("file_unreadable", where=str(story), why=error.strerror or str(error)) from error
    return read_markdown(data, name=f"{path.name}.md" if path.is_dir() else path.name, media=media, limits=limits)


PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg"}
)


def _read(path: Path, limit: int, code: str) -> bytes:
    """The file's bytes, unless there are more than may be: then nothing is read."""
    size = path.stat().st_size
    if size > limit:
        raise Refused(code, where=path.name, size=_megabytes(size), limit=_megabytes(limit))
    return path.read_bytes()


def _decoded(data: bytes, *, name: str, limits: Limits) -> str:
    """The file as text, lines parted by LF."""
    if len(data) > limits.story_bytes:
        size, limit = _megabytes(len(data)), _megabytes(limits.story_bytes)
        raise Refused("story_too_big", where=name, size=size, limit=limit)
    try:
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refused("not_utf8", where=f"{name}:{line}") from error
    return source.replace("\r\n", "\n").replace("\r", "\n")


def _invisible(source: str, where: str) -> list[Finding]:
    gone = texts.removed(source)
    return [Finding(Severity.WARNING, "characters_removed", {"where": where, "what": "、".join(gone)})] if gone else []


def _split(source: str, *, name: str, limits: Limits) -> tuple[str, str, int]:
    """Front matter, body, and the line on which the body begins."""
    lines = source.split("\n")
    if lines[0].rstrip() != "---":
        raise Refused("front_matter_missing", where=f"{name}:1")
    for at, line in enumerate(lines[1:], start=1):
        if line.rstrip() in ("---", "..."):
            head = "\n".join(lines[1:at])
            if len(head.encode("utf-8", "surrogatepass")) > limits.front_matter_bytes:
                limit = limits.front_matter_bytes // 1024
                raise Refused("front_matter_too_big", where=f"{name}:1", limit=f"{limit} KB")
            return head, "\n".join(lines[at + 1 :]), at + 2
    raise Refused("front_matter_open", where=f"{name}:1")


class _Value(NamedTuple):
    """What stands behind a key: text, a list of texts or a table of texts, each exactly as written."""

    line: int
    content: str | list[str] | dict[str, str]


E = TypeVar("E", bound=StrEnum)
KEYS = frozenset({
    "title", "short_title", "summary", "column", "unit", "importance", "kind", "byline", "source", "source_url",
    "expires", "keywords", "cover", "corrects", "correction_note", "own",
})  # fmt: skip
SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
PASTED_BREAKS = re.compile("[\x0b\x0c\x85\u2028\u2029]")


class _FrontMatter:
    """The keys before the body. A scalar is the text that stands there: ``title: 2021`` and ``yes`` stay words.

    Raises:
        Refused: see `read_markdown`.
    """

    def __init__(self, head: str, name: str) -> None:
        self._name = name
        self._values = _compose(head, name)
        self._mistakes: list[Refused] = []
        self.findings: list[Finding] = []
        self.title = self._required("title")
        self.unit = self._slug("unit", self._required("unit"))
        self.column = self._slug("column", self._required("column"))
        self.short_title = self._line("short_title")
        self.summary = self._line("summary")
        self.byline = self._line("byline")
        self.source = self._line("source")
        self.source_url = self._address("source_url")
        self.kind = self._choice("kind", StoryKind.NEWS)
        self.importance = self._choice("importance", Importance.NORMAL)
        self.expires_at = self._moment("expires")
        self.keywords = tuple(word for word in map(self._shown, self._list("keywords")) if word)
        self.cover = self._line("cover")
        self.corrects = self._slug("corrects", self._line("corrects"), STORY_ID)
        self.correction_note = self._line("correction_note")
        self.own_text = {
            self._slug("own", kind): texts.clean(words).strip() for kind, words in self._table("own").items()
        }
        if self.corrects and not self.correction_note:
            self._wrong(Refused("correction_note_missing", where=self.where("corrects"), key="correction_note"))
        for key in self._values:
            if key not in KEYS:
                near = next(iter(difflib.get_close_matches(key, sorted(KEYS), n=1)), "")
                self._wrong(
                    Refused("key_unknown_near", where=self.where(key), key=key, nearest=near)
                    if near
                    else Refused("key_unknown", where=self.where(key), key=key)
                )
        if len(self._mistakes) == 1:
            raise self._mistakes[0]
        if self._mistakes:
            raise Refused("story_mistakes", where=name, count=len(self._mistakes), mistakes=tuple(self._mistakes))

    def where(self, key: str) -> str:
        """File and line of a key."""
        return f"{self._name}:{self._values[key].line if key in self._values else 1}"

    def _wrong(self, mistake: Refused) -> None:
        self._mistakes.append(mistake)

    def _expected(self, key: str, value: object, expected: str) -> None:
        facts = {"where": self.where(key), "key": key, "value": _quoted(value), "expected": expected, "limit": ""}
        self._wrong(Refused("value_wrong", **facts))

    def _shown(self, value: str) -> str:
        """One line without what nobody can see. Escapes (``"\\u200b"``) can bring back what the file had not."""
        self.findings += _invisible(value, self._name)
        return texts.one_line(texts.clean(value)).strip()

    def _line(self, key: str) -> str:
        value = self._values.get(key)
        if value is None:
            return ""
        if not isinstance(value.content, str):
            self._expected(key, value.content, "string_type")
            return ""
        return self._shown(value.content)

    def _required(self, key: str) -> str:
        value = self._line(key)
        if not value and not any(mistake.facts.get("key") == key for mistake in self._mistakes):
            self._wrong(Refused("key_missing", where=self.where(key), key=key))
        return value

    def _slug(self, key: str, value: str, pattern: re.Pattern[str] = SLUG) -> str:
        if value and not pattern.fullmatch(value):
            self._expected(key, value, "code")
        return value

    def _address(self, key: str) -> str:
        value = self._line(key)
        if value and not _is_web_address(value):
            self._expected(key, value, "source_address")
        return value

    def _choice(self, key: str, default: E) -> E:
        value = self._line(key)
        if not value:
            return default
        kinds = type(default)
        if value not in list(kinds):
            allowed = "、".join(kinds)
            self._wrong(
                Refused("value_not_listed", where=self.where(key), key=key, value=_quoted(value), allowed=allowed)
            )
            return default
        return kinds(value)

    def _moment(self, key: str) -> datetime | None:
        value = self._line(key)
        if not value:
            return None
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self._expected(key, value, "moment")
            return None
        if moment.tzinfo is None:
            self._expected(key, value, "moment_without_zone")
            return None
        return moment.astimezone(UTC)

    def _list(self, key: str) -> list[str]:
        value = self._values.get(key)
        if value is None or value.content == "":
            return []
        if not isinstance(value.content, list):
            self._expected(key, value.content, "tuple_type")
            return []
        return value.content

    def _table(self, key: str) -> dict[str, str]:
        value = self._values.get(key)
        if value is None or value.content == "":
            return {}
        if not isinstance(value.content, dict):
            self._expected(key, value.content, "own_table")
            return {}
        return value.content


DEEPEST = 3  # a table of texts inside the table


def _compose(head: str, name: str) -> dict[str, _Value]:
    """The keys and values of the front matter with their lines.

    Only the shape is taken from YAML, never a constructed object. Anchors, aliases and tags are refused: nobody needs
    them here, and a few lines of aliases can unfold to gigabytes.
    """
    try:
        depth = 0
        for event in yaml.parse(head, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            special = getattr(event, "anchor", None) or getattr(event, "tag", None)
            if special or depth > DEEPEST:
                line = event.start_mark.line + 2 if event.start_mark else 1
                raise Refused("yaml_too_clever", where=f"{name}:{line}")
        root = yaml.compose(head, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 2}" if mark else name
        raise Refused("yaml_malformed", where=where, why=getattr(error, "problem", None) or str(error)) from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, as in "\\UFFFFFFFF"
        raise Refused("yaml_malformed", where=name, why=str(error)) from error
    if not isinstance(root, yaml.MappingNode):
        raise Refused("front_matter_not_pairs", where=f"{name}:2")
    values: dict[str, _Value] = {}
    for key, node in root.value:
        line = key.start_mark.line + 2
        written = key.value if isinstance(key, yaml.ScalarNode) else "?"
        if written in values:
            raise Refused("key_twice", where=f"{name}:{line}", key=_quoted(written))
        values[written] = _Value(line, _content(node, f"{name}:{line}", written))
    return values


def _content(node: yaml.Node, where: str, key: str) -> str | list[str] | dict[str, str]:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(each, yaml.ScalarNode) for each in node.value):
        return [_scalar(each) for each in node.value]
    if isinstance(node, yaml.MappingNode) and all(
        isinstance(each, yaml.ScalarNode) for pair in node.value for each in pair
    ):
        return {_scalar(name): _scalar(each) for name, each in node.value}
    raise Refused("value_wrong", where=where, key=key, value="…", expected="not_nested", limit="")


def _scalar(node: yaml.ScalarNode) -> str:
    return "" if node.tag == "tag:yaml.org,2002:null" else str(node.value)


# ── the body ────────────────────────────────────────────────────────────────────────────────────────────────
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED_TAGS = frozenset({
    "a", "b", "blockquote", "br", "code", "dd", "del", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2",
    "h3", "h4", "h5", "h6", "hr", "i", "img", "ins", "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table",
    "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
})  # fmt: skip
TRANSPARENT_TAGS = frozenset({"span", "font", "html", "body", "head", "center", "section", "article"})
CONTENT_GOES_TOO = frozenset({
    "script", "style", "iframe", "object", "embed", "noscript", "template", "textarea", "select", "svg", "math",
    "title", "video", "audio", "canvas",
})  # fmt: skip
ALLOWED_ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt"}, "ol": {"start"}, "td": {"colspan", "rowspan"},
                      "th": {"colspan", "rowspan"}}  # fmt: skip
LINK_SCHEMES = frozenset({"http", "https", "mailto"})


class _Seen(HTMLParser):
    """What stands in HTML as it came: its pictures, and what will not survive cleaning."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.pictures: dict[str, str] = {}  # src as written -> description
        self.lost: dict[str, None] = {}  # names of tags, attributes and link targets, in order
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED_TAGS | TRANSPARENT_TAGS:
            self.lost[f"<{tag}>"] = None
        given = {name: value or "" for name, value in attrs}
        self.lost |= {name: None for name in given if name.startswith("on")}
        if tag == "img":
            self.pictures.setdefault(given.get("src", ""), given.get("alt", ""))
        if tag == "a" and "href" in given and not _is_link(given["href"]):
            self.lost[_quoted(given["href"])] = None


def _is_link(href: str) -> bool:
    try:
        return urlsplit(href.strip()).scheme.lower() in LINK_SCHEMES
    except ValueError:
        return False


def _is_web_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", value)


def _clean_html(raw: str, seen: _Seen, names: Mapping[str, str], name: str) -> tuple[str, list[Finding]]:
    """The body with nothing but text markup, links and the story's own pictures, and what was taken out."""

    def attribute(tag: str, key: str, value: str) -> str | None:
        if tag == "img" and key == "src":
            return names.get(unquote(value))
        if tag == "a" and key == "href":
            return value if _is_link(value) else None
        return value

    html = nh3.clean(
        raw, tags=set(ALLOWED_TAGS), clean_content_tags=set(CONTENT_GOES_TOO), attributes=ALLOWED_ATTRIBUTES,
        attribute_filter=attribute, url_schemes=set(LINK_SCHEMES), link_rel=None,
    )  # fmt: skip
    findings = _invisible(html, name)  # character references such as &#8203; bring back what the file had not
    if seen.lost:
        findings.append(Finding(Severity.WARNING, "html_removed", {"where": name, "what": "、".join(seen.lost)}))
    return texts.clean(html).strip(), findings


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────
class _Place(NamedTuple):
    """Where the body stands in its file, to name the line of a picture."""

    name: str
    body: str
    first_line: int

    def line_of(self, words: str) -> str:
        at = self.body.find(words)
        return f"{self.name}:{self.first_line + self.body.count(chr(10), 0, at)}" if at >= 0 else self.name


def _pictures(
    front: _FrontMatter, seen: _Seen, media: Mapping[str, bytes], place: _Place, limits: Limits
) -> tuple[dict[str, Media], str, list[str]]:
    """The story's pictures by their original names, the cover's new name, and the names that the body doesn't use."""
    described: dict[str, str] = {}
    for src, alt in seen.pictures.items():
        original = unicodedata.normalize("NFC", unquote(src))
        if src[:5].lower() == "data:":
            raise Refused("picture_inside_text", where=place.line_of("data:"))
        if src.startswith("//") or "://" in src:
            raise Refused("picture_elsewhere", where=place.line_of(unquote(src)), name=_quoted(src))
        described.setdefault(original, texts.one_line(alt))
    size = re.fullmatch(r"generate (\d{1,5})x(\d{1,5})", front.cover)
    cover = "" if size else front.cover
    given = {unicodedata.normalize("NFC", name): data for name, data in media.items()}
    wanted = {name: place.line_of(name) for name in described} | ({cover: front.where("cover")} if cover else {})
    for name, where in wanted.items():
        if name not in given:
            raise Refused("picture_missing", where=where, name=_quoted(name), known="、".join(sorted(given)) or "–")
    if len(given) > limits.pictures:
        raise Refused("too_many_pictures", where=place.name, count=len(given), limit=limits.pictures)
    unused = sorted(set(given) - set(wanted))
    made: dict[str, Media] = {}
    taken: set[str] = set()
    for name in [*wanted, *unused]:
        picture = reencode(given[name], name=name, description=described.get(name, ""), limits=limits)
        named = replace(picture, name=_free(picture.name, taken))
        made[name] = named
        taken.add(named.name)
    if size:
        width_px, height_px = int(size[1]), int(size[2])
        if not (64 <= width_px <= 4096 and 64 <= height_px <= 4096):
            raise Refused("cover_size", where=front.where("cover"), key="cover", value=front.cover)
        drawn = generate(width_px, height_px, seed=front.title, name=_free("cover.png", taken), description=front.title)
        return made | {front.cover: drawn}, drawn.name, unused
    return made, made[cover].name if cover else "", unused


def _free(name: str, taken: Set[str]) -> str:
    """``name``, or with a number behind its stem when it is taken."""
    stem, _, ending = name.rpartition(".")
    numbered = (f"{stem}-{number}.{ending}" for number in count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)


READ_FORMATS = ("JPEG", "PNG", "WEBP")
# What a damaged file makes Pillow's decoders raise; each is "this file can't be read".
DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error,
                   zlib.error)  # fmt: skip
FOREIGN = (
    (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"8BPS", "PSD"), (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP/Office"),
)  # fmt: skip


def reencode(data: bytes, *, name: str, description: str, limits: Limits = DEFAULT_LIMITS) -> Media:
    """One picture as the outlets may get it: upright, in sRGB, without metadata, its long edge within the limit.

    Reads JPEG, PNG and WebP. What has transparency, and a PNG of at most 256 colours (a chart, a QR code), becomes
    PNG; the rest JPEG. The new name is made of letters, digits and "-" and fits the format. Deterministic.

    Raises:
        Refused: ``picture_too_big``, ``picture_too_many_pixels``, ``picture_format`` (with what it seems to be),
            ``picture_animated``, ``picture_damaged``.
    """
    if len(data) > limits.picture_bytes:
        size, limit = _megabytes(len(data)), _megabytes(limits.picture_bytes)
        raise Refused("picture_too_big", where=name, size=size, limit=limit)
    if foreign := _foreign(data):
        raise Refused("picture_format", where=name, found=foreign)
    try:
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as opened:
            # Before a pixel is decoded: the header says how many there will be.
            if opened.width * opened.height > limits.picture_pixels:
                raise _too_many(name, limits)
            # MPO is what phones call a JPEG with a second picture for depth; its first is the photo.
            if getattr(opened, "is_animated", False) and opened.format != "MPO":
                raise Refused("picture_animated", where=name)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            source_format = opened.format
        picture = _plain(upright)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many(name, limits) from error
    except UnidentifiedImageError as error:
        raise Refused("picture_format", where=name, found="–") from error
    except DECODING_ERRORS as error:
        raise Refused("picture_damaged", where=name) from error
    edge = limits.long_edge_px
    if max(picture.size) > edge:
        picture = ImageOps.contain(picture, (edge, edge), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    few_colours = source_format == "PNG" and picture.mode != "RGBA" and picture.getcolors(256) is not None
    if picture.mode == "RGBA" or few_colours:
        ending, media_type = "png", "image/png"
        picture.save(out, "PNG", optimize=True)
    else:
        ending, media_type = "jpg", "image/jpeg"
        picture.save(out, "JPEG", quality=limits.jpeg_quality, optimize=True)
    stem = _ascii_slug(Path(name).stem) or f"picture-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Media(f"{stem}.{ending}", media_type, out.getvalue(), picture.width, picture.height, description)


def _too_many(name: str, limits: Limits) -> Refused:
    return Refused("picture_too_many_pixels", where=name, limit=limits.picture_pixels // 10_000)


def _foreign(data: bytes) -> str:
    """What a file is that is no picture we read, as far as its first bytes tell; "" when they don't."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "SVG/XML"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if data[4:8] == b"ftyp":
        return "HEIC/AVIF"
    return next((found for magic, found in FOREIGN if data.startswith(magic)), "")


def _plain(picture: Image.Image) -> Image.Image:
    """The pixels alone, as L, RGB or (where something shows through) RGBA, in sRGB, without metadata."""
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("RGB", "RGBA", "CMYK"):
        picture = _in_srgb(picture, profile)
    if picture.mode.startswith("I"):  # 16 bits of grey; converting without scaling would turn it white
        picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif picture.mode in ("LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    picture = picture.copy()
    picture.info.clear()  # Pillow writes a profile or comment that it finds here
    return picture


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Colours converted from the picture's own profile, which is dropped afterwards."""
    mode = "RGB" if picture.mode == "CMYK" else picture.mode
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return picture  # a broken profile says nothing about the colours: take them as sRGB, as browsers do
    return converted if converted is not None else picture


def generate(width_px: int, height_px: int, *, seed: str, name: str, description: str) -> Media:
    """A calm picture without words for stories that have none: sky, sun and a skyline. Same seed, same pixels."""
    dice = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
    hue = (185 + dice[0] % 50) / 360  # from teal to blue

    def colour(lightness: float, saturation: float, turn: float = 0.0) -> tuple[int, int, int]:
        red, green, blue = colorsys.hls_to_rgb((hue + turn) % 1, lightness, saturation)
        return round(red * 255), round(green * 255), round(blue * 255)

    top, bottom = colour(0.62, 0.50), colour(0.93, 0.55, -0.42)
    sky = Image.new("RGB", (1, height_px))
    for y in range(height_px):
        part = y / max(1, height_px - 1)
        sky.putpixel((0, y), tuple(round(a + (b - a) * part) for a, b in zip(top, bottom, strict=True)))
    picture = sky.resize((width_px, height_px), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    radius = min(width_px, height_px) * 0.09
    sun_x, sun_y = width_px * (0.66 + dice[1] / 255 * 0.2), height_px * 0.3
    draw.ellipse((sun_x - radius, sun_y - radius, sun_x + radius, sun_y + radius), fill=colour(0.96, 0.75, -0.42))
    unit = min(width_px, height_px) / 36
    for layer, (lightness, floor) in enumerate(((0.72, 0.62), (0.56, 0.70), (0.40, 0.80))):
        left, step = -unit, 0
        while left < width_px:
            byte = dice[(layer * 11 + step * 7) % 32]
            broad = unit * (2.2 + byte % 5 * 0.7)
            high = height_px * (0.05 + (byte >> 3) / 31 * 0.22)
            roof = height_px * floor - high
            draw.rectangle((left, roof, left + broad, height_px), fill=colour(lightness, 0.28))
            if layer == 2:
                for row in range(int((height_px - roof) / (unit * 1.2))):
                    for at in range(1, int(broad / (unit * 0.7))):
                        lit = dice[(row * 5 + at * 3 + step) % 32] % 3 == 0
                        corner = (left + at * unit * 0.7, roof + unit * (0.6 + row * 1.2))
                        draw.rectangle(
                            (*corner, corner[0] + unit * 0.32, corner[1] + unit * 0.55),
                            fill=colour(0.80, 0.60, -0.42) if lit else colour(0.46, 0.28),
                        )
            left += broad + unit * (0.25 if layer == 2 else 0.1)
            step += 1
    draw.rectangle((0, height_px * 0.94, width_px, height_px), fill=colour(0.30, 0.26))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return Media(name, "image/png", out.getvalue(), width_px, height_px, description)


# ── small decisions ─────────────────────────────────────────────────────────────────────────────────────────
def _story_id(name: str) -> str:
    """The id that a file's name gives: ``03-service-hall``; for a name in Chinese a short hash of it."""
    stem = unicodedata.normalize("NFC", Path(name).stem)
    return stem if STORY_ID.fullmatch(stem) else f"s-{hashlib.sha256(stem.encode()).hexdigest()[:12]}"


def _ascii_slug(stem: str) -> str:
    """The stem in lower case if it is plain ASCII, with "-" for what can't stand in an address; else ""."""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:48] if stem.isascii() else ""


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MB"


def _quoted(value: object) -> str:
    text = texts.one_line(str(value))
    return text if len(text) <= 60 else f"{text[:60]}…"


def _each_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Findings without repetitions, in order."""
    for at, finding in enumerate(findings):
        if finding not in findings[:at]:
            yield finding
