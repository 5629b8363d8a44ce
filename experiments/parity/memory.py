"""Peak memory and time of converting weights of full size, both ways.

  python -m experiments.parity.memory [--preset=wan-1.3b] [--layers=30] [--folder=/tmp]

Writes a synthetic checkpoint in the diffusers layout (bfloat16), converts it to ours and
back with launch/convert.py in processes of their own, compares the result bit by bit, and
adds rows to memory.json. The disk must hold the weights three times.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from absl import app
from absl import flags
import ml_dtypes
import numpy as np

from experiments.parity import run
from tm_jax.checkpoints import mapping
from tm_jax.checkpoints import parts
from tm_jax.checkpoints import sinks
from tm_jax.checkpoints import sources
from tm_jax.configs import presets
from tm_jax.core import trees
from tm_jax.parallel import rules

_HERE = pathlib.Path(__file__).parent
_NOTE = (
    "Seconds are those of a machine with two cores that was busy with other work; they are an "
    "upper bound."
)

_PRESET = flags.DEFINE_string("preset", "wan-1.3b", "Size of the weights.")
_LAYERS = flags.DEFINE_integer("layers", None, "Fewer layers than the preset has.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to work; the system's by default.")
_TO = flags.DEFINE_list("to", ["ours", "orbax"], "Layouts to convert to, and back from.")

# What a child process does: as launch/convert.py, with a preset of fewer layers.
_CHILD = """
import dataclasses, sys
from tm_jax.models import presets
from tm_jax.weights import convert, parts
name, layers, source, out, to = sys.argv[1:]
preset = presets.get(name)
preset = dataclasses.replace(preset, dit=dataclasses.replace(preset.dit, num_layers=int(layers)))
report = convert.convert(parts.transformer(preset), source, out, to=to)
print("\\n".join(report.lines()))
"""


def synthesise(part: parts.Part, path: str):
    """Writes random finite bfloat16 numbers in the diffusers layout, shard by shard."""
    shapes = trees.flatten(rules.unbox(part.boxed))
    items = {}
    for row in part.rows("diffusers"):
        for name, shape in zip(mapping.names(row[0]), mapping.source_shapes(row, shapes)):
            items[name] = _Item(shape=shape, dtype=np.dtype(ml_dtypes.bfloat16))
    block = np.random.default_rng(0).standard_normal(2**22, np.float32)
    block = block.astype(ml_dtypes.bfloat16)

    def tensors():
        for i, (name, item) in enumerate(items.items()):
            # Another start in the block for every tensor: none is equal to its neighbour.
            yield name, np.resize(block[i:], item.shape)

    sinks.write_safetensors(
        path, items, tensors(), stem="diffusion_pytorch_model", limit=5 * 10**9
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Item:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype


def measure(command: list[str]) -> dict:
    """Runs a process; its peak memory in GB and its seconds."""
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment)
    peak = {"RssAnon": 0, "VmHWM": 0}

    def watch():
        while process.poll() is None:
            try:
                text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in text.splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    thread.join()
    if code:
        raise SystemExit(f"{' '.join(command[:3])} ... ended with {code}.")
    return {
        "peak_anonymous_gb": peak["RssAnon"] * 1024 / 1e9,
        "peak_resident_gb": peak["VmHWM"] * 1024 / 1e9,
        "seconds": time.monotonic() - start,
    }


def same(first: str, second: str) -> bool:
    """Whether two checkpoints hold the same tensors, bit by bit."""
    a, b = sources.open_source(first), sources.open_source(second)
    return a.keys() == b.keys() and all(
        np.array_equal(np.asarray(a[n]).view(np.uint16), np.asarray(b[n]).view(np.uint16))
        for n in a
    )


def rows(preset: presets.Preset, layers: int, work: str) -> list[dict]:
    """Measures every conversion of one size."""
    small = dataclasses.replace(
        preset, dit=dataclasses.replace(preset.dit, num_layers=layers)
    )
    start = os.path.join(work, "diffusers")
    synthesise(parts.transformer(small), start)
    size = sources.open_source(start).nbytes / 1e9
    whole = layers == preset.dit.num_layers
    words = f"transformer of {preset.name}" + ("" if whole else f", {layers} layers")

    def go(before, after, to):
        command = [sys.executable, "-c", _CHILD, preset.name, str(layers), before, after, to]
        return {"weights": words, "read_gb": size, **measure(command)}

    found = []
    for to in _TO.value:
        ours, back = os.path.join(work, to), os.path.join(work, "back")
        found.append({**go(start, ours, to), "conversion": f"diffusers to {to}"})
        found.append({**go(ours, back, "diffusers"), "conversion": f"{to} to diffusers"})
        if not same(start, back):
            raise SystemExit(f"diffusers to {to} and back is not the same.")
        subprocess.run(["rm", "-r", ours, back], check=True)
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    preset = presets.get(_PRESET.value)
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as work:
        found = rows(preset, _LAYERS.value or preset.dit.num_layers, work)
    path = _HERE / "memory.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(r["weights"], r["conversion"]) for r in found}
    kept = [r for r in old if (r["weights"], r["conversion"]) not in new]
    memory = {"rows": kept + found, "note": _NOTE}
    path.write_text(json.dumps(memory, indent=1) + "\n")
    if (_HERE / "results.json").exists():
        run.write_page(_HERE)


if __name__ == "__main__":
    app.run(main)
