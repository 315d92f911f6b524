"""The rule of continuous integration: what did not run has proven nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPS = """
import pytest

def test_in_its_body():
    pytest.skip("no root")

@pytest.mark.skipif(True, reason="no browser")
def test_by_its_mark():
    pass

def test_that_runs():
    pass
"""


@pytest.mark.parametrize(("ci", "code", "said"), [("true", 1, "does not accept"), ("", 0, "2 skipped")])
def test_a_skipped_test_fails_there_and_only_there(tmp_path: Path, ci: str, code: int, said: str) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "tests.plugin_ci",
        "--rootdir",
        str(tmp_path),
        "test_skips.py",
    ]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout
    assert said in done.stdout
    assert "no root" in done.stdout
    assert "no browser" in done.stdout
