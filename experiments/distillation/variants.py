"""The table of variants of the distillation, and their training, one after the other.

Every variant gets the same batches of the same data in the same order. Where it changes what the
network sees or how it samples, the regression before it is trained the same way.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import time

from absl import logging

from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.training import loop
from tm_jax.training import run

FOLDER = "ablations"
_REGRESSION = "regression"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train a student.

    Attributes:
      name: Its name, and that of its folder.
      shows: What a comparison with `full` says.
      sampler: Overrides of the stages student and distill.
      settings: Overrides of the stage distill alone.
      regression: Whether distillation starts from a regression; else it starts from the teacher.
    """

    name: str
    shows: str
    sampler: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    regression: bool = True

    @property
    def start(self) -> str | None:
        """Name of the regression from which it starts; None for the teacher."""
        if not self.regression:
            return None
        return f"{_REGRESSION}_{self.name}" if self.sampler else _REGRESSION


_VARIANTS = (
    Variant(name="full", shows="the whole recipe: two steps, clean cache"),
    Variant(
        name="no_regression", shows="neither start nor term of regression",
        settings=("regression_weight=0",), regression=False,
    ),
    Variant(
        name="no_term", shows="starts from the regression, goes on without its term",
        settings=("regression_weight=0",),
    ),
    Variant(
        name="short_rollouts", shows="rollouts end where the teacher's window ends",
        settings=("rollout_chunks=2",),
    ),
    Variant(
        name="own_starts", shows="no true chunks before the window: data are not mixed",
        settings=("real_fraction=0",),
    ),
    Variant(
        name="true_starts", shows="only true chunks before the window: no chunk follows own ones "
        "for longer than the window", settings=("real_fraction=1",),
    ),
    Variant(
        name="no_sink", shows="chunks do not see the reference's keys", sampler=("sink=false",)
    ),
    Variant(
        name="absolute", shows="the sink moves away as the stream goes on",
        sampler=("positions=absolute",),
    ),
    Variant(name="one_step", shows="one step, clean cache", sampler=("num_steps=1",)),
    Variant(name="four_steps", shows="four steps, clean cache", sampler=("num_steps=4",)),
    Variant(
        name="one_per_step", shows="one step, its own cache",
        sampler=("num_steps=1", "policy=per_step"),
    ),
    Variant(
        name="per_step", shows="two steps, a cache for each", sampler=("policy=per_step",)
    ),
    Variant(
        name="four_per_step", shows="four steps, a cache for each",
        sampler=("num_steps=4", "policy=per_step"),
    ),
)  # fmt: skip
VARIANTS = {variant.name: variant for variant in _VARIANTS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained.

    Attributes:
      preset: Sizes.
      workdir: Work directory with the finished stages up to the teacher.
      data: Examples that the teacher learned from.
      steps: Batches of a distillation, those of critic and student.
      regression_steps: Batches of a regression.
      shared: Overrides of all stages, ahead of a variant's own.
      distill: Overrides of the stage distill, likewise.
      seed: Seed of noise and data order.
    """

    preset: presets.Preset
    workdir: str
    data: str
    steps: int = 600
    regression_steps: int = 300
    shared: tuple[str, ...] = ()
    distill: tuple[str, ...] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training.

    Attributes:
      name: Name of its folder below `FOLDER`.
      stage: Stage of the training.
      steps: Batches.
      assignments: Overrides of the stage.
      variant: The first variant that needs it.
    """

    name: str
    stage: str
    steps: int
    assignments: tuple[str, ...]
    variant: Variant


def choose(names: list[str]) -> list[Variant]:
    """Variants by name, all of them for an empty list.

    Raises:
      ValueError: Unknown name; the message lists the valid ones.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}.")
    return [v for v in _VARIANTS if not names or v.name in names]


def jobs(plan: Plan, chosen: list[Variant]) -> Iterator[Job]:
    """All trainings in an order in which each finds its start; regressions are shared."""
    known = set()
    for variant in chosen:
        shared = (*plan.shared, *variant.sampler)
        if variant.start and variant.start not in known:
            known.add(variant.start)
            yield Job(
                name=variant.start, stage="student", steps=plan.regression_steps,
                assignments=shared, variant=variant,
            )
        start = f"{FOLDER}/{variant.start}" if variant.start else "teacher"
        yield Job(
            name=variant.name, stage="distill", steps=plan.steps, variant=variant,
            assignments=(*shared, *plan.distill, *variant.settings, f"start={start}"),
        )


def folder(plan: Plan, name: str) -> pathlib.Path:
    """Folder of a training."""
    return pathlib.Path(plan.workdir, FOLDER, name)


def record(plan: Plan, name: str) -> dict:
    """What a training was asked, and the seconds of all calls that were not killed; or {}."""
    path = folder(plan, name) / "job.json"
    return json.loads(path.read_text()) if path.exists() else {}


def finished(plan: Plan, name: str) -> bool:
    """Whether a training has published its weights."""
    return (folder(plan, name) / "transformer.safetensors").exists()


def train(plan: Plan, job: Job) -> bool:
    """Trains one job, or goes on with it; a finished one is left alone.

    Returns:
      Whether it is finished: False when it was asked to stop.

    Raises:
      ValueError: Its folder holds a training that was asked something else.
    """
    asked = {
        "preset": plan.preset.name, "stage": job.stage, "steps": job.steps, "seed": plan.seed,
        "assignments": list(job.assignments),
    }
    found = record(plan, job.name)
    place = folder(plan, job.name)
    if found and found["asked"] != asked:
        raise ValueError(
            f"{place} holds a training of {found['asked']}, asked for is {asked}; use the same "
            "flags, or move the folder away."
        )
    if finished(plan, job.name):
        return True
    logging.info("Training %s: %s.", job.name, ", ".join(job.assignments) or "as it is")
    config = overrides.apply(run.config(job.stage, "", plan.data), job.assignments)
    place.mkdir(parents=True, exist_ok=True)
    seconds = found.get("seconds", 0.0)
    _write(place / "job.json", {"asked": asked, "seconds": seconds})
    began = time.monotonic()
    done = run.train(
        plan.preset, job.stage, config, plan.workdir, job.steps,
        loop.LoopConfig(seed=plan.seed, sample_every=0), name=f"{FOLDER}/{job.name}",
    )
    seconds += time.monotonic() - began
    _write(place / "job.json", {"asked": asked, "seconds": round(seconds, 1)})
    return done


def _write(path: pathlib.Path, value: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)
