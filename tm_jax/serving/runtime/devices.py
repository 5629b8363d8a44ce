"""Runs a pipeline on its slices of devices, for the engine.

Everything is dispatched without waiting: latents travel from the denoise slice to the decode
slice by `device_put` while the host goes on.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import session
from tm_jax.serving.runtime import backend as backend_lib


@dataclasses.dataclass
class _Lane:
    """State of a batch of streams; replaced at every step.

    Attributes:
      batch: Slots.
      shown: Chunks that each stream has shown, [B], on the host.
      start: Constant inputs of the streams, on the denoise slice; None before the first one.
      state: State of `denoise`, on the denoise slice.
      decoder: State of `decode`, on the decode slice.
      held: Chunks that each stream still speaks in pose auto, int32 [B].
    """

    batch: int
    shown: np.ndarray
    start: Any = None
    state: Any = None
    decoder: Any = None
    held: jax.Array | None = None


class _Job:
    """See `backend.Job`."""

    def __init__(self, latents, moved, frames, mode):
        self._latents, self._moved, self._frames, self._mode = latents, moved, frames, mode
        self._started_s = time.perf_counter()

    def wait(self) -> backend_lib.Result:
        times = [self._started_s]
        for stage in (self._latents, self._moved, self._frames):
            jax.block_until_ready(stage)
            times.append(time.perf_counter())
        frames = np.asarray(self._frames)
        times[-1] = time.perf_counter()
        speaking = np.asarray(self._mode)[:, 0] > 0
        spans = dict(zip(("score", "transfer", "decode"), np.diff(times).tolist()))
        return backend_lib.Result(frames, speaking, spans)


class PipelineBackend:
    """Runs a pipeline; see `backend.Backend`."""

    def __init__(self, pipeline: pipeline_lib.Pipeline):
        """Wraps a pipeline, on whatever devices it is."""
        self._pipeline = pipeline
        preset = pipeline.preset
        self.height, self.width = preset.height, preset.width
        self.fps, self.chunk_frames = preset.timing.fps, preset.timing.frames_per_chunk
        self.before, self.after = pipeline.before, pipeline.after
        # A CPU runs dispatched programs side by side, which helps none of them.
        [device, *_] = jax.tree.leaves(pipeline.params)[0].devices()
        self.depth = 1 if device.platform == "cpu" and not pipeline.apart else 2

    def lane(self, batch: int) -> _Lane:
        """See `backend.Backend`."""
        shares = self._pipeline.shares
        if batch % shares:
            raise ValueError(
                f"a batch of {batch} streams cannot be shared by {shares} devices; use a "
                "multiple, or give all devices to the sequence."
            )
        return _Lane(batch, shown=np.zeros(batch, np.int64))

    def begin(self, lane: _Lane, slot: int, picture: np.ndarray, seed: int, chunk: int) -> None:
        """See `backend.Backend`."""
        pipeline = self._pipeline
        keys = pipeline_lib.stream_key(seed, chunk)[None]
        start, state, decoder = pipeline.begin(picture[None], keys)
        lane.shown[slot] = chunk
        if lane.state is None:
            lane.start = pipeline.spread(start, lane.batch)
            lane.state = pipeline.spread(state, lane.batch)
            lane.decoder = pipeline.spread(decoder, lane.batch, decoder=True)
            lane.held = jnp.zeros(lane.batch, jnp.int32)
            return
        lane.start = pipeline.insert(lane.start, slot, start)
        lane.state = pipeline.insert(lane.state, slot, state)
        lane.decoder = pipeline.insert(lane.decoder, slot, decoder, decoder=True)

    def step(
        self, lane: _Lane, sounds: np.ndarray, poses: np.ndarray, clear: np.ndarray,
        others: np.ndarray | None = None
    ) -> _Job:
        """See `backend.Backend`."""
        pipeline = self._pipeline
        lane.shown += 1
        length = sounds.shape[1] - self.before - self.after
        known = np.minimum(sounds.shape[1], lane.shown * length + self.after)
        windows, voice = pipeline.encode_audio(sounds, known.astype(np.int32))
        mode, lane.held = _decide(voice, lane.held, poses, clear)
        partner = None if others is None else pipeline.encode_partner(others)
        latents, lane.state = pipeline.denoise(lane.state, lane.start, windows, mode, partner)
        moved = pipeline.move(latents)
        frames, lane.decoder = pipeline.decode(moved, lane.decoder)
        return _Job(latents, moved, frames, mode)


@functools.partial(jax.jit, donate_argnums=1)
def _decide(voice, held, poses, clear):
    """Speaking or listening without asking the host; as `Session` decides.

    Args:
      voice: Probability of a voice, [B, T].
      held: int32 [B].
      poses: int32 [B].
      clear: bool [B].

    Returns:
      Mode int32 [B, T], next `held`.
    """
    held = jnp.where(clear, 0, held)
    loud = (voice > session.VOICE).any(1)
    follow = jnp.where(loud, session.HOLD + 1, jnp.maximum(0, held - 1))
    held = jnp.where(poses == backend_lib.AUTO, follow, held)
    speaks = jnp.where(poses == backend_lib.AUTO, held > 0, poses == backend_lib.SPEAK)
    mode = speaks.astype(jnp.int32)
    return jnp.broadcast_to(mode[:, None], voice.shape), held

