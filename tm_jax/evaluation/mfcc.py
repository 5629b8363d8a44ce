"""Mel-frequency cepstra as SyncNet's published weights expect them.

The settings are the defaults of the package `python_speech_features`, which that network was
trained with: windows of 25 ms every 10 ms without taper, pre-emphasis 0.97, 512-point
spectra, 26 triangular filters whose edges lie on whole bins, 13 cepstra with lifter 22, and
the logarithm of a window's energy in place of the first.
"""

import numpy as np
import scipy.fft

RATE = 16000
HOP = 160
CEPSTRA = 13
_WINDOW, _FFT, _FILTERS, _LIFTER = 400, 512, 26, 22
_EMPHASIS = 0.97


def _filters() -> np.ndarray:
    """Triangles that are even on the mel scale, [filters, bins]."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595) - 1)
    edges = np.floor((_FFT + 1) * hertz / RATE)
    bins = np.arange(_FFT // 2 + 1)
    low, middle, high = (edges[i : i + _FILTERS, None] for i in range(3))
    rising = (bins - low) / np.maximum(middle - low, 1)
    falling = (high - bins) / np.maximum(high - middle, 1)
    inside = np.where(bins < middle, rising, falling)
    return np.where((bins >= low) & (bins < high), inside, 0.0)


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Cepstra of a sound.

    Args:
      samples: Mono at 16 kHz in the range of 16-bit integers, [n].

    Returns:
      [frames, 13], float64; the last window is filled up with zeros.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples must be [n] with n of 1 or more, got {samples.shape}.")
    samples = np.append(samples[0], samples[1:] - _EMPHASIS * samples[:-1])
    count = 1 + max(0, -(-(len(samples) - _WINDOW) // HOP))
    samples = np.pad(samples, (0, max(0, (count - 1) * HOP + _WINDOW - len(samples))))
    at = HOP * np.arange(count)[:, None] + np.arange(_WINDOW)
    power = np.square(np.abs(np.fft.rfft(samples[at], _FFT))) / _FFT  # [frames, bins]
    least = np.finfo(float).eps
    energy, mel = power.sum(1), power @ _filters().T
    mel = np.log(np.where(mel == 0, least, mel))
    cepstra = scipy.fft.dct(mel, type=2, axis=1, norm="ortho")[:, :CEPSTRA]
    order = np.arange(CEPSTRA)
    cepstra = cepstra * (1 + _LIFTER / 2 * np.sin(np.pi * order / _LIFTER))
    cepstra[:, 0] = np.log(np.where(energy == 0, least, energy))
    return cepstra
