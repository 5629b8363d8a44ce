"""Endless clips of drawn characters with made-up speech: what the autoencoder learns from.

An element is a description (character, motion, crop), a few kilobytes; frames are drawn on
the device inside the training step.
"""

import grain
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.data import characters
from tm_jax.data import motion as motion_lib
from tm_jax.data import speech
from tm_jax.data import visemes

_FPS = 25


def made_up_mouth(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Mouth curves [num_frames, 6] of random phones at the pace of speech."""
    count = int(num_frames / _FPS / 0.05) + 8
    lengths = rng.uniform(0.05, 0.16, count)
    ids = rng.integers(0, len(speech.PHONES), count)
    ends = np.cumsum(lengths)
    phones = np.stack([ends - lengths, ends, ids], 1)
    return visemes.mouth_curves(phones, num_frames, _FPS)


def clip(rng: np.random.Generator, seed: int, num_frames: int) -> dict:
    """A description: one portrait frame, then `num_frames` frames of a face, the head at rest.

    Returns:
      Dictionary with `character` (leaves without batch axis) and `motion` [1 + F, M].
    """
    if rng.random() < 0.8:
        motion = motion_lib.talking(rng, made_up_mouth(rng, num_frames), _FPS)
    else:
        motion = motion_lib.listening(rng, num_frames, _FPS)
    pose = motion_lib.portrait(rng)
    motion = np.concatenate([pose[None], motion_lib.hold(motion, pose)])
    return {"character": characters.sample(seed), "motion": motion.astype(np.float32)}


def batches(
    seed: int, batch: int, num_frames: int, crop: int | None, size: int,
    held_out: bool = False,
) -> grain.IterDataset:
    """Endless batches of descriptions.

    Args:
      seed: Order and content.
      batch: Clips per batch.
      num_frames: Frames of motion after the portrait frame.
      crop: Side of the square that the loss looks at; None for the whole picture.
      size: Side of the picture.
      held_out: Characters of the held-out side.
    """
    to_seed = characters.held_out_seed if held_out else characters.training_seed

    def describe(index):
        rng = np.random.default_rng((seed, 1 if held_out else 0, int(index)))
        item = clip(rng, to_seed(int(rng.integers(1 << 24))), num_frames)
        side = size if crop is None else crop
        # Half of the crops hold the face, the rest lies anywhere.
        centre = rng.normal((0.5, 0.5), 0.08) if rng.random() < 0.5 else rng.random(2)
        corner = np.clip(np.asarray(centre) * size - side / 2, 0, size - side)
        return {**item, "corner": corner.astype(np.int32)}

    return (
        grain.MapDataset.range(1 << 31)
        .map(describe)
        .batch(batch, batch_fn=lambda items: jax.tree.map(lambda *x: np.stack(x), *items))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def box_mask(box: jax.Array, size: int) -> jax.Array:
    """Boxes (y0, x0, y1, x1) in 0..1, [..., 4], to soft masks [..., size, size]."""
    at = (jnp.arange(size) + 0.5) / size
    edge = 1.0 / size

    def inside(low, high):
        a = jnp.clip((at - low[..., None]) / edge + 0.5, 0, 1)
        b = jnp.clip((high[..., None] - at) / edge + 0.5, 0, 1)
        return a * b

    rows = inside(box[..., 0], box[..., 2])
    columns = inside(box[..., 1], box[..., 3])
    return rows[..., :, None] * columns[..., None, :]


def to_float(frames: jax.Array) -> jax.Array:
    """uint8 pixels to -1..1."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels in -1..1 to uint8, clipped."""
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
