"""Endless clips of drawn characters with made-up speech: what eyes alone can learn from.

An element is a description (character, motion, jitter), a few kilobytes; frames are drawn on
the device inside the training step.
"""

import grain
import jax
import numpy as np

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.data.synthetic import visemes

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
      Dictionary with `character` (leaves without batch axis), `motion` [1 + F, M] and
      `jitter` [3] (see `jitter`).
    """
    if rng.random() < 0.8:
        motion = motion_lib.talking(rng, made_up_mouth(rng, num_frames), _FPS)
    else:
        motion = motion_lib.listening(rng, num_frames, _FPS)
    if rng.random() < 0.5:
        _stare(rng, motion)
    pose = motion_lib.portrait(rng)
    motion = np.concatenate([pose[None], motion_lib.hold(motion, pose)])
    return {
        "character": characters.sample(seed), "motion": motion.astype(np.float32),
        "jitter": jitter(rng),
    }


def _stare(rng, motion):
    """Holds the eyes somewhere: blinks and glances are short, and would hardly be seen."""
    at = motion_lib.COLUMNS.index
    motion[:, [at("blink_left"), at("blink_right")]] = rng.uniform(0, 1.3, 1).clip(max=1)
    motion[:, at("gaze_x")], motion[:, at("gaze_y")] = rng.uniform(-0.6, 0.6, 2)
    motion[:, at("brow")] = rng.uniform(-0.5, 0.7)


def jitter(rng: np.random.Generator) -> np.ndarray:
    """How a locator may err: down, right (in sides of the face's square) and size (log), [3]."""
    return rng.normal(0, (0.012, 0.012, 0.02)).astype(np.float32)


def batches(seed: int, batch: int, num_frames: int, held_out: bool = False) -> grain.IterDataset:
    """Endless batches of descriptions.

    Args:
      seed: Order and content.
      batch: Clips per batch.
      num_frames: Frames of motion after the portrait frame.
      held_out: Characters of the held-out side.
    """
    to_seed = characters.held_out_seed if held_out else characters.training_seed

    def describe(index):
        rng = np.random.default_rng((seed, 1 if held_out else 0, int(index)))
        return clip(rng, to_seed(int(rng.integers(1 << 24))), num_frames)

    return (
        grain.MapDataset.range(1 << 31)
        .map(describe)
        .batch(batch, batch_fn=lambda items: jax.tree.map(lambda *x: np.stack(x), *items))
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )
