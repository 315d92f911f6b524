"""Text as people paste it and as outlets can show it: cleaning, plain text, charsets, line breaking. Pure.

Line breaking follows clreq's strict level (W3C, Requirements for Chinese Text Layout, 3.1.2) and GB/T 15834-2011
(5.1.1 to 5.1.10: where marks may stand at the ends of a line); the sets also hold ECMA-376's kinsoku characters for
Simplified Chinese. Nothing here cuts text: a character that goes in comes out, or `removed` names it.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import accumulate, pairwise

__all__ = [
    "balance_lines",
    "break_lines",
    "clean",
    "from_html",
    "graphemes",
    "name_of",
    "one_line",
    "removed",
    "unencodable",
]

# ── cleaning ────────────────────────────────────────────────────────────────────────────────────────────────
_EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff\U0001fc00-\U0001fffd"
)
_ZWJ, _TAG = "\u200d", "\U000e0020-\U000e007e"
_JOINED = re.compile(
    # the sequences in which a joiner, a variation selector or a tag is part of a picture; else each is litter
    f"\U0001f3f4[{_TAG}]+\U000e007f"
    "|[#*0-9]\ufe0f\u20e3"
    f"|[{_EMOJI}][\ufe0e\ufe0f]?(?:{_ZWJ}[{_EMOJI}][\ufe0e\ufe0f]?)*"
    "|(?P<litter>[\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff])"
)
_JOINER = re.compile("[\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff]")
_PICTURE = re.compile(f"[{_EMOJI}]")
_NEVER = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1 without TAB and what parts lines
    "\u00ad\u034f\u061c\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc"
    "\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")  # VT is how Word pastes a manual line break


def clean(text: str) -> str:
    """The text as every outlet may get it: NFC, lines parted by LF, and no character that can't be seen.

    Taken out: control characters, bidi controls, zero-width characters, soft hyphens, lone surrogates and
    non-characters; joiners, variation selectors and tags outside an emoji. TAB becomes a space, every other line
    end LF. Idempotent, never raises. `removed` names what is lost.
    """
    kept = _NEVER.sub("", _LINE_ENDS.sub("\n", text)).replace("\t", " ")
    return unicodedata.normalize("NFC", _JOINED.sub(lambda found: "" if found["litter"] else found[0], kept))


def removed(text: str) -> list[str]:
    """The distinct characters that `clean` takes out, in order, named as in "U+200B ZERO WIDTH SPACE"."""
    lost = dict.fromkeys(_NEVER.findall(text))
    rest = _NEVER.sub("", _LINE_ENDS.sub("\n", text))
    lost |= dict.fromkeys(found[0] for found in _JOINED.finditer(rest) if found["litter"])
    return [name_of(char) for char in sorted(lost, key=text.index)]


_CHINESE = (
    "\u2e80-\u2fff\u3001-\u30ff\u3105-\u312f\u3190-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffe6"
    "\U00020000-\U0003fffd"
)
_QUOTES = "“”‘’…—·"  # Chinese where they stand next to Chinese
_WHITE = re.compile(r"\s+")
_CHINESE_CHAR = re.compile(f"[{_CHINESE}{_QUOTES}]")


def _joint(found: re.Match[str]) -> str:
    """What stands for one run of white space: nothing where a line of Chinese was wrapped, else one space."""
    whole, start, end = found.string, found.start(), found.end()
    wrapped = "\n" in found[0] and start > 0 and end < len(whole)
    between = wrapped and _CHINESE_CHAR.match(whole[start - 1]) and _CHINESE_CHAR.match(whole[end])
    return "" if between else " "


def one_line(text: str) -> str:
    """Cleaned text on one line: a run of white space (NBSP and U+3000 too) is one space, none at the ends.

    Between two Chinese characters a run that holds a line end is dropped: Chinese is wrapped without spaces.
    """
    return _WHITE.sub(_joint, clean(text).strip())


# ── plain text of HTML ──────────────────────────────────────────────────────────────────────────────────────
_BLOCKS = frozenset(re.findall(
    r"\w+",
    "address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hr html li main nav ol p pre section summary table tbody tfoot thead tr ul",
))  # fmt: skip
_CELLS = frozenset({"td", "th"})
_NO_TEXT = frozenset({"script", "style"})
_HTML_BLANKS = " \t\n\r\f"
_HTML_SPACE = re.compile(f"[{_HTML_BLANKS}]+")


class _PlainText(HTMLParser):
    """Collects pieces of text; "\\n" between blocks, two spaces between the cells of a row."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[list[str]] = [[]]
        self.hidden = 0  # depth of elements whose content is no text
        self.preformatted = 0
        self.marked = False  # the line holds nothing but an item's number: a block inside the item goes on there
        self.lists: list[int | None] = []  # the next number of each open list; None for one without numbers

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _NO_TEXT:
            self.hidden += 1
        elif tag in _CELLS:
            self._part_cells()
        elif tag in _BLOCKS:
            self._new_line()
            self.preformatted += tag == "pre"
            if tag in {"ol", "ul"}:
                start = dict(attrs).get("start") or "1"
                self.lists.append((int(start) if start.isdecimal() and len(start) < 6 else 1) if tag == "ol" else None)
            elif tag == "li" and self.lists and (number := self.lists[-1]) is not None:
                self.lines[-1].append(f"{number}. ")
                self.marked = True
                self.lists[-1] = number + 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs  # <br/> and <img/> open nothing
        if tag in _BLOCKS:
            self._new_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in _NO_TEXT:
            self.hidden = max(0, self.hidden - 1)
        elif tag in _BLOCKS:
            self.marked = self.marked and tag != "li"
            self._new_line()
            if tag == "pre":
                self.preformatted = max(0, self.preformatted - 1)
            elif tag in {"ol", "ul"} and self.lists:
                self.lists.pop()

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        self.marked = self.marked and not data.strip(_HTML_BLANKS)
        if not self.preformatted:
            self.lines[-1].append(data)
            return
        first, *more = data.split("\n")
        self.lines[-1].append(first)
        for line in more:
            self._new_line()
            self.lines[-1].append(line)

    def _new_line(self) -> None:
        if self.lines[-1] and not self.marked:
            self.lines.append([])

    def _part_cells(self) -> None:
        if self.lines[-1]:
            self.lines[-1].append(_CELL_EDGE)

    def text(self) -> str:
        done = []
        for pieces in self.lines:
            cells = "".join(pieces).split(_CELL_EDGE)
            line = "  ".join(cell for cell in (_HTML_SPACE.sub(_joint, each).strip() for each in cells) if cell)
            if line:
                done.append(line)
        return "\n".join(done)


