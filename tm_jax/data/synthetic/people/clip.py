"""Draws clips of three-dimensional people: a seed and motion in, frames out."""

import functools

import numpy as np

from tm_jax.data.synthetic.people import actions as actions_lib
from tm_jax.data.synthetic.people import basis
from tm_jax.data.synthetic.people import figure
from tm_jax.data.synthetic.people import identity as identity_lib
from tm_jax.data.synthetic.people import pose as pose_lib
from tm_jax.data.synthetic.people import render


class Studio:
    """Draws one person after the other; keeps the last one loaded.

    An OpenGL context belongs to the thread that made it: use a studio in one thread only, and
    one per process.

    Attributes:
      size: Side of the frames in pixels.
    """

    def __init__(self, size: int = 256, oversample: float = 1.5):
        """Opens an OpenGL context.

        Args:
          size: Side of the frames in pixels.
          oversample: Samples per side of a pixel; 1 is fastest, 2 is smoothest.

        Raises:
          assets.Missing: anny, moderngl or EGL is not installed; the message says what.
        """
        self.size = size
        self._basis = basis.load()
        self._renderer = render.Renderer(size, oversample)
        self._loaded: tuple | None = None

    def show(self, identity: identity_lib.Identity) -> None:
        """Makes a person the one that is drawn; takes about half a second."""
        self._renderer.load(figure.build(identity, self._basis))
        self._loaded = None

    def frame(self, actions: np.ndarray, pose: pose_lib.Pose | None = None) -> np.ndarray:
        """One frame of the shown person, uint8 [size, size, 3], from actions [52]."""
        return self._renderer.frame(actions, pose or pose_lib.Pose())

    def draw(
        self, seed: int, motion: np.ndarray, mouth: np.ndarray | None = None, **fixed: object
    ) -> np.ndarray:
        """Draws a clip.

        Args:
          seed: Which person; see `identity.sample`.
          motion: Motion curves [F, 17] in the order of `motion.COLUMNS`, as for the drawn
            characters.
          mouth: Mouth actions [F, 52] of `actions.speech`; by default they follow the motion's
            mouth curves.
          **fixed: Attributes of the person that are set instead of drawn.

        Returns:
          Frames, uint8 [F, size, size, 3].
        """
        key = (seed, tuple(sorted((k, str(v)) for k, v in fixed.items())))
        if key != self._loaded:
            self.show(identity_lib.sample(seed, **fixed))
            self._loaded = key
        values, poses = actions_lib.face(motion, mouth)
        frames = [self.frame(row, pose) for row, pose in zip(values, poses)]
        return np.stack(frames) if frames else np.zeros((0, self.size, self.size, 3), np.uint8)


@functools.lru_cache(maxsize=1)
def studio(size: int) -> Studio:
    """The studio of this process for a size."""
    return Studio(size)


def draw(
    seed: int, motion: np.ndarray, mouth: np.ndarray | None = None, size: int = 256
) -> np.ndarray:
    """Draws a clip, uint8 [F, size, size, 3]; see `Studio.draw`."""
    return studio(size).draw(seed, motion, mouth)
