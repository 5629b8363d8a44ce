"""The launcher of training: plans, settings that are written and read back, one-line errors."""

import importlib
import json
import sys

from absl import flags
import pytest

from launch import common
from tm_jax.training import run as run_lib


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Runs the launcher in this process with flags of its own; returns what it would train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "cache_compilations", lambda: None)
    trained = []
    monkeypatch.setattr(run_lib, "train", lambda *args: trained.append(args) or True)
    kinds = {
        name: getattr(flags, f"DEFINE_{name}")
        for name in ("string", "integer", "enum", "bool", "multi_string")
    }

    def start(*arguments):
        values = flags.FlagValues()
        for name, define in kinds.items():
            monkeypatch.setattr(
                flags, f"DEFINE_{name}",
                lambda *a, define=define, **k: define(*a, flag_values=values, **k),
            )
        monkeypatch.delitem(sys.modules, "launch.train", raising=False)
        module = importlib.import_module("launch.train")
        monkeypatch.delitem(sys.modules, "launch.train")
        values(["train", *arguments])
        common.guard("train", module.main)
        return trained[-1] if trained else None

    return start


def _record(output):
    """The JSON at the begin of a plan."""
    return json.JSONDecoder().raw_decode(output)[0]


def test_a_dry_run_prints_settings_and_trees(launch, capsys):
    assert launch(
        "--preset=pico", "--stage=distill", "--mesh=fsdp=8,tensor=2", "--dry_run",
        "--set=batch=8", "--set=optimizer.schedule=wsd", "--loop=keep=5",
    ) is None
    output = capsys.readouterr().out
    record = _record(output)
    assert record["preset"]["transformer"]["width"] == 32
    assert record["settings"]["optimizer"]["schedule"] == "wsd"
    assert record["loop"] == {**record["loop"], "mesh": "fsdp=8,tensor=2", "keep": 5}
    assert "mesh data=1, fsdp=8, seq=1, tensor=2: 16 devices" in output
    for tree in ("parameters", "optimizer", "average", "critic optimizer", "teacher", "cache"):
        assert f"\n{tree}\n" in output and f"\n  {tree} " in output
    assert "note:" not in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--stage=teacher", "--mesh=fsdp=64", "--dry_run", "--preset=pico"], "use fsdp=32"),
        (["--stage=teacher", "--mesh=fdsp=2", "--dry_run"], "unknown axis 'fdsp'; choose from"),
        (["--stage=teacher", "--set=bach=2", "--dry_run"], "has no 'bach'; it has data, batch"),
        (["--stage=teacher", "--loop=kep=2", "--dry_run"], "has no 'kep'"),
        (["--stage=vae", "--preset=tm-18b", "--dry_run"], "no component for stage vae"),
        (["--stage=distill", "--workdir=none", "--dry_run"], "finish `--stage=teacher"),
        (["--stage=teacher", "--corpus=none", "--dry_run"], "--corpus: there is no none"),
        (["--stage=vae", "--workdir=a", "--mesh=fsdp=3"], "would fit"),
        (["--stage=teacher"], "--workdir: name the folder"),
        (["--dry_run"], "--stage: expected one of vae, "),
        (["--dry_run", "--config=none.json"], "none.json"),
    ],
)
def test_mistakes_end_in_one_line(launch, arguments, message):
    with pytest.raises(SystemExit) as caught:
        launch(*arguments)
    assert message in caught.value.code and "\n" not in caught.value.code


def test_settings_are_written_beside_the_run_and_read_back(launch, tmp_path, capsys):
    first = launch(
        "--stage=vae", "--workdir=a", "--steps=7", "--seed=3",
        "--mesh=fsdp=2", "--set=optimizer.learning_rate=3e-4", "--loop=log_every=2",
    )
    preset, stage, settings, workdir, steps, loop_config, *_ = first
    path = tmp_path / "a" / "vae" / "config.json"
    again = launch(f"--config={path}", "--workdir=b")
    assert again[:3] == (preset, stage, settings) and again[4:6] == (steps, loop_config)
    assert (workdir, again[3]) == ("a", "b")
    assert (loop_config.seed, loop_config.mesh, loop_config.log_every) == (3, "fsdp=2", 2)
    assert json.loads(path.read_text()) == json.loads((tmp_path / "b/vae/config.json").read_text())
    # Flags come on top of the file.
    changed = launch(f"--config={path}", "--workdir=c", "--steps=9", "--seed=0", "--set=batch=3")
    assert (changed[4], changed[5].seed, changed[2].batch) == (9, 0, 3)
    assert changed[2].optimizer == settings.optimizer
    assert not capsys.readouterr().err
    # A run that goes on with other settings says which.
    launch(f"--config={path}", "--workdir=a", "--set=optimizer.learning_rate=1e-4")
    assert "settings.optimizer.learning_rate: 0.0003 -> 0.0001" in capsys.readouterr().err
    path.write_text(json.dumps({"stage": "vae", "settings": {"bach": 3}}))
    with pytest.raises(SystemExit) as caught:
        launch(f"--config={path}", "--workdir=d")
    assert "VideoVAEConfig has no 'bach'" in caught.value.code


def test_another_corpus_than_that_of_the_file(launch, tmp_path):
    first = launch("--stage=speech", "--workdir=a", "--corpus=one")
    path = tmp_path / "a" / "speech" / "config.json"
    assert launch(f"--config={path}", "--workdir=b")[2].corpus == "one"
    assert launch(f"--config={path}", "--workdir=b", "--corpus=two")[2].corpus == "two"
    assert first[2].corpus == "one"


def test_the_mesh_of_a_flag():
    assert common.mesh("") is None
    assert dict(common.mesh("fsdp=2,seq=2").shape) == {"data": 2, "fsdp": 2, "seq": 2, "tensor": 1}
