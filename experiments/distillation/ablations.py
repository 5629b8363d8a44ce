"""Trains variants of the distillation and measures each on held-out voices.

  python -m experiments.distillation.ablations --workdir=runs/nano --corpus=runs/corpus

Needs a work directory with the finished stages vae, audio and teacher. Whatever is interrupted
goes on with the same command: a finished training is skipped, a killed one resumes from its
checkpoint, a measured student is not measured again.

Keys of the result: `truth_again` is the Fréchet distance that the same voices saying something
else have; `arms` holds the teacher, every student of regression only and every variant, each
with `median`, `low` and `high` (quartiles) over clips of what `curves.measure` names, its
`frechet` distance, its training (`asked`, `seconds`), `start` and `shows`.
"""

import dataclasses
import json
import os
import pathlib

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

from experiments.distillation import curves
from experiments.distillation import report
from experiments.distillation import variants
from tm_jax.checkpoints import files
from tm_jax.configs import overrides
from tm_jax.configs import presets
from tm_jax.configs import puppet as networks
from tm_jax.core import huge_pages
from tm_jax.data.corpus import speech
from tm_jax.evaluation import facts
from tm_jax.training import puppet_source
from tm_jax.training import rollouts
from tm_jax.training import run

_FOLDER = pathlib.Path(__file__).parent
_BLOCK = 16  # Windows that the teacher samples at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring:
    """How much is measured.

    Attributes:
      clips: Clips, each of another character.
      seconds: Length of a clip; rounded up to whole windows of the teacher.
      teacher_steps: Steps of the teacher's sampler.
      seed: Seed of clips and noise.
    """

    clips: int = 8
    seconds: float = 60.0
    teacher_steps: int = 16
    seed: int = 0


def define_flags() -> None:
    """Defines the flags; importing this module defines none."""
    flags.DEFINE_string("workdir", None, "Work directory with a finished teacher.", required=True)
    flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
    flags.DEFINE_string("preset", "nano", "Preset of the work directory.")
    flags.DEFINE_list("only", [], "Variants to train and measure; all by default.")
    flags.DEFINE_integer("steps", 600, "Batches of a distillation.", lower_bound=1)
    flags.DEFINE_integer("regression_steps", 300, "Batches of a regression.", lower_bound=1)
    flags.DEFINE_multi_string(
        "set", [], "Override of the stages student and distill, e.g. data.clips=1000."
    )
    flags.DEFINE_multi_string(
        "distill", [], "Override of the stage distill alone, e.g. rollouts.clips=160."
    )
    flags.DEFINE_bool("train", True, "Whether to train; else only what is trained is measured.")
    flags.DEFINE_bool("measure", True, "Whether to measure.")
    flags.DEFINE_integer("clips", 8, "Clips of held-out voices.", lower_bound=2)
    flags.DEFINE_float("seconds", 60, "Length of a clip.", lower_bound=2)
    flags.DEFINE_integer("teacher_steps", 16, "Steps of the teacher's sampler.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of training and clips.")
    flags.DEFINE_string("out", str(_FOLDER / "results" / "ablations.json"), "JSON to write.")


class Bench:
    """Measures students and the teacher on the same clips."""

    def __init__(self, plan: variants.Plan, measuring: Measuring):
        """Prepares the clips.

        Raises:
          FileNotFoundError: A stage is missing in the work directory.
        """
        self._plan, self._measuring = plan, measuring
        preset = plan.preset
        stage = overrides.apply(
            run.config("distill", plan.corpus), (*plan.shared, *plan.distill)
        )
        self._window = stage.chunks * preset.timing.latents_per_chunk  # The teacher's.
        self._shapes = networks.shapes(networks.models(preset))
        chunks = preset.timing.chunks_for(measuring.seconds)
        latents = -(-chunks // stage.chunks) * self._window
        audio = self._load("audio", os.path.join(plan.workdir, "audio"))
        self.clips = curves.make(
            networks.models(preset), {"audio": audio}, speech.load(plan.corpus, "held_out"),
            measuring.clips, latents, measuring.seed,
        )

    def _load(self, part: str, folder):
        path = os.path.join(folder, f"{part}.safetensors")
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} is missing: finish its stage first.")
        return files.load(path, self._shapes[part])

    @property
    def truth_again(self) -> float:
        """Fréchet distance between the truth and the same voices that say something else."""
        frames = self._frames
        again, truth = (
            curves.windows(c, frames) for c in (self.clips.again, self.clips.mouth)
        )
        return curves.apart(again, truth)

    @property
    def _frames(self) -> int:
        return self._window * self._plan.preset.timing.frames_per_latent

    def student(self, folder: pathlib.Path, asked: tuple[str, ...]) -> dict:
        """Measures a student: one cached rollout a clip.

        Args:
          folder: Folder with its transformer.
          asked: Overrides of its stage, which say how it samples and what it sees.
        """
        settings = overrides.apply(run.config("distill", self._plan.corpus), asked)
        models = networks.models(run.sampled(self._plan.preset, "distill", settings))
        params = self._load("dit", folder)
        draw = jax.jit(lambda p, items, k: rollouts.student_sample(
            models, p, puppet_source.assemble(models.preset, items), k
        ))
        return self._measure(lambda batch, key: draw(params, batch, key))

    def teacher(self, folder: pathlib.Path) -> dict:
        """Measures the teacher: every window of a clip is sampled by itself."""
        models = networks.models(self._plan.preset)
        params = self._load("dit", folder)
        sigmas = self._plan.preset.schedule.steps(self._measuring.teacher_steps)

        @jax.jit
        def draw(params, items, key):
            batch = puppet_source.assemble(models.preset, items)
            return rollouts.teacher_sample(models, params, batch, key, sigmas)[-1]

        def sample(batch, key):
            parts = _windows(batch, self._window)
            count = len(parts["mode"])
            made = []
            for at in range(0, count, _BLOCK):
                index = np.minimum(np.arange(at, at + _BLOCK), count - 1)  # One compiled shape.
                block = jax.tree.map(lambda a: a[index], parts)
                made.append(np.asarray(draw(params, block, jax.random.fold_in(key, at))))
            made = np.concatenate(made)[:count]
            return made.reshape(len(batch["mode"]), -1, *made.shape[2:])

        return self._measure(sample, self._frames)

    def _measure(self, draw, segment_frames: int | None = None) -> dict:
        keys = jax.random.split(jax.random.key(self._measuring.seed + 1))
        speaking = np.asarray(draw(self.clips.speaking, keys[0]))
        resting = np.asarray(draw(self.clips.resting, keys[1]))
        return curves.measure(
            self.clips, speaking, resting, self._plan.preset.timing.frames_per_chunk,
            self._frames, segment_frames,
        )


