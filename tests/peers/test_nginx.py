"""docs/deploy/nginx on a real nginx: over the same files it answers as the application does, or the table says how not.

The application is the demo, serving its week; nginx serves the folder that the demo wrote.
"""

import re
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from distributor.files import Folder
from distributor.settings import Settings
from tests.e2e.conftest import Answer, Running, fetch
from tests.peers.nginx import SITES, Nginx, free_port, running

pytestmark = pytest.mark.peers

ARTICLE = "/site/business-environment/20210816/01-lead-story.html"
WITHDRAWN = "/site/business-environment/20210816/05-bus-screen.html"
UPSTREAM = "server 127.0.0.1:8080;"
ROOT = "root /srv/distributor/public;"


# ── the same files, twice ───────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Sides:
    """The application and nginx over one tree."""

    application: str
    nginx: Nginx
    public: Path

    def both(self, path: str, method: str = "GET", **headers: str) -> tuple[Answer, Answer]:
        return (
            fetch(self.application + path, method, **headers),
            fetch(self.nginx.base + path, method, **headers),
        )


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    demo = Running(tmp_path_factory.mktemp("demo"))
    try:
        demo.wait_until_serving()
        public = demo.build / "data" / "public"
        _put_odd_files(public / "site")
        base = str(demo.summary["public_url"])
        changes = {UPSTREAM: f"server {base.removeprefix('http://')};", ROOT: f"root {public};"}
        with running(tmp_path_factory.mktemp("nginx"), "distributor.conf", changes) as nginx:
            yield Sides(base, nginx, public)
    finally:
        demo.stop()


def _put_odd_files(site: Path) -> None:
    """What the demo doesn't write, but a channel may."""
    folder = Folder(site)
    folder.write("ticker.txt", "今晚停水".encode("gb18030"))
    folder.write("unknown.qqq", b"\x00\x01")
    folder.write("photo.jpg", b"\xff\xd8\xff")
    folder.write("photo.webp", b"RIFF")
    folder.write("photo-12ab.png", b"\x89PNG")  # too short for a hash
    folder.write("名录.html", "<p>名录</p>".encode())
    folder.write("a b+c&d.html", b"<p>a</p>")
    folder.write("both.html", "<p>在</p>".encode())
    folder.write("both.html.gone", "<p>曾撤回</p>".encode())  # it went up again: the page wins
    folder.write("folder.html/page.html", b"<p>b</p>")
    folder.write("styles.0123456789abcdef.css", b"p{}")
    folder.write("only/index.html.gone", "<p>栏目已撤</p>".encode())
    (site / ".hidden").write_bytes(b"secret")
    (site / ".tmp-0123456789abcdef").write_bytes(b"half")
    (site / ".well").mkdir()
    (site / ".well" / "known.html").write_bytes(b"secret")


TOLD = ("content-type", "content-length", "cache-control", "content-security-policy", "x-content-type-options",
        "referrer-policy")  # fmt: skip


def said(answer: Answer) -> dict[str, object]:
    """What must be equal. Validators are compared by what they do: each server makes its own."""
    if answer.status in (200, 410):
        told: dict[str, object] = {name: answer.headers.get(name) for name in TOLD}
        return {**told, "status": answer.status, "strong etag": answer.headers.get("etag", "")[:1], "body": answer.body}
    return {"status": answer.status, "location": answer.headers.get("location")}  # each refuses in its own words


def test_every_file_of_the_tree_is_answered_alike(sides: Sides) -> None:
    names = [f"/{path}" for path in Folder(sides.public).names() if path.isascii() and " " not in path]
    kinds = Counter(Path(name).suffix for name in names)
    assert {".html", ".xml", ".json", ".png", ".css", ".txt", ".gone"} <= set(kinds)
    for name in names:
        application, nginx = (said(each) for each in sides.both(name))
        assert nginx == application, name


