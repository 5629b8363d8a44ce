"""Held-out clips as latents, and what latents of a stream tell of the mouth.

Latents of a small preset are labels: each tells, in units of their spread, how six numbers of
the mouth differ from the reference in each of four frames (`autoencoder.labels`). So curves of
the mouth are read off exactly and nothing needs to be painted. What the painter adds is
measured by `launch/evaluate.py`.
"""

import dataclasses

import jax
import numpy as np

from tm_jax.configs import puppet as networks
from tm_jax.data.corpus import speech
from tm_jax.data.synthetic import motion as motion_lib
from tm_jax.evaluation import frechet
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import scenes
from tm_jax.evaluation import seams
from tm_jax.models.audio.causal import encoder
from tm_jax.models.puppet.vae import config as vae_config
from tm_jax.training import latents as latents_lib
from tm_jax.training import sources

_OPEN = vae_config.LOWER.index("mouth_open")
_SHUT = 0.02  # True opening, in units of its spread, below which a pause is a shut mouth.
_ENDS_S = 10  # Seconds at both ends of a clip that are compared.
_LEAST = 10  # Frames of pause below which there is nothing to measure.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
    """Held-out voices and characters.

    Attributes:
      speaking: Batch of `rollouts`: each character says what its voice says.
      resting: The same characters in listening mode. Every other one hears somebody else's
        voice, the rest the noise of a room.
      mouth: True curves of the mouth, [B, F, 6].
      closed: Frames in which m, b or p shuts the lips, bool [B, F].
      spoken: Frames of speech, bool [B, F].
      again: True curves of the same voices that say something else.
      fps: Frames per second.
    """

    speaking: dict
    resting: dict
    mouth: np.ndarray
    closed: np.ndarray
    spoken: np.ndarray
    again: np.ndarray
    fps: int


