"""Renders the results of the ablations as a table into README.md, between its markers.

  python -m experiments.distillation.report
"""

import json
import pathlib

from absl import app

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
_TECHNICAL = "start="  # An override that the table leaves out.
_NONE: dict = {}


def _row(name: str, arm: dict, record: dict) -> list[str]:
    asked = record.get("asked", _NONE)
    changed = [a for a in asked.get("assignments", []) if not a.startswith(_TECHNICAL)]
    hours = record["seconds"] / 3600 if "seconds" in record else None
    gestures = arm["gestures"]["speaking"]["to_truth"]
    return [
        name, record.get("shows", tables.NONE), ", ".join(f"`{a}`" for a in changed) or tables.NONE,
        tables.number(hours, 2), tables.number(arm["lipsync_correlation"], 3),
        tables.number(arm["lipsync_lag_frames"], 1), tables.share(arm["bilabial_closure"]),
        tables.share(arm["silence_ratio"]), tables.number(arm["frechet_ratio"]),
        tables.number(arm["seam_ratio"]), tables.number(gestures["head_spread"]),
        tables.number(arm["drift"], 1),
    ]


def markdown(results: dict, trained: dict) -> str:
    """The table of a `quality.json` and of the record of the trainings behind it."""
    head = [
        "student", "what it shows", "overrides", "hours", "lip sync", "lag, frames",
        "lips shut on m, b, p", "movement in silence", "Fréchet to the teacher's", "seams",
        "head's spread to the truth's", "drift",
    ]
    rows = [_row(name, arm, trained.get(name, _NONE)) for name, arm in results["arms"].items()
            if name != "static"]  # fmt: skip
    return "\n".join([tables.facts(results), "", *tables.table(head, rows)]).rstrip()


def render(folder: pathlib.Path) -> str:
    """The table, if there are results."""
    paths = [folder / name for name in ("quality.json", "trained.json")]
    if not all(path.exists() for path in paths):
        return "No results yet: the command above writes them."
    return markdown(*(json.loads(path.read_text()) for path in paths))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    text = render(_FOLDER / "results")
    tables.put(_FOLDER / "README.md", text)
    print(text)


if __name__ == "__main__":
    app.run(main)
