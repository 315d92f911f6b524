"""The demo's pages in a real browser: what its parser and style engine make of them is what a reader sees."""

import shutil
import subprocess
from pathlib import Path

import pytest
from lxml import html
from PIL import Image

from tests.e2e.conftest import Demo

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.peers,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is missing: `apt-get install chromium`, or `make peers`"),
]


def browse(url: str, profile: Path, *wanted: str) -> bytes:
    """What Chromium prints for ``url``; it talks to nobody else."""
    quiet = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    )  # fmt: skip
    run = subprocess.run(
        [CHROMIUM, *quiet, f"--user-data-dir={profile}", *wanted, url], capture_output=True, timeout=120, check=True
    )
    return run.stdout


@pytest.mark.parametrize(
    ("path", "title", "says", "hides"),
    [
        ("", "云川区融媒体中心网站", ["演示数据", "云川区启动优化营商环境专项整治行动"], ["公交线路"]),
        (
            "business-environment/20210816/03-service-hall.html",
            "企业开办“一窗通办” 审批时限压缩至1个工作日_优化营商环境 赋能高质量_云川区融媒体中心网站",
            ["更正时间：2021-08-17 09:30", "14 份精简到 6 份，", "演示数据"],
            ["14 份精简到 5 份，"],
        ),
        (
            "business-environment/20210816/05-bus-screen.html",
            "该稿件已撤回_云川区融媒体中心网站",
            ["该稿件已撤回", "演示数据"],
            ["公交", "绕行"],
        ),
    ],
    ids=["home", "corrected", "withdrawn"],
)
def test_a_browser_shows_the_page(
    demo: Demo, tmp_path: Path, path: str, title: str, says: list[str], hides: list[str]
) -> None:
    dom = browse(f"{demo.base}/site/{path}", tmp_path, "--dump-dom").decode("utf-8")
    page = html.document_fromstring(dom)
    text = page.text_content()
    assert page.findtext(".//title") == title
    assert [words for words in says if words not in text] == []
    assert [words for words in hides if words in text] == []


def test_the_style_sheet_is_allowed_and_reaches_the_page(demo: Demo, tmp_path: Path) -> None:
    picture = tmp_path / "home.png"
    browse(f"{demo.base}/site/", tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,900")
    with Image.open(picture) as taken:
        colours = taken.convert("RGB").getcolors(1 << 24) or []
    # The bar with the columns is a block of one blue; without the style sheet nothing but the letters of links is.
    assert [each for each in colours if each[0] > 20_000 and each[1][2] - each[1][0] > 60], "no style reached the page"
