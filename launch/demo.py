"""Makes the demo: four characters in a 2x2 grid who talk in turn while the others listen.

  python launch/demo.py --seconds=8 --out=out/demo
"""

from collections.abc import Sequence
import dataclasses
import itertools
import json
import math
import pathlib
import sys
import time

from absl import flags
import numpy as np
import tqdm

try:
    from launch import common
except ModuleNotFoundError as error:
    if error.name not in ("launch", "launch.common"):
        raise
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from launch import common
from launch import sheet
import tm_jax
from tm_jax.core import timing as timing_lib
from tm_jax.media import audio
from tm_jax.media import picture as picture_files
from tm_jax.media import video
from tm_jax.configs import presets

_ASSETS = pathlib.Path(tm_jax.__file__).parent / "assets"
_VOICES, _CHARACTERS = _ASSETS / "voices", _ASSETS / "characters"

_PRESET = flags.DEFINE_string("preset", "nano", "Preset whose weights are bundled.")
_SECONDS = flags.DEFINE_float(
    "seconds", None, "Length of the video; the whole recording by default.", lower_bound=0.1
)
_OUT = flags.DEFINE_string("out", None, "Folder to write; out/demo by default.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")

_CAST = ("ada", "eve", "carl", "finn")  # Two who are drawn, two 3-D people.
_RECORDINGS = ("dashwood_leisure", "dashwood_amiable")
_ACCENT = np.array((224, 122, 48), np.uint8)
_FRAME = 3  # pixels around the speaker
_MOMENTS = 2  # columns of the contact sheet for every turn


@dataclasses.dataclass(frozen=True)
class Turn:
    """One character's part of the recording.

    Attributes:
      speaker: Index of the character.
      sound: float32 [n], whole chunks, padded with silence.
    """

    speaker: int
    sound: np.ndarray


def pauses(phones: Sequence[tuple[float, float, str]], offset_s: float = 0.0) -> list[float]:
    """Middles of the silences, in seconds."""
    return [offset_s + (start + end) / 2 for start, end, name in phones if name == "SIL"]


def take_turns(
    sound: np.ndarray,
    pauses_s: Sequence[float],
    speakers: int,
    timing: timing_lib.Timing,
    seconds: float | None = None,
) -> list[Turn]:
    """Shares a recording among the speakers: cut at pauses, in parts as equal as can be.

    Args:
      sound: Speech, float32 [n].
      pauses_s: Times at which it may be cut; if too few, it is cut anywhere.
      speakers: Number of parts.
      timing: Clocks; a turn lasts whole chunks, because a mode does.
      seconds: Shortens the turns to this total, but to no less than a chunk each.
    """
    end_s = len(sound) / timing.sample_rate
    if len(pauses_s) < speakers - 1:
        pauses_s = [end_s * i / speakers for i in range(1, speakers)]

    def unevenness(cuts):
        return np.square(np.diff([0.0, *cuts, end_s])).sum()

    cuts = min(itertools.combinations(sorted(pauses_s), speakers - 1), key=unevenness)
    bounds = [0, *(round(cut * timing.sample_rate) for cut in cuts), len(sound)]
    chunk = timing.samples_per_chunk
    most = math.inf
    if seconds is not None:
        most = max(1, int(seconds / speakers / timing.chunk_s + 1e-6)) * chunk
    turns = []
    for speaker, (start, end) in enumerate(zip(bounds, bounds[1:])):
        part = sound[start : int(min(end, start + most))]
        silence = np.zeros(-len(part) % chunk or (0 if len(part) else chunk), np.float32)
        turns.append(Turn(speaker, np.concatenate([part, silence]).astype(np.float32)))
    return turns


def tracks(turns: Sequence[Turn], speakers: int) -> np.ndarray:
    """What each character says: its own turns and silence, float32 [speakers, n]."""
    result = np.zeros((speakers, sum(len(turn.sound) for turn in turns)), np.float32)
    at = 0
    for turn in turns:
        result[turn.speaker, at : at + len(turn.sound)] = turn.sound
        at += len(turn.sound)
    return result


