"""Stage `student`: few-step, sparse causal, by regression onto the teacher's trajectories.

The teacher's noise-to-clip trajectories are computed once and kept. Each chunk gets a noise
level of the student's own sampler; its input is the trajectory's point there and its target
the trajectory's end (the initialisation of CausVid, arXiv 2412.07772, section 4.3).
"""

import dataclasses
import json
import os

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
from tm_jax.training import transformer_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentStageConfig(transformer_stage.TransformerStageConfig):
    """Settings of the stage.

    Attributes:
      num_steps: Steps of the student's sampler; the preset's by default.
      policy: Cache policy, "clean" or "per_step"; the preset's by default.
      sink: Whether chunks see the sink; the preset's by default.
      positions: Where the sink stands in time, "window" or "absolute"; the preset's by default.
      trajectories: Teacher trajectories to compute.
      teacher_steps: Steps of the teacher's sampler; a multiple of the student's steps, so
        that the student's noise levels are points of the trajectory.
      guidance: Guidance of the teacher over the audio; 1 is without.
      context_noise: Largest standard deviation of the noise on a clean context, which
        stands for the errors of the student's own chunks.
      optimizer: Optimiser.
    """

    num_steps: int | None = None
    policy: str | None = None
    sink: bool | None = None
    positions: str | None = None
    trajectories: int = 1200
    teacher_steps: int = 4
    guidance: float = 1.0
    context_noise: float = 0.15
    optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(
        learning_rate=5e-4, warmup_steps=50, beta2=0.98, weight_decay=0.01, ema_decay=0.98
    )


