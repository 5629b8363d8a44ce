"""Learning the reference-conditioned video autoencoder from pixels: loss, update, statistics.

A batch is clips of a reference picture and frames, nothing else. Pixels that differ from the
reference weigh more; the flow also has a loss of its own, on the picture that it moves.
"""

from collections.abc import Iterable
import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tm_jax.core import pixels as pixels_lib
from tm_jax.evaluation import reconstruction
from tm_jax.models.vae.small import motion
from tm_jax.models.vae.small import network
from tm_jax.parallel import rules

_HEADS = ("flow", "residual", "latent", "condition")  # Last layers: AdamW, not Muon.
_BETA2 = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Settings of the training.

    Attributes:
      batch: Clips per step.
      latents: Latent frames per clip.
      side: Side of random crops in pixels, a multiple of 32; None for whole frames. Crops hold
        most of what moves at half the cost; the last steps take whole frames.
      moving_weight: Extra weight of a pixel that differs from the reference by 0.25 or more.
      corner: Errors below this count as squares (rounded L1).
      edge_weight: Weight of the error of pixel differences, which keeps lines sharp.
      flow_weight: Weight of the error of the moved picture.
      pooled_weight: Weight of the same at a quarter and a sixteenth of the resolution.
      motion_weight: Weight of the difference between the flow and the motion measured in closed
        form (`small_vae.motion`), which the flow learns from first.
      noise: Largest noise on latents, in standard deviations of a channel.
      learning_rate: Peak rate.
      muon: Muon for hidden matrices and AdamW for the rest; else AdamW for all. Muon's own
        products cost as much as the gradient of three whole clips of two latents, so it pays
        with large batches.
      weight_decay: Decoupled decay of the matrices.
      warmup_steps: Linear warm-up.
      clip_norm: Largest global norm of a gradient.
      ema_decay: Decay of the averaged parameters.
    """

    batch: int = 4
    latents: int = 2
    side: int | None = 128
    moving_weight: float = 8.0
    corner: float = 0.1
    edge_weight: float = 0.5
    flow_weight: float = 0.2
    pooled_weight: float = 0.5
    motion_weight: float = 0.2
    noise: float = 0.2
    learning_rate: float = 2e-3
    muon: bool = False
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        if self.batch < 1 or self.latents < 1:
            raise ValueError(
                f"batch and latents must be at least 1, got {self.batch} and {self.latents}."
            )


@flax.struct.dataclass
class TrainState:
    """What a resumed run needs; batches are functions of the step.

    Attributes:
      step: Updates so far, int32 scalar.
      params: Parameters.
      average: Their exponential moving average.
      optimizer: Optimiser state.
    """

    step: jax.Array
    params: dict
    average: dict
    optimizer: optax.OptState


def make_optimizer(config: VideoVAEConfig) -> optax.GradientTransformation:
    """The optimiser with its peak rates; the schedule (`rate`) scales its updates."""

    def dimensions(params):
        def one(path, x):
            muon = x.ndim == 2 and path[-2].key not in _HEADS
            return optax.contrib.MuonDimensionNumbers() if muon else None

        return jax.tree_util.tree_map_with_path(one, params)

    def matrices(params):
        return jax.tree.map(lambda x: x.ndim == 2, params)

    if config.muon:
        update = optax.contrib.muon(
            config.learning_rate, weight_decay=config.weight_decay, adam_b2=_BETA2,
            muon_weight_dimension_numbers=dimensions, consistent_rms=0.2, ns_steps=4,
        )
    else:
        update = optax.adamw(
            config.learning_rate, b2=_BETA2, weight_decay=config.weight_decay, mask=matrices
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def rate(step: int, steps: int, decay_steps: int, warmup_steps: int) -> float:
    """Warm-up, constant, linear decay to zero over the last `decay_steps`: factor of all rates.

    The constant part does not depend on `steps`, so a run can be extended from any checkpoint of
    it.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / decay_steps if decay_steps else 1.0
    return warm * min(1.0, max(0.0, left))


def create(model: network.SmallVAE, config: VideoVAEConfig, key: jax.Array) -> TrainState:
    """The state before the first update."""

    def build(key):
        params = rules.unbox(network.init(model.config, key))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params,
            average=jax.tree.map(jnp.copy, params),
            optimizer=make_optimizer(config).init(params),
        )

    return jax.jit(build)(key)


