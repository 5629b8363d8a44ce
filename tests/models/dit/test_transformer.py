"""What each input of the transformer may influence, and what it may not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import trees
from tm_jax.diffusion import flow_matching
from tm_jax.models.dit import attention_patterns
from tm_jax.models.dit import transformer
from tm_jax.nn import attention
from tm_jax.parallel import rules

_B, _T = 2, 4
# Outputs are of size one. An input that matters moves them by far more than rounding.
_SAME, _MOVED = 2e-5, 1e-3  # Rounding measured 0 on a CPU.


_GRID = attention_patterns.Grid(4, 4, 3)


def _difference(a, b):
    """Largest difference per frame, [T]."""
    return np.abs(np.float64(a) - np.float64(b)).max((0, 2, 3, 4))


@pytest.fixture(scope="module")
def forwards(pico):
    """Jitted velocity of the bidirectional model, and of one with frames on their own."""
    grid = _GRID

    def alone(q, k, v):
        return attention.attend(q, k, v)  # Leading axes B, T: no frame sees another.

    def forward(pattern, params, inputs):
        out, _ = pico.model.apply({"params": params}, **inputs, pattern=pattern, method=pico.touch)
        return out

    return (
        jax.jit(functools.partial(forward, attention_patterns.bidirectional(grid))),
        jax.jit(functools.partial(forward, alone)),
    )


@pytest.fixture(scope="module")
def inputs(pico):
    return pico.inputs(pico.preset, _B, _T)


@pytest.fixture(scope="module")
def initial(pico, inputs):
    """Parameters as a fresh model has them, apart from the two layers that start silent."""
    pattern = attention_patterns.bidirectional(_GRID)

    def init(key):
        return pico.model.init(key, **inputs, pattern=pattern, method=pico.touch)["params"]

    return jax.tree.map(lambda box: box.value, jax.jit(init)(jax.random.key(0)),
                        is_leaf=lambda x: hasattr(x, "unbox"))


def _changed(inputs, **new):
    assert set(new) <= set(inputs)
    return {**inputs, **new}


def _moved_frame(inputs, name, frame):
    """Inputs with one frame of one of them changed."""
    value = inputs[name].copy()
    value[:, frame] = 1 - value[:, frame]
    return _changed(inputs, **{name: value})


def test_a_fresh_model_predicts_the_mean(pico, forwards, initial, inputs):
    both, _ = forwards
    np.testing.assert_array_equal(both(initial, inputs), 0)  # As a velocity.
    scaled = transformer.DiT(dataclasses.replace(pico.preset.dit, clean_std=0.5))
    sigma = np.ones((_B, _T), np.float32)
    out, _ = jax.jit(lambda params, given: scaled.apply(
        {"params": params}, **given, pattern=attention_patterns.bidirectional(_GRID), method=pico.touch
    ))(initial, _changed(inputs, sigma=sigma))
    x0 = flow_matching.to_x0(inputs["x"], out, sigma)  # In units of their deviation.
    # Measured 1.2e-7.
    np.testing.assert_allclose(x0, np.zeros_like(x0), rtol=0, atol=2e-6)


def test_a_fresh_model_does_not_hear(pico, forwards, initial, inputs):
    """Step 0 of training equals the video model, whatever the head has learned."""
    both, _ = forwards
    flat = trees.flatten(initial)
    learned = trees.flatten(pico.params)
    flat["head/kernel"] = learned["head/kernel"]
    params = trees.unflatten(flat)
    deaf = both(params, inputs)
    assert _difference(deaf, both(initial, inputs)).min() > _MOVED  # The head is on.
    other = both(params, _changed(inputs, windows=-inputs["windows"]))
    np.testing.assert_array_equal(deaf, other)
    for layer in range(2):  # The same comparison fails once the values are trained.
        name = f"blocks_{layer}/cross/v_audio/kernel"
        assert not flat[name].any()
        flat[name] = learned[name]
    params = trees.unflatten(flat)
    heard = both(params, inputs)
    assert _difference(heard, both(params, _changed(inputs, windows=-inputs["windows"]))).min() > _MOVED


def test_a_face_mask_of_zero_is_deaf(pico, forwards, inputs):
    both, _ = forwards
    masked = _changed(inputs, face_mask=np.zeros_like(inputs["face_mask"]))
    heard = both(pico.params, masked)
    other = both(pico.params, _changed(masked, windows=-inputs["windows"]))
    np.testing.assert_array_equal(heard, other)
    assert _difference(heard, both(pico.params, inputs)).min() > _MOVED


def test_only_tokens_inside_the_mask_hear(pico, inputs):
    """With frames and one layer's tokens apart, a masked token cannot hear directly."""
    config = pico.preset.dit
    params = {k: v for k, v in pico.params.items() if k != "blocks_1"}
    model = transformer.DiT(dataclasses.replace(config, num_layers=1))
    mask = np.zeros((_B, 4, 4), np.float32)
    mask[:, :2, :2] = 1  # The audio is for the upper left quarter.
    mask = mask.reshape(_B, -1)

    @jax.jit
    def forward(windows):
        return model.apply(
            {"params": params}, **_changed(inputs, face_mask=mask, windows=windows),
            pattern=lambda q, k, v: v, method=pico.touch,
        )[0]

    change = np.abs(forward(inputs["windows"]) - forward(-inputs["windows"]))
    assert change[:, :, :4, :4].max((0, 2, 3, 4)).min() > _MOVED
    assert change[:, :, 4:].max() == 0 and change[:, :, :, 4:].max() == 0


