"""In continuous integration a skipped test is a failure: what could not run has proven nothing.

Loaded by ``-p tests.plugin_ci`` (pyproject.toml). Outside (``CI`` unset) skips stay skips. Laws of the shared channel
contract that a channel's traits exclude ("an item channel has no shelf") are left out when tests are collected.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the laws that do not apply to a channel."""
    excluded = [item for item in items if _is_excluded(item)]
    if excluded:
        config.hook.pytest_deselected(items=excluded)
        items[:] = [item for item in items if item not in excluded]


def _is_excluded(item: pytest.Item) -> bool:
    contract, law = getattr(item, "cls", None), getattr(item, "originalname", None)
    excludes = getattr(contract, "excludes", None)
    return callable(excludes) and law is not None and bool(excludes(law))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the report of a skipped test into a failed one that keeps the reason."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which continuous integration does not accept: {_why(call)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself while it is imported is a failure too."""
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped while it was collected: {report.longrepr}"
    return report


def _why(call: pytest.CallInfo[Any]) -> str:
    return str(call.excinfo.value) if call.excinfo is not None else "no reason given"
