"""Stories and pictures as they come in: read as meant, cleaned in the open, or refused with the line to change."""

import io
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from distributor.channel import Importance, Severity, StoryKind
from distributor.errors import DistributorError, Refused
from distributor.intake import Draft, Limits, generate, load, read_markdown, reencode
from distributor.messages import assets_root, explain

STORIES = assets_root() / "demo" / "stories"
HEAD = "title: 标题\nunit: rmt\ncolumn: business-environment\n"


def story(body: str = "正文。", head: str = HEAD, more: str = "") -> bytes:
    return f"---\n{head}{more}---\n{body}\n".encode()


def read(body: str = "正文。", *, more: str = "", media: dict[str, bytes] | None = None) -> Draft:
    return read_markdown(story(body, more=more), name="a.md", media=media)


def refused(data: bytes, *, media: dict[str, bytes] | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        read_markdown(data, name="a.md", media=media)
    assert "{" not in explain(caught.value)
    return caught.value


def codes(draft: Draft) -> list[str]:
    assert {finding.severity for finding in draft.findings} <= {Severity.WARNING}
    return [finding.code for finding in draft.findings]


# ── the demo's stories ──────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("path", sorted(STORIES.glob("*.md")), ids=lambda path: path.stem)
def test_the_demos_stories_come_in_with_only_the_expected_warnings(path: Path) -> None:
    draft = load(path)
    assert codes(draft) == (["characters_removed"] if path.stem == "06-rare-characters" else [])
    assert draft.title
    assert draft.text


def test_every_key_of_the_front_matter_arrives() -> None:
    more = (
        "short_title: 短题\nsummary: 摘要\nimportance: urgent\nkind: notice\nbyline: 甲\nsource: 某局\n"
        "source_url: https://example.org/a\nexpires: 2021-08-19T06:00:00+08:00\nkeywords: [停水, 通知]\n"
        "corrects: 03-service-hall\ncorrection_note: 改一处\nown: {crawl: 字幕, led: 屏幕}\n"
    )
    draft = read(more=more)
    assert draft == Draft(
        story="03-service-hall", title="标题", html="<p>正文。</p>", text="正文。", unit="rmt",
        column="business-environment", short_title="短题", summary="摘要", byline="甲", source="某局",
        source_url="https://example.org/a", keywords=("停水", "通知"), kind=StoryKind.NOTICE,
        importance=Importance.URGENT, expires_at=datetime(2021, 8, 18, 22, tzinfo=UTC), corrects="03-service-hall",
        correction_note="改一处", own_text={"crawl": "字幕", "led": "屏幕"},
    )  # fmt: skip


def test_a_file_named_in_chinese_gives_an_id_that_can_stand_in_an_address() -> None:
    ids = {read_markdown(story(), name=name).story for name in ("停水通知.md", "停电通知.md")}
    assert len(ids) == 2
    assert all(one.isascii() for one in ids)


def test_scalars_are_the_words_that_stand_there() -> None:
    assert read(more="short_title: 2021\nbyline: yes\nkeywords: [12345, on]\nsummary: ~\n").keywords == ("12345", "on")
    assert read(more="short_title: 2021-08-16\n").short_title == "2021-08-16"


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("data", "code", "where"),
    [
        (b"", "front_matter_missing", "a.md:1"),
        ("没有稿件信息".encode(), "front_matter_missing", "a.md:1"),
        (b"---\ntitle: a\n", "front_matter_open", "a.md:1"),
        ("---\ntitle：标题\n---\nx".encode(), "front_matter_not_pairs", "a.md:2"),
        (story(head="unit: rmt\ncolumn: c\n"), "key_missing", "a.md:1"),
        (story(head="title: ''\nunit: rmt\ncolumn: c\n"), "key_missing", "a.md:2"),
        (story(more="titel: x\n"), "key_unknown_near", "a.md:5"),
        (story(more="zzzzzz: x\n"), "key_unknown", "a.md:5"),
        (story(more="title: x\n"), "key_twice", "a.md:5"),
        (story(more="kind: gossip\n"), "value_not_listed", "a.md:5"),
        (story(more="importance: [key]\n"), "value_wrong", "a.md:5"),
        (story(more="keywords: 停水\n"), "value_wrong", "a.md:5"),
        (story(more="own: 字幕\n"), "value_wrong", "a.md:5"),
        (story(more="own: {crawl: [a]}\n"), "value_wrong", "a.md:5"),
        (story(more="expires: 2021-08-19T06:00:00\n"), "value_wrong", "a.md:5"),
        (story(more="expires: 2021-08-19\n"), "value_wrong", "a.md:5"),
        (story(more="expires: 明天\n"), "value_wrong", "a.md:5"),
        (story(more="source_url: javascript:alert(1)\n"), "value_wrong", "a.md:5"),
        (story(more="corrects: 03-service-hall\n"), "correction_note_missing", "a.md:5"),
        (story(more="corrects: ../03\ncorrection_note: x\n"), "value_wrong", "a.md:5"),
        (story(more="byline: a: b\n"), "yaml_malformed", "a.md:5"),
        (story(more='byline: "\\U99999999"\n'), "yaml_malformed", "a.md"),
        (story(more="byline: &a x\nsource: *a\n"), "yaml_too_clever", "a.md:5"),
        (story(more="byline: !!python/object:os.system x\n"), "yaml_too_clever", "a.md:5"),
        (story(more="byline: " + "[" * 5000 + "\n"), "yaml_too_clever", "a.md:5"),
        (story(more=f"byline: {'x' * 70_000}\n"), "front_matter_too_big", "a.md:1"),
        (story(body=" \n\n<!-- 空 -->"), "story_body_empty", "a.md:6"),
        (b"---\ntitle: x\n" + "标题".encode("gbk"), "not_utf8", "a.md:3"),
        (b"x" * ((1 << 20) + 1), "story_too_big", "a.md"),
        (story(body="一\n\n![图](a.jpg)"), "picture_missing", "a.md:8"),
        (story(body="![图](https://example.org/a.jpg)"), "picture_elsewhere", "a.md:6"),
        (story(body="![图](data:image/png;base64,AA)"), "picture_inside_text", "a.md:6"),
        (story(body="![图](<http://[x/a.jpg>)"), "picture_elsewhere", "a.md:6"),
        (story(more="cover: a.jpg\n"), "picture_missing", "a.md:5"),
        (story(more="cover: generate 9x9\n"), "cover_size", "a.md:5"),
        (story(more="cover: generate 99999x99999\n"), "cover_size", "a.md:5"),
    ],
)
def test_a_mistake_is_refused_with_its_line(data: bytes, code: str, where: str) -> None:
    error = refused(data)
    assert (error.code, error.facts["where"]) == (code, where)


