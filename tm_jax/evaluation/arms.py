"""Arms of an evaluation: different ways to a video of the same scene and the same sound.

An arm has a name and two methods, `speak` and `rest`. Nothing here depends on a model: a stream
comes as a function that makes a session (`tm_jax.inference`), an autoencoder as a function
from frames to frames.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import scenes

_RATE = timing_lib.Timing().sample_rate


class Clip(NamedTuple):
    """What an arm shows.

    Attributes:
      frames: uint8 [T, H, W, 3].
      speaking: Share of the time in which the character was in its speaking mode.
    """

    frames: np.ndarray
    speaking: float


def chunks(session: Any, sound: np.ndarray) -> Iterator[Any]:
    """Feeds a session bit by bit and yields its chunks until the sound is over, then closes it.

    Args:
      session: A new session.
      sound: Speech at 16 kHz, float32 [n]; the last chunk is filled up with silence.
    """
    step = session.chunk_frames * _RATE // session.fps
    left, fed = -(-len(sound) // step), 0
    try:
        while left:
            chunk = session.pull()
            if chunk is not None:
                left -= 1
                yield chunk
            elif fed < len(sound):
                session.push_audio(sound[fed : fed + step])
                fed += step
            else:
                session.end_audio()
    finally:
        session.close()


def show(session: Any, sound: np.ndarray, frames: int) -> Clip:
    """The first `frames` frames of a session that is fed a sound."""
    made = list(chunks(session, sound))
    video = np.concatenate([chunk.frames for chunk in made])
    return Clip(video[:frames], float(np.mean([chunk.speaking for chunk in made])))


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A model that streams.

    Attributes:
      make: Makes a session: (picture, seed=..., mode=...) -> session.
      mode: Mode in which it speaks.
    """

    make: Callable[..., Any]
    mode: str = "auto"

    def speak(self, scene: scenes.Scene, seed: int = 0) -> Clip:
        """The scene's character with the speech of its track."""
        return self.rest(scene, scene.track.audio, self.mode, seed)

    def rest(
        self, scene: scenes.Scene, sound: np.ndarray, mode: str = "auto", seed: int = 0
    ) -> Clip:
        """The scene's character in a mode with another sound."""
        session = self.make(scene.picture, seed=seed, mode=mode)
        return show(session, sound, len(scene.motion))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The truth: the renderer with the true motion, perhaps seen through an autoencoder.

    Attributes:
      code: Function (picture, frames) -> frames that the drawing goes through, or None.
    """

    code: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def _through(self, scene, motion):
        frames = scene.draw(motion)
        return frames if self.code is None else self.code(scene.picture, frames)

    def speak(self, scene: scenes.Scene, seed: int = 0) -> Clip:
        """The true mouth; every seed moves head and eyes in another way."""
        return Clip(self._through(scene, scene.talking(seed)), 1.0)

    def rest(
        self, scene: scenes.Scene, sound: np.ndarray, mode: str = "auto", seed: int = 0
    ) -> Clip:
        """A true listener, whatever the sound."""
        del sound, mode
        return Clip(self._through(scene, scene.listening(seed)), 0.0)


class Static:
    """The reference picture all the time."""

    def speak(self, scene: scenes.Scene, seed: int = 0) -> Clip:
        """The picture."""
        del seed
        return Clip(np.repeat(scene.picture[None], len(scene.motion), 0), 0.0)

    def rest(
        self, scene: scenes.Scene, sound: np.ndarray, mode: str = "auto", seed: int = 0
    ) -> Clip:
        """The picture."""
        del sound, mode
        return self.speak(scene, seed)