PATHS = [
    "/site/", "/site/business-environment/", "/site_rss/rss.xml", "/plaza/playlist.json", "/tv_crawl/",
    # addresses as browsers write them
    "/site/%E5%90%8D%E5%BD%95.html", "/site/a%20b+c&d.html", "/site/index%2Ehtml", "/site/?a=1",
    "/site/index.html?x=/../",
    # withdrawn
    WITHDRAWN, f"{WITHDRAWN}?from=feed", "/site/only/", "/site/only/index.html", "/site/both.html",
    # not there
    "/site/absent.html", "/site/folder.html", "/site/business-environment", "/site/index.html/", "/site/index.html/x",
    f"{WITHDRAWN}.gone", "/site/both.html.gone", f"{WITHDRAWN}.gone.gone", "/nobody/", "/nobody/index.html",
    "/SITE/index.html", "/Site/", "/9site/index.html", "/site-x/index.html", "/a" + "b" * 32 + "/index.html",
    # hidden
    "/site/.hidden", "/site/.tmp-0123456789abcdef", "/site/.well/known.html", "/site/%2ehidden", "/.git/config",
    # ways out
    "/distributor.db", "/inbound.key", "/data/inbound.key", "/site/../inbound.key", "/site/%2e%2e/inbound.key",
    "/site/..%2finbound.key", "/site/..%5c..%5cinbound.key",
    "/site/%252e%252e/inbound.key", "/site//etc/passwd", "/site/%2fetc/passwd", "/site/%2Fetc%2Fpasswd",
    "//etc/passwd", "/site//index.html",
    "/site/" + "a" * 300, "/site/" + "a" * 4000, "/site/" + "a/" * 2000, "/site/%ff%fe", "/site/a\\b",
    # leads
    "/", "/site", "/plaza", "/a", "/healthz", "/readyz",
    # what only the application has, it refuses with the right secret or the wrong one while it is read-only
    "/in/site/0000", "/in",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:60])
def test_each_address_is_answered_alike(sides: Sides, path: str) -> None:
    application, nginx = sides.both(path)
    assert said(nginx) == said(application)
    for outside in (str(sides.public), "secret", "root:", "nginx/"):
        assert outside.encode() not in nginx.body


@pytest.mark.parametrize("path", ["/site/", ARTICLE, WITHDRAWN, "/site_rss/rss.xml", "/site/absent.html"])
def test_head_is_get_without_the_body(sides: Sides, path: str) -> None:
    for get, head in zip(sides.both(path), sides.both(path, "HEAD"), strict=True):
        assert head.body == b""
        assert {**said(get), "body": b""} == {**said(head), "body": b""}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/site/", ARTICLE, "/site/absent.html"])
def test_files_are_only_read(sides: Sides, method: str, path: str) -> None:
    assert [each.status for each in sides.both(path, method)] == [405, 405]


@pytest.mark.parametrize("path", ["/site/", ARTICLE, "/site_rss/rss.xml", "/site/styles.0123456789abcdef.css"])
def test_what_a_reader_has_is_not_sent_again(sides: Sides, path: str) -> None:
    for base in (sides.application, sides.nginx.base):
        first = fetch(base + path)
        etag = first.headers["etag"]
        for has in (etag, "*", f"W/{etag}", f'"other", {etag}'):
            again = fetch(base + path, If_None_Match=has)
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag), (base, has)
            assert again.headers["cache-control"] == first.headers["cache-control"]
        assert fetch(base + path, If_None_Match='"other"').status == 200


def test_what_is_gone_is_gone_for_those_who_have_it_too(sides: Sides) -> None:
    for each in sides.both(WITHDRAWN, If_None_Match="*", If_Modified_Since="Fri, 01 Jan 2100 00:00:00 GMT"):
        assert each.status == 410
        assert {"etag", "last-modified"} & set(each.headers) == set()


def test_a_rewritten_file_of_the_same_size_is_never_taken_for_the_old_one(sides: Sides) -> None:
    """nginx's ETag is made of whole seconds and the size: the files' times have to tell versions apart."""
    folder = Folder(sides.public / "site")
    etags = set()
    for version in range(10):
        folder.write("list.json", f'{{"version": {version}}}'.encode())
        answer = fetch(f"{sides.nginx.base}/site/list.json", If_None_Match=", ".join(etags) or '"none"')
        assert answer.status == 200
        etags.add(answer.headers["etag"])
    assert len(etags) == 10


# ── where they differ, and operators are told so ────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Differs:
    """One request that the two answer differently. ``told``: how docs/deploy/README.md names it."""

    path: str
    application: int
    nginx: int
    told: str
    headers: dict[str, str] = field(default_factory=dict)


DIFFERENCES = [
    Differs("/site/index.html", 200, 206, "`Range`", {"Range": "bytes=0-9"}),
    Differs("/site/%00", 404, 400, "`%00`"),
    Differs("/site/../../inbound.key", 404, 400, "`/../`"),
    Differs("/site/..%2f..%2f..%2fetc/passwd", 404, 400, "`/../`"),
    Differs("/site/../site/index.html", 404, 200, "`/../`"),
    Differs("/site/folder.html//page.html", 200, 404, "`//`"),
    Differs("/departed/index.html", 404, 200, "`public`"),
]


@pytest.mark.parametrize("case", DIFFERENCES, ids=lambda case: case.path)
def test_each_difference_is_as_it_is_told(sides: Sides, case: Differs) -> None:
    Folder(sides.public / "departed").write("index.html", b"<p>departed</p>")
    application, nginx = sides.both(case.path, **case.headers)
    assert (application.status, nginx.status) == (case.application, case.nginx)
    for document, heading in (("README.md", "## Where nginx differs"), ("README.zh-CN.md", "## nginx 与程序的不同")):
        _before, found, rest = (SITES.parent / document).read_text("utf-8").partition(heading)
        assert found
        assert case.told in rest.partition("\n## ")[0], document


