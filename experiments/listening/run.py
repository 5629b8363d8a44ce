"""Measures how a listener answers another voice, and whether a change of mode is smooth.

  python -m experiments.listening.run --corpus=runs/corpus [--weights=FOLDER]

Writes `results.json` and the tables of README.md. Only the motion model runs, so it takes a
minute or two. Voices are held out. Arms: `heard` draws motion while the other voice is heard,
`withheld` for the same clips without it, `noise` with steady noise instead, `data` is the
motion that training clips of these voices have.

Keys of an arm: `answered` is the part of the other party's phrases that a nod follows within
0.1 to 0.9 s, `by_chance` the same after shifting the nods in time, `delay_s` the median time
from the end of a phrase to its nod; `nods_per_minute`; `watched` and `looked_when_quiet` the
parts of the frames with the gaze on the speaker while it talks, and while nobody does.
"""

import json
import os
import pathlib

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.checkpoints import files
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.data.corpus import tracks
from tm_jax.data.synthetic import backchannel
from tm_jax.evaluation import facts
from tm_jax.evaluation import tables
from tm_jax.models.puppet.motion import config as motion_config
from tm_jax.models.puppet.motion import network
from tm_jax.training import motion_stage

_FOLDER = pathlib.Path(__file__).parent

_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_OUT = flags.DEFINE_string("out", str(_FOLDER / "results.json"), "JSON to write.")
_CLIPS = flags.DEFINE_integer("clips", 60, "Clips of 19.2 s of each kind.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")

_NEAR = 0.12  # Gaze within this is on the camera, where the other party is.
_ANSWER_S = (0.1, 0.9)
_SKIP_S = 2  # At the start of a stream, where it still goes from rest into motion.
_EYES = ("blink_left", "blink_right", "gaze_x", "gaze_y")  # They jump by nature.


def _load(weights: str | None):
    """Networks and the two parts that are needed."""
    models = networks.models(presets.get("nano"))
    folder, shapes = weights or networks.shipped("nano"), networks.shapes(models)
    return models, {
        part: files.load(os.path.join(folder, f"{part}.safetensors"), shapes[part])
        for part in ("audio", "motion")
    }


def _drawer(models, params):
    """Compiled (windows, mode, loudness of the other, seed) -> motion [N, F, M]."""

    @jax.jit
    def draw(windows, mode, other, key):
        state = network.initial_state(models.preset.motion, jax.random.split(key, len(mode)))
        return network.next_chunk(models.motion, params["motion"], state, windows, mode, other)[0]

    def run(windows, mode, other, seed):
        windows = jnp.asarray(windows, jnp.float32)
        return np.asarray(draw(windows, jnp.asarray(mode), other, jax.random.key(seed)))

    return run


def _delays(starts: np.ndarray, ends: np.ndarray, fps: int) -> list[float]:
    """Seconds from each end of a phrase to the first nod after it, where it is an answer."""
    delays = (np.asarray(starts)[None] - np.asarray(ends)[:, None]) / fps  # [P, N]
    found = np.where((delays >= _ANSWER_S[0]) & (delays <= _ANSWER_S[1]), delays, np.inf)
    least = found.min(1, initial=np.inf)
    return least[np.isfinite(least)].tolist()


def answers(motion: np.ndarray, other: np.ndarray, fps: int) -> dict[str, float]:
    """How listeners answer another voice.

    Args:
      motion: Drawn motion, [N, F, M].
      other: Whether the other party speaks, [N, F] of 0 to 1.
      fps: Frames per second.

    Returns:
      See the module.
    """
    at, skip = motion_config.COLUMNS.index, _SKIP_S * fps
    phrases, answered, chance, delays, nods = 0, 0.0, 0.0, [], 0
    watched, quiet = [], []
    for curves, voice in zip(motion[:, skip:], other[:, skip:]):
        starts = backchannel.nods(curves[:, at("pitch")], fps)
        ends = backchannel.ends(voice, fps)
        nods += len(starts)
        near = np.abs(curves[:, [at("gaze_x"), at("gaze_y")]]).max(1) < _NEAR
        watched.append(near[voice > 0.5])
        quiet.append(near[~backchannel.attention(voice, fps)])
        if len(ends):
            part, by_chance = backchannel.answered(starts, ends, len(curves), fps, _ANSWER_S)
            phrases += len(ends)
            answered += part * len(ends)
            chance += by_chance * len(ends)
            delays += _delays(starts, ends, fps)
    minutes = motion[:, skip:, 0].size / fps / 60
    return {
        "phrases": phrases, "answered": answered / phrases, "by_chance": chance / phrases,
        "delay_s": float(np.median(delays)) if delays else float("nan"),
        "nods_per_minute": nods / minutes,
        "watched": float(np.concatenate(watched).mean()),
        "looked_when_quiet": float(np.concatenate(quiet).mean()),
    }


