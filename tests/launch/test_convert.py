"""The converter's command line: its flags, its one-line errors, and no traces when stopped."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.checkpoints import wan
from tm_jax.core import trees

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPT = str(_ROOT / "launch" / "convert.py")


@pytest.fixture(scope="module")
def published(tmp_path_factory, pico):
    """A small transformer in the original layout."""
    tensors = mapping.write(pico.params, wan.rows(pico.preset.dit), own=wan.is_own)
    path = tmp_path_factory.mktemp("weights") / "original.pth"
    sinks.write_pickled(str(path), tensors, tensors.items())
    return path


def _run(*arguments, program=(_SCRIPT,)):
    return subprocess.run(
        [sys.executable, *program, "--preset=pico", *arguments], capture_output=True,
        text=True, timeout=120, cwd=_ROOT,
    )  # fmt: skip


def test_converts_and_says_what_it_did(tmp_path, published, pico):
    out = tmp_path / "out"
    done = _run(
        f"--source={published}", f"--out={out}", "--to=diffusers", "--dtype=float16",
        "--shard_gb=0.00005",
    )
    assert done.returncode == 0, done.stderr
    assert f"{published} (original; " in done.stdout and f"Wrote {out}." in done.stdout
    result = sources.open_source(str(out))
    assert len(list(out.glob("*.safetensors"))) > 1
    for name, _, kind in wan.rows(pico.preset.dit, "diffusers")[:4]:
        assert np.asarray(result[name]).dtype == np.float16, kind
    kernel = trees.flatten(pico.params)["head/kernel"]
    np.testing.assert_array_equal(result["proj_out.weight"], np.float16(kernel).T)

    again = _run(f"--source={published}", f"--out={out}")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1 and "not empty" in again.stderr


def test_dry_run_writes_nothing(tmp_path, published):
    done = _run(f"--source={published}", f"--out={tmp_path / 'out'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "Nothing was written." in done.stdout and "(ours; " in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_wrong_file_is_one_line(tmp_path, published):
    short = tmp_path / "short.pth"
    short.write_bytes(published.read_bytes()[:-5000])
    done = _run(f"--source={short}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.startswith("convert: ") and done.stderr.count("\n") == 1
    assert str(short) in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["short.pth"]


# The command, made to wait after some tensors.
# Whoever runs the tests in the background ignores SIGINT, and that is inherited.
_SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
mark = sys.argv.pop(1)
from launch import common, convert
from tm_jax.checkpoints import sinks
write, count = sinks._write_array, []
def slow(stream, value):
    write(stream, value)
    count.append(1)
    if len(count) == 10:
        open(mark, "w").close()
        time.sleep(60)
sinks._write_array = slow
common.run("convert", convert.main)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_conversion_leaves_nothing(tmp_path, published, number, code):
    mark = tmp_path / "mark"
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(_ROOT), str(mark), "--preset=pico",
         f"--source={published}", f"--out={work / 'out'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not mark.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert mark.exists(), process.communicate()
        assert os.listdir(work)  # Half-written, under a temporary name.
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.communicate()
    assert os.listdir(work) == []
