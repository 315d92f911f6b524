"""The website: the approved page is what readers get, but for the three times that the core fills in."""

import asyncio
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import lxml.etree
import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from channels.website import TEMPLATES, Article, Website, WebsiteConfig, fill, unfill
from distributor.channel import (
    GoneReason,
    Importance,
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
from distributor.files import Folder
from distributor.outlets import asset
from distributor.testing import MORNING, NASTY, ChannelContract, Outlet, gone, item, shelf, story, tools

GOLDEN = Path(__file__).parent.parent / "golden" / "site"
BASE = "https://www.yunchuan.example/"
ZONE = ZoneInfo("Asia/Shanghai")
CONFIG: dict[str, Any] = {
    "base_url": BASE,
    "site_name": "云川区融媒体中心网",
    "site_domain": "www.yunchuan.example",
    "site_id_code": "0000000000",
    "sponsor": "示例市云川区融媒体中心",
    "contact": "0000-0000000",
    "icp": "示例ICP备00000000号",
    "police_record": "示例公网安备00000000000000号",
    "feed_url": f"{BASE}feed/rss.xml",
    "columns": [
        {
            "slug": "business-environment",
            "name": "优化营商环境 赋能高质量",
            "description": "网站、电视与政务新媒体统一开设的专栏",
            "keywords": ["优化营商环境", "放管服"],
            "type": "工作动态",
        },
        {"slug": "notices", "name": "通知公告"},
    ],
    "demo": True,
}
PICTURE = Media("hall.png", "image/png", b"\x89PNG not looked at", 1600, 900, "政务服务大厅的窗口")


def site(folder: Path, **changed: Any) -> Website:
    return Website(WebsiteConfig.model_validate(CONFIG | changed), tools(folder))


def article(**overrides: Any) -> StoryView:
    """An ordinary story at an address of this site."""
    facts: dict[str, Any] = {"story": "03-service-hall", "column": "business-environment"} | overrides
    facts.setdefault("permalink", f"{BASE}{facts['column']}/20210816/{facts['story']}.html")
    return story(**facts)


def up(website: Website, one: StoryView, **overrides: Any) -> ShelfItem[Article]:
    return item(website.adapt(one), **{"key": f"{one.story}:site:1", "version": one.revision, **overrides})


def put(website: Website, *items: ShelfItem[Article], **overrides: Any) -> Folder:
    asyncio.run(website.show(shelf(*items, **overrides)))
    return website.tools.folder


def page(folder: Folder, path: str) -> lxml.html.HtmlElement:
    data = folder.read(path)
    assert data is not None, f"{path} was not written: {list(folder.names())}"
    return lxml.html.document_fromstring(data.decode())


def tags(tree: lxml.html.HtmlElement) -> dict[str, str]:
    return {meta.get("name"): meta.get("content") for meta in tree.iterfind(".//head/meta[@name]")}


def bytes_of(folder: Folder) -> dict[str, bytes]:
    return {name: folder.path(name).read_bytes() for name in folder.names()}


def errors(website: Website, one: StoryView) -> set[str]:
    return {found.code for found in website.validate(one) if found.severity is Severity.ERROR}


# ── the laws of every channel ───────────────────────────────────────────────────────────────────────────────
class TestWebsiteContract(ChannelContract):
    channel = Website
    # Lists, not the page, say these; `test_lists_say_what_was_approved` reads them there.
    unseen = frozenset({"headline", "cover", "summary", "source"})

    def config(self, url: str) -> dict[str, Any]:
        return CONFIG

    def stories(self) -> list[StoryView]:
        return [replace(one, permalink=f"{BASE}{one.column}/20210816/{one.story}.html") for one in super().stories()]

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        found = []
        for name in outlet.folder.names():
            if name.endswith(".html") and not name.endswith("index.html"):
                tree = page(outlet.folder, name)
                said = tags(tree)
                found.append(
                    {
                        "path": name,
                        "permalink": said["Url"],
                        "title": said["ArticleTitle"],
                        "column": tree.xpath("string(//*[@class='trail']/a[2]/@href)").split("/")[-2],
                        "column_name": said["ColumnName"],
                        "corrected": bool(tree.find_class("correction")),
                        "page": unfill((outlet.folder.read(name) or b"").decode()),
                    }
                )
        return found


# ── the page ────────────────────────────────────────────────────────────────────────────────────────────────
def test_page_tags_are_exactly_those_of_the_guideline(tmp_path: Path) -> None:
    one = article(summary="一窗受理", cover="hall.png", media=(PICTURE,), keywords=("一窗通办", "企业开办"))
    website = site(tmp_path, demo=False)
    made = website.adapt(one)
    folder = put(website, up(website, one))
    picture = next(file.name for file in made.files if file.media_type == "image/png")
    said = tags(page(folder, made.payload.path))
    del said["viewport"]
    assert said == {
        "SiteName": "云川区融媒体中心网",
        "SiteDomain": "www.yunchuan.example",
        "SiteIDCode": "0000000000",
        "ColumnName": "优化营商环境 赋能高质量",
        "ColumnDescription": "网站、电视与政务新媒体统一开设的专栏",
        "ColumnKeywords": "优化营商环境,放管服",
        "ColumnType": "工作动态",
        "ArticleTitle": one.title,
        "PubDate": "2021-08-16 08:00",
        "ContentSource": "云川区融媒体中心",
        "Keywords": "一窗通办,企业开办",
        "Author": "区政务服务中心",
        "Description": "一窗受理",
        "Image": BASE + picture,
        "Url": one.permalink,
    }


def test_column_pages_carry_site_and_column_tags_and_home_the_sites(tmp_path: Path) -> None:
    website = site(tmp_path)
    folder = put(website, up(website, article()))
    of_the_site = {"SiteName", "SiteDomain", "SiteIDCode", "viewport", "robots"}
    of_a_column = {"ColumnName", "ColumnDescription", "ColumnKeywords", "ColumnType"}
    assert set(tags(page(folder, "index.html"))) == of_the_site
    assert set(tags(page(folder, "notices/index.html"))) == of_the_site | of_a_column
    assert all(tags(page(folder, "notices/index.html")).values()), "a required tag is empty"


def test_title_is_story_column_site(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = article(title="停水通知")
    folder = put(website, up(website, one))
    tree = page(folder, website.adapt(one).payload.path)
    assert tree.findtext(".//title") == "停水通知_优化营商环境 赋能高质量_云川区融媒体中心网"
    assert page(folder, "notices/index.html").findtext(".//title") == "通知公告_云川区融媒体中心网"


def test_pages_need_no_script_and_no_other_host(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = article(cover="hall.png", media=(PICTURE,), html='<p><img src="hall.png"></p>')
    folder = put(website, up(website, one))
    pages = [name for name in folder.names() if name.endswith(".html")]
    assert len(pages) == 4
    for name in pages:
        tree = page(folder, name)
        assert not tree.xpath("//script | //iframe | //@onclick"), name
        fetched = tree.xpath("//img/@src | //link[@rel='stylesheet']/@href")
        assert fetched, f"{name} has no style"
        for address in fetched:
            target = (folder.path(name).parent / address).resolve()
            assert target.is_file(), f"{name} fetches {address}, which is not in the public folder"


def test_a_demo_says_so_on_every_page_and_stays_out_of_search_engines(tmp_path: Path) -> None:
    website = site(tmp_path)
    leaving = up(website, article(story="gone"))
    folder = put(website, up(website, article()), gone=(gone(leaving),))
    pages = [name for name in folder.names() if name.endswith((".html", ".gone"))]
    assert len(pages) == 5
    for name in pages:
        tree = page(folder, name)
        assert "演示数据" in tree.text_content(), name
        assert "noindex" in tags(tree)["robots"], name


def test_a_real_site_is_found_by_search_engines(tmp_path: Path) -> None:
    website = site(tmp_path, demo=False)
    folder = put(website, up(website, article()))
    for name in [name for name in folder.names() if name.endswith(".html")]:
        tree = page(folder, name)
        assert "演示数据" not in tree.text_content()
        assert "robots" not in tags(tree)


def test_footer_names_who_is_responsible(tmp_path: Path) -> None:
    website = site(tmp_path)
    folder = put(website, up(website, article()))
    said = page(folder, "index.html").find(".//footer").text_content()
    for words in (
        "主办单位：示例市云川区融媒体中心",
        "标识码：0000000000",
        "示例ICP备00000000号",
        "公安备案：示例公网安备",
    ):
        assert words in said


def test_a_reprint_shows_its_source_and_links_to_it(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = article(kind=StoryKind.FORWARDED, source="上级媒体（示例）", source_url="https://example.org/upper/1")
    folder = put(website, up(website, one))
    tree = page(folder, website.adapt(one).payload.path)
    assert "转载自：上级媒体（示例）" in tree.text_content()
    assert tree.xpath("//*[@class='reprint']//a/@href") == ["https://example.org/upper/1"]
    assert tree.xpath("//*[@class='facts']//a/text()") == ["上级媒体（示例）"]


def test_pictures_of_the_body_are_rewritten_and_described(tmp_path: Path) -> None:
    website = site(tmp_path)
    html = '<p>前<img src="hall.png">后</p>\n<p>再来一次：\n<img alt="窗口" src="hall.png"></p>'
    made = website.adapt(article(html=html, media=(PICTURE,)))
    folder = put(website, item(made))
    body = page(folder, made.payload.path).find_class("body")[0]
    first, second = body.iter("img")
    assert (first.get("alt"), second.get("alt")) == ("政务服务大厅的窗口", "窗口")
    assert first.get("src") == second.get("src")
    assert (folder.path(made.payload.path).parent / first.get("src")).read_bytes() == PICTURE.data
    assert body.text_content().strip() == "前后\n再来一次："


def test_a_cover_that_the_body_lacks_stands_above_it_once(tmp_path: Path) -> None:
    website = site(tmp_path)
    above = website.adapt(article(cover="hall.png", media=(PICTURE,)))
    inside = website.adapt(article(cover="hall.png", media=(PICTURE,), html='<p><img src="hall.png"></p>'))
    for made in (above, inside):
        assert len(lxml.html.document_fromstring(made.payload.page).xpath("//article//img")) == 1
    assert lxml.html.document_fromstring(above.payload.page).findtext(".//figcaption") == "政务服务大厅的窗口"


def test_without_a_summary_the_first_whole_paragraph_describes_the_page(tmp_path: Path) -> None:
    long = "第一段没有小标题那样短。" * 60
    made = site(tmp_path).adapt(article(summary="", html=f"<h2>小标题</h2><p> </p><p>{long}</p><p>二</p>"))
    assert made.payload.summary == long


@pytest.mark.parametrize("name", ["article", "home", "column", "gone"])
def test_pages_look_as_signed(tmp_path: Path, name: str) -> None:
    """The parsed tree of each kind of page. A golden changes only in a commit that says why."""
    website = site(tmp_path)
    one = article(
        revision=2, title="企业开办“一窗通办” 审批时限压缩至1个工作日", cover="hall.png", media=(PICTURE,),
        html="<p>第一段。</p>\n<table><tbody><tr><th>日期</th></tr></tbody></table>", text="第一段。\n日期",
        correction_note="“5 份”应为“6 份”。", importance=Importance.KEY,
    )  # fmt: skip
    leaving = up(website, article(story="05-bus"))
    corrected = up(website, one, modified_at=MORNING + timedelta(hours=25))
    folder = put(website, corrected, gone=(gone(leaving),))
    written = {
        "article": corrected.rendition.payload.path,
        "home": "index.html",
        "column": "business-environment/index.html",
        "gone": f"{leaving.rendition.payload.path}.gone",
    }[name]
    seen = _outline((folder.read(written) or b"").decode())
    assert seen == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _outline(html: str) -> list[str]:
    """The page as a tree, one element a line: name, attributes in order of name, own text."""
    lines = []
    tree = lxml.html.document_fromstring(re.sub(r"static/site-[0-9a-f]{12}\.css", "static/site-HASH.css", html))
    for node in tree.iter(lxml.etree.Element):
        said = "".join(f" {key}={value!r}" for key, value in sorted(node.items()))
        words = " ".join((node.text or "").split())
        tail = " ".join((node.tail or "").split())
        depth = "  " * len(list(node.iterancestors()))
        lines.append(f"{depth}{node.tag}{said}{f' | {words}' if words else ''}{f' … {tail}' if tail else ''}")
    return lines


# ── the envelope ────────────────────────────────────────────────────────────────────────────────────────────
HOLE_WORDS = st.sampled_from(
    [
        "<!--published-->", "<!--modified-->", "<!--corrected-->", "<!--published_iso-->", '<div class="body">',
        '<span class="modified">', "</span>", '<meta name="PubDate" content="', '"/>', "2021-08-16 08:00", "&lt;!--",
        "更新时间：", "published", "<", ">", '"', "&", "\\g<1>", "\\1", "字",
    ]
)  # fmt: skip
FORGED = st.lists(HOLE_WORDS, min_size=1, max_size=8).map("".join)


@settings(max_examples=60, deadline=None)
@given(title=FORGED, note=FORGED, summary=FORGED, source=FORGED, keyword=FORGED, body=FORGED)
def test_markers_cannot_be_forged_by_story_text(
    title: str, note: str, summary: str, source: str, keyword: str, body: str
) -> None:
    website = site(Path("unused"))
    plain = {"title": "标题", "correction_note": "更正", "summary": "摘要", "source": "来源", "keywords": ("词",)}
    forged = {"title": title, "correction_note": note, "summary": summary, "source": source, "keywords": (keyword,)}
    # Even a body that no cleaning ever touched: what stands behind the first body tag is never looked at.
    honest = website.adapt(article(**plain, html=f"<p>{body}</p>")).payload.page
    hostile = website.adapt(article(**forged, html=f"<p>{body}</p>")).payload.page
    times: Any = {"published_at": MORNING, "modified_at": MORNING + timedelta(hours=2), "timezone": ZONE}
    filled = fill(hostile, **times)
    assert unfill(filled) == hostile
    assert f"<p>{body}</p>" in filled
    assert filled.partition('<div class="body">')[0].count("<!--") == 0
    assert len(filled) - len(hostile) == len(fill(honest, **times)) - len(honest), "another number of holes was filled"
    tree = lxml.html.document_fromstring(filled)
    assert tags(tree)["ArticleTitle"] == website.adapt(article(**forged)).payload.title
    assert tags(tree)["PubDate"] == "2021-08-16 08:00"


@settings(max_examples=40, deadline=None)
@given(
    published_at=st.datetimes(timezones=st.just(ZONE)),
    later=st.timedeltas(min_value=timedelta(0), max_value=timedelta(9)),
)
def test_envelope_holes_round_trip(published_at: Any, later: timedelta) -> None:
    if published_at.year > 9000 or published_at.year < 1000:
        return  # no site will see these years; strftime pads them differently
    approved = site(Path("unused")).adapt(article(correction_note="更正说明", revision=2)).payload.page
    filled = fill(approved, published_at=published_at, modified_at=published_at + later, timezone=ZONE)
    assert unfill(filled) == approved
    said = tags(lxml.html.document_fromstring(filled))["PubDate"]
    assert said == published_at.strftime("%Y-%m-%d %H:%M")


def test_what_is_not_changed_shows_no_time_of_change(tmp_path: Path) -> None:
    website = site(tmp_path)
    folder = put(website, up(website, article()))
    tree = page(folder, website.adapt(article()).payload.path)
    assert "更新时间" not in tree.text_content()
    assert "发布时间：2021-08-16 08:00" in " ".join(tree.text_content().split())


def test_preview_is_the_payload_and_stands_alone(tmp_path: Path) -> None:
    website = site(tmp_path)
    made = website.adapt(article(cover="hall.png", media=(PICTURE,)))
    seen = lxml.html.document_fromstring(website.preview(made).data.decode())
    assert tags(seen)["PubDate"] == "待发布"
    assert "发布时间：待发布" in seen.text_content()
    fetched = seen.xpath("//img/@src | //link[@rel='stylesheet']/@href")
    assert len(fetched) == 2
    assert all(address.startswith("data:") for address in fetched)
    assert not list(tmp_path.iterdir()), "a preview writes nothing"


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title><svg onload=alert(1)>"]
)
def test_hostile_title_is_escaped(tmp_path: Path, evil: str) -> None:
    website = site(tmp_path)
    one = article(
        title=evil, short_title=evil, byline=evil, source=evil, summary=evil, keywords=(evil,), correction_note=evil,
        column="made-up", column_name=evil, importance=Importance.URGENT,
        media=(replace(PICTURE, description=evil),), cover="hall.png",
    )  # fmt: skip
    made = website.adapt(one)
    folder = put(website, item(made, importance=Importance.URGENT))
    seen = [page(folder, name) for name in (made.payload.path, "index.html", "made-up/index.html")]
    seen.append(lxml.html.document_fromstring(website.preview(made).data.decode()))
    for tree in seen:
        assert evil in tree.text_content()
        assert not tree.xpath("//script | //svg | //@onerror | //@onload")


# ── the shelf ───────────────────────────────────────────────────────────────────────────────────────────────
def test_correction_replaces_in_place(tmp_path: Path) -> None:
    website = site(tmp_path)
    first = up(website, article(cover="hall.png", media=(PICTURE,), text="精简到 5 份。"))
    put(website, first)
    better = article(revision=2, text="精简到 6 份。", correction_note="“5 份”应为“6 份”。")
    second = up(website, better, modified_at=MORNING + timedelta(hours=25, minutes=30))
    folder = put(website, second)
    assert second.rendition.payload.path == first.rendition.payload.path
    tree = page(folder, second.rendition.payload.path)
    words = " ".join(tree.text_content().split())
    assert tags(tree)["PubDate"] == "2021-08-16 08:00"
    assert "更新时间：2021-08-17 09:30" in words
    assert "更正 “5 份”应为“6 份”。 更正时间：2021-08-17 09:30" in words
    assert "精简到 5 份。" not in words
    assert page(folder, "index.html").xpath("//li/em/text()").count("更正") == 2  # in the newest and in its column
    assert not [name for name in folder.names() if name.endswith(".png")], "the old version's picture is still served"


@pytest.mark.parametrize(
    ("reason", "words"), [(GoneReason.WITHDRAWN, "该稿件已撤回"), (GoneReason.ENDED, "该信息已过期下线")]
)
def test_withdrawal_leaves_a_notice(tmp_path: Path, reason: GoneReason, words: str) -> None:
    website = site(tmp_path)
    leaving = up(
        website, article(title="不该再看到的标题", text="不该再看到的正文", cover="hall.png", media=(PICTURE,))
    )
    put(website, leaving)
    folder = put(website, changed=(), gone=(gone(leaving, reason=reason),))
    path = leaving.rendition.payload.path
    assert folder.read(path) is None
    notice = page(folder, f"{path}.gone")
    assert notice.findtext(".//h1") == words
    assert "noindex" in tags(notice)["robots"]
    left = b"".join(bytes_of(folder).values()).decode()
    assert "不该再看到的" not in left
    assert PICTURE.data not in bytes_of(folder).values()


def test_publishing_again_takes_the_notice_away(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = up(website, article())
    put(website, one)
    put(website, changed=(), gone=(gone(one),))
    again = up(website, article(), key="03-service-hall:site:2", published_at=MORNING + timedelta(days=1))
    folder = put(website, again)
    path = one.rendition.payload.path
    assert tags(page(folder, path))["PubDate"] == "2021-08-17 08:00"
    assert folder.read(f"{path}.gone") is None


def test_one_call_that_ends_an_episode_and_begins_the_next_leaves_the_page(tmp_path: Path) -> None:
    website = site(tmp_path)
    old = up(website, article())
    put(website, old)
    new = up(website, article(), key="03-service-hall:site:2", published_at=MORNING + timedelta(days=1))
    folder = put(website, new, gone=(gone(old),))
    assert folder.read(new.rendition.payload.path) is not None
    assert folder.read(f"{new.rendition.payload.path}.gone") is None


def test_same_shelf_twice_same_bytes(tmp_path: Path) -> None:
    website = site(tmp_path)
    items = [
        up(
            website,
            article(story=f"s{n}", cover="hall.png", media=(PICTURE,)),
            published_at=MORNING + timedelta(hours=n),
        )
        for n in range(3)
    ]
    leaving = up(website, article(story="leaving"))
    put(website, leaving)
    once = bytes_of(put(website, *items, gone=(gone(leaving),)))
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in once}
    folder = put(website, *items, gone=(gone(leaving),))
    assert bytes_of(folder) == once
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in once} == stamps, "equal files were written again"
    assert bytes_of(put(site(tmp_path / "elsewhere"), *items, gone=(gone(leaving),))) == once


def test_an_article_that_the_disk_lost_comes_back(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = up(website, article(cover="hall.png", media=(PICTURE,)))
    before = bytes_of(put(website, one))
    for name in before:
        (tmp_path / name).unlink()
    assert bytes_of(put(website, one, changed=())) == before


def test_what_did_not_change_is_left_alone(tmp_path: Path) -> None:
    website = site(tmp_path)
    one, other = up(website, article(story="one")), up(website, article(story="other"))
    folder = put(website, one, other)
    path = one.rendition.payload.path
    folder.write(path, b"touched by nobody")
    put(website, one, other, changed=(other,))
    assert folder.read(path) == b"touched by nobody"


def test_lists_say_what_was_approved(tmp_path: Path) -> None:
    website = site(tmp_path)
    items = [
        up(website, article(story=f"s{n}", title=f"第{n}篇", source=f"单位{n}", summary=f"摘要{n}"),
           published_at=MORNING + timedelta(days=n))
        for n in range(3)
    ]  # fmt: skip
    folder = put(website, *items)
    rows = page(folder, "business-environment/index.html").xpath("//section[@class='list']//li")
    assert [" ".join(row.text_content().split()) for row in rows] == [
        f"第{n}篇 摘要{n} 2021-08-{16 + n} 08:00单位{n}" for n in (2, 1, 0)
    ]
    for row, one in zip(rows, reversed(items), strict=True):
        assert (tmp_path / "business-environment" / row.find(".//a").get("href")).resolve() == (
            tmp_path / one.rendition.payload.path
        ).resolve()


def test_home_leads_with_the_key_story_and_warns_of_the_urgent_one(tmp_path: Path) -> None:
    website = site(tmp_path)
    key = up(website, article(story="key", title="头条"), importance=Importance.KEY)
    urgent = up(
        website, article(story="urgent", title="停水通知", short_title="18日22时起停水"),
        importance=Importance.URGENT, published_at=MORNING + timedelta(hours=1),
    )  # fmt: skip
    newest = up(website, article(story="newest", title="平常"), published_at=MORNING + timedelta(hours=2))
    tree = page(put(website, key, urgent, newest), "index.html")
    assert tree.xpath("//section[@class='lead']/h2/a/text()") == ["头条"]
    assert tree.xpath("//p[@class='urgent']/a/text()") == ["18日22时起停水"]
    assert tree.xpath("//section[contains(@class,'newest')]//a/text()") == ["平常", "停水通知", "头条"]


def test_an_empty_shelf_says_so_in_words(tmp_path: Path) -> None:
    folder = put(site(tmp_path))
    assert "暂无稿件" in page(folder, "index.html").text_content()
    assert "本栏目暂无稿件" in page(folder, "notices/index.html").text_content()


def test_a_column_that_nobody_configured_goes_with_its_last_story(tmp_path: Path) -> None:
    website = site(tmp_path)
    one = up(website, article(column="made-up", column_name="临时专栏"))
    folder = put(website, one)
    assert page(folder, "made-up/index.html").findtext(".//h1") == "临时专栏"
    assert "临时专栏" in page(folder, "index.html").text_content()
    put(website, changed=(), gone=(gone(one),))
    assert folder.read("made-up/index.html") is None
    assert folder.read("notices/index.html") is not None


def test_receipt_gives_each_key_its_permalink(tmp_path: Path) -> None:
    website = site(tmp_path)
    one, other = up(website, article(story="one")), up(website, article(story="other"))
    receipt = asyncio.run(website.show(shelf(one, changed=(one, other))))
    assert (receipt.proof, receipt.level, receipt.at) == (Proof.LIVE, Level.WRITTEN, MORNING)
    assert receipt.urls == {found.key: found.rendition.payload.permalink for found in (one, other)}
    assert one.rendition.payload.title not in json.dumps(dict(receipt.evidence), ensure_ascii=False)


@pytest.mark.parametrize("call", ["show", "probe"])
def test_a_disk_that_refuses_is_misconfigured(tmp_path: Path, call: str) -> None:
    blocked = tmp_path / "not-a-folder"
    blocked.write_bytes(b"")
    website = site(blocked)
    with pytest.raises(Misconfigured) as caught:
        asyncio.run(website.show(shelf(up(website, article()))) if call == "show" else website.probe())
    assert caught.value.code == "disk_refused"


# ── findings, configuration ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"permalink": "https://elsewhere.example/a.html"}, "site_permalink_foreign"),
        ({"permalink": f"{BASE}a/../../b.html"}, "site_permalink_unusable"),
        ({"permalink": f"{BASE}a/.hidden.html"}, "site_permalink_unusable"),
        ({"permalink": f"{BASE}a/b"}, "site_permalink_unusable"),
        ({"permalink": f"{BASE}a/b.html?x=1.html"}, "site_permalink_unusable"),
        ({"permalink": f"{BASE}notices/index.html"}, "site_permalink_unusable"),
        ({"permalink": f"{BASE}static/a.html"}, "site_permalink_unusable"),
        ({"permalink": BASE}, "site_permalink_unusable"),
        ({"column": "static", "permalink": f"{BASE}a/b.html"}, "site_column_unusable"),
        ({"column": "../x", "permalink": f"{BASE}a/b.html"}, "site_column_unusable"),
        ({"column": "made-up", "column_name": ""}, "site_column_unnamed"),
        ({"title": " "}, "site_title_missing"),
        ({"source": "", "unit_name": ""}, "site_source_missing"),
        ({"text": ""}, "site_body_missing"),
        ({"source_url": "javascript:alert(1)"}, "site_source_url_unusable"),
        ({"html": '<p><img src="none.png"></p>'}, "site_picture_missing"),
        ({"html": "<p><img></p>"}, "site_picture_missing"),
        ({"cover": "none.png"}, "site_picture_missing"),
        ({"byline": "作\x00者"}, "site_character_unprintable"),
        ({"text": "半个\ud83d字符", "html": "<p></p>"}, "site_character_unprintable"),
    ],
)
def test_what_the_site_cannot_show_is_an_error(tmp_path: Path, overrides: dict[str, Any], code: str) -> None:
    assert errors(site(tmp_path), article(**overrides)) == {code}


def test_an_ordinary_story_has_no_findings(tmp_path: Path) -> None:
    assert site(tmp_path).validate(article(cover="hall.png", media=(PICTURE,))) == []


def test_what_only_the_editor_can_judge_is_a_warning(tmp_path: Path) -> None:
    one = article(
        kind=StoryKind.FORWARDED, column="made-up", cover="hall.png", media=(replace(PICTURE, description=""),)
    )
    found = site(tmp_path).validate(one)
    assert {each.severity for each in found} == {Severity.WARNING}
    assert {each.code for each in found} == {
        "site_reprint_without_link", "site_column_undescribed", "site_picture_undescribed",
    }  # fmt: skip


@pytest.mark.parametrize("nasty", NASTY, ids=lambda one: one.story)
def test_nasty_text_at_a_good_address_survives_or_is_refused(tmp_path: Path, nasty: StoryView) -> None:
    website = site(tmp_path)
    one = replace(nasty, permalink=f"{BASE}{nasty.column}/20210816/{nasty.story}.html")
    if errors(website, one):
        return
    made = website.adapt(one)
    folder = put(website, item(made))
    written = (folder.read(made.payload.path) or b"").decode()
    assert unfill(written) == made.payload.page
    assert one.html in written
    assert tags(page(folder, made.payload.path))["ArticleTitle"] == made.payload.title


def test_nasty_stories_are_not_all_refused(tmp_path: Path) -> None:
    website = site(tmp_path)
    good = [replace(one, permalink=f"{BASE}a/{one.story}.html") for one in NASTY]
    refused = {one.story for one in good if errors(website, one)}
    assert refused == {
        "nasty-empty", "nasty-blank", "nasty-nul", "nasty-controls", "nasty-surrogate", "nasty-media",
        "nasty-separators",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://www.yunchuan.example/"}, {"base_url": "https://www.yunchuan.example/?a=1"},
        {"site_id_code": "12345"}, {"site_domain": "https://www.yunchuan.example"}, {"site_name": ""},
        {"icp": "零\x00"}, {"theme": "neon"}, {"columns": [{"slug": "A B", "name": "x"}]},
    ],
)  # fmt: skip
def test_config_refuses_what_would_spoil_every_page(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WebsiteConfig.model_validate(CONFIG | wrong)


def test_another_look_is_another_profile(tmp_path: Path) -> None:
    """Templates and style sheet are part of the approval: a changed one asks for new votes."""
    seen = {profile_hash(site(tmp_path))}
    for name in (*(f"templates/site/{each}" for each in TEMPLATES), "static/site/site.css"):
        copy = tmp_path / f"{len(seen)}"
        for source in (asset("templates/site"), asset("static/site")):
            target = copy / source.relative_to(asset("."))
            target.mkdir(parents=True)
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes() + (b" " if file == asset(name) else b""))
        lent = replace(tools(tmp_path), asset=lambda wanted, copy=copy: copy / wanted)
        seen.add(profile_hash(Website(WebsiteConfig.model_validate(CONFIG), lent)))
    assert len(seen) == len(TEMPLATES) + 2


def test_the_feed_is_announced(tmp_path: Path) -> None:
    folder = put(site(tmp_path))
    assert page(folder, "index.html").xpath("//link[@rel='alternate']/@href") == [f"{BASE}feed/rss.xml"]


def test_what_has_run_out_stays_readable_and_the_lists_say_so(tmp_path: Path) -> None:
    end = MORNING + timedelta(hours=1)
    website = site(tmp_path)
    one = up(website, article(expires_at=end), importance=Importance.URGENT, expires_at=end)
    folder = put(website, one)
    before = folder.read("index.html") or b""
    put(website, one, changed=(), now=end)
    after = folder.read("index.html") or b""
    assert b'class="urgent"' in before
    assert "已过期".encode() not in before
    assert b'class="urgent"' not in after
    assert "已过期".encode() in after
    assert "有效期至".encode() in (folder.read(one.rendition.payload.path) or b"")
