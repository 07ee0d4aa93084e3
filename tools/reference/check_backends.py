"""Runs pace-cli on one model under each backend and random mixes of them, in bf16, and compares the results.

    python check_backends.py SmolLM2-135M-Instruct.Q4_1.gguf --pace-cli target/release/pace-cli

Every configuration scores and continues a text. Exit code 1 unless all are within the bf16 tolerance of NATIVE, and those
without NATIVE have the same log-probabilities, bit for bit, and the same greedy ids. Needs no packages.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

import pace

OPERATORS = ["norm", "qkv_projection", "rope", "attention", "out_projection", "mlp", "lm_head"]

TEXT = (
    "The old lighthouse keeper climbed the stairs every evening, although no ship had passed for years. One night the "
    "lamp would not burn, and he heard a bell from the sea. He counted 1, 2, 3 strokes, then wrote down: "
    "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)"
)


def backends(cli: Path) -> dict[str, list[str]]:
    """The backends of each operator that exist here in bf16."""
    cells = [c for c in pace.run(cli, "ops")["operators"] if c["available"] and c["dtype"] == "bf16"]
    return {op: [c["backend"] for c in cells if c["operator"] == op] for op in OPERATORS}


def single(exist: dict[str, list[str]], backend: str) -> dict[str, str]:
    """`backend` wherever it exists; elsewhere the backend that the built-in rule has."""
    rule = {op: "flash" if op == "attention" else "tpp" for op in OPERATORS}
    return {op: backend if backend in exist[op] else rule[op] for op in OPERATORS}


def mixed(exist: dict[str, list[str]], rng: random.Random, native: bool) -> dict[str, str]:
    """A random backend for each operator."""
    return {op: rng.choice([b for b in exist[op] if native or b != "native"]) for op in OPERATORS}


def named(config: dict[str, str]) -> str:
    """A configuration for people: backends in the order of OPERATORS."""
    return "/".join(config[op] for op in OPERATORS)


def answer(cli: Path, model: Path, config: dict[str, str], count: int) -> tuple[list[float], list[int], bool]:
    """Log-probabilities, greedy ids, and whether pace-cli promises the same bits whatever the batch."""
    flags = [flag for op, backend in config.items() for flag in ("--op", f"{op}={backend}")]
    scored = pace.run(cli, "score", "--model", str(model), "--text", TEXT, "--top", "5", "--dtype", "bf16", *flags)
    length = ["--max-new-tokens", str(count), "--temperature", "0", "--ignore-eos", "--dtype", "bf16"]
    written = pace.run(cli, "generate", "--model", str(model), "--prompt", TEXT, *length, *flags)
    if not all(written["operators"][op] == backend for op, backend in config.items()):
        raise pace.PaceError(f"{named(config)} ran as {written['operators']}")
    logprobs = scored["logprobs"][1:] + [entry["logprob"] for entry in scored["next"]]
    promised = pace.run(cli, "info", str(model), *flags)["bit_equal"]
    return logprobs, written["tokens"], promised


def check(cli: Path, model: Path, configs: dict[str, dict[str, str]], count: int) -> bool:
    """Prints a row for each configuration; whether all of them pass."""
    results = {name: answer(cli, model, config, count) for name, config in configs.items()}
    native, first = results["native"][0], results["tpp"]
    print(f"{'configuration':14} {'mean |diff|':>12} {'max |diff|':>12}  {'bits':10} greedy ids  {'/'.join(OPERATORS)}")
    passed = True
    for name, (logprobs, ids, promised) in results.items():
        gaps = [abs(a - b) for a, b in zip(logprobs, native, strict=True)]
        mean, in_class = sum(gaps) / len(gaps), "native" not in configs[name].values()
        # JSON has as many digits as tell one f64 from the next.
        same, alike = logprobs == first[0], ids == first[1]
        ok = mean <= pace.LIMIT_BF16_MEAN and (not in_class or (same and alike and promised))
        passed &= ok
        bits, greedy = "equal" if same else "differ", "equal" if alike else "differ"
        row = f"{name:14} {mean:12.2e} {max(gaps):12.2e}  {bits:10} {greedy:10}  {named(configs[name])}"
        print(row + ("" if ok else "   FAILED"), flush=True)
    return passed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a directory or a GGUF file")
    parser.add_argument("--pace-cli", type=Path, required=True, help="the binary")
    parser.add_argument("--mixes", type=int, default=10, help="random mixes; a third of them may have NATIVE (default: 10)")
    parser.add_argument("--new-tokens", type=int, default=32, help="greedy ids (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the mixes (default: 0)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as cache:
        # No measured plan, and nothing set by the environment.
        os.environ["PACE_CACHE"] = cache
        os.environ.pop("PACE_OP_CONFIG", None)
        try:
            exist = backends(args.pace_cli)
            every = sorted({backend for of in exist.values() for backend in of})
            configs = {backend: single(exist, backend) for backend in every}
            for i in range(args.mixes):
                configs[f"mix {i + 1}"] = mixed(exist, rng, native=i % 3 == 2)
            passed = check(args.pace_cli, args.model, configs, args.new_tokens)
        except pace.PaceError as error:
            sys.exit(f"pace-cli: {error}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