def _switching(seed: int, shape: tuple[int, int], per_chunk: int) -> np.ndarray:
    """Modes [N, T] that change at random borders of chunks."""
    rng = np.random.default_rng(seed)
    chunks = rng.random((shape[0], -(-shape[1] // per_chunk))) < 0.5
    return np.repeat(chunks, per_chunk, 1)[:, : shape[1]].astype(np.int32)


def seams(motion: np.ndarray, mode: np.ndarray, preset: presets.Preset) -> dict[str, float]:
    """Change of motion from frame to frame where the mode changes, over that elsewhere.

    Args:
      motion: [N, F, M].
      mode: [N, T].
      preset: Sizes.

    Returns:
      Ratios of the means and of the largest, over the columns that move smoothly.
    """
    group = preset.timing.frames_per_latent
    smooth = [i for i, name in enumerate(motion_config.COLUMNS) if name not in _EYES]
    steps = np.abs(np.diff(motion[..., smooth], axis=1))  # [N, F - 1, M]
    frames = np.repeat(mode, group, 1)
    changed = frames[:, 1:] != frames[:, :-1]
    start = _SKIP_S * preset.timing.fps
    steps, changed = steps[:, start:], changed[:, start:]
    at, elsewhere = steps[changed], steps[~changed]
    return {
        "changes": int(changed.sum()),
        "mean_ratio": float((at.mean(0) / elsewhere.mean(0)).mean()),
        "largest_ratio": float((at.max(0) / elsewhere.max(0)).max()),
    }


def measure(models, params, corpus: str, clips: int, seed: int) -> dict:
    """All figures.

    Args:
      models: Networks of nano.
      params: Parameters of `audio` and `motion`.
      corpus: Folder of the corpus.
      clips: Clips of each kind.
      seed: Seed.
    """
    preset = models.preset
    fps, chunk = preset.timing.fps, preset.timing.latents_per_chunk
    voices = tracks.Voices(corpus, "held_out")
    kinds = {
        "listening": {"listening": 1.0, "alone": 0.0},
        "noise": {"listening": 1.0, "alone": 1.0}, "talking": {"listening": 0.0},
    }
    scenes = {
        name: motion_stage.draw_clips(
            models, params, motion_stage.MotionStageConfig(
                corpus=corpus, conversations=0.0, **changed
            ), voices, 100 + 10 * seed + index, clips,
        )
        for index, (name, changed) in enumerate(kinds.items())
    }  # fmt: skip
    draw = _drawer(models, params)
    heard, noise = scenes["listening"], scenes["noise"]
    levels = {
        "heard": heard.level, "withheld": np.zeros_like(heard.level), "noise": noise.level,
    }
    arms = {
        name: answers(draw(heard.windows, heard.modes, level, seed), heard.other, fps)
        for name, level in levels.items()
    }
    arms["data"] = answers(heard.motion, heard.other, fps)
    talking = scenes["talking"]
    mode = _switching(seed, talking.modes.shape, chunk)
    motion = draw(talking.windows, mode, heard.level, seed)
    # The same places in streams that never change tell what a ratio is worth.
    steady = draw(talking.windows, np.ones_like(mode), heard.level, seed)
    return {
        "arms": arms,
        "switching": {
            "changing": seams(motion, mode, preset), "steady": seams(steady, mode, preset),
        },
    }


_NAMES = {
    "heard": "generated, the voice is heard", "withheld": "generated, it is withheld",
    "noise": "generated, noise instead", "data": "the data that it learned from",
}


def render(results: dict) -> str:
    """Markdown of the results."""
    head = ["listener", "phrases answered by a nod", "by chance", "median delay, s",
            "nods a minute", "looks at the speaker", "looks when all is quiet"]  # fmt: skip
    rows = [
        [
            words, tables.share(arm["answered"]), tables.share(arm["by_chance"]),
            tables.number(arm["delay_s"]), tables.number(arm["nods_per_minute"], 1),
            tables.share(arm["watched"]), tables.share(arm["looked_when_quiet"]),
        ]
        for arm, words in ((results["arms"][key], words) for key, words in _NAMES.items())
    ]  # fmt: skip
    phrases = results["arms"]["data"]["phrases"]
    lines = [tables.facts(results), "", f"{phrases} phrases of held-out voices.", ""]
    lines += tables.table(head, rows)
    names = {"changing": "mode changes there", "steady": "mode stays (same places)"}
    rows = [
        [
            words, str(results["switching"][key]["changes"]),
            tables.number(results["switching"][key]["mean_ratio"]),
            tables.number(results["switching"][key]["largest_ratio"]),
        ]
        for key, words in names.items()
    ]
    head = ["change from frame to frame", "places", "mean, to elsewhere", "largest, to elsewhere"]
    return "\n".join([*lines, *tables.table(head, rows)]).rstrip()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    models, params = _load(_WEIGHTS.value)
    results = facts.collect(_WEIGHTS.value, clips=_CLIPS.value, seed=_SEED.value)
    results |= measure(models, params, _CORPUS.value, _CLIPS.value, _SEED.value)
    facts.write(_OUT.value, results)
    text = render(json.loads(pathlib.Path(_OUT.value).read_text()))
    print(text)
    if pathlib.Path(_OUT.value).parent == _FOLDER:
        tables.put(_FOLDER / "README.md", text)


if __name__ == "__main__":
    app.run(main)