def test_several_mistakes_are_told_at_once() -> None:
    error = refused(story(head="titel: x\nunit: rmt\n"))
    mistakes = error.facts["mistakes"]
    assert isinstance(mistakes, tuple)
    told = {(each.code, each.facts["key"]) for each in mistakes if isinstance(each, DistributorError)}
    assert told == {("key_missing", "title"), ("key_missing", "column"), ("key_unknown_near", "titel")}


# ── the body ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_table_stays_a_table() -> None:
    draft = read("| 日期 | 单位 |\n|---|---|\n| 8月16日 | 区发改局 |")
    assert "<td>区发改局</td>" in draft.html
    assert draft.text == "日期  单位\n8月16日  区发改局"


@pytest.mark.parametrize(
    ("body", "gone", "what"),
    [
        ("甲<script>alert(1)</script>乙", "alert", "<script>"),
        ("<script>alert(1)</script>\n\n甲", "alert", "<script>"),
        ("甲<b onclick='x()'>乙</b>", "onclick", "onclick"),
        (
            "[甲](vbscript:x)<a href='javascript:alert(1)'>丙</a>",
            "href",
            "javascript:alert(1)",
        ),
        ("[甲](/relative)", "href", "/relative"),
        ("甲<iframe src='https://example.org'></iframe>", "iframe", "<iframe>"),
        ("<style>p{display:none}</style>\n\n甲", "display", "<style>"),
        ("甲<svg onload=alert(1)><text>乙</text></svg>", "svg", "<svg>"),
    ],
)
def test_what_can_act_is_taken_out_and_reported(body: str, gone: str, what: str) -> None:
    draft = read(body)
    assert gone not in draft.html + draft.text
    [finding] = draft.findings
    assert finding.code == "html_removed"
    assert what in str(finding.facts["what"])


def test_plain_links_stay() -> None:
    html = read("[甲](https://example.org/?a=1&b=2) [乙](mailto:a@example.org)").html
    assert '<a href="https://example.org/?a=1&amp;b=2">甲</a>' in html
    assert '<a href="mailto:a@example.org">乙</a>' in html


@pytest.mark.parametrize(
    ("char", "name"),
    [("\x00", "U+0000"), ("\x07", "U+0007"), ("\u202e", "U+202E"), ("\u2066", "U+2066"), ("\u200b", "U+200B")],
)
def test_what_nobody_can_see_is_taken_out_and_named(char: str, name: str) -> None:
    data = f"---\ntitle: 标{char}题\nunit: rmt\ncolumn: c\n---\n正{char}文\n".encode()
    draft = read_markdown(data, name="a.md")
    assert (draft.title, draft.html, draft.text) == ("标题", "<p>正文</p>", "正文")
    assert codes(draft) == ["characters_removed"]
    assert name in str(draft.findings[0].facts["what"])


