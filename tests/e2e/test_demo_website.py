"""The district's site, read page by page: what readers get is what was signed."""

from datetime import datetime
from functools import cache
from urllib.parse import urldefrag, urljoin

import pytest
from lxml import html

from channels.website import Article, unfill
from distributor.channel import Rendition, RenditionFile
from tests.e2e.conftest import SHANGHAI, Answer, Demo, fetch, moment

pytestmark = pytest.mark.e2e

get = cache(fetch)


def live_stories(demo: Demo) -> list[str]:
    return sorted(row["story"] for row in demo.deliveries(outlet="site", state="live"))


def permalink(demo: Demo, story: str) -> str:
    return str(demo.story(story)["permalink"])


def tag(page: html.HtmlElement, name: str) -> str:
    found = page.xpath(f"//meta[@name='{name}']/@content")
    return str(found[0]) if found else ""


def links(url: str, answer: Answer) -> set[str]:
    """Every address that the page names, absolute and without fragment."""
    page = html.document_fromstring(answer.text)
    named = page.xpath("//a/@href | //link/@href | //img/@src")
    return {urldefrag(urljoin(url, str(each)))[0] for each in named}


def pages(demo: Demo) -> dict[str, Answer]:
    """Every page of the site that a reader can click to, from home."""
    site = f"{demo.base}/site/"
    found: dict[str, Answer] = {}
    waiting = [site]
    while waiting:
        url = waiting.pop()
        if url in found:
            continue
        answer = get(url)
        if answer.headers["content-type"].startswith("text/html"):
            found[url] = answer
            waiting += [each for each in links(url, answer) if each.startswith(site)]
    return found


def as_published(demo: Demo, story: str) -> Rendition[Article]:
    """The rendition, put together again from what the site serves; only the short title is the manuscript's."""
    url = permalink(demo, story)
    path = url.removeprefix(f"{demo.base}/site/")
    text = get(url).text
    page = html.document_fromstring(text)
    images = [urljoin(url, src) for src in page.xpath("//article//img/@src")]
    files = []
    for address in [*page.xpath("//link[@rel='stylesheet']/@href"), *dict.fromkeys(images)]:
        absolute = urljoin(url, address)
        served = get(absolute)
        assert served.status == 200
        media_type = served.headers["content-type"].partition(";")[0]
        files.append(RenditionFile(absolute.removeprefix(f"{demo.base}/site/"), media_type, served.body))
    version = max(row["version"] for row in demo.deliveries(outlet="site", story=story))
    payload = Article(
        path=path, permalink=url, title=tag(page, "ArticleTitle"),
        headline=demo.view(story, version).short_title or tag(page, "ArticleTitle"),
        column=path.split("/")[0], column_name=tag(page, "ColumnName"), source=tag(page, "ContentSource"),
        summary=tag(page, "Description"), cover=tag(page, "Image").removeprefix(f"{demo.base}/site/"),
        corrected=bool(page.xpath("//aside[@class='correction']")), page=unfill(text),
    )  # fmt: skip
    return Rendition(payload, tuple(files))


def test_the_served_articles_are_the_approved_ones_byte_for_byte(demo: Demo) -> None:
    signed = {row["story"]: row["rendition_sha256"] for row in demo.deliveries(outlet="site", state="live")}
    assert {story: as_published(demo, story).sha256 for story in signed} == signed


def test_the_receipt_leads_to_the_article(demo: Demo) -> None:
    for row in demo.deliveries(outlet="site"):
        assert row["receipt"]["url"] == permalink(demo, row["story"])
        assert get(row["receipt"]["url"]).status == (200 if row["state"] in ("live", "replaced") else 410)


