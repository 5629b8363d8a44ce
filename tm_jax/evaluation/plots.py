"""Plots of an evaluation as PNG. Needs matplotlib (the extra `plots`)."""

import os

import numpy as np

from tm_jax.core import timing as timing_lib
from tm_jax.evaluation import lipsync
from tm_jax.evaluation import measures
from tm_jax.evaluation import scenes

_BARS = {
    "lipsync_correlation": "lip sync", "bilabial_closure": "lips shut on p, b, m",
    "silence_ratio": "movement in silence", "seam_ratio": "seams",
}
_FPS = timing_lib.Timing().fps
_REACH = 8  # Frames of lag that are drawn.
_LOOKS = ("colour_distance", "picture_distance", "likeness", "sharpness")


def check() -> None:
    """Raises ValueError if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "plots need matplotlib: pip install 'tm_jax[plots]', or leave them out with --noplots."
        ) from error


def _figure(rows: int = 1, columns: int = 1, size=(9.0, 3.2)):
    """A figure that needs no display, and its axes, [rows, columns]."""
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    made = figure.Figure(figsize=size, dpi=110, layout="constrained")
    backend_agg.FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def lips(
    path: str | os.PathLike, scene: scenes.Scene, videos: dict[str, np.ndarray]
) -> None:
    """Opening of the mouth over time, and correlation at every lag, of every arm.

    Args:
      path: PNG to write.
      scene: The scene.
      videos: uint8 [T, H, W, 3] by arm.
    """
    made, ((curves, lags),) = _figure(1, 2, (11.0, 3.4))
    truth = scene.track.mouth[:, 0]
    seconds = np.arange(len(truth)) / _FPS
    for name, frames in videos.items():
        opening = measures.opened(scene, frames)
        scale = max(float(opening.max()), 1e-3)
        curves.plot(seconds, opening / scale, label=name, linewidth=1)
        inner = slice(_REACH, len(truth) - _REACH)
        found = [
            lipsync.correlation(np.roll(opening, -lag)[inner], truth[inner])
            for lag in range(-_REACH, _REACH + 1)
        ]
        lags.plot(range(-_REACH, _REACH + 1), found, label=name, linewidth=1)
    curves.fill_between(seconds, truth / max(float(truth.max()), 1e-3), color="0.88",
                        label="phones")  # fmt: skip
    for start, end in lipsync.runs(scene.closed):
        curves.axvspan(start / _FPS, end / _FPS, ymax=0.04, color="0.3")
    curves.set(xlabel="s", ylabel="opening", title=f"{scene.speaker}, {scene.style}")
    curves.legend(fontsize=7)
    lags.set(xlabel="lag, frames", ylabel="correlation")
    lags.axvline(0, color="0.8", linewidth=1)
    made.savefig(path)


def arms(path: str | os.PathLike, results: dict) -> None:
    """Bars of the main measures of every arm."""
    made, (axes,) = _figure(1, len(_BARS) + 1, (13.0, 3.2))
    names = list(results["arms"])
    for axis, (key, title) in zip(axes, _BARS.items()):
        axis.barh(names, [results["arms"][n][key] or 0 for n in names], color="#5a7d9a")
        axis.set_title(title, fontsize=9)
    apart = [results["arms"][n]["frechet"]["distance"] for n in names]
    floor = results["arms"][names[0]]["frechet"]["truth_again"]
    axes[-1].barh(names, apart, color="#5a7d9a")
    axes[-1].axvline(floor, color="0.4", linewidth=1)
    axes[-1].set_title("Fréchet distance (line: truth again)", fontsize=9)
    for axis in axes:
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    made.savefig(path)


def endurance(path: str | os.PathLike, results: dict) -> bool:
    """Looks over the long streams; returns whether there is one to draw."""
    streams = {n: a["long"] for n, a in results["arms"].items() if "long" in a}
    if not streams:
        return False
    made, (axes,) = _figure(1, len(_LOOKS), (14.0, 3.0))
    for axis, key in zip(axes, _LOOKS):
        for name, long in streams.items():
            values = long["curves"][key]
            minutes = np.linspace(0, long["seconds"] / 60, len(values))
            axis.plot(minutes, values, label=name, linewidth=1)
            if "runs" in long:
                mean, spread = (long["runs"][key][k] for k in ("mean", "spread"))
                if spread is None:  # One run has none.
                    continue
                axis.axhspan(mean - 2 * spread, mean + 2 * spread, color="0.92")
        axis.set(xlabel="minutes")
        axis.set_title(key.replace("_", " "), fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=7)
    made.savefig(path)
    return True
