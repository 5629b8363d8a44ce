"""The speech encoder: spectrum against librosa, chunks against the clip, what it hears."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from tests import miniature
from tm_jax.models.audio.causal import encoder

_CONFIG = miniature.nano().audio
_MARGIN, _FRAME = encoder.MARGIN, encoder.FRAME
_FRAMES = 6


def _speech(frames, seed=0):
    """Noise with a moving level, with the margins around it."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((2, 2 * _MARGIN + _FRAME * frames)) * 0.1
    samples *= 1 + np.sin(np.arange(samples.shape[1]) / 900)
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def encode(pico):
    model = encoder.AudioEncoder(_CONFIG)
    shapes = jax.eval_shape(
        lambda key, x: model.init(key, x, method=model.train),
        jax.random.key(0), _speech(_CONFIG.history + 1 + _CONFIG.future),
    )
    params = pico.random(shapes["params"])
    return jax.jit(lambda x: model.apply({"params": params}, x))


@pytest.fixture(scope="module")
def whole(encode):
    samples = _speech(_CONFIG.history + _FRAMES + _CONFIG.future)
    return samples, np.asarray(encode(samples))


def test_log_mel_matches_librosa():
    samples = _speech(3)
    # librosa centres the 400-sample window in its 512-sample frame: 56 zeros on each side.
    padded = np.pad(np.float64(samples), ((0, 0), (56, 56)))
    power = librosa.feature.melspectrogram(
        y=padded, sr=16000, n_fft=512, win_length=400, hop_length=160, center=False,
        n_mels=20, fmin=50, fmax=7600, power=2.0, window="hann",
    )  # [B, mels, hops]
    level = np.log10(np.maximum(power, 1e-7)).swapaxes(1, 2).reshape(2, 3, 80)
    expected = (level + 2.5) / 2
    actual = encoder.log_mel(samples, 20)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)  # Measured 2e-7.


def test_warps_move_formants_and_not_time():
    time = np.arange(2 * _MARGIN + 3 * _FRAME) / 16000

    def heard(hertz, warp=None):
        tone = np.float32(0.1 * np.sin(2 * np.pi * hertz * time))[None]
        index = None if warp is None else np.array([warp])
        return np.asarray(encoder.log_mel(tone, 20, index)).reshape(3, 4, 20).mean((0, 1))

    middle = len(encoder.WARPS) // 2
    np.testing.assert_allclose(heard(1000, middle), heard(1000), rtol=0, atol=1e-5)
    for warp, factor in enumerate(encoder.WARPS):
        assert np.argmax(heard(1500, warp)) == np.argmax(heard(1500 * factor))


def test_digital_silence_has_the_floor():
    out = encoder.log_mel(np.zeros((1, 2 * _MARGIN + _FRAME), np.float32), 20)
    np.testing.assert_allclose(out, (-7 + 2.5) / 2, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 639, 2 * 120, 2 * 120 + 641])
def test_a_length_that_does_not_fit_is_explained(length):
    with pytest.raises(ValueError, match=rf"expected 240 \+ 640 n samples, got {length}"):
        encoder.log_mel(np.zeros((1, length), np.float32), 20)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_reproduce_the_whole_clip(encode, whole, chunk):
    samples, expected = whole
    assert expected.shape == (2, _FRAMES, 16)
    context = _CONFIG.history + _CONFIG.future
    parts = []
    for start in range(0, _FRAMES, chunk):
        first = start * _FRAME
        last = first + (context + chunk) * _FRAME + 2 * _MARGIN
        parts.append(encode(samples[:, first:last]))
    actual = np.concatenate(parts, 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # Measured 2.4e-7.


def test_receptive_field(encode, whole):
    """Feature j hears exactly frames j - history ... j + future and 120 samples beside."""
    samples, _ = whole
    j = 2
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(encode(x)[:, j])))(samples)
    heard = np.abs(np.asarray(gradient)).max(0)
    first = j * _FRAME  # In samples that begin `history` frames and a margin before frame 0.
    last = (j + _CONFIG.history + 1 + _CONFIG.future) * _FRAME + 2 * _MARGIN
    assert heard[:first].max() == 0 and heard[last:].max() == 0
    # The first sample of a Hann window has weight zero.
    assert heard[first] < 1e-9 < heard[first + 1 : first + 40].max()
    assert heard[last - 40 : last].max() > 1e-9
    inside = heard[first + 1 : last]
    for part in np.array_split(inside, len(inside) // 100):
        assert part.max() > 0  # Without gaps.


def test_perturbing_outside_changes_nothing(encode, whole):
    samples, before = whole
    changed = samples.copy()
    changed[:, : 2 * _FRAME] = 0.3
    after = np.asarray(encode(changed))
    np.testing.assert_array_equal(after[:, 2:], before[:, 2:])
    assert np.abs(after[:, :2] - before[:, :2]).max((0, 2)).min() > 1e-4
