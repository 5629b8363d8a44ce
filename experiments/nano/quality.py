"""Measures the nano preset on held-out voices and characters, from pixels alone.

  python -m experiments.nano.quality --weights=runs/nano --corpus=runs/corpus

Keys of the result: `summary` holds medians over clips by arm and group, `clips` every clip,
`silence` the mouth without an own voice relative to speech, `long` drift over a long stream,
`seed` whether a seed fixes the video. `seams` is the change at chunk borders relative to the
change inside the chunks beside (`chunk`), relative to that at the borders of latents inside
them (`chunk_to_latent`), and at borders of latents relative to the rest (`latent`). Arms:
`auto` and `speak` are sessions in these modes, `truth` is the renderer with the true motion,
`autoencoder` the same after encoding and decoding, `static` the reference picture.
"""

import functools
import pathlib

from absl import app
from absl import flags
from absl import logging
import numpy as np

from experiments.nano import contact
from tm_jax.data import speech
from tm_jax.evaluation import arms as arms_lib
from tm_jax.evaluation import endurance
from tm_jax.evaluation import facts
from tm_jax.evaluation import measures
from tm_jax.evaluation import scenes
from tm_jax.evaluation import seams
from tm_jax.inference import bundle as bundle_lib
from tm_jax.inference import reconstruction
from tm_jax.inference import session as session_lib

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results" / "quality.json"), "JSON to write."
)
_SHEET = flags.DEFINE_string("sheet", None, "PNG to write with frames to look at.")
_CLIPS = flags.DEFINE_integer("clips", 24, "Clips with human voices.", lower_bound=1)
_SYNTHETIC = flags.DEFINE_integer("synthetic_clips", 4, "Clips with a synthetic voice.")
_SILENT = flags.DEFINE_integer("silent_clips", 8, "Of the first, how many are also silent.")
_SECONDS = flags.DEFINE_float("seconds", 8, "Length of a clip.", lower_bound=2)
_LONG = flags.DEFINE_float("long_seconds", 300, "Length of the long clip; 0 for none.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")

ARMS = ("auto", "speak", "truth", "autoencoder", "static")


def make_arms(bundle) -> dict:
    """The arms by name."""
    make = functools.partial(session_lib.Session, bundle)
    return {
        "auto": arms_lib.Streamed(make), "speak": arms_lib.Streamed(make, "speak"),
        "truth": arms_lib.Drawn(),
        "autoencoder": arms_lib.Drawn(reconstruction.Autoencoder(bundle)),
        "static": arms_lib.Static(),
    }


def silent_measures(arms: dict, scene: scenes.Scene, overheard, speaking: dict) -> dict:
    """The mouth without an own voice relative to the same character's speech."""
    result = {"scene": scene.index, "style": scene.style}
    for name, (sound, mode) in measures.silent_sounds(scene, overheard).items():
        clip = arms["auto"].rest(scene, sound, mode, _SEED.value)
        result[name] = measures.quiet(scene, clip, speaking["auto"])
    drawn = arms["truth"].rest(scene, scene.track.audio)
    result["truth_listening"] = measures.quiet(scene, drawn, speaking["truth"])
    return result


def silence_summary(rows: list[dict]) -> dict:
    """Medians over clips of every arm of `silent_measures`."""
    arms = [key for key in rows[0] if isinstance(rows[0][key], dict)]
    return {
        arm: {key: float(np.median([row[arm][key] for row in rows])) for key in rows[0][arm]}
        for arm in arms
    }


def seed_measures(arms: dict, scene: scenes.Scene) -> dict:
    """Whether the same seed gives the same video, and how much another one changes."""
    sound = scene.track.audio[: len(scene.track.audio) // 4]
    a, b, c = (arms["auto"].rest(scene, sound, "auto", seed).frames for seed in (1, 1, 2))
    other = np.abs(a.astype(np.int16) - c).mean() / 255
    return {"same_seed_same_video": bool((a == b).all()), "other_seed_difference": float(other)}


def run(bundle, speakers: list[speech.Speaker]) -> dict:
    """Measures everything; returns the result without facts."""
    preset, arms = bundle.preset, make_arms(bundle)
    make = functools.partial(scenes.make, size=preset.height, seed=_SEED.value)
    frames = round(_SECONDS.value * preset.timing.fps)
    human = [s for s in speakers if not scenes.is_synthetic(s)]
    machine = [s for s in speakers if scenes.is_synthetic(s)]
    plan = [(human, i) for i in range(_CLIPS.value)]
    plan += [(machine, _CLIPS.value + i) for i in range(_SYNTHETIC.value) if machine]
    clips, silence, sheet, change = [], [], [], {arm: [] for arm in ARMS[:-1]}
    overheard = None
    for voices, index in plan:
        scene = make(voices, index, frames)
        made = {arm: arms[arm].speak(scene, _SEED.value if arm in ARMS[:2] else 0) for arm in ARMS}
        videos = {arm: clip.frames for arm, clip in made.items()}
        row = {arm: measures.lips(scene, video) for arm, video in videos.items()}
        for arm in change:
            change[arm].append(seams.changes(videos[arm]))
        clips.append({
            "scene": index, "speaker": scene.speaker, "synthetic": scene.synthetic,
            "style": scene.style, "speaking": made["auto"].speaking, **row,
        })  # fmt: skip
        if index < _SILENT.value:
            if overheard is None:
                overheard = make(human, len(plan) + 4, frames).track.audio
            silence.append(silent_measures(arms, scene, overheard, row))
        overheard = scene.track.audio
        if len(sheet) < 4:
            sheet.append((scene, videos["truth"], videos["auto"]))
        logging.info(
            "Clip %d of %d, %s, %s: correlation %.2f (truth %.2f).", len(clips), len(plan),
            scene.speaker, scene.style, row["auto"]["correlation"], row["truth"]["correlation"],
        )
    if _SHEET.value:
        contact.draw(sheet).save(_SHEET.value)
    result = {"summary": measures.summarise(clips, ARMS)}
    if silence:
        result["silence"] = silence_summary(silence)
    result["seams"] = measures.pooled_seams(change, preset.timing)
    result["seed"] = seed_measures(arms, make(human, 0, frames))
    if _LONG.value:
        scene = make(human, 0, round(_LONG.value * preset.timing.fps))
        result["long"] = endurance.measure(
            arms["auto"], scene, preset.timing, seed=_SEED.value, name="auto"
        )
    return result | {"clips": clips, "silent_clips": silence}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    speakers = speech.load(_CORPUS.value, "held_out")
    bundle = bundle_lib.load("nano", _WEIGHTS.value)
    settings = {
        "clips": _CLIPS.value, "synthetic_clips": _SYNTHETIC.value, "seed": _SEED.value,
        "silent_clips": _SILENT.value, "seconds": _SECONDS.value, "long_seconds": _LONG.value,
    }
    facts.write(_OUT.value, facts.collect(_WEIGHTS.value, **settings) | run(bundle, speakers))


if __name__ == "__main__":
    app.run(main)
