"""A clip encoder without networks, and what it must give."""

import time

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data import clips

TIMING = timing_lib.Timing()
SIZE = 32


class Tiny:
    """Latents are mean colours of 8 x 8 pixels, features levels of the sound."""

    before, after = 3, 2
    grid = (2, 2)

    def __init__(self, weights="a", delay_s=0.0, fail_at=None, aspect=1.0):
        self.height = SIZE if aspect >= 1 else 2 * SIZE
        self.width = SIZE if aspect <= 1 else 2 * SIZE
        self._weights, self._delay_s, self._fail_at = weights, delay_s, fail_at
        self.batches: list[int] = []

    def settings(self):
        return {"kind": "tiny", "weights": self._weights}

    def constants(self):
        return {"text": np.full((2, 3), 7, np.float32)}

    def __call__(self, frames, sound, partner=None):
        partner = None if partner is None else partner[None]
        found = self.encode_batch(frames[None], sound[None], partner)
        return {name: part[0] for name, part in found.items()}

    def encode_batch(self, frames, sound, partner=None):
        self.batches.append(len(frames))
        time.sleep(self._delay_s)
        if self._fail_at is not None and len(self.batches) > self._fail_at:
            raise KeyboardInterrupt
        batch, count = frames.shape[:2]
        assert sound.shape == (batch, (self.before + count + self.after) * 640)
        rows, columns = self.height // 8, self.width // 8
        cells = frames.reshape(batch, count, rows, 8, columns, 8, 3)
        cells = cells.mean((3, 5), dtype=np.float32)
        later = cells[:, 1:].reshape(batch, -1, 4, rows, columns, 3).mean(2)
        found = {
            "latents": np.concatenate([cells[:, :1], later], 1),
            "condition": np.zeros((batch, 1, 4, 4, 0), np.float32), "audio": self._levels(sound),
        }
        if partner is not None:
            found["partner_audio"] = self._levels(partner)
        return found

    def _levels(self, sound):
        """Levels of the four frames of every latent after the first, [B, T, 4, 1]."""
        levels = np.abs(sound.reshape(len(sound), -1, 640)).max(-1)
        inside = levels[:, self.before + 1 : levels.shape[1] - self.after]
        return inside.reshape(len(sound), -1, 4, 1)


def config(**changes):
    options = dict(
        height=SIZE, width=SIZE, chunks=2, least_chunks=1, face="none", voice_activity="loudness"
    )
    return clips.Config(**options | changes)