def test_the_partner_is_an_input_of_its_own(pico):
    """Unheard at first; then the frames that it sounds with hear it, and it cannot be left out."""
    config = dataclasses.replace(pico.preset.dit, num_layers=1, partner_audio=True)
    model, rng = transformer.DiT(config), np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, text = draw(1, 3, 8, 8, config.latent_channels), draw(1, config.text_length, 24)
    given = dataclasses.replace(
        transformer.silent(config, draw(1, 3, 8, 8, config.condition_channels)),
        audio=draw(1, 3, config.audio_window, config.audio_feature_width),
        face_mask=np.ones((1, 16), np.float32), text=text, image=draw(1, config.image_length, 20),
    )
    loud = dataclasses.replace(given, partner_audio=draw(*given.audio.shape))

    def run(variables, given):
        out, _ = model.apply(
            variables, x, np.full((1, 3), 0.5, np.float32),
            model.apply(variables, given, method="embed"),
            lambda layer: lambda q, k, v: attention.attend(q, k, v),
        )
        return out

    forward = jax.jit(run)
    params = jax.jit(lambda key: model.init(key, method=transformer.touch))(jax.random.key(0))
    flat = trees.flatten(rules.unbox(params)["params"])
    for name in ("head/kernel", "blocks_0/o/kernel"):
        flat[name] = 0.1 * draw(*flat[name].shape)
    made = {"params": trees.unflatten(flat)}
    np.testing.assert_array_equal(forward(made, given), forward(made, loud))
    flat["blocks_0/cross/v_partner/kernel"] = draw(*flat["blocks_0/cross/v_partner/kernel"].shape)
    made = {"params": trees.unflatten(flat)}
    quiet = np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1)
    third = dataclasses.replace(loud, partner_audio=quiet * loud.partner_audio)
    change = _difference(forward(made, given), forward(made, third))
    assert change[2] > _MOVED and change[:2].max() == 0
    dropped = forward(made, loud.without_audio())
    np.testing.assert_array_equal(dropped, forward(made, given.without_audio()))
    with pytest.raises(ValueError, match="partner_audio: expected windows"):
        run(made, dataclasses.replace(loud, partner_audio=None))


@pytest.mark.parametrize("name", ["windows", "sigma", "mode", "x"])
def test_inputs_of_a_frame_touch_only_that_frame(pico, forwards, inputs, name):
    """With self-attention inside frames only, nothing else may carry them across."""
    _, alone = forwards
    before = alone(pico.params, inputs)
    after = alone(pico.params, _moved_frame(inputs, name, 2))
    change = _difference(before, after)
    assert change[2] > _MOVED
    assert np.delete(change, 2).max() == 0


