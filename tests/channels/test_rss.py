"""The feed: the approved items, well-formed, with ids for ever and bytes that depend on the shelf alone."""

import asyncio
import html
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import feedparser
import lxml.etree
import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from channels.rss import FeedItem, Rss, RssConfig
from distributor.channel import (
    Level,
    Media,
    Misconfigured,
    Proof,
    Severity,
    ShelfItem,
    StoryKind,
    StoryView,
    profile_hash,
)
from distributor.testing import MORNING, NASTY, ChannelContract, Outlet, gone, item, shelf, story, tools

GOLDEN = Path(__file__).parent.parent / "golden" / "site" / "feed.txt"
SITE = "https://www.yunchuan.example/"
FEED = f"{SITE}feed/news.xml"
CONFIG: dict[str, Any] = {
    "feed_url": FEED,
    "site_url": SITE,
    "title": "云川区融媒体中心",
    "description": "云川区融媒体中心网站的最新稿件",
    "id_authority": "yunchuan.example",
    "copyright": "示例市云川区融媒体中心",
    "demo": True,
}
SPACES = {
    "atom": "http://www.w3.org/2005/Atom",
    "content": "http://purl.org/rss/1.0/modules/content/",
    "dc": "http://purl.org/dc/elements/1.1/",
}
PICTURE = Media("hall.png", "image/png", b"\x89PNG not looked at", 1600, 900, "政务服务大厅的窗口")


def rss(folder: Path, **changed: Any) -> Rss:
    return Rss(RssConfig.model_validate(CONFIG | changed), tools(folder))


def up(channel: Rss, one: StoryView, **overrides: Any) -> ShelfItem[FeedItem]:
    return item(channel.adapt(one), **{"key": f"{one.story}:feed:1", "version": one.revision, **overrides})


def written(channel: Rss, *items: ShelfItem[FeedItem], **overrides: Any) -> bytes:
    asyncio.run(channel.show(shelf(*items, **overrides)))
    data = channel.tools.folder.read("news.xml")
    assert data is not None
    return data


def parsed(data: bytes) -> lxml.etree._Element:
    """The channel element, read by a parser that forgives nothing."""
    root = lxml.etree.fromstring(data, lxml.etree.XMLParser(recover=False, resolve_entities=False))
    channel = root.find("channel")
    assert channel is not None
    return channel


def text(node: lxml.etree._Element, path: str) -> str:
    return str(node.xpath(f"string({path})", namespaces=SPACES))


def as_payload(node: lxml.etree._Element) -> dict[str, Any]:
    """One item as `FeedItem` has it."""
    source = node.find("source")
    enclosure = node.find("enclosure")
    return {
        "guid": text(node, "guid"),
        "title": text(node, "title"),
        "link": text(node, "link"),
        "summary": html.unescape(text(node, "description")),
        "html": text(node, "content:encoded"),
        "author": text(node, "dc:creator"),
        "source": text(node, "source | dc:source"),
        "source_url": source.get("url") if source is not None else "",
        "categories": [each.text for each in node.findall("category")],
        "enclosure": enclosure.get("url").removeprefix(f"{SITE}feed/") if enclosure is not None else "",
    }


# ── the laws of every channel ───────────────────────────────────────────────────────────────────────────────
class TestRssContract(ChannelContract):
    channel = Rss
    other_values: ClassVar = {"site_url": "https://other.example/"}

    def config(self, url: str) -> dict[str, Any]:
        return CONFIG

    def stories(self) -> list[StoryView]:
        pictured = story(
            story="20210816-004", cover="hall.png", media=(PICTURE,), kind=StoryKind.PHOTO, summary="A & B < C",
            source_url="https://example.org/upper/1", correction_note="更正了图片",
        )  # fmt: skip
        return [*super().stories(), pictured]

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        data = outlet.folder.read("news.xml")
        return [as_payload(node) for node in parsed(data).findall("item")] if data else []


