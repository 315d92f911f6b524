"""In continuous integration a skipped test is a failure: what could not run has proven nothing.

Loaded by ``-p tests.plugin_ci`` (pyproject.toml). Outside (``CI`` unset) skips stay skips. One kind stays a skip
there too: the shared channel contract passes over the laws that a channel's own traits exclude ("an item channel has no
shelf"), which is a fact about the channel and not a tool that is missing here.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
CONTRACT = Path(__file__).resolve().parent.parent / "distributor" / "testing.py"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the report of a skipped test into a failed one that keeps the reason."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and not _by_the_contract(report):
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


def _by_the_contract(report: pytest.TestReport) -> bool:
    """Whether the contract's own code skipped it; a skipped test's report says where that was."""
    return isinstance(report.longrepr, tuple) and Path(report.longrepr[0]).resolve() == CONTRACT


def _why(call: pytest.CallInfo[Any]) -> str:
    return str(call.excinfo.value) if call.excinfo is not None else "no reason given"
