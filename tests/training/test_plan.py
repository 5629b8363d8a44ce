"""The plan of a stage against arithmetic by hand, and what it refuses."""

import dataclasses
import itertools
import math
import types

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tm_jax.configs import presets
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import plan
from tm_jax.training import steps


def _parameters(name):
    """Parameters of the transformer of a preset with text and image, layer by layer."""
    c = presets.get(name).dit
    d, e, patch = c.width, c.audio_width, c.patch**2

    def dense(*widths):
        return sum((a + 1) * b for a, b in itertools.pairwise(widths))

    attention = 4 * dense(d, d) + 2 * d  # Queries, keys, values, output; two norms.
    image, audio = 2 * dense(d, d) + d, 2 * dense(e, d) + d  # Keys, values, one norm.
    block = 2 * attention + image + audio + 2 * d + dense(d, c.mlp_width, d) + 6 * d
    embeddings = (
        dense((c.latent_channels + c.condition_channels) * patch, d)
        + dense(c.frequency_width, d, d) + dense(d, 6 * d) + c.modes * d
        + dense(c.text_width, d, d) + dense(c.image_width, c.image_width, d)
        + 2 * c.image_width + 2 * d
    )
    hidden = c.audio_hidden
    projection = 2 * e + dense(
        c.audio_window * c.audio_feature_width, hidden, hidden, c.audio_tokens * e
    )
    head = dense(d, c.latent_channels * patch) + 2 * d
    return c.num_layers * block + embeddings + projection + head


def test_the_paper_s_model_has_18_billion_parameters():
    assert _parameters("tm-18b") == 18_010_365_760


def _settings(batch=8, **changes):
    fields = {
        "batch": batch, "optimizer": optimizer_lib.OptimizerConfig(),
        "critic_optimizer": optimizer_lib.OptimizerConfig(), "num_steps": None, "policy": None, "sink": None,
        "positions": None,
    }
    return types.SimpleNamespace(**{**fields, **changes})


@pytest.fixture(scope="module")
def large():
    rows = plan.describe(presets.get("tm-18b"), "distill", {"fsdp": 64}, _settings(batch=64))
    return rows, plan.totals(rows)


