"""Plans: what a stage keeps and needs, compiled for simulated devices and for a TPU."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from tm_jax.configs import presets
from tm_jax.parallel import rules
from tm_jax.planning import chips
from tm_jax.planning import measure
from tm_jax.planning import plan
from tm_jax.planning import report
from tm_jax.planning import roofline
from tm_jax.planning import search
from tm_jax.planning import work
from tm_jax.training import lora
from tm_jax.training import plan as training_plan
from tm_jax.training import run

_MESH = {"data": 1, "fsdp": 4, "seq": 2, "tensor": 1}


def _settings(stage, **changes):
    return dataclasses.replace(run.config(stage, "corpus", "data"), batch=8, **changes)


def _case(stage="teacher", topology="h100:8", mesh=None, **changes):
    return plan.Case(
        preset=presets.get("pico"), stage=stage, settings=_settings(stage),
        topology=chips.parse(topology), mesh=mesh or _MESH, simulate=True, **changes,
    )


def _plan(case, trees, temporaries, inside=None, flops=1e12):
    """A plan with figures by hand."""
    program = measure.Measured(
        name="update", times=2, temporaries=temporaries, flops=flops, recomputed=flops / 4,
        replicated=1.0, memory_bytes=0.0, collectives=(),
    )
    stage = measure.Stage(
        unit="update", frames=48, tokens=96, trees=trees, inside=inside or {},
        programs=(program,), depths=(2,), seconds=0.0,
    )
    time = roofline.time(case.topology, flops / case.topology.count, 0.0, ())
    return plan.Plan(case=case, stage=stage, times=(time,))


def test_the_distillation_keeps_what_training_s_own_plan_says():
    mesh = rules.make_mesh(jax.devices()[:8], **_MESH)
    settings = _settings("distill")
    made = work.make(presets.get("pico"), "distill", settings, mesh)
    sizes = {name: work.device_bytes(tree) for name, tree in made.trees.items()}
    totals = training_plan.totals(
        training_plan.describe(presets.get("pico"), "distill", _MESH, settings)
    )
    for name in ("parameters", "average", "teacher"):
        assert sizes[name] == totals[name][1], name
    critic = totals["critic parameters"][1] + totals["critic optimizer"][1]
    # Groups of parameters add counters, the state two more.
    assert abs(sizes["critic"] - critic) < 64
    assert abs(sizes["optimizer"] - totals["optimizer"][1]) < 64
    assert made.inside["gradients"] == totals["gradients"][1]
    assert abs(made.inside["caches"] - totals["cache"][1]) <= 8 * 12  # An index and a key each.
    assert [program.times for program in made.programs] == [1, settings.critic_updates]
    # Six updates of eight clips, each of six chunks of twelve frames.
    assert made.frames == 6 * 8 * 6 * 12 and made.tokens == made.frames // 4 * 16


@pytest.mark.parametrize("stage", ["teacher", "student", "distill"])
def test_adaptation_keeps_one_base_and_its_factors(stage):
    mesh = rules.make_mesh(jax.devices()[:8], **_MESH)
    settings = _settings(stage, lora=lora.LoraConfig(rank=2))
    made = work.make(presets.get("pico"), stage, settings, mesh)
    sizes = {name: work.device_bytes(tree) for name, tree in made.trees.items()}
    totals = training_plan.totals(
        training_plan.describe(presets.get("pico"), stage, _MESH, settings)
    )
    base = "teacher" if stage == "distill" else "base"
    for name in ("parameters", "average", base):
        assert sizes[name] == totals[name][1], name
    assert sizes["parameters"] < sizes[base] / 4
    networks = 2 if stage == "distill" else 1
    assert made.inside["adapted parameters"] == (1 + networks) * sizes[base]
    assert made.inside["gradients"] == sizes["parameters"]
    assert all(program.trace() is not None for program in made.programs)


def test_a_stage_on_simulated_devices():
    found = plan.make(_case(depths=(1,)))
    [program] = found.stage.programs
    assert found.stage.depths == (1,) and program.temporaries > 0
    kinds = {one.kind for one in program.collectives}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
    assert {one.members for one in program.collectives} <= {2, 4, 8}
    # Products of one layer, forward and twice as much backward, at least for every token.
    c = presets.get("pico").dit
    tokens = 8 * (1 + 6) * 16
    layer = 2 * (6 * c.width**2 + 2 * c.width * c.mlp_width)
    assert program.flops > 3 * tokens * layer
    assert found.fits and found.verdict == f"fits: {found.total_gib:.1f} of 79.6 GiB"
    assert plan.SIMULATED in report.text(found)
    json.dumps(report.values(found))
    # Arithmetic alone finds the same products and trees; it has no collectives to count.
    alone = plan.make(_case(depths=(1,), arithmetic=True))
    assert alone.stage.programs[0].flops == program.flops
    assert alone.stage.trees == found.stage.trees and not alone.stage.programs[0].collectives
    assert plan.ARITHMETIC in report.text(alone)


def test_depth_is_a_line():
    case = _case()
    low, high = (
        dataclasses.replace(
            _plan(case, {"parameters": 10.0 + 3 * n}, 100.0 + 7 * n, flops=5.0 + n).stage,
            depths=(n,),
        )
        for n in (2, 4)
    )
    found = measure.extrapolate(low, high, 40)
    assert found.trees == {"parameters": 10 + 3 * 40} and found.depths == (2, 4)
    assert found.programs[0].temporaries == 100 + 7 * 40 and found.programs[0].flops == 45


def test_memory_by_kind_adds_up():
    found = _plan(
        _case(), {"parameters": 20 * chips.GIB}, 30.0 * chips.GIB, {"gradients": 5 * chips.GIB}
    )
    assert found.memory["activations and temporaries"] == 25 * chips.GIB
    assert found.total_gib == 50 and found.verdict == "fits: 50.0 of 79.6 GiB"
    # Two programs a unit, a quarter of their work recomputed.
    assert found.least_s == pytest.approx(2 * 1e12 / 8 / 989e12)
    assert found.utilisation(found.least_s) == pytest.approx(0.75)
    over = _plan(_case(), {"parameters": 79 * chips.GIB}, 1.0 * chips.GIB)
    assert not over.fits and over.verdict == "does not fit: 80.0 of 79.6 GiB"


def test_what_would_fit_by_arithmetic():
    mesh = {"data": 8, "fsdp": 1, "seq": 1, "tensor": 1}
    found = _plan(_case(mesh=mesh), {"parameters": 90 * chips.GIB}, 1.0 * chips.GIB)
    best = search.candidates(found)[0]
    # Half of the parameters each would do: the least change that does is taken.
    assert best.case.mesh["fsdp"] * best.case.mesh["tensor"] >= 2
    assert best.gib < 79.6 and "--mesh=" in best.flags and "--remat=False" in best.flags
    assert all(c.gib <= 79.6 for c in search.candidates(found))
    nothing = _plan(_case(), {"parameters": 300 * chips.GIB}, 1.0 * chips.GIB)
    adapted, line = search.suggest(nothing)
    assert adapted.startswith("--lora=16 --remat with this mesh and batch: 0.0 GiB")
    assert "at least 16 such chips" in line  # 300 GiB on each of four shares, 79.6 a chip.


def test_accumulation_and_remat_take_less():
    case = _case()
    found = _plan(case, {"parameters": chips.GIB}, 60.0 * chips.GIB)
    remat = dataclasses.replace(case, settings=dataclasses.replace(case.settings, remat=True))
    optimizer = dataclasses.replace(case.settings.optimizer, accumulate=2)
    half = dataclasses.replace(
        case, settings=dataclasses.replace(case.settings, batch=4, optimizer=optimizer)
    )
    assert search.estimate(found, case) == pytest.approx(61)
    assert search.estimate(found, remat) < 61
    assert search.estimate(found, half) == pytest.approx(31)


def test_too_few_simulated_devices():
    with pytest.raises(ValueError, match="h100:9 needs 9 simulated devices, there are 8"):
        measure.devices(chips.parse("h100:9"), True)


def test_a_chunk_of_a_stream_keeps_its_parts():
    mesh = rules.make_mesh(jax.devices()[:2], seq=2)
    made = work.make(presets.get("pico"), "stream", types.SimpleNamespace(batch=1), mesh)
    assert [program.name for program in made.programs] == ["audio", "denoise", "decode"]
    assert (made.frames, made.tokens) == (12, 48)
    # 2 layers, keys and values, 16 tokens of the sink and 48 of a chunk, 4 heads of 8 float32
    # numbers, heads split in two; and an index and a key.
    cache = 2 * 2 * (16 + 48) * 4 * 8 * 4 // 2
    assert work.device_bytes(made.trees["caches"]) == cache + 12
    assert {f"parameters of {n}" for n in ("transformer", "audio", "image", "vae")} < set(made.trees)


@pytest.mark.parametrize("flags", [
    ("--preset=pico", "--stage=teacher", "--mesh=fsdp=2,seq=2"),
    # A layer of the paper's model: all programs of a stream, with splash attention.
    ("--preset=tm-18b", "--stage=stream", "--mesh=tensor=4", "--attention=splash", "--search=0"),
])
def test_a_reduced_model_compiles_for_a_tpu(flags):
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    arguments = ["plan", *flags, "--depths=1", "--topology=v5p:2x2x1", "--quick"]
    code = (
        f"import sys; sys.argv = {arguments}\n"
        "from launch import common, plan\n"
        "common.run('plan', plan.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("fits: ")
    assert "all-gather" in done.stdout or "all-to-all" in done.stdout or "utilisation" in done.stdout
    assert plan.COMPILED in done.stdout
