"""What a stage keeps on a mesh, by arithmetic on shapes: no weights, no data, no such devices."""

from collections.abc import Iterable, Mapping
import dataclasses
import os
import re
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from tm_jax.checkpoints import parts
from tm_jax.configs import presets
from tm_jax.core import axes
from tm_jax.core import trees
from tm_jax.models.audio.causal import config as audio_config
from tm_jax.models.dit import causal
from tm_jax.models.dit import transformer
from tm_jax.models.vae.small import config as small_vae_config
from tm_jax.parallel import rules
from tm_jax.training import lora as lora_lib
from tm_jax.training import optimizer as optimizer_lib

_TRANSFORMER = ("teacher", "student", "distill")
# Stages of the same work directory whose weights a stage starts from.
_EARLIER = {"student": ("teacher",), "distill": ("teacher", "student")}
# Keys and values of the cache, [B, S, N, K], as `attention.place_keys` places them.
_SLOTS = (axes.BATCH, axes.CACHE, axes.SPREAD, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Arrays of one tree that differ in their number only, as the layers' do.

    Attributes:
      tree: Name of the tree.
      name: Path in the tree, with `*` for numbers.
      count: How many arrays.
      shape: Shape of each.
      dtype: Dtype of each.
      spec: How each is split over mesh axes.
      bytes: Size of all of them together.
      device_bytes: What one device holds of them.
    """

    tree: str
    name: str
    count: int
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes: int
    device_bytes: int


def describe(
    preset: presets.Preset, stage: str, mesh_sizes: Mapping[str, int], settings: Any
) -> list[Row]:
    """Every tree of a stage: parameters, gradients, optimiser, average; in the stage `distill`
    also those of the critic, the frozen teacher and the student's cache; with low-rank
    adaptation the base that is adapted, which in `distill` is the teacher.

    Activations and temporaries of the update's program come on top.

    Args:
      preset: What is trained.
      stage: Name of the stage.
      mesh_sizes: Size of mesh axes; one that is not named has size 1.
      settings: Settings of the stage; `optimizer`, `critic_optimizer`, `batch` and the
        student's sampler are read, and `lora`.

    Raises:
      ValueError: The preset has no such part, or the mesh does not divide the model.
    """
    sizes = {**dict.fromkeys(rules.MESH_AXES, 1), **mesh_sizes}
    if stage in _TRANSFORMER:
        check_mesh(preset, mesh_sizes)
    boxed = base = _parameters(preset, stage)
    lora = getattr(settings, "lora", lora_lib.LoraConfig())
    if lora.rank:
        init = lora_lib.init(lora, lambda key: base)
        boxed = jax.eval_shape(init, jax.random.key(0))
    found = _network("", boxed, settings.optimizer, sizes)
    found += _rows("average", boxed, rules.specs(sizes, boxed), sizes)
    frozen = jnp.bfloat16
    if lora.rank:
        frozen = jnp.dtype(preset.dtype)
        if stage != "distill":
            base = jax.eval_shape(lambda p: trees.cast(p, frozen), base)
            found += _rows("base", base, rules.specs(sizes, base), sizes)
    if stage == "distill":
        critic = _network("critic ", boxed, settings.critic_optimizer, sizes)
        found += [row for row in critic if "gradients" not in row.tree]  # One at a time.
        teacher = jax.eval_shape(lambda p: trees.cast(p, frozen), base)
        found += _rows("teacher", teacher, rules.specs(sizes, teacher), sizes)
        found += _cache(preset, settings, sizes)
    return found


def _parameters(preset: presets.Preset, stage: str) -> Any:
    """Boxed shapes of what a stage trains."""
    if stage in _TRANSFORMER:
        return transformer.boxed_shapes(preset.dit)
    if stage == "vae" and isinstance(preset.vae, small_vae_config.SmallVAEConfig):
        return parts.of_preset(preset, "vae").boxed
    if stage == "speech" and isinstance(preset.audio, audio_config.AudioEncoderConfig):
        return parts.of_preset(preset, "audio").boxed
    raise ValueError(
        f"preset {preset.name} has no component for stage {stage}: its stages are "
        f"{', '.join(_TRANSFORMER)}; those of nano include {stage}."
    )


def _network(prefix: str, boxed: Any, config, sizes: Mapping[str, int]) -> list[Row]:
    """Parameters, gradients and optimiser state of one network."""
    specs = rules.specs(sizes, boxed)
    # Groups add counters, no more.
    plain = dataclasses.replace(config, base_factor=1.0, base_from_step=0)
    state = jax.eval_shape(optimizer_lib.make(plain, 2).init, boxed)
    return [
        *_rows(f"{prefix}parameters", boxed, specs, sizes),
        *_rows(f"{prefix}gradients", boxed, specs, sizes),
        *_rows(f"{prefix}optimizer", state, rules.specs(sizes, state), sizes),
    ]


def _cache(preset, settings, sizes: Mapping[str, int]) -> list[Row]:
    """The student's cache of a batch of rollouts; its layers are alike, so one is traced."""
    fields = [field.name for field in dataclasses.fields(presets.StudentConfig)]
    preset = preset.with_student(
        **{name: getattr(settings, name) for name in fields if hasattr(settings, name)}
    )
    layers, batch = preset.dit.num_layers, settings.batch
    c = dataclasses.replace(preset.dit, num_layers=1)
    height, width, channels = preset.latent_shape
    model = transformer.DiT(c, jnp.dtype(preset.dtype))

    def normal(*shape):
        return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    text = None if c.text_width is None else normal(c.text_length, c.text_width)
    image = None if c.image_width is None else normal(c.image_length, c.image_width)

    def begin(params, reference, condition, text, image, face_mask):
        embedded = model.apply({"params": params}, text, image, face_mask, method="context")
        context = typing.cast(transformer.Context, embedded)
        keys = jax.random.split(jax.random.key(0), batch)
        return causal.begin(
            model, params, reference, condition, context, keys,
            preset.timing.latents_per_chunk, preset.student.num_steps, preset.student.policy,
            preset.student.view,
        )

    state = jax.eval_shape(
        begin, rules.unbox(transformer.boxed_shapes(c)), normal(height, width, channels),
        normal(height, width, c.condition_channels), text, image, normal(preset.tokens),
    )
    specs = jax.tree.map(
        lambda x: rules.spec(sizes, x.shape, _SLOTS if x.ndim == 4 else (axes.BATCH,)), state
    )
    found = _rows("cache", state, specs, sizes)
    return [_times(row, layers) if row.name.endswith(("/k", "/v")) else row for row in found]


def _times(row: Row, number: int) -> Row:
    """`number` times as many arrays."""
    return dataclasses.replace(
        row, count=row.count * number, bytes=row.bytes * number,
        device_bytes=row.device_bytes * number,
    )


def _rows(tree: str, leaves: Any, specs: Any, sizes: Mapping[str, int]) -> list[Row]:
    """Rows of one tree, arrays that differ in their number only taken together."""
    found: dict[tuple, list] = {}
    flat = trees.flatten(rules.unbox(leaves))
    kinds = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    for (name, leaf), spec in zip(flat.items(), kinds, strict=True):
        pattern = re.sub(r"(?<![^/_])\d+(?![^/])", "*", name)
        key = (pattern, tuple(leaf.shape), str(leaf.dtype), spec)
        found.setdefault(key, []).append(leaf)
    rows = []
    for (name, shape, dtype, spec), same in found.items():
        size = int(np.prod(shape)) * same[0].dtype.itemsize * len(same)
        rows.append(Row(
            tree=tree, name=name, count=len(same), shape=shape, dtype=dtype, spec=spec,
            bytes=size, device_bytes=size // _parts(spec, sizes),
        ))
    return rows


def _parts(spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
    """Over how many devices an array is split."""
    names = [n for entry in spec for n in ((entry,) if isinstance(entry, str) else entry or ())]
    return int(np.prod([sizes[n] for n in names], dtype=np.int64))


def check_mesh(preset: presets.Preset, mesh_sizes: Mapping[str, int]) -> None:
    """Raises ValueError if a mesh does not divide the transformer of a preset."""
    tokens = preset.timing.latents_per_chunk * preset.tokens
    for axis, what, number in (
        ("fsdp", "width", preset.dit.width), ("tensor", "attention heads", preset.dit.num_heads),
        ("seq", "tokens of a chunk", tokens),
    ):
        size = mesh_sizes.get(axis, 1)
        if number % size:
            fitting = [n for n in range(1, number + 1) if number % n == 0]
            below = max(n for n in fitting if n < size)
            above = [n for n in fitting if n > size][:1]
            raise ValueError(
                f"mesh {axis}={size} does not divide the {number} {what} of preset "
                f"{preset.name}; use {axis}={' or '.join(map(str, (below, *above)))}."
            )


def check_files(
    stage: str, workdir: str | None, folders: Iterable[tuple[str, str | None]]
) -> None:
    """Raises FileNotFoundError if something that a stage reads is not there.

    Args:
      stage: Name of the stage.
      workdir: Work directory; None: earlier stages are not checked.
      folders: Flags, and the file or folder that each names, or None.
    """
    for flag, path in folders:
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"--{flag}: there is no {path}; name what exists.")
    if workdir is None:
        return
    for earlier in _EARLIER.get(stage, ()):
        place = os.path.join(workdir, earlier)
        names = os.listdir(place) if os.path.isdir(place) else []
        if not any(name.endswith(".safetensors") for name in names):
            raise FileNotFoundError(
                f"stage {stage} starts from the weights of stage {earlier}, and {place} has "
                f"none: finish `--stage={earlier} --workdir={workdir}` first."
            )


def notes(mesh_sizes: Mapping[str, int], settings: Any) -> list[str]:
    """What is allowed and still worth a second thought, one line each."""
    parts = mesh_sizes.get("data", 1) * mesh_sizes.get("fsdp", 1)
    if settings.batch % parts == 0:
        return []
    note = (
        f"batch={settings.batch} is not a multiple of data*fsdp={parts}, so every device works "
        f"on the whole batch; --set batch={parts} gives each its own sample."
    )
    return [note]


def totals(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Bytes of every tree, and what one device holds of it."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        whole, device = found.get(row.tree, (0, 0))
        found[row.tree] = (whole + row.bytes, device + row.device_bytes)
    return found


def render(rows: list[Row], mesh_sizes: Mapping[str, int]) -> str:
    """The rows and totals as a text for people; what repeats the first tree takes one line."""
    first = [row for row in rows if row.tree == rows[0].tree]
    lines, at, tree = [], 0, None
    while at < len(rows):
        row = rows[at]
        if row.tree != tree:
            tree = row.tree
            lines.append(f"\n{tree}")
        group = rows[at : at + len(first)]
        if at and _repeats(group, first):
            prefix = row.name.removesuffix(first[0].name)
            whole, device = (sum(getattr(r, n) for r in group) for n in ("bytes", "device_bytes"))
            lines.append(
                f"  {prefix}... shaped and split as the {first[0].tree}, {row.dtype}: "
                f"{_size(whole)}, {_size(device)} a device"
            )
            at += len(first)
            continue
        lines.append(_line(row))
        at += 1
    return "\n".join([*lines, "", *_summary(rows, mesh_sizes)])


def _repeats(rows: list[Row], first: list[Row]) -> bool:
    """Whether some rows are those of the first tree, under a prefix or in another dtype."""
    return len(rows) == len(first) and all(
        row.name.endswith(other.name) and row.tree == rows[0].tree
        and (row.count, row.shape, row.spec) == (other.count, other.shape, other.spec)
        for row, other in zip(rows, first)
    )


def _line(row: Row) -> str:
    names = ", ".join(
        "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)
        for entry in row.spec
    )
    what = f"{row.count} x {list(row.shape)} {row.dtype}"
    return (
        f"  {row.name:<36} {what:<34} ({names}) {_size(row.bytes)}, "
        f"{_size(row.device_bytes)} a device"
    )


def _summary(rows: list[Row], mesh_sizes: Mapping[str, int]) -> list[str]:
    sizes = {**dict.fromkeys(rules.MESH_AXES, 1), **mesh_sizes}
    devices = int(np.prod(list(sizes.values())))
    mesh = ", ".join(f"{name}={size}" for name, size in sizes.items())
    lines = [f"mesh {mesh}: {devices} device{'s' * (devices > 1)}"]
    found = totals(rows)
    found["all"] = (sum(x for x, _ in found.values()), sum(x for _, x in found.values()))
    for name, (whole, device) in found.items():
        lines.append(f"  {name:<20} {_size(whole):>12} {_size(device):>12} a device")
    return [*lines, "Activations and temporaries of the programs come on top."]


def _size(number: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << power:
            return f"{number / (1 << power):.2f} {unit}"
    return f"{number} B"
