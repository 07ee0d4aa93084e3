"""Runs pace-cli tokenize on llama.cpp's vocabularies and compares it with the ids that lie beside them.

    python check_tokenizers.py DIR --pace-cli target/release/pace-cli

The vocabularies are `ggml-vocab-*.gguf` with `.inp` and `.out` in the source distribution of llama-cpp-python. If DIR
holds none, the distribution is downloaded with pip into DIR and they are unpacked there. Exit code 1 unless every case
of every kind that is supported passes, and comes back as its own text where the tokenizer loses nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pace

SEPARATOR = "\n__ggml_vocab_test__\n"
# What pip needs to read the distribution's metadata.
BUILD = ["scikit-build-core", "cmake", "ninja"]
# Kinds of vocabulary that pace-cli does not read: it must refuse them by name.
UNSUPPORTED = {"bert-bge": "bert", "qwen35": "qwen35"}
PREFIX = "ggml-vocab-"


def fetch(directory: Path) -> None:
    """Downloads the distribution and unpacks its vocabularies."""
    with tempfile.TemporaryDirectory() as temporary:
        venv.create(temporary, with_pip=True)
        binaries = Path(temporary) / "bin"
        pip = [str(binaries / "python"), "-m", "pip", "--quiet"]
        # cmake is looked for on the path.
        env = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run([*pip, "install", *BUILD], check=True, env=env)
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"]
        subprocess.run([*pip, "download", *options, "--dest", str(directory), "llama-cpp-python"], check=True, env=env)
    archive = max(directory.glob("llama_cpp_python-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name)
            if member.isfile() and name.parts[-3:-1] == ("llama.cpp", "models") and name.name.startswith(PREFIX):
                (directory / name.name).write_bytes(tar.extractfile(member).read())


def check_case(cli: Path, model: Path, text: str, expected: list[int]) -> str:
    """What is wrong with one case; nothing if all is well."""
    try:
        return difference(cli, model, text, expected)
    except pace.PaceError as error:
        return f"{text!r}: {error}"


def difference(cli: Path, model: Path, text: str, expected: list[int]) -> str:
    """How pace-cli's answers differ from the expected ids and from the text; nothing if they do not."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        result = pace.run(cli, "tokenize", "--model", str(model), "--file", file.name, "--no-special")
    if result["tokens"] != expected:
        return f"{text!r}: {result['tokens']} instead of {expected}"
    if len(result["pieces"]) != len(expected):
        return f"{text!r}: {len(result['pieces'])} pieces for {len(expected)} tokens"
    back = pace.run(cli, "detokenize", "--model", str(model), "--tokens", json.dumps(expected))
    return "" if back["text"] == text else f"{text!r}: comes back as {back['text']!r}"


def check(cli: Path, model: Path) -> tuple[int, list[str]]:
    """How many cases a vocabulary has, and what is wrong with them."""
    texts = Path(f"{model}.inp").read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{model}.out").read_text().splitlines()
    if texts and texts[-1] == "" and len(texts) == len(lines) + 1:
        texts.pop()
    if len(texts) != len(lines):
        return len(lines), [f"{len(texts)} texts for {len(lines)} lines of ids"]
    cases = [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines)]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda case: check_case(cli, model, *case), cases)
    return len(cases), [wrong for wrong in results if wrong]


def check_refusal(cli: Path, model: Path, kind: str) -> list[str]:
    """What is wrong with how an unsupported kind is refused."""
    try:
        pace.run(cli, "tokenize", "--model", str(model), "--text", "a")
    except pace.PaceError as error:
        return [] if f"`{kind}`" in str(error) else [f"refused, but not by the name `{kind}`: {error}"]
    return ["not refused"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the vocabularies are, or are put")
    parser.add_argument("--pace-cli", type=Path, required=True, help="the binary")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    if not any(args.directory.glob(f"{PREFIX}*.gguf.inp")):
        fetch(args.directory)
    failed = 0
    print(f"{'vocabulary':16} {'cases':>6} {'passed':>7}")
    for inputs in sorted(args.directory.glob(f"{PREFIX}*.gguf.inp")):
        model = inputs.with_suffix("")
        name = model.stem.removeprefix(PREFIX)
        if name in UNSUPPORTED:
            faults = check_refusal(args.pace_cli, model, UNSUPPORTED[name])
            row = "     -       -  refused by name, as it should be" if not faults else "     -       -  FAILED"
        else:
            cases, faults = check(args.pace_cli, model)
            row = f"{cases:6} {cases - len(faults):7}{'  FAILED' if faults else ''}"
        failed += bool(faults)
        print(f"{name:16} {row}", *faults[:5], sep="\n    ", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