_CELL_EDGE = "\x00"  # can't be in the data: it is taken out before parsing


def from_html(html: str) -> str:
    """Plain text of cleaned HTML: blocks and table rows parted by one newline, cells by two spaces.

    Items of a numbered list keep their number; pictures give nothing (their description is not the text). No text
    character is lost; white space is joined as a browser joins it, and not at all where Chinese was wrapped.
    """
    parser = _PlainText()
    parser.feed(html.replace(_CELL_EDGE, ""))
    parser.close()
    return parser.text()


# ── characters by name, charsets ────────────────────────────────────────────────────────────────────────────
_UNNAMED = {"Cc": "CONTROL", "Cs": "SURROGATE", "Co": "PRIVATE USE", "Cn": "UNASSIGNED"}


def name_of(char: str) -> str:
    """A character as a person can find it: "𠅤 (U+20164)"; an invisible one as "U+200B ZERO WIDTH SPACE".

    A cluster of several code points shows all its codes.
    """
    codes = " ".join(f"U+{ord(each):04X}" for each in char)
    category = unicodedata.category(char[:1] or " ")
    if category[0] in "CZ" or _NEVER.match(char) or _JOINER.match(char):
        return " ".join(filter(None, (codes, unicodedata.name(char[:1] or " ", _UNNAMED.get(category, "")))))
    return f"{'◌' if category[0] == 'M' else ''}{char} ({codes})"


def unencodable(text: str, charset: str) -> list[str]:
    """The distinct characters, in order, that Python's codec ``charset`` refuses in strict mode.

    Raises:
        LookupError: there is no such codec.
    """
    try:
        text.encode(charset)
    except UnicodeEncodeError:
        return [char for char in dict.fromkeys(text) if not _encodes(char, charset)]
    return []


def _encodes(char: str, charset: str) -> bool:
    try:
        char.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