def test_publication_times_are_the_districts(demo: Demo) -> None:
    for story in live_stories(demo):
        first = demo.deliveries(outlet="site", story=story, version=1)[0]["live_at"]
        local = moment(first).astimezone(SHANGHAI)
        page = html.document_fromstring(get(permalink(demo, story)).text)
        assert tag(page, "PubDate") == local.strftime("%Y-%m-%d %H:%M")
        (machine,) = page.xpath("//article/header//time[span[@class='published']]/@datetime")
        assert datetime.fromisoformat(machine) == local.replace(microsecond=0)
        assert machine.endswith("+08:00")


def test_a_withdrawn_story_is_gone_without_its_words(demo: Demo) -> None:
    view = demo.view("05-bus-screen")
    answer = get(permalink(demo, "05-bus-screen"))
    assert answer.status == 410
    assert "已撤回" in answer.text
    for word in (view.title, view.short_title, "公交", "绕行"):
        assert word not in answer.text
    assert "noindex" in answer.text


def test_the_correction_stands_with_its_note_and_the_new_number(demo: Demo) -> None:
    page = html.document_fromstring(get(permalink(demo, "03-service-hall")).text)
    (body,) = page.xpath("//div[@class='body']")
    assert "14 份精简到 6 份" in body.text_content()
    assert "5 份" not in body.text_content()
    (note,) = page.xpath("//aside[@class='correction']")
    assert "更正" in note.text_content()
    assert demo.view("03-service-hall", 2).correction_note in note.text_content()
    corrected_at = demo.deliveries(outlet="site", story="03-service-hall", version=2)[0]["live_at"]
    assert moment(corrected_at).astimezone(SHANGHAI).strftime("%Y-%m-%d %H:%M") in note.text_content()


def test_an_expired_story_says_until_when_it_held(demo: Demo) -> None:
    assert "有效期至：" in get(permalink(demo, "04-urgent-water")).text
    assert "2021-08-19 06:00" in get(permalink(demo, "04-urgent-water")).text


def test_home_and_columns_list_exactly_what_is_live(demo: Demo) -> None:
    every = {permalink(demo, story) for story in live_stories(demo)}
    site = f"{demo.base}/site/"

    def listed(url: str) -> list[str]:
        page = html.document_fromstring(get(url).text)
        named = [urljoin(url, href) for href in page.xpath("//main//a/@href")]
        return [each for each in named if each.startswith(site) and not each.endswith("index.html")]

    assert set(listed(site)) == every
    seen: list[str] = []
    for column in ("business-environment", "leaders-talk", "policy-face-to-face"):
        here = list(dict.fromkeys(listed(f"{site}{column}/")))
        assert set(here) == {url for url in every if f"/{column}/" in url}
        seen += here
    assert sorted(seen) == sorted(every)


def test_every_page_says_demo_data_and_keeps_search_engines_away(demo: Demo) -> None:
    found = pages(demo)
    assert len(found) >= len(live_stories(demo)) + 4  # home and three columns
    for url, answer in {**found, "gone": get(permalink(demo, "05-bus-screen"))}.items():
        page = html.document_fromstring(answer.text)
        assert "演示数据" in page.text_content(), url
        assert "noindex" in tag(page, "robots"), url


def test_no_link_of_the_demo_is_broken(demo: Demo) -> None:
    named = {each: url for url, answer in pages(demo).items() for each in links(url, answer)}
    own = {each: url for each, url in named.items() if each.startswith((demo.base, demo.platform))}
    assert len(own) > 15
    assert {each: (get(each).status, where) for each, where in own.items() if get(each).status != 200} == {}


def test_pages_can_run_nothing_foreign(demo: Demo) -> None:
    for url, answer in pages(demo).items():
        page = html.document_fromstring(answer.text)
        assert page.xpath("//script | //iframe | //*[@onclick or @onerror or @onload]") == [], url
        assert "default-src 'none'" in answer.headers["content-security-policy"], url
        assert answer.headers["x-content-type-options"] == "nosniff", url


def test_an_unchanged_page_is_not_sent_twice(demo: Demo) -> None:
    url = f"{demo.base}/site/"
    answer = get(url)
    again = fetch(url, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
