"""What is measured on one clip of a scene, and how clips are put together.

Everything is measured on pixels against the truth of the scene; no measure depends on the model.
"""

from collections.abc import Iterable

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import arms as arms_lib
from tm_jax.evaluation import identity
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import mouth
from tm_jax.evaluation import scenes
from tm_jax.evaluation import seams

_OPEN = 0.01  # Least opening of speech that others are compared with.
_SHARES = ("closures_kept", "closures_by_chance")
SILENT = ("auto_silence", "auto_noise", "listen_overheard")


def opened(scene: scenes.Scene, frames: np.ndarray) -> np.ndarray:
    """Measured opening [T], 0 for lips shut as in the reference."""
    return np.maximum(mouth.opening(frames, scene.mouth_box) - scene.rest, 0)


def travel(opening: np.ndarray) -> float:
    """How much a measured opening changes from frame to frame, on average."""
    return float(np.abs(np.diff(opening)).mean())


def lips(scene: scenes.Scene, frames: np.ndarray) -> dict:
    """What the mouth of one clip does."""
    opening, truth = opened(scene, frames), scene.track.mouth[:, 0]
    lag = lipsync.best_lag(opening, truth)
    shut = lipsync.closures(opening, scene.closed, scene.spoken)
    return {
        "correlation": lipsync.correlation(opening, truth),
        "lag_frames": lag.frames,
        "correlation_at_lag": lag.correlation,
        "closures_kept": shut.kept,
        "closures_by_chance": shut.chance,
        "closures": shut.count,
        "opening_p95": float(np.percentile(opening, 95)),
        "travel": travel(opening),
        "movement": float(mouth.movement(frames, scene.mouth_box).mean()),
    }


def upper_face(scene: scenes.Scene) -> np.ndarray:
    """Box of the part of the face that speech does not move, [4]."""
    top, left, bottom, right = scene.face_box
    return np.array([top, left, top + 0.55 * (bottom - top), right])


def looks(scene: scenes.Scene, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Identity, colour and sharpness of every frame against the reference, [T] each."""
    upper = upper_face(scene)
    return {
        "colour_distance": identity.colour_distance(frames, scene.picture),
        "picture_distance": identity.picture_distance(frames, scene.picture),
        "likeness": identity.likeness(frames, scene.picture, upper),
        "sharpness": identity.sharpness(frames, scene.picture, scene.face_box),
    }


def silent_sounds(scene: scenes.Scene, overheard: np.ndarray) -> dict[str, tuple]:
    """Sounds without an own voice and the mode in which they are fed, by name."""
    return {
        "auto_silence": (np.zeros_like(scene.track.audio), "auto"),
        "auto_noise": (scenes.room(scene.index, len(scene.motion)), "auto"),
        "listen_overheard": (overheard, "listen"),
    }


def quiet(scene: scenes.Scene, clip: arms_lib.Clip, speaking: dict) -> dict:
    """The mouth of a clip without an own voice relative to speech of the same arm.

    Args:
      scene: The scene.
      clip: A clip without an own voice.
      speaking: `lips` of the arm when it speaks.
    """
    opening = opened(scene, clip.frames)
    moving = mouth.movement(clip.frames, scene.mouth_box).mean()
    return {
        "travel_ratio": travel(opening) / max(speaking["travel"], 1e-4),
        "movement_ratio": float(moving / max(speaking["movement"], 1e-6)),
        "opening_ratio": float(np.percentile(opening, 95) / max(speaking["opening_p95"], _OPEN)),
        "speaking": clip.speaking,
    }


def medians(rows: list[dict]) -> dict:
    """Medians over clips of numbers by name; shares are those of all closures together."""
    result: dict[str, float | int | None] = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows], float)
        if key in _SHARES:
            counts = np.array([row["closures"] for row in rows], float)
            known = np.isfinite(values) & (counts > 0)
            total = counts[known].sum()
            result[key] = float((values[known] * counts[known]).sum() / total) if total else None
        elif key == "closures":
            result[key] = int(values.sum())
        else:
            result[key] = float(np.median(values))
    return result


def summarise(clips: list[dict], arms: Iterable[str]) -> dict:
    """Medians over clips of every arm: all human voices, by voice, by style, synthetic.

    Args:
      clips: Rows with `synthetic`, `speaker`, `style` and the `lips` of every arm.
      arms: Names of the arms.
    """
    human = [c for c in clips if not c["synthetic"]]
    groups = {"human": human, "synthetic": [c for c in clips if c["synthetic"]]}
    for key in ("speaker", "style"):
        chosen = clips if key == "speaker" else human
        for name in sorted({c[key] for c in chosen}):
            groups[f"{key} {name}"] = [c for c in chosen if c[key] == name]
    arms = list(arms)
    return {
        group: {"clips": len(rows), **{arm: medians([r[arm] for r in rows]) for arm in arms}}
        for group, rows in groups.items() if rows
    }


def seam_measures(change: np.ndarray, timing: timing_lib.Timing) -> dict[str, seams.Seams]:
    """Seams of one video: of chunks, of chunks against latents, and of latents.

    Args:
      change: Result of `seams.changes`, [T - 1].
      timing: Clocks of the preset.
    """
    chunk, latent = timing.frames_per_chunk, timing.frames_per_latent
    return {
        "chunk": seams.measure(change, chunk),
        "chunk_to_latent": seams.measure(change, chunk, among=latent),
        "latent": seams.measure(change, latent),
    }


def pooled_seams(change: dict[str, list[np.ndarray]], timing: timing_lib.Timing) -> dict:
    """Seams of every arm: medians over clips of each clip's median and 95th percentile."""
    result = {}
    for arm, rows in change.items():
        found = [seam_measures(row, timing) for row in rows]
        result[arm] = {
            kind: {
                "median": float(np.median([f[kind].median for f in found])),
                "p95": float(np.median([f[kind].p95 for f in found])),
                "borders": sum(f[kind].borders for f in found),
            }
            for kind in found[0]
        }
    return result
