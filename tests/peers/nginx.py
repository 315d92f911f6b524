"""Debian's nginx with a site of docs/deploy, on a free port of the loopback, in a folder of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SITES = Path(__file__).parents[2] / "docs" / "deploy" / "nginx"
STARTED_WITHIN = 30.0  # seconds; it takes some milliseconds

MAIN = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/main.log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Nginx:
    """A running one."""

    folder: Path
    base: str
    tls_base: str
    process: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        """End it; a second time does nothing."""
        self.process.terminate()
        self.process.wait(30)

    @property
    def logs(self) -> str:
        """All that it wrote so far."""
        return "".join(path.read_text("utf-8") for path in sorted(self.folder.glob("*.log")))


def _fitted(name: str, changes: dict[str, str]) -> str:
    """A file of docs/deploy with what an operator changes changed; each must stand in it."""
    text = (SITES / name).read_text("utf-8")
    for written, meant in changes.items():
        assert written in text, f"{name} no longer says {written!r}"
        text = text.replace(written, meant)
    return text


@contextmanager
def running(
    folder: Path, site: str, changes: dict[str, str], *, certificate: tuple[Path, Path] | None = None
) -> Iterator[Nginx]:
    """Start nginx with one site; stopped at the end. ``changes``: as an operator makes them, text for text.

    ``certificate``: PEM files of a certificate and its key; without them no port speaks TLS.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: make peers")
    port, tls_port = free_port(), free_port()
    snippets = folder / "snippets"
    snippets.mkdir(parents=True)
    usual = {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "/var/log/nginx/": f"{folder}/",
    }
    if site == "distributor.conf":
        usual |= {"listen [::]:80;": "", "/etc/nginx/distributor.d/": f"{snippets}/"}
    if certificate is not None:
        tls = {
            "listen 443 ssl http2;": f"listen 127.0.0.1:{tls_port} ssl http2;",
            "listen [::]:443 ssl http2;": "",
            "/etc/nginx/distributor.crt": str(certificate[0]),
            "/etc/nginx/distributor.key": str(certificate[1]),
        }
        (snippets / "tls.conf").write_text(_fitted("tls.conf", tls), "utf-8")
    (folder / "site.conf").write_text(_fitted(site, {**usual, **changes}), "utf-8")
    user = "user root;" if os.geteuid() == 0 else ""  # the folders of a test are its owner's alone
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user), "utf-8")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "main.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"], stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(port, process)
        yield Nginx(folder, f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}", process)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_it_listens(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while True:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "nginx ended"
        assert time.monotonic() < deadline, "nginx never listened"
        try:
            process.wait(0.02)  # its end would be noticed at once
        except subprocess.TimeoutExpired:
            continue
