"""The feed, read by a feed reader."""

from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from html import unescape
from urllib.parse import urljoin

import feedparser
import pytest
from lxml import etree, html

from channels.rss import FeedItem
from distributor.channel import Rendition, RenditionFile
from tests.e2e.conftest import Demo, fetch, moment

pytestmark = pytest.mark.e2e

get = cache(fetch)
DC = "{http://purl.org/dc/elements/1.1/}"
CONTENT = "{http://purl.org/rss/1.0/modules/content/}encoded"


def feed_url(demo: Demo) -> str:
    return f"{demo.base}/site_rss/rss.xml"


def story_of(guid: str) -> str:
    return guid.rpartition(":")[2]


def live(demo: Demo) -> dict[str, str]:
    """Story -> the hash that was signed."""
    return {row["story"]: row["rendition_sha256"] for row in demo.deliveries(outlet="site_rss", state="live")}


def test_a_feed_reader_finds_each_live_story_once(demo: Demo) -> None:
    read = feedparser.parse(get(feed_url(demo)).body)
    assert not read.bozo
    assert sorted(story_of(entry.id) for entry in read.entries) == sorted(live(demo))
    for entry in read.entries:
        story = story_of(entry.id)
        assert entry.id == f"tag:yunchuan.example,2021-08-16:{story}"
        assert entry.link == demo.story(story)["permalink"]
        assert entry.title == demo.story(story)["title"]


def test_times_are_the_districts_and_those_of_the_first_version(demo: Demo) -> None:
    for item in etree.fromstring(get(feed_url(demo)).body).iterfind("channel/item"):
        written = item.findtext("pubDate") or ""
        first = demo.deliveries(outlet="site_rss", story=story_of(item.findtext("guid") or ""), version=1)[0]
        assert written.endswith("+0800")
        assert parsedate_to_datetime(written) == moment(first["live_at"]).replace(microsecond=0)


def test_the_feeds_own_time_is_its_newest_change(demo: Demo) -> None:
    built = etree.fromstring(get(feed_url(demo)).body).findtext("channel/lastBuildDate") or ""
    newest = max(row["live_at"] for row in demo.deliveries(outlet="site_rss", state="live"))
    assert parsedate_to_datetime(built) == datetime.fromisoformat(newest)


def test_items_are_the_approved_ones(demo: Demo) -> None:
    root = etree.fromstring(get(feed_url(demo)).body)
    assert {story: made.sha256 for story, made in map(as_published, root.iterfind("channel/item"))} == live(demo)


def as_published(item: etree._Element) -> tuple[str, Rendition[FeedItem]]:
    """The rendition, put together again from the feed and the pictures that it names."""
    source = item.find("source")
    enclosure = item.find("enclosure")
    content = item.findtext(CONTENT) or ""
    images = [str(src) for src in html.fromstring(content).xpath("//img/@src")]
    if enclosure is not None:
        images.insert(0, enclosure.get("url") or "")
    files = []
    for url in dict.fromkeys(images):
        served = get(url)
        assert served.status == 200
        files.append(RenditionFile(url.partition("/site_rss/")[2], served.headers["content-type"], served.body))
    if enclosure is not None:
        assert enclosure.get("length") == str(len(get(enclosure.get("url") or "").body))
        assert enclosure.get("type") == get(enclosure.get("url") or "").headers["content-type"]
    guid = item.findtext("guid") or ""
    payload = FeedItem(
        guid=guid, title=item.findtext("title") or "", link=item.findtext("link") or "",
        summary=unescape(item.findtext("description") or ""), html=content,
        author=item.findtext(f"{DC}creator") or "",
        source=(item.findtext(f"{DC}source") if source is None else source.text) or "",
        source_url="" if source is None else source.get("url") or "",
        categories=tuple(each.text or "" for each in item.iterfind("category")),
        enclosure=images[0].partition("/site_rss/")[2] if enclosure is not None else "",
    )  # fmt: skip
    return story_of(guid), Rendition(payload, tuple(files))


def test_neither_a_withdrawn_word_nor_a_corrected_number_is_left(demo: Demo) -> None:
    text = get(feed_url(demo)).text
    assert "05-bus-screen" not in text
    assert "公交线路" not in text
    entries = feedparser.parse(text).entries
    (corrected,) = [entry for entry in entries if story_of(entry.id) == "03-service-hall"]
    said = html.fromstring(f"<div>{corrected.content[0].value}</div>").text_content()
    assert "14 份精简到 6 份，" in said
    assert "14 份精简到 5 份，" not in said
    assert "更正" in said


def test_every_address_in_the_feed_answers(demo: Demo) -> None:
    read = feedparser.parse(get(feed_url(demo)).body)
    pictures = [
        urljoin(entry.link, src)
        for entry in read.entries
        for src in html.fromstring(f"<div>{entry.content[0].value}</div>").xpath("//img/@src")
    ]
    assert pictures
    for url in [read.feed.link, *pictures, *(entry.link for entry in read.entries)]:
        assert get(url).status == 200, url


def test_an_unchanged_feed_is_not_sent_twice(demo: Demo) -> None:
    answer = get(feed_url(demo))
    assert answer.headers["content-type"] == "application/rss+xml; charset=utf-8"
    again = fetch(feed_url(demo), If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert fetch(feed_url(demo), If_None_Match='"another"').status == 200
