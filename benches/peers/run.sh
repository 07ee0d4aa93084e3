#!/usr/bin/env bash
# Installs the peers if they are missing, builds PACE, and runs all of them in turns: run.sh [FOLDER] [flags of peers.py]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/pace-peers
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    dir=$1
    shift
fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
peers=llama.cpp,pytorch,candle
for ((i = 1; i <= $#; i++)); do
    if [ "${!i}" = --peers ]; then
        next=$((i + 1))
        peers=${!next}
    fi
done

names=()
for peer in ${peers//,/ }; do
    [ "$peer" = pace ] || names+=("$peer")
done
"$here/install.sh" "$dir" "${names[@]}"
pace=${PACE_CLI:-}
if [ -z "$pace" ]; then
    (cd "$root" && cargo build --release --quiet -p pace-cli)
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    pace=$target/release/pace-cli
fi
exec "$dir/tools/bin/python" "$here/peers.py" --dir "$dir" --pace "$pace" "$@"
