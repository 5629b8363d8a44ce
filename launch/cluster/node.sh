#!/usr/bin/env bash
# Trains on one machine, with all of its devices, and starts again after a crash.
#
#   launch/cluster/node.sh
#
# Change the settings below, or set them in the environment (launch/cluster/stages.sh has all).
set -euo pipefail

export PRESET="${PRESET:-wan-1.3b}"
export DATA="${DATA:-runs/examples}"
export WORKDIR="${WORKDIR:-runs/$PRESET}"
export START="${START:-weights/transformer}"
export MESH="${MESH:-}"                          # Eight devices: fsdp=8.
export MORE="${MORE:---set remat=True --set lora.rank=64}"
export PYTHON="${PYTHON:-.venv/bin/python}"
attempts="${ATTEMPTS:-5}"

cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."
for ((attempt = 1; attempt <= attempts; attempt++)); do
  status=0
  launch/cluster/stages.sh || status=$?
  case $status in
    0) exit 0 ;;
    # A wrong setting stays wrong; a signal was meant.
    1 | 129 | 130 | 143) exit "$status" ;;
  esac
  echo "$(date +%H:%M:%S)  ended with status $status; attempt $attempt of $attempts" >&2
  sleep 5
done
exit "$status"
