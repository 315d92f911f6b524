"""A PostgreSQL server of our own on loopback: in a folder of its own, on a free port, stopped by pid."""

import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SUPERUSER = "distributor"
SETTINGS = {
    "listen_addresses": "127.0.0.1", "max_connections": "200", "shared_buffers": "128MB", "log_min_messages": "warning",
    "max_wal_size": "512MB",
}  # fmt: skip
THROW_AWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}  # nothing here outlives a test
PATIENCE_SECONDS = 60


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`, of the newest version installed; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


class PostgresServer:
    """One server. ``settings`` are added to its command line; durable unless `THROW_AWAY` is among them."""

    def __init__(self, *, listen: str = "127.0.0.1", **settings: str) -> None:
        found = programs()
        assert found is not None, "install it: make peers"
        self._bin = found
        self.folder = Path(tempfile.mkdtemp(prefix="distributor-postgres-"))
        self.host = listen
        self.port = _free_port()
        self._settings = {**SETTINGS, "listen_addresses": listen, **settings}
        # The server refuses to run as root; Debian's package brings the user that it runs as.
        self._as = "postgres" if os.getuid() == 0 else None
        if self._as:
            shutil.chown(self.folder, self._as, pwd.getpwnam(self._as).pw_gid)
            self.folder.chmod(0o755)
        self._data = self.folder / "data"
        made = [str(found / "initdb"), "-D", str(self._data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8",
                "--locale=C.UTF-8", "--no-sync"]  # fmt: skip
        subprocess.run(made, check=True, capture_output=True, cwd=self.folder, user=self._as, timeout=PATIENCE_SECONDS)
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str) -> "PostgresServer":
        """Start it and wait until it answers. ``prefix``: a command to run it under (``ip netns exec …``)."""
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", str(self.folder)]
        if prefix and self._as:  # only root may enter a namespace; the user is changed inside
            command = [*prefix, "setpriv", f"--reuid={self._as}", f"--regid={self._as}", "--clear-groups", *command]
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, cwd=self.folder, user=None if prefix else self._as,
                start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + PATIENCE_SECONDS
        ready = [str(self._bin / "pg_isready"), "-h", str(self.folder), "-p", str(self.port), "-q"]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")
            assert time.monotonic() < ends, "PostgreSQL did not answer"
            time.sleep(0.02)
        return self

    def url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@{self.host}:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement; returns what `psql` prints."""
        place = ["-h", str(self.folder), "-p", str(self.port), "-U", SUPERUSER, "-d", database]
        command = [str(self._bin / "psql"), *place, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def create(self, database: str, template: str = "template0") -> str:
        """Make a database, if it is not there yet; returns its address."""
        if not self.sql(f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
            self.sql(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        self.sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def kill(self) -> None:
        """Kill the server and all its sessions with -9, as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        pids = subprocess.run(["pgrep", "-f", str(self._data)], check=False, capture_output=True, text=True).stdout
        for pid in pids.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it for good and remove its folder. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def name_for(folder: Path) -> str:
    """A database's name for a test's folder: the same folder, the same database."""
    return "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:20]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
