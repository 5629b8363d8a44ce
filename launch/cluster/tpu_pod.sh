#!/usr/bin/env bash
# Trains on a Cloud TPU slice: copies the repository to every worker, installs, and starts.
#
#   launch/cluster/tpu_pod.sh NAME ZONE [setup|start|stop|log]
#
# Change the settings below. The slice is one that exists (gcloud compute tpus tpu-vm create NAME
# --accelerator-type=v5p-128 --version=v2-alpha-tpuv5); DATA and WORKDIR lie in a place that all
# workers see: a bucket mounted by gcsfuse, or Filestore.
set -euo pipefail

settings=(
  PRESET="${PRESET:-tm-18b}"
  DATA="${DATA:-/mnt/tm-jax/examples}"
  WORKDIR="${WORKDIR:-/mnt/tm-jax/runs/tm-18b}"
  START="${START:-/mnt/tm-jax/weights/transformer}"
  MESH="${MESH:-fsdp=32,seq=2}"
  MORE="${MORE:---set remat=True --set batch=32}"
  PROCESSES=auto
  PYTHON=.venv/bin/python
)

if [ $# -lt 2 ]; then
  echo "usage: launch/cluster/tpu_pod.sh NAME ZONE [setup|start|stop|log]" >&2
  exit 2
fi
name=$1 zone=$2 what=${3:-start}
cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

case $what in
  setup)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:tm-jax.tar.gz" --zone="$zone" --worker=all
    on_all "mkdir -p tm-jax && tar -xzf tm-jax.tar.gz -C tm-jax && cd tm-jax \
      && python3 -m venv .venv && .venv/bin/pip install -q '.[tpu]'"
    ;;
  start)
    quoted=$(printf '%q ' "${settings[@]}")
    on_all "cd tm-jax && env $quoted nohup launch/cluster/stages.sh >> run.log 2>&1 < /dev/null &"
    ;;
  stop) on_all "pkill -TERM -f launch/train.py" ;;
  log) gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 \
    --command="tail -n 50 -f tm-jax/run.log" ;;
  *)
    echo "expected setup, start, stop or log, got $what" >&2
    exit 2
    ;;
esac
