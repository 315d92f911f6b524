"""Logging: structured lines on standard error, for people or as JSON. Event names are constant, facts are keywords.

Exceptions are plain tracebacks, never with local variables: those may hold a story's text or a secret.
"""

import logging
import sys
from typing import Any, TextIO, cast

import structlog

__all__ = ["configure"]


class _StandardError:
    """Standard error as it is when a line is written, not as it was when logging was set up."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Ours(logging.StreamHandler[Any]):
    """The handler that `configure` set, to be found again."""


def configure(log_format: str, *, level: int = logging.WARNING) -> None:
    """Send our own lines and the libraries' to standard error, from ``level`` on.

    ``log_format``: "json" for one JSON object a line (UTF-8, times in UTC), anything else for people.
    May be called again; the last call decides.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
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
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Ours)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))  # the libraries' own chatter at INFO is not ours to tell


def _renderers(log_format: str) -> list[Any]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )
    return [plain]
