"""Clips on disk as plain frames, for training without drawing or decoding.

A store is a folder of files `frames-00000.npy`, ..., each uint8 [clips, 1 + F, H, W, 3]: frame 0
of a clip is the reference picture, then come F consecutive frames of the same scene. Nothing else
is stored, so drawn, rendered and filmed clips mix. Files are memory-mapped: a batch costs one copy.
"""

from collections.abc import Iterable
import os
import pathlib

import numpy as np

_PATTERN = "frames-{:05d}.npy"


def write(folder: str, clips: Iterable[np.ndarray], clips_per_file: int = 50) -> int:
    """Adds clips to a store; files appear only when they are complete.

    Args:
      folder: Folder of the store; made if missing. Files in it are kept.
      clips: Clips, uint8 [1 + F, H, W, 3], all of one shape.
      clips_per_file: Clips in every file but the last.

    Returns:
      Number of clips written.
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    number, waiting, written = len(list(root.glob("frames-*.npy"))), [], 0
    for clip in clips:
        waiting.append(clip)
        if len(waiting) == clips_per_file:
            _save(root / _PATTERN.format(number), waiting)
            number, written, waiting = number + 1, written + len(waiting), []
    if waiting:
        _save(root / _PATTERN.format(number), waiting)
    return written + len(waiting)


def _save(path, clips):
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.save(file, np.stack(clips))
    os.replace(temporary, path)


class FrameStore:
    """Reads the clips of one or more stores.

    Attributes:
      files: Memory-mapped arrays [clips, 1 + F, H, W, 3], in the order of their names.
    """

    def __init__(self, folders: Iterable[str]):
        """Opens the stores.

        Args:
          folders: Folders written by `write`.

        Raises:
          ValueError: A folder holds no clips, or files hold frames of different sizes.
        """
        self.files = []
        for folder in folders:
            found = sorted(pathlib.Path(folder).glob("frames-*.npy"))
            if not found:
                raise ValueError(f"{folder}: no frames-*.npy; draw clips into it first.")
            self.files += [np.load(path, mmap_mode="r") for path in found]
        sizes = {file.shape[2:] for file in self.files}
        if len(sizes) != 1:
            raise ValueError(f"all clips must have frames of one size, got {sorted(sizes)}.")
        self._first = np.cumsum([0] + [len(file) for file in self.files])

    def __len__(self) -> int:
        return int(self._first[-1])

    def clip(self, index: int) -> np.ndarray:
        """Clip number `index`, uint8 [1 + F, H, W, 3], not copied."""
        at = int(np.searchsorted(self._first, index, "right")) - 1
        return self.files[at][index - self._first[at]]

    def batch(
        self, seed: int, step: int, size: int, frames: int, side: int | None = None
    ) -> np.ndarray:
        """Random clips, varied; a function of its arguments, so a run resumes exactly.

        Clips are cut to `frames` consecutive frames after the reference picture, mirrored, played
        backwards, recoloured (channels permuted) and cropped at random.

        Args:
          seed: Seed of the run.
          step: Number of the batch.
          size: Clips B.
          frames: Frames F after the reference picture.
          side: Side of the crop in pixels; None for whole frames.

        Returns:
          uint8 [B, 1 + F, H, W, 3].
        """
        rng = np.random.default_rng((seed, step))
        return np.stack([
            vary(rng, self.clip(int(rng.integers(len(self)))), frames, side)
            for _ in range(size)
        ])


def vary(
    rng: np.random.Generator, clip: np.ndarray, frames: int, side: int | None = None
) -> np.ndarray:
    """A random cut of a clip, mirrored, reversed, recoloured, cropped.

    Args:
      rng: Random generator.
      clip: uint8 [1 + N, H, W, 3].
      frames: Frames F to keep after the reference picture.
      side: Side of the crop in pixels; None for whole frames. Crops near the middle are likelier.

    Returns:
      uint8 [1 + F, H, W, 3] or [1 + F, side, side, 3].

    Raises:
      ValueError: The clip is shorter than `frames`, or smaller than `side`.
    """
    last = len(clip) - 1 - frames
    if last < 0:
        raise ValueError(f"clip: expected at least 1 + {frames} frames, got {len(clip)}.")
    start = 1 + int(rng.integers(last + 1))
    chosen = np.arange(start, start + frames)
    if rng.random() < 0.5:
        chosen = chosen[::-1]
    clip = clip[np.concatenate([[0], chosen])]
    if side is not None:
        height, width = clip.shape[1:3]
        if side > min(height, width):
            raise ValueError(f"clip: {height}x{width} pixels are smaller than the crop {side}.")
        top = int(rng.triangular(0, (height - side) / 2, height - side)) if height > side else 0
        left = int(rng.triangular(0, (width - side) / 2, width - side)) if width > side else 0
        clip = clip[:, top : top + side, left : left + side]
    if rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    if rng.random() < 0.3:
        clip = clip[..., rng.permutation(3)]
    return clip
