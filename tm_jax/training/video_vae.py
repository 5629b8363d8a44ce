"""Stage `vae` of presets with the small autoencoder: it learns from pixels alone.

A batch is clips of a reference picture and frames, nothing else. Pixels that differ from the
reference weigh more, and more again those that the moved picture misses, such as an open mouth;
the flow also has a loss of its own, on the picture that it moves.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import pathlib
from typing import Any

import grain
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.checkpoints import small_vae
from tm_jax.configs import presets
from tm_jax.core import pixels as pixels_lib
from tm_jax.data import frame_store
from tm_jax.models.vae.small import config as config_lib
from tm_jax.models.vae.small import motion
from tm_jax.models.vae.small import network
from tm_jax.nn import storage
from tm_jax.parallel import rules
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import vae_measures
from tm_jax.training import vae_start

HELD_OUT = "held_out"  # Subfolder of clips that are measured and not trained on.
_MEASURED = 16  # Held-out clips in a measurement.
_SHOWN = 6  # Of them on a contact sheet.
_STATISTICS_SEED, _START_SEED = 1 << 20, 1 << 21


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Settings of the stage.

    Attributes:
      path: Folder of clips (`data/frame_store.py`): `held_out` in it is measured, all its other
        subfolders are trained on.
      batch: Clips per step.
      latents: Latent frames per clip.
      side: Side of random crops in pixels, a multiple of 32; None for whole frames. Crops hold
        most of what moves at less cost; the last steps take whole frames.
      motion_channels: Latent channels that start as components of measured motion, the others
        as those of what it leaves unexplained (`vae_start`); 0: a random start.
      moving_weight: Extra weight of a pixel that differs from the reference by 0.25 or more.
      unseen_weight: Extra weight of a pixel where the moved picture is as wrong: what the
        reference does not show. Few pixels, but lips, teeth and lids are among them. It grows
        with what the flow explains; the mean weight stays, and with it the balance with the
        terms below.
      corner: Errors below this count as squares (rounded L1).
      edge_weight: Weight of the error of pixel differences, which keeps lines sharp.
      steady_weight: Weight of the error of differences from frame to frame, also from the last of
        one latent to the first of the next: what is off by a little does not jump there.
      flow_weight: Weight of the error of the moved picture.
      pooled_weight: Weight of the same at a quarter and a sixteenth of the resolution.
      motion_weight: Weight of the difference between the flow and the motion measured in closed
        form (`vae/small/motion.py`), which the flow learns from first.
      noise: Largest noise on latents, in standard deviations of a channel.
      decoder_only: Whether encoder, features of the picture and statistics stay those of the
        weights to start from, so that a transformer of these latents stays valid.
      optimizer: Optimiser. The constant part of its schedule does not depend on the length of
        the run, so a run can be extended from a checkpoint of it.
    """

    path: str = ""
    batch: int = 3
    latents: int = 2
    side: int | None = 192
    motion_channels: int = 28
    moving_weight: float = 8.0
    unseen_weight: float = 16.0
    corner: float = 0.2
    edge_weight: float = 0.5
    steady_weight: float = 0.5
    flow_weight: float = 0.2
    pooled_weight: float = 0.25
    motion_weight: float = 0.05
    noise: float = 0.1
    decoder_only: bool = False
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=8e-4, schedule="wsd", decay_fraction=0.8, final_fraction=0.0, muon=True,
        beta2=0.99, ema_decay=0.998,
    )

    def __post_init__(self) -> None:
        if self.batch < 1 or self.latents < 1:
            raise ValueError(
                f"batch and latents must be at least 1, got {self.batch} and {self.latents}."
            )


def _apply(model: network.SmallVAE, params: dict, method: str, *args: Any) -> Any:
    """What a method of the model returns."""
    return model.apply({"params": params}, *args, method=method)


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
    state = _apply(model, params, "look", picture)
    z = _apply(model, params, "encode_raw", frames, state)
    keys = jax.random.split(key)
    spread = jax.lax.stop_gradient(jnp.std(z, (0, 1, 2, 3)))
    level = config.noise * jax.random.uniform(keys[0], (len(z), 1, 1, 1, 1))
    z = z + level * spread * jax.random.normal(keys[1], z.shape)
    warped, residual, flow = _apply(model, params, "decode_raw", z, state)
    change = jnp.abs(frames - picture[:, None]).mean(-1, keepdims=True)
    weight = 1 + config.moving_weight * jnp.minimum(4 * change, 1)
    error, moved = storage.once(warped + residual - frames), storage.once(warped - frames)
    unseen = jax.lax.stop_gradient(jnp.abs(moved).mean(-1, keepdims=True))
    # At the start the flow shows nothing, and all that moves would be the exception.
    shown = jnp.maximum(1 - jnp.mean(unseen) / (jnp.mean(change) + 1e-6), 0)
    painted = weight + shown * config.unseen_weight * jnp.minimum(4 * unseen, 1)
    painted = storage.once(painted * (jnp.mean(weight) / jnp.mean(painted)))
    total = jnp.mean(painted * _rounded(error, config.corner))
    down = painted[:, :, 1:] * _rounded(jnp.diff(error, axis=2), config.corner)
    right = painted[:, :, :, 1:] * _rounded(jnp.diff(error, axis=3), config.corner)
    total += config.edge_weight * (jnp.mean(down) + jnp.mean(right))
    steps = painted[:, 1:] * _rounded(jnp.diff(error, axis=1), config.corner)
    total += config.steady_weight * jnp.mean(steps)
    total += config.flow_weight * jnp.mean(weight * _rounded(moved, config.corner))
    quarter = _pool(moved, 4)
    for coarse, w in ((quarter, _pool(weight, 4)), (_pool(quarter, 4), _pool(weight, 16))):
        total += config.pooled_weight * jnp.mean(w * _rounded(coarse, 0.3 * config.corner))
    wrong = (flow - motion.estimate(picture, frames)) / motion.PLACE
    places = _pool(weight, motion.PLACE)
    total += config.motion_weight * jnp.mean(places * _rounded(wrong, config.corner))
    psnr = lambda e: -10 * jnp.log10(jnp.mean(jnp.square(e)) / 4)
    return total, {"psnr": psnr(error), "psnr_warped": psnr(moved)}


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
        state = _apply(model, params, "look", clips[:, 0])
        z = _apply(model, params, "encode_raw", clips[:, 1:], state)
        flat = [x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (z, state.coarse)]
        return [(x.mean(0), jnp.square(x).mean(0)) for x in flat]

    sums = [jax.device_get(moments(params, clips)) for clips in batches]
    means = jax.tree.map(lambda *x: np.mean(x, 0), *sums)
    values = dict(params)
    for name, (mean, square) in zip(("latent", "condition"), means):
        values[f"{name}_mean"] = mean
        values[f"{name}_std"] = np.sqrt(np.maximum(square - np.square(mean), 1e-8))
    return values