def restart(state: TrainState, params: dict) -> TrainState:
    """A fresh state with other parameters (`vae_start`)."""
    return state.replace(params=params, average=jax.tree.map(jnp.copy, params))


def _rounded(x, corner):
    """L1 with a rounded corner, zero at zero."""
    return jnp.sqrt(jnp.square(x) + corner**2) - corner


def _pool(x, side):
    *lead, h, w, c = x.shape
    return x.reshape(*lead, h // side, side, w // side, side, c).mean((-4, -2))


def loss(
    model: network.SmallVAE, config: VideoVAEConfig, params: dict, clips: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict]:
    """Error of the reconstruction of clips.

    Args:
      model: The autoencoder.
      config: Settings.
      params: Its parameters.
      clips: uint8 [B, 1 + F, H, W, 3]; frame 0 is the reference picture.
      key: Random key of the noise on latents.

    Returns:
      The loss, and metrics: psnr, psnr_warped (of the moved picture alone), both in dB.
    """
    clips = pixels_lib.to_float(clips)
    picture, frames = clips[:, 0], clips[:, 1:]
    variables = {"params": params}
    state = model.apply(variables, picture, method=model.look)
    z = model.apply(variables, frames, state, method=model.encode_raw)
    keys = jax.random.split(key)
    spread = jax.lax.stop_gradient(jnp.std(z, (0, 1, 2, 3)))
    level = config.noise * jax.random.uniform(keys[0], (len(z), 1, 1, 1, 1))
    z = z + level * spread * jax.random.normal(keys[1], z.shape)
    warped, residual, flow = model.apply(variables, z, state, method=model.decode_raw)
    change = jnp.abs(frames - picture[:, None]).mean(-1, keepdims=True)
    weight = 1 + config.moving_weight * jnp.minimum(4 * change, 1)
    error, moved = warped + residual - frames, warped - frames
    total = jnp.mean(weight * _rounded(error, config.corner))
    down = weight[:, :, 1:] * _rounded(jnp.diff(error, axis=2), config.corner)
    right = weight[:, :, :, 1:] * _rounded(jnp.diff(error, axis=3), config.corner)
    total += config.edge_weight * (jnp.mean(down) + jnp.mean(right))
    total += config.flow_weight * jnp.mean(weight * _rounded(moved, config.corner))
    quarter = _pool(moved, 4)
    for coarse, w in ((quarter, _pool(weight, 4)), (_pool(quarter, 4), _pool(weight, 16))):
        total += config.pooled_weight * jnp.mean(w * _rounded(coarse, 0.3 * config.corner))
    wrong = (flow - motion.estimate(picture, frames)) / motion.PLACE
    places = _pool(weight, motion.PLACE)
    total += config.motion_weight * jnp.mean(places * _rounded(wrong, config.corner))
    psnr = lambda e: -10 * jnp.log10(jnp.mean(jnp.square(e)) / 4)
    return total, {"psnr": psnr(error), "psnr_warped": psnr(moved)}


def make_step(model: network.SmallVAE, config: VideoVAEConfig):
    """Compiles one update.

    Returns:
      Function (state, clips, key, rate) -> (state, metrics); the old state is donated. `rate`
      scales the update, see `rate`.
    """
    optimizer = make_optimizer(config)

    def step(state, clips, key, factor):
        key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(
            lambda params: loss(model, config, params, clips, key), has_aux=True
        )
        (value, metrics), grads = gradient(state.params)
        for name in network.STATISTICS:
            grads[name] = jnp.zeros_like(grads[name])
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        for name in network.STATISTICS:
            updates[name] = jnp.zeros_like(updates[name])
        updates = jax.tree.map(lambda u: factor * u, updates)
        params = optax.apply_updates(state.params, updates)
        count = state.step.astype(jnp.float32) + 1
        decay = jnp.minimum(config.ema_decay, (1 + count) / (10 + count))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.average, params)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(grads), **metrics}
        return TrainState(
            step=state.step + 1, params=params, average=average, optimizer=optimizer_state
        ), metrics

    return jax.jit(step, donate_argnums=0)


