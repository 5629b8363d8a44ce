"""Speech features in a sliding window: the stream, its twin for whole clips, its latency."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import timing
from tm_jax.models.audio.wav2vec2 import config as config_lib
from tm_jax.models.audio.wav2vec2 import encoder
from tm_jax.models.audio.wav2vec2 import stream

_CLOCK = timing.Timing(frames_per_latent=2, latents_per_chunk=1)  # Chunks of 1280 samples.
_WINDOW = config_lib.WindowConfig(
    timing=_CLOCK, past_frames=4, future_frames=2, before_frames=1, after_frames=1
)
_SIZES = dict(
    width=32, num_layers=2, num_heads=4, mlp_width=48, channels=(8, 8, 8, 8, 8, 8, 12),
    position_taps=6, position_groups=4,
)
_CONFIGS = {
    "base": config_lib.Wav2Vec2Config(**_SIZES),
    "large": config_lib.Wav2Vec2Config(
        **_SIZES, feature_norm="layer", conv_bias=True, pre_norm=True
    ),
}
_FRAMES = 11  # Five and a half chunks.


@pytest.fixture(scope="module", params=_CONFIGS)
def heard(request, pico):
    """Model, parameters and functions compiled once."""
    config = _CONFIGS[request.param]
    model = encoder.Wav2Vec2(config)
    params = pico.random(
        jax.eval_shape(lambda key: encoder.init(config, key), jax.random.key(0))
    )
    return (
        functools.partial(jax.jit(stream.step, static_argnums=(0, 2)), model, params, _WINDOW),
        functools.partial(
            jax.jit(stream.windowed, static_argnums=(0, 2)), model, params, _WINDOW
        ),
        functools.partial(
            jax.jit(stream.whole, static_argnums=(0, 2)), model, params, _CLOCK
        ),
    )


@pytest.fixture(scope="module")
def clip():
    """Two sounds whose level changes, [2, 11 * 640]."""
    rng = np.random.default_rng(0)
    level = 0.1 + np.abs(np.sin(np.arange(_FRAMES * 640) / 1500))
    return (level * rng.standard_normal((2, _FRAMES * 640))).astype(np.float32)


def _streamed(step, clip):
    """Features of every chunk, silence after the clip."""
    padded = jnp.pad(clip, ((0, 0), (0, 4000)))
    state = stream.begin(_WINDOW, padded[:, : _WINDOW.future_samples])
    features, place = [], _WINDOW.future_samples
    for _ in range(6):
        made, state = step(state, padded[:, place : place + 1280])
        features.append(made)
        place += 1280
    return np.stack(features, 1)


def test_a_stream_equals_its_twin_for_whole_clips(heard, clip):
    step, windowed, _ = heard
    expected = windowed(clip)
    # Six chunks; of each one frame before, two of its own, one after.
    assert expected.shape == (2, 6, 4, 64)
    # Measured 4e-6 of values up to 4.
    np.testing.assert_allclose(_streamed(step, clip), expected, rtol=0, atol=1e-5)


def test_until_the_window_is_full_a_chunk_hears_all_sound_so_far(heard, clip):
    _, windowed, whole = heard
    features = windowed(clip)

    def until(frame):
        return np.broadcast_to(np.arange(clip.shape[1]) < 640 * frame, clip.shape)

    for chunk in range(3):  # The past of chunk 2 is exactly the window's.
        frames = 2 * chunk + np.arange(-1, 3)
        so_far = whole(clip, until(2 * chunk + 2 + _WINDOW.future_frames))
        # Before the start the first frame holds.
        wanted = so_far[:, np.maximum(frames, 0)]
        np.testing.assert_allclose(features[:, chunk], wanted, rtol=0, atol=1e-5)
    # Later chunks have forgotten the beginning.
    assert np.abs(features[:, 3, 1:3] - whole(clip, until(10))[:, 6:8]).max() > 1e-2


def test_the_look_ahead_is_the_stated_one(heard, clip):
    _, windowed, _ = heard
    assert _WINDOW.lookahead_s == pytest.approx(0.08)
    known = round((4 / 25 + _WINDOW.lookahead_s) * 16000)  # Needed for the second chunk.
    later = clip.copy()
    later[:, known:] = 0.7
    features, changed = windowed(clip), windowed(later)
    np.testing.assert_array_equal(changed[:, :2], features[:, :2])
    assert np.abs(changed[:, 2] - features[:, 2]).max() > 1e-2
    later[:, known - 320 :] = 0.7  # Its last 20 ms.
    assert np.abs(windowed(later)[:, 1, 1:3] - features[:, 1, 1:3]).max() > 1e-2


def test_distance_to_the_computation_without_a_window(heard, clip):
    """Recorded for random weights, whose attention looks everywhere."""
    _, windowed, whole = heard
    features = np.asarray(windowed(clip))[:, :, 1:3].reshape(2, 12, -1)[:, :_FRAMES]
    ideal = np.asarray(whole(clip, np.ones(clip.shape, bool)))
    error = np.sqrt(np.mean((features - ideal) ** 2) / np.mean(ideal**2))
    assert 0.2 < error < 0.5  # Measured 0.35 and 0.33, with windows of 0.32 s.


def test_features_become_the_windows_of_a_chunk():
    """The default keeps what the audio windows of the large presets reach."""
    from tm_jax.configs import presets
    from tm_jax.models.dit import audio_projection

    preset, window = presets.get("tm-18b"), config_lib.WindowConfig()
    base = config_lib.PUBLISHED["base"]
    assert base.features == preset.dit.audio_feature_width
    margins = audio_projection.margins(preset.dit.audio_window, preset.timing)
    assert (window.before_frames, window.after_frames) == margins
    features = jnp.zeros((1, window.kept, 3))
    cut = audio_projection.windows(features, preset.dit.audio_window, preset.timing)
    assert cut.shape == (1, preset.timing.latents_per_chunk, 8, 3)


def test_windows_that_cannot_work():
    with pytest.raises(ValueError, match="after_frames=2 must be 0 or more and below"):
        config_lib.WindowConfig(future_frames=2)
    with pytest.raises(ValueError, match="before_frames=2 must be 0 ... past_frames=1"):
        config_lib.WindowConfig(past_frames=1)
    with pytest.raises(ValueError, match="first: axis S of"):
        stream.begin(_WINDOW, jnp.zeros((1, 640)))