def test_every_xml_file_is_called_a_feed(sides: Sides) -> None:
    Folder(sides.public / "site").write("sitemap.xml", b"<urlset/>")
    application, nginx = sides.both("/site/sitemap.xml")
    assert application.headers["content-type"] == "application/xml; charset=utf-8"
    assert nginx.headers["content-type"] == "application/rss+xml; charset=utf-8"


def test_readers_who_can_unpack_get_the_same_text_packed(sides: Sides) -> None:
    plain = fetch(f"{sides.nginx.base}/site_rss/rss.xml")
    packed = fetch(f"{sides.nginx.base}/site_rss/rss.xml", Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert len(packed.body) < len(plain.body) / 2
    assert fetch(f"{sides.nginx.base}/site_rss/rss.xml", If_None_Match=packed.headers["etag"]).status == 304


# ── what is passed on ───────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Upstream:
    """Stands where the application does, and remembers what reached it."""

    port: int
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    taken = Upstream(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            taken.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield taken
        server.shutdown()
        thread.join(30)


@pytest.fixture
def before(upstream: Upstream, tmp_path: Path) -> Iterator[Nginx]:
    changes = {UPSTREAM: f"server 127.0.0.1:{upstream.port};", ROOT: f"root {tmp_path};"}
    with running(tmp_path / "nginx", "distributor.conf", changes) as nginx:
        yield nginx


SECRET = "5ec3e75ec3e75ec3e75ec3e75ec3e700"


def test_a_message_reaches_the_application_whole_and_says_truly_where_it_comes_from(
    upstream: Upstream, before: Nginx
) -> None:
    answer = fetch(
        f"{before.base}/in/rmt/{SECRET}?a=1", "POST", body=b'{"state":"live"}', webhook_id="m1", Host="a.example.org",
        X_Forwarded_For="203.0.113.9", X_Forwarded_Proto="https", Forwarded="for=203.0.113.9",
    )  # fmt: skip
    assert answer.status == 200
    ((path, headers, body),) = upstream.requests
    assert (path, body, headers["webhook-id"]) == (f"/in/rmt/{SECRET}?a=1", b'{"state":"live"}', "m1")
    assert (headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert headers["host"] == "a.example.org"
    assert "forwarded" not in headers


def test_a_message_may_be_as_long_as_the_setting_says_and_no_longer(upstream: Upstream, before: Nginx) -> None:
    longest = Settings.model_fields["inbound_max_bytes"].default
    assert fetch(f"{before.base}/in/rmt/{SECRET}", "POST", body=b"x" * longest).status == 200
    assert fetch(f"{before.base}/in/rmt/{SECRET}", "POST", body=b"x" * (longest + 1)).status == 413
    assert len(upstream.requests) == 1


def test_who_guesses_addresses_is_slowed_down_and_readers_are_not(upstream: Upstream, before: Nginx) -> None:
    with ThreadPoolExecutor(8) as many:
        answers = Counter(each.status for each in many.map(
            lambda n: fetch(f"{before.base}/in/rmt/{n:032}", "POST", body=b"{}"), range(150)
        ))  # fmt: skip
    assert set(answers) == {200, 429}
    assert 51 <= answers[200] <= 100  # the burst, and ten for each second that this took
    assert len(upstream.requests) == answers[200]
    assert {fetch(f"{before.base}/healthz").status for _ in range(60)} == {200}


def test_figures_are_not_for_visitors(upstream: Upstream, before: Nginx) -> None:
    for path in ("/metrics", "/metrics/", "/metrics/x", "/%6detrics", "/metrics?x", "/healthz/../metrics"):
        assert fetch(f"{before.base}{path}").status == 404, path
    assert upstream.requests == []


def test_the_secret_of_an_inbound_address_stands_in_no_log(upstream: Upstream, tmp_path: Path) -> None:
    changes = {UPSTREAM: f"server 127.0.0.1:{upstream.port};", ROOT: f"root {tmp_path};"}
    with running(tmp_path / "nginx", "distributor.conf", changes) as nginx:
        for size in (2, 2_000_000):  # taken, too long
            fetch(f"{nginx.base}/in/rmt/{SECRET}", "POST", body=b"x" * size)
        for _ in range(80):  # too many
            fetch(f"{nginx.base}/in/rmt/{SECRET}")
        fetch(f"{nginx.base}//in/rmt/{SECRET}")
        fetch(f"{nginx.base}/site/absent.html")
        logs = nginx.logs
    assert "/in/..." in logs
    assert "/site/absent.html" in logs
    assert SECRET not in logs
    changes[UPSTREAM] = f"server 127.0.0.1:{free_port()};"  # nobody is there
    with running(tmp_path / "alone", "distributor.conf", changes) as nginx:
        assert fetch(f"{nginx.base}/in/rmt/{SECRET}", "POST", body=b"{}").status == 502
        assert fetch(f"{nginx.base}/site/absent.html").status == 404
        assert SECRET not in nginx.logs


def test_pages_are_read_while_the_application_is_away(tmp_path: Path) -> None:
    Folder(tmp_path / "public" / "site").write("index.html", "<p>停水</p>".encode())
    changes = {UPSTREAM: f"server 127.0.0.1:{free_port()};", ROOT: f"root {tmp_path / 'public'};"}
    with running(tmp_path / "nginx", "distributor.conf", changes) as nginx:
        assert fetch(f"{nginx.base}/site/").text == "<p>停水</p>"
        assert fetch(f"{nginx.base}/readyz").status == 502


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "site.crt", folder / "site.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_with_tls_plain_http_leads_there_and_old_protocols_are_refused(tmp_path: Path) -> None:
    Folder(tmp_path / "public" / "site").write("index.html", "<p>停水</p>".encode())
    certificate = _certificate(tmp_path)
    changes = {ROOT: f"root {tmp_path / 'public'};"}
    with running(tmp_path / "nginx", "distributor.conf", changes, certificate=certificate) as nginx:
        trusting = ssl.create_default_context(cafile=str(certificate[0]))
        with urllib.request.urlopen(f"{nginx.tls_base}/site/", timeout=20, context=trusting) as answer:
            assert answer.read().decode() == "<p>停水</p>"
        led = fetch(f"{nginx.base}/site/?a=1", Host="www.example.org")
        assert (led.status, led.headers["location"]) == (301, "https://www.example.org/site/?a=1")
        modern = re.search(r"ssl_protocols ([^;]+);", (SITES / "tls.conf").read_text("utf-8"))
        assert modern is not None
        assert modern[1].split() == ["TLSv1.2", "TLSv1.3"]


# ── the mirror in the screens' zone ─────────────────────────────────────────────────────────────────────────
OUTSIDE = "https://www.example.org"


def until(seen: Callable[[], bool]) -> None:
    """Ask again and again; the mirror holds an answer for two seconds."""
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline, "it never came"


def test_the_mirror_answers_as_the_site_and_goes_on_when_the_way_out_is_cut(tmp_path: Path) -> None:
    public = tmp_path / "public"
    playlist = Folder(public / "plaza")
    playlist.write("playlist.json", b'{"items": [1]}')
    Folder(public / "site").write("index.html", b"<p>outside</p>")
    site = {UPSTREAM: f"server 127.0.0.1:{free_port()};", ROOT: f"root {public};"}
    with running(tmp_path / "outside", "distributor.conf", site) as outside:
        mirror = {OUTSIDE: outside.base, "/var/cache/nginx/distributor": str(tmp_path / "cache")}
        with running(tmp_path / "inside", "mirror.conf", mirror) as inside:
            address = f"{inside.base}/plaza/playlist.json"
            first = fetch(address)
            assert said(first) == said(fetch(f"{outside.base}/plaza/playlist.json"))
            assert fetch(address, If_None_Match=first.headers["etag"]).status == 304
            for path in ("/site/index.html", "/plaza/.hidden", "/in/plaza/0", "/readyz", "/metrics", "/"):
                assert fetch(f"{inside.base}{path}").status == 404, path
            assert fetch(address, "POST", body=b"{}").status == 405

            playlist.write("playlist.json", b'{"items": [2]}')
            until(lambda: fetch(address).body == b'{"items": [2]}')
            outside.stop()
            until(lambda: fetch(address).headers["x-mirror"] == "STALE")
            assert (fetch(address).status, fetch(address).body) == (200, b'{"items": [2]}')


def test_what_was_withdrawn_is_gone_from_the_mirror_too(tmp_path: Path) -> None:
    public = Folder(tmp_path / "public" / "plaza")
    public.write("page.html", b"<p>1</p>")
    site = {UPSTREAM: f"server 127.0.0.1:{free_port()};", ROOT: f"root {tmp_path / 'public'};"}
    with running(tmp_path / "outside", "distributor.conf", site) as outside:
        mirror = {OUTSIDE: outside.base, "/var/cache/nginx/distributor": str(tmp_path / "cache")}
        with running(tmp_path / "inside", "mirror.conf", mirror) as inside:
            assert fetch(f"{inside.base}/plaza/page.html").status == 200
            public.write("page.html.gone", "<p>已撤</p>".encode())
            public.remove("page.html")
            until(lambda: fetch(f"{inside.base}/plaza/page.html").status == 410)
            assert fetch(f"{inside.base}/plaza/page.html").text == "<p>已撤</p>"
