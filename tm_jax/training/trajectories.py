"""Noise-to-clip trajectories of the teacher on disk: what a student regresses onto.

They cost many passes each and are computed once. The store is a folder of memory-mapped
arrays and grows by whole batches; a killed run goes on where it stopped.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import numpy.typing as npt
import tqdm

from tm_jax.parallel import hosts
from tm_jax.parallel import rules
from tm_jax.training import batches
from tm_jax.training import rollouts
from tm_jax.training import sources
from tm_jax.training import steps
from tm_jax.training import student_stage
from tm_jax.training import transformer_stage


def build(
    folder: str, source: sources.Source, models: rollouts.Models, params: Callable[[], dict],
    config: student_stage.StudentStageConfig, seed: int = 0, mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Computes the teacher's trajectories, batch by batch.

    All points are kept, so that students of any number of steps learn from one folder.

    Args:
      folder: Where they are kept.
      source: Clips.
      models: Networks.
      params: Gives the parameters of the teacher, where any are needed.
      config: Settings.
      seed: Seed of windows and noise.
      mesh: Where the parameters are; None: one device.

    Returns:
      Dictionary of memory-mapped arrays: `points` [n, teacher_steps + 1, T, P, C], the
      trajectory before every step and its end, its places one after another, with room for the
      largest clip's; `place` [n, 2], the clip and the first latent
      of its window; and `dropped` [n, 3], which of `batches.CONDITIONS` were dropped.

    Raises:
      ValueError: The folder holds trajectories of another kind.
    """
    preset, latents = models.preset, transformer_stage.window_latents(models, config)
    sigmas = preset.schedule.steps(config.teacher_steps)
    os.makedirs(folder, exist_ok=True)
    facts = {
        "steps": config.teacher_steps, "guidance": dataclasses.asdict(config.guidance),
        "latents": latents, "temperature": config.temperature,
        "dropout": dataclasses.asdict(config.dropout), "seed": seed,
    }
    index, made = os.path.join(folder, "index.json"), 0
    if os.path.exists(index):
        made = _made(index, facts)
    hosts.wait("trajectories begin")  # Until all know how many there are.
    total = -(-config.trajectories // config.batch) * config.batch
    room = max(rows * columns for rows, columns in source.sizes.members)
    channels = preset.latent_shape[-1]
    shapes = {
        "points": ((total, len(sigmas) + 1, latents, room, channels), np.float16),
        "place": ((total, 2), np.int32), "dropped": ((total, 3), np.bool_),
    }

    def arrays():
        return {
            name: _room(os.path.join(folder, f"{name}.npy"), shape, dtype, made)
            for name, (shape, dtype) in shapes.items()
        }

    kept = arrays() if hosts.is_first() else {}
    run = _sampler(models, source, sigmas, config, mesh)
    teacher = params() if made < total else None
    bar = tqdm.tqdm(total=total, initial=made, desc="trajectories", unit="clip",
                    disable=not hosts.is_first())
    while made < total:
        block = slice(made, made + config.batch)
        items = _draw(source, config, latents, made, seed)
        key = jax.random.fold_in(jax.random.key(seed + 5), made)
        found = {"place": items.pop("place"), "dropped": items["dropped"]}
        points = run(teacher, items, key)
        points = points.reshape(*points.shape[:3], -1, channels)
        spare = (0, room - points.shape[3])
        found["points"] = np.pad(points, ((0, 0), (0, 0), (0, 0), spare, (0, 0)))
        made += config.batch
        for name, array in kept.items():
            array[block] = found[name]
            array.flush()
        if hosts.is_first():
            with open(index + ".tmp", "w") as file:
                json.dump({**facts, "made": made}, file)
            os.replace(index + ".tmp", index)
        bar.update(config.batch)
    bar.close()
    hosts.wait("trajectories end")
    return {name: array[:made] for name, array in (kept or arrays()).items()}


def _room(path: str, shape: tuple[int, ...], dtype: npt.DTypeLike, made: int) -> np.memmap:
    """Memory-mapped array at `path` of at least `shape[0]` entries.

    One that is too short makes way for a longer one with the same first `made` entries.
    """
    found = np.lib.format.open_memmap(path, "r+") if os.path.exists(path) else None
    if found is not None and len(found) >= shape[0]:
        return found
    new = np.lib.format.open_memmap(path + ".tmp", "w+", dtype, shape)
    if found is not None:
        new[:made] = found[:made]
    new.flush()
    os.replace(path + ".tmp", path)
    return new


def _made(index: str, facts: dict) -> int:
    """How many trajectories a folder holds, if they are of the wanted kind."""
    with open(index) as file:
        found = json.load(file)
    made = found.pop("made")
    if found != facts:
        raise ValueError(
            f"{os.path.dirname(index)} holds other trajectories ({found}) than asked for "
            f"({facts}); use their settings, or move the folder away."
        )
    return made


def _draw(source, config, latents: int, first: int, seed: int) -> dict:
    """Random windows of one batch, where they are, and what is dropped for each."""
    rng, windows, places = np.random.default_rng((seed, 11, first)), [], []
    for i in range(first, first + config.batch):
        clip = source.sizes.alike(i, source.sizes[first]) % len(source)
        places.append(source.place(clip, rng, latents))
        windows.append(source.window(*places[-1], latents))
    chances = [getattr(config.dropout, name) for name in batches.CONDITIONS]
    return {
        "window": sources.collate(windows), "place": np.asarray(places, np.int32),
        "dropped": rng.random((config.batch, 3)) < chances,
    }


def _sampler(models, source, sigmas, config, mesh) -> Callable:
    """Function (params, items, key) -> trajectories [B, steps + 1, T, H, W, C]."""

    @jax.jit
    def run(params, items, key):
        batch, _ = student_stage.assemble(source, {**items, "points": None})
        path = rollouts.teacher_sample(
            models, params, batch, key, sigmas, config.guidance, config.temperature
        )
        return jnp.moveaxis(path, 0, 1).astype(jnp.float16)

    def placed(params, items, key):
        with contextlib.nullcontext() if mesh is None else rules.use(mesh):
            items = items if mesh is None else steps.place_batch(items, mesh)
            return hosts.gather(run(params, items, key))

    return placed


def windows(
    source: sources.Source, paths: dict[str, np.ndarray], models: rollouts.Models,
    config: student_stage.StudentStageConfig,
) -> tuple[Callable[[int], dict], sources.Sizes]:
    """Function (index) -> trajectory `index` and its window; and the sizes of all.

    The result has the window's arrays as `window`, `dropped` [3], and as `points` the
    trajectory at the student's noise levels and its end, [N + 1, T, H, W, C].

    Raises:
      ValueError: teacher_steps is not a multiple of the student's steps.
    """
    num_steps = models.preset.student.num_steps
    if config.teacher_steps % num_steps:
        raise ValueError(
            f"teacher_steps={config.teacher_steps} must be a multiple of the student's "
            f"{num_steps} steps."
        )
    latents = transformer_stage.window_latents(models, config)
    stride = config.teacher_steps // num_steps

    sizes = sources.Sizes([source.sizes[int(clip)] for clip, _ in paths["place"]])

    def one(index):
        i = int(index) % len(paths["place"])
        clip, start = (int(x) for x in paths["place"][i])
        rows, columns = sizes[i]
        points = np.asarray(paths["points"][i, ::stride, :, : rows * columns])
        return {
            "window": source.window(clip, start, latents),
            "dropped": np.asarray(paths["dropped"][i]),
            "points": points.reshape(*points.shape[:2], rows, columns, -1),
        }

    return one, sizes
