"""What a stream costs on one device, with random weights that are drawn there."""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import streams
from tm_jax.nn import attention
from tm_jax.nn import quantization
from tm_jax.parallel import rules
from tm_jax.planning import flops

KERNELS = {"gpu": ("xla", "cudnn"), "tpu": ("xla", "splash"), "cpu": ("xla",)}
_SCALE = 0.02  # Of random weights; norms get 1.
_STEPS = 40.0  # Standard deviation of those of eight bits, in their units.


def median_ms(work, repeats: int) -> tuple[float, float]:
    """Median and longest time of `work`, which waits for its result, after two runs before."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:]), 1e3 * max(seconds[2:])


def peak(dtype: str) -> float:
    """TFLOP/s of a large product, the best of a few sizes."""
    best, platform = 0.0, jax.default_backend()
    for size in (4096, 8192) if platform != "cpu" else (1024, 2048):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda a, b: a @ b)
        spent, _ = median_ms(lambda: product(x, x).block_until_ready(), 5)
        best = max(best, 2 * size**3 / spent / 1e9)
    return best


def draw(functions: streams.StreamFunctions) -> dict:
    """Random parameters of all parts on the first device, as a stream has them."""
    found = {}
    for index, (part, boxed) in enumerate(functions.boxed().items()):
        shapes = rules.unbox(boxed)
        own = part == "audio" or part in functions.components.vae.parts
        dtype = jnp.float32 if own or part == streams.CONSTANTS else functions.preset.dtype

        @jax.jit
        def make(key, shapes=shapes, dtype=dtype):
            made = {
                name: _random(name, x, jax.random.fold_in(key, i), dtype)
                for i, (name, x) in enumerate(trees.flatten(shapes).items())
            }
            return jax.tree.unflatten(jax.tree.structure(shapes), list(made.values()))

        found[part] = make(jax.random.key(index))
    return found


def _random(name: str, shape: jax.ShapeDtypeStruct, key: jax.Array, dtype) -> jax.Array:
    """A parameter: about unit gain, whatever it is stored in."""
    if name.endswith(quantization.SCALE):
        return jnp.full(shape.shape, _SCALE / _STEPS, jnp.float32)
    if name.endswith(("scale", "std")):
        return jnp.ones(shape.shape, dtype)
    value = jax.random.normal(key, shape.shape)
    if shape.dtype.itemsize == 1:
        return jnp.clip(_STEPS * value, -127, 127).astype(shape.dtype)
    return (_SCALE * value).astype(dtype)


def _chunk_flops(pipeline: pipeline_lib.Pipeline, arguments: tuple) -> float:
    """Products of the denoising program; counted with XLA's attention, which any device traces."""
    functions = dataclasses.replace(
        pipeline.functions, preset=pipeline.preset.with_execution(attention="xla")
    )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arguments)
    return flops.count(jax.make_jaxpr(functions.denoise)(*shapes).jaxpr).total


def row(
    preset: presets.Preset, params: dict, tiny: bool, repeats: int, fastest: float
) -> dict:
    """Times the programs of one stream; a row of the table."""
    pipeline = pipeline_lib.on_first_device(streams.StreamFunctions(preset, tiny), params)
    rng, timing = np.random.default_rng(0), preset.timing
    picture = rng.integers(0, 256, (1, preset.height, preset.width, 3), np.uint8)
    start, state, decoder = pipeline.begin(picture, np.zeros((1, 2), np.uint32))
    count = pipeline.before + timing.samples_per_chunk + pipeline.after
    samples = rng.standard_normal((1, count)).astype(np.float32)
    windows, voice = pipeline.encode_audio(samples)
    mode = np.ones(voice.shape, np.int32)
    partner = pipeline.encode_partner(samples)
    arguments = (params, state, start, windows, mode, partner)
    work = _chunk_flops(pipeline, arguments)
    held = {"state": state, "decoder": decoder}

    def audio():
        jax.block_until_ready(pipeline.encode_audio(samples))

    def denoise():
        held["latents"], held["state"] = pipeline.denoise(
            held["state"], start, windows, mode, partner
        )
        jax.block_until_ready(held["latents"])

    def decode():
        frames, held["decoder"] = pipeline.decode(held["latents"], held["decoder"])
        frames.block_until_ready()

    began = time.perf_counter()
    denoise()
    compile_s = time.perf_counter() - began
    chunk, slowest = median_ms(denoise, repeats)
    finite = bool(jnp.isfinite(held["latents"]).all())
    times = {"audio_ms": median_ms(audio, repeats)[0], "decode_ms": median_ms(decode, repeats)[0]}
    passes = preset.student.num_steps + (preset.student.policy == "clean")
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    total = chunk + sum(times.values())
    return {
        "preset": preset.name, "layers": preset.dit.num_layers,
        "policy": preset.student.policy, "attention": preset.dit.attention,
        "matrices": preset.dit.matrices,
        "decoder": "tiny" if tiny else "own", "dtype": preset.dtype,
        "parameters": trees.count(params["transformer"]), "passes": passes, "finite": finite,
        "compile_s": round(compile_s, 1), "denoise_ms": round(chunk, 2),
        "pass_ms": round(chunk / passes, 2), "slowest_ms": round(slowest, 2),
        **{name: round(value, 2) for name, value in times.items()},
        "frames_per_s": round(1e3 * timing.frames_per_chunk / total, 2),
        "real_time_factor": round(total / 1e3 / timing.chunk_s, 4),
        "tflops": round(work / chunk / 1e9, 2),
        "utilisation": round(work / chunk / 1e9 / fastest, 3),
        "peak_gib": None if memory is None else round(memory / 2**30, 2),
    }  # fmt: skip


def correctness() -> list[dict]:
    """Attention of this device against the same in float32 on its host's CPU."""
    rows, dtype = [], jnp.bfloat16
    shapes = ((2, 384, 4, 128), (2, 896, 4, 128), (2, 896, 4, 128))
    keys = jax.random.split(jax.random.key(3), 3)
    x = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]
    lengths = jnp.asarray((896, 512))
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        there = [jax.device_put(v, host).astype(jnp.float32) for v in x]
        wanted = np.asarray(attention.attend(*there, lengths=jax.device_put(lengths, host)))
    for name in KERNELS[jax.default_backend()]:
        try:
            run = jax.jit(lambda *x, name=name: attention.attend(*x, lengths=lengths, backend=name))
            found = np.asarray(run(*x).astype(jnp.float32))
        except ValueError as error:
            rows.append({"attention": name, "error": str(error)})
            continue
        difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        rows.append({"attention": name, "largest_relative_difference": difference})
    return rows
