#!/usr/bin/env bash
# Builds every fuzz target and runs each for a while: bash fuzz/smoke.sh [SECONDS, 60 by default]
# Needs cargo-fuzz (cargo install cargo-fuzz); a stable toolchain is enough. Fails at the first finding, which is
# then in fuzz/artifacts. The committed corpus is only read; new inputs are thrown away.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
build=${CARGO_TARGET_DIR:-../target}/fuzz
export RUSTC_BOOTSTRAP=1
# Freed memory that the sanitizer holds back (256 MiB by itself) counts towards the limit below.
export ASAN_OPTIONS=quarantine_size_mb=32
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo fuzz build --target-dir "$build"
for target in $(cargo fuzz list); do
    printf '\n== %s\n' "$target"
    mkdir "$work/$target"
    cargo fuzz run --target-dir "$build" "$target" "$work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -timeout=5 -print_final_stats=1
done
