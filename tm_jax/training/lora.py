"""Low-rank adaptation of a transformer's matrices (LoRA, Hu et al. 2021, arXiv 2106.09685).

A matrix W of the base stays as it is; what learns are two narrow factors of its change,
W + alpha / rank * A B. The networks of a stage share one frozen base, so that only factors have
an optimiser, an average and a critic of their own. The sum is made anew in every update and
rounded to the dtype of the base, as master weights in float32 are for a pass in bfloat16.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from tm_jax.checkpoints import files
from tm_jax.core import axes
from tm_jax.core import trees
from tm_jax.training import groups

BASE = "base"  # Name of the frozen base in `loop.Stage.frozen`.
_A, _B, _KERNEL = "lora_a", "lora_b", "kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What is adapted.

    Attributes:
      rank: Rank of the change of a matrix; 0: no adaptation, every parameter learns itself.
      alpha: The change is alpha / rank * A B; None: that factor is 1.
      targets: Regular expression that finds the modules whose matrices are adapted, in names
        as `blocks_3/cross/q`.
      new_in_full: Whether layers that published weights lack (`groups.NEW`) learn in full
        instead of by factors.
    """

    rank: int = 0
    alpha: float | None = None
    targets: str = r"^(blocks_\d+|audio_projection|partner_projection)/"
    new_in_full: bool = False

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, got {self.rank}.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets is no regular expression: {error}.") from None

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@flax.struct.dataclass
class Adapted:
    """What a stage with adapters publishes.

    Attributes:
      adapter: Factors, and layers that learnt in full, in names of the base; factors are
        `lora_a` [in, rank] and `lora_b` [rank, out] beside the name of their `kernel`.
      params: The whole transformer with them in its matrices, float32.
    """

    adapter: dict
    params: dict


def init(config: LoraConfig, base: Callable) -> Callable:
    """Initial adapters: A random, B zero, so that nothing changes yet.

    Args:
      config: What is adapted.
      base: Function (key) -> boxed parameters of the transformer.

    Returns:
      Function (key) -> boxed adapters.

    Raises:
      ValueError: A rank above the size of a matrix, or nothing is adapted.
    """
    boxes = _flatten(jax.eval_shape(base, jax.random.key(0)))
    full = _learns_in_full(config, boxes)
    adapted = [
        name for name in boxes if name not in full
        and name.endswith("/" + _KERNEL) and re.search(config.targets, _module(name))
    ]
    if not adapted:
        raise ValueError(f"lora.targets={config.targets!r} finds no matrix of the transformer.")
    for name in adapted:
        shape = nn.meta.unbox(boxes[name]).shape
        if config.rank > min(shape):
            raise ValueError(
                f"lora.rank={config.rank} must be at most {min(shape)}, the smaller side of "
                f"{name} {shape}."
            )

    def make(key):
        found = {}
        for index, name in enumerate(adapted):
            rows, columns = nn.meta.unbox(boxes[name]).shape
            a = jax.random.normal(jax.random.fold_in(key, index), (rows, config.rank))
            b = jnp.zeros((config.rank, columns))
            of_a, of_b = _axes(boxes[name])
            found[f"{_module(name)}/{_A}"] = _box(a * rows**-0.5, of_a)
            found[f"{_module(name)}/{_B}"] = _box(b, of_b)
        if full:
            values = _flatten(base(key))
            found |= {name: values[name] for name in sorted(full)}
        return trees.unflatten(found)

    return make


def merge(adapter: Any, base: Any, config: LoraConfig, dtype: Any = None) -> Any:
    """The transformer's parameters with adapters in them.

    Args:
      adapter: What learns, as `init` makes it, without boxes.
      base: Frozen parameters.
      config: What is adapted.
      dtype: Dtype of the result; by default that of each parameter of the base.
    """
    flat, merged = trees.flatten(adapter), {}
    for name, value in trees.flatten(base).items():
        a = flat.get(f"{_module(name)}/{_A}") if name.endswith("/" + _KERNEL) else None
        if a is not None:
            b = flat[f"{_module(name)}/{_B}"]
            change = config.scale * (a @ b)
            merged[name] = (value.astype(jnp.float32) + change).astype(dtype or value.dtype)
        else:
            merged[name] = flat.get(name, value).astype(dtype or value.dtype)
    return trees.unflatten(merged)


def labels(adapter: Any) -> Any:
    """Groups of `optimizer_lib.OptimizerConfig`: factors are "base", full layers "new"."""

    def label(path, leaf):
        del leaf
        return groups.BASE if trees.key_name(path[-1]) in (_A, _B) else groups.NEW

    return jax.tree_util.tree_map_with_path(label, adapter)


