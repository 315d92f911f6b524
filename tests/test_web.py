"""What readers, screens and monitors reach: public files with their headers, and health."""

import asyncio
import sqlite3
from typing import Any

import pytest
from yarl import URL

from distributor.files import Folder
from distributor.web.public import make_app
from tests.conftest import House


@pytest.fixture
async def client(house: House, aiohttp_client: Any) -> Any:
    return await aiohttp_client(make_app(house.core()))


def put(house: House, name: str, data: bytes | str, outlet: str = "site") -> None:
    raw = data.encode() if isinstance(data, str) else data
    Folder(house.core().public / outlet).write(name, raw)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_file_is_served_with_a_strong_etag_and_again_only_when_it_changed(house: House, client: Any) -> None:
    put(house, "index.html", "<p>停水</p>")
    first = await client.get("/site/")
    etag = first.headers["ETag"]
    assert (first.status, await first.text()) == (200, "<p>停水</p>")
    assert etag.startswith('"')
    again = await client.get("/site/index.html", headers={"If-None-Match": etag})
    assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", etag)
    put(house, "index.html", "<p>供水</p>")
    changed = await client.get("/site/", headers={"If-None-Match": etag})
    assert changed.status == 200
    assert changed.headers["ETag"] != etag


async def test_a_reader_may_name_what_it_has_in_any_lawful_way(house: House, client: Any) -> None:
    put(house, "a.txt", "停水")
    etag = (await client.get("/site/a.txt")).headers["ETag"]
    for asked in ("*", f"W/{etag}", f'"other", {etag}'):
        assert (await client.get("/site/a.txt", headers={"If-None-Match": asked})).status == 304, asked
    assert (await client.get("/site/a.txt", headers={"If-None-Match": '"other"'})).status == 200


async def test_head_says_what_get_would_without_the_body(house: House, client: Any) -> None:
    put(house, "feed.xml", "<rss/>")
    get, head = await client.get("/site/feed.xml"), await client.head("/site/feed.xml")
    assert (head.status, await head.read()) == (200, b"")
    for name in ("ETag", "Content-Type", "Content-Length", "Cache-Control"):
        assert head.headers[name] == get.headers[name]


KINDS: list[tuple[str, bytes | str, str]] = [
    ("index.html", "<p>停水</p>", "text/html; charset=utf-8"),
    ("feed.xml", '<?xml version="1.0"?>\n<rss version="2.0"/>', "application/rss+xml; charset=utf-8"),
    ("sitemap.xml", "<urlset/>", "application/xml; charset=utf-8"),
    ("playlist.json", "{}", "application/json; charset=utf-8"),
    ("style.css", "p{}", "text/css; charset=utf-8"),
    ("page.png", b"\x89PNG", "image/png"),
    ("unknown.qqq", b"\x00", "application/octet-stream"),
]


async def test_each_kind_of_file_says_what_it_is(house: House, client: Any) -> None:
    for name, data, expected in KINDS:
        put(house, name, data)
        answer = await client.get(f"/site/{name}")
        assert (name, answer.headers["Content-Type"]) == (name, expected)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_plain_text_does_not_promise_a_charset_that_it_may_not_have(house: House, client: Any) -> None:
    put(house, "crawl.txt", "停水".encode("gb18030"))
    answer = await client.get("/site/crawl.txt")
    assert answer.headers["Content-Type"] == "text/plain"
    assert await answer.read() == "停水".encode("gb18030")


async def test_pages_can_run_nothing_and_load_nothing_foreign(house: House, client: Any) -> None:
    put(house, "index.html", "<script>alert(1)</script>")
    policy = (await client.get("/site/")).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


async def test_what_a_name_pins_may_be_kept_and_nothing_else(house: House, client: Any) -> None:
    put(house, "style.0123456789abcdef.css", "p{}")
    put(house, "style.css", "p{}")
    assert "immutable" in (await client.get("/site/style.0123456789abcdef.css")).headers["Cache-Control"]
    assert (await client.get("/site/style.css")).headers["Cache-Control"] == "no-cache"


