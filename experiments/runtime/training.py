"""Time of an update of a small preset's stages, and what of it the machine could do.

Started by `run.py` in a process of its own for each kind of memory pages.
"""

import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

from experiments.accelerator import measure as accelerator
from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.data import frame_store
from tm_jax.parallel import rules
from tm_jax.training import example_source
from tm_jax.training import sources
from tm_jax.training import steps
from tm_jax.training import teacher_stage
from tm_jax.training import video_vae

_PRESET = "nano"


def _teacher(preset: presets.Preset):
    """Stage teacher on random examples, and a batch."""
    config = teacher_stage.TeacherStageConfig(data=example_source.ExampleConfig(path="random"))
    rng, c = np.random.default_rng(0), preset.dit
    latents = config.chunks * preset.timing.latents_per_chunk
    height, width, channels = preset.latent_shape
    audio = rng.standard_normal((latents, c.audio_window, c.audio_feature_width), np.float32)
    record = {
        "latents": rng.standard_normal((1 + latents, height, width, channels), np.float32),
        "condition": rng.standard_normal((1, height, width, c.condition_channels), np.float32),
        "face_mask": np.ones(preset.tokens, np.float32), "audio": audio, "partner_audio": audio,
        "mode": np.ones(latents, np.int8),
    }
    source = example_source.ExampleSource([record], preset)
    stage = teacher_stage.make(components.build(preset), source, lambda latents: None, config)
    return stage, sources.collate([source.window(0, 0, latents)] * config.batch)


def _vae(preset: presets.Preset, folder: str):
    """Stage vae on random clips, and a batch."""
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (4, 9, preset.height, preset.width, 3), np.uint8)
    for name in ("clips", video_vae.HELD_OUT):
        frame_store.write(str(pathlib.Path(folder, name)), clips)
    # A random start: there is no motion to measure.
    config = video_vae.VideoVAEConfig(path=folder, motion_channels=0)
    stage = video_vae.make(preset, config)
    return stage, next(iter(stage.batches(0)))


def measure(name: str, stage, batch, repeats: int, peak_tflops: float) -> dict:
    """One row: an update of a stage."""
    mesh = rules.make_mesh(jax.devices()[:1])
    training = steps.prepare(stage, 1000, mesh)
    key = jax.random.key(0)
    state = training.create(key)
    batch = steps.place_batch(batch, mesh)
    flops = training.step.flops(0, state, {}, batch, key)
    spent, before = [], None
    for _ in range(2 + repeats):
        if len(spent) == 2:
            before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        state, found = training.step(state, {}, batch, key)
        jax.block_until_ready((state, found))
        spent.append(time.perf_counter() - began)
    after, median = resource.getrusage(resource.RUSAGE_SELF), statistics.median(spent[2:])
    return {
        "stage": name, "update_ms": round(1e3 * median, 1),
        "page_faults": round((after.ru_minflt - before.ru_minflt) / repeats),
        "tflops": round(flops / median / 1e12, 4),
        "of_peak": round(flops / median / 1e12 / peak_tflops, 3),
    }


def main() -> None:
    repeats, preset = int(sys.argv[1]), presets.get(_PRESET)
    peak = accelerator.peak("float32")
    print("ROW " + json.dumps(measure("teacher", *_teacher(preset), repeats, peak)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        row = measure("vae", *_vae(preset, folder), repeats, peak)
    print("ROW " + json.dumps(row | {"peak_tflops": round(peak, 3)}), flush=True)


if __name__ == "__main__":
    main()
