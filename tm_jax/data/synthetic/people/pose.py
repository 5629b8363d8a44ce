"""Where head, eyes and camera are: turns, shifts and projections as matrices."""

import dataclasses

import numpy as np

MAX_YAW = 0.5  # Larger turns show what `bake` found hidden.
MAX_PITCH = 0.3
_SHARE = (0.14, 0.19, 0.24, 0.43)  # Of a turn of the head, by neck01, neck02, neck03, head.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the head and the eyes are in one frame; angles in radians.

    Attributes:
      yaw: Positive turns to the picture's right; within `MAX_YAW`.
      pitch: Positive looks down; within `MAX_PITCH`.
      roll: Positive tilts to the picture's right.
      shift: Of the whole person, right and up, in decimetres, [2].
      breath: 0 to 1.
      gaze: Of both eyes in the head: right and down, [2].
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    breath: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if abs(self.yaw) > MAX_YAW + 1e-6 or abs(self.pitch) > MAX_PITCH + 1e-6:
            raise ValueError(
                f"pose: yaw and pitch must lie within {MAX_YAW} and {MAX_PITCH} radians, "
                f"got {self.yaw:.3f} and {self.pitch:.3f}."
            )


def rotation(axis: int, angle: float) -> np.ndarray:
    """Turn about axis 0 (x), 1 (y) or 2 (z), [4, 4]."""
    matrix = np.eye(4)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    c, s = np.cos(angle), np.sin(angle)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def translation(offset: np.ndarray) -> np.ndarray:
    """Shift by [3], [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def bone_matrices(joints: np.ndarray, pose: Pose) -> np.ndarray:
    """Transforms of neck01, neck02, neck03 and head with respect to the chest, [4, 4, 4]."""
    total, result = np.eye(4), []
    for joint, share in zip(joints, _SHARE):
        turn = rotation(1, share * pose.yaw) @ rotation(0, share * pose.pitch)
        turn = turn @ rotation(2, -share * pose.roll)
        total = total @ translation(joint) @ turn @ translation(-joint)
        result.append(total)
    return np.stack(result)


def perspective(fov_deg: float, near: float, far: float) -> np.ndarray:
    """OpenGL's projection, [4, 4]."""
    f = 1 / np.tan(np.radians(fov_deg) / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = f
    matrix[2, 2], matrix[2, 3] = (far + near) / (near - far), 2 * far * near / (near - far)
    matrix[3, 2] = -1
    return matrix


def light_view(direction: np.ndarray) -> np.ndarray:
    """Turns the world so that z points to a light, [4, 4]."""
    toward = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], toward)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(toward, right), toward])
    return matrix
