"""The motion model: a stream of it, its scaling, and what it learns from a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tm_jax.checkpoints import files
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.data.synthetic import backchannel
from tm_jax.diffusion import flow_matching
from tm_jax.models.dit import audio_projection as dit_audio
from tm_jax.models.puppet.motion import config as config_lib
from tm_jax.models.puppet.motion import heard
from tm_jax.models.puppet.motion import network

_CONFIG = config_lib.MotionConfig(width=16, mlp_width=16, layers=1, history=2, heard=2, steps=4)
_M = len(config_lib.COLUMNS)


@pytest.fixture(scope="module")
def model():
    return network.MotionModel(_CONFIG)


@pytest.fixture(scope="module")
def params(model, pico):
    inputs = (
        jnp.zeros((1, 4, _M)), jnp.zeros(1), jnp.zeros((1, 8, _M)), jnp.zeros((1, 6, 5)),
        jnp.zeros(1), jnp.zeros((1, _CONFIG.heard_width)),
    )
    params = pico.random(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    # Strong enough to matter, weak enough to stay inside the limits of the columns.
    return {**params, "change": 0.05 + 0 * params["change"]}


@pytest.fixture(scope="module")
def chunk(model, params):
    return jax.jit(lambda s, w, m, o=None: network.next_chunk(model, params, s, w, m, o))


def _inputs(batch, latents, seed=0):
    rng = np.random.default_rng(seed)
    windows = rng.standard_normal((batch, latents, 6, 5)).astype(np.float32)
    return windows, np.ones((batch, latents), np.int32)


def _start(seeds):
    return network.initial_state(_CONFIG, jax.vmap(jax.random.key)(np.asarray(seeds)))


def _voice(batch, frames, seed=0):
    """Loudness of somebody who talks 10 frames and pauses 6, in noise."""
    rng = np.random.default_rng(seed)
    speaks = np.arange(frames) % 16 < 10
    level = np.where(speaks, 0.7, 0.35) + 0.02 * rng.standard_normal((batch, frames))
    return level.astype(np.float32)


def test_chunks_of_any_size_give_the_same_motion(chunk):
    windows, mode = _inputs(2, 6)
    mode[:, 2:4] = 0
    other = _voice(2, 24)
    whole, _ = chunk(_start([1, 2]), windows, mode, other)
    assert whole.shape == (2, 24, _M)
    state, parts = _start([1, 2]), []
    for at in range(0, 6, 2):
        cut = slice(at, at + 2)
        part, state = chunk(state, windows[:, cut], mode[:, cut], other[:, 4 * at : 4 * at + 8])
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-6)
    assert np.ptp(whole, axis=1).max() > 1e-2


def test_a_stream_does_not_depend_on_its_neighbours(chunk):
    windows, mode = _inputs(2, 3)
    both, _ = chunk(_start([1, 2]), windows, mode)
    alone, _ = chunk(_start([2]), windows[1:], mode[1:])
    np.testing.assert_allclose(both[1], alone[0], rtol=0, atol=1e-6)
    other, _ = chunk(_start([3]), windows[1:], mode[1:])
    assert np.abs(other - alone).max() > 1e-3


def test_a_listener_does_not_hear_its_own_voice(chunk):
    windows, mode = _inputs(1, 3)
    silent = np.zeros_like(windows)
    deaf = [chunk(_start([1]), w, 0 * mode)[0] for w in (windows, silent)]
    np.testing.assert_array_equal(deaf[0], deaf[1])
    hearing = [chunk(_start([1]), w, mode)[0] for w in (windows, silent)]
    assert np.abs(hearing[0] - hearing[1]).max() > 1e-5


def test_only_a_listener_hears_the_other_party(chunk):
    windows, mode = _inputs(1, 3)
    loud = _voice(1, 12)
    talking = [chunk(_start([1]), windows, mode, o)[0] for o in (None, loud)]
    np.testing.assert_array_equal(talking[0], talking[1])
    listening = [chunk(_start([1]), windows, 0 * mode, o)[0] for o in (None, loud)]
    assert np.abs(listening[0] - listening[1]).max() > 1e-4
    # What was heard while it spoke is known when it listens again.
    _, deaf = chunk(_start([1]), windows, mode, None)
    _, heard_it = chunk(_start([1]), windows, mode, loud)
    after = [chunk(s, windows, 0 * mode, None)[0] for s in (deaf, heard_it)]
    assert np.abs(after[0] - after[1]).max() > 1e-5


def test_silence_is_the_default(chunk):
    windows, mode = _inputs(1, 3)
    expected, _ = chunk(_start([1]), windows, 0 * mode, None)
    actual, _ = chunk(_start([1]), windows, 0 * mode, np.zeros((1, 12), np.float32))
    np.testing.assert_array_equal(actual, expected)


def test_loudness_is_decibels():
    # A sine of full scale has 3 dB less than full scale; 80 dB are the whole range.
    tone = np.sin(2 * np.pi * 100 * np.arange(6400) / 16000)
    levels = heard.loudness(np.stack([tone, tone / 10, tone / 1e5, 0 * tone]), 640)
    assert levels.shape == (4, 10)
    expected = [1 - 3.0103 / 80, 1 - 23.0103 / 80, 0, 0]
    np.testing.assert_allclose(levels, np.tile(np.array(expected)[:, None], 10), atol=1e-5)


def _activity(other):
    """Activity of every frame of one stream, [F]."""
    config = config_lib.MotionConfig(heard=1)
    features, _ = heard.hear(config, heard.initial_state(config, 1), np.float32(other)[None])
    last = np.asarray(features).reshape(1, -1, 2, 4, config_lib.HEARD)[0, :, 1]
    return last.reshape(-1, config_lib.HEARD)[:, 0]


@pytest.mark.parametrize("speech_db, noise_db", [(-15, -60), (-25, -40), (-35, -90), (-10, -28)])
def test_a_voice_is_told_from_noise_at_any_level(speech_db, noise_db):
    rng = np.random.default_rng(0)
    times = np.arange(500 * 640) / 16000
    speaks = np.sin(2 * np.pi * times / 4) > -0.3  # Phrases of 2.4 s, pauses of 1.6 s.
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4.3 * times)
    sound = 10 ** (speech_db / 20) * rng.standard_normal(len(times)) * speaks * syllables
    sound += 10 ** (noise_db / 20) * rng.standard_normal(len(times))
    active = _activity(heard.loudness(sound, 640))
    found, truth = map(backchannel.phrases, (active, speaks.reshape(500, 640).mean(1)))
    # It needs some seconds to know the noise. Faint syllables at the edges may be lost in it.
    found, truth = found[found[:, 0] > 160], truth[truth[:, 0] > 160]
    assert len(truth) == 4
    np.testing.assert_allclose(found, truth, rtol=0, atol=3)


def test_steady_noise_and_silence_are_nobody():
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal(400 * 640)
    assert not _activity(heard.loudness(noise, 640))[250:].any()
    assert not _activity(heard.loudness(0 * noise, 640)).any()


def test_lids_and_breath_stay_in_their_range(model, params):
    wild = {**params, "change": 10 + 0 * params["change"]}
    windows, mode = _inputs(1, 8)
    motion, _ = jax.jit(lambda s: network.next_chunk(model, wild, s, windows, mode))(_start([1]))
    for name, low in (("blink_left", 0), ("smile", 0), ("breath", 0), ("yaw", -1)):
        column = motion[0, :, config_lib.COLUMNS.index(name)]
        assert column.min() >= low and column.max() <= 1
    assert motion.max() == 1  # The limits were reached.


def test_it_learns_the_spread_of_what_it_must_guess(model, params):
    """One column jumps to +0.3 or -0.3 by chance: samples do, an average would stay at 0."""
    rng = np.random.default_rng(0)
    yaw = config_lib.COLUMNS.index("yaw")
    constants = {k: params[k] for k in ("mean", "std")} | {"change": jnp.full((4, _M), 0.3)}
    trained = {k: v for k, v in params.items() if k not in constants}
    past, window, mode = jnp.zeros((256, 8, _M)), jnp.zeros((256, 6, 5)), jnp.ones(256)
    deaf = jnp.zeros((256, _CONFIG.heard_width))
    optimizer = optax.adam(1e-2)

    def loss(trained, signs, key):
        keys = jax.random.split(key)
        target = jnp.zeros((256, 4, _M)).at[:, :, yaw].set(0.3 * signs[:, None])
        variables = {"params": {**trained, **constants}}
        x0 = model.apply(variables, target, past, method=model.normalise)
        sigma = jax.random.uniform(keys[0], (256,))
        noise = jax.random.normal(keys[1], x0.shape)
        noisy = flow_matching.corrupt(x0, noise, sigma)
        out = model.apply(variables, noisy, sigma, past, window, mode, deaf)
        return jnp.mean(jnp.square(out - flow_matching.velocity(x0, noise)))

    @jax.jit
    def step(trained, opt, signs, key):
        grads = jax.grad(loss)(trained, signs, key)
        updates, opt = optimizer.update(grads, opt, trained)
        return optax.apply_updates(trained, updates), opt

    opt = optimizer.init(trained)
    for i in range(400):
        signs = rng.choice([-1.0, 1.0], 256).astype(np.float32)
        trained, opt = step(trained, opt, signs, jax.random.key(i))
    variables = {**trained, **constants}
    start = _start(np.arange(200))
    motion, _ = jax.jit(
        lambda s: network.next_chunk(model, variables, s, jnp.zeros((200, 1, 6, 5)),
                                     jnp.ones((200, 1), jnp.int32))
    )(start)
    jumped = motion[:, 3, yaw]
    assert 0.15 < np.abs(jumped).mean() < 0.45
    assert 0.25 < np.mean(jumped > 0) < 0.75


@pytest.fixture(scope="module")
def nano():
    """The shipped motion model, and audio windows of made-up syllables, [8, 60, R, U]."""
    models = networks.models(presets.get("nano"))
    shapes = networks.shapes(models)
    params = {
        part: files.load(f"{networks.shipped('nano')}/{part}.safetensors", shapes[part])
        for part in ("audio", "motion")
    }
    preset = models.preset
    before, after = dit_audio.margins(preset.dit.audio_window, preset.timing)
    frames = before + preset.audio.history + 240 + after + preset.audio.future
    rng = np.random.default_rng(0)
    times = np.arange(frames * 640 + 240) / 16000
    sound = 0.1 * rng.standard_normal((8, len(times))) * (1 + np.sin(2 * np.pi * 4 * times))
    features = models.audio.apply({"params": params["audio"]}, sound.astype(np.float32))
    windows = dit_audio.windows(features, preset.dit.audio_window, preset.timing)
    return models, params["motion"], windows


def test_the_head_does_not_jump_when_the_mode_changes(nano):
    """At every border of chunks the mode may change; the step there is one among others."""
    models, params, windows = nano
    rng = np.random.default_rng(1)
    mode = np.repeat(rng.integers(0, 2, (8, 20)), 3, 1).astype(np.int32)
    other = 0.7 * np.repeat(rng.random((8, 16)) < 0.6, 15, 1).astype(np.float32)
    start = network.initial_state(models.preset.motion, jax.random.split(jax.random.key(0), 8))
    draw = jax.jit(lambda s: network.next_chunk(models.motion, params, s, windows, mode, other))
    motion = np.asarray(draw(start)[0])[:, 24:]  # It begins at rest.
    smooth = [
        config_lib.COLUMNS.index(name)
        for name in ("brow", "smile", "yaw", "pitch", "roll", "head_x", "head_y", "breath")
    ]
    steps = np.abs(np.diff(motion[..., smooth], axis=1))  # [8, 215, 8]
    frames = np.repeat(mode, 4, 1)[:, 24:]
    changed = frames[:, 1:] != frames[:, :-1]
    assert changed.sum() > 50
    at, inside = steps[changed], steps[~changed]
    # The largest of two samples are never the same: where the mode stays, the largest step at
    # these places is up to 1.1 times that at others. A jump would be several times as large.
    assert np.all(at.max(0) <= 1.3 * inside.max(0))
    assert np.all(at.mean(0) <= 1.3 * inside.mean(0))
    assert np.all(inside.mean(0) > 1e-3)  # It moves at all.
