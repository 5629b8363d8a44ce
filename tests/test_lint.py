"""The code is clean under ruff and under pyrefly, as pyproject.toml configures both."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_FOLDERS = ("tm_jax", "launch", "experiments", "tests", "setup.py")
_MISSING = "{} is not installed; pip install '.[test]' brings it"


def _ruff(*arguments: str) -> subprocess.CompletedProcess:
    pytest.importorskip("ruff", reason=_MISSING.format("ruff"))
    return _run("ruff", "check", "--no-cache", "--output-format=concise", *arguments)


def _pyrefly(*arguments: str) -> subprocess.CompletedProcess:
    pytest.importorskip("pyrefly", reason=_MISSING.format("pyrefly"))
    return _run(
        "pyrefly", "check", f"--python-interpreter-path={sys.executable}",
        "--output-format=min-text", "--color=never", "--summary=none", *arguments,
    )


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=_ROOT, capture_output=True, text=True,
    )


def test_the_code_is_clean():
    done = _ruff(*_FOLDERS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fault_is_noticed(tmp_path):
    (tmp_path / "bad.py").write_text("import os\n\nx = undefined\n")
    done = _ruff(f"--config={_ROOT / 'pyproject.toml'}", str(tmp_path))
    assert done.returncode == 1 and "F401" in done.stdout and "F821" in done.stdout


def test_types_fit():
    done = _pyrefly()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_type_that_does_not_fit_is_noticed(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import no_such_package\n"
        "from tm_jax.core import timing\n\n"
        "def seconds(given: float | None) -> float:\n"
        "    return given\n\n"
        "rate: str = timing.Timing().fps\n"
    )
    done = _pyrefly(f"--config={_ROOT / 'pyproject.toml'}", f"--search-path={_ROOT}", str(bad))
    assert done.returncode == 1, done.stdout + done.stderr
    for kind in ("missing-import", "bad-return", "bad-assignment"):
        assert f"[{kind}]" in done.stdout
