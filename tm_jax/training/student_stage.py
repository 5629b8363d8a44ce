"""Stage `student`: few-step, sparse causal, by regression onto the teacher's trajectories.

The teacher's noise-to-clip trajectories are computed once and kept. Each chunk gets a noise
level of the student's own sampler; its input is the trajectory's point there and its target
the trajectory's end (the initialisation of CausVid, arXiv 2412.07772, section 4.3).
"""

import dataclasses
import json
import os

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from tm_jax.models import networks
from tm_jax.training import latents as latents_lib
from tm_jax.training import loop
from tm_jax.training import optimizer as optimizer_lib
from tm_jax.training import preview as preview_lib
from tm_jax.training import rollouts
from tm_jax.training import teacher_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentStageConfig:
    """Settings of the stage.

    Attributes:
      data: The latent store.
      batch: Clips per step.
      chunks: Chunks per clip.
      trajectories: Teacher trajectories to compute.
      teacher_steps: Steps of the teacher's sampler; a multiple of the student's steps, so
        that the student's noise levels are points of the trajectory.
      guidance: Guidance of the teacher over the audio; 1 is without.
      context_noise: Largest standard deviation of the noise on the clean context, which
        stands for the errors of the student's own chunks.
      mouth_weight: See `TeacherStageConfig`.
      opening_weight: See `TeacherStageConfig`.
      previews: Held-out clips in a preview.
      optimizer: Optimiser.
    """

    data: latents_lib.LatentConfig = latents_lib.LatentConfig()
    batch: int = 4
    chunks: int = 2
    trajectories: int = 400
    teacher_steps: int = 4
    guidance: float = 1.0
    context_noise: float = 0.15
    mouth_weight: float = 3.0
    opening_weight: float = 3.0
    previews: int = 12
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=5e-4, warmup_steps=50, beta2=0.98, weight_decay=0.01, ema_decay=0.98
    )