def test_escapes_dont_bring_back_what_was_taken_out() -> None:
    draft = read("甲&#8203;&#x202e;乙", more='short_title: "短\\u200b题\\0"\n')
    assert (draft.short_title, draft.text) == ("短题", "甲乙")
    assert set(codes(draft)) == {"characters_removed"}


def test_a_pasted_line_break_in_a_title_is_a_space() -> None:
    data = "---\ntitle: 标题\x0b副题\nunit: rmt\ncolumn: c\n---\n正文\n".encode()
    assert read_markdown(data, name="a.md").title == "标题 副题"


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    plain = story("一\n\n二")
    assert read_markdown(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"), name="a.md") == read_markdown(
        plain, name="a.md"
    )


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_body_is_read_or_refused_and_nothing_active_survives(body: str) -> None:
    data = b"---\n" + HEAD.encode() + b"---\n" + body.encode("utf-8", "replace")
    try:
        draft = read_markdown(data, name="a.md")
    except Refused:
        return
    assert "<script" not in draft.html
    assert not {char for char in draft.text + draft.html if char < " " and char != "\n"}


FRONT = st.text(max_size=200).map(lambda text: b"---\n" + text.encode("utf-8", "replace") + b"\n---\nx")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | FRONT)
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    try:
        said = read_markdown(data, name="a.md").title
    except Refused as error:
        said = explain(error)
    assert said


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────
def picture(
    size: tuple[int, int] = (60, 40), *, mode: str = "RGB", kind: str = "PNG", exif: Image.Exif | None = None,
    icc_profile: bytes | None = None, seed: int = 1,
) -> bytes:  # fmt: skip
    """Noise, so that it has more than 256 colours and doesn't compress away."""
    noise = Image.effect_noise(size, 80).convert("L")
    made = Image.merge("RGB", [noise, noise.rotate(90 * seed), noise.rotate(180)]).convert(mode)
    out = io.BytesIO()
    made.save(out, kind, **({"exif": exif} if exif else {}), **({"icc_profile": icc_profile} if icc_profile else {}))
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_become_jpeg_with_their_size(kind: str) -> None:
    made = reencode(picture(kind=kind), name="照片 1.x", description="窗口")
    assert (made.media_type, made.width_px, made.height_px, made.description) == ("image/jpeg", 60, 40, "窗口")
    assert opened(made.data).format == "JPEG"
    assert made.name.isascii()
    assert made.name.endswith(".jpg")


def test_transparency_and_charts_stay_png() -> None:
    half = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(half, "PNG")
    chart = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(chart, "PNG")
    assert opened(reencode(half.getvalue(), name="a.png", description="").data).mode == "RGBA"
    assert reencode(chart.getvalue(), name="a.png", description="").media_type == "image/png"


def test_a_photo_is_upright_and_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010F] = "Secret Camera"
    made = reencode(picture(kind="JPEG", exif=exif), name="a.jpg", description="")
    assert (made.width_px, made.height_px) == (40, 60)
    assert b"Secret Camera" not in made.data
    assert not opened(made.data).getexif()


def test_a_colour_profile_is_applied_and_dropped() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = reencode(picture(kind="JPEG", icc_profile=profile), name="a.jpg", description="")
    assert "icc_profile" not in opened(made.data).info
    broken = reencode(picture(kind="JPEG", icc_profile=b"no profile"), name="a.jpg", description="")
    assert "icc_profile" not in opened(broken.data).info


def test_a_long_edge_is_scaled_to_the_limit() -> None:
    made = reencode(picture((400, 100)), name="a.png", description="", limits=Limits(long_edge_px=200))
    assert (made.width_px, made.height_px) == (200, 50)
    assert opened(made.data).size == (200, 50)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_is_read_without_losing_its_light(mode: str) -> None:
    grey = Image.new("L", (20, 20), 128)
    source = Image.new("I;16", (20, 20), 128 * 256) if mode == "I;16" else grey.convert(mode)
    out = io.BytesIO()
    source.save(out, "PNG")
    made = opened(reencode(out.getvalue(), name="a.png", description="").data).convert("L")
    value = made.getpixel((10, 10))
    assert value in ((0, 255) if mode == "1" else range(127, 130))


