"""Renders results/ablations.json as a table into README.md, between its markers, and as a plot.

  python -m experiments.distillation.report
"""

import json
import pathlib

from absl import app

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent
_REFERENCE = "full"
# Key, words, digits, and whether it is a share in per cent.
_COLUMNS = (
    ("correlation", "correlation", 2, False), ("lag_frames", "lag, frames", 1, False),
    ("closures_kept", "closures kept", 0, True), ("closures_by_chance", "by chance", 0, True),
    ("error", "error of the mouth", 3, False), ("pause_ratio", "in pauses", 0, True),
    ("rest_ratio", "listening", 0, True), ("seam_ratio", "seams", 2, False),
    ("drift", "drift", 2, False), ("error_growth", "growth of error", 2, False),
)  # fmt: skip
_TECHNICAL = ("previews=", "start=")  # Overrides that the table leaves out.
_BARS = ("correlation", "closures_kept", "rest_ratio", "seam_ratio", "error_growth")


def _cell(arm: dict, key: str, digits: int, share: bool) -> str:
    """Median and, small behind it, the quartiles."""
    median, low, high = (arm[k][key] for k in ("median", "low", "high"))
    if median is None:
        return tables.NONE
    if share:
        return f"{tables.share(median)} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{tables.number(median, digits)} ({low:.{digits}f}–{high:.{digits}f})"


def _order(arms: dict) -> list[str]:
    """Teacher first, then every student of regression only, then the variants."""
    rank = {"teacher": 0}
    return sorted(arms, key=lambda n: rank.get(n, 1 if arms[n]["start"] is None and
                                               n.startswith("regression") else 2))  # fmt: skip


def _lips(arms: dict) -> list[str]:
    names = _order(arms)
    head = ["student", *(words for _, words, _, _ in _COLUMNS)]
    rows = [
        [name, *(_cell(arms[name], key, digits, share) for key, _, digits, share in _COLUMNS)]
        for name in names
    ]
    return tables.table(head, rows)


def _distances(results: dict) -> list[str]:
    arms = results["arms"]
    teacher = arms.get("teacher", {}).get("frechet")
    lines = [
        f"**Fréchet distance of the mouth's curves.** The same voices saying something else: "
        f"{tables.number(results['truth_again'])}.", "",
    ]
    rows = []
    for name in _order(arms):
        arm = arms[name]
        start = arms.get(arm["start"] or "", {}).get("frechet")
        asked = arm.get("asked", {})
        changed = [a for a in asked.get("assignments", []) if not a.startswith(_TECHNICAL)]
        hours = arm["seconds"] / 3600 if "seconds" in arm else None
        rows.append([
            name, arm["shows"], ", ".join(f"`{a}`" for a in changed) or tables.NONE,
            str(asked.get("steps", tables.NONE)), tables.number(hours, 2),
            tables.number(arm["frechet"]),
            tables.number(arm["frechet"] / teacher if teacher and arm["finite"] else None),
            tables.number(start), "yes" if arm["finite"] else "NO",
        ])  # fmt: skip
    head = ["student", "what it shows", "overrides", "batches", "hours", "distance",
            "to the teacher's", "of its start", "finite"]  # fmt: skip
    return lines + tables.table(head, rows)


def markdown(results: dict) -> str:
    """Tables of a result."""
    count = len(next(iter(results["arms"].values()))["clips"])
    lines = [
        tables.facts(results), "",
        f"**Lips.** Medians over {count} clips, quartiles in brackets.", "",
        *_lips(results["arms"]), *_distances(results),
    ]
    return "\n".join(lines).rstrip()


def plot(results: dict, path: pathlib.Path) -> None:
    """Bars of the main measures, quartiles as whiskers, the full recipe as a line."""
    from matplotlib import figure
    from matplotlib.backends import backend_agg

    arms, words = results["arms"], {key: text for key, text, _, _ in _COLUMNS}
    names = _order(arms)
    made = figure.Figure(figsize=(15, 1.2 + 0.28 * len(names)), dpi=110, layout="constrained")
    backend_agg.FigureCanvasAgg(made)
    axes = made.subplots(1, len(_BARS) + 1)
    for axis, key in zip(axes, _BARS):
        for row, name in enumerate(names):
            median, low, high = (arms[name][k][key] for k in ("median", "low", "high"))
            if median is not None:
                axis.barh(row, median, color="#5a7d9a")
                axis.plot([low, high], [row, row], color="0.2", linewidth=1)
        axis.set_title(words[key], fontsize=9)
        reference = arms.get(_REFERENCE, {}).get("median", {}).get(key)
        _finish(axis, names if axis is axes[0] else [""] * len(names), reference)
    axes[-1].barh(range(len(names)), [arms[n]["frechet"] or 0 for n in names], color="#5a7d9a")
    axes[-1].set_title("Fréchet distance", fontsize=9)
    _finish(axes[-1], [""] * len(names), arms.get(_REFERENCE, {}).get("frechet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)


def _finish(axis, labels: list[str], reference: float | None) -> None:
    if reference is not None:
        axis.axvline(reference, color="0.4", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)  # A row that has no bar keeps its place.
    axis.tick_params(labelsize=8)


def render(folder: pathlib.Path) -> str:
    """All tables for which there are results."""
    path = folder / "ablations.json"
    if not path.exists():
        return "No results/ablations.json yet: the commands above write it."
    text = markdown(json.loads(path.read_text()))
    if path.with_suffix(".png").exists():
        text += f"\n\n![Measures of all students]({folder.name}/ablations.png)"
    return text


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    text = render(_FOLDER / "results")
    tables.put(_FOLDER / "README.md", text)
    print(text)


if __name__ == "__main__":
    app.run(main)