async def test_where_a_story_was_withdrawn_stands_its_notice(house: House, client: Any) -> None:
    put(house, "news/1.html.gone", "<p>本稿已撤下</p>")
    answer = await client.get("/site/news/1.html")
    assert (answer.status, await answer.text()) == (410, "<p>本稿已撤下</p>")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Content-Security-Policy" in answer.headers
    assert (await client.get("/site/news/1.html.gone")).status == 404


async def test_a_story_that_is_back_hides_its_notice(house: House, client: Any) -> None:
    put(house, "news/1.html.gone", "<p>本稿已撤下</p>")
    put(house, "news/1.html", "<p>停水</p>")
    assert (await client.get("/site/news/1.html")).status == 200


ESCAPES = [
    "/site/../distributor.db", "/site/%2e%2e/distributor.db", "/site/..%2fdistributor.db", "/site/%2e%2e%2f%2e%2e%2fx",
    "/site/a/../../../distributor.db", "/site/..%5cdistributor.db", "/site/%00", "/site/a%00.html", "/site/.hidden",
    "/site/.tmp-0123", "/site/a/.hidden/b", "/site//etc/passwd", "/site/%2fetc%2fpasswd", "/site/%ff%fe",
    "/site/" + "a" * 3000, "/site/" + "a/" * 900, "/site/./index.html/x", "/site/index.html/",
]  # fmt: skip


async def test_no_name_leads_out_of_the_outlets_folder(house: House, client: Any) -> None:
    put(house, "index.html", "<p>停水</p>")
    (house.core().public / "site" / ".hidden").write_text("secret")
    (house.core().public / "site" / ".tmp-0123").write_text("half")
    for path in ESCAPES:
        answer = await client.get(URL(path, encoded=True))
        assert answer.status == 404, path


async def test_what_is_not_there_is_404(house: House, client: Any) -> None:
    put(house, "index.html", "<p>停水</p>", outlet="nobody")  # a folder alone makes no outlet
    for path in ("/nobody/", "/nobody/index.html", "/Site/", "/site/absent.html", "/site2/x", "/etc"):
        assert (await client.get(path)).status == 404, path


async def test_an_outlets_address_without_a_slash_leads_to_its_folder(client: Any) -> None:
    answer = await client.get("/site", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (301, "/site/")


async def test_the_front_leads_to_the_districts_site(client: Any) -> None:
    answer = await client.get("/", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "http://site.example/")


async def test_files_are_only_read(house: House, client: Any) -> None:
    put(house, "index.html", "<p>停水</p>")
    for method in ("post", "put", "delete"):
        assert (await getattr(client, method)("/site/index.html")).status == 405


# ── health ──────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_process_that_answers_is_alive(client: Any) -> None:
    answer = await client.get("/healthz")
    assert (answer.status, await answer.json()) == (200, {"ok": True})


async def test_it_is_ready_while_its_dispatcher_runs_and_not_once_that_died(house: House, aiohttp_client: Any) -> None:
    dies = asyncio.Event()
    worker = asyncio.create_task(dies.wait())
    client = await aiohttp_client(make_app(house.core(), worker=worker))  # type: ignore[arg-type]
    assert (await client.get("/readyz")).status == 200
    dies.set()
    await worker
    answer = await client.get("/readyz")
    assert (answer.status, (await answer.json())["ready"]) == (503, False)


async def test_it_is_not_ready_while_its_database_cannot_be_read(house: House, client: Any) -> None:
    assert (await client.get("/readyz")).status == 200
    connection = sqlite3.connect(house.store.database.path)
    connection.execute("ALTER TABLE unit RENAME TO unit_away")
    connection.commit()
    connection.close()
    answer = await client.get("/readyz")
    assert answer.status == 503
    assert (await client.get("/healthz")).status == 200
