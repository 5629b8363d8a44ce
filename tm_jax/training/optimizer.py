"""Optimiser of every stage: clipped gradients, schedules by name, parameter groups."""

from collections.abc import Callable, Hashable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tm_jax.parallel import rules

SCHEDULES = ("constant", "cosine", "wsd")
# Groups of parameters: what a published checkpoint fills, and what was added to it.
BASE, NEW = "base", "new"
_MUON_RMS = 0.2  # Of an update, so that one learning rate suits both (Liu et al. 2025).


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser settings of one network. A step is an update, of `accumulate` micro-batches.

    Attributes:
      learning_rate: Peak learning rate.
      schedule: After the warm-up, "constant"; "cosine" decay; or "wsd" (warmup-stable-decay,
        MiniCPM, arXiv 2404.06395): constant, and linear decay at the end.
      warmup_steps: Linear warm-up.
      decay_fraction: Part of the run over which "wsd" decays.
      final_fraction: Learning rate at the last step, as a fraction of the peak; "constant"
        has no use for it.
      base_factor: Factor on the learning rate of the group "base" of `labels`.
      base_from_step: Step at which the group "base" starts to learn, with a warm-up of its
        own; until then its parameters stay as they are.
      muon: Muon (Jordan et al. 2024; momentum with orthogonalised updates) for parameters of
        two axes and AdamW for the rest, instead of AdamW for all.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      weight_decay: Decoupled decay of matrices; vectors are not decayed.
      moment_dtype: Dtype of the first moment, "float32" or "bfloat16", which saves 2 bytes for
        every parameter; the second moment stays float32.
      clip_norm: Largest global norm of a gradient, of all groups that learn.
      accumulate: Micro-batches per update.
      ema_decay: Decay of the averaged parameters that are sampled and shipped.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 50
    decay_fraction: float = 0.2
    final_fraction: float = 0.05
    base_factor: float = 1.0
    base_from_step: int = 0
    muon: bool = False
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    moment_dtype: str = "float32"
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.995

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}."
            )
        if self.moment_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"moment_dtype must be float32 or bfloat16, got {self.moment_dtype!r}."
            )
        for name in ("decay_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}.")
        for name, least in (("accumulate", 1), ("base_from_step", 0), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}."
                )


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of every step of a run of `steps`; what follows has the last one."""
    peak, steps = config.learning_rate, max(1, steps)
    warmup = min(config.warmup_steps, max(1, steps // 2))
    end, rest = peak * config.final_fraction, max(1, steps - warmup)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, warmup + rest, end)
    parts, borders = [optax.linear_schedule(0.0, peak, warmup)], [warmup]
    parts.append(optax.constant_schedule(peak))
    if config.schedule == "wsd":
        decay = min(rest, max(1, round(config.decay_fraction * steps)))
        parts.append(optax.linear_schedule(peak, end, decay))
        borders.append(steps - decay)
    return optax.join_schedules(parts, borders)


def _update(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    adamw = optax.adamw(
        rate, config.beta1, config.beta2, weight_decay=config.weight_decay,
        mu_dtype=config.moment_dtype,
        mask=lambda params: jax.tree.map(lambda x: jnp.ndim(x) > 1, params),
    )
    if not config.muon:
        return adamw
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=4, mu_dtype=config.moment_dtype, weight_dimension_numbers=_as_they_are
        ),
        optax.stateless(_scale_by_shape),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    # Labels without boxes, so that what is masked has none left either.
    return optax.multi_transform({"muon": muon, "adamw": adamw}, lambda params: jax.tree.map(
        lambda x: "muon" if jnp.ndim(x) == 2 else "adamw", rules.unbox(params)
    ))


def _as_they_are(updates: optax.Updates) -> optax.Params:
    """All updates are matrices."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)


def _scale_by_shape(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
    """Orthogonal matrices scaled to entries of the size that AdamW's updates have."""
    return jax.tree.map(lambda x: _MUON_RMS * max(x.shape) ** 0.5 * x, updates)


def make(
    config: OptimizerConfig, steps: int, labels: Callable | None = None
) -> optax.GradientTransformation:
    """The optimiser for a run of `steps` updates.

    Args:
      config: Settings.
      steps: Updates.
      labels: Function (parameters without boxes) -> tree of "base" or "new" for every
        parameter; by default all parameters are one group, which learns from the start.

    Raises:
      ValueError: Settings of groups without `labels`, or nothing is left to learn.
    """
    clip = optax.clip_by_global_norm(config.clip_norm)
    rate = schedule(config, steps)
    first = config.base_from_step
    if labels is None:
        if first or config.base_factor != 1:
            raise ValueError(
                "base_factor and base_from_step need a stage whose parameters have groups; "
                "leave them at 1 and 0 here."
            )
        return optax.chain(clip, _update(config, rate))
    if first and first >= steps:
        raise ValueError(
            f"base_from_step={first} must be below the {steps} steps of the run."
        )
    slow = schedule(config, steps - first)  # Counted from the step at which they start.
    groups: dict[Hashable, optax.GradientTransformation] = {
        NEW: _update(config, rate),
        BASE: _from_step(_update(config, lambda count: config.base_factor * slow(count)), first),
    }
    parts = [clip, optax.multi_transform(groups, _checked(labels))]
    if first:
        # What does not learn yet has no part in the norm.
        identity: dict[Hashable, optax.GradientTransformation] = {
            NEW: optax.identity(), BASE: _from_step(optax.identity(), first)
        }
        parts.insert(0, optax.multi_transform(identity, _checked(labels)))
    return optax.chain(*parts)


def _from_step(inner, first: int) -> optax.GradientTransformation:
    """`inner` from step `first` on; no updates, and its own state at rest, before."""
    if not first:
        return inner

    def learns(step: jax.typing.ArrayLike, **unused: Any) -> jax.Array:
        return jnp.asarray(step) >= first

    return optax.conditionally_mask(inner, learns)


def _checked(labels: Callable) -> Callable:
    """`labels` for parameters with or without boxes; a wrong label is an error."""

    def found(params):
        tree = labels(rules.unbox(params))
        wrong = set(jax.tree.leaves(tree)) - {BASE, NEW}
        if wrong:
            raise ValueError(f"labels must be {BASE!r} or {NEW!r}, got {sorted(wrong)}.")
        return tree

    return found
