"""The two databases that a store works on: one SQLite file of a district, or PostgreSQL for many hosts.

Both offer the same transactions. What people decide (`alone`) is written one transaction at a time; what machines do
(`beside`) may run at the same time on PostgreSQL, where row locks on the lanes keep workers apart. SQLite has one
writer anyway. Passwords of an address never leave this module.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import alembic.command
import alembic.config
import alembic.script
import alembic.util
from sqlalchemy import URL, Connection, create_engine, event, pool, text
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from distributor.errors import Unusable

if TYPE_CHECKING:
    import asyncpg

OLDEST_POSTGRESQL = 14  # the oldest one that its makers still mend (postgresql.org, versioning policy)
CHANNEL = "distributor"  # that people's decisions are announced on
# Classes of advisory locks (PostgreSQL 13.3.5): the first of their two numbers.
DESK_LOCK, STORY_LOCK, SCHEMA_LOCK = 7301, 7302, 7303
SILENCE_SECONDS = 30  # a statement that gets no answer for so long will get none
IDLE_SECONDS = 15  # a session that died inside a transaction gives its locks back after so long
WORKER = "distributor worker"  # how a worker's connection calls itself


@dataclass(frozen=True)
class Opened:
    """A transaction, and the server's time at its beginning where the server keeps the time."""

    session: AsyncSession
    server_time: datetime | None = None


class Database(Protocol):
    """Where the tables are."""

    place: str  # for people: the file, or host, port and name; never a password
    shared: bool  # whether several hosts may work on it at the same time

    async def prepare(self) -> None:
        """See that it can be worked on. SQLite brings its schema up to date, PostgreSQL waits to be told.

        Raises:
            Unusable: ``database_refused``, ``database_newer``; of PostgreSQL also ``database_too_old``,
                ``schema_missing``, ``schema_old``.
        """
        ...

    def alone(self) -> Any:
        """An async context: a transaction in which no other person's decision is written."""
        ...

    def beside(self) -> Any:
        """An async context: a machine's transaction; others may run beside it."""
        ...

    def reading(self) -> Any:
        """An async context: one consistent look; waits for nobody."""
        ...

    async def dispatchers(self) -> tuple[str, ...]:
        """The processes that dispatch now, by pid or ``host/pid``."""
        ...

    async def close(self) -> None: ...


def detail_of(error: BaseException) -> str:
    """The first line of an error's own words."""
    said = str(getattr(error, "orig", None) or error) or type(error).__name__
    return said.splitlines()[0][:200]


# ── schema ──────────────────────────────────────────────────────────────────────────────────────────────────
def _alembic() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def schema_head() -> str:
    """The schema that this version of the program works with."""
    head = alembic.script.ScriptDirectory.from_config(_alembic()).get_current_head()
    assert head is not None
    return head