# ── best practice ───────────────────────────────────────────────────────────────────────────────────────────
def test_feed_looks_as_signed(tmp_path: Path) -> None:
    """The parsed tree of a feed of two. The golden changes only in a commit that says why."""
    channel = rss(tmp_path)
    corrected = story(
        revision=2, cover="hall.png", media=(PICTURE,), summary="1 < 2 & 3", correction_note="“5 份”应为“6 份”。",
        html='<p>见<a href="notices/1.html">通知</a>。</p>',
    )  # fmt: skip
    address = f"{SITE}a/02.html"
    reprint = story(
        story="02 转载",
        permalink=address,
        source="上级媒体（示例）",
        source_url="https://example.org/upper/1",
        byline="",
    )
    data = written(
        channel,
        up(channel, corrected, modified_at=MORNING + timedelta(hours=25)),
        up(channel, reprint, published_at=MORNING + timedelta(minutes=30)),
    )
    lines = []
    for node in parsed(data).iter(lxml.etree.Element):
        said = "".join(f" {key}={value!r}" for key, value in sorted(node.items()))
        depth = "  " * (len(list(node.iterancestors())) - 1)
        name = lxml.etree.QName(node).localname
        words = (node.text or "").strip().replace("\n", "⏎")
        lines.append(f"{depth}{node.prefix + ':' if node.prefix else ''}{name}{said}{f' | {words}' if words else ''}")
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_channel_link_is_the_site_and_self_is_the_feed(tmp_path: Path) -> None:
    channel = parsed(written(rss(tmp_path)))
    assert text(channel, "link") == SITE
    (self_link,) = channel.findall("atom:link", SPACES)
    assert dict(self_link.items()) == {"href": FEED, "rel": "self", "type": "application/rss+xml"}


