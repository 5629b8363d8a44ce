"""Finds `Preset.opening` of nano: what the painter has to be told of the mouth's opening.

  python -m experiments.nano.opening --corpus=runs/corpus [--weights=FOLDER]

Two averages do not agree by themselves: the transformer tells a small opening where it is in
doubt, and the painter paints slits that are hardly dark. Voices of the training split speak,
characters are none of those that `launch/evaluate.py` shows. For every opening that the
latents tell there is one that makes the painted opening, measured as in an evaluation, equal
on average to the drawn one. But what is right on average opens lips that should be shut
whenever the transformer is in doubt about a stop. Prints points that go all of the way and
parts of it, and what each does to lip sync and to lips shut on m, b and p.
"""

import dataclasses
import functools

from absl import app
from absl import flags
import numpy as np
import tqdm

from tm_jax.configs import presets
from tm_jax.data.corpus import speech
from tm_jax.evaluation import arms
from tm_jax.evaluation import measures
from tm_jax.evaluation import mouth
from tm_jax.evaluation import scenes
from tm_jax.inference import loading
from tm_jax.inference import session
from tm_jax.models.puppet.vae import autoencoder
from tm_jax.models.puppet.vae import config as vae_config

_CORPUS = flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of weights; the shipped ones by default.")
_SCENES = flags.DEFINE_integer("scenes", 48, "Clips of 6 s.")
_PARTS = flags.DEFINE_list("parts", ["0", "0.25", "0.5", "0.75", "1"], "Parts of the way to try.")

_FIRST = 200  # An evaluation counts its scenes from 0.
_FRAMES = 150
_BINS = 14
_LEAST = 0.03  # Told openings below are shut mouths.


class _Watched:
    """A pipeline that keeps the latents it decodes."""

    def __init__(self, pipeline):
        self._pipeline, self.latents = pipeline, []

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def decode(self, latents, state):
        self.latents.append(latents.latents)
        return self._pipeline.decode(latents, state)


def _openings(latents: np.ndarray) -> np.ndarray:
    """Opening that latents [T, h, w, C] tell of each frame, [4 T]."""
    columns = len(vae_config.LOWER)
    lower = latents[:, latents.shape[1] // 2 :].mean((1, 2))
    return lower.reshape(len(lower) * 4, columns)[:, vae_config.LOWER.index("mouth_open")]


def _watch(bundle, scene) -> np.ndarray:
    """Told, given, painted and drawn opening of each frame, [4, T]."""
    watched = _Watched(bundle)
    clip = arms.Streamed(functools.partial(session.Session, watched)).speak(scene)
    latents = np.concatenate([np.asarray(z)[0] for z in watched.latents])
    given = np.asarray(autoencoder.respond(latents[None], bundle.preset.opening))[0]
    painted = mouth.opening(clip.frames, scene.mouth_box) - scene.rest
    drawn = mouth.opening(scene.draw(scene.motion), scene.mouth_box) - scene.rest
    height = np.polyfit(scene.track.mouth[:_FRAMES, 0], drawn, 1)[0]  # Of this mouth, wide open.
    told, given = (_openings(z)[:_FRAMES] for z in (latents, given))
    return np.stack([told, given, painted / height, drawn / height])


def _means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y in bins of equally many x, where y may only grow."""
    edges = np.quantile(x[x > _LEAST], np.linspace(0, 1, _BINS + 1))
    bins = [(x >= low) & (x < high) for low, high in zip(edges, edges[1:])]
    means = np.array([(x[b].mean(), y[b].mean()) for b in bins])
    return means[:, 0], np.maximum.accumulate(means[:, 1])


def points(told, given, painted, drawn) -> list[tuple[float, float]]:
    """Openings told, and what to give to the painter for them."""
    at, wanted = _means(told, drawn)
    paints, reached = _means(given, painted)
    needed = np.interp(wanted, np.concatenate([[0], reached]), np.concatenate([[0], paints]))
    return [(0.0, 0.0)] + [(round(float(a), 2), round(float(b), 2)) for a, b in zip(at, needed)]


def part(of: list[tuple[float, float]], share: float) -> tuple[tuple[float, float], ...]:
    """Points that go a part of the way from what is told to what is wanted."""
    return tuple((told, round(told + share * (given - told), 2)) for told, given in of)


def _lips(opening, clips) -> dict:
    """What lips do in scenes with that `Preset.opening`."""
    presets.PRESETS["nano"] = dataclasses.replace(presets.PRESETS["nano"], opening=opening)
    bundle = loading.load("nano", _WEIGHTS.value)
    speaker = arms.Streamed(functools.partial(session.Session, bundle))
    return measures.medians(
        [measures.lips(scene, speaker.speak(scene).frames) for scene in tqdm.tqdm(clips)]
    )


def main(argv: list[str]) -> None:
    """Prints the points."""
    del argv
    bundle = loading.load("nano", _WEIGHTS.value)
    voices = speech.load(_CORPUS.value, "train")
    voices = [v for v in voices if speech.synthesiser(v.name) != "espeak"]
    clips = [
        scenes.make(voices, _FIRST + k, _FRAMES, bundle.preset.height, seed=1)
        for k in range(_SCENES.value)
    ]
    whole = points(*np.concatenate([_watch(bundle, clip) for clip in tqdm.tqdm(clips)], axis=1))
    for share in map(float, _PARTS.value):
        opening = part(whole, share)
        lips = _lips(opening, clips)
        print(
            f"{share:g} of the way: correlation {lips['correlation']:.3f}, lips shut "
            f"{lips['closures_kept']:.3f}, widest {lips['opening_p95']:.3f}: {opening}"
        )


if __name__ == "__main__":
    app.run(main)
