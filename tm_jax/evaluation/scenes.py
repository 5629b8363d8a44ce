"""Held-out voices and characters with the truth: what arms of an evaluation see and hear.

Neither was trained on, and previews of the training show characters with lower numbers.
"""

import dataclasses
import functools

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import acoustics
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.evaluation import mouth

_FIRST = 500  # Number of the first held-out character.
_SHUT = 1e-3  # True opening below which lips are shut.
_NOISE_LEVEL = 0.006  # 20 dB below speech.
_FPS = timing_lib.Timing().fps
_LIDS = [motion_lib.COLUMNS.index(name) for name in ("blink_left", "blink_right")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One character and one voice, with the truth.

    Attributes:
      index: Number of the scene.
      speaker: Name of the voice.
      synthetic: Whether a machine speaks.
      style: Style of the drawing.
      track: Sound, mouth curves and activity.
      character: Batch of one character.
      picture: Reference, uint8 [H, W, 3].
      motion: True motion, [T, M].
      portrait: Pose of the reference, [M].
      mouth_box: Box that holds the mouth at any opening in the reference's pose, [4]. It stays
        where it is: a box for all poses of the head takes in lines of nose and chin.
      face_box: Box of the reference's face, [4].
    """

    index: int
    speaker: str
    synthetic: bool
    style: str
    track: tracks.Track
    character: characters.Character
    picture: np.ndarray
    motion: np.ndarray
    portrait: np.ndarray
    mouth_box: np.ndarray
    face_box: np.ndarray

    @property
    def closed(self) -> np.ndarray:
        """Frames in which m, b or p shuts the lips, bool [T]: no other phone does."""
        return (self.track.active > 0) & (self.track.mouth[:, 0] < _SHUT)

    @property
    def spoken(self) -> np.ndarray:
        """Frames of speech, bool [T]."""
        return self.track.active > 0

    @functools.cached_property
    def rest(self) -> float:
        """Opening that is measured on the reference's shut lips: their line, a shadow."""
        return float(mouth.opening(self.picture[None], self.mouth_box)[0])

    def draw(self, motion: np.ndarray) -> np.ndarray:
        """Frames of the character with a motion [T, M], uint8 [T, H, W, 3]."""
        # One compiled program for all lengths.
        part = 2 * _FPS
        padded = np.pad(motion, ((0, -len(motion) % part), (0, 0)), mode="edge")
        size = self.picture.shape[0]
        drawn = [
            np.asarray(characters.render(self.character, padded[None, at : at + part], size))[0]
            for at in range(0, len(padded), part)
        ]
        return np.concatenate(drawn)[: len(motion)]

    @functools.cached_property
    def shut_eyes(self) -> np.ndarray:
        """The reference with its eyes shut, uint8 [H, W, 3]."""
        pose = self.portrait.copy()
        pose[_LIDS] = 1.0
        return self.draw(pose[None])[0]

    @functools.cached_property
    def eye_box(self) -> np.ndarray:
        """Box of both eyes in the reference, [4]: the strip of the face that a blink changes."""
        changed = np.abs(self.shut_eyes.astype(np.int16) - self.picture).max(-1) > 12
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if not len(rows):
            raise ValueError(f"scene {self.index}: shut eyes look like open ones.")
        height, width = changed.shape
        return np.array([
            rows[0] / height, columns[0] / width, (rows[-1] + 1) / height,
            (columns[-1] + 1) / width,
        ])  # fmt: skip

    def listening(self, seed: int = 0) -> np.ndarray:
        """A true listener's motion of the same length, [T, M]."""
        rng = np.random.default_rng((self.index, 1, seed) if seed else (self.index, 1))
        return motion_lib.listening(rng, len(self.motion), _FPS)

    def talking(self, seed: int) -> np.ndarray:
        """The motion of somebody who says the same another time, [T, M]; 0 is `motion`."""
        if not seed:
            return self.motion
        rng = np.random.default_rng((self.index, 3, seed))
        return motion_lib.talking(rng, self.track.mouth, _FPS)


def make(
    speakers: list[speech.Speaker], index: int, frames: int, size: int, *, seed: int
) -> Scene:
    """Scene number `index`: styles change fastest, then voices.

    Args:
      speakers: Voices to take turns.
      index: Number of the scene.
      frames: Length in frames.
      size: Side of the picture.
      seed: Seed of the sound and the motion.
    """
    rng = np.random.default_rng((seed, index))
    style = characters.STYLES[index % len(characters.STYLES)]
    speaker = speakers[index // len(characters.STYLES) % len(speakers)]
    one = characters.sample(characters.held_out_seed(_FIRST + index), style)
    character = characters.stack([one])
    track = tracks.track(speaker, rng, frames)
    portrait = motion_lib.portrait(rng)[None]
    motion = motion_lib.talking(rng, track.mouth, _FPS)
    boxes = characters.regions(character, portrait[None])
    return Scene(
        index=index, speaker=speaker.name, synthetic=is_synthetic(speaker), style=style,
        track=track, character=character, motion=motion, portrait=portrait[0],
        picture=np.asarray(characters.render(character, portrait[None], size))[0, 0],
        mouth_box=np.asarray(boxes["mouth"])[0, 0], face_box=np.asarray(boxes["face"])[0, 0],
    )


def is_synthetic(speaker: speech.Speaker) -> bool:
    """Whether a machine speaks."""
    return speech.synthesiser(speaker.name) is not None


def room(index: int, frames: int) -> np.ndarray:
    """Background noise of a quiet room, float32 [samples]."""
    samples = frames * timing_lib.Timing().samples_per_frame
    return _NOISE_LEVEL * acoustics.noise(np.random.default_rng((index, 2)), samples)
