"""What a run of run.sh came to: losses as a plot, the video as a contact sheet, hours as JSON.

  python -m experiments.from_videos.report --work=runs/from_videos
"""

import datetime
import json
import pathlib
import struct

from absl import app
from absl import flags
import av
import imageio.v3 as iio
import matplotlib
import numpy as np
from tensorboardX.proto import event_pb2

matplotlib.use("agg")
from matplotlib import pyplot

from tm_jax.evaluation import facts
from tm_jax.evaluation import tables

_WORK = flags.DEFINE_string("work", None, "Folder of the run.", required=True)
_HERE = pathlib.Path(__file__).parent
_STAGES = {"teacher": ("loss", "flow_high"), "student": ("loss",), "distill": ("dmd", "gap")}
_COLUMNS, _ROWS, _SIDE = 8, 3, 160
_HEADER = 12  # Bytes of length and checksum before a record of an event file; 4 follow it.


def scalars(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Metrics of a TensorBoard folder by name: (step, value)."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at + _HEADER < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + _HEADER : at + _HEADER + size])
            at += _HEADER + size + 4
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: sorted(values.items()) for name, values in found.items()}


def plot(work: pathlib.Path, path: pathlib.Path) -> dict:
    """Draws the losses of all stages; returns first and last values, means of a tenth each."""
    figure, axes = pyplot.subplots(1, len(_STAGES), figsize=(12, 3.2), layout="constrained")
    ends: dict[str, dict] = {}
    for axis, (stage, names) in zip(axes, _STAGES.items()):
        metrics = scalars(work / stage / "tensorboard")
        for name in names:
            steps, values = np.array(metrics.get(name, [(0, np.nan)])).T
            axis.plot(steps, values, label=name, linewidth=0.8)
            part = max(1, len(values) // 10)
            ends.setdefault(stage, {})[name] = [
                float(np.nanmean(values[:part])), float(np.nanmean(values[-part:])),
            ]  # fmt: skip
        axis.set_title(stage)
        axis.legend()
    figure.savefig(path)
    pyplot.close(figure)
    return ends


def sheet(video: pathlib.Path, path: pathlib.Path) -> None:
    """Frames at equal distances, in rows."""
    with av.open(str(video)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    chosen = np.linspace(0, len(frames) - 1, _COLUMNS * _ROWS).astype(int)
    step = max(1, frames[0].shape[0] // _SIDE)
    small = [frames[i][::step, ::step] for i in chosen]
    rows = [np.concatenate(small[r * _COLUMNS : (r + 1) * _COLUMNS], 1) for r in range(_ROWS)]
    iio.imwrite(path, np.concatenate(rows))


def minutes(log: str) -> dict[str, float]:
    """Minutes of every step of a log of lines `HH:MM:SS  what`; a run over midnight counts on."""
    lines = [line.split("  ", 1) for line in log.splitlines() if line]
    times = [datetime.datetime.strptime(at, "%H:%M:%S") for at, _ in lines]
    found = {}
    for (_, what), start, end in zip(lines, times, times[1:]):
        spent = (end - start).total_seconds() % 86400 / 60
        found[what] = round(found.get(what, 0.0) + spent, 1)
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    work = pathlib.Path(_WORK.value)
    spent = minutes((work / "log.txt").read_text())
    results = {
        "hardware": facts.hardware(), "minutes": spent,
        "minutes_in_all": round(sum(spent.values()), 1),
        "losses": plot(work, _HERE / "losses.png"),
    }
    sheet(work / "talking.mp4", _HERE / "talking.png")
    (_HERE / "results.json").write_text(json.dumps(facts.plain(results), indent=1) + "\n")
    rows = [[what, tables.number(value, 1)] for what, value in spent.items()]
    rows.append(["all", tables.number(results["minutes_in_all"], 1)])
    text = "\n".join([f"{results['hardware']}.", "", *tables.table(["step", "minutes"], rows)])
    tables.put(_HERE / "README.md", text.rstrip())
    print(text)


if __name__ == "__main__":
    app.run(main)
