"""The other party's sound on its way to a listener: a queue, and loudness frame by frame."""

import numpy as np

from tm_jax.models.puppet.motion import config as motion_config

_RANGE_DB = motion_config.LOUDNESS_DB


def loudness(samples: np.ndarray, samples_per_frame: int) -> np.ndarray:
    """Loudness of every video frame, on the host.

    Args:
      samples: Sound in -1..1, [..., F * samples_per_frame], at any rate.
      samples_per_frame: Samples of one video frame.

    Returns:
      float32 [..., F] from 0 (-80 dB of full scale and below) to 1 (full scale).
    """
    samples = np.asarray(samples, np.float32)
    frames = samples.reshape(*samples.shape[:-1], -1, samples_per_frame)
    power = np.mean(np.square(frames), -1)
    db = 10 * np.log10(np.maximum(power, 10 ** (-_RANGE_DB / 10)))
    return np.clip(1 + db / _RANGE_DB, 0, 1).astype(np.float32)


class Overheard:
    """Sound of the other party that no chunk has taken yet.

    Sound that comes too late for its chunk is used late rather than never: silence goes
    before it. What then waits makes up for the unevenness of a network.
    """

    def __init__(self, samples_per_frame: int, most_frames: int | None = None):
        """Begins in silence.

        Args:
          samples_per_frame: Samples of one video frame.
          most_frames: Most frames that may wait beyond the next chunk, for live sound: older
            ones are let go. None keeps all, for sound that is known ahead.
        """
        self._frame, self._most = samples_per_frame, most_frames
        self.clear()

    def clear(self) -> None:
        """Discards what waits."""
        self._samples = np.zeros(0, np.float32)

    def __len__(self) -> int:
        """Samples that wait."""
        return len(self._samples)

    def push(self, samples: np.ndarray) -> None:
        """Appends sound, float32 [n] in -1..1; any n."""
        self._samples = np.concatenate([self._samples, samples])

    def take(self, frames: int) -> np.ndarray:
        """Loudness of the next `frames` frames, float32 [frames]."""
        count = frames * self._frame
        if self._most is not None:
            spare = len(self._samples) - count - self._most * self._frame
            self._samples = self._samples[max(0, spare) :]
        taken, self._samples = self._samples[:count], self._samples[count:]
        return loudness(np.pad(taken, (count - len(taken), 0)), self._frame)