def with_statistics(
    model: network.SmallVAE, params: dict, batches: Iterable[np.ndarray]
) -> dict:
    """Parameters whose latents and conditions have mean 0 and variance 1 per channel.

    Args:
      model: The autoencoder.
      params: Trained parameters; what statistics they hold is not used.
      batches: Clips, uint8 [B, 1 + F, H, W, 3].

    Returns:
      The same tree with the four statistics set.
    """

    @jax.jit  # Parameters are arguments: constants of a program would be folded.
    def moments(params, clips):
        clips = pixels_lib.to_float(clips)
        variables = {"params": params}
        state = model.apply(variables, clips[:, 0], method=model.look)
        z = model.apply(variables, clips[:, 1:], state, method=model.encode_raw)
        flat = [x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (z, state.coarse)]
        return [(x.mean(0), jnp.square(x).mean(0)) for x in flat]

    sums = [jax.device_get(moments(params, clips)) for clips in batches]
    means = jax.tree.map(lambda *x: np.mean(x, 0), *sums)
    values = dict(params)
    for name, (mean, square) in zip(("latent", "condition"), means):
        values[f"{name}_mean"] = mean
        values[f"{name}_std"] = np.sqrt(np.maximum(square - np.square(mean), 1e-8))
    return values


def measure(model: network.SmallVAE, params: dict, clips: np.ndarray, batch: int = 4) -> dict:
    """Reconstruction of clips, without noise.

    Args:
      model: The autoencoder.
      params: Its parameters.
      clips: uint8 [N, 1 + F, H, W, 3].
      batch: Clips at once.

    Returns:
      psnr and psnr_moving in dB, the same of the still picture and of the moved picture alone
      (see `evaluation.reconstruction`), and ssim.
    """
    run = jax.jit(lambda params, clips: _errors(model, params, pixels_lib.to_float(clips)))
    parts = [
        jax.device_get(run(params, clips[at : at + batch])) for at in range(0, len(clips), batch)
    ]
    sums = jax.tree.map(lambda *x: np.concatenate(x).sum(0), *parts)
    values = {}
    for name in ("", "_warped", "_still"):
        for where in ("", "_moving"):
            square = sums[f"square{name}{where}"]
            values[f"psnr{name}{where}"] = float(
                reconstruction.psnr(square, sums[f"count{where}"])
            )
    values["ssim"] = float(sums["ssim"] / len(clips))
    return values


def _errors(model, params, clips):
    """Squared errors of a batch by name, and the numbers of pixels, each [B]."""
    picture, frames = clips[:, 0], clips[:, 1:]
    variables = {"params": params}
    state = model.apply(variables, picture, method=model.look)
    z = model.apply(variables, frames, state, method=model.encode_raw)
    warped, residual, _ = model.apply(variables, z, state, method=model.decode_raw)
    still = jnp.broadcast_to(picture[:, None], frames.shape)
    made = {"": jnp.clip(warped + residual, -1, 1), "_warped": warped, "_still": still}
    mask = reconstruction.moving(frames, picture)
    values = {}
    for name, video in made.items():
        values[f"square{name}"], values["count"] = reconstruction.squared_error(video, frames)
        both = reconstruction.squared_error(video, frames, mask)
        values[f"square{name}_moving"], values["count_moving"] = both
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    similar = reconstruction.ssim(flat(made[""]), flat(frames))
    values["ssim"] = similar.reshape(frames.shape[:2]).mean(1)
    return values


def preview(model: network.SmallVAE, params: dict, clips: np.ndarray) -> np.ndarray:
    """A contact sheet: every clip as two rows, truth above reconstruction; reference first.

    Args:
      model: The autoencoder.
      params: Its parameters.
      clips: uint8 [N, 1 + F, H, W, 3].

    Returns:
      uint8 [2 N H, 4 W, 3].
    """
    shown = np.linspace(1, clips.shape[1] - 1, 3).astype(int)
    made = jax.jit(lambda params, x: pixels_lib.to_uint8(
        model.apply({"params": params}, pixels_lib.to_float(x))
    ))
    rows = []
    for clip in clips:
        again = np.asarray(made(params, clip[None]))[0]
        for video in (clip, again):
            rows.append(np.concatenate([video[0], *video[shown]], 1))
    return np.concatenate(rows)