def adapt(stage: Any, config: LoraConfig, base: Any, start: Any = None) -> Any:
    """A stage of which adapters learn instead of the parameters themselves.

    Args:
      stage: `loop.Stage` of a transformer. The base of a critic is `frozen["teacher"]`.
      config: What is adapted; with rank 0 the stage comes back as it is.
      base: Frozen parameters that the stage begins with: device arrays without boxes. Those
        of `frozen["teacher"]` take no second place.
      start: Adapters to go on from, as of `loop.Stage`; by default those that change nothing.

    Returns:
      The stage; its `finish` gives `Adapted`.

    Raises:
      ValueError: See `init`.
    """
    if not config.rank:
        return stage
    learns = init(config, stage.init)

    def merged(adapter, frozen, dtype=None):
        whole = jax.jit(lambda a, b: merge(a, b, config, dtype), out_shardings=jax.tree.map(
            lambda x: x.sharding, frozen[BASE]
        ))  # fmt: skip
        return whole(adapter, frozen[BASE])

    def loss(adapter, frozen, batch, key):
        seen = frozen
        if stage.critic is not None:
            critic = merge(frozen["critic"], frozen["teacher"], config)
            seen = {**frozen, "critic": critic}
        return stage.loss(merge(adapter, frozen[BASE], config), seen, batch, key)

    def critic_loss(adapter, frozen, batch, key):
        seen = {**frozen, "student": merge(frozen["student"], frozen[BASE], config)}
        return stage.critic.loss(merge(adapter, frozen["teacher"], config), seen, batch, key)

    critic = stage.critic
    if critic is not None:
        critic = dataclasses.replace(
            critic, init=learns, loss=critic_loss, labels=labels,
            start=_unchanged(learns, stage.frozen["teacher"]),
        )
    return dataclasses.replace(
        stage, init=learns, loss=loss, critic=critic, labels=labels,
        frozen={**stage.frozen, BASE: base},
        start=_unchanged(learns, base) if start is None else start,
        sample=lambda adapter, frozen, path: stage.sample(merged(adapter, frozen), frozen, path),
        finish=lambda adapter, frozen: Adapted(
            adapter=adapter,
            params=stage.finish(merged(adapter, frozen, jnp.float32), frozen),
        ),
    )


def read(path: str, config: LoraConfig, base: Callable) -> dict:
    """Adapters of a file that a stage has published.

    Args:
      path: The file.
      config: What is adapted.
      base: Function (key) -> boxed parameters of the transformer.

    Returns:
      Host arrays, as the start of `adapt`.

    Raises:
      ValueError: The file holds adapters of other settings.
    """
    found, wanted = files.facts(path), facts(config)
    different = {name: found.get(name) for name in wanted if found.get(name) != wanted[name]}
    if different:
        raise ValueError(
            f"{path} was trained with {different}, not with "
            f"{ {name: wanted[name] for name in different} }; set lora as it was there."
        )
    made = jax.eval_shape(lambda key: nn.meta.unbox(init(config, base)(key)), jax.random.key(0))
    return files.load(path, made)


def facts(config: LoraConfig) -> dict[str, str]:
    """What stands in the header of an adapter's file."""
    values = dataclasses.asdict(config) | {"alpha": config.scale * config.rank}
    return {f"lora_{name}": str(value) for name, value in values.items()}


def _unchanged(learns: Callable, base: Any) -> Callable:
    """Function (shardings) -> adapters with which the base is as it was."""

    def make(shardings):
        made = jax.jit(lambda key: nn.meta.unbox(learns(key)), out_shardings=shardings)
        found, values = trees.flatten(made(jax.random.key(0))), trees.flatten(base)
        for name in found.keys() & values.keys():  # Copies, which a step may overwrite.
            place = found[name].sharding
            found[name] = jax.jit(lambda x: x.astype(jnp.float32) + 0, out_shardings=place)(
                values[name]
            )
        return trees.unflatten(found)

    return make


def _learns_in_full(config: LoraConfig, boxes: dict) -> set[str]:
    if not config.new_in_full:
        return set()
    found = groups.groups(trees.unflatten({name: nn.meta.unbox(x) for name, x in boxes.items()}))
    return {name for name, label in trees.flatten(found).items() if label == groups.NEW}


def _flatten(boxed: Any) -> dict[str, Any]:
    """Like `trees.flatten`, the boxes left as they are."""

    return trees.flatten(boxed, lambda x: isinstance(x, nn.meta.AxisMetadata))


def _module(name: str) -> str:
    return name.rpartition("/")[0]


def _axes(kernel: Any) -> tuple[tuple, tuple]:
    """Logical axes of A and B, so that both are split over as many devices as the kernel."""
    rows, columns = kernel.names if isinstance(kernel, nn.LogicallyPartitioned) else (None, None)
    return (
        (rows, None if rows == axes.EMBED else axes.EMBED),
        (None if columns == axes.EMBED else axes.EMBED, columns),
    )


def _box(value: jax.Array, names: tuple) -> Any:
    return nn.LogicallyPartitioned(value, names)
