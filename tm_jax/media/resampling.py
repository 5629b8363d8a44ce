"""Sound that arrives in pieces: other rates, and the 16-bit samples of wire formats."""

import av
import numpy as np

_FORMAT, _LAYOUT = "flt", "mono"


class Resampler:
    """Changes the rate of a stream of mono sound, piece by piece.

    FFmpeg's resampler holds back 16 samples of the lower rate, whatever the length of the pieces:
    1 ms at 16 kHz.
    """

    def __init__(self, source_rate: int, target_rate: int):
        """Makes a stream.

        Args:
          source_rate: Samples per second that come in.
          target_rate: Samples per second that go out.

        Raises:
          ValueError: A rate that no sound has.
        """
        for name, rate in (("source_rate", source_rate), ("target_rate", target_rate)):
            if not 4000 <= rate <= 192000:
                raise ValueError(f"{name} must be 4000 to 192000 samples/s, got {rate}.")
        self._rates = source_rate, target_rate
        self._stream = None
        self.reset()

    def reset(self) -> None:
        """Discards what the stream holds back."""
        if self._rates[0] != self._rates[1]:
            self._stream = av.AudioResampler(_FORMAT, _LAYOUT, self._rates[1])

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """Converts the next piece.

        Args:
          samples: float32 [n] at the source's rate; any n.
          last: Whether the stream ends here. The next piece begins another one.

        Returns:
          float32 [m] at the target's rate: all that is known by now. Over the whole stream
          both sides last equally long, to a sample.
        """
        samples = np.ascontiguousarray(samples, np.float32)
        if self._stream is None:
            return samples
        out = []
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], _FORMAT, _LAYOUT)
            frame.sample_rate = self._rates[0]
            out += self._stream.resample(frame)
        if last:
            if self._stream.format is not None:  # It has been fed.
                out += self._stream.resample(None)
            self.reset()
        parts = [part.to_ndarray()[0] for part in out if part is not None]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def to_pcm16(samples: np.ndarray) -> bytes:
    """Returns float32 [n] in -1..1 as 16-bit little-endian samples; louder is clipped."""
    scaled = np.clip(np.asarray(samples, np.float32), -1.0, 1.0) * 32767.0
    return np.rint(scaled).astype("<i2").tobytes()


def from_pcm16(data: bytes, channels: int = 1) -> np.ndarray:
    """Returns 16-bit little-endian samples as mono float32 [n] in -1..1.

    Args:
      data: Samples, those of the channels interleaved.
      channels: Number of channels; they are averaged.

    Raises:
      ValueError: Half a sample, or a channel that ends early.
    """
    if len(data) % (2 * channels):
        raise ValueError(
            f"pcm16: expected a multiple of {2 * channels} bytes for {channels} channels, "
            f"got {len(data)}."
        )
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
    return samples.reshape(-1, channels).mean(axis=1) if channels > 1 else samples