def trajectories(folder, store, models, params, config: StudentStageConfig):
    """Computes the teacher's trajectories, block by block; a killed run goes on.

    They start from noise of the student's temperature, as its samples do. All points are kept,
    so that students of any number of steps learn from one folder.

    Returns:
      Dictionary of memory-mapped arrays: `points` [n, teacher_steps + 1, T, H, W, C], the
      trajectory before every step and its end, and `start` [n], the window's first latent;
      trajectory i belongs to clip i modulo the number of clips.

    Raises:
      ValueError: The folder holds trajectories of another kind.
    """
    preset = models.preset
    latents = config.chunks * preset.timing.latents_per_chunk
    sigmas, temperature = preset.schedule.steps(config.teacher_steps), preset.student.temperature

    @jax.jit
    def run(params, batch, key):
        path = rollouts.teacher_sample(
            models, params, batch, key, sigmas, config.guidance, temperature
        )
        return jnp.moveaxis(path, 0, 1).astype(jnp.float16)

    os.makedirs(folder, exist_ok=True)
    index = os.path.join(folder, "index.json")
    total = -(-config.trajectories // config.batch) * config.batch
    facts = {
        "steps": config.teacher_steps, "guidance": config.guidance, "latents": latents,
        "temperature": temperature,
    }
    made = 0
    if os.path.exists(index):
        with open(index) as file:
            found = json.load(file)
        made = found.pop("made")
        if found != facts:
            raise ValueError(
                f"{folder} holds other trajectories ({found}) than asked for ({facts}); use "
                "their settings, or move the folder away."
            )
    shapes = {
        "points": ((total, len(sigmas) + 1, latents, *preset.latent_shape), np.float16),
        "start": ((total,), np.int32),
    }
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        path = os.path.join(folder, f"{name}.npy")
        arrays[name] = latents_lib.room(path, shape, dtype, made)
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
    return {name: array[:made] for name, array in arrays.items()}


def path_window(store, paths, config: StudentStageConfig, models):
    """Function (index) -> the window of trajectory `index` with its points as `points`.

    The points are those at the student's noise levels and the end, [N + 1, T, H, W, C].

    Raises:
      ValueError: teacher_steps is not a multiple of the student's steps.
    """
    num_steps = models.preset.student.num_steps
    if config.teacher_steps % num_steps:
        raise ValueError(
            f"teacher_steps={config.teacher_steps} must be a multiple of the student's "
            f"{num_steps} steps."
        )
    latents = config.chunks * models.preset.timing.latents_per_chunk
    stride = config.teacher_steps // num_steps

    def one(index):
        i = int(index) % len(paths["start"])
        clip, start = i % len(store["mode"]), int(paths["start"][i])
        item = latents_lib.window(store, clip, start, latents, models)
        return {**item, "points": np.asarray(paths["points"][i, ::stride], np.float32)}

    return one


def regression(models: networks.Models, params, batch, key, weight, context_noise: float):
    """Error of the student's x0 against the end of the teacher's trajectory.

    With the policy `clean` each chunk is at a step of its own and sees the clean chunk before
    it, with a little noise; with `per_step` all chunks of a sample are at one step and see
    the trajectory's point of the chunk before at that step, as their caches will hold it.

    Args:
      models: Networks.
      params: Parameters of the student.
      batch: Items of `path_window`.
      key: Random key.
      weight: Weights of the error that broadcast to [B, T, H, W, C].
      context_noise: Largest standard deviation of the noise on a clean context.

    Returns:
      Error of every latent frame [B, T], and the step of each, [B, T].
    """
    preset = models.preset
    c, levels = preset.timing.latents_per_chunk, jnp.asarray(preset.sigmas)
    points, target = batch["points"], batch["points"][:, -1]
    size, chunks = points.shape[0], target.shape[1] // c
    keys = jax.random.split(key, 3)
    clean = preset.student.policy == "clean"
    step = jax.random.randint(keys[0], (size, chunks if clean else 1), 0, len(levels))
    step = jnp.broadcast_to(step, (size, chunks))
    frame_step = jnp.repeat(step, c, 1)  # [B, T]
    pick = frame_step[:, None, :, None, None, None]
    x = jnp.take_along_axis(points, pick, 1)[:, 0]
    if clean:
        strength = context_noise * jax.random.uniform(keys[1], (size, 1, 1, 1, 1))
        seen = target[:, :-c]
        seen = seen + strength * jax.random.normal(keys[2], seen.shape)
        seen_sigma = jnp.zeros((size, chunks - 1))
    else:
        seen, seen_sigma = x[:, :-c], levels[step][:, :-1]
    x0 = rollouts.student_forward(models, params, batch, seen, seen_sigma, x, levels[step])
    error = jnp.square(x0 - target) * weight
    if preset.dit.reference_std is not None:
        error = error / preset.dit.reference_std**2
    return error.mean((2, 3, 4)), frame_step


def make(models: networks.Models, params: dict, store, paths, config) -> loop.Stage:
    """The stage; the student starts from the teacher's parameters.

    Args:
      models: Networks.
      params: Trained parameters of all parts; `dit` is the teacher's.
      store: Arrays of `latents.build`.
      paths: Arrays of `trajectories`.
      config: Settings.
    """
    latents = config.chunks * models.preset.timing.latents_per_chunk
    weights = transformer_stage.element_weights(models.preset, config)
    models = transformer_stage.trained(models, config)
    one = path_window(store, paths, config, models)

    def loss(dit, frozen, batch, key):
        error, step = regression(
            models, dit, batch, key, weights, config.context_noise
        )
        first = step == 0
        return error.mean(), {
            "x0_first": jnp.sum(error * first) / jnp.maximum(first.sum(), 1),
            "x0_last": jnp.sum(error * ~first) / jnp.maximum((~first).sum(), 1),
        }

    return loop.Stage(
        name="student", init=lambda key: transformer_stage.boxed(models, params["dit"]),
        loss=loss, frozen={},
        batches=lambda seed: transformer_stage.stream(
            one, len(paths["start"]), config.batch, seed
        ),
        sample=previewer(models, params, config.data, config.previews, latents),
        finish=lambda params, frozen: params, optimizer=config.optimizer,
    )


def previewer(models: networks.Models, params: dict, data, clips: int, latents: int):
    """Function (student's parameters, frozen, path) that shows cached rollouts."""
    preview = preview_lib.Preview(
        models, params, dataclasses.replace(data, clips=clips), latents
    )
    draw = jax.jit(lambda p, b, k: rollouts.student_sample(models, p, b, k))

    def sample(dit, frozen, path):
        return preview.show(draw(dit, preview.batch, jax.random.key(1)), path)

    return sample