# ── line breaking ───────────────────────────────────────────────────────────────────────────────────────────
def graphemes(text: str) -> list[str]:
    """What a reader calls one character: a base with its marks, an emoji sequence, a flag, a Hangul syllable."""
    starts: list[int] = []
    before = ""  # the character before
    joined = False  # it was a joiner after a picture: what follows belongs to its cluster
    halved = False  # the last cluster is half a flag
    for place, char in enumerate(text):
        flag = "\U0001f1e6" <= char <= "\U0001f1ff"
        if not before or not (joined or (flag and halved) or (char >= "\u0300" and _extends(char, before))):
            starts.append(place)
            halved = flag
        else:
            halved = False
        joined = char == _ZWJ and _PICTURE.match(text, starts[-1]) is not None
        before = char
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


def _extends(char: str, before: str) -> bool:
    """Whether ``char`` can't stand apart from the character before it (a practical part of UAX #29)."""
    if char == _ZWJ or "\U0001f3fb" <= char <= "\U0001f3ff" or "\U000e0020" <= char <= "\U000e007f":
        return True
    if "\u1160" <= char <= "\u11ff":  # Hangul vowels and finals
        return "\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3"
    return unicodedata.category(char)[0] == "M" and not before.isspace()


_NO_START = frozenset(
    "!%),.:;>?]}¢¨°·ˇˉ―‖’”…‰′″›℃℉∶、。〃〉》」』】〕〗〞〟︰︱︳︶︺︾﹀﹂﹄﹐﹑﹒﹔﹕﹖﹗﹚﹜﹞！＂％＇），．／：；？］｀｜｝～￠"
    "｡｣､･–—~－‐‑⁓•‧／"
)
_NO_END = frozenset("$([{£¥‘“〈《「『【〔〖〝﹁﹃﹙﹛﹝＄（．／［｛￡￥｢︵︷︹︻︽︿") - {"．"}
_WORD = r"[^\W\u2460-\u24ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
_UNITS = (
    "个百分点|个工作日|工作日|平方公里|平方千米|平方米|立方米|公里|千米|厘米|毫米|公顷|公斤|千克|毫克|小时|分钟|周岁|周年|"
    "人次|户次|车次|班次|千瓦时|千瓦|兆瓦|摄氏度|元|角|美元|欧元|年|月|日|号|时|点|分|秒|天|周|岁|世纪|季度|个|名|人|位|户|家|件|项|"
    "条|款|章|节|次|届|期|批|份|页|张|幅|本|册|部|台|辆|架|艘|套|栋|幢|座|间|层|楼|室|所|处|场|只|头|匹|株|棵|亩|吨|斤|克|米|升|倍|成|折|度|"
    "级|类|种|组|队|班|代|路|线|站|口|门|道|片|块|段|版|篇|首|句|字|轮|枚|颗|支|把|根|双|对|盏|街|村|镇|乡|县|区|市|省|校|园|中|大"
)
_NUMBER = (
    r"第?[$¥€£￥＄￡]?[+\-−±＋]?\d+(?:[.,:/．，：]\d+|[\-–—~～－]\d+)*"
    rf"(?:[%‰°℃℉\u3380-\u33df％＋+]C?|[ \u00a0]?(?:[万亿千百十]+[余多]?)?(?:{_UNITS})|[ \u00a0]?[万亿千百]+"
    rf"|(?!{_WORD}|\d))"
)
_TOKEN = re.compile(
    r"(?P<url>(?:https?|ftps?)://[!-~]+|www\.[!-~]+)"
    r"|(?P<whole>——|……|⸺|[.．]{2,6})"
    rf"|(?P<number>{_NUMBER})"
    rf"|(?P<word>[#@]?{_WORD}+(?:[._'’@&+/\-‐‑]+{_WORD}+)*)",
)
_AFTER_IN_URL = frozenset("/?&=-.")
_GLUE = frozenset("\u00a0\u2007\u202f")  # spaces that forbid a break

# How bad a break before a grapheme is. A worse one is taken only where no better one is left on the line.
_FREE, _IN_ADDRESS, _IN_WORD, _AT_MARK, _IN_MARK = range(5)


