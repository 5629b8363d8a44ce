"""launch/evaluate.py: what is wrong is told in one line."""

import pathlib
import subprocess
import sys

import pytest

from tests.launch import in_process

_ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "launch/evaluate.py", *arguments], cwd=_ROOT, capture_output=True,
        text=True, timeout=300,
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--weights=truth=launch"], "the label 'truth' is taken"),
        (["--syncnet=x"], "--syncnet needs --video"),
        (["--video=/nowhere.mp4"], "there is no file /nowhere.mp4"),
        (["--noplots", "--corpus=/nowhere"], "build it with"),
    ],
)
def test_mistakes_end_in_one_line(monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(_ROOT)
    with pytest.raises(SystemExit) as caught:
        in_process.launcher(monkeypatch, "evaluate")(*arguments)
    assert caught.value.code.startswith("evaluate: ") and words in caught.value.code
    assert "\n" not in caught.value.code and not capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [(["--weights=a=/nowhere"], "'/nowhere' is not a folder"), (["--clips=0"], "clips")],
)
def test_the_script_reports_mistakes(arguments, words):
    done = _run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
