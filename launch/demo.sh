#!/usr/bin/env bash
# Makes out/demo/demo.mp4, four characters who talk in turn, and a contact sheet of it.
#
#   launch/demo.sh [--seconds=4] [--out=folder]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck disable=SC2119  # No extras.
prepare_environment
exec "$TM_JAX_PYTHON" "$TM_JAX_ROOT/launch/demo.py" "$@"
