"""The laws of text: nothing is lost, nothing invisible stays, lines break where a Chinese typesetter would."""

import html as html_module
import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributor.text import (
    balance_lines,
    break_lines,
    clean,
    from_html,
    graphemes,
    name_of,
    one_line,
    removed,
    unencodable,
)

MARKS = "，。、；：？！）》”’…—·%℃（《“‘$-/.&=?"
PIECES = st.one_of(
    st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=8),
    st.text(alphabet="中文字国" + MARKS + "ab19 \u3000\n", max_size=12),
    st.sampled_from(["——", "……", "18 项", "22:00", "8月18日", "https://example.org/a/b?c=d&e=f", "environment"]),
    st.sampled_from(["👨‍👩‍👧‍👦", "🇨🇳", "é", "Z̸̢̛", "𫖯", "\u200b", "\ud83d", "\x00", "❤️", "\u00a0"]),
)
MODEST = settings(max_examples=60, deadline=None)
NASTY = st.lists(PIECES, max_size=12).map("".join)


def cells(text: str) -> float:
    """Half a cell for narrow characters, one for wide ones."""
    return sum(1.0 if unicodedata.east_asian_width(char) in "WFA" else 0.5 for char in text)


def dense(text: str) -> str:
    """Every character but white space."""
    return "".join(char for char in text if not char.isspace())


# ── cleaning ────────────────────────────────────────────────────────────────────────────────────────────────
@MODEST
@given(NASTY)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@MODEST
@given(NASTY)
def test_cleaned_text_can_be_written_everywhere(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert not [char for char in cleaned if unicodedata.category(char) == "Cc" and char != "\n"]
    assert not set(cleaned) & set(
        "\u200b\u200e\u200f\u202a\u202e\u2066\u2069\u061c\ufeff\u2060\u00ad\ufffe\uffff\ufdd0"
    )


@MODEST
@given(NASTY)
def test_what_cleaning_takes_out_is_named(text: str) -> None:
    cleaned = clean(text)
    whitespace = "\t\r\n\x0b\x0c\x85\u2028\u2029 "
    kept = Counter(unicodedata.normalize("NFD", cleaned))
    gone = {char for char, count in Counter(unicodedata.normalize("NFD", text)).items() if count > kept[char]}
    named = " ".join(removed(text))
    assert all(f"U+{ord(char):04X}" in named for char in gone if char not in whitespace)
    assert removed(cleaned) == []


@pytest.mark.parametrize(
    ("pasted", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("一\t二", "一 二"),
        ("行\x0b行", "行\n行"),  # Word's manual line break
        ("零\u200b宽\ufeff", "零宽"),
        ("e\u0301", "é"),
        ("家👨\u200d👩\u200d👧", "家👨\u200d👩\u200d👧"),
        ("汉\u200d字\ufe0f", "汉字"),
        ("1\ufe0f\u20e3 ❤\ufe0f", "1\ufe0f\u20e3 ❤\ufe0f"),
        ("\u202e倒\u202c", "倒"),
    ],
)
def test_cleaning_keeps_what_is_seen(pasted: str, expected: str) -> None:
    assert clean(pasted) == expected


def test_removed_characters_are_named_once_in_order() -> None:
    assert removed("a\u200bb\x00c\u200b") == ["U+200B ZERO WIDTH SPACE", "U+0000 CONTROL"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 一\u3000二\u00a0 三 ", "一 二 三"),
        ("政务\n服务", "政务服务"),
        ("政务，\n  服务", "政务，服务"),
        ("use\nLED", "use LED"),
        ("用\nLED", "用 LED"),
        ("\n", ""),
    ],
)
def test_one_line_joins_as_chinese_is_wrapped(text: str, expected: str) -> None:
    assert one_line(text) == expected


# ── plain text of HTML ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>一</p><p>二<br>三</p>", "一\n二\n三"),
        ("<p>政务\n服务</p>", "政务服务"),
        ("<table><tr><th>日期</th><th>单位</th></tr><tr><td>8月</td><td>A</td></tr></table>", "日期  单位\n8月  A"),
        ("<ol><li><p>甲</p></li><li>乙</li></ol>", "1. 甲\n2. 乙"),
        ("<ul><li>甲</li><li>乙</li></ul>", "甲\n乙"),
        ('<p>图<img src="a.png" alt="说明">文</p>', "图文"),
        ("<p>a &lt;b&gt; &amp; c</p>", "a <b> & c"),
        ("<pre>a\n  b</pre>", "a\nb"),
        ("", ""),
    ],
)
def test_html_becomes_lines(html: str, expected: str) -> None:
    assert from_html(html) == expected


@MODEST
@given(st.lists(NASTY.map(lambda text: text.replace("\x00", "")), max_size=4))
def test_html_loses_no_character_of_text(paragraphs: list[str]) -> None:
    page = "".join(f"<p>{html_module.escape(text)} <b>{html_module.escape(text)}</b></p>" for text in paragraphs)
    assert dense(from_html(page)) == dense("".join(text + text for text in paragraphs))


# ── characters ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("char", "name"),
    [
        ("𠅤", "𠅤 (U+20164)"),
        ("😀", "😀 (U+1F600)"),
        ("\u0301", "◌\u0301 (U+0301)"),
        ("\u200b", "U+200B ZERO WIDTH SPACE"),
        ("\ud800", "U+D800 SURROGATE"),
        ("\ue000", "U+E000 PRIVATE USE"),
    ],
)
def test_characters_are_named_so_that_a_person_finds_them(char: str, name: str) -> None:
    assert name_of(char) == name


