"""A person as geometry: vertices at rest, actions, and what is worn, ready to be drawn."""

import dataclasses
import functools

import numpy as np
from scipy import sparse

from tm_jax.data.synthetic.people import basis as basis_lib
from tm_jax.data.synthetic.people import clothes
from tm_jax.data.synthetic.people import identity as identity_lib
from tm_jax.data.synthetic.people import regions
from tm_jax.data.synthetic.people import surfaces
from tm_jax.data.synthetic.people import wear

_ARM_DOWN_DEG = 34.0
_CLEARANCE = 1.075  # Of lids, over the bulge of the cornea.
# A friendly face at rest; the scans behind the mesh look stern.
_MOOD = {
    "eyeWideLeft": 0.35, "eyeWideRight": 0.35, "mouthSmileLeft": 0.10, "mouthSmileRight": 0.10,
    "browOuterUpLeft": 0.15, "browOuterUpRight": 0.15, "browInnerUp": 0.15,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """The geometry of one person; the origin is the middle between the eyes.

    Attributes:
      identity: Who it is.
      rest: [N, 3], units of a decimetre.
      actions: [52, N, 3] displacements.
      weights: Of neck01, neck02, neck03 and head, [N, 4].
      canon: The template's vertices, [N, 3].
      region: Lips, lids, inside of the mouth, ears, [N, 4].
      extra: Occlusion shut and open, then scalp and beard or the part's own uv, [N, 4].
      faces: By part.
      joints: Heads of the bones neck01, neck02, neck03, head, [4, 3].
      eyes: Centres of the left and the right eyeball, [2, 3].
      radius: Of the eyeballs.
      normals: Matrix from flat face normals to vertex normals, [N, F], sparse.
      every_face: Faces that count for normals, [F, 3].
      worn: Hair, clothes and the like.
    """

    identity: identity_lib.Identity
    rest: np.ndarray
    actions: np.ndarray
    weights: np.ndarray
    canon: np.ndarray
    region: np.ndarray
    extra: np.ndarray
    faces: dict[str, np.ndarray]
    joints: np.ndarray
    eyes: np.ndarray
    radius: float
    normals: sparse.csr_matrix
    every_face: np.ndarray
    worn: tuple[surfaces.Surface, ...] = ()

    def vertices(self, actions: np.ndarray) -> np.ndarray:
        """Vertices with facial actions [52], float32 [N, 3]; lids stay before the eyeballs."""
        used = np.flatnonzero(np.abs(actions) > 1e-4)
        moved = self.rest + np.tensordot(actions[used].astype(np.float32), self.actions[used], 1)
        lids = self.lids
        for centre in self.eyes:
            near = lids[np.abs(moved[lids, 0] - centre[0]) < 0.32]
            offset = moved[near] - centre
            length = np.linalg.norm(offset, axis=1, keepdims=True)
            out = np.maximum(self.radius * _CLEARANCE / length, 1.0)
            front = (offset[:, 2:] > 0.3 * self.radius).astype(np.float32)
            moved[near] = centre + offset * (1 + (out - 1) * front)
        return moved

    @functools.cached_property
    def lids(self) -> np.ndarray:
        """Rows of the skin around the eyes and of the lashes."""
        skin = np.unique(self.faces["skin"])
        distance = np.linalg.norm(self.rest[skin, None] - self.eyes, axis=-1).min(1)
        return np.union1d(skin[distance < 1.9 * self.radius], self.faces["lashes"])

    @functools.cached_property
    def _rims(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Rows of the rims of upper and lower lip in the middle, and their gap at rest."""
        jaw = self.actions[basis_lib.ACTIONS.index("jawOpen"), :, 1]
        skin = np.unique(self.faces["skin"])
        middle = np.zeros(len(self.rest), bool)
        middle[skin] = (self.region[skin, 0] > 0.5) & (np.abs(self.canon[skin, 0]) < 0.05)
        upper = np.flatnonzero(middle & (jaw > -0.05))
        lower = np.flatnonzero(middle & (jaw < -0.25))
        upper = upper[np.argsort(self.canon[upper, 1])[:3]]  # The lowest of the upper lip,
        lower = lower[np.argsort(-self.canon[lower, 1])[:3]]  # the highest of the lower.
        gap = np.linalg.norm(self.rest[upper].mean(0) - self.rest[lower].mean(0))
        return upper, lower, float(gap)

    def opening(self, vertices: np.ndarray) -> float:
        """Gap between the lips in the middle, in decimetres."""
        upper, lower, gap = self._rims
        return float(np.linalg.norm(vertices[upper].mean(0) - vertices[lower].mean(0)) - gap)

    def vertex_normals(self, vertices: np.ndarray) -> np.ndarray:
        """Unit normals, [N, 3]."""
        a, b, c = (vertices[self.every_face[:, k]] for k in range(3))
        normals = self.normals @ np.cross(b - a, c - a)
        length = np.sqrt(np.einsum("nk,nk->n", normals, normals))
        return (normals / np.maximum(length, 1e-9)[:, None]).astype(np.float32)

    def over(self, faces: np.ndarray) -> "Figure":
        """The same person whose normals come from these faces [F, 3] alone."""
        return dataclasses.replace(
            self, every_face=faces, normals=_normal_matrix(len(self.rest), faces)
        )


def _lower_arms(vertices: np.ndarray, weights: np.ndarray, joints: dict) -> np.ndarray:
    """Turns the arms down from the template's open pose."""
    lowered = vertices.copy()
    for side, sign in (("L", 1), ("R", -1)):
        angle = -sign * np.radians(_ARM_DOWN_DEG)
        turn = np.array([
            [np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1],
        ])  # fmt: skip
        joint = joints[f"upperarm01.{side}"]
        weight = weights[:, [basis_lib.BONES.index(f"upperarm01.{side}")]]
        lowered += weight * ((vertices - joint) @ turn.T + joint - vertices)
    return lowered


def _close_throat(vertices: np.ndarray, basis: basis_lib.Basis) -> np.ndarray:
    """Draws the mouth's back end together, so that it stays within any neck."""
    canon = basis.template
    inside = basis.masks[:, basis_lib.MASKS.index("inside-mouth")] > 0.3
    inside[np.setdiff1d(np.arange(len(canon)), basis.faces["skin"])] = False
    share = 0.75 * surfaces.step(1.15, 0.75, canon[:, 2]) * inside
    middle = vertices[inside & (canon[:, 2] > 1.0)].mean(0) + [0, 0.05, -0.15]
    return vertices + share[:, None] * (middle - vertices)


def _normal_matrix(count: int, faces: np.ndarray) -> sparse.csr_matrix:
    rows = faces.T.ravel()
    columns = np.tile(np.arange(len(faces)), 3)
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((ones, (rows, columns)), (count, len(faces)))


def build(identity: identity_lib.Identity, basis: basis_lib.Basis) -> Figure:
    """Makes the geometry of a person."""
    vertices, joints = basis.shape(identity.macro(), identity.local(basis.local_names))
    for name, value in _MOOD.items():
        vertices = vertices + value * basis.actions[basis_lib.ACTIONS.index(name)]
    vertices = _lower_arms(vertices, basis.weights, joints)
    origin = (joints["eye.l"] + joints["eye.r"]) / 2
    eyes = np.stack([joints["eye.l"], joints["eye.r"]]) - origin
    radius = float(np.abs(joints["eye.l.out"][0] - joints["eye.l.in"][0]) / 2)
    canon = basis.template
    vertices = _close_throat(vertices, basis)
    vertices[np.unique(basis.faces["tongue"])] += [0.0, -0.055, -0.075]
    extra = np.zeros((len(canon), 4), np.float32)
    extra[:, :2] = basis.occlusion
    extra[:, 2:] = basis.part_uv
    skin = np.unique(basis.faces["skin"])
    # Lids are hidden in the open eye, but not when it shuts.
    near = np.linalg.norm(vertices[:, None] - origin - eyes, axis=-1).min(1) < 1.5 * radius
    extra[near, :2] = np.maximum(extra[near, :2], 0.55)
    extra[skin, 2] = regions.scalp(canon[skin])
    extra[skin, 3] = regions.beard(canon[skin], identity.beard)
    every = np.concatenate(list(basis.faces.values()))
    figure = Figure(
        identity=identity, rest=(vertices - origin).astype(np.float32),
        actions=basis.actions.astype(np.float32),
        weights=basis.weights[:, 1:5].astype(np.float32), canon=canon.astype(np.float32),
        region=basis.masks.astype(np.float32), extra=extra, faces=basis.faces,
        joints=np.stack([joints[n] for n in ("neck01", "neck02", "neck03", "head")]) - origin,
        eyes=eyes.astype(np.float32), radius=radius,
        normals=_normal_matrix(len(canon), every), every_face=every,
    )  # fmt: skip
    figure = dataclasses.replace(figure, worn=wear.build(figure))
    seen = figure.faces["skin"][~clothes.hides(figure, figure.faces["skin"])]
    return dataclasses.replace(figure, faces=figure.faces | {"skin": seen})
