"""The launcher of plans: its flags, its last line and its exit status."""

import importlib
import json
import sys

from absl import flags
import pytest

from launch import common
from tm_jax.planning import chips
from tm_jax.planning import measure
from tm_jax.planning import search


@pytest.fixture
def launch(monkeypatch):
    """Runs the launcher in this process; programs need `needs` GiB and are not compiled."""
    asked = []
    kinds = {
        name: getattr(flags, f"DEFINE_{name}")
        for name in ("string", "integer", "enum", "bool", "multi_string")
    }

    def start(*arguments, needs=1.0):
        def fake(preset, stage, settings, topology, mesh, depths, **options):
            asked.append((stage, settings, topology, mesh, depths, options))
            program = measure.Measured(
                name="update", times=1, temporaries=needs * chips.GIB, flops=1e12,
                recomputed=0.0, replicated=1.0, memory_bytes=1e9, collectives=(),
            )
            return measure.Stage(
                unit="update", frames=12, tokens=48, trees={"parameters": chips.GIB}, inside={},
                programs=(program,), depths=depths or (2,), seconds=1.0,
            )

        monkeypatch.setattr(measure, "measure", fake)
        values = flags.FlagValues()
        for name, define in kinds.items():
            monkeypatch.setattr(
                flags, f"DEFINE_{name}",
                lambda *a, define=define, **k: define(*a, flag_values=values, **k),
            )
        monkeypatch.delitem(sys.modules, "launch.plan", raising=False)
        module = importlib.import_module("launch.plan")
        monkeypatch.delitem(sys.modules, "launch.plan")
        values(["plan", *arguments])
        common.guard("plan", module.main)
        return asked[-1]

    return start


def test_what_fits_says_so_last(launch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    stage, settings, topology, mesh, depths, options = launch(
        "--preset=pico", "--stage=distill", "--topology=h100:8", "--mesh=fsdp=4,seq=2",
        "--remat=True", "--accumulate=3", "--set=critic_updates=2", f"--json={path}",
        "--depths=1,2",
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fits: 2.0 of 79.6 GiB"
    assert (stage, settings.batch, settings.remat) == ("distill", 4, True)
    assert settings.optimizer.accumulate == settings.critic_optimizer.accumulate == 3
    assert settings.critic_updates == 2 and topology.count == 8
    assert mesh == {"data": 1, "fsdp": 4, "seq": 2, "tensor": 1} and depths == (1, 2)
    assert options == {"simulate": True, "quick": False, "arithmetic": False}
    written = json.loads(path.read_text())
    assert written["fits"] and written["total_gib"] == 2 and written["mesh"] == {"fsdp": 4, "seq": 2}


def test_what_does_not_fit_ends_with_status_one(launch, capsys):
    with pytest.raises(SystemExit) as caught:
        launch("--preset=pico", "--stage=teacher", "--topology=v5e:4x4", needs=40.0)
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "does not fit: 41.0 of 16 GiB"
    assert "would fit" in lines[-2] or "at least" in lines[-2]


def test_the_case_that_would_fit_is_compiled_to_confirm(launch, capsys, monkeypatch):
    monkeypatch.setattr(search, "estimate", lambda plan, case: 3.0)
    with pytest.raises(SystemExit):
        launch("--preset=pico", "--stage=teacher", "--topology=h100:8", needs=90.0)
    output = capsys.readouterr().out
    assert "3.0 GiB by arithmetic; compiled, it does not fit: 91.0 of 79.6 GiB" in output


def test_a_stream_has_no_settings_of_training(launch, capsys):
    stage, settings, *_ = launch("--preset=pico", "--stage=stream", "--topology=v6e:4x4",
                                 "--mesh=data=4,seq=4")
    assert (stage, settings.batch) == ("stream", 4)
    assert "times real time" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--topology: name it"), (["--topology=v5p:2x2x1"], "--stage: name it"),
        (["--stage=teacher", "--topology=tpu:8"], "unknown chip 'tpu'; choose from"),
        (["--stage=teacher", "--topology=v5p:8"], "v5p has 3 dimensions"),
        (["--stage=teacher", "--topology=h100:8", "--mesh=fsdp=3"], "would fit"),
        (["--stage=teacher", "--topology=h100:8", "--mesh=fdsp=8"], "unknown axis 'fdsp'"),
        (["--stage=teacher", "--topology=h100:6", "--preset=pico", "--mesh=fsdp=6"],
         "does not divide the 32 width"),
        (["--stage=teacher", "--topology=h100:8", "--depths=two"], "--depths: expected"),
        (["--stage=teacher", "--topology=h100:8", "--set=bach=1"], "has no 'bach'"),
        (["--stage=teacher", "--topology=h100:8", "--remat=perhaps"], "--set remat"),
        (["--stage=stream", "--topology=h100:8", "--accumulate=2"], "a stream does not learn"),
        (["--stage=teacher", "--topology=h100:8", "--preset=tm-19b"], "tm-19b"),
    ],
)
def test_mistakes_end_in_one_line(launch, arguments, message):
    with pytest.raises(SystemExit) as caught:
        launch(*arguments)
    assert message in caught.value.code and "\n" not in caught.value.code


def test_without_the_compiler_of_tpus(launch, monkeypatch):
    module = sys.modules
    monkeypatch.setitem(module, "libtpu", None)
    with pytest.raises(ImportError):
        measure.devices(chips.parse("v5p:2x2x1"), False)
