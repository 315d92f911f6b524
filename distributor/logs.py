"""Logging: structured lines on standard error, for people or as JSON. Event names are constant, facts are keywords.

No line holds a story's text or a secret. What an exception says may hold either (a parser quotes what it could not
read, a channel the payload that it choked on), so of an exception a line tells the type, its code if it is one of ours,
and where it was raised, never its words and never local variables.
"""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any, TextIO, cast

import structlog
from aiohttp.http import HttpProcessingError

__all__ = ["configure", "where_raised"]

DEEPEST = 8  # exceptions of one chain or group that are told; a longer chain is a loop
log = structlog.get_logger("distributor.logs")


class _StandardError:
    """Standard error as it is when a line is written, not as it was when logging was set up."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Ours(logging.StreamHandler[Any]):
    """The handler that `configure` set, to be found again."""

    def handle(self, record: logging.LogRecord) -> bool:
        """What is no HTTP is no defect: one quiet line instead of a traceback that quotes it."""
        error = record.exc_info[1] if record.exc_info else None
        if record.name == "aiohttp.server" and isinstance(error, HttpProcessingError):
            peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
            log.info("unreadable_request", peer=peer, error=type(error).__name__)
            return False
        return bool(super().handle(record))


def configure(log_format: str, *, level: int = logging.WARNING) -> None:
    """Send our own lines and the libraries' to standard error, from ``level`` on.

    ``log_format``: "json" for one JSON object a line (UTF-8, times in UTC), anything else for people.
    May be called again; the last call decides.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_words,
    ]
    out = cast("TextIO", _StandardError())
    rendered = _renderers(log_format)
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    # aiohttp, APScheduler and others log through the standard library: the same look, the same stream.
    handler = _Ours(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, _without_objects],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Ours)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))  # the libraries' own chatter at INFO is not ours to tell
    sys.excepthook = _crashed
    threading.excepthook = lambda given: _crashed(given.exc_type, given.exc_value, given.exc_traceback)


def _crashed(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """The process or a thread ends with an error: Python's own words for it would quote it."""
    if issubclass(kind, KeyboardInterrupt) or error is None:
        sys.__excepthook__(kind, error or kind(), trace)
    else:
        log.error("crashed", exc_info=error)


def _renderers(log_format: str) -> list[Any]:
    if log_format == "json":
        return [structlog.processors.JSONRenderer(ensure_ascii=False)]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]


# ── what an exception may say ───────────────────────────────────────────────────────────────────────────────
Facts = MutableMapping[str, Any]


def _without_words(_logger: Any, _method: str, facts: Facts) -> Facts:
    """``exc_info`` becomes ``exception``: types, codes, places."""
    given = facts.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else None
    if given is True:
        error = sys.exc_info()[1]
    if error is not None:
        facts["exception"] = where_raised(error)
    return facts


def _without_objects(_logger: Any, _method: str, facts: Facts) -> Facts:
    """asyncio's own lines quote tasks and callbacks with their arguments and results: only their first words stay."""
    if facts.get("logger") == "asyncio":
        facts["event"] = re.split(r"[(<:\n]", str(facts["event"]), maxsplit=1)[0].strip()
    return facts


def where_raised(error: BaseException) -> str:
    """An exception and what led to it, oldest first: places and types, without their words. Never raises."""
    return "\n".join(_chain(error, DEEPEST))


def _chain(error: BaseException, deepest: int) -> Iterator[str]:
    led_to = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if led_to is not None and deepest > 0:
        yield from _chain(led_to, deepest - 1)
        yield "which led to:"
    yield from _frames(error.__traceback__)
    yield _named(error)
    if isinstance(error, BaseExceptionGroup) and deepest > 0:
        for each in error.exceptions:
            yield "in it:"
            yield from _chain(each, deepest - 1)


def _frames(trace: TracebackType | None) -> Iterator[str]:
    for frame in traceback.extract_tb(trace, limit=-40):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'


def _named(error: BaseException) -> str:
    """Its type; of the program's own errors the code (their facts and details are for people, not for logs)."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    code = getattr(error, "code", None)
    number = error.errno if isinstance(error, OSError) else None
    told = code if isinstance(code, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,63}", code) else number
    return name if told is None else f"{name}: {told}"
