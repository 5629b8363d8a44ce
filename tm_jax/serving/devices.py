"""Runs the models of a bundle on slices of devices, for the engine.

The score slice runs the transformer, the decode slice the pixel decoder; with one device, or
self-contained, both are the same. Everything is dispatched without waiting: latents travel
between the slices by `device_put` while the host goes on.
"""

import contextlib
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from tm_jax.core import axes
from tm_jax.inference import bundle as bundle_lib
from tm_jax.inference import session
from tm_jax.models import networks
from tm_jax.parallel import rules
from tm_jax.serving import backend as backend_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How devices share the work (figure 3 of the paper).

    Attributes:
      mode: "self-contained", or "disaggregated": the last device decodes, the others score.
      sequence: Devices that share the tokens of one chunk; 1 for no sequence parallelism.
        Devices of the score slice that are left share the streams of a batch.
    """

    mode: str = "self-contained"
    sequence: int = 1

    def __post_init__(self):
        if self.mode not in ("self-contained", "disaggregated"):
            raise ValueError(
                f"mode must be self-contained or disaggregated, got {self.mode!r}."
            )
        if self.sequence < 1:
            raise ValueError(f"sequence must be at least 1, got {self.sequence}.")

    def meshes(self, devices) -> tuple[Mesh, Mesh]:
        """The meshes of the score slice and of the decode slice.

        Raises:
          ValueError: Not enough devices, or a number that does not divide.
        """
        devices = list(devices)
        score, decode = devices, devices
        if self.mode == "disaggregated":
            if len(devices) < 2:
                raise ValueError(
                    "disaggregated needs at least 2 devices, one to score and one to decode; "
                    f"got {len(devices)}. Use self-contained."
                )
            score, decode = devices[:-1], devices[-1:]
        if len(score) % self.sequence:
            raise ValueError(
                f"sequence={self.sequence} does not divide {len(score)} devices that score."
            )
        score_mesh = rules.make_mesh(score, seq=self.sequence)
        same = self.mode == "self-contained"
        return score_mesh, score_mesh if same else rules.make_mesh(decode)


@dataclasses.dataclass
class _Lane:
    """State of a batch of streams; replaced at every step.

    Attributes:
      batch: Slots.
      start: `Start` of the streams, on the score slice; None before the first stream.
      state: `StreamState`, on the score slice.
      decoder: `DecoderState`, on the decode slice.
      held: Chunks that each stream still speaks in pose auto, int32 [B].
    """

    batch: int
    start: object = None
    state: object = None
    decoder: object = None
    held: object = None


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


class ModelBackend:
    """Runs the models of a bundle; see `backend.Backend`."""

    def __init__(
        self, bundle: bundle_lib.Bundle, placement: Placement | None = None, devices=None
    ):
        """Places the weights.

        Args:
          bundle: Models and weights.
          placement: How devices share the work.
          devices: Devices to use; the first one by default, or as many as `placement` needs.
        """
        placement = placement or Placement()
        if devices is None:
            least = placement.sequence + (placement.mode == "disaggregated")
            devices = jax.devices()[:least]
        self._bundle = bundle
        meshes = placement.meshes(devices)
        self._shares = meshes[0].shape["data"]
        self._apart = placement.mode == "disaggregated"
        # Without a mesh the programs that an earlier process has compiled are used.
        alone = list(devices) == jax.local_devices()[:1]
        self._score_mesh, self._decode_mesh = (None, None) if alone else meshes
        self._params = self._decode_params = bundle.params
        if not alone:
            boxed = _boxed_shapes(bundle.models)
            self._params = _place(self._score_mesh, boxed, bundle.params)
            self._decode_params = self._params
            if self._apart:
                parts = {"vae": bundle.params["vae"]}
                self._decode_params = _place(self._decode_mesh, boxed, parts)
        preset = bundle.preset
        self.height, self.width = preset.height, preset.width
        self.fps, self.chunk_frames = preset.timing.fps, preset.timing.frames_per_chunk
        self.before, self.after = bundle.before, bundle.after
        # A CPU runs dispatched programs side by side, which helps none of them.
        shared = not self._apart and devices[0].platform == "cpu"
        self.depth = 1 if shared else 2

    def lane(self, batch: int) -> _Lane:
        """See `backend.Backend`."""
        if batch % self._shares:
            raise ValueError(
                f"a batch of {batch} streams cannot be shared by {self._shares} devices; use a "
                "multiple, or give all devices to the sequence."
            )
        return _Lane(batch)

    def begin(self, lane: _Lane, slot: int, picture: np.ndarray, seed: int, chunk: int):
        """See `backend.Backend`."""
        bundle = self._bundle
        keys = bundle_lib.stream_key(seed, chunk)[None]
        with _within(self._score_mesh):
            start, state, decoder = bundle.begin(self._params, picture[None], keys)
        decoder = _everywhere(decoder, self._decode_mesh)
        if lane.state is None:
            lane.start = _spread(start, lane.batch, self._score_mesh)
            lane.state = _spread(state, lane.batch, self._score_mesh)
            lane.decoder = _spread(decoder, lane.batch, self._decode_mesh)
            lane.held = _everywhere(jnp.zeros(lane.batch, jnp.int32), self._score_mesh)
            return
        with _within(self._score_mesh):
            lane.start = bundle.insert(lane.start, slot, start)
            lane.state = bundle.insert(lane.state, slot, state)
        with _within(self._decode_mesh):
            lane.decoder = bundle.insert(lane.decoder, slot, decoder)

    def step(self, lane: _Lane, sounds, poses, clear, others=None) -> _Job:
        """See `backend.Backend`."""
        bundle, params = self._bundle, self._params
        with _within(self._score_mesh):
            windows, voice = bundle.hear(params, sounds)
            mode, lane.held = _decide(voice, lane.held, poses, clear)
            latents, lane.state = bundle.score(
                params, lane.state, lane.start, windows, mode, others
            )
        moved = latents
        if self._apart:
            moved = _everywhere(latents, self._decode_mesh)
        with _within(self._decode_mesh):
            frames, lane.decoder = bundle.decode(self._decode_params, moved, lane.decoder)
        return _Job(latents, moved, frames, mode)


def _within(mesh: Mesh | None):
    """Makes a mesh active, if there is one."""
    return contextlib.nullcontext() if mesh is None else rules.use(mesh)


def _everywhere(tree, mesh: Mesh | None):
    """Copies a tree to all devices of a mesh; returns before it has arrived."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _spread(one, batch: int, mesh: Mesh | None):
    """Copies one stream into every slot of a batch, shared by the devices as the rules say."""
    many = jax.tree.map(lambda x: jnp.repeat(x, batch, 0, total_repeat_length=batch), one)
    if mesh is None:
        return many
    names = dict(rules.RULES)[axes.BATCH]
    shared = int(np.prod([mesh.shape[name] for name in names]))
    spec = PartitionSpec(names) if batch % shared == 0 else PartitionSpec()
    return jax.device_put(many, NamedSharding(mesh, spec))


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
    mode = jnp.where(poses == backend_lib.AUTO, held > 0, poses == backend_lib.SPEAK).astype(jnp.int32)
    return jnp.broadcast_to(mode[:, None], voice.shape), held


def _boxed_shapes(models: networks.Models) -> dict:
    key = jax.random.key(0)
    return {
        part: jax.eval_shape(functools.partial(models.init, part), key)
        for part in networks.PARTS
    }


def _place(mesh: Mesh, boxed: dict, params: dict) -> dict:
    """Puts parameters on a mesh, each as the rules say."""
    return {
        part: jax.device_put(tree, rules.shardings(mesh, boxed[part]))
        for part, tree in params.items()
    }
