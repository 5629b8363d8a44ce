"""Draws videos of characters or 3-D people that speak and listen, as MP4 files with sound.

A source of video like any other: what is learned from these files is in their pixels and their
sound. Whole frames move: lips, lids, gaze, brows, head, shoulders.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.data.corpus import acoustics
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import characters
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.media import video

PERSON = "person"  # The style of 3-D people, beside the drawn ones.
STYLES = (*characters.STYLES, PERSON)
KINDS = ("talking", "conversing", "listening")
_SHARES = (0.6, 0.25, 0.15)
_STREAM = 40813  # Keeps these random numbers apart from those of other sources.
_PART = 50  # Frames drawn at once: one compiled program for all lengths.
_TURN_S = (1.2, 3.5)
_FADE_S = 0.04
_ROOM = (0.0003, 0.003)  # Level of the room's noise.
_PAUSE_S = 0.3  # Recordings are cut into utterances at longer pauses.
_ASSETS = pathlib.Path(__file__).parents[2] / "assets" / "voices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a drawn video shows.

    Attributes:
      seconds: Length, rounded to whole frames.
      size: Side of the square picture in pixels, even.
      kind: "talking", "conversing" (by turns) or "listening" (to another voice).
      partner: Whether the file has a right channel with the other party's voice; without it
        that voice is not in the file.
      timing: Clocks.
    """

    seconds: float = 6.0
    size: int = 256
    kind: str = "talking"
    partner: bool = False
    timing: timing_lib.Timing = timing_lib.Timing()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if not 1 <= self.seconds <= 3600:
            raise ValueError(f"seconds must be in 1..3600, got {self.seconds}.")

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return round(self.seconds * self.timing.fps)