def test_unencodable_names_each_refused_character_once() -> None:
    assert unencodable("㎡€·€䶮—", "gbk") == ["€", "䶮"]
    assert unencodable("㎡·—汉", "gb2312") == ["㎡", "·", "—"]
    assert unencodable("汉字", "gbk") == []


@MODEST
@given(NASTY)
def test_graphemes_are_the_text(text: str) -> None:
    assert "".join(graphemes(text)) == text


@pytest.mark.parametrize("cluster", ["👨‍👩‍👧‍👦", "🇨🇳", "👍🏽", "1️⃣", "e\u0301\u0302", "한", "🏳️‍🌈", "ก็"])
def test_a_grapheme_is_what_a_reader_counts(cluster: str) -> None:
    assert graphemes(f"中{cluster}中") == ["中", cluster, "中"]


# ── line breaking ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("breaker", [break_lines, balance_lines])
@MODEST
@given(text=NASTY, width=st.integers(1, 14))
def test_breaking_keeps_every_character_in_order(breaker, text: str, width: int) -> None:
    lines = breaker(text, width, cells)
    assert dense("".join(lines)) == dense(text)
    assert all(line == line.strip() != "" for line in lines)


@pytest.mark.parametrize("breaker", [break_lines, balance_lines])
@MODEST
@given(text=NASTY, width=st.integers(1, 14))
def test_no_line_is_wider_than_it_may_be(breaker, text: str, width: int) -> None:
    assert all(cells(line) <= width or len(graphemes(line)) == 1 for line in breaker(text, width, cells))


@MODEST
@given(text=NASTY, width=st.integers(1, 30))
def test_width_holds_for_a_measure_that_does_not_add_up(text: str, width: int) -> None:
    def kerned(line: str) -> float:
        return len(line) * 1.5 + len(line) ** 2 / 50

    assert all(kerned(line) <= width or len(graphemes(line)) == 1 for line in break_lines(text, width, kerned))


@MODEST
@given(text=st.text(alphabet="中文字，。、；：？！）》”（《“", max_size=60).filter(lambda text: "，，" not in text))
def test_marks_stand_where_the_standard_lets_them(text: str) -> None:
    """On lines that hold every run of marks with its character: none starts or ends with what may not stand there."""
    lines = break_lines(text, 40, cells)
    assert not [line for line in lines[1:] if line[0] in "，。、；：？！）》”"]
    assert not [line for line in lines[:-1] if line[-1] in "（《“"]


@MODEST
@given(text=st.text(alphabet="中文国字人。，", min_size=1, max_size=80), width=st.integers(4, 12))
def test_a_balanced_headline_needs_no_more_lines(text: str, width: int) -> None:
    assert len(balance_lines(text, width, cells)) == len(break_lines(text, width, cells))


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("因供水管网改造，8月18日22:00至8月19日6:00停水", 10, "因供水管网改造，8月|18日22:00至8月19日|6:00停水"),
        ("深化“放管服”改革", 4, "深化“放|管服”改|革"),
        ("申请材料由14份精简到5份", 6, "申请材料由|14份精简到|5份"),
        ("压缩至 3 个工作日以内", 7, "压缩至|3 个工作日以内"),
        ("气温为-3℃~12℃，面积1,200㎡", 5, "气温为|-3℃~|12℃，面积|1,200㎡"),
        ("前后——破折号……完", 4, "前后——|破折|号……完"),
        ("中business environment中", 6, "中business|environment|中"),
        ("一二三四。", 4, "一二三|四。"),
        ("https://example.org/a/long/path?with=query", 10, "https://example.org/|a/long/path?with=|query"),
        ("abcdefghijkl", 3, "abcdef|ghijkl"),
        ("。。。。。。", 2, "。。|。。|。。"),
        ("一\n\n二", 9, "一|二"),
    ],
)
def test_lines_break_as_a_typesetter_would(text: str, width: float, lines: str) -> None:
    assert "|".join(break_lines(text, width, cells)) == lines


def test_the_first_line_of_each_paragraph_leaves_the_indent_free() -> None:
    assert break_lines("一二三四五六\n七八九十", 4, cells, indent=2) == ["一二", "三四五六", "七八", "九十"]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("8月18日22时至19日6时 城区部分路段停水", 10, "8月18日22时至19日6时|城区部分路段停水"),
        ("8月18日22时至19日6时 城区部分路段停水", 8, "8月18日22时|至19日6时|城区部分路段停水"),
        (
            "因道路施工，6路、8路公交8月20日起绕行，恢复时间另行通知",
            8,
            "因道路施工，|6路、8路公交|8月20日起绕行，|恢复时间另行通知",
        ),
        ("一图读懂：优化营商环境，企业和群众能得到哪些便利", 13, "一图读懂：优化营商环境，|企业和群众能得到哪些便利"),
    ],
)
def test_headlines_end_lines_with_phrases(text: str, width: float, lines: str) -> None:
    assert "|".join(balance_lines(text, width, cells)) == lines


@pytest.mark.parametrize("unit", ["云川区，", "。", "（", "a-", "1,", "中 ", "e\u0301", "👨‍", "a/", "\u200b", "8月"])
def test_time_grows_with_length_not_with_its_square(unit: str) -> None:
    """Eight times the text may take some three times eight as long, measured alternately, best of three."""

    def seconds(count: int) -> float:
        text = unit * (count // len(unit))
        before = time.perf_counter()
        break_lines(text, 20, lambda line: float(len(line)))
        clean(text)
        return time.perf_counter() - before

    pairs = [(seconds(4_000), seconds(32_000)) for _ in range(3)]
    assert min(long for _, long in pairs) < 24 * min(short for short, _ in pairs) + 0.05
