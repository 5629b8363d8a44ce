"""Launchers fetch the weights that their flags name on a Hub on this machine."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tests import hub_server
from tests.launch import in_process
from tests.training import small
from tm_jax.checkpoints import files
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.checkpoints import wan
from tm_jax.core import trees

pytest.importorskip("huggingface_hub")
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _files():
    """The shipped weights: their parts, and the sizes beside them."""
    folder = _ROOT / "tm_jax" / "assets" / "nano"
    return [*folder.glob("*.safetensors"), folder / "preset.json"]


@pytest.fixture
def hub(tmp_path):
    """A Hub, and what runs a launcher that sees it: `hub.run(name, *flags)`."""
    with hub_server.Hub() as server:

        def run(name, *flags, **environment):
            settings = {
                "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"),
                "HF_TOKEN_PATH": str(tmp_path / "none"), **environment,
            }
            return subprocess.run(
                [sys.executable, str(_ROOT / "launch" / f"{name}.py"), *flags],
                capture_output=True, text=True, timeout=180, cwd=tmp_path, check=False,
                env={**os.environ, **settings},
            )  # fmt: skip

        server.run = run
        yield server


def test_convert_reads_a_repository_and_writes_down_its_commit(hub, tmp_path, pico):
    tensors = mapping.write(pico.params, wan.rows(pico.preset.dit), own=wan.is_own)
    file = str(tmp_path / "x.pth")
    sinks.write_pickled(file, tensors, tensors.items())
    data = pathlib.Path(file).read_bytes()
    sha = hub.push("a/b", {"transformer/x.pt": data, "vae/x.pt": b"v", "README.md": b"r"})
    flags = ["--preset=pico", "--source=hf:a/b", "--part=transformer"]
    out = str(tmp_path / "out.safetensors")
    done = hub.run("convert", *flags, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert f"hf:a/b is hf:a/b@{sha}" in done.stderr and "Wrote" in done.stdout
    assert hub.fetched() == ["transformer/x.pt"]
    assert files.facts(out)["source"] == f"hf:a/b@{sha}"
    kernel = trees.flatten(pico.params)["head/kernel"]
    np.testing.assert_array_equal(sources.open_source(out)["head/kernel"], kernel)
    assert set(sources.open_source(out)) == {
        n for n in trees.flatten(pico.params) if not wan.is_own(n)
    }

    hub.requests.clear()
    done = hub.run("convert", *flags, f"--out={out}", "--dry_run", "--offline")
    assert done.returncode == 0, done.stderr
    done = hub.run("convert", "--source=hf:c/d", f"--out={out}", HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("convert: hf:c/d: not, or not whole, in the cache")
    assert not hub.requests


@pytest.mark.parametrize(
    "name, flags",
    [
        ("convert", ["--preset=pico", "--source=hf:no/body", "--out=x"]),
        ("generate", ["--image=x.png", "--weights=hf:no/body", "--seconds=1"]),
        ("serve", ["--port=0", "--weights=hf:no/body"]),
        # The sampler of the arm stands behind the revision.
        ("evaluate", ["--noplots", "--weights=other=hf:no/body@v1@4,clean"]),
        ("train", ["--stage=teacher", "--data=examples", "--workdir=run", "--start=hf:no/body"]),
    ],
)
def test_every_launcher_says_in_one_line_what_is_not_there(
    hub, tmp_path, monkeypatch, capsys, name, flags
):
    if name == "serve":
        pytest.importorskip("aiohttp")
    if name == "train":
        small.write_examples(str(tmp_path / "examples"), count=1)
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    hub.serve_this_process(monkeypatch, tmp_path)
    with pytest.raises(SystemExit) as caught:
        in_process.launcher(monkeypatch, name)(*flags)
    line, spec = caught.value.code, "hf:no/body@v1" if name == "evaluate" else "hf:no/body"
    assert line.startswith(f"{name}: {spec}: ") and "\n" not in line
    assert "no public repository no/body" in line and not capsys.readouterr().err


def test_the_library_loads_a_repository(hub, tmp_path):
    """tm_jax.load gives the weights that a repository holds: those shipped, in this one."""
    hub.push("me/nano", {f.name: f.read_bytes() for f in _files()})
    program = (
        "import jax, numpy as np, tm_jax\n"
        "a, b = tm_jax.load(weights='hf:me/nano'), tm_jax.load()\n"
        "jax.tree.map(np.testing.assert_array_equal, a.params, b.params)\n"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(_ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=180,
        check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(hub.fetched()) == sorted(f.name for f in _files())
