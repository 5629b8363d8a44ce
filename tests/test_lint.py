"""The code is clean under ruff as pyproject.toml configures it."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_FOLDERS = ("tm_jax", "launch", "experiments", "tests", "setup.py")


def _ruff(*arguments: str) -> subprocess.CompletedProcess:
    pytest.importorskip("ruff")
    return subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", *arguments],
        cwd=_ROOT, capture_output=True, text=True,
    )


def test_the_code_is_clean():
    done = _ruff(*_FOLDERS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fault_is_noticed(tmp_path):
    (tmp_path / "bad.py").write_text("import os\n\nx = undefined\n")
    done = _ruff(f"--config={_ROOT / 'pyproject.toml'}", str(tmp_path))
    assert done.returncode == 1 and "F401" in done.stdout and "F821" in done.stdout
