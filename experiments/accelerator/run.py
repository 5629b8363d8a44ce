"""Times the student's chunk on this machine's accelerator, with random weights.

  python -m experiments.accelerator.run --presets=nano,wan-1.3b,tm-18b
"""

import functools
import json
import pathlib
import statistics
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.models.dit import causal
from tm_jax.models.dit import conditioning
from tm_jax.models.dit import transformer
from tm_jax.parallel import rules

_PRESETS = flags.DEFINE_list("presets", ["nano", "wan-1.3b", "tm-18b"], "Presets to time.")
_POLICIES = flags.DEFINE_list("policies", list(causal.POLICIES), "Cache policies to time.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed chunks.", lower_bound=1)
_OUT = flags.DEFINE_string(
    "out", str(pathlib.Path(__file__).parent / "results.json"), "JSON to write."
)


def _inputs(preset, batch=1):
    """Random conditioning of one stream, in the preset's dtype."""
    c, frames = preset.dit, preset.timing.latents_per_chunk
    height, width, channels = preset.latent_shape
    keys = iter(jax.random.split(jax.random.key(1), 8))

    def normal(*shape):
        return jax.random.normal(next(keys), (batch, *shape), jnp.dtype(preset.dtype))

    text = None if c.text_width is None else normal(c.text_length, c.text_width)
    image = None if c.image_width is None else normal(c.image_length, c.image_width)
    return {
        "text": text, "image": image, "reference": normal(height, width, channels),
        "condition": normal(frames, height, width, c.condition_channels),
        "windows": normal(frames, c.audio_window, c.audio_feature_width),
    }


def _flops(preset, tokens) -> float:
    """Multiply-adds times two of one pass: matrices of the blocks, and self-attention."""
    c = preset.dit
    matrices = c.num_layers * (6 * c.width**2 + 2 * c.width * c.mlp_width)
    window = tokens * (1 + 2 * preset.timing.latents_per_chunk)
    chunk = tokens * preset.timing.latents_per_chunk
    return 2.0 * chunk * matrices + 4.0 * c.num_layers * chunk * window * c.width


def measure(preset: presets.Preset, policy: str, repeats: int) -> dict:
    """Times chunks of one preset with one cache policy; returns a row of the table."""
    model = transformer.DiT(preset.dit, jnp.dtype(preset.dtype))
    inputs = _inputs(preset)
    @jax.jit
    def weights(key):
        params = rules.unbox(model.init(key, method=transformer.touch)["params"])
        return trees.cast(params, jnp.dtype(preset.dtype))

    params = weights(jax.random.key(0))
    context = jax.jit(
        lambda p: model.apply(
            {"params": p}, inputs["text"], inputs["image"], jnp.ones((1, preset.tokens)),
            method=model.context,
        )
    )(params)
    frames, steps = preset.timing.latents_per_chunk, preset.student.num_steps
    state = jax.jit(
        lambda p: causal.begin(
            model, p, inputs["reference"], inputs["condition"][:, 0], context,
            jax.random.split(jax.random.key(2), 1), frames, steps, policy,
        )
    )(params)

    given = conditioning.Conditioning(
        channels=inputs["condition"], audio=inputs["windows"],
        mode=jnp.ones((1, frames), jnp.int32),
    )

    @functools.partial(jax.jit, donate_argnums=1)
    def chunk(params, state):
        return causal.next_chunk(
            model, params, state, given, context, preset.sigmas, policy,
        )

    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        latents, state = chunk(params, state)
        latents.block_until_ready()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[2:])
    passes = steps + (policy == "clean")
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "preset": preset.name, "policy": policy, "passes": passes,
        "parameters": trees.count(params), "dtype": preset.dtype,
        "compile_s": round(seconds[0], 2), "chunk_ms": round(1e3 * median, 2),
        "slowest_ms": round(1e3 * max(seconds[2:]), 2),
        "real_time_factor": round(median / preset.timing.chunk_s, 4),
        "tflops": round(passes * _flops(preset, preset.tokens) / median / 1e12, 3),
        "peak_gib": None if memory is None else round(memory / 2**30, 2),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    device = jax.devices()[0]
    rows = []
    for name in _PRESETS.value:
        for policy in _POLICIES.value:
            rows.append(measure(presets.get(name), policy, _REPEATS.value))
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "device": device.device_kind, "platform": device.platform,
                "jax": jax.__version__, "rows": rows,
            }
            pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=1) + "\n")
            jax.clear_caches()


if __name__ == "__main__":
    app.run(main)