def stores(path: str) -> tuple[frame_store.FrameStore, frame_store.FrameStore]:
    """The clips to train on and those to measure on, in a folder of stores.

    Raises:
      ValueError: One of them is missing.
    """
    root = pathlib.Path(path)
    if not path or not root.is_dir():
        raise ValueError(
            f"stage vae learns from clips: name their folder with --data, got {path!r} "
            "(experiments/nano/draw_clips.py draws some)."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name != HELD_OUT)
    if not folders:
        raise ValueError(f"{path}: has no folder of clips beside {HELD_OUT}.")
    return frame_store.FrameStore(map(str, folders)), frame_store.FrameStore([str(root / HELD_OUT)])


def _examples(
    clips: frame_store.FrameStore, config: VideoVAEConfig, frames: int, seed: int
) -> grain.IterDataset:
    """Endless batches of varied clips, uint8 [B, 1 + F, H, W, 3]; the position can be stored."""

    def one(index: int) -> np.ndarray:
        rng = np.random.default_rng((seed, int(index)))
        clip = clips.clip(int(rng.integers(len(clips))))
        return np.ascontiguousarray(frame_store.vary(rng, clip, frames, config.side))

    return (
        grain.MapDataset.range(1 << 31)
        .map(one)
        .batch(config.batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def _decoder_is_new(params: dict) -> dict:
    """Groups of the optimiser, of which the decoder's alone learns."""
    return {
        name: jax.tree.map(
            lambda _: optimizer_lib.NEW if name == "decoder" else optimizer_lib.BASE, part
        )
        for name, part in params.items()
    }


def make(
    preset: presets.Preset, config: VideoVAEConfig, weights: str | None = None
) -> loop.Stage:
    """The stage.

    Args:
      preset: Preset with the small autoencoder.
      config: Settings.
      weights: File of the autoencoder to start from.

    Raises:
      ValueError: The preset has another autoencoder, `weights` are of another size, or there
        are no clips.
      FileNotFoundError: No such weights.
    """
    sizes = preset.vae
    if not isinstance(sizes, config_lib.SmallVAEConfig):
        raise ValueError(f"preset {preset.name} has no autoencoder that this stage trains.")
    model = network.SmallVAE(sizes)
    clips, held_out = stores(config.path)
    frames = config.latents * sizes.frames_per_latent
    measured = np.stack([held_out.clip(i) for i in range(min(_MEASURED, len(held_out)))])

    def whole(seed: int, count: int) -> Iterator[np.ndarray]:
        return (clips.batch(seed, i, 8, frames) for i in range(count))

    def linear_code(placement):
        params = jax.jit(lambda key: rules.unbox(network.init(sizes, key)))(jax.random.key(0))
        few, count = list(whole(_START_SEED, 6)), config.motion_channels
        codes = (
            vae_start.measure_motion(sizes, few, count),
            vae_start.measure_change(sizes, few, sizes.latent_channels - count),
        )
        return jax.device_put(vae_start.start(params, sizes, *codes), placement)

    start: Any = linear_code if config.motion_channels else None
    if weights:
        found, start = small_vae.load(weights)
        if found != sizes:
            raise ValueError(f"{weights}: has the sizes {found}, the preset {sizes}.")

    if config.decoder_only and not weights:
        raise ValueError("decoder_only needs weights whose decoder learns on: give --start.")
    optimizer, labels, fixed = config.optimizer, None, list(network.STATISTICS)
    if config.decoder_only:
        # Without a gradient they would still decay.
        optimizer, labels = dataclasses.replace(optimizer, base_factor=0.0), _decoder_is_new
        fixed += [name for name in network.PARTS if name != "decoder"]

    def objective(params, frozen, batch, key):
        params = params | {name: jax.lax.stop_gradient(params[name]) for name in fixed}
        return loss(model, config, params, batch, key)

    def finish(params, frozen):
        # Statistics are set at the end.
        if weights and config.decoder_only:
            return small_vae.load(weights)[1] | {"decoder": params["decoder"]}
        params = jax.device_get(params)
        return with_statistics(model, params, whole(_STATISTICS_SEED, 12))

    def sample(params, frozen, path):
        sheet = vae_measures.preview(model, params, measured[:_SHOWN])
        iio.imwrite(path + ".png", sheet)
        return vae_measures.measure(model, params, measured)

    return loop.Stage(
        name="vae", init=lambda key: network.init(sizes, key), loss=objective, frozen={},
        batches=lambda seed: _examples(clips, config, frames, seed), sample=sample,
        start=start, finish=finish, optimizer=optimizer, labels=labels,
        frames=config.batch * frames,
    )