def _windows(batch: dict, latents: int) -> dict:
    """Clips of T latents as T / latents short ones each."""
    count = batch["windows"].shape[1] // latents

    def one(name, value):
        if name in ("x0", "windows", "expression"):
            return value.reshape(-1, latents, *value.shape[2:])
        return np.repeat(value, count, 0)

    return {name: one(name, value) for name, value in batch.items()}


def measure_all(plan: variants.Plan, measuring: Measuring, chosen: list) -> dict:
    """Measures the teacher, what is trained of the chosen variants, and their regressions."""
    arms, bench = {}, None
    wanted = [("teacher", "many steps, sees both ways", None, None)]
    for job in variants.jobs(plan, chosen):
        distilled = job.stage == "distill"
        shows = job.variant.shows if distilled else "regression only"
        wanted.append((job.name, shows, job, job.variant.start if distilled else None))
    for name, shows, job, start in wanted:
        if job and not variants.finished(plan, job.name):
            logging.warning("%s is not trained; it is left out.", name)
            continue
        folder = variants.folder(plan, name) if job else pathlib.Path(plan.workdir, "teacher")
        kept = variants.folder(plan, name) / "measures.json"
        key = {
            "measuring": dataclasses.asdict(measuring), "weights": facts.weights_hash(str(folder))
        }
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if found.get("key") != key:
            bench = bench or Bench(plan, measuring)
            logging.info("Measuring %s.", name)
            values = bench.student(folder, job.assignments) if job else bench.teacher(folder)
            found = {"key": key, "truth_again": bench.truth_again, "measures": values}
            facts.write(str(kept), found)
            found = facts.plain(found)
        again = found["truth_again"]
        arms[name] = {
            "shows": shows, "start": start, **(variants.record(plan, name) if job else {}),
            **found["measures"],
        }
    return {"truth_again": again, "arms": arms}


def run_all(
    plan: variants.Plan, measuring: Measuring, chosen: list, out: str, train: bool = True,
    measure: bool = True,
) -> bool:
    """Trains and measures; returns False if it was asked to stop before the end."""
    if train:
        for job in variants.jobs(plan, chosen):
            if not variants.train(plan, job):
                logging.warning("Stopped in %s; the same command goes on.", job.name)
                return False
    if measure:
        known = facts.collect(
            os.path.join(plan.workdir, "teacher"), steps=plan.steps,
            regression_steps=plan.regression_steps, **dataclasses.asdict(measuring),
        )
        results = known | measure_all(plan, measuring, chosen)
        facts.write(out, results)
        report.plot(facts.plain(results), pathlib.Path(out).with_suffix(".png"))
        print(report.markdown(facts.plain(results)))
    return True


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    given = flags.FLAGS
    plan = variants.Plan(
        preset=presets.get(given.preset), workdir=given.workdir, corpus=given.corpus,
        steps=given.steps, regression_steps=given.regression_steps, seed=given.seed,
        # Two clips in the preview that ends every training: this experiment has its own.
        shared=("previews=2", *given.set), distill=tuple(given.distill),
    )
    measuring = Measuring(
        clips=given.clips, seconds=given.seconds, teacher_steps=given.teacher_steps,
        seed=given.seed,
    )
    chosen = variants.choose(given.only)
    if not run_all(plan, measuring, chosen, given.out, given.train, given.measure):
        raise SystemExit(1)


if __name__ == "__main__":
    huge_pages.restart()
    define_flags()
    app.run(main)
