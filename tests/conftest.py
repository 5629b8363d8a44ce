"""What every test shares: eight simulated devices, a compilation cache, random weights."""

import ctypes
import gc
import os
import shutil
import tempfile
import types

# Before jax is imported: tests run on simulated CPU devices wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most tests wait for the compiler rather than for what it makes. The emitters of fused loops
# make faster programs and take it three times as long as the plain ones.
_EMITTERS = "xla_cpu_use_fusion_emitters"
if _EMITTERS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_EMITTERS}=false".strip()

# Equal programs are compiled once per run, by whichever process comes first: what is in the
# environment is shared. A folder that was given keeps them for longer.
_OWN_CACHE = None
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    _OWN_CACHE = tempfile.mkdtemp(prefix="tm_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _OWN_CACHE
os.environ["TM_JAX_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"]

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# A third less time, again of the compiler's.
jax.config.update("jax_disable_most_optimizations", True)

# What a process may hold when a file ends: memory mappings, of which Linux allows 65,530 and a
# compiled program takes several, and memory.
_MAPPINGS = 40000
_RESIDENT = 1.5 * 2**30  # Bytes.

# Files that take longest, those first: what is long and comes last keeps one process waiting.
_LONGEST = (
    "test_walk.py", "training/test_distill_stage.py", "training/test_example_stages.py",
    "training/test_stages.py", "inference/test_pipeline.py", "training/test_speech_stage.py",
    "parallel/test_sequence.py", "training/test_rollouts.py", "parallel/test_sharded_models.py",
    "models/vae/test_wan.py", "training/test_video_vae.py", "inference/test_session.py",
    "inference/test_teacher.py", "models/dit/test_causal_student.py", "inference/test_programs.py",
    "launch/test_weights.py", "browser/test_real_server.py", "browser/test_page.py",
)

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure(config):
    """Removes the cache of this run."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """The longest files first, all others in their order."""
    places = {f"tests/{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def _held():
    """Memory mappings of this process and its resident bytes; zeros where it is not Linux."""
    try:
        with open("/proc/self/maps", "rb") as file:
            count = sum(1 for _ in file)
        with open("/proc/self/statm", "rb") as file:
            return count, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0, 0


@pytest.fixture(scope="module", autouse=True)
def small_process():
    """Forgets compiled programs before they fill the memory or the table of its mappings."""
    yield
    count, resident = _held()
    if count > _MAPPINGS or resident > _RESIDENT:
        jax.clear_caches()
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):  # Of glibc, which keeps what is freed.
            ctypes.CDLL(None).malloc_trim(0)


def random_parameters(shapes, seed=0):
    """Random values for every parameter, also for those that start at zero.

    Zero-initialised layers would hide most mistakes: a test of them could not fail.

    Args:
      shapes: Tree of shapes, with or without flax's boxes.
      seed: Seed.

    Returns:
      The tree without boxes: matrices of about unit gain, scales around one, the rest small.
    """
    from tm_jax.core import trees
    from tm_jax.parallel import rules

    rng = np.random.default_rng(seed)
    flat = {}
    for name, leaf in sorted(trees.flatten(rules.unbox(shapes)).items()):
        value = rng.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim > 1:
            value /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif name.endswith("scale") or name.endswith("std"):
            value = 1 + 0.2 * value
        else:
            value *= 0.1
        flat[name] = jnp.asarray(value, leaf.dtype)
    return trees.unflatten(flat)


def touch(model, x, condition, sigma, mode, text, image, face_mask, windows, pattern):
    """One pass of a transformer through all its inputs; `pattern` serves every layer."""
    from tm_jax.models.dit import conditioning

    given = conditioning.Conditioning(
        channels=condition, audio=windows, mode=mode, face_mask=face_mask, text=text, image=image
    )
    return model(x, sigma, model.embed(given), lambda layer: pattern)


def transformer_inputs(preset, batch, frames, seed=1):
    """Random inputs of a transformer by name, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    c, (height, width, channels) = preset.dit, preset.latent_shape

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    reference = 0.5 * normal(batch, 1, height, width, c.condition_channels)
    return {
        "x": normal(batch, frames, height, width, channels),
        "condition": np.repeat(reference, frames, 1),
        "sigma": rng.uniform(0.1, 1, (batch, frames)).astype(np.float32),
        "mode": rng.integers(0, c.modes, (batch, frames)).astype(np.int32),
        "text": normal(batch, c.text_length, c.text_width),
        "image": normal(batch, c.image_length, c.image_width),
        "face_mask": rng.uniform(0.2, 1, (batch, preset.tokens)).astype(np.float32),
        "windows": normal(batch, frames, c.audio_window, c.audio_feature_width),
    }


@pytest.fixture(scope="session")
def pico():
    """The smallest preset with random weights, and the helpers of this file.

    Attributes: preset, model, boxed (parameter shapes in boxes), params, touch,
    inputs (function), random (function), shapes (function).
    """
    from tm_jax.configs import presets
    from tm_jax.models.dit import transformer

    preset = presets.get("pico")
    boxed = transformer.boxed_shapes(preset.dit)
    return types.SimpleNamespace(
        preset=preset, model=transformer.DiT(preset.dit), boxed=boxed,
        params=random_parameters(boxed), touch=touch, inputs=transformer_inputs,
        random=random_parameters, shapes=transformer.boxed_shapes,
    )


@pytest.fixture(scope="session")
def preset_shapes():
    """Boxed transformer parameter shapes of every preset, by name."""
    from tm_jax.configs import presets
    from tm_jax.models.dit import transformer

    return {name: transformer.boxed_shapes(p.dit) for name, p in presets.PRESETS.items()}
