"""Measures from pixels how a listener answers another voice.

  python -m experiments.listening.run --corpus=runs/corpus [--weights=FOLDER]

Writes `results.json` and the table of README.md. Characters and voices are held out. Arms:
`heard` streams a listener that hears the other party, `withheld` the same with its voice left
out, `drawn` is the drawing of a listener to the same voice.

Keys of an arm: `answered` is the part of the other party's phrases that a nod follows within
0.1 to 0.9 s, `by_chance` the same after shifting the nods in time, `delay_s` the median time
from the end of a phrase to its nod; `nods_per_minute`.
"""

import json
import pathlib

from absl import app
from absl import flags
import numpy as np

import tm_jax
from tm_jax.data.corpus import speech
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import backchannel
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.evaluation import arms
from tm_jax.evaluation import facts
from tm_jax.evaluation import gestures
from tm_jax.evaluation import measures
from tm_jax.evaluation import scenes
from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_OUT = flags.DEFINE_string("out", str(_FOLDER / "results.json"), "JSON to write.")
_CLIPS = flags.DEFINE_integer("clips", 24, "Clips.", lower_bound=2)
_SECONDS = flags.DEFINE_float("seconds", 16, "Length of a clip.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")

_ANSWER_S = (0.1, 0.9)
_SKIP_S = 2  # At the start of a stream, where it still goes from rest into motion.
_DOWN = 0.4  # Pitch whose effect on the pixels is the unit of the measured one.
_TITLES = {
    "heard": "streamed, the voice is heard", "withheld": "streamed, it is withheld",
    "drawn": "the drawing that it learned from, for these voices",
}


def _pitch(scene: scenes.Scene, frames: np.ndarray) -> np.ndarray:
    """How far the head is bowed, in units of column `pitch`, from the pixels alone, [F].

    What a bowed head does to the place of the upper face is measured on the scene's own picture.
    """
    box = measures.upper_face(scene)
    bowed = scene.portrait.copy()
    bowed[motion_lib.COLUMNS.index("pitch")] += _DOWN
    unit = gestures.head(scene.draw(bowed[None]), scene.picture, box)[0, 0] / _DOWN
    return gestures.head(frames, scene.picture, box)[:, 0] / unit


def _summary(pitches: list[np.ndarray], voices: list[np.ndarray], fps: int) -> dict[str, float]:
    """What the nods of listeners tell, see the module."""
    skip = _SKIP_S * fps
    phrases, found, chance, delays, nods = 0, 0.0, 0.0, [], 0
    for pitch, voice in zip(pitches, voices):
        starts = backchannel.nods(pitch[skip:], fps)
        ends = backchannel.ends(voice[skip:], fps)
        nods += len(starts)
        if not len(ends):
            continue
        part, by_chance = backchannel.answered(starts, ends, len(pitch) - skip, fps, _ANSWER_S)
        phrases += len(ends)
        found, chance = found + part * len(ends), chance + by_chance * len(ends)
        for end in ends:
            later = (starts - end) / fps
            delays += [*later[(later >= _ANSWER_S[0]) & (later <= _ANSWER_S[1])][:1]]
    minutes = sum(len(pitch) - skip for pitch in pitches) / fps / 60
    return {
        "phrases": phrases, "answered": found / phrases, "by_chance": chance / phrases,
        "delay_s": float(np.median(delays)) if delays else float("nan"),
        "nods_per_minute": nods / minutes,
    }


def _listen(avatar, scene: scenes.Scene, other: np.ndarray, seed: int) -> np.ndarray:
    """Frames of a session that is silent itself, uint8 [F, H, W, 3]."""
    session = tm_jax.Session(avatar, scene.picture, seed=seed, mode="listen")
    session.push_other(other)
    count = len(scene.motion)
    return arms.show(session, np.zeros(len(other), np.float32), count).frames


def measure(avatar, speakers: list[speech.Speaker], clips: int, seconds: float, seed: int) -> dict:
    """All arms.

    Args:
      avatar: A loaded preset.
      speakers: Held-out voices.
      clips: Clips of each arm.
      seconds: Length of each.
      seed: Seed.
    """
    preset = avatar.preset
    fps, found, voices = preset.timing.fps, {name: [] for name in _TITLES}, []
    for index in range(clips):
        scene = scenes.make(speakers, index, round(seconds * fps), preset.height, seed=seed)
        other, voice = scene.track.audio, scene.track.active
        rng = np.random.default_rng((seed, index, 4))
        truth = motion_lib.listening(rng, len(voice), fps, voice)
        videos = {
            "heard": _listen(avatar, scene, other, index),
            "withheld": _listen(avatar, scene, np.zeros_like(other), index),
            "drawn": scene.draw(truth),
        }
        voices.append(voice)
        for name, frames in videos.items():
            found[name].append(_pitch(scene, frames))
    return {name: _summary(pitches, voices, fps) for name, pitches in found.items()}


def report(results: dict) -> str:
    """The table of README.md."""
    rows = [
        [
            _TITLES[name], tables.share(arm["answered"]), tables.share(arm["by_chance"]),
            tables.number(arm["delay_s"]), tables.number(arm["nods_per_minute"], 1),
        ]
        for name, arm in results["arms"].items()
    ]
    head = ["listener", "phrases answered by a nod", "by chance", "median delay, s", "nods a minute"]
    phrases = results["arms"]["heard"]["phrases"]
    return "\n".join([
        tables.facts(results), "", f"{phrases} phrases of held-out voices.", "",
        *tables.table(head, rows),
    ])


def main(argv: list[str]) -> None:
    """Measures and writes."""
    del argv
    avatar = tm_jax.load("nano", _WEIGHTS.value)
    speakers = tracks.Voices(_CORPUS.value, "held_out").speakers
    results = facts.collect(
        _WEIGHTS.value, clips=_CLIPS.value, seconds=_SECONDS.value,
        seed=_SEED.value,
    )
    results["arms"] = measure(avatar, speakers, _CLIPS.value, _SECONDS.value, _SEED.value)
    results = facts.plain(results)
    facts.write(_OUT.value, results)
    if pathlib.Path(_OUT.value).parent == _FOLDER:
        tables.put(_FOLDER / "README.md", report(results))
    print(json.dumps(results["arms"], indent=1))


if __name__ == "__main__":
    app.run(main)