def break_lines(text: str, width: float, measure: Callable[[str], float], *, indent: float = 0.0) -> list[str]:
    """``text`` in lines that are at most ``width`` wide, broken where a Chinese typesetter would.

    ``measure`` gives the width of a string in the same unit as ``width``; it should hardly differ from the sum over its
    characters. ``indent`` is kept free before the first line of each paragraph. A newline ends a line; empty lines are
    left out, and no line starts or ends with white space.

    Kept together where a line can hold it: a mark with what it may not leave, ``——`` and ``……``, a number with its
    sign, point and unit ("18 项", "-3℃", "22:00", "8月"), a Latin word. An address breaks after ``/ ? & = - .`` only
    when it is wider than a line. Marks go in first and out second: where the last mark doesn't fit, the character
    before it goes down with it. What is wider than a line is broken between graphemes as the last resort.

    Laws: the lines joined hold every character of ``text`` but white space, in order; no line is wider than ``width``
    unless it is a single grapheme. Time is about linear in the length of ``text``.
    """
    widths: dict[str, float] = {}
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if paragraph.strip():
            lines += _Paragraph(paragraph, measure, widths).lines(width, width - indent)
    return lines


def balance_lines(text: str, width: float, measure: Callable[[str], float], *, more: int = 0) -> list[str]:
    """Like `break_lines`, but for headlines: lines of like width that end with a phrase. Same laws.

    A line rather ends at a space or after a mark than inside a phrase, and never between the parts of a moment
    ("19日", "6时") where that can be helped. As many lines as `break_lines` needs, or up to ``more`` more of them where
    that saves a phrase. A paragraph longer than ``BALANCED_CHARS_MAX`` is broken as running text.
    """
    widths: dict[str, float] = {}
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if paragraph.strip():
            lines += _Paragraph(paragraph, measure, widths).balanced(width, more)
    return lines


BALANCED_CHARS_MAX = 120
# What an uneven line weighs, what an end inside a phrase, after a comma, and before the last character of a phrase.
_RAGGED, _AFTER_WORD, _AFTER_COMMA, _LONELY = 4.0, 1.0, 0.25, 0.5
_IN_MOMENT, _ONE_MORE = 4.0, 1.5  # an end inside a moment; a line more than needed
_MOMENT_PART = re.compile(r"\d[年月日号时点分]$")
_PHRASE_ENDS = frozenset("。！？|｜")
_COMMAS = frozenset("，、：；,;:——…”》）")