def grid(tiles: np.ndarray, speaker: int) -> np.ndarray:
    """Joins four videos and frames the one who speaks.

    Args:
      tiles: uint8 [4, F, H, W, 3].
      speaker: Index of the framed one.

    Returns:
      uint8 [F, 2 H, 2 W, 3].
    """
    tiles = tiles.copy()
    for edge in (slice(None, _FRAME), slice(-_FRAME, None)):
        tiles[speaker, :, edge] = _ACCENT
        tiles[speaker, :, :, edge] = _ACCENT
    top = np.concatenate([tiles[0], tiles[1]], axis=2)  # [F, H, 2 W, 3]
    bottom = np.concatenate([tiles[2], tiles[3]], axis=2)
    return np.concatenate([top, bottom], axis=1)


def moments(turns: Sequence[Turn], timing: timing_lib.Timing) -> list[tuple[int, int]]:
    """Frames (from 0) of the contact sheet's columns and who speaks in them."""
    result, at = [], 0
    for turn in turns:
        frames = len(turn.sound) // timing.samples_per_frame
        for i in range(_MOMENTS):
            result.append((at + frames * (2 * i + 1) // (2 * _MOMENTS), turn.speaker))
        at += frames
    return result


def perform(sessions, turns: Sequence[Turn], timing: timing_lib.Timing):
    """Plays the turns: each character speaks in its own and listens in the others.

    Args:
      sessions: Four open `tm_jax.inference.session.Session`s.
      turns: What is said.
      timing: Clocks of the sessions.

    Yields:
      For every chunk the turn, the frames, uint8 [4, F, H, W, 3], and the sound, [n].
    """
    for session, track in zip(sessions, tracks(turns, len(sessions))):
        session.push_audio(track)
        session.end_audio()
    first_frame = 0
    for turn in turns:
        for index, session in enumerate(sessions):
            session.set_mode("speak" if index == turn.speaker else "listen")
        for sound in turn.sound.reshape(-1, timing.samples_per_chunk):
            chunks = [session.pull() for session in sessions]
            for index, chunk in enumerate(chunks):
                if chunk is None or chunk.first_frame != first_frame:
                    got = "nothing" if chunk is None else f"frame {chunk.first_frame}"
                    raise RuntimeError(
                        f"character {index}: expected frame {first_frame}, got {got}."
                    )
            tiles = np.stack([np.asarray(chunk.frames) for chunk in chunks])
            first_frame += tiles.shape[1]
            yield turn, tiles, sound


def film(sessions, turns: Sequence[Turn], timing: timing_lib.Timing, writer, progress=None):
    """Writes the performance and keeps the moments of the contact sheet.

    Args:
      sessions: Four open sessions.
      turns: What is said.
      timing: Clocks of the sessions.
      writer: An open `tm_jax.media.video.Writer` of the grid.
      progress: Called with the number of frames after every chunk.

    Returns:
      For every character its pictures at `moments`, and the seconds that the first chunk
      and the others took.
    """
    wanted = {frame for frame, _ in moments(turns, timing)}
    rows = [[] for _ in sessions]
    at, start, first_s = 0, time.perf_counter(), None
    for turn, tiles, sound in perform(sessions, turns, timing):
        if first_s is None:
            first_s = time.perf_counter() - start
        writer.write_frames(grid(tiles, turn.speaker))
        writer.write_sound(sound[:, None])
        for frame in range(at, at + tiles.shape[1]):
            if frame in wanted:
                for row, tile in zip(rows, tiles):
                    row.append(tile[frame - at])
        at += tiles.shape[1]
        if progress is not None:
            progress(tiles.shape[1])
    assert first_s is not None  # There is at least one turn.
    return rows, first_s, time.perf_counter() - start - first_s


def _recording(timing: timing_lib.Timing) -> tuple[np.ndarray, list[float]]:
    """The bundled sentences, float32 [n], and the times of their pauses."""
    sound, silences = [], []
    for name in _RECORDINGS:
        facts = json.loads((_VOICES / f"{name}.json").read_text(encoding="utf-8"))
        offset_s = sum(map(len, sound)) / timing.sample_rate
        silences += pauses(facts["phones"], offset_s)
        with audio.open_speech(_VOICES / f"{name}.flac") as reader:
            sound.extend(block.speech for block in reader)
    return np.concatenate(sound), silences


def _portraits(height: int, width: int) -> np.ndarray:
    """The cast, none of whom training saw, uint8 [4, H, W, 3]."""
    return np.stack([
        picture_files.load(_CHARACTERS / f"{name}.png", height, width) for name in _CAST
    ])


def make(out: pathlib.Path, preset_name: str, seconds: float | None, seed: int) -> None:
    """Writes demo.mp4 and demo.png into a folder and prints how fast it was."""
    # Here, so that the composition above needs no models.
    from tm_jax.inference import loading
    from tm_jax.inference import session as session_lib

    preset = presets.get(preset_name)
    timing = preset.timing
    began = time.perf_counter()
    models = loading.load(preset_name)
    pictures = _portraits(preset.height, preset.width)
    turns = take_turns(*_recording(timing), len(pictures), timing, seconds)
    frames = sum(len(turn.sound) for turn in turns) // timing.samples_per_frame
    sessions = [
        session_lib.Session(models, picture, seed=seed + index, mode="listen")
        for index, picture in enumerate(pictures)
    ]
    if preset.dit.partner_audio:  # Those who listen hear the one who speaks.
        said = tracks(turns, len(sessions))
        for session, own in zip(sessions, said):
            session.push_other(said.sum(0) - own)
    ready_s = time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    path = out / "demo.mp4"
    quiet = not sys.stderr.isatty()
    with (
        video.Writer(
            path, timing.fps, 2 * preset.height, 2 * preset.width, timing.sample_rate, 1
        ) as writer,
        tqdm.tqdm(total=frames, unit="frame", disable=quiet) as bar,
    ):
        rows, first_s, rest_s = film(sessions, turns, timing, writer, bar.update)
    for session in sessions:
        session.close()
    frame_numbers, speakers = zip(*moments(turns, timing))
    times_s = [frame / timing.fps for frame in frame_numbers]
    sheet.draw(rows, _CAST, times_s, speakers).save(out / "demo.png")
    print(f"{path}: {frames / timing.fps:.2f} s, {len(sessions)} characters at once")
    print(f"{out / 'demo.png'}: {len(times_s)} moments of it")
    print(speed(frames, len(sessions), timing, ready_s, first_s, rest_s))


def speed(
    frames: int,
    count: int,
    timing: timing_lib.Timing,
    ready_s: float,
    first_s: float,
    rest_s: float,
) -> str:
    """One line on the time that it took; the first chunk includes compilation."""
    line = f"Loading {ready_s:.1f} s, first chunk {first_s:.1f} s"
    later_s = (frames - timing.frames_per_chunk) / timing.fps
    if later_s <= 0 or rest_s <= 0:
        return line + "."
    return (
        f"{line}, then {rest_s:.1f} s for {count} x {later_s:.2f} s of video: "
        f"{count * later_s / rest_s:.2f} times real time for one character, encoding included."
    )


def main() -> None:
    """Makes the demo that the flags describe."""
    root = pathlib.Path(__file__).resolve().parents[1]
    out = pathlib.Path(_OUT.value) if _OUT.value else root / "out" / "demo"
    common.cache_compilations()
    make(out, _PRESET.value, _SECONDS.value, _SEED.value)


if __name__ == "__main__":
    common.run("demo", main)
