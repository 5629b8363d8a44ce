"""Rates and wire formats of sound in pieces, against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.signal

from tm_jax.media import resampling


@pytest.mark.parametrize("rates", [(24000, 16000), (16000, 24000), (48000, 24000)])
@pytest.mark.parametrize("piece", [160, 997, 50000])
def test_pieces_give_the_same_tone_at_the_other_rate(rates, piece):
    source, target = rates
    tone = np.sin(2 * np.pi * 440 * np.arange(source) / source).astype(np.float32)
    stream = resampling.Resampler(source, target)
    parts = [stream.push(tone[i : i + piece]) for i in range(0, source, piece)]
    out = np.concatenate([*parts, stream.push(np.zeros(0), last=True)])
    assert abs(len(out) - target) <= 1
    expected = np.sin(2 * np.pi * 440 * np.arange(len(out)) / target)
    middle = slice(target // 10, -target // 10)
    # Measured 2e-5; one sample of shift at 24 kHz would be 0.1.
    np.testing.assert_allclose(out[middle], expected[middle], rtol=0, atol=2e-4)


@pytest.mark.parametrize("rates", [(24000, 16000), (48000, 24000), (44100, 24000)])
def test_a_millisecond_is_held_back_at_the_most(rates):
    source, target = rates
    stream = resampling.Resampler(source, target)
    piece = np.zeros(source // 100, np.float32)
    out = np.cumsum([len(stream.push(piece)) for _ in range(100)])
    heard = np.arange(1, 101) / 100
    assert (heard - out / target).max() <= 0.0011  # Measured 1.0 ms.


def test_nothing_aliases():
    high = np.sin(2 * np.pi * 11000 * np.arange(24000) / 24000).astype(np.float32)
    assert np.abs(resampling.Resampler(24000, 16000).push(high)[2000:-2000]).max() < 1e-3
    by_scipy = scipy.signal.resample_poly(high, 2, 3)[2000:-2000]
    assert np.abs(by_scipy).max() < 2e-2  # The tone is above what 16 kHz can hold.


def test_the_end_of_a_stream_begins_another_one():
    stream = resampling.Resampler(16000, 24000)
    sound = np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    first = stream.push(sound, last=True)
    np.testing.assert_array_equal(stream.push(sound, last=True), first)


def test_pcm16_keeps_values_clips_and_mixes_channels():
    values = np.array([0, 0.5, -0.5, 1, -1, 7, -7], np.float32)
    data = resampling.to_pcm16(values)
    assert np.frombuffer(data, "<i2").tolist() == [0, 16384, -16384, 32767, -32767, 32767, -32767]
    np.testing.assert_allclose(
        resampling.from_pcm16(data), np.clip(values, -1, 1), rtol=0, atol=2 / 32768
    )
    stereo = np.array([[8192, -8192], [16384, 0]], "<i2").tobytes()
    assert resampling.from_pcm16(stereo, 2).tolist() == [0, 0.25]


def test_wrong_rates_and_halves_of_samples_are_explained():
    with pytest.raises(ValueError, match="target_rate must be 4000 to 192000"):
        resampling.Resampler(16000, 0)
    with pytest.raises(ValueError, match="multiple of 2 bytes for 1 channels, got 3"):
        resampling.from_pcm16(b"abc")
