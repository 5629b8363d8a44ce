"""One long stream: whether looks, lips, seams, numbers and memory stay what they were.

Frames are measured as they come and not kept. What the last minute looks like is judged
against first minutes of other runs, which differ by seed and by what is said.
"""

import os
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import arms as arms_lib
from tm_jax.evaluation import identity
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import measures
from tm_jax.evaluation import mouth
from tm_jax.evaluation import scenes
from tm_jax.evaluation import seams

_SYNC_S = 30.0
_CHECK_EVERY = 50  # Chunks between looks at the state, and between measures of the mouth.
_WHOLE = np.array([0, 0, 1, 1])


def finite(session: Any) -> bool:
    """Whether the state of a session is finite. Pixels cannot show it: they are integers.

    A number that is not finite stays in the cache and spoils all that follows, so the state
    now and then covers all chunks before.
    """
    leaves = jax.tree.leaves((session._state, session._decoder))
    floats = [x for x in leaves if jnp.issubdtype(getattr(x, "dtype", np.int32), jnp.floating)]
    return all(bool(jnp.isfinite(x).all()) for x in floats)


def memory_mb() -> float | None:
    """Resident memory of this process in bytes; None where the system does not report it."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _looks_over(session, scene, sound, visit=None) -> dict[str, np.ndarray]:
    """`measures.looks` of the last frame of every chunk, [chunks] each."""
    rows = []
    for chunk in arms_lib.chunks(session, sound):
        rows.append({k: v[0] for k, v in measures.looks(scene, chunk.frames[-1:]).items()})
        if visit:
            visit(chunk)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


class _Visitor:
    """Keeps what is needed of every chunk of the long stream."""

    def __init__(self, session, scene: scenes.Scene, chunks: int, name: str):
        self._session, self._chunks, self._name = session, chunks, name
        height, width = scene.picture.shape[:2]
        limits = np.array([height, width, height, width])
        self._box = np.round(scene.mouth_box * limits).astype(int)
        self._last, self._count = None, 0
        self._crops, self._openings = [], []
        self.change, self.finite, self.memory = [], True, []

    def __call__(self, chunk):
        y0, x0, y1, x1 = self._box
        self._crops.append(chunk.frames[:, y0:y1, x0:x1].copy())
        self.change.append(seams.changes(chunk.frames, self._last))
        self._last = chunk.frames[-1]
        self._count += 1
        if self._count % _CHECK_EVERY == 0 or self._count == self._chunks:
            self._openings.append(mouth.opening(np.concatenate(self._crops), _WHOLE))
            self._crops.clear()
            self.finite = self.finite and finite(self._session)
            self.memory.append(memory_mb())
            logging.info("Long clip of %s: chunk %d of %d.", self._name, self._count, self._chunks)

    @property
    def opening(self) -> np.ndarray:
        """Measured opening of the mouth in all frames, [frames]."""
        return np.concatenate(self._openings)


def first_windows(
    arm: arms_lib.Streamed, scene: scenes.Scene, seconds: float, runs: int
) -> dict[str, list[float]]:
    """Means of `measures.looks` over the first seconds of several runs.

    Args:
      arm: What streams.
      scene: Scene with at least `seconds` of sound.
      seconds: Length of a run.
      runs: Runs; each has its own seed and another part of the sound.
    """
    sound, rate = scene.track.audio, timing_lib.Timing().sample_rate
    size = round(seconds * rate)
    found: dict[str, list[float]] = {}
    for run in range(runs):
        start = (run + 1) * (len(sound) - size) // (runs + 1)
        session = arm.make(scene.picture, seed=1000 + run, mode=arm.mode)
        for key, values in _looks_over(session, scene, sound[start : start + size]).items():
            found.setdefault(key, []).append(float(values.mean()))
    return found


def measure(
    arm: arms_lib.Streamed, scene: scenes.Scene, timing: timing_lib.Timing, *,
    seed: int = 0, window_s: float = 10.0, runs: int = 0, name: str = "",
) -> dict:
    """Measures one stream as long as the scene's sound.

    Args:
      arm: What streams.
      scene: Scene with a long track.
      timing: Clocks of the preset.
      seed: Seed of the stream.
      window_s: Seconds at the beginning and at the end that are compared.
      runs: Other runs whose first seconds show how much such a window varies; 0 for none.
      name: Name of the arm for the log.

    Returns:
      `drift` by measure (`identity.Drift`), `per_minute` by measure, and with runs `runs` by
      measure: the mean over first windows, their standard deviation and the last window's
      distance from that mean in these deviations (`change`). Also lips, seams, `finite` and
      `memory_mb`.
    """
    session = arm.make(scene.picture, seed=seed, mode=arm.mode)
    sound = scene.track.audio
    chunk_frames, fps = session.chunk_frames, session.fps
    count = -(-len(sound) * fps // (timing.sample_rate * chunk_frames))
    seen = _Visitor(session, scene, count, name)
    values = _looks_over(session, scene, sound, seen)
    frames, rate = len(scene.motion), fps / chunk_frames
    opening = seen.opening[:frames]
    part = min(round(_SYNC_S * fps), frames // 2)
    truth = scene.track.mouth[:, 0]
    result = {
        "seconds": frames / fps, "speaker": scene.speaker, "style": scene.style,
        "window_s": window_s, "finite": seen.finite,
        "drift": {k: identity.drift(v, rate, window_s) for k, v in values.items()},
        "per_minute": {k: identity.per_minute(v, rate) for k, v in values.items()},
        "correlation": lipsync.correlation(opening, truth),
        "correlation_first_30_s": lipsync.correlation(opening[:part], truth[:part]),
        "correlation_last_30_s": lipsync.correlation(opening[-part:], truth[-part:]),
        "seams": measures.seam_measures(np.concatenate(seen.change), timing),
        "memory_mb": _memory(seen.memory),
        "curves": _thin(values),
    }
    if runs:
        first = first_windows(arm, scene, window_s, runs)
        result["runs"] = {k: _against(first[k], result["drift"][k].last) for k in first}
    return result


def largest_change(result: dict) -> float:
    """The largest drift of any measure: in deviations between runs where they are known."""
    changes = [row["change"] for row in result["runs"].values()] if "runs" in result else [
        row.change for row in result["drift"].values()
    ]
    return float(np.abs(changes).max())


def _against(first: list[float], last: float) -> dict:
    mean = float(np.mean(first))
    spread = float(np.std(first, ddof=1)) if len(first) > 1 else float("nan")
    return {
        "first": first, "mean": mean, "spread": spread, "last": last,
        "change": (last - mean) / max(spread, 1e-6),
    }


def _memory(values: list) -> dict | None:
    known = [v for v in values if v is not None]
    return {"first": known[0], "last": known[-1], "most": max(known)} if known else None


def _thin(values: dict[str, np.ndarray], points: int = 120) -> dict[str, list[float]]:
    """Curves as means over at most `points` equal parts, for plots."""
    return {
        k: [float(part.mean()) for part in np.array_split(v, min(points, len(v)))]
        for k, v in values.items()
    }
