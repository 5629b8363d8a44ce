"""Trains variants of the distillation, and measures their videos beside each other.

  python -m experiments.distillation.ablations --workdir=runs/nano --data=runs/nano/examples \
    --weights=runs/nano/weights --corpus=runs/corpus

Needs a work directory with a finished teacher, the examples that it learned from, and a folder with
all parts of the preset. Whatever is interrupted goes on with the same command: a finished training
is skipped, a killed one resumes from its checkpoint. The measures are those of launch/evaluate.py,
which is called with every student as an arm; report.py renders them.
"""

import pathlib
import subprocess
import sys

from absl import app
from absl import flags
from absl import logging

from experiments.distillation import report
from experiments.distillation import variants
from tm_jax.configs import presets
from tm_jax.core import huge_pages
from tm_jax.evaluation import facts

_FOLDER = pathlib.Path(__file__).parent
_EVALUATE = _FOLDER.parents[1] / "launch" / "evaluate.py"
_RECORD = "trained.json"


def define_flags() -> None:
    """Defines the flags; importing this module defines none."""
    flags.DEFINE_string("workdir", None, "Work directory with a finished teacher.", required=True)
    flags.DEFINE_string("data", None, "Examples of the teacher.", required=True)
    flags.DEFINE_string("weights", None, "Folder with all parts of the preset.", required=True)
    flags.DEFINE_string("corpus", "runs/corpus", "Folder written by launch/corpus.py.")
    flags.DEFINE_string("preset", "nano", "Preset of the work directory.")
    flags.DEFINE_list("only", [], "Variants to train and measure; all by default.")
    flags.DEFINE_integer("steps", 300, "Batches of a distillation.", lower_bound=1)
    flags.DEFINE_integer("regression_steps", 500, "Batches of a regression.", lower_bound=1)
    flags.DEFINE_multi_string("set", [], "Override of the stages student and distill.")
    flags.DEFINE_multi_string("distill", [], "Override of the stage distill alone.")
    flags.DEFINE_multi_string("evaluate", [], "Further flag of launch/evaluate.py, e.g. clips=4.")
    flags.DEFINE_integer("seed", 0, "Seed of training.")
    flags.DEFINE_string("out", str(_FOLDER / "results"), "Folder of the results.")


def measure(
    plan: variants.Plan, chosen: list, weights: str, corpus: str, out: pathlib.Path,
    more: list[str],
) -> None:
    """Evaluates all trained students and the teacher in one run of launch/evaluate.py.

    Args:
      plan: What was trained.
      chosen: Variants; those that are not trained are left out.
      weights: Folder with all parts of the preset, whose student is an arm, too.
      corpus: Folder with held-out voices.
      out: Where quality.json and the record of the trainings go.
      more: Further flags, without the dashes.

    Raises:
      RuntimeError: The evaluation failed.
    """
    arms, record = [], {}
    for job in variants.jobs(plan, chosen):
        if not variants.finished(plan, job.name):
            logging.warning("%s is not trained; it is left out.", job.name)
            continue
        distilled = job.stage == "distill"
        arms.append(f"--weights={job.name}={variants.folder(plan, job.name)}")
        record[job.name] = variants.record(plan, job.name) | {
            "shows": job.variant.shows if distilled else "regression only"
        }
    out.mkdir(parents=True, exist_ok=True)
    facts.write(str(out / _RECORD), record)
    names = ["student", *record]
    command = [
        sys.executable, str(_EVALUATE), f"--preset={plan.preset.name}", f"--weights={weights}",
        *arms, f"--teacher={pathlib.Path(plan.workdir, 'teacher')}", f"--corpus={corpus}",
        f"--out={out}", f"--long_arms={','.join(names)}", "--videos=0",
        *(f"--{flag}" for flag in more),
    ]
    if subprocess.run(command).returncode:
        raise RuntimeError("launch/evaluate.py failed; its error is above.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    given = flags.FLAGS
    plan = variants.Plan(
        preset=presets.get(given.preset), workdir=given.workdir, data=given.data,
        steps=given.steps, regression_steps=given.regression_steps, seed=given.seed,
        shared=tuple(given.set), distill=tuple(given.distill),
    )
    chosen, out = variants.choose(given.only), pathlib.Path(given.out)
    for job in variants.jobs(plan, chosen):
        if not variants.train(plan, job):
            logging.warning("Stopped in %s; the same command goes on.", job.name)
            raise SystemExit(1)
    measure(plan, chosen, given.weights, given.corpus, out, given.evaluate)
    print(report.render(out))


if __name__ == "__main__":
    huge_pages.restart()
    define_flags()
    app.run(main)
