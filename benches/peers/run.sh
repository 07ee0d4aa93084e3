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
pace=
for ((i = 1; i < $#; i++)); do
    next=$((i + 1))
    case ${!i} in
        --peers) peers=${!next} ;;
        --pace) pace=${!next} ;;
    esac
done

names=(tools)
for peer in ${peers//,/ }; do
    [ "$peer" = pace ] || names+=("$peer")
done
"$here/install.sh" "$dir" "${names[@]}"
if [ -z "$pace" ]; then
    (cd "$root" && cargo build --release --quiet -p pace-cli)
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    set -- --pace "$target/release/pace-cli" "$@"
fi
exec "$dir/tools/bin/python" -B "$here/peers.py" --dir "$dir" "$@"