class _Paragraph:
    """One paragraph as graphemes, with the edges of each and how bad a break before each is."""

    def __init__(self, text: str, measure: Callable[[str], float], widths: dict[str, float]) -> None:
        self.parts = graphemes(text.strip())
        self.measure = measure
        for part in self.parts:
            if part not in widths:
                widths[part] = measure(part)
        self.edges = [0.0, *accumulate(widths[part] for part in self.parts)]
        self.costs = _costs("".join(part[0] for part in self.parts))

    def lines(self, width: float, first_width: float) -> Iterator[str]:
        ends = self._ends(width, first_width)
        return (self._line(start, end) for start, end in pairwise([0, *ends]))

    def balanced(self, width: float, more: int) -> Iterator[str]:
        ends = list(self._ends(width, width))
        if len(ends) > 1 and len(self.parts) <= BALANCED_CHARS_MAX:
            ends = self._even_ends(width, ends, more)
        return (self._line(start, end) for start, end in pairwise([0, *ends]))

    def _ends(self, width: float, first_width: float) -> Iterator[int]:
        """Where lines end that are filled one after the other; what starts a line may be white space."""
        start, count, room = 0, len(self.parts), first_width
        while start < count:
            first = self._over_spaces(start)
            reach = max(first + 1, bisect_right(self.edges, self.edges[first] + room * (1 + 1e-9), lo=first) - 1)
            while True:
                end = self._break_at(first, self._over_spaces(reach))
                if end <= self._over_spaces(first + 1) or self.measure(self._line(first, end)) <= room:
                    break
                reach = self._shrunk(first, end, room)
            yield end
            start, room = end, width

    def _even_ends(self, width: float, ends: list[int], more: int) -> list[int]:
        """The best ends of as many lines: a shortest path over all places where a line may end."""
        count = len(self.parts)
        places = sorted({*ends, *(at for at in range(1, count) if self.costs[at] == _FREE)})
        cuts = {at: self._cut(at) for at in places}
        best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        done: list[tuple[float, list[int]]] = []
        for number in range(len(ends) + more):
            reached: dict[int, tuple[float, list[int]]] = {}
            for start, (weight, path) in best.items():
                first = self._over_spaces(start)
                for end in places:
                    if end <= first:
                        continue
                    room = width - self._extent(first, end)
                    if room < 0 and end - first > 1:
                        break
                    total = weight + _RAGGED * (room / width) ** 2 + cuts[end]
                    if end not in reached or total < reached[end][0]:
                        reached[end] = (total, [*path, end])
            best = reached
            if count in best and number + 1 >= len(ends):
                weight, path = best[count]
                done.append((weight + _ONE_MORE * (number + 1 - len(ends)), path))
        fitting = [(weight, path) for weight, path in done if self._fits([0, *path], width)]
        return min(fitting)[1] if fitting else ends

    def _extent(self, start: int, end: int) -> float:
        """About how wide a line is, from the widths of its characters."""
        while end > start and self.parts[end - 1].isspace():
            end -= 1
        return self.edges[end] - self.edges[start]

    def _fits(self, ends: list[int], width: float) -> bool:
        return all(end - start == 1 or self.measure(self._line(start, end)) <= width for start, end in pairwise(ends))

    def _cut(self, end: int) -> float:
        """How much a line end at ``end`` cuts into a phrase."""
        if end == len(self.parts) or self.parts[end].isspace() or self.parts[end - 1].isspace():
            return 0.0
        last, following = self.parts[end - 1][0], self.parts[end][0]
        if last in _PHRASE_ENDS:
            return 0.0
        if last in _COMMAS:
            return _AFTER_COMMA
        if following.isdecimal() and _MOMENT_PART.search("".join(self.parts[max(0, end - 2) : end])):
            return _IN_MOMENT
        lonely = end + 1 < len(self.parts) and self.parts[end + 1][0] in _NO_START
        return _AFTER_WORD + (_LONELY if lonely else 0.0)

    def _line(self, start: int, end: int) -> str:
        return "".join(self.parts[start:end]).strip()

    def _over_spaces(self, place: int) -> int:
        """White space at the end of a line takes no room."""
        while place < len(self.parts) and self.parts[place].isspace():
            place += 1
        return place

    def _break_at(self, start: int, reach: int) -> int:
        """The last of the best places to end a line that starts at ``start`` and can hold up to ``reach``."""
        if reach >= len(self.parts):
            return reach
        best = reach
        for place in range(reach, start, -1):
            if self.costs[place] < self.costs[best]:
                best = place
            if self.costs[best] == _FREE:
                break
        return best

    def _shrunk(self, start: int, end: int, width: float) -> int:
        """How far a line really reaches, where the sum over its characters promised too much; always before ``end``."""
        fits, beyond = start + 1, end
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self.measure(self._line(start, middle)) <= width:
                fits = middle
            else:
                beyond = middle
        return fits


def _costs(bases: str) -> bytes:
    """For each grapheme's base: how bad a line break before it is."""
    costs = bytearray(len(bases))
    for found in _TOKEN.finditer(bases):
        start, end = found.span()
        kind = found.lastgroup
        inside = _IN_MARK if kind == "whole" else _IN_WORD
        for place in range(start + 1, end):
            costs[place] = inside
            joint = inside == _IN_WORD and bases[place - 1] in _AFTER_IN_URL and bases[place] not in _AFTER_IN_URL
            if joint and kind != "number":
                costs[place] = _IN_ADDRESS
        if kind == "whole":
            costs[start] = max(costs[start], _AT_MARK)
    before = after = 0
    while after < len(bases):
        # ``after`` is a base that is no space, ``before`` the last such one; what lies between are spaces
        if bases[after].isspace():
            after += 1
            continue
        if after and (bases[after] in _NO_START or bases[before] in _NO_END):
            worst = _AT_MARK
        elif _GLUE.intersection(bases[before + 1 : after]):
            worst = _IN_WORD
        else:
            worst = _FREE
        for place in range(before + 1, after + 1):
            costs[place] = max(costs[place], worst)
        before, after = after, after + 1
    return bytes(costs)