def test_dates_have_the_districts_zone_and_a_four_digit_year(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    feed = parsed(written(channel, up(channel, story(), modified_at=MORNING + timedelta(hours=1))))
    assert text(feed, "item/pubDate") == "Mon, 16 Aug 2021 08:00:00 +0800"
    assert text(feed, "lastBuildDate") == "Mon, 16 Aug 2021 09:00:00 +0800"


def test_description_comes_before_content(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    (node,) = parsed(written(channel, up(channel, story()))).findall("item")
    names = [each.tag for each in node]
    assert names.index("description") < names.index(f"{{{SPACES['content']}}}encoded")


def test_no_address_is_relative(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    one = story(
        permalink=f"{SITE}a/b/c.html", cover="hall.png", media=(PICTURE,),
        html='<p><a href="../x.html" title="一 &amp; 二">甲</a><a href="//h.example/y">乙</a><a href="#z">丙</a>'
        '<a href="mailto:a@b.example">丁</a><a href="http://[broken">戊</a>\n<img src="hall.png"></p>',
    )  # fmt: skip
    (node,) = parsed(written(channel, up(channel, one))).findall("item")
    body = lxml.html.fragment_fromstring(text(node, "content:encoded"), create_parent="div")
    assert body.xpath("//a/@href") == [
        f"{SITE}a/x.html", "https://h.example/y", f"{SITE}a/b/c.html#z", "mailto:a@b.example", "http://[broken",
    ]  # fmt: skip
    assert body.xpath("//a/@title") == ["一 & 二"]
    (picture,) = body.xpath("//img")
    assert picture.get("src").startswith(f"{SITE}feed/media/")
    assert picture.get("alt") == "政务服务大厅的窗口"
    assert (tmp_path / picture.get("src").removeprefix(f"{SITE}feed/")).read_bytes() == PICTURE.data


def test_a_cover_is_the_single_enclosure_with_its_length(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    other = replace(PICTURE, name="other.png", data=b"other")
    one = story(cover="hall.png", media=(PICTURE, other), html='<p><img src="other.png"></p>')
    (node,) = parsed(written(channel, up(channel, one))).findall("item")
    (enclosure,) = node.findall("enclosure")
    assert (enclosure.get("length"), enclosure.get("type")) == (str(len(PICTURE.data)), "image/png")
    file = tmp_path / enclosure.get("url").removeprefix(f"{SITE}feed/")
    assert file.read_bytes() == PICTURE.data


def test_ampersand_and_less_than_are_hexadecimal_references(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    data = written(channel, up(channel, story(title="A&B <c>", summary="a&b <i>")))
    assert b"<title>A&#x26;B &#x3C;c&gt;</title>" in data
    assert not re.search(rb"&(amp|lt);|CDATA", data)


def test_plain_text_summary_is_shown_as_written_by_readers_of_html(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    data = written(channel, up(channel, story(summary="1 < 2 & <script>alert(1)</script>")))
    shown = lxml.html.fragment_fromstring(feedparser.parse(data).entries[0].summary, create_parent="div")
    assert shown.text_content() == "1 < 2 & <script>alert(1)</script>"
    assert not shown.xpath("//script")


@pytest.mark.parametrize("evil", ["]]>", "<![CDATA[x]]>", "<script>alert(1)</script>", "&lt;b&gt;", "&#0;", "-->"])
def test_markup_in_texts_stays_text(tmp_path: Path, evil: str) -> None:
    channel = rss(tmp_path)
    body = f"<p>{html.escape(evil)}</p>"
    one = story(title=evil, byline=evil, source=evil, column_name=evil, keywords=(evil,), summary=evil, html=body)
    made = channel.adapt(one)
    data = written(channel, item(made))
    (node,) = parsed(data).findall("item")
    assert as_payload(node) == made.payload.model_dump(mode="json")
    assert not feedparser.parse(data).bozo


@settings(max_examples=60, deadline=None)
@given(title=st.text(min_size=1), summary=st.text(), author=st.text(), keyword=st.text())
def test_whatever_validate_accepts_is_well_formed_and_survives(
    title: str, summary: str, author: str, keyword: str
) -> None:
    with TemporaryDirectory() as folder:
        channel = rss(Path(folder))
        one = story(title=title, summary=summary, byline=author, keywords=(keyword,))
        if any(found.severity is Severity.ERROR for found in channel.validate(one)):
            return
        made = channel.adapt(one)
        (node,) = parsed(written(channel, item(made))).findall("item")
        assert as_payload(node) == made.payload.model_dump(mode="json")


def test_a_reader_sees_what_was_approved(tmp_path: Path) -> None:
    """As an independent parser reads it."""
    channel = rss(tmp_path)
    one = story(summary="摘要")
    feed = feedparser.parse(written(channel, up(channel, one)))
    assert not feed.bozo
    assert (feed.version, feed.feed.title, feed.feed.language) == ("rss20", "云川区融媒体中心（演示数据）", "zh-CN")
    assert (feed.feed.ttl, feed.feed.link) == ("15", SITE)
    (entry,) = feed.entries
    assert (entry.title, entry.link, entry.author, entry.summary) == (one.title, one.permalink, one.byline, "摘要")
    assert entry.id == "tag:yunchuan.example,2021:20210816-001"
    assert not entry.guidislink
    assert [tag.term for tag in entry.tags] == ["优化营商环境 赋能高质量", "政务服务", "营商环境"]
    assert entry.content[0].value == one.html.strip()


# ── the shelf ───────────────────────────────────────────────────────────────────────────────────────────────
def test_newest_comes_first(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    items = [up(channel, story(story=f"s{n}"), published_at=MORNING + timedelta(hours=n)) for n in range(3)]
    found = parsed(written(channel, *items)).xpath("item/guid/text()")
    assert [guid.rpartition(":")[2] for guid in found] == ["s2", "s1", "s0"]


def test_correction_replaces_in_place(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    first = parsed(written(channel, up(channel, story(text="精简到 5 份。"))))
    better = story(revision=2, text="精简到 6 份。", correction_note="“5 份”应为“6 份”。")
    second = parsed(written(channel, up(channel, better, modified_at=MORNING + timedelta(hours=25))))
    assert text(second, "item/guid") == text(first, "item/guid")
    assert text(second, "item/pubDate") == text(first, "item/pubDate")
    assert text(second, "lastBuildDate") == "Tue, 17 Aug 2021 09:00:00 +0800"
    content = text(second, "item/content:encoded")
    assert content.startswith("<p><strong>更正：</strong>“5 份”应为“6 份”。</p>")
    assert "精简到 5 份。" not in content


def test_id_outlives_episodes_and_addresses(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    before, after = story(story="03 大厅/A"), story(story="03 大厅/A", revision=2, permalink=f"{SITE}moved.html")
    assert channel.adapt(before).payload.guid == channel.adapt(after).payload.guid
    assert channel.adapt(before).payload.guid == "tag:yunchuan.example,2021:03%20%E5%A4%A7%E5%8E%85%2FA"


def test_withdrawn_items_leave_with_their_pictures(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    staying = up(channel, story(story="staying", title="留下"))
    leaving = up(channel, story(story="leaving", title="不该再看到", cover="hall.png", media=(PICTURE,)))
    written(channel, staying, leaving)
    assert [name for name in channel.tools.folder.names() if name.startswith("media/")]
    data = written(channel, staying, changed=(), gone=(gone(leaving),))
    assert "不该再看到" not in data.decode()
    assert list(channel.tools.folder.names()) == ["news.xml"]


def test_same_shelf_twice_same_bytes(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    items = [up(channel, story(story=f"s{n}"), published_at=MORNING + timedelta(hours=n)) for n in range(3)]
    once = written(channel, *items)
    stamp = (tmp_path / "news.xml").stat().st_mtime_ns
    assert written(channel, *items, now=MORNING + timedelta(days=3), changed=()) == once
    assert (tmp_path / "news.xml").stat().st_mtime_ns == stamp
    assert written(rss(tmp_path / "elsewhere"), *items) == once


def test_an_empty_feed_has_fixed_bytes_and_stays_valid(tmp_path: Path) -> None:
    data = written(rss(tmp_path))
    assert data == written(rss(tmp_path / "later"), now=MORNING + timedelta(days=3))
    assert text(parsed(data), "lastBuildDate") == "Sat, 01 Jan 2000 08:00:00 +0800"
    assert not feedparser.parse(data).bozo


def test_receipt_points_at_the_feed(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    one = up(channel, story())
    receipt = asyncio.run(channel.show(shelf(one)))
    assert (receipt.proof, receipt.level, receipt.at) == (Proof.LIVE, Level.WRITTEN, MORNING)
    assert (receipt.url, receipt.urls) == (FEED, {one.key: FEED})


def test_preview_is_the_payload_escaped_and_stands_alone(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    evil = "<script>alert(1)</script>"
    made = channel.adapt(story(title=evil, summary=evil, byline=evil, cover="hall.png", media=(PICTURE,)))
    seen = lxml.html.document_fromstring(channel.preview(made).data.decode())
    assert seen.findtext(".//h1") == evil
    assert not seen.xpath("//script")
    assert "待发布" in seen.text_content()
    assert [src[:22] for src in seen.xpath("//img/@src")] == ["data:image/png;base64,"]


@pytest.mark.parametrize("call", ["show", "probe"])
def test_a_disk_that_refuses_is_misconfigured(tmp_path: Path, call: str) -> None:
    blocked = tmp_path / "not-a-folder"
    blocked.write_bytes(b"")
    channel = rss(blocked)
    with pytest.raises(Misconfigured) as caught:
        asyncio.run(channel.show(shelf(up(channel, story()))) if call == "show" else channel.probe())
    assert caught.value.code == "disk_refused"


# ── findings, configuration ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"title": "\u3000"}, "feed_title_missing"),
        ({"text": ""}, "feed_body_missing"),
        ({"permalink": "/relative.html"}, "feed_permalink_unusable"),
        ({"source_url": "javascript:alert(1)"}, "feed_source_url_unusable"),
        ({"cover": "none.png"}, "feed_picture_missing"),
        ({"html": '<p><img src="none.png"></p>'}, "feed_picture_missing"),
        ({"html": "<p><img></p>"}, "feed_picture_missing"),
        ({"title": "响\x07铃"}, "feed_character_unprintable"),
        ({"keywords": ("半个\ud83d",)}, "feed_character_unprintable"),
    ],
)
def test_what_a_feed_cannot_hold_is_an_error(tmp_path: Path, overrides: dict[str, Any], code: str) -> None:
    assert [found.code for found in rss(tmp_path).validate(story(**overrides))] == [code]


def test_nasty_stories_are_not_all_refused(tmp_path: Path) -> None:
    channel = rss(tmp_path)
    refused = {one.story for one in NASTY if channel.validate(one)}
    assert refused == {
        "nasty-empty", "nasty-blank", "nasty-nul", "nasty-controls", "nasty-surrogate", "nasty-media",
        "nasty-separators",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"feed_url": f"{SITE}feed/"}, {"feed_url": f"{FEED}?a=1"}, {"site_url": "ftp://x.example/"}, {"title": ""},
        {"id_authority": "Yun Chuan"}, {"id_date": "21"}, {"ttl_minutes": 0}, {"title": "零\x00"},
    ],
)  # fmt: skip
def test_config_refuses_what_would_spoil_the_feed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RssConfig.model_validate(CONFIG | wrong)


def test_where_pictures_stand_and_how_ids_are_made_is_profile(tmp_path: Path) -> None:
    changes: list[dict[str, str]] = [
        {},
        {"feed_url": f"{SITE}b/x.xml"},
        {"id_authority": "b.example"},
        {"id_date": "2020"},
    ]
    assert len({profile_hash(rss(tmp_path, **each)) for each in changes}) == len(changes)