def trajectories(folder, store, models, params, config: StudentStageConfig):
    """Computes the teacher's trajectories, block by block; a killed run goes on.

    Returns:
      Dictionary of memory-mapped arrays: `points` [n, num_steps + 1, T, H, W, C], the
      trajectory at the student's noise levels and its end, and `start` [n], the window's
      first latent; trajectory i belongs to clip i modulo the number of clips.

    Raises:
      ValueError: teacher_steps is not a multiple of the student's steps.
    """
    preset = models.preset
    num_steps = preset.student.num_steps
    if config.teacher_steps % num_steps:
        raise ValueError(
            f"teacher_steps={config.teacher_steps} must be a multiple of the student's "
            f"{num_steps} steps."
        )
    latents = config.chunks * preset.timing.latents_per_chunk
    stride = config.teacher_steps // num_steps
    sigmas = preset.schedule.steps(config.teacher_steps)
    keep = np.asarray([*range(0, config.teacher_steps, stride), config.teacher_steps])

    @jax.jit
    def run(params, batch, key):
        path = rollouts.teacher_sample(
            models, params, batch, key, sigmas, config.guidance
        )
        return jnp.moveaxis(path[keep], 0, 1).astype(jnp.float16)

    os.makedirs(folder, exist_ok=True)
    index = os.path.join(folder, "index.json")
    total = -(-config.trajectories // config.batch) * config.batch
    facts = {"steps": config.teacher_steps, "keep": keep.tolist(), "guidance": config.guidance}
    made = 0
    if os.path.exists(index):
        with open(index) as file:
            found = json.load(file)
        made = found.pop("made")
        if found != facts:
            raise ValueError(f"{folder} holds other trajectories ({found}).")
    shapes = {
        "points": ((total, len(keep), latents, *preset.latent_shape), np.float16),
        "start": ((total,), np.int32),
    }
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        path = os.path.join(folder, f"{name}.npy")
        mode = "r+" if made else "w+"
        arrays[name] = np.lib.format.open_memmap(path, mode, dtype, None if made else shape)
    total = min(total, len(arrays["start"]))
    bar = tqdm.tqdm(total=total, initial=made, desc="trajectories", unit="clip")
    while made < total:
        items, rng = [], np.random.default_rng((config.data.seed, 11, made))
        for i in range(made, made + config.batch):
            start = int(rng.integers(0, config.data.latents - latents + 1))
            arrays["start"][i] = start
            clip = i % len(store["mode"])
            items.append(latents_lib.window(store, clip, start, latents, models))
        key = jax.random.fold_in(jax.random.key(config.data.seed + 5), made)
        batch = latents_lib.collate(items)
        arrays["points"][made : made + config.batch] = run(params["dit"], batch, key)
        made += config.batch
        for array in arrays.values():
            array.flush()
        with open(index + ".tmp", "w") as file:
            json.dump({**facts, "made": made}, file)
        os.replace(index + ".tmp", index)
        bar.update(config.batch)
    bar.close()
    return arrays


def _batches(store, paths, config, models, seed) -> grain.IterDataset:
    latents = config.chunks * models.preset.timing.latents_per_chunk
    count = len(paths["start"])

    def one(index):
        i = int(index)
        clip, start = i % len(store["mode"]), int(paths["start"][i])
        item = latents_lib.window(store, clip, start, latents, models)
        return {**item, "points": np.asarray(paths["points"][i], np.float32)}

    return (
        grain.MapDataset.range(count)
        .shuffle(seed=seed)
        .repeat()
        .map(one)
        .batch(config.batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )


def make(models: networks.Models, params: dict, store, paths, config) -> loop.Stage:
    """The stage; the student starts from the teacher's parameters.

    Args:
      models: Networks.
      params: Trained parameters of all parts; `dit` is the teacher's.
      store: Arrays of `latents.build`.
      paths: Arrays of `trajectories`.
      config: Settings.
    """
    preset = models.preset
    c = preset.timing.latents_per_chunk
    latents = config.chunks * c
    levels = jnp.asarray(preset.sigmas)
    weights = teacher_stage.latent_weights(preset, config)

    def init(key):
        boxed = models.init("dit", key)
        is_box = lambda x: hasattr(x, "replace_boxed")
        return jax.tree.map(
            lambda b, v: b.replace_boxed(jnp.asarray(v)) if is_box(b) else jnp.asarray(v),
            boxed, params["dit"], is_leaf=is_box,
        )

    def loss(dit, frozen, batch, key):
        keys = jax.random.split(key, 3)
        size = batch["points"].shape[0]
        target = batch["points"][:, -1]
        # Each chunk at a step of its own.
        step = jax.random.randint(keys[0], (size, config.chunks), 0, len(levels))
        frame_step = jnp.repeat(step, c, 1)  # [B, T]
        pick = frame_step[:, None, :, None, None, None]
        x = jnp.take_along_axis(batch["points"], pick, 1)[:, 0]
        strength = config.context_noise * jax.random.uniform(keys[1], (size, 1, 1, 1, 1))
        clean = target[:, : latents - c]
        clean = clean + strength * jax.random.normal(keys[2], clean.shape)
        x0 = rollouts.student_forward(models, dit, batch, clean, x, levels[step])
        error = jnp.square(x0 - target)
        error = error * weights
        if preset.dit.reference_std is not None:
            error = error / preset.dit.reference_std**2
        per_frame = error.mean((2, 3, 4))
        first = frame_step == 0
        return error.mean(), {
            "x0_first": jnp.sum(per_frame * first) / jnp.maximum(first.sum(), 1),
            "x0_last": jnp.sum(per_frame * ~first) / jnp.maximum((~first).sum(), 1),
        }

    preview = preview_lib.Preview(
        models, params, dataclasses.replace(config.data, clips=config.previews), latents
    )
    draw = jax.jit(lambda p, b, k: rollouts.student_sample(models, p, b, k))

    def sample(dit, frozen, path):
        return preview.show(draw(dit, preview.batch, jax.random.key(1)), path)

    return loop.Stage(
        name="student", init=init, loss=loss, frozen={},
        batches=lambda seed: _batches(store, paths, config, models, seed),
        sample=sample, finish=lambda params, frozen: params, optimizer=config.optimizer,
    )
