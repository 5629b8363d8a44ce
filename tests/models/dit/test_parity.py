"""The Wan transformer equals diffusers' in float32: forward, backward, sampling loops.

The comparisons are those of `experiments/parity`; this file says how small their errors must
be. The reference's random weights come through its own files and the converter's table.
"""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from experiments.parity import compare
from experiments.parity import run
from experiments.parity import schedule
from experiments.parity import transformer as parity
from tm_jax.checkpoints import wan
from tm_jax.core import trees
from tm_jax.models.dit import attention_patterns

_FORWARD = 1e-4  # Of the output's scale. Measured 4e-6.
_GRADIENT = 1e-3  # Of every parameter's own gradient. Measured 2e-5.
_LEVELS = 2e-6  # Measured 1e-6: the reference moves one level by that.


@pytest.mark.parametrize("name", [n for n in parity.CASES if n != "i2v-128"])
def test_forward(name):
    row = parity.forward(name)
    assert row.max_rel <= _FORWARD, row


def test_forward_in_bfloat16():
    """No parity is asked of it, but it must be the same computation."""
    row = parity.forward("i2v-odd", "bfloat16")
    assert 1e-3 < row.max_rel < 3e-2, row  # Measured 8e-3, the precision of bfloat16.


@pytest.mark.parametrize("name", ["t2v-odd", "i2v"])
def test_gradients(name):
    row = parity.gradients(name)
    assert row.max_rel <= _GRADIENT, row


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_noise_levels(shift):
    for row in (schedule.levels(shift, 2), schedule.levels(shift, 50)):
        assert row.max_rel <= _LEVELS, row
    row = schedule.published_levels(shift, 50)
    assert row.max_rel <= _LEVELS, row


def test_complete_loops():
    for row in (schedule.many_steps(50), schedule.many_steps(2), schedule.few_steps(2)):
        assert row.max_rel <= _FORWARD, row  # Measured 3e-6.


def _run(name, params=None, **changes):
    _, model, own = parity.pair(parity.CASES[name])
    i = {**parity.inputs(parity.CASES[name]), **changes}
    return np.asarray(compare.jit(functools.partial(parity.velocity, model))(params or own, i))


def _changed(params, start, value):
    flat = trees.flatten(params)
    found = [n for n in flat if start in n]
    assert found
    return trees.unflatten({**flat, **{n: value(flat[n]) for n in found}})


def test_step_zero_equals_the_base_model():
    """Initial audio layers and modes change no bit, whatever sounds; trained ones do."""
    name = "i2v"
    i = parity.inputs(parity.CASES[name])
    _, _, params = parity.pair(parity.CASES[name])
    base = _run(name)
    silent = _run(name, windows=0 * i["windows"], mode=0 * i["mode"], face_mask=0 * i["face_mask"])
    np.testing.assert_array_equal(base, silent)
    # Keys and the projection may be anything: the values are what is zero.
    loud = _changed(params, "k_audio/kernel", lambda x: 5 * x)
    np.testing.assert_array_equal(_run(name, loud), base)
    rng = np.random.default_rng(0)
    trained = _changed(params, "v_audio/kernel", lambda x: rng.normal(0, 0.3, x.shape))
    assert np.abs(_run(name, trained) - base).max() > 1e-2
    trained = _changed(params, "mode_embedding", lambda x: rng.normal(0, 0.3, x.shape))
    assert np.abs(_run(name, trained) - base).max() > 1e-2


def test_every_input_counts():
    """A comparison that ignored an input could not see an error in it."""
    name = "i2v-odd"
    i, base = parity.inputs(parity.CASES[name]), _run(name)
    rng = np.random.default_rng(5)
    for key in ("x", "condition", "text", "image", "sigma"):
        changed = np.array(i[key])
        changed[0] = rng.uniform(0.1, 1, changed[0].shape)
        out = _run(name, **{key: changed})
        assert np.abs(out[0] - base[0]).max() > 1e-2, key
        np.testing.assert_allclose(out[1:], base[1:], rtol=0, atol=1e-4, err_msg=key)


def test_student_window_that_sees_everything():
    """The student's window, given keys of all frames, equals the bidirectional model.

    The student takes the same parameters by the same names; its window holds sink, previous
    and current chunk, here all seven frames of the clip, at times 0 ... 6 as in the teacher.
    """
    case = parity.CASES["t2v-128"]
    _, model, params = parity.pair(case)
    i, chunk = parity.inputs(case), 3
    assert case.frames == 1 + 2 * chunk
    grid = attention_patterns.Grid(case.height // 2, case.width // 2, chunk)

    def flat(x):
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def window(q, k, v):
        early = attention_patterns.bidirectional(grid)(q, k, v)[:, : 1 + chunk]
        sink, previous = slice(0, 1), slice(1, 1 + chunk)
        attend = attention_patterns.windowed(
            grid, flat(k[:, sink]), flat(v[:, sink]), flat(k[:, previous]),
            flat(v[:, previous]), 1,
        )
        now = slice(1 + chunk, None)
        return jnp.concatenate([early, attend(q[:, now], k[:, now], v[:, now])], 1)

    def run(dit):
        return dit(i["x"], i["sigma"], dit.embed(parity.given(i)), lambda layer: window)[0]

    actual = compare.jit(lambda p: model.apply({"params": p}, method=run))(params)
    expected = _run("t2v-128")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_own_parameters_are_audio_and_modes_alone():
    _, _, params = parity.pair(parity.CASES["i2v"])
    own = [n for n in trees.flatten(params) if wan.is_own(n)]
    assert own and all("audio" in n or "mode" in n for n in own)


def test_the_published_table():
    """The page is what the results say, and they keep their limits."""
    folder = pathlib.Path(run.__file__).parent
    results = json.loads((folder / "results.json").read_text())
    memory, speed = (json.loads((folder / f"{n}.json").read_text()) for n in ("memory", "speed"))
    assert (folder / "README.md").read_text() == run.render(results, memory, speed)
    assert all(run.within(row) is not False for row in results["rows"])
    assert {"torch", "diffusers", "transformers", "jax"} <= results["versions"].keys()
    for row in results["rows"]:
        assert set(row) == {"part", "config", "dtype", "max_abs", "max_rel", "mean_rel"}
    late = {**results, "rows": [{**results["rows"][0], "max_rel": 2 * _FORWARD}]}
    assert "above its limit" in run.render(late, None)


def test_a_comparison_can_fail():
    with pytest.raises(ValueError, match="different names"):
        compare.row("x", "", "", {"a": [1]}, {"b": [1]})
    with pytest.raises(ValueError, match="expected shape"):
        compare.row("x", "", "", [1, 2], [1])
    with pytest.raises(ValueError, match="not finite"):
        compare.row("x", "", "", [np.nan], [1])
    with pytest.raises(ValueError, match="zero everywhere"):
        compare.row("x", "", "", [0], [0])
    row = compare.row("x", "", "", {"a": [1.0, 3], "b": [1e-3, 0]}, {"a": [1.0, 2], "b": [2e-3, 0]})
    assert (row.max_abs, row.max_rel, row.mean_rel) == (1, 0.5, 0.5)
