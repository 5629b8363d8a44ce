"""Rooms, filters and noise: what they change, and that the direct sound stays in its place."""

import numpy as np
import pytest

from tm_jax.data.corpus import acoustics

_NOTHING = acoustics.AcousticsConfig(
    echo=0, tilt_db=0, bumps_db=0, telephone=0, noise=0, gain_db=(0, 0), overdriven=0
)


def _bursts(seed=0):
    rng = np.random.default_rng(seed)
    sound = 0.05 * rng.standard_normal(32000)
    sound *= np.repeat(rng.random(50) > 0.5, 640)
    return sound.astype(np.float32)


def test_nothing_asked_for_changes_nothing():
    sound = _bursts()
    damaged = acoustics.damage(np.random.default_rng(0), sound, _NOTHING)
    np.testing.assert_allclose(damaged, sound, rtol=0, atol=1e-6)  # Measured 1e-8.


@pytest.mark.parametrize("seed", range(6))
def test_the_direct_sound_stays_in_its_place(seed):
    sound = _bursts(seed)
    damaged = acoustics.damage(np.random.default_rng(seed), sound)
    assert damaged.shape == sound.shape and damaged.dtype == np.float32
    assert np.abs(damaged).max() <= 1 and np.isfinite(damaged).all()
    spectrum = np.fft.rfft(damaged, 65536) * np.conj(np.fft.rfft(sound, 65536))
    found = np.fft.irfft(spectrum / (np.abs(spectrum) + 1e-6 * np.abs(spectrum).max()))
    lag = int(np.argmax(found))
    assert min(lag, 65536 - lag) <= 2


def test_a_room_decays_as_it_should():
    response = acoustics.room(np.random.default_rng(1), 0.5, 6.0)
    assert response[0] == 1 and np.abs(response[1:16]).max() == 0
    tail = np.square(response[1:].astype(np.float64))
    assert 10 * np.log10(tail.sum()) == pytest.approx(-6, abs=0.01)
    # 60 dB in 0.5 s: from 0.1 to 0.3 s it falls by 24 dB.
    early, late = tail[1600:2400].mean(), tail[4800:5600].mean()
    assert 10 * np.log10(early / late) == pytest.approx(24, abs=3)


def test_noise_has_unit_level_and_its_level_is_kept():
    for seed in range(5):
        noise = acoustics.noise(np.random.default_rng(seed), 20001)
        assert noise.shape == (20001,) and np.std(noise) == pytest.approx(1, abs=1e-3)
    asked = acoustics.AcousticsConfig(
        echo=0, tilt_db=0, bumps_db=0, telephone=0, noise=1, noise_db=(10, 10), gain_db=(0, 0),
        overdriven=0,
    )
    sound = _bursts()
    added = acoustics.damage(np.random.default_rng(0), sound, asked) - sound
    ratio = 10 * np.log10(np.square(sound).mean() / np.square(added).mean())
    assert ratio == pytest.approx(10, abs=0.3)


def test_a_telephone_takes_the_high_frequencies():
    asked = acoustics.AcousticsConfig(
        echo=0, tilt_db=0, bumps_db=0, telephone=1, noise=0, gain_db=(0, 0), overdriven=0
    )
    damaged = acoustics.damage(np.random.default_rng(0), _bursts(), asked)
    spectrum = np.abs(np.fft.rfft(damaged))
    assert spectrum[8200:].max() < 0.02 * spectrum[2000:6000].max()  # Above 4.1 kHz.


@pytest.mark.parametrize("wrong", [{"echo": 1.5}, {"noise_db": (5.0, 1.0)}])
def test_settings_explain_mistakes(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        acoustics.AcousticsConfig(**wrong)
