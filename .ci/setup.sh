# Sourced by run_all.sh and run_tests.sh: finds or makes the Python environment, and sets $PYTHON.
#
#   use_environment EXTRA   the active environment if it satisfies the pins, else .venv, made or mended
#   use_light_python        any Python that can read a profile; installs PyYAML at most
#
# Nothing below names a package index: pip's own configuration decides where packages come from. Set
# PERSONA_TORCH_INDEX to a package index to take torch from there (for example one with CPU wheels).

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unset PYTHONDONTWRITEBYTECODE # images set it: every process of a run would compile the package anew
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-100}"
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export TRANSFORMERS_VERBOSITY="${TRANSFORMERS_VERBOSITY:-error}" PYDEVD_DISABLE_FILE_VALIDATION=1
# Nothing is compiled on a processor, but bitsandbytes would import torch's compiler: seconds per process.
command -v nvidia-smi >/dev/null || export TORCHDYNAMO_DISABLE="${TORCHDYNAMO_DISABLE:-1}"

# Print the first Python that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed and none was found" >&2
    return 1
}

# The environment is made again when what it was made from changes.
stamp_of() {
    "$1" -c 'import hashlib, pathlib, sys
files = b"".join(pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
print(hashlib.sha256(files).hexdigest(), sys.argv[1])' "$2"
}

# True if .venv was finished for these files and this extra, or for one that includes it; `uv sync` leaves no stamp.
venv_ready() {
    [ -x .venv/bin/python ] || return 1
    grep -qs '^uv =' .venv/pyvenv.cfg && .venv/bin/python -m persona_lib.execute "$1" 2>/dev/null && return
    [ -f .venv/stamp ] || return 1
    local stamp extra extras="$1"
    stamp="$(cat .venv/stamp)"
    [ "$1" != lab ] || extras="lab dev demo"
    for extra in $extras; do
        [ "$stamp" = "$(stamp_of .venv/bin/python "$extra")" ] && return
    done
    return 1
}

# True if an environment is active and satisfies the pins.
active_ready() {
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || return 1
    python -m persona_lib.execute "$1" >/dev/null 2>&1
}

environment_ready() {
    if active_ready "$1"; then
        PYTHON="$(command -v python)"
    elif venv_ready "$1"; then
        PYTHON="$PWD/.venv/bin/python"
    else
        return 1
    fi
}

use_environment() {
    environment_ready "$1" && return
    local python seconds=$SECONDS
    python="$(find_python)"
    echo "setting up .venv (a few minutes, once)"
    rm -f .venv/stamp
    PYTHON="$PWD/.venv/bin/python"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv # uv, or a killed set-up: no pip
    # torch first and alone, so that nothing later can choose another one.
    "$PYTHON" -m pip install --quiet ${PERSONA_TORCH_INDEX:+--index-url "$PERSONA_TORCH_INDEX"} \
        -c constraints.txt torch
    "$PYTHON" -m pip install --quiet -c constraints.txt -e ".[$1]"
    stamp_of "$PYTHON" "$1" >.venv/stamp
    echo "set up in $((SECONDS - seconds)) s"
}

use_light_python() {
    environment_ready lab && return
    local python
    python="$(find_python)"
    for PYTHON in "$python" "$PWD/.venv-plan/bin/python"; do
        "$PYTHON" -c 'import yaml' 2>/dev/null && return
    done
    "$python" -m venv .venv-plan
    "$PYTHON" -m pip install --quiet -c constraints.txt pyyaml
}
