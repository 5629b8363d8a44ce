"""What rooms, microphones and lines do to a voice: echoes, filters, noise, level.

Every change keeps the direct sound where it was, so that labels keep their time.
"""

import dataclasses

import numpy as np
import scipy.fft

from tm_jax.core import timing as timing_lib

_RATE = timing_lib.Timing().sample_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcousticsConfig:
    """How badly sounds may be treated.

    Attributes:
      echo: Share of the sounds that get the reverberation of a room.
      decay_s: Shortest and longest time in which the room's echo falls by 60 dB.
      direct_db: Lowest and highest level of the direct sound over the echo.
      tilt_db: Largest slope of the spectrum in dB an octave.
      bumps_db: Standard deviation of a smooth deviation of the spectrum.
      telephone: Share of the sounds that pass a telephone's band.
      noise: Share of the sounds with noise.
      noise_db: Lowest and highest level of the sound over its noise.
      gain_db: Lowest and highest gain.
      overdriven: Share of the sounds that are clipped at half of their peak.
    """

    echo: float = 0.5
    decay_s: tuple[float, float] = (0.1, 0.7)
    direct_db: tuple[float, float] = (0.0, 18.0)
    tilt_db: float = 2.5
    bumps_db: float = 3.0
    telephone: float = 0.2
    noise: float = 0.7
    noise_db: tuple[float, float] = (3.0, 45.0)
    gain_db: tuple[float, float] = (-22.0, 8.0)
    overdriven: float = 0.05

    def __post_init__(self):
        for name in ("echo", "telephone", "noise", "overdriven"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share in 0..1, got {getattr(self, name)}.")
        for name in ("decay_s", "direct_db", "noise_db", "gain_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: expected lowest, highest, got {low}, {high}.")


def damage(
    rng: np.random.Generator, audio: np.ndarray, config: AcousticsConfig = AcousticsConfig()
) -> np.ndarray:
    """A sound as another microphone in another room may pick it up.

    Args:
      rng: Random generator.
      audio: Sound at 16 kHz, [n].
      config: How much of everything.

    Returns:
      float32 [n] in -1..1.
    """
    audio = np.asarray(audio, np.float32)
    echo = np.ones(1, np.float32)
    if rng.random() < config.echo:
        echo = room(rng, rng.uniform(*config.decay_s), rng.uniform(*config.direct_db))
    size = scipy.fft.next_fast_len(len(audio) + len(echo) - 1, real=True)
    spectrum = scipy.fft.rfft(audio, size) * scipy.fft.rfft(echo, size)
    spectrum *= _filter(rng, size, config)
    sound = scipy.fft.irfft(spectrum, size)[: len(audio)]
    level = float(np.sqrt(np.mean(np.square(sound)) + 1e-9))
    if rng.random() < config.noise:
        ratio_db = rng.uniform(*config.noise_db)
        sound = sound + noise(rng, len(sound)) * np.float32(level * 10 ** (-ratio_db / 20))
    if rng.random() < config.overdriven:
        peak = float(np.abs(sound).max())
        sound = np.clip(sound, -0.5 * peak, 0.5 * peak)
    sound = sound * np.float32(10 ** (rng.uniform(*config.gain_db) / 20))
    return np.clip(sound, -1, 1).astype(np.float32)


def room(rng: np.random.Generator, decay_s: float, direct_db: float) -> np.ndarray:
    """Response of a room, float32 [n]: the direct sound of size 1, then its echo.

    Args:
      rng: Random generator.
      decay_s: Time in which the echo falls by 60 dB.
      direct_db: Level of the direct sound over the echo.
    """
    length = max(int(decay_s * _RATE), 2)
    gap = min(int(rng.uniform(0.001, 0.008) * _RATE), length // 2)
    time = np.arange(length, dtype=np.float32) / _RATE
    tail = rng.standard_normal(length, np.float32) * 10 ** (-3 * time / decay_s)
    tail[rng.integers(0, length, 6)] *= 3  # A few single reflections.
    tail[:gap] = 0
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(np.square(tail)) + 1e-12)
    tail[0] = 1
    return tail.astype(np.float32)


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Coloured noise of unit level, now and then swelling, with hum or with clicks, [n]."""
    size = scipy.fft.next_fast_len(samples, real=True)
    spectrum = scipy.fft.rfft(rng.standard_normal(size, np.float32))
    frequency = np.maximum(_frequencies(size), 40.0)
    spectrum *= frequency ** np.float32(-rng.uniform(0.0, 1.2))
    sound = scipy.fft.irfft(spectrum, size)[:samples]
    time = np.arange(samples, dtype=np.float32) / _RATE
    if rng.random() < 0.3:
        speed, phase = rng.uniform(0.2, 3), rng.uniform(0, 6.3)
        sound *= 1 + np.float32(0.9) * np.sin(6.2832 * speed * time + phase)
    sound /= np.std(sound) + 1e-9
    if rng.random() < 0.3:
        hum = rng.choice([50.0, 60.0])
        for k in (1, 2, 3):
            sound += np.sin(np.float32(2 * np.pi * hum * k) * time) / k
    if rng.random() < 0.3:
        clicks = rng.integers(0, samples, max(1, 3 * samples // _RATE))
        sound[clicks] += rng.uniform(5, 20, len(clicks))
    return (sound / (np.std(sound) + 1e-9)).astype(np.float32)


def _frequencies(size):
    return np.fft.rfftfreq(size, 1 / _RATE).astype(np.float32)


def _filter(rng, size, config):
    """Gain of every frequency, [size / 2 + 1]: tilt, a smooth curve, a telephone's band."""
    frequency = _frequencies(size)
    octave = np.log2(np.maximum(frequency, 30.0) / 1000.0)
    gain_db = rng.uniform(-config.tilt_db, config.tilt_db) * octave
    for _ in range(2):
        wave = np.cos(octave * rng.uniform(0.5, 2) + rng.uniform(0, 6.3))
        gain_db += config.bumps_db * np.sqrt(0.5) * rng.standard_normal() * wave
    gain = 10 ** (np.clip(gain_db, -15, 12) / 20)
    if rng.random() < config.telephone:
        gain *= (frequency > rng.uniform(60, 300)) & (frequency < rng.uniform(3300, 4000))
    return gain.astype(np.float32)
