#!/bin/sh
# All benchmarks, held against their promises. The compiled modules are required: the pure ones are no product figure.
set -eu
cd "$(dirname "$0")/.."
TITAN_FAST_ACCEL=require PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" perf/gate.py "$@"
