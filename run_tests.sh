#!/usr/bin/env bash
# Check the code and run the tests: style, types, the fast suite, then the slow one (trains and runs notebooks).
#   ./run_tests.sh           everything
#   ./run_tests.sh --fast    without the slow suite
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/setup.sh

fast=false
case "${1:-}" in
    "") ;;
    --fast) fast=true ;;
    *)
        echo "usage: ./run_tests.sh [--fast]" >&2
        exit 2
        ;;
esac
use_environment dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two processes share the cores
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest -q -n 2 --dist loadgroup
if ! $fast; then
    "$PYTHON" -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder --slow -m slow
fi