def shipped_voices() -> list[speech.Speaker]:
    """The recordings in the package, with their phones.

    Their reader is held out: models that are trained on this voice must not be measured by it.
    """
    found = []
    for path in sorted(_ASSETS.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        sound = speech.read_audio(str(path.with_suffix(".flac")))
        rows = [(start, end, speech.PHONE_ID[name]) for start, end, name in facts["phones"]]
        found.append(_speaker(path.stem, _utterances(sound, rows)))
    return found


def voices(corpus: str | os.PathLike | None, split: str = "train") -> list[speech.Speaker]:
    """Speakers of a corpus (launch/corpus.py), or those of the package without one.

    Raises:
      ValueError: The folder is no corpus, or has no speaker of this split.
    """
    if corpus is None:
        return shipped_voices()
    return tracks.Voices(os.fspath(corpus), split).speakers


def draw(
    path: str | os.PathLike, speakers: list[speech.Speaker], *, seed: int, character: int,
    style: str | None = None, config: Config = Config(), own: int | None = None,
) -> None:
    """Writes one video.

    Args:
      path: MP4 file.
      speakers: Voices to draw from.
      seed: Seed of voice, words and motion.
      character: Which character (`characters.sample`).
      style: One of `STYLES`; None lets the character choose one of the drawn styles.
      config: What the video shows.
      own: Number of the character's own voice; drawn by default.

    Raises:
      ValueError: Wrong settings, or a style that does not exist.
      people.assets.Missing: What draws people is not installed.
      OSError: The file cannot be written.
    """
    rng = np.random.default_rng((_STREAM, seed))
    draw_frames = _drawer(character, style, config.size)
    motion, mine, other = _scene(rng, speakers, config, own)
    sound = np.stack([mine, other] if config.partner else [mine], 1)  # [samples, channels]
    per_frame = config.timing.samples_per_frame
    with video.Writer(
        path, config.timing.fps, config.size, config.size, config.timing.sample_rate,
        sound.shape[1],
    ) as writer:
        padded = np.pad(motion, ((0, -len(motion) % _PART), (0, 0)), mode="edge")
        for at in range(0, len(motion), _PART):
            count = min(_PART, len(motion) - at)
            writer.write_frames(draw_frames(padded[at : at + _PART])[:count])
            writer.write_sound(sound[at * per_frame : (at + count) * per_frame])


def portrait(character: int, style: str | None = None, size: int = 256) -> np.ndarray:
    """The neutral portrait of a character or person, uint8 [size, size, 3].

    Raises:
      ValueError: A style that does not exist.
      people.assets.Missing: What draws people is not installed.
    """
    return _drawer(character, style, size)(characters.neutral()[None])[0]


def _drawer(character: int, style: str | None, size: int) -> Callable:
    """Function (motion [F, M]) -> frames uint8 [F, size, size, 3] of a character or person."""
    if style == PERSON:
        from tm_jax.data.synthetic.people import clip  # Brings OpenGL in.

        return lambda motion: clip.draw(character, motion, size=size)
    look = characters.stack([characters.sample(character, style)])
    return lambda motion: np.asarray(characters.render(look, motion[None], size))[0]


def draw_folder(
    folder: str | os.PathLike, count: int, speakers: list[speech.Speaker], *, seed: int = 0,
    seconds: float = 6.0, size: int = 256, partner: bool = False, people: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draws videos into a folder; those that are there already are kept.

    Args:
      folder: Where; made if it is missing.
      count: Number of videos.
      speakers: Voices.
      seed: Seed of all of them; characters are those of the training side.
      seconds: Length of each.
      size: Side of the picture.
      partner: Whether the other party's voice is in the right channel. Without it, one
        side of a conversation is heard.
      people: Share of videos that show 3-D people.
      progress: Called with the videos done and the videos in all.

    Raises:
      people.assets.Missing: What draws people is not installed.
      OSError: A file cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"drawn-{seed:03d}-{index:05d}.mp4"
        if not path.exists():
            rng = np.random.default_rng((_STREAM, seed, index))
            kind = str(rng.choice(KINDS, p=_SHARES))
            character = characters.training_seed(int(rng.integers(1 << 24)))
            config = Config(seconds=seconds, size=size, kind=kind, partner=partner)
            scene = int(rng.integers(1 << 31))
            style = PERSON if rng.random() < people else None
            draw(path, speakers, seed=scene, character=character, style=style, config=config)
        if progress is not None:
            progress(index + 1, count)


def _scene(rng, speakers, config, own_voice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Motion [F, M], and the character's and the other party's sound [samples]."""
    frames, fps = config.frames, config.timing.fps
    first = int(rng.integers(len(speakers))) if own_voice is None else own_voice
    others = [i for i in range(len(speakers)) if i != first] or [first]
    chosen = first, int(rng.choice(others))
    mine, theirs = (
        tracks.track(speakers[i], rng, frames, vary=0.08) for i in chosen
    )
    if config.kind == "talking":
        speaks = np.ones(frames)
    elif config.kind == "listening":
        speaks = np.zeros(frames)
    else:
        speaks = _turns(rng, frames, fps)
    gate = _gate(speaks, config.timing)
    own, other = mine.audio * gate, theirs.audio * (1 - gate)
    activity = theirs.active * (1 - speaks)
    if config.kind == "talking":
        motion = motion_lib.talking(rng, mine.mouth, fps)
    elif config.kind == "listening":
        motion = motion_lib.listening(rng, frames, fps, activity)
    else:
        motion = motion_lib.conversing(rng, mine.mouth, speaks, activity, fps)
    level = rng.uniform(*_ROOM, 2)
    own = own + level[0] * acoustics.noise(rng, len(own))
    other = other + level[1] * acoustics.noise(rng, len(other))
    return motion, *(np.clip(s, -1, 1).astype(np.float32) for s in (own, other))


def _turns(rng, frames: int, fps: int) -> np.ndarray:
    """Whether the character speaks, [F]: turns of a few seconds."""
    speaks, at, turn = np.zeros(frames), 0, int(rng.integers(2))
    while at < frames:
        length = max(1, round(rng.uniform(*_TURN_S) * fps))
        speaks[at : at + length] = turn
        at, turn = at + length, 1 - turn
    return speaks


def _gate(speaks: np.ndarray, timing: timing_lib.Timing) -> np.ndarray:
    """Level of the character's voice in every sample; turns begin and end softly."""
    samples = np.repeat(speaks, timing.samples_per_frame)
    window = np.hanning(round(_FADE_S * timing.sample_rate) + 2)
    padded = np.pad(samples, len(window) // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), "same")[
        len(window) // 2 : len(window) // 2 + len(samples)
    ]


def _utterances(sound: np.ndarray, rows: list) -> list:
    """(sound, phones) between pauses."""
    silence, cuts = speech.PHONE_ID["SIL"], [0.0]
    for start, end, phone in rows:
        if phone == silence and end - start > _PAUSE_S and start > 0:
            cuts.append((start + end) / 2)
    cuts.append(len(sound) / speech.SAMPLE_RATE)
    found = []
    for low, high in zip(cuts, cuts[1:]):
        inside = [
            (max(s, low) - low, min(e, high) - low, p) for s, e, p in rows if e > low and s < high
        ]
        if any(phone != silence for *_, phone in inside):
            first, last = (round(t * speech.SAMPLE_RATE) for t in (low, high))
            found.append((sound[first:last], inside))
    return found


def _speaker(name: str, utterances: list) -> speech.Speaker:
    ends = np.cumsum([len(sound) for sound, _ in utterances])
    rows = np.concatenate([np.array(phones, float) for _, phones in utterances])
    stops = np.cumsum([len(phones) for _, phones in utterances])
    pcm = np.concatenate([sound for sound, _ in utterances])
    return speech.Speaker(
        name=name, language="en", split="held_out",
        audio=np.round(np.clip(pcm, -1, 32767 / 32768) * 32768).astype(np.int16),
        bounds=np.stack([np.concatenate([[0], ends[:-1]]), ends], 1),
        phone_start=rows[:, 0].astype(np.float32), phone_end=rows[:, 1].astype(np.float32),
        phone_id=rows[:, 2].astype(np.int16),
        phone_range=np.stack([np.concatenate([[0], stops[:-1]]), stops], 1),
    )
