"""Renders results.json as tables into README.md, between its markers.

  python -m experiments.speech.report
"""

import json
import pathlib

from absl import app
import numpy as np

from tm_jax.evaluation import tables

_FOLDER = pathlib.Path(__file__).parent


def _median(found: dict, condition: str, key: str) -> float | None:
    values = [voice[condition][key] for voice in found["voices"].values()]
    return None if None in values else float(np.median(values))


def render(results: dict) -> str:
    """Markdown of results.json."""
    lines = [
        tables.facts(results["facts"]) + f" {results['training_tracks']} training tracks of "
        f"{results['track_s']:g} s.", "", "**Medians over the held-out voices**, clean / damaged.", "",
    ]  # fmt: skip
    rows = []
    for name, found in results["sources"].items():
        ahead = found["lookahead_ms"]
        row = [name, str(found["width"]), "all" if ahead is None else tables.number(ahead, 1)]
        for key, format_ in (
            ("correlation", tables.number), ("correlation_linear", tables.number),
            ("lips_shut", tables.share), ("phones", tables.share), ("voice", tables.share),
        ):  # fmt: skip
            row.append(
                " / ".join(format_(_median(found, c, key)) for c in ("clean", "damaged"))
            )
        rows.append(row)
    head = [
        "features", "width", "look-ahead, ms", "mouth, network", "mouth, linear",
        "lips shut on m, b, p", "phones", "voice or none",
    ]  # fmt: skip
    lines += tables.table(head, rows)
    names = list(next(iter(results["sources"].values()))["voices"])
    for condition in ("clean", "damaged"):
        lines += [f"**Mouth (network) by held-out voice, {condition}**: correlation.", ""]
        lines += tables.table(["features", *names], [
            [name, *(tables.number(found["voices"][v][condition]["correlation"]) for v in names)]
            for name, found in results["sources"].items()
        ])  # fmt: skip
    lines += ["**Phones by held-out voice, clean**: frames of speech whose phone is right.", ""]
    lines += tables.table(["features", *names], [
        [name, *(tables.share(found["voices"][v]["clean"]["phones"]) for v in names)]
        for name, found in results["sources"].items()
    ])  # fmt: skip
    return "\n".join(lines).rstrip()


def put(results: dict) -> None:
    """Puts the tables into the page."""
    tables.put(_FOLDER / "README.md", render(results))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    put(json.loads((_FOLDER / "results.json").read_text()))


if __name__ == "__main__":
    app.run(main)
