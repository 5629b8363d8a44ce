"""Provenance of every result file: machine, versions, weights; and how it is written."""

import hashlib
import json
import math
import os
import pathlib
import platform
import sys
from typing import Any

import flax
import jax
import numpy as np

from tm_jax.configs import presets

_BLOCK = 1 << 24  # Bytes read at once.


def hardware() -> str:
    """The processor and the number of its cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # Not Linux: the platform's own name has to do.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} cores"


def weights_hash(folder: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of all weights.

    Of the tensors alone, in the order of their files' and their own names: what else a file
    says, and in which order, differs from one writing to the next.
    """
    total = hashlib.sha256()
    for file in sorted(pathlib.Path(folder).rglob("*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items()):
                begin, end = entry["data_offsets"]
                total.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
                stream.seek(8 + size + begin)
                for at in range(begin, end, _BLOCK):
                    total.update(stream.read(min(_BLOCK, end - at)))
    return total.hexdigest()[:16]


def collect(folder: str | None, **settings: Any) -> dict:
    """Facts of a run.

    Args:
      folder: Folder of the weights; those that come with the package if None.
      **settings: What the run was asked to do.

    Returns:
      `hardware`, `load` when it began, `versions`, `weights` and `settings`.
    """
    return {
        "hardware": hardware(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(), "numpy": np.__version__,
            "jax": jax.__version__, "flax": flax.__version__,
        },
        "weights": weights_hash(folder or presets.shipped("nano")),
        "settings": settings,
    }


def write(path: str, results: dict) -> None:
    """Writes results as JSON: numbers with four digits, null for what is not a number."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), indent=1, allow_nan=False)
    part = pathlib.Path(f"{path}.part")
    part.write_text(text + "\n")
    part.replace(path)
    print(f"Wrote {path}.", file=sys.stderr)


def plain(value: Any) -> Any:
    """The value as JSON can hold it, rounded; None for what is not a number."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        value = float(value)
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
