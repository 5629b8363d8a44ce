"""Low-rank adaptation against its formula, and all stages with it, from weights to weights."""

import dataclasses
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from tm_jax.checkpoints import files
from tm_jax.checkpoints import wan
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.parallel import rules
from tm_jax.training import lora
from tm_jax.training import plan
from tm_jax.training import run
from tm_jax.training import transformer_stage

_CONFIG = lora.LoraConfig(rank=2, alpha=6.0)
_INIT = transformer_stage.init(small.models())


def _adapters(config, seed=3):
    """Adapters whose factors both are random."""
    made = rules.unbox(lora.init(config, _INIT)(jax.random.key(seed)))
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), made)


def test_merged_matrices_are_base_plus_scaled_product(pico):
    base, adapter = pico.random(small.shapes(), 1), _adapters(_CONFIG)
    merged = trees.flatten(lora.merge(adapter, base, _CONFIG))
    flat, found = trees.flatten(adapter), trees.flatten(base)
    assert merged.keys() == found.keys()
    changed = set()
    for name, value in found.items():
        module = name.rpartition("/")[0]
        if f"{module}/lora_a" in flat and name.endswith("/kernel"):
            a, b = (np.asarray(flat[f"{module}/lora_{x}"], np.float64) for x in "ab")
            assert a.shape == (value.shape[0], 2) and b.shape == (2, value.shape[1])
            np.testing.assert_allclose(merged[name], value + 3 * a @ b, rtol=1e-5, atol=1e-5)
            changed.add(name)
        else:
            np.testing.assert_array_equal(merged[name], value)
    assert 2 * len(changed) == len(flat)
    assert {"blocks_0/q/kernel", "blocks_0/mlp_out/kernel", "audio_projection/in/kernel"} <= changed
    assert "head/kernel" not in changed and "text_embedding/in/kernel" not in changed


def test_new_layers_learn_in_full_and_start_as_they_are(pico):
    """In float32 from a base in bfloat16; nothing is changed by adapters that have not learnt."""
    config = dataclasses.replace(_CONFIG, new_in_full=True)
    base = trees.cast(pico.random(small.shapes(), 1), jnp.bfloat16)
    stage = run.loop.Stage(
        name="s", init=_INIT, loss=lambda p, *rest: 0.0, frozen={}, batches=iter,
        sample=lambda *a: None, finish=lambda p, f: p, optimizer=None,
    )
    made = lora.adapt(stage, config, base)
    mesh = rules.make_mesh(jax.devices()[:4], data=1, fsdp=2, tensor=2)
    boxed = jax.eval_shape(made.init, jax.random.key(0))
    adapter = made.start(rules.shardings(mesh, boxed))
    flat = trees.flatten(adapter)
    assert {n for n in flat if "lora" not in n} == {n for n in trees.flatten(base) if wan.is_own(n)}
    assert not any("k_audio/lora" in name for name in flat)
    chex.assert_trees_all_equal_dtypes(adapter, jax.tree.map(lambda x: np.float32(0), adapter))
    chex.assert_trees_all_equal(lora.merge(adapter, base, config), base)
    # Factors are split like the matrix, the rank where the other side would be whole.
    q = flat["blocks_0/q/lora_a"], flat["blocks_0/q/lora_b"]
    assert [x.addressable_shards[0].data.shape for x in q] == [(16, 2), (1, 16)]
    labels = trees.flatten(made.labels(adapter))
    assert {labels[n] for n in flat if "lora" in n} == {"base"}
    assert {labels[n] for n in flat if "lora" not in n} == {"new"}


@pytest.mark.parametrize("changes, message", [
    ({"targets": "nothing"}, "finds no matrix"), ({"rank": 99}, "must be at most 32"),
])
def test_what_cannot_be_adapted_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lora.init(dataclasses.replace(_CONFIG, **changes), _INIT)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="rank must be at least 0"):
        lora.LoraConfig(rank=-1)
    with pytest.raises(ValueError, match="no regular expression"):
        lora.LoraConfig(targets="(")


