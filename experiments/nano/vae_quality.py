"""Measures the video autoencoder of `nano` on held-out clips; writes JSON.

  python experiments/nano/vae_quality.py --weights=/tmp/vae/vae.safetensors \
      --clips=/tmp/clips/held_out --out=vae_quality.json

PSNR of whole frames and of the pixels that move (any colour differs from the reference picture by
more than 0.1 in -1..1), the same of the still picture and of the warped picture alone, SSIM,
latent statistics, parameters, and the time to decode a chunk of 12 frames.
"""

import json
import pathlib
import statistics
import sys
import time

from absl import app
from absl import flags
from absl import logging
import imageio.v3 as iio
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tm_jax.checkpoints import small_vae as weights
from tm_jax.core import pixels as pixels_lib  # noqa: E402
from tm_jax.core import trees  # noqa: E402
from tm_jax.data import frame_store  # noqa: E402
from tm_jax.models.vae.small import network
from tm_jax.training import vae_measures  # noqa: E402

_WEIGHTS = flags.DEFINE_string("weights", None, "Safetensors file.", required=True)
_CLIPS = flags.DEFINE_string("clips", None, "Store of held-out clips.", required=True)
_OUT = flags.DEFINE_string("out", "vae_quality.json", "JSON file to write.")
_PREVIEW = flags.DEFINE_string("preview", None, "PNG to write: truth above reconstruction.")
_COUNT = flags.DEFINE_integer("count", 48, "Clips to measure.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 30, "Timed chunks.", lower_bound=2)
_LATENTS = 3  # Of a chunk.


def latents(model: network.SmallVAE, params: dict, clips: np.ndarray) -> dict:
    """Statistics of normalised latents and conditions over clips [N, 1 + F, H, W, 3]."""
    encode = jax.jit(lambda params, x: (
        model.apply({"params": params}, pixels_lib.to_float(x), method=model.encode),
        model.apply({"params": params}, pixels_lib.to_float(x[:, 0]), method=model.begin)[0].condition,
    ))
    both = [jax.device_get(encode(params, clip[None])) for clip in clips]
    z, condition = (np.concatenate(x) for x in zip(*both))
    moving, still = z[:, 1:], z[:, :1]
    change = np.square(moving - still).mean()
    return {
        "latent_mean_largest": float(np.abs(moving.mean((0, 1, 2, 3))).max()),
        "latent_std_smallest": float(moving.std((0, 1, 2, 3)).min()),
        "latent_std_largest": float(moving.std((0, 1, 2, 3)).max()),
        "latent_largest": float(np.abs(moving).max()),
        "change_from_reference_variance": float(change),
        "change_between_latents_variance": float(np.square(np.diff(moving, axis=1)).mean()),
        "condition_std_smallest": float(condition.std((0, 1, 2)).min()),
        "condition_std_largest": float(condition.std((0, 1, 2)).max()),
    }


def decode_ms(model: network.SmallVAE, params: dict, picture: np.ndarray, runs: int) -> dict:
    """Wall time of decoding one chunk of a stream, in milliseconds."""
    _, state = model.apply({"params": params}, pixels_lib.to_float(picture[None]), method=model.begin)
    decode = jax.jit(lambda params, z, s: model.apply(
        {"params": params}, z, s, method=model.decode_chunk
    ))
    shape = (1, _LATENTS, *state.previous.shape[2:])
    z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        _, state = jax.block_until_ready(decode(params, z, state))
        times.append(1000 * (time.perf_counter() - start))
    times = sorted(times[2:])  # The first ones compile and warm up.
    return {
        "decode_ms_smallest": times[0], "decode_ms_median": statistics.median(times),
        "decode_ms_p95": times[int(0.95 * (len(times) - 1))],
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}.")
    config, params = weights.load(_WEIGHTS.value)
    model = network.SmallVAE(config)
    store = frame_store.FrameStore([_CLIPS.value])
    clips = np.stack([store.clip(i) for i in range(min(_COUNT.value, len(store)))])
    values = {
        "clips": len(clips), "frames": clips.shape[1] - 1,
        **vae_measures.measure(model, params, clips), **latents(model, params, clips),
        **decode_ms(model, params, clips[0, 0], _RUNS.value),
        "parameters": trees.count(params),
    }
    values = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    pathlib.Path(_OUT.value).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if _PREVIEW.value:
        iio.imwrite(_PREVIEW.value, vae_measures.preview(model, params, clips[:8]))
    logging.info("%s", json.dumps(values))


if __name__ == "__main__":
    app.run(main)
