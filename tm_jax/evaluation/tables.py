"""Results as Markdown: numbers, shares and tables, and the tables of an evaluation."""

from collections.abc import Callable
import pathlib

_Columns = dict[str, Callable[[dict], str]]  # A function of an arm's results by heading.
_BEGIN, _END = "<!-- table -->", "<!-- end -->"
NONE = "–"

_NAMES = {
    "lipsync_correlation": "lip sync", "lipsync_lag_frames": "lag, frames",
    "bilabial_closure": "lips shut on p, b, m", "silence_ratio": "movement in silence",
    "frechet_ratio": "Fréchet to teacher's", "drift": "drift", "seam_ratio": "seams",
}
_LOOKS = {
    "colour_distance": "distance of colour histograms, 0..1",
    "picture_distance": "distance of 16x16 pictures, 0..1",
    "likeness": "correlation of the upper face",
    "sharpness": "sharpness of the face over the reference's",
}


def put(readme: pathlib.Path, text: str) -> None:
    """Puts a text between the markers of a page.

    Raises:
      ValueError: The page does not have them once each.
    """
    page = readme.read_text()
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise ValueError(f"{readme} must have {_BEGIN} and {_END} once each.")
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    readme.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits, or a dash."""
    return NONE if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return NONE if value is None else f"{100 * value:.0f} %"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def facts(results: dict) -> str:
    """Machine, versions, weights and settings of a result (`facts.py`) in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    settings = ", ".join(f"{k} {v}" for k, v in results["settings"].items() if v is not None)
    return (
        f"{results['hardware']} (load {results['load']} at the start); {versions}; "
        f"weights {results['weights']}; {settings}."
    )


def _by_arm(arms: dict, columns: _Columns) -> list[str]:
    """A table with one row per arm and one column per function of its results."""
    rows = [[name, *(read(arm) for read in columns.values())] for name, arm in arms.items()]
    return table(["video", *columns], rows)


def _summary(arms: dict) -> list[str]:
    format_ = {"bilabial_closure": share, "silence_ratio": share}
    columns: _Columns = {
        name: lambda arm, key=key: format_.get(key, number)(arm[key])
        for key, name in _NAMES.items()
    }
    return ["**All arms.** Held-out voices and characters.", "", *_by_arm(arms, columns)]


def _silence(arms: dict) -> list[str]:
    known = {name: arm["silence"] for name, arm in arms.items() if arm["silence"]}
    if not known:
        return []
    columns: _Columns = {}
    for key, name in (("auto_silence", "silence"), ("auto_noise", "noise"),
                      ("listen_overheard", "somebody else")):
        for measure, word in (("travel_ratio", "movement"), ("opening_ratio", "widest")):
            columns[f"{name}: {word}"] = lambda arm, k=key, m=measure: share(arm[k][m])
    return ["**Without an own voice**, relative to speech of the same arm.", "",
            *_by_arm(known, columns)]  # fmt: skip


def _distances(arms: dict) -> list[str]:
    floor = next(iter(arms.values()))["frechet"]
    columns: _Columns = {
        "Fréchet distance": lambda arm: number(arm["frechet"]["distance"]),
        "to the teacher's": lambda arm: number(arm["frechet_ratio"]),
        "likeness": lambda arm: number(arm["looks"]["likeness"], 3),
        "sharpness": lambda arm: number(arm["looks"]["sharpness"], 3),
        "colour distance": lambda arm: number(arm["looks"]["colour_distance"], 3),
    }
    return [
        f"**Distance from true clips** over {floor['windows']} windows. The same people saying the "
        f"same another time are {number(floor['truth_again'])} apart.", "",
        *_by_arm(arms, columns),
    ]  # fmt: skip


def _gestures(arms: dict) -> list[str]:
    lines = []
    for kind in ("speaking", "listening"):
        known = {n: a["gestures"][kind] for n, a in arms.items() if kind in a["gestures"]}
        if not known:
            continue
        columns: _Columns = {
            "head: spread": lambda g: number(100 * g["head_spread"]),
            "to truth": lambda g: number(g["to_truth"]["head_spread"]),
            "head: speed a second": lambda g: number(100 * g["head_speed"]),
            "to truth ": lambda g: number(g["to_truth"]["head_speed"]),
            "blinks a minute": lambda g: number(g["blinks_per_minute"], 1),
            "blink, ms": lambda g: _ms(g["blink_s"]),
        }
        lines += [f"**Head and eyes, {kind}.** Head in per cent of the picture's height.", "",
                  *_by_arm(known, columns)]  # fmt: skip
    return lines


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None or seconds != seconds else f"{1000 * seconds:.0f}"


def _diversity(arms: dict) -> list[str]:
    known = {n: a["diversity"] for n, a in arms.items() if a["diversity"]}
    if not known:
        return []
    columns: _Columns = {
        "pixels, 0..1": lambda d: number(d["pixels"], 4),
        "to truth": lambda d: number(d["to_truth"]["pixels"]),
        "head, pixels": lambda d: number(d["head"]),
        "to truth ": lambda d: number(d["to_truth"]["head"]),
        "correlation of the lips": lambda d: number(d["lips"]),
    }
    return ["**Between seeds** of the same picture and sound.", "", *_by_arm(known, columns)]


def _long(name: str, long: dict) -> list[str]:
    finite = "All numbers are finite." if long["finite"] else "NOT all numbers are finite."
    memory = ""
    if long["memory_mb"]:
        first, last = (number(long["memory_mb"][k], 0) for k in ("first", "last"))
        memory = f" Memory {first} MB after the first chunks, {last} MB at the end."
    rows = []
    for key, words in _LOOKS.items():
        drift, runs = long["drift"][key], long.get("runs", {}).get(key)
        rows.append([
            words, number(drift["first"], 4), number(drift["last"], 4),
            number(long["per_minute"][key], 5),
            number(runs["mean"], 4) if runs else NONE, number(runs["spread"], 4) if runs else NONE,
            number(runs["change"], 1) if runs else number(drift["change"], 1),
        ])  # fmt: skip
    head = ["to the reference", "first window", "last window", "a minute", "first of other runs",
            "their spread", "change / spread"]  # fmt: skip
    return [
        f"**One stream of {number(long['seconds'], 0)} s: {name}.** {finite}{memory} Windows of "
        f"{long['window_s']:g} s. Correlation of the lips "
        f"{number(long['correlation_first_30_s'])} in the first 30 s, "
        f"{number(long['correlation_last_30_s'])} in the last 30 s.", "", *table(head, rows),
    ]  # fmt: skip


def evaluation(results: dict) -> str:
    """Markdown of a `quality.json` that `launch/evaluate.py` wrote."""
    arms = results["arms"]
    lines = [facts(results), "", *_summary(arms), *_silence(arms), *_distances(arms)]
    lines += [*_gestures(arms), *_diversity(arms)]
    for name, arm in arms.items():
        if "long" in arm:
            lines += _long(name, arm["long"])
    rows = [
        [group, str(row["clips"]), *(number(row[a]["correlation"]) for a in arms)]
        for group, row in results["groups"].items()
    ]
    lines += ["**Lip sync by voice and style.**", "", *table(["group", "clips", *arms], rows)]
    return "\n".join(lines).rstrip() + "\n"
