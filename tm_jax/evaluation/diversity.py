"""Measures how much videos of the same picture and sound differ between seeds.

Head and eyes should differ as much as somebody's who says the same again; the lips should not.
"""

import itertools
from typing import NamedTuple

import numpy as np

from tm_jax.evaluation import lipsync


class Diversity(NamedTuple):
    """Means over all pairs of videos.

    Attributes:
      pixels: Mean absolute difference of pixels in 0..1.
      head: Root mean square distance of the head's places, in pixels.
      lips: Correlation of the openings of the mouth.
    """

    pixels: float
    head: float
    lips: float


def measure(
    videos: list[np.ndarray], shifts: list[np.ndarray], openings: list[np.ndarray]
) -> Diversity:
    """Compares videos of one scene.

    Args:
      videos: uint8 [T, H, W, 3] of every seed, two or more.
      shifts: The head's place in each, [T, 2].
      openings: Opening of the mouth in each, [T].
    """
    if not len(videos) == len(shifts) == len(openings) >= 2:
        raise ValueError(
            "videos, shifts and openings must be of the same two or more seeds, got "
            f"{len(videos)}, {len(shifts)} and {len(openings)}."
        )
    pixels, head, lips = [], [], []
    for i, j in itertools.combinations(range(len(videos)), 2):
        pairs = zip(videos[i], videos[j])
        pixels.append(np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in pairs]) / 255)
        head.append(np.sqrt(np.square(shifts[i] - shifts[j]).sum(1).mean()))
        lips.append(lipsync.correlation(openings[i], openings[j]))
    return Diversity(float(np.mean(pixels)), float(np.mean(head)), float(np.mean(lips)))
