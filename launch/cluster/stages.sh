#!/usr/bin/env bash
# Trains the stages of a preset one after another, as one process of several or alone. The
# other scripts of this folder start it on every machine; started again, it goes on where it was.
#
# Settings are environment variables:
#   PRESET      what is trained                                          (tm-18b)
#   STAGES      stages in their order                                    (teacher student distill)
#   DATA        prepared examples, launch/prepare.py                     (required)
#   WORKDIR     folder of the run, seen by all machines                  (required)
#   START       weights that the teacher starts from, file or folder     (required by stage teacher)
#   EXPORT      folder for the finished weights                          (WORKDIR/weights)
#   MESH        sizes of mesh axes, as fsdp=8                            (all devices on data)
#   PROCESSES   auto: SLURM, TPUs or JAX_* variables tell; empty: alone  (empty)
#   MORE        further flags for every stage, such as "--set remat=True --set lora.rank=64"
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."

: "${PRESET:=tm-18b}" "${STAGES:=teacher student distill}" "${MESH:=}" "${PROCESSES:=}" "${MORE:=}"
: "${DATA:?name the folder of prepared examples}" "${WORKDIR:?name the folder of the run}"
: "${EXPORT:=$WORKDIR/weights}" "${PYTHON:=python}"

read -ra more <<< "$MORE"
for stage in $STAGES; do
  flags=(--preset="$PRESET" --stage="$stage" --data="$DATA" --workdir="$WORKDIR" --export="$EXPORT")
  flags+=(--mesh="$MESH" --hosts="$PROCESSES")
  if [ "$stage" = teacher ]; then
    flags+=(--start="${START:?name the weights that the teacher starts from}")
  fi
  echo "$(date +%H:%M:%S)  $stage"
  # A finished stage returns at once; one that was stopped ends this script with its status.
  "$PYTHON" launch/train.py "${flags[@]}" ${more[@]+"${more[@]}"}
done
