"""The model's view of a live timeline: 24 kHz chunks in, 16 kHz windows out."""

import numpy as np
import scipy.signal

_CONTEXT = 96  # Samples of 24 kHz on the left of a chunk that the filter reads.
_UP, _DOWN = 2, 3  # 24 kHz to 16 kHz.


class Hearing:
    """Keeps the sound that lies before a chunk, at the models' rate."""

    def __init__(self, before: int, after: int):
        """Begins in silence.

        Args:
          before: Samples of 16 kHz ahead of a chunk that the models need.
          after: Samples of 16 kHz after it.
        """
        self._before, self._after = before, after
        self.forget()

    def forget(self) -> None:
        """Begins in silence again."""
        self._past = np.zeros(self._before, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    def window(self, pcm: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """Appends a chunk.

        Args:
          pcm: int16 [n] at 24 kHz, n a multiple of 3.
          ahead: int16 [m] after it, at least `after` in time.

        Returns:
          float32 [before + n * 2 / 3 + after] at 16 kHz.
        """
        sound = pcm.astype(np.float32) / 32768
        joined = np.concatenate([self._context, sound, ahead.astype(np.float32) / 32768])
        speech = scipy.signal.resample_poly(joined, _UP, _DOWN).astype(np.float32)
        speech = speech[_CONTEXT * _UP // _DOWN :]
        step = len(pcm) * _UP // _DOWN
        window = np.concatenate([self._past, speech[: step + self._after]])
        self._past = window[step : step + self._before]
        self._context = np.concatenate([self._context, sound])[-_CONTEXT:]
        return window


def ahead_samples(after: int) -> int:
    """Samples of 24 kHz that cover `after` samples of 16 kHz."""
    return -(-after * _DOWN // _UP)
