"""Whole frames of drawn characters in motion, for models that learn from pixels alone.

Head, shoulders, mouth, lids, gaze and brows all move. The motion curves draw the frames and are
then forgotten: what is returned is a reference picture and consecutive frames, as a film has them.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.data.synthetic import visemes

_FPS = 25
_SCENE_FRAMES = 100  # Motion is made for a scene of 4 s; a clip is cut out of it.
_AT = motion_lib.COLUMNS.index
_EYES = [_AT(name) for name in ("blink_left", "blink_right", "gaze_x", "gaze_y", "brow")]


def made_up_mouth(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Mouth curves [num_frames, 6] of random phones at the pace of speech."""
    count = int(num_frames / _FPS / 0.05) + 8
    lengths = rng.uniform(0.05, 0.16, count)
    ids = rng.integers(0, len(speech.PHONES), count)
    ends = np.cumsum(lengths)
    phones = np.stack([ends - lengths, ends, ids], 1)
    return visemes.mouth_curves(phones, num_frames, _FPS)


def motion(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Motion of a reference picture and of consecutive frames of one scene.

    Blinks and glances are short, so in a third of the clips the eyes hold a random state; in a
    third the head moves half as much again as usual.

    Args:
      rng: Random generator.
      num_frames: Consecutive frames F.

    Returns:
      float32 [1 + F, 17].
    """
    length = max(_SCENE_FRAMES, num_frames)
    if rng.random() < 0.8:
        scene = motion_lib.talking(rng, made_up_mouth(rng, length), _FPS)
    else:
        scene = motion_lib.listening(rng, length, _FPS)
    start = int(rng.integers(length - num_frames + 1))
    scene = scene[start : start + num_frames]
    if rng.random() < 0.33:
        scene[:, motion_lib.BODY[:5]] = np.clip(1.5 * scene[:, motion_lib.BODY[:5]], -0.9, 0.9)
    if rng.random() < 0.33:
        lids, gaze_x, gaze_y, brow = rng.uniform((0, -0.6, -0.6, -0.5), (1.3, 0.6, 0.6, 0.7))
        held = np.array([min(lids, 1), min(lids, 1), gaze_x, gaze_y, brow])
        scene[:, _EYES] = held + 0.1 * scene[:, _EYES]
        scene[:, _EYES[:2]] = np.clip(scene[:, _EYES[:2]], 0, 1)
    return np.concatenate([motion_lib.portrait(rng)[None], scene]).astype(np.float32)


def draw(seed: int, curves: np.ndarray, size: int = 256) -> np.ndarray:
    """A drawn character moved by curves [F, 17]: uint8 [F, size, size, 3]."""
    character = characters.stack([characters.sample(seed)])
    frames = characters.render(character, curves[None], size)
    return np.asarray(jax.block_until_ready(frames))[0]


def clips(
    seed: int, count: int, num_frames: int, held_out: bool = False,
    draw: Callable[[int, np.ndarray], np.ndarray] = draw,
) -> Iterator[np.ndarray]:
    """Draws clips, each of another character.

    Args:
      seed: Seed of everything.
      count: Clips to draw.
      num_frames: Frames F after the reference picture.
      held_out: Characters of the held-out side (`characters.is_held_out`).
      draw: Draws the character of a seed, moved by curves [1 + F, 17]; another source is
        `people.clip.Studio.draw`.

    Yields:
      uint8 [1 + F, H, W, 3].
    """
    to_seed = characters.held_out_seed if held_out else characters.training_seed
    for index in range(count):
        rng = np.random.default_rng((seed, int(held_out), index))
        character = to_seed(int(rng.integers(1 << 24)))
        yield draw(character, motion(rng, num_frames))