def told(latents) -> np.ndarray:
    """What latents [B, T, H, W, C] say of the mouth: the lower half's mean, [B, F, 6]."""
    z = np.asarray(latents, np.float32)
    z = z[:, :, z.shape[2] // 2 :].mean((2, 3))
    return z.reshape(len(z), -1, len(vae_config.LOWER))


def make(
    models: networks.Models, params: dict, speakers: list[speech.Speaker], count: int,
    latents: int, seed: int,
) -> Clips:
    """Prepares clips.

    Args:
      models: Networks.
      params: Parameters of `audio`.
      speakers: Held-out voices; the human ones take turns.
      count: Number of clips.
      latents: Latent frames of each.
      seed: Seed of sounds and motion.

    Raises:
      ValueError: There is no human voice.
    """
    human = [s for s in speakers if not scenes.is_synthetic(s)]
    if not human:
        raise ValueError("the corpus holds no held-out human voice.")
    preset = models.preset
    frames = latents * preset.timing.frames_per_latent
    encode = latents_lib.make_encoder(models, params)

    def stored(items):
        return jax.device_get(encode(sources.collate(items)))

    def batch(items):
        arrays = stored(items)
        return sources.collate(
            [latents_lib.window(arrays, i, 0, latents, models) for i in range(len(items))]
        )

    def draw(seed):
        return [
            scenes.make(human, i, frames, preset.height, seed=seed) for i in range(count)
        ]

    def speak(scene):
        return _describe(models, scene, scene.track.audio, scene.motion, 1)

    found = draw(seed)
    resting = []
    for i, scene in enumerate(found):
        other = found[(i + 1) % count].track.audio
        sound = scenes.room(i, frames) if i % 2 else other
        resting.append(_describe(models, scene, sound, scene.listening(), 0))
    speaking = batch([speak(scene) for scene in found])
    return Clips(
        speaking=speaking, resting=batch(resting), mouth=told(speaking["x0"]),
        closed=np.stack([s.closed for s in found]), spoken=np.stack([s.spoken for s in found]),
        again=told(stored([speak(scene) for scene in draw(seed + 1)])["latents"]),
        fps=preset.timing.fps,
    )


def _describe(models, scene: scenes.Scene, sound, motion, mode: int) -> dict:
    """A scene as `latents.describe` describes training clips, with silence around its sound."""
    before, after = latents_lib.sound_margins(models)
    around = (before * encoder.FRAME + encoder.MARGIN, after * encoder.FRAME + encoder.MARGIN)
    held = motion_lib.hold(motion, scene.portrait)
    return {
        "character": jax.tree.map(lambda x: np.asarray(x)[0], scene.character),
        "motion": np.concatenate([scene.portrait[None], held]).astype(np.float32),
        "samples": np.pad(sound, around).astype(np.float32), "mode": np.int32(mode),
        "jitter": np.zeros(3, np.float32),
    }


def measure(
    clips: Clips, speaking, resting, chunk_frames: int, window_frames: int,
    segment_frames: int | None = None,
) -> dict:
    """What the latents of an arm do.

    Args:
      clips: The clips.
      speaking: Latents made for `clips.speaking`, [B, T, H, W, C].
      resting: Latents made for `clips.resting`.
      chunk_frames: Frames of a chunk.
      window_frames: Frames of a window of the Fréchet distance.
      segment_frames: Frames after which an arm begins anew, so that what lies across is no seam
        and what lies far apart no drift; None for a stream.

    Returns:
      `clips`, one dictionary of numbers for each; `median`, `low` and `high`, their median and
      quartiles; `frechet`, the distance from true curves; `finite`.
    """
    mouth, rest = told(speaking), told(resting)
    rows = []
    for i, curve in enumerate(mouth):
        row = lips(curve, clips.mouth[i], clips.closed[i], clips.spoken[i], segment_frames)
        change = np.abs(np.diff(curve, axis=0)).mean(-1)
        row["seam_ratio"] = _seam(change, chunk_frames, segment_frames or len(curve))
        moving = row.pop("travel")
        row["rest_ratio"] = _travel(rest[i, :, _OPEN], segment_frames).mean() / max(moving, 1e-6)
        ends = drift(np.asarray(speaking[i]), clips.speaking["x0"][i], clips.fps)
        rows.append(row | {k: np.nan if segment_frames else v for k, v in ends.items()})
    own, true = (windows(c, window_frames) for c in (mouth, clips.mouth))
    finite = bool(np.isfinite(mouth).all() and np.isfinite(rest).all())
    return {
        **quartiles(rows), "frechet": apart(own, true) if finite else np.nan, "clips": rows,
        "finite": finite,
    }


def quartiles(rows: list[dict]) -> dict:
    """Medians and quartiles over clips, by name; nan where no clip has a number."""
    result = {"median": {}, "low": {}, "high": {}}
    for key in rows[0]:
        values = np.array([row[key] for row in rows], float)
        values = values[np.isfinite(values)]
        found = np.percentile(values, (25, 50, 75)) if len(values) else [np.nan] * 3
        for name, value in zip(("low", "median", "high"), found):
            result[name][key] = float(value)
    return result


def lips(curve, truth, closed, spoken, segment_frames: int | None = None) -> dict:
    """What the mouth of one clip does, from its curves [F, 6] and the true ones."""
    opening, true = curve[:, _OPEN], truth[:, _OPEN]
    lag = lipsync.best_lag(opening, true)
    shut = lipsync.closures(np.maximum(opening, 0), closed, spoken)
    steps = _travel(opening, segment_frames)
    still = np.abs(true) < _SHUT
    pause = _pairs(still & ~spoken, segment_frames)
    talking = _pairs(spoken, segment_frames)
    travel = float(steps[talking].mean()) if talking.any() else 0.0
    quiet = steps[pause].mean() if pause.sum() >= _LEAST else np.nan
    return {
        "correlation": lipsync.correlation(opening, true),
        "lag_frames": lag.frames, "closures_kept": shut.kept, "closures_by_chance": shut.chance,
        "pause_ratio": float(quiet / max(travel, 1e-6)), "travel": travel,
        "error": float(np.abs(curve - truth).mean()),
    }


def _inside(steps: int, segment_frames: int | None) -> np.ndarray:
    """Which steps from frame to frame stay inside a segment, bool [steps]."""
    inside = np.ones(steps, bool)
    if segment_frames:
        inside[segment_frames - 1 :: segment_frames] = False
    return inside


def _travel(opening, segment_frames):
    """Changes of an opening [F] from frame to frame, without those across segments."""
    return np.abs(np.diff(opening))[_inside(len(opening) - 1, segment_frames)]


def _pairs(mask, segment_frames):
    """Which steps of `_travel` lead from one true frame of a mask [F] to another."""
    return (mask[1:] & mask[:-1])[_inside(len(mask) - 1, segment_frames)]


def _seam(change, chunk_frames: int, segment_frames: int) -> float:
    """Change at the borders of chunks over that beside them: median over segments."""
    parts = [
        change[at : at + segment_frames - 1]
        for at in range(0, len(change) - segment_frames + 2, segment_frames)
    ]
    return float(np.median([seams.measure(part, chunk_frames).median for part in parts]))


def drift(latents, truth, fps: int) -> dict:
    """How latents [T, H, W, C] of a stream change from its first to its last seconds.

    Returns:
      `drift`: the spread of all numbers of the end over that of the beginning, relative to the
      truth's, whose words differ too, minus 1; `error_growth`: distance of the mouth's curves
      from the truth at the end over that at the beginning.
    """
    own, true = told(latents[None])[0], told(truth[None])[0]
    per_latent = len(own) // len(latents)
    count = min(_ENDS_S * fps // per_latent, len(latents) // 2)
    first, last = slice(0, count), slice(len(latents) - count, None)
    spread = latents[last].std() / max(latents[first].std(), 1e-6)
    fair = truth[last].std() / max(truth[first].std(), 1e-6)
    error = np.abs(own - true)
    part = count * per_latent
    return {
        "drift": float(spread / max(fair, 1e-6) - 1),
        "error_growth": float(error[-part:].mean() / max(error[:part].mean(), 1e-6)),
    }


def windows(curves, frames: int) -> np.ndarray:
    """Curves [B, F, 6] cut into windows, [B * n, frames * 6]; what remains is left out."""
    count = curves.shape[1] // frames
    return curves[:, : count * frames].reshape(-1, frames * curves.shape[-1])


def apart(generated, truth) -> float:
    """Fréchet distance of windows from true windows, both [N, frames * 6].

    The space is that of `frechet.space`: units of the truth's spread, a seeded projection.
    """
    space = frechet.space(truth)
    return frechet.distance(space(generated), space(truth))
