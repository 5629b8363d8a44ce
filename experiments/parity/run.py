"""Compares every part with its PyTorch reference and renders the table.

  python -m experiments.parity.run [--only=transformer,schedule]

Needs the packages of the extra `reference`. Writes results.json and README.md beside this
file; with --only, rows of other parts stay as they are.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib
import platform

from absl import app
from absl import flags
from absl import logging

_MODULES = ("transformer", "schedule", "autoencoders", "encoders")
_PACKAGES = ("jax", "flax", "numpy", "torch", "diffusers", "transformers")
_FOLDER = pathlib.Path(__file__).parent
_LIMIT = 1e-4  # Of the output's scale, one forward pass in float32.
_GRADIENT_LIMIT = 1e-3

_TITLE = """# Parity with the PyTorch reference

Claim: every part of the Wan2.1 family computes what its reference in diffusers or
transformers computes. Random weights are saved in the reference's own format and read through
the tables of `tm_jax/checkpoints`; both sides get the same inputs. There is no TAEHV in those
libraries: its reference is PyTorch with the published layers (`autoencoders.py`).

    python -m experiments.parity.run       # this table, a few minutes on two cores
    python -m experiments.parity.memory    # memory of conversions, needs 12 GB of disk
    python -m experiments.parity.speed     # speed against PyTorch on two cores

`max_rel` is the largest absolute difference over the reference's largest absolute value,
`mean_rel` the mean absolute difference over the reference's mean absolute value; of several
arrays the worst counts. In float32 a forward pass must stay within {limit:g} and gradients
(every parameter against its own largest gradient) within {gradient:g}. Rows of bfloat16 are
recorded: ours in bfloat16 against the reference in float32 (rounding unit 4e-3).
"""


def within(row: dict) -> bool | None:
    """Whether a row keeps its limit; None where there is none."""
    if row["dtype"] != "float32":
        return None
    limit = _GRADIENT_LIMIT if "gradients" in row["part"] else _LIMIT
    return row["max_rel"] <= limit


def render(results: dict, memory: dict | None, speed: dict | None = None) -> str:
    """The page for people, from what is in the JSON files alone."""
    lines = [_TITLE.format(limit=_LIMIT, gradient=_GRADIENT_LIMIT)]
    lines += ["| part | configuration | dtype | max_abs | max_rel | mean_rel |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in results["rows"]:
        mark = " **above its limit**" if within(row) is False else ""
        lines.append(
            f"| {row['part']} | {row['config']} | {row['dtype']} | {row['max_abs']:.1e} | "
            f"{row['max_rel']:.1e}{mark} | {row['mean_rel']:.1e} |"
        )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines += ["", f"Versions: {versions}."]
    if memory is not None:
        lines += ["", *_render_memory(memory)]
    if speed is not None:
        lines += ["", *_render_speed(speed)]
    return "\n".join(lines) + "\n"


def _render_memory(memory: dict) -> list[str]:
    lines = [
        "## Memory of a conversion", "",
        "Synthetic weights of full size in bfloat16; each conversion is a process of its own. "
        "Anonymous memory is what a process needs for itself; the resident peak also counts "
        "pages of the file being read, which the system takes back when it wants them.", "",
        "| weights | conversion | GB read | peak anonymous GB | peak resident GB | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in memory["rows"]:
        lines.append(
            f"| {row['weights']} | {row['conversion']} | {row['read_gb']:.2f} | "
            f"{row['peak_anonymous_gb']:.2f} | {row['peak_resident_gb']:.2f} | "
            f"{row['seconds']:.0f} |"
        )
    return [*lines, "", memory["note"]]


def _render_speed(speed: dict) -> list[str]:
    lines = [
        "## Speed on CPU", "",
        "Jitted float32 on both cores of one machine. In every round each program runs once, in "
        "turn. The ratio is the reference's time over ours: above 1 ours is faster. `others` is "
        "the median share of the processors that other programs took meanwhile; undisturbed are "
        "calls during which it was below 10%.", "",
        "| part | reference | ours ms | reference ms | ratio of medians | ratio per round: "
        "median (min to max) | ratio of undisturbed calls (their number) | others: ours, reference | "
        "load average | rounds | max_rel |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in speed["rows"]:
        each, counts = row["ratio_per_round"], "{} and {}".format(*row["quiet_calls"])
        quiet = "none" if row["quiet_ratio"] is None else f"{row['quiet_ratio']:.2f}"
        lines.append(
            f"| {row['part']} | {row['reference']} | {row['ours_ms']:.0f} | "
            f"{row['reference_ms']:.0f} | {row['ratio']:.2f} | {each['median']:.2f} "
            f"({each['min']:.2f} to {each['max']:.2f}) | {quiet} ({counts}) | "
            f"{row['ours_others']:.0%}, "
            f"{row['reference_others']:.0%} | {row['load_average'][0]:.1f} | "
            f"{len(row['ours_runs'])} | {row['max_rel']:.1e} |"
        )
    machine = speed["machine"]
    return [
        *lines, "",
        f"{machine['cpu']}, {machine['threads']} threads each, after warm-up.", "", speed["note"],
    ]


def write_page(folder: pathlib.Path) -> None:
    """Renders README.md from the JSON files in its folder."""
    names = ("results", "memory", "speed")
    paths = [folder / f"{name}.json" for name in names]
    known = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    (folder / "README.md").write_text(render(*known))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    unknown = set(flags.FLAGS.only) - set(_MODULES)
    if unknown:
        raise app.UsageError(f"--only knows {', '.join(_MODULES)}, got {sorted(unknown)}.")
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(flags.FLAGS.out)
    path = folder / "results.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {}
    for name in flags.FLAGS.only:
        module = importlib.import_module(f"experiments.parity.{name}")
        for row in map(dataclasses.asdict, module.rows()):
            found[row["part"], row["config"], row["dtype"]] = row
            print(f"{row['max_rel']:.1e}  {row['part']}: {row['config']} {row['dtype']}", flush=True)
    if set(flags.FLAGS.only) != set(_MODULES):
        old = {(r["part"], r["config"], r["dtype"]): r for r in kept}
        found = {**old, **found}
    versions = {"python": platform.python_version()}
    versions.update((name, importlib.metadata.version(name)) for name in _PACKAGES)
    results = {"rows": list(found.values()), "versions": versions}
    path.write_text(json.dumps(results, indent=1) + "\n")
    write_page(folder)
    late = [row for row in results["rows"] if within(row) is False]
    if late:
        raise SystemExit(f"{len(late)} rows are above their limit; see {path}.")


def define_flags():
    """Defines the flags of the command; importing this file defines none."""
    flags.DEFINE_list("only", list(_MODULES), "Which comparisons to run.")
    flags.DEFINE_string("out", str(_FOLDER), "Folder of results.json and README.md.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
