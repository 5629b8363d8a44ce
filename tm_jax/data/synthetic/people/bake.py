"""What stays the same from frame to frame, found once by drawing a person in a few poses.

Two things: which triangles are ever seen (about a third; the rest is never sent), and where
the key light falls, as visibility per vertex for five turns of the head, between which a
frame interpolates. A frame then needs no depth map.
"""

import numpy as np

TURN = 0.45  # Yaw and pitch, in radians, at which the light is baked.
NOD = 0.30
_MAP = 512
_TAPS = 24


def posed(points: np.ndarray, weights: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Linear blend skinning on the CPU: points [N, 3] by weights [N, 4] of bones [4, 4, 4]."""
    result = points * (1 - weights.sum(1, keepdims=True))
    for bone, weight in zip(bones, weights.T):
        result = result + weight[:, None] * (points @ bone[:3, :3].T + bone[:3, 3])
    return result


def turned(normals: np.ndarray, weights: np.ndarray, bones: np.ndarray) -> np.ndarray:
    """Normals [N, 3] after skinning."""
    result = normals * (1 - weights.sum(1, keepdims=True))
    for bone, weight in zip(bones, weights.T):
        result = result + weight[:, None] * (normals @ bone[:3, :3].T)
    return result


def visibility(
    depth: np.ndarray, matrix: np.ndarray, points: np.ndarray, normals: np.ndarray,
    softness: float, lift: float, bias: float = 0.0035,
) -> np.ndarray:  # fmt: skip
    """Share of a soft light that reaches points, [N] in 0..1.

    Args:
      depth: Depth map from the light, [S, S] in 0..1, bottom row first.
      matrix: From the world to the map's clip space, [4, 4].
      points: [N, 3].
      normals: [N, 3].
      softness: Radius of the penumbra as a share of the map's side.
      lift: How far points are moved along their normals.
      bias: Depth that is forgiven.
    """
    lifted = points + lift * normals
    clip = lifted @ matrix[:3, :3].T + matrix[:3, 3]
    where = clip * 0.5 + 0.5
    size = len(depth)
    index = np.arange(_TAPS)
    radius = np.sqrt((index + 0.5) / _TAPS) * softness
    angle = 2.399963 * index  # The golden angle.
    total = np.zeros(len(points), np.float32)
    for dx, dy in zip(radius * np.cos(angle), radius * np.sin(angle)):
        column = np.clip(((where[:, 0] + dx) * size).astype(int), 0, size - 1)
        row = np.clip(((where[:, 1] + dy) * size).astype(int), 0, size - 1)
        total += depth[row, column] >= where[:, 2] - bias
    return total / _TAPS


def by_turn(values: list[np.ndarray]) -> np.ndarray:
    """Packs visibility at yaw -TURN, 0, +TURN and pitch -NOD, +NOD, each [N], into [N, 4]."""
    left, middle, right, up, down = values
    return np.stack([left, middle, right, (down - up) / 2], 1).astype(np.float32)


def keep(faces: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray:
    """Faces [F, 3] that were seen, and those that touch them.

    Args:
      faces: Triangles.
      seen: Numbers of the triangles that were seen.
      count: Number of vertices.
    """
    touched = np.zeros(count, bool)
    touched[faces[seen]] = True
    return faces[touched[faces].any(1)]
