#!/usr/bin/env bash
# Runs the tests: all of tests/, or what the arguments name. The exit status is pytest's.
#
#   launch/test.sh [-k expression] [tests/core ...]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment test reference plots text hub remote ray serve webrtc agent livekit browser prepare
cd -- "$TM_JAX_ROOT"
# Tests share a device with whatever else runs on it.
export XLA_PYTHON_CLIENT_PREALLOCATE="${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"
# Two at a time, each file in one process: the browser's tests mostly wait. In the order of
# tests/conftest.py, the longest files first.
exec "$TM_JAX_PYTHON" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