_MORE = ("lora.rank=2",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pico):
    """A work directory with all stages after a few updates of adapters."""
    folder = str(tmp_path_factory.mktemp("lora"))
    small.lay_out(folder, pico)
    base = pico.random(small.shapes(), 5)
    files.save(f"{folder}/weights/transformer.safetensors", base, "float32")
    for stage in ("teacher", "student", "distill"):
        start = f"{folder}/weights" if stage == "teacher" else None
        assert run.train(
            small.preset(), stage, small.settings(stage, folder, *_MORE), folder,
            small.STEPS[stage], small.LOOP, f"{folder}/export", start=start,
            mesh=small.one_device(),
        ), stage
    return folder


def _weights(path):
    return trees.flatten(files.load(path, rules.unbox(small.shapes())))


def test_every_stage_publishes_weights_and_the_adapter_that_made_them(folder):
    """The teacher's adapters change the given weights; the student's those of the teacher."""
    before = {
        "teacher": f"{folder}/weights/transformer.safetensors",
        "student": f"{folder}/teacher/transformer.safetensors",
        "distill": f"{folder}/teacher/transformer.safetensors",
    }
    for stage, base in before.items():
        settings = small.settings(stage, folder, *_MORE).lora
        adapter = lora.read(f"{folder}/{stage}/adapter.safetensors", settings, _INIT)
        found = _weights(f"{folder}/{stage}/transformer.safetensors")
        wanted = trees.flatten(lora.merge(adapter, trees.unflatten(_weights(base)), settings))
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert any(x.any() for n, x in trees.flatten(adapter).items() if n.endswith("lora_b"))
    assert os.path.getsize(f"{folder}/export/transformer.safetensors")


def test_distillation_starts_at_the_regression_s_adapters(folder):
    """And shares the teacher's weights, of which there is one copy."""
    settings = small.settings("distill", folder, *_MORE)
    stage = run.make(small.preset(), "distill", settings, folder, small.one_device())
    assert stage.frozen["base"] is stage.frozen["teacher"]
    adapter = lora.read(f"{folder}/student/adapter.safetensors", settings.lora, _INIT)
    chex.assert_trees_all_equal(stage.start, adapter)
    student = _weights(f"{folder}/student/transformer.safetensors")
    merged = trees.flatten(lora.merge(adapter, stage.frozen["base"], settings.lora))
    for name, value in student.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    # A student that learnt in full is a base of its own.
    os.rename(f"{folder}/student/adapter.safetensors", f"{folder}/student/away")
    try:
        other = run.make(small.preset(), "distill", settings, folder, small.one_device())
    finally:
        os.rename(f"{folder}/student/away", f"{folder}/student/adapter.safetensors")
    for name, value in trees.flatten(other.frozen["base"]).items():
        np.testing.assert_array_equal(value, student[name])


def test_other_settings_than_the_adapter_s_are_refused(folder):
    settings = small.settings("distill", folder, "lora.rank=3")
    with pytest.raises(ValueError, match="was trained with {'lora_rank': '2', .*set lora as it"):
        run.make(small.preset(), "distill", settings, folder, small.one_device())


def test_adaptation_needs_weights(folder, tmp_path):
    settings = small.settings("teacher", folder, *_MORE)
    with pytest.raises(ValueError, match="adapts weights that are there: name them with --start"):
        run.make(small.preset(), "teacher", settings, str(tmp_path), None)


def test_the_large_preset_keeps_one_base_and_narrow_factors():
    preset = presets.get("tm-18b")
    settings = dataclasses.replace(
        run.config("distill", "c", "d"), batch=8, lora=lora.LoraConfig(rank=64)
    )
    totals = plan.totals(plan.describe(preset, "distill", {"fsdp": 8}, settings))
    # In each of 40 layers, rank 64 on both sides: four square matrices of self-attention, six
    # of text and image, two of sound, two of the feed-forward layer; and the sound's projection.
    d, e, m = 5120, 1024, 13824
    layer = 10 * 2 * d + 2 * (e + d) + 2 * (d + m)
    projection = (72 * 1024 + 10240) + 2 * 10240 + (10240 + 32 * 1024)
    factors = 64 * (40 * layer + projection)
    for name in ("parameters", "average", "critic parameters"):
        assert totals[name][0] == 4 * factors, name
        assert totals[name][1] * 8 == totals[name][0], name
    number = 18_010_365_760
    assert totals["teacher"][0] == 2 * number and "base" not in totals
    kept = sum(device for _, device in totals.values()) / 2**30
    assert kept < 10  # Of 80 GB; all parameters would keep 67.