def _upgrade(connection: Connection) -> None:
    config = _alembic()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def migrate(path: Path) -> None:
    """Bring the schema of a SQLite file to this version. Idempotent. Blocks.

    Raises:
        Unusable: ``database_newer`` (made by a newer version), ``database_refused`` (can't be opened).
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=pool.NullPool)
    try:
        with engine.connect() as connection:
            _upgrade(connection)
    except alembic.util.exc.CommandError as error:
        raise Unusable("database_newer", path=str(path), detail=detail_of(error)) from error
    except (DatabaseError, sqlite3.Error) as error:
        raise Unusable("database_refused", path=str(path), why=detail_of(error)) from error
    finally:
        engine.dispose()


# ── one file ────────────────────────────────────────────────────────────────────────────────────────────────
class SQLiteFile:
    """One district in one file: WAL, ``synchronous=FULL`` (what was committed survives a power cut), one dispatcher."""

    shared = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._writer = self._engine("BEGIN IMMEDIATE")
        self._reader = self._engine("BEGIN")
        self._write_session = async_sessionmaker(self._writer, expire_on_commit=False)
        self._read_session = async_sessionmaker(self._reader, expire_on_commit=False)
        self._turn = asyncio.Lock()  # writers of this process queue here instead of polling SQLite's lock
        self._watch: sqlite3.Connection | None = None
        self._lock_file: int | None = None

    def _engine(self, begin: str) -> AsyncEngine:
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(self.path)))

        @event.listens_for(engine.sync_engine, "connect")
        def _connect(connection: Any, _: object) -> None:
            connection.isolation_level = None  # we say BEGIN ourselves: the driver's own lets two claims take one row
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    async def prepare(self) -> None:
        """Make the file where there is none, and bring its schema up to date."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable("database_refused", path=self.place, why=error.strerror or str(error)) from error
        await asyncio.to_thread(migrate, self.path)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Opened]:
        """The write lock is taken at once (``BEGIN IMMEDIATE``)."""
        async with self._turn:
            try:
                async with self._write_session.begin() as session:
                    yield Opened(session)
            except OperationalError as error:
                raise Unusable("database_refused", path=self.place, why=detail_of(error)) from error

    beside = alone

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Opened]:
        try:
            async with self._read_session.begin() as session:
                yield Opened(session)
        except OperationalError as error:
            raise Unusable("database_refused", path=self.place, why=detail_of(error)) from error

    def changes(self) -> int:
        """A number that differs when another connection has committed (SQLite's ``data_version``)."""
        if self._watch is None:
            self._watch = sqlite3.connect(self.path, check_same_thread=False)
        return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    def lock_dispatcher(self) -> None:
        """Take the lock that makes this process the only dispatcher of the file; held until `close` or death.

        Raises:
            Unusable: ``dispatcher_running`` with the pid that holds it.
        """
        handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "?"
            os.close(handle)
            raise Unusable("dispatcher_running", path=self.place, pid=holder) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._lock_file = handle

    def dispatcher_pid(self) -> int | None:
        """The process that dispatches now, or None."""
        if not self._lock_path.exists():
            return None
        handle = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(handle, 32).decode(errors="replace").strip()
            return int(said) if said.isdigit() else 0
        else:
            return None
        finally:
            os.close(handle)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".dispatcher")

    async def dispatchers(self) -> tuple[str, ...]:
        pid = self.dispatcher_pid()
        return () if pid is None else (str(pid),)

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        await self._writer.dispose()
        await self._reader.dispose()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