def test_sizes_of_the_large_preset_are_those_of_its_parameters(large):
    _, totals = large
    number, counters = _parameters("tm-18b"), 2 * 4
    expected = {
        "parameters": 4 * number, "gradients": 4 * number, "average": 4 * number,
        "optimizer": 8 * number + counters, "critic parameters": 4 * number,
        "critic optimizer": 8 * number + counters, "teacher": 2 * number,
    }
    assert {name: totals[name][0] for name in expected} == expected
    for name, size in expected.items():
        # All large matrices are split 64-fold; biases and norms, a thousandth, are not.
        assert size / 64 < totals[name][1] < 1.03 * size / 64, name
    # 40 layers, keys and values, 64 samples, 1024 slots of the sink and 3072 of a chunk, 40
    # heads of 128 numbers of 2 bytes; a device holds one sample. An index and a key beside it.
    cache = 40 * 2 * 64 * (1024 + 3072) * 40 * 128 * 2
    assert totals["cache"] == (cache + 64 * 12, cache // 64 + 12)
    assert set(totals) == {*expected, "cache"}


def test_rows_carry_shape_dtype_and_partition(large):
    [row] = [
        r for r in large[0] if r.tree == "parameters" and r.name == "blocks_*/mlp_in/kernel"
    ]
    assert (row.count, row.shape, row.dtype) == (40, (5120, 13824), "float32")
    assert row.spec == P("fsdp", "tensor")
    assert row.bytes == 40 * 5120 * 13824 * 4 == 64 * row.device_bytes
    text = plan.render(large[0], {"fsdp": 64})
    assert "blocks_*/mlp_in/kernel" in text and "40 x [5120, 13824] float32" in text
    assert "mesh data=1, fsdp=64, seq=1, tensor=1: 64 devices" in text
    [line] = [x for x in text.splitlines() if x.startswith("  teacher ")]
    assert line.split() == ["teacher", "33.55", "GiB", "548.64", "MiB", "a", "device"]
    assert sum(name in text for name in ("mu/...", "nu/...")) == 2


def test_per_step_caches_hold_one_chunk_per_step():
    settings = _settings(batch=4, num_steps=3, policy="per_step")
    rows = plan.describe(presets.get("pico"), "distill", {"data": 2, "tensor": 4}, settings)
    # 2 layers, keys and values, 4 samples, 16 tokens a latent (64 pixels, stride 8, patch 2),
    # of which the sink has one and each of three caches three; 4 heads of 8 float32 numbers.
    whole = 2 * 2 * 4 * 16 * (1 + 3 * 3) * 4 * 8 * 4
    assert plan.totals(rows)["cache"] == (whole + 4 * 12, whole // 8 + 2 * 12)


def test_the_plan_is_what_a_state_holds(pico):
    """Shapes and shardings by arithmetic equal those of a state on eight devices."""
    sizes = {"fsdp": 4, "tensor": 2}
    mesh = rules.make_mesh(**sizes)
    config = optimizer_lib.OptimizerConfig(weight_decay=0.1)
    rows = plan.describe(pico.preset, "teacher", sizes, _settings(optimizer=config))
    totals = plan.totals(rows)

    def init(key):
        return pico.model.init(key, method=transformer.touch)["params"]

    state = steps.layout(init, optimizer_lib.make(config, 9), mesh)
    for name, tree in (
        ("parameters", state.params), ("average", state.average), ("optimizer", state.optimizer)
    ):
        leaves = jax.tree.leaves(tree)
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
        device = sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves
        )
        assert totals[name] == (whole, device), name
    assert totals["parameters"][0] == 4 * _parameters("pico")


def test_a_longer_window_is_a_larger_cache():
    """Three chunks of history instead of one, beside the sink's third of a chunk."""
    short, long = (
        plan.totals(plan.describe(presets.get("pico"), "distill", {}, _settings(history=n)))
        for n in (1, 3)
    )
    index_and_key = 8 * 12
    assert (long["cache"][0] - index_and_key) * 4 == (short["cache"][0] - index_and_key) * 10


def test_a_part_of_the_small_presets():
    rows = plan.describe(presets.get("nano"), "vae", {}, _settings())
    assert set(plan.totals(rows)) == {"parameters", "gradients", "optimizer", "average"}
    assert all(row.bytes == row.device_bytes for row in rows)


@pytest.mark.parametrize(
    "preset, stage, sizes, message",
    [
        ("tm-18b", "distill", {"fsdp": 48}, "not divide the 5120 width .* use fsdp=40 or 64"),
        ("tm-18b", "teacher", {"tensor": 16}, "divide the 40 attention heads .* tensor=10 or 20"),
        ("tm-18b", "teacher", {"seq": 5}, "divide the 3072 tokens of a chunk .* seq=4 or 6"),
        ("pico", "teacher", {"fsdp": 64}, "fsdp=64 does not divide the 32 width .* use fsdp=32"),
        ("tm-18b", "speech", {}, "tm-18b has no component for stage speech: .* those of nano"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(preset, stage, sizes, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan.describe(presets.get(preset), stage, sizes, _settings())
    assert "\n" not in str(caught.value)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="--corpus: there is no .*speech"):
        plan.check_files("teacher", None, [("corpus", str(tmp_path / "speech")), ("start", None)])
    (tmp_path / "teacher").mkdir()
    with pytest.raises(FileNotFoundError, match="finish `--stage=teacher --workdir="):
        plan.check_files("student", str(tmp_path), [])
    (tmp_path / "teacher" / "transformer.safetensors").touch()
    plan.check_files("student", str(tmp_path), [("corpus", str(tmp_path))])


def test_a_batch_that_does_not_divide_is_noted():
    assert plan.notes({"data": 2, "fsdp": 4}, _settings(batch=16)) == []
    [note] = plan.notes({"data": 2, "fsdp": 4}, _settings(batch=12))
    assert "batch=12" in note and "--set batch=8" in note


def test_group_settings_do_not_change_the_sizes():
    groups = dataclasses.replace(
        optimizer_lib.OptimizerConfig(), base_factor=0.1, base_from_step=100
    )
    for config in (optimizer_lib.OptimizerConfig(), groups):
        rows = plan.describe(presets.get("pico"), "teacher", {}, _settings(optimizer=config))
        whole = np.array(plan.totals(rows)["optimizer"])
        np.testing.assert_array_equal(whole, 8 * _parameters("pico") + 8)
