"""A tiny installation on a disk, for tests of the command line: settings, a district of three outlets, one story."""

from dataclasses import dataclass
from pathlib import Path

DISTRICT = """
name = "示例区"

[[units]]
code = "rmt"
name = "区融媒体中心"
kind = "media_center"

[[units]]
code = "gxj"
name = "区工信局"
kind = "department"

[[columns]]
slug = "news"
name = "要闻"

[[people]]
id = "editor"
name = "编辑甲"
unit = "rmt"

[[people]]
id = "writer"
name = "通讯员甲"
unit = "gxj"

[[people]]
id = "first"
name = "初审员甲"
unit = "rmt"
stages = ["first"]

[[people]]
id = "second"
name = "复审员甲"
unit = "rmt"
stages = ["second"]

[[people]]
id = "final"
name = "终审员甲"
unit = "rmt"
stages = ["final"]

[[groups]]
id = "all"
title = "全部终端"
everything = true

[[outlets]]
id = "site"
unit = "rmt"
channel = "website"
title = "区融媒体中心网站"

[outlets.config]
base_url = "{site}"
site_name = "区融媒体中心网站"
site_domain = "www.example.org"
site_id_code = "0000000000"
sponsor = "示例区融媒体中心"

[[outlets]]
id = "feed"
unit = "rmt"
channel = "rss"
title = "区融媒体中心 RSS"

[outlets.config]
feed_url = "{public}/feed/rss.xml"
site_url = "{site}"
title = "区融媒体中心"
description = "示例"
id_authority = "example.org"

[[outlets]]
id = "tv"
unit = "gxj"
channel = "crawl"
title = "电视滚动字幕"
"""

BODY = "因管网检修，今晚八时至次日六时部分区域停水，请居民提前储水。"


@dataclass(frozen=True)
class Town:
    """Where it lies."""

    folder: Path
    address: str

    @property
    def config(self) -> Path:
        return self.folder / "distributor.toml"

    def story(self, name: str = "water", body: str = BODY, **front: str) -> Path:
        """Write a manuscript; returns its file."""
        given = {"title": "今晚八时起部分区域停水", "unit": "rmt", "column": "news", **front}
        head = "\n".join(f"{key}: {value}" for key, value in given.items())
        path = self.folder / f"{name}.md"
        path.write_text(f"---\n{head}\n---\n{body}\n", encoding="utf-8")
        return path


def build(folder: Path, port: int = 8080, more: str = "") -> Town:
    """Write the two files of an installation below ``folder``; ``more``: further lines of the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    address = f"http://127.0.0.1:{port}"
    (folder / "distributor.toml").write_text(
        f'district = "district.toml"\ndata_dir = "data"\nport = {port}\npublic_url = "{address}"\n{more}',
        encoding="utf-8",
    )
    (folder / "district.toml").write_text(DISTRICT, encoding="utf-8")
    return Town(folder, address)
