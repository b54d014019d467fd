#!/usr/bin/env bash
# Run the whole paper: set up the environment, then every notebook that is not finished yet.
#   ./run_all.sh                     the default profile: two cores; fetches 93 MB of weights once
#   ./run_all.sh --plan              what would run, why, how long, and what it needs
#   ./run_all.sh --profile NAME      another profile of configs/; --help for the rest
#   ./run_all.sh --export DIR        the adapter of the run that ended last, with its card; --export --help
#   ./run_all.sh --demo              a page to ask the trained policies oneself; --demo --help for the rest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/setup.sh

# Questions are answered with whatever Python is there; wrong settings are refused before anything is installed.
light=false
for argument in "$@"; do
    case "$argument" in
        --plan | --check | --list | --help | -h) light=true ;;
        --demo | --export)
            [ "$argument" = "$1" ] && continue
            echo "error: $argument comes first, with options of its own: ./run_all.sh $argument --help" >&2
            exit 2
            ;;
    esac
done

case "${1:-}" in --demo | --export)
    if $light || ! compgen -G "${PERSONA_RESULTS:-results}/*/provenance.json" >/dev/null; then
        use_light_python # to explain the command, or to say that nothing has run
    elif [ "$1" = "--demo" ]; then
        use_environment demo
    else
        use_environment lab
    fi
    exec "$PYTHON" -m "persona_lib.${1#--}" "${@:2}"
    ;;
esac

if $light; then
    use_light_python
    exec "$PYTHON" -m persona_lib.pipeline "$@"
fi
if ! environment_ready lab; then
    use_light_python
    [[ " $* " == *" --verify "* ]] || "$PYTHON" -m persona_lib.pipeline --check "$@"
    use_environment lab
fi
exec "$PYTHON" -m persona_lib.pipeline "$@"
