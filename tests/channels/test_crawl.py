"""The running line: what a broadcaster airs, and the file that a character generator reads."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from channels.crawl import Crawl, CrawlConfig, CrawlPayload
from distributor.channel import Finding, Importance, Misconfigured, Rendition, Severity, ShelfItem, StoryKind, StoryView
from distributor.testing import MORNING, ChannelContract, Outlet, item, shelf, story, tools

CHARSETS = ["gbk", "gb2312", "gb18030", "utf-8"]


def crawl(folder: Path = Path("unused"), **config: Any) -> Crawl:
    return Crawl(CrawlConfig(**config), tools(folder))


def line(one: StoryView, **config: Any) -> str:
    return crawl(**config).adapt(one).payload.line


def findings(one: StoryView, **config: Any) -> dict[str, Mapping[str, Any]]:
    return {found.code: found.facts for found in crawl(**config).validate(one)}


def errors(channel: Crawl, one: StoryView) -> list[Finding]:
    return [found for found in channel.validate(one) if found.severity is Severity.ERROR]


def aired(text: str, **facts: Any) -> ShelfItem[CrawlPayload]:
    return item(Rendition(CrawlPayload(line=text, charset="gbk", seconds=1)), **{"key": text} | facts)


class TestCrawlContract(ChannelContract):
    channel = Crawl
    unseen = frozenset({"charset", "seconds", "expires_at"})  # the file has lines and nothing else

    def config(self, url: str) -> dict[str, Any]:
        return {"charset": "utf-8", "filename": "list.txt"}

    async def shown(self, outlet: Outlet) -> list[dict[str, Any]]:
        data = outlet.folder.read("list.txt") or b""
        return [{"line": one} for one in data.decode().split("\r\n") if one]


# ── the line ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("营商环境专项整治启动 18项任务铺开", "营商环境专项整治启动，18项任务铺开。"),
        ("企业开办“一窗通办” 审批压缩至1个工作日", "企业开办“一窗通办”，审批压缩至1个工作日。"),
        ("“一把手谈营商环境”“政策热点面对面”开播", "“一把手谈营商环境”“政策热点面对面”开播。"),
        ("全区共部署 18 项任务", "全区共部署18项任务。"),
        ("张　三、李四获奖", "张三、李四获奖。"),
        ("LED 电子屏 APP 上线", "LED电子屏APP上线。"),
        ("Smart City 大会开幕", "Smart City大会开幕。"),
        ("停水通知： 城区停水", "停水通知：城区停水。"),
        ("增长１２.5％", "增长12.5％。"),
        ("政策|一次办好", "政策：一次办好。"),
        ("这事能办吗？", "这事能办吗？"),
        ("他说：“能办。”", "他说：“能办。”"),
        ("敬请期待……", "敬请期待……"),
        ("换行\r\n标题\t制表", "换行标题 制表。"),
    ],
)
def test_a_headline_becomes_a_sentence(title: str, said: str) -> None:
    made = line(story(title=title, source="", unit_name=""), source_tag="")
    assert made == said.replace("标题 制表", "标题，制表")


def test_the_source_leads() -> None:
    assert line(story(title="八条措施出台", source="区住建局")) == "【区住建局】八条措施出台。"


def test_the_unit_stands_in_for_a_missing_source() -> None:
    assert line(story(title="八条措施出台", source="", unit_name="区住建局")).startswith("【区住建局】")


def test_lead_in_tag_and_end_mark_follow_the_profile() -> None:
    one = story(title="八条措施出台", source="区住建局")
    assert line(one, lead_in="快讯：", source_tag="", end_mark="") == "快讯：八条措施出台"


def test_the_short_title_is_aired_when_there_is_one() -> None:
    assert line(story(title="停水通知", short_title="今晚城区停水"), source_tag="") == "今晚城区停水。"


def test_a_summary_follows_when_the_whole_stays_short() -> None:
    one = story(title="停水通知", summary="8 月 17 日城区停水。")
    assert line(one, source_tag="") == "停水通知：8月17日城区停水。"
    assert line(story(title="停水通知", summary="长" * 100, text="另有两段\n正文"), source_tag="") == "停水通知。"


def test_a_bare_label_is_completed_by_its_short_text() -> None:
    assert line(story(title="停水通知", text="8月17日停水。"), source_tag="") == "停水通知：8月17日停水。"


def test_a_bare_label_that_stays_alone_is_noted() -> None:
    assert findings(story(title="停水通知", text="长" * 100))["crawl_only_label"] == {"title": "停水通知"}
    assert findings(story(title="停水通知", text="长" * 100, short_title="今晚停水")) == {}


def test_another_mediums_headline_is_not_changed() -> None:
    one = story(title="持续优化环境 激发活力", kind=StoryKind.FORWARDED, source="上级媒体")
    assert line(one) == "【上级媒体】持续优化环境 激发活力。"


def test_the_editors_own_line_is_aired_as_written() -> None:
    one = story(own_text={"crawl": "图片新闻|今晚 停水，请储水！"})
    assert line(one, source_tag="【{source}】") == "图片新闻|今晚 停水，请储水！"


def test_a_picture_label_goes_and_the_reviewer_is_told() -> None:
    one = story(title="图片新闻|大厅周末不打烊")
    assert line(one, source_tag="") == "大厅周末不打烊。"
    assert findings(one)["crawl_label_dropped"] == {"label": "图片新闻"}


def test_words_that_point_at_a_picture_are_noted() -> None:
    assert findings(story(title="一图读懂新政策"))["crawl_points_away"] == {"words": "一图读懂"}


def test_a_question_gets_no_full_stop() -> None:
    one = story(title="优化营商环境，群众能得到哪些便利")
    assert line(one, source_tag="") == "优化营商环境，群众能得到哪些便利"
    assert "crawl_question_without_mark" in findings(one)


def test_a_lone_quote_is_named() -> None:
    assert findings(story(title="“一窗通办启动"))["crawl_orphan"] == {"characters": "“"}
    assert "crawl_orphan" not in findings(story(title="1）“一窗（通）办” don’t 《启动》"))


def test_an_empty_story_is_an_error() -> None:
    assert "crawl_empty" in findings(story(title=" \n", summary="", text="正文"))


def test_the_reading_time_follows_the_speed() -> None:
    one = story(title="八个字的标题哦哦", source="", unit_name="")
    assert crawl(end_mark="", characters_per_second=4).adapt(one).payload.seconds == 2
    assert crawl(end_mark="", characters_per_second=3).adapt(one).payload.seconds == 3


def test_the_storys_end_is_kept() -> None:
    assert crawl().adapt(story(expires_at=MORNING)).payload.expires_at == MORNING


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_line_at_the_limit_passes_and_one_beyond_is_an_error_with_both_numbers() -> None:
    fits, beyond = story(title="字" * 40), story(title="字" * 41)
    config = {"max_chars": 40, "source_tag": "", "end_mark": ""}
    assert findings(fits, **config) == {}
    assert findings(beyond, **config)["crawl_too_long"] == {"limit": 40, "length": 41}
    assert line(beyond, **config) == "字" * 41


def test_bytes_are_counted_in_the_charset() -> None:
    one = story(title="字" * 10)
    config = {"source_tag": "", "end_mark": "", "max_bytes": 20}
    assert findings(one, charset="gbk", **config) == {}
    assert findings(one, charset="utf-8", **config)["crawl_too_many_bytes"]["length"] == 30


# ── characters ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("charset", "written", "said"),
    [
        ("gbk", "优化•服务", "优化·服务"), ("gb2312", "优化•服务", "优化・服务"), ("gb2312", "优化·服务", "优化・服务"),
        ("gb2312", "环境——活力", "环境――活力"), ("gb2312", "面积9㎡", "面积9平方米"), ("gbk", "面积9m²", "面积9平方米"),
        ("gbk", "任务⑪", "任务（11）"), ("gbk", "⽤⼒", "用力"), ("gbk", "ﬁne环境", "fine环境"), ("gbk", "1–2", "1–2"),
        ("gb2312", "1–2", "1-2"), ("gb2312", "二〇二一年", "二○二一年"),
    ],
)  # fmt: skip
def test_a_character_outside_the_charset_is_written_otherwise_and_named(charset: str, written: str, said: str) -> None:
    config = {"charset": charset, "source_tag": "", "end_mark": ""}
    assert line(story(title=written), **config) == said
    assert ("crawl_character_replaced" in findings(story(title=written), **config)) == (written != said)


@pytest.mark.parametrize("charset", ["gb18030", "utf-8"])
def test_what_a_charset_has_is_left_alone(charset: str) -> None:
    one = story(title="优化•服务——9㎡，䶮𠅤⑪")
    assert line(one, charset=charset, source_tag="", end_mark="") == one.title
    assert findings(one, charset=charset) == {}


def test_a_character_without_a_replacement_is_an_error_with_its_code_point() -> None:
    facts = findings(story(title="镇长王䶮"), charset="gbk")["crawl_not_in_charset"]
    assert facts == {"characters": "䶮 (U+4DAE)", "charset": "GBK"}


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.parametrize("picture", ["😀", "👨‍👩‍👧", "🇨🇳", "👍🏽", "1️⃣", "❤️", "☎", "\ue000", "g̶"])
def test_what_no_machine_draws_is_an_error_in_every_charset(charset: str, picture: str) -> None:
    found = findings(story(title=f"开幕{picture}了"), charset=charset)
    assert found["crawl_no_glyph"]["characters"]
    assert "crawl_not_in_charset" not in found


def test_symbols_of_the_national_charsets_are_no_pictures() -> None:
    assert findings(story(title="国标符号有①→★℃‰※"), charset="gb2312") == {}


def test_an_invisible_character_goes_and_is_named() -> None:
    one = story(title="零\u200b宽")
    assert line(one, source_tag="") == "零宽。"
    assert findings(one)["crawl_character_removed"] == {"character": "U+200B ZERO WIDTH SPACE"}


def test_the_machines_separator_may_not_stand_in_a_line() -> None:
    assert findings(story(title="甲◆乙"), separator="◆")["crawl_separator_inside"] == {"separator": "◆"}


_PASTED = st.text(
    st.one_of(st.characters(), st.sampled_from(" \u3000\n\t|·•—“”《》（）12，。㎡䶮😀\u200b\u00a0云川区优化营商环境")),
    max_size=60,
)


@given(_PASTED, _PASTED, st.sampled_from(CHARSETS))
@settings(max_examples=150, deadline=None)
def test_a_line_without_error_is_one_clean_line_that_the_charset_gives_back(title: str, own: str, charset: str) -> None:
    channel = crawl(charset=charset)
    one = story(title=title, own_text={"crawl": own} if own.strip() else {})
    if errors(channel, one):
        return
    made = channel.adapt(one).payload.line
    assert made
    assert made.splitlines() == [made]
    assert made == made.strip()
    assert "  " not in made
    assert len(made) <= 120
    assert made.encode(charset).decode(charset) == made


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────
def test_urgent_items_come_first_and_then_the_newest() -> None:
    hour = timedelta(hours=1)
    items = [
        aired("旧", published_at=MORNING - 2 * hour),
        aired("新", published_at=MORNING),
        aired("急", published_at=MORNING - 3 * hour, importance=Importance.URGENT),
        aired("要", published_at=MORNING - hour, importance=Importance.KEY),
    ]
    assert crawl(charset="utf-8", eol="lf").playlist(items).decode() == "急\n新\n要\n旧\n"


@pytest.mark.parametrize(
    ("config", "data"),
    [
        ({"charset": "gbk"}, "甲\r\n乙\r\n".encode("gbk")),
        ({"charset": "gb18030", "eol": "lf"}, "甲\n乙\n".encode("gb18030")),
        ({"charset": "utf-8", "bom": True}, b"\xef\xbb\xbf" + "甲\r\n乙\r\n".encode()),
        ({"charset": "gbk", "separator": "　◆　"}, "甲　◆　乙\r\n".encode("gbk")),
    ],
)
def test_the_file_is_what_the_machine_reads(config: dict[str, Any], data: bytes) -> None:
    items = [aired("甲"), aired("乙", published_at=MORNING - timedelta(hours=1))]
    assert crawl(**config).playlist(items) == data


def test_an_empty_list_leaves_an_empty_file() -> None:
    assert crawl().playlist([]) == b""
    assert crawl(charset="utf-8", bom=True).playlist([]) == b"\xef\xbb\xbf"


@given(st.sampled_from(CHARSETS), st.lists(st.text(st.characters(), min_size=1, max_size=20), max_size=6))
@settings(max_examples=60, deadline=None)
def test_each_approved_line_can_be_read_back_from_the_file(charset: str, titles: list[str]) -> None:
    channel = crawl(charset=charset)
    stories = [story(title=title) for title in titles]
    made = [channel.adapt(one) for one in stories if not errors(channel, one)]
    items = [
        item(rendition, key=str(number), published_at=MORNING - timedelta(minutes=number))
        for number, rendition in enumerate(made)
    ]
    text = channel.playlist(items).decode(charset)
    assert text.split("\r\n")[:-1] == [rendition.payload.line for rendition in made]


async def test_the_receipt_says_that_the_file_was_written(tmp_path: Path) -> None:
    receipt = await crawl(tmp_path).show(shelf(aired("甲")))
    assert (receipt.level, receipt.at) == ("written", MORNING)
    assert receipt.evidence == {"file": "crawl.txt", "items": 1, "bytes": 4}


async def test_a_disk_that_refuses_pauses_the_outlet(tmp_path: Path) -> None:
    (tmp_path / "crawl.txt").mkdir()
    (tmp_path / "crawl.txt" / "in-the-way").touch()
    with pytest.raises(Misconfigured, match="disk_refused"):
        await crawl(tmp_path).show(shelf(aired("甲")))


def test_the_preview_shows_the_line_escaped_with_its_time() -> None:
    channel = crawl(charset="utf-8")
    page = channel.preview(channel.adapt(story(title="<b>粗</b> & 停水", expires_at=MORNING))).data.decode()
    assert "&lt;b&gt;粗&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "2021-08-16 08:00 下线" in page


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "wrong",
    [
        {"charset": "big5"}, {"bom": True}, {"separator": "\n"}, {"separator": "•"}, {"filename": "../x.txt"},
        {"filename": ".hidden"}, {"filename": "a/b.txt"}, {"max_chars": 0}, {"characters_per_second": 0},
        {"source_tag": "䶮{source}"}, {"lead_in": "零\u200b宽"}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CrawlConfig(**wrong)


def test_the_shelf_is_as_long_as_the_configured_list() -> None:
    assert crawl(max_items=12).traits.shelf == 12