def test_a_cmyk_photo_becomes_rgb() -> None:
    assert opened(reencode(picture(mode="CMYK", kind="JPEG"), name="a.jpg", description="").data).mode == "RGB"


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00")
        + chunk(b"IDAT", b"x")
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "picture_format"),
        (b"hello", "picture_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "picture_format"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "picture_format"),
        (b"<!DOCTYPE html><html>", "picture_format"),
        (b"GIF89a" + b"\0" * 50, "picture_format"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "picture_format"),
        (b"\0" * ((20 << 20) + 1), "picture_too_big"),
        (header_only_png(8000, 6000), "picture_too_many_pixels"),
        (header_only_png(10_000, 10_000), "picture_too_many_pixels"),
        (header_only_png(60_000, 60_000), "picture_too_many_pixels"),
        (header_only_png(10, 10), "picture_damaged"),
        (picture(kind="JPEG")[:-200], "picture_damaged"),
        (picture(kind="PNG")[:-200], "picture_damaged"),
        (picture(kind="WEBP")[:-200], "picture_damaged"),
        (animated("PNG"), "picture_animated"),
        (animated("WEBP"), "picture_animated"),
    ],
)
def test_what_is_no_usable_picture_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Refused) as caught:
        reencode(data, name="a.jpg", description="")
    assert caught.value.code == code
    assert "{" not in explain(caught.value)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 4000), st.binary(min_size=1, max_size=6))
def test_a_damaged_picture_is_read_or_refused(kind: str, at: int, damage: bytes) -> None:
    whole = picture(kind=kind)
    at %= len(whole)
    try:
        made = reencode(whole[:at] + damage + whole[at + len(damage) :], name="a", description="")
    except Refused:
        return
    assert opened(made.data).size == (made.width_px, made.height_px)


def test_pictures_are_renamed_described_and_used_by_the_body() -> None:
    media = {"现场 照片.JPG": picture(kind="JPEG"), "b.png": picture(seed=2), "c.png": picture(seed=3)}
    draft = read("![大厅窗口](<现场 照片.JPG>)\n\n文", more="cover: b.png\n", media=media)
    first, cover, unused = draft.media
    assert f'<img src="{first.name}" alt="大厅窗口">' in draft.html
    assert (first.description, draft.cover, unused.name) == ("大厅窗口", cover.name, "c.jpg")
    assert codes(draft) == ["picture_unused"]
    assert [one.name.isascii() for one in draft.media] == [True] * 3


def test_two_pictures_never_share_a_name() -> None:
    media = {"a.png": picture(), "A.JPG": picture(kind="JPEG"), "a.webp": picture(kind="WEBP")}
    assert len({one.name for one in read("![](a.png)", media=media).media}) == 3


def test_a_story_of_pictures_alone_is_one() -> None:
    assert read("![大厅](a.png)", media={"a.png": picture()}).text == ""


def test_a_generated_cover_is_the_same_every_time_and_different_for_another_story() -> None:
    one = [generate(320, 180, seed="甲", name="c.png", description="d") for _ in range(2)]
    assert one[0] == one[1]
    assert one[0].data != generate(320, 180, seed="乙", name="c.png", description="d").data
    assert opened(one[0].data).size == (320, 180)


@pytest.mark.parametrize("size", [(64, 64), (64, 4096), (4096, 64), (333, 777)])
def test_a_cover_can_have_any_shape(size: tuple[int, int]) -> None:
    made = opened(generate(*size, seed="甲", name="c.png", description="").data)
    assert made.size == size
    assert len(made.convert("RGB").getcolors(1 << 24) or []) > 10


def test_the_generated_cover_belongs_to_the_story() -> None:
    draft = read(more="cover: generate 320x180\n")
    assert [one.name for one in draft.media] == [draft.cover] == ["cover.png"]


# ── files and folders ───────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_is_a_story_with_all_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "11-photos"
    folder.mkdir()
    (folder / "story.md").write_bytes(story("![甲](a.png)"))
    (folder / "a.png").write_bytes(picture())
    (folder / "b.png").write_bytes(picture(seed=2))
    (folder / "Thumbs.db").write_bytes(b"x")
    draft = load(folder)
    assert (draft.story, len(draft.media)) == ("11-photos", 2)


def test_a_single_file_takes_only_the_pictures_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(story("![甲](a.png)"))
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "other.png").write_bytes(b"not even a picture")
    assert len(load(tmp_path / "a.md").media) == 1


@pytest.mark.parametrize("name", ["nowhere.md", "."])
def test_a_story_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="story_file_missing"):
        load(tmp_path / name)


def test_too_big_a_picture_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "story.md").write_bytes(story("![甲](a.png)"))
    with (tmp_path / "a.png").open("wb") as out:
        out.truncate(50 << 20)
    with pytest.raises(Refused, match="picture_too_big"):
        load(tmp_path)


def test_too_many_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "story.md").write_bytes(story())
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    with pytest.raises(Refused, match="too_many_pictures"):
        load(tmp_path, limits=Limits(pictures=2))