@pytest.mark.parametrize("frame", [0, _T - 1])
def test_bidirectional_frames_see_one_another(pico, forwards, inputs, frame):
    both, _ = forwards
    change = _difference(
        both(pico.params, inputs), both(pico.params, _moved_frame(inputs, "x", frame))
    )
    assert change.min() > _MOVED / 10


@pytest.mark.parametrize("name", ["text", "image"])
def test_context_matters(pico, forwards, inputs, name):
    both, _ = forwards
    other = both(pico.params, _changed(inputs, **{name: -inputs[name]}))
    assert _difference(other, both(pico.params, inputs)).min() > _MOVED


def test_frames_have_an_order_only_through_self_attention(pico, forwards, inputs):
    both, alone = forwards
    order = [2, 0, 3, 1]
    shuffled = {
        name: value[:, order] if name in ("x", "condition", "sigma", "mode", "windows") else value
        for name, value in inputs.items()
    }
    expected = alone(pico.params, inputs)[:, order]
    np.testing.assert_allclose(alone(pico.params, shuffled), expected, rtol=0, atol=_SAME)
    expected = both(pico.params, inputs)[:, order]
    assert _difference(both(pico.params, shuffled), expected).max() > _MOVED / 10


def test_streams_of_a_batch_are_independent(pico, forwards, inputs):
    both, _ = forwards
    swapped = {name: value[::-1] for name, value in inputs.items()}
    expected = both(pico.params, inputs)[::-1]
    np.testing.assert_allclose(both(pico.params, swapped), expected, rtol=0, atol=_SAME)


def test_rematerialisation_changes_nothing(pico, inputs):
    """Gradients with and without, through a pattern that closes over traced arrays."""
    grid = _GRID
    config = dataclasses.replace(pico.preset.dit, num_layers=1)
    params = {k: v for k, v in pico.params.items() if k != "blocks_1"}
    small = {
        k: v[:1, :3] if k in ("x", "condition", "sigma", "mode", "windows") else v[:1]
        for k, v in inputs.items()
    }
    slots = np.random.default_rng(4).standard_normal((4, 1, 48, 4, 8)).astype(np.float32)

    def gradient(remat, keeps="nothing"):
        model = transformer.DiT(config, remat=remat, remat_keeps=keeps)

        @jax.jit
        @jax.grad
        def of(args):
            params, cache = args
            pattern = attention_patterns.windowed(
                grid, cache[0][:, :16], cache[1][:, :16], cache[2], cache[3], 1
            )
            out, _ = model.apply({"params": params}, **small, pattern=pattern, method=pico.touch)
            return jnp.sum(jnp.sin(out))

        return trees.flatten(of((params, jnp.asarray(slots))))

    plain, remat, some = gradient(False), gradient(True), gradient(True, "products")
    for name, value in plain.items():
        scale = 1 + np.abs(value).max()
        for found in (remat, some):
            np.testing.assert_allclose(
                found[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name
            )  # Measured 6e-7.
        assert np.abs(value).max() > 0, f"{name} has no gradient"


@pytest.mark.parametrize(
    "name, bad, message",
    [
        ("condition", np.zeros((2, 4, 8, 8, 3)), "channels: axis C of .* must be 20, got 3"),
        ("sigma", np.zeros((2, 3)), "sigma: axis T of .* must be 4, got 3"),
        ("mode", np.zeros((2,), np.int32), "mode: expected axes .B T."),
        ("text", np.zeros((2, 5, 24)), "text: axis L of .* must be 6, got 5"),
        ("image", np.zeros((2, 5, 3)), "image: axis D of .* must be 20, got 3"),
        ("windows", np.zeros((2, 4, 7, 16)), "audio windows: axis R of .* must be 6, got 7"),
        ("face_mask", np.zeros(2), "face_mask: expected axes .B P."),
    ],
)
def test_wrong_shapes_are_explained(pico, inputs, name, bad, message):
    def forward():
        return pico.model.apply(
            {"params": pico.params}, **_changed(inputs, **{name: bad}),
            pattern=lambda q, k, v: v, method=pico.touch,
        )

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(forward)
