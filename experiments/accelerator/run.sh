#!/usr/bin/env bash
# Measures this machine's accelerator in at most eight minutes; leaves one JSON.
#
#   experiments/accelerator/run.sh [FOLDER]
#
# Needs Python 3.11+ with jax for the accelerator, and flax, optax, absl-py and numpy beside it:
# no package of this repository is installed, no weights are read, nothing is downloaded.
# PYTHON names another interpreter; further flags of run.py go into FLAGS.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."
folder=${1:-experiments/accelerator}
python=${PYTHON:-python3}
mkdir -p "$folder"

"$python" - <<'PYTHON' || exit 1
import importlib.util
import sys

if sys.version_info < (3, 11):
    sys.exit(f"run.sh: Python 3.11 or newer is needed, this is {sys.version.split()[0]}.")
needed = ("jax", "flax", "optax", "absl", "numpy", "ml_dtypes", "scipy", "PIL", "safetensors", "tqdm")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"run.sh: install {', '.join(missing)} first.")
import jax

device = jax.devices()[0]
print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}")
if device.platform == "cpu":
    print("run.sh: no accelerator here; only small presets make sense: FLAGS=--presets=pico")
PYTHON

read -ra flags <<< "${FLAGS:-}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
"$python" -m experiments.accelerator.run --out="$folder/results.json" ${flags[@]+"${flags[@]}"}
