#!/bin/sh
# Ours, its peers and the machine's limits on the same work, in one go: perf/peers/run.sh --help
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" perf/peers/compare.py "$@"