# ── many hosts ──────────────────────────────────────────────────────────────────────────────────────────────
class PostgreSQL:
    """A server that any number of hosts work on: its clock is the time, its row locks hand out the lanes."""

    shared = True

    def __init__(self, url: str) -> None:
        """``url``: ``postgresql://user:password@host:port/name?sslmode=…`` as libpq understands it."""
        self._dsn = "postgresql://" + url.partition("://")[2]
        parts = urlsplit(self._dsn)
        self.place = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        self._engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=self.connect, pool_size=6, max_overflow=10, pool_pre_ping=True,
            isolation_level="READ COMMITTED",
        )  # fmt: skip
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)
        self._head = schema_head()

    async def connect(self, name: str = "distributor") -> "asyncpg.Connection[Any]":
        """A connection of its own, outside the pool; ``name`` is how the server's own lists call it.

        Raises:
            Unusable: ``cluster_missing`` (the extra isn't installed), ``database_refused``.
        """
        try:
            import asyncpg  # noqa: PLC0415  # an extra: a district on one file needs none of it
        except ImportError as error:
            raise Unusable("cluster_missing") from error
        try:
            return await asyncpg.connect(
                self._dsn, timeout=10, command_timeout=SILENCE_SECONDS,
                server_settings={
                    "application_name": name, "timezone": "UTC",
                    "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s", "lock_timeout": f"{SILENCE_SECONDS}s",
                    # A host that is cut off must not hold its locks until the kernel's two hours are over.
                    "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
                },
            )  # fmt: skip
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Unusable("database_refused", path=self.place, why=detail_of(error)) from error

    async def prepare(self) -> None:
        """See that server and schema are ones that this version works with; changes nothing."""
        connection = await self.connect()
        try:
            await self._check_server(connection)
            self._check_schema(await self._schema(connection))
        finally:
            await connection.close(timeout=5)

    async def migrate(self) -> tuple[str, str]:
        """Bring the schema to this version and make the calendar's tables; returns the schema before and after.

        Several hosts may call it at the same time: one does the work, the others find it done.

        Raises:
            Unusable: as `prepare`, and ``database_newer``.
        """
        from pgqueuer.queries import Queries  # noqa: PLC0415  # an extra

        connection = await self.connect()
        try:
            await self._check_server(connection)
            await connection.execute("SELECT pg_advisory_lock($1, 0)", SCHEMA_LOCK)
            before = await self._schema(connection)
            async with self._engine.connect() as upgrading:
                try:
                    await upgrading.run_sync(_upgrade)
                except alembic.util.exc.CommandError as error:
                    raise Unusable("database_newer", path=self.place, detail=detail_of(error)) from error
            calendar = Queries.from_asyncpg_connection(connection)
            if await calendar.has_table(calendar.qbe.settings.schedules_table):
                await calendar.upgrade()
            else:
                await calendar.install()
            return before or "–", self._head
        finally:
            await connection.close(timeout=5)  # gives the lock back

    async def _check_server(self, connection: "asyncpg.Connection[Any]") -> None:
        found = connection.get_server_version()
        if found.major < OLDEST_POSTGRESQL:
            raise Unusable(
                "database_too_old", path=self.place, found=f"{found.major}.{found.minor}", least=OLDEST_POSTGRESQL
            )

    async def _schema(self, connection: "asyncpg.Connection[Any]") -> str | None:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        found = await connection.fetchval("SELECT version_num FROM alembic_version")
        return None if found is None else str(found)

    def _check_schema(self, found: str | None) -> None:
        if found == self._head:
            return
        if found is None:
            raise Unusable("schema_missing", path=self.place)
        code = "schema_old" if found < self._head else "database_newer"
        raise Unusable(code, path=self.place, found=found, wanted=self._head, detail=found)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Opened]:
        """One at a time over all hosts; whoever waits for work is told when it commits."""
        async with self._transaction() as session:
            await session.execute(text(f"SELECT pg_advisory_xact_lock({DESK_LOCK}, 0)"))
            yield Opened(session, await self._server_time(session))
            await session.execute(text(f"SELECT pg_notify('{CHANNEL}', '')"))

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[Opened]:
        async with self._transaction() as session:
            yield Opened(session, await self._server_time(session))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Opened]:
        async with self._transaction() as session:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield Opened(session)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        try:
            async with self._session.begin() as session:
                yield session
        except (IntegrityError, DataError):
            raise
        except (DBAPIError, OSError, TimeoutError) as error:
            raise Unusable("database_refused", path=self.place, why=detail_of(error)) from error

    async def _server_time(self, session: AsyncSession) -> datetime:
        """The server's clock; one look also tells whether the schema is still the one that we know."""
        found = (await session.execute(text("SELECT clock_timestamp(), version_num FROM alembic_version"))).one()
        self._check_schema(str(found[1]))
        now: datetime = found[0]
        return now

    async def listen(self, heard: Callable[[], None], name: str) -> None:
        """Call ``heard`` whenever a person's decision is committed, until the connection is lost.

        Raises:
            Unusable: ``database_refused``.
        """
        connection = await self.connect(name)
        lost = asyncio.Event()
        connection.add_termination_listener(lambda *_: lost.set())
        try:
            await connection.add_listener(CHANNEL, lambda *_: heard())
            await lost.wait()
        finally:
            await connection.close(timeout=1)

    async def keep_calendar(self, jobs: Sequence[tuple[str, str, Callable[[], Awaitable[None]]]]) -> None:
        """Run jobs ``(name, cron expression, job)``, each once over all hosts, until the connection is lost.

        Raises:
            Unusable: ``database_refused``.
        """
        import asyncpg  # noqa: PLC0415  # `connect` says what is missing
        from pgqueuer import PgQueuer  # noqa: PLC0415
        from pgqueuer.models import Schedule  # noqa: PLC0415

        connection = await self.connect("distributor calendar")
        kept = PgQueuer.from_asyncpg_connection(connection)
        for name, when, run in jobs:

            async def tick(_schedule: Schedule, run: Callable[[], Awaitable[None]] = run) -> None:
                await run()

            kept.schedule(name, when)(tick)
        connection.add_termination_listener(lambda *_: kept.shutdown.set())
        try:
            await kept.sm.run()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Unusable("database_refused", path=self.place, why=detail_of(error)) from error
        finally:
            kept.shutdown.set()
            await connection.close(timeout=1)

    async def dispatchers(self) -> tuple[str, ...]:
        async with self._transaction() as session:
            found = await session.execute(
                text(
                    "SELECT application_name FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE :name ORDER BY 1"
                ),
                {"name": f"{WORKER} %"},
            )
            return tuple(str(name).removeprefix(f"{WORKER} ") for name in found.scalars())

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        await self._engine.dispose()


def database_at(url: str) -> SQLiteFile | PostgreSQL:
    """The database of a checked address: ``sqlite…:///path`` or ``postgresql…://…``."""
    scheme, _, path = url.partition(":///")
    return SQLiteFile(Path(path)) if scheme.startswith("sqlite") else PostgreSQL(url)
