"""What a stranger can do to the demo: read, and nothing else; and no secret is to be read."""

import base64
import hashlib
import hmac
import json
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from distributor.clock import SystemClock
from distributor.sandbox import Sandbox
from tests.e2e.conftest import OUTLETS, Demo, Running, fetch, outlets_of

pytestmark = pytest.mark.e2e

DEMO_SEED = 20210816
SITE_PAGE = "business-environment/20210816/01-lead-story.html"


def inbound_secret(demo: Demo, outlet: str) -> str:
    """The real one: made from the installation's key file."""
    key = (demo.running.build / "data" / "inbound.key").read_bytes()
    return hmac.new(key, outlet.encode(), hashlib.sha256).hexdigest()[:32]


@cache
def signing_secrets() -> dict[str, str]:
    sandbox = Sandbox(SystemClock(), seed=DEMO_SEED)
    return {account: sandbox.secret(account) for account in outlets_of("newmedia")}


# ── read-only ───────────────────────────────────────────────────────────────────────────────────────────────
def test_no_message_is_taken_even_with_the_right_secret(demo: Demo) -> None:
    for outlet in ("rmt_newmedia", "site"):
        for secret in (inbound_secret(demo, outlet), "0" * 32):
            answer = fetch(f"{demo.base}/in/{outlet}/{secret}", "POST", body=b"{}", Content_Type="application/json")
            assert answer.status in (404, 405)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_public_can_be_written(demo: Demo, method: str) -> None:
    for path in ("/", "/site/", f"/site/{SITE_PAGE}", "/site_rss/rss.xml", "/plaza/playlist.json", "/healthz"):
        before = fetch(demo.base + path)
        assert fetch(demo.base + path, method, body=b"x").status == 405, path
        assert fetch(demo.base + path).body == before.body


def test_an_unsigned_post_is_not_taken_by_the_platform(demo: Demo) -> None:
    before = fetch(f"{demo.platform}/rmt_newmedia/log").body
    body = json.dumps({"key": "k", "version": 1, "payload": {}}).encode()
    answer = fetch(f"{demo.platform}/rmt_newmedia/items", "POST", body=body, Content_Type="application/json")
    assert answer.status == 401
    assert fetch(f"{demo.platform}/rmt_newmedia/items/05-bus-screen.rmt_newmedia.e1", "DELETE").status == 401
    assert fetch(f"{demo.platform}/rmt_newmedia/log").body == before


# ── only the public folders ─────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "path",
    [
        "/distributor.db",
        "/inbound.key",
        "/summary.json",
        "/data/inbound.key",
        "/blobs/",
        "/site/../inbound.key",
        "/site/../../inbound.key",
        "/site/%2e%2e/%2e%2e/inbound.key",
        "/site/..%2f..%2finbound.key",
        "/site/..%5c..%5cinbound.key",
        "/site/%252e%252e/inbound.key",
        "/site//etc/passwd",
        "/site/%2fetc/passwd",
        "//etc/passwd",
        "/site/.tmp-0123456789abcdef",
        "/site/%00",
        "/site/index.html%00.png",
        "/site/business-environment/20210816/05-bus-screen.html.gone",
        "/site/static/",
        "/plaza/",
        "/nobody/index.html",
        "/SITE/index.html",
        "/site/" + "a" * 4000,
        "/site/" + "a/" * 2000,
        "/site/%ff%fe",
        "/site/index.html/x",
    ],
)
def test_no_path_leads_out_of_the_public_folders(demo: Demo, path: str) -> None:
    answer = fetch(demo.base + path)
    assert answer.status == 404
    assert len(answer.body) < 400
    for outside in (str(demo.running.folder), "Traceback", "root:"):
        assert outside.encode() not in answer.body


def test_the_demo_is_well_after_all_that(demo: Demo) -> None:
    assert fetch(f"{demo.base}/readyz").status == 200


def test_the_front_leads_to_the_site(demo: Demo) -> None:
    answer = fetch(f"{demo.base}/")
    assert (answer.status, answer.headers["location"]) == (302, f"{demo.base}/site/")


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_secrets_that_are_looked_for_are_the_ones_in_use(demo: Demo) -> None:
    now = datetime.fromisoformat(demo.summary["clock"]["ended"])
    for account, secret in signing_secrets().items():
        signature = Webhook(secret).sign("GET /account", now, "")
        answer = fetch(
            f"{demo.platform}/{account}/account", webhook_id="GET /account",
            webhook_timestamp=str(int(now.timestamp())), webhook_signature=signature,
        )  # fmt: skip
        assert (answer.status, json.loads(answer.body)["account"]) == (200, account)


def spellings(demo: Demo) -> list[bytes]:
    """Every secret, as text, as the bytes that it stands for, and those in hex."""
    found = []
    for secret in signing_secrets().values():
        encoded = secret.removeprefix("whsec_")
        raw = base64.b64decode(encoded)
        found += [encoded.encode(), raw, raw.hex().encode()]
    key = (demo.running.build / "data" / "inbound.key").read_bytes()
    found += [key, key.hex().encode(), base64.b64encode(key)]
    return found + [inbound_secret(demo, outlet).encode() for outlet in OUTLETS]


def test_no_secret_is_printed_or_left_in_the_summary(demo: Demo, once: Running) -> None:
    secrets = spellings(demo)
    for running in (demo.running, once):
        told = (running.stdout + running.stderr).encode() + (running.build / "summary.json").read_bytes()
        assert len(told) > 50_000
        assert [secret for secret in secrets if secret in told] == []
    assert "whsec_" not in demo.running.stdout + demo.running.stderr


def served(demo: Demo) -> dict[str, bytes]:
    """The bytes of every address that the demo answers at: each public file, and the platform's public side."""
    public = demo.running.build / "data" / "public"
    names = [path.relative_to(public).as_posix() for path in public.rglob("*") if path.is_file()]
    addresses = [f"{demo.base}/{name.removesuffix('.gone')}" for name in names]
    addresses += [f"{demo.base}{path}" for path in ("/healthz", "/readyz", "/", "/site", "/nothing")]
    addresses += [f"{demo.platform}/{account}/{page}" for account in signing_secrets() for page in ("", "log", "time")]
    addresses += [row["receipt"]["url"] for row in demo.deliveries() if row["receipt"]["url"]]
    return {url: answer.body for url in dict.fromkeys(addresses) if (answer := fetch(url)).status != 404}


def test_no_secret_is_in_any_served_byte(demo: Demo) -> None:
    secrets = spellings(demo)
    bodies = served(demo)
    assert len(bodies) > 300
    assert {url for url, body in bodies.items() if any(secret in body for secret in secrets)} == set()


def test_the_key_of_the_installation_is_its_owners_alone(demo: Demo) -> None:
    key: Path = demo.running.build / "data" / "inbound.key"
    assert key.stat().st_mode & 0o077 == 0
