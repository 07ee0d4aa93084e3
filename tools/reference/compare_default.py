"""Compares pace-cli with transformers on the default model, in f32, on several kinds of text.

    python compare_default.py SmolLM2-135M-Instruct.Q4_1.gguf --pace-cli target/release/pace-cli --hf smollm2-hf

The Hugging Face directory is derived from the GGUF file where it does not exist yet; pace-cli runs on both. Exit code 1
unless all token ids are equal and the mean difference of the log-probabilities is at most 1e-3.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

import pace
from expected import greedy, load, log_probabilities
from make_hf_from_gguf import convert

# A greedy choice between ids closer than this is not an error of either side.
NEAR_TIE = 1e-3

PROMPTS = {
    "prose": "The old lighthouse keeper climbed the stairs every evening, although no ship had passed for years. One night",
    "code": "def fibonacci(n: int) -> int:\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n",
    "numbers": "Quarterly results 2024: revenue 1,234,567 (+12.5%), costs 987,654 (-3.2%), margin 19.99. The year 2025",
    "languages": "Guten Tag, ich hätte gern ein Brötchen. Où est la bibliothèque ? 東京は日本の首都です。 Привет, мир! 🙂",
    "list": "Three reasons to sleep well:\n\n1. Memory\n2. Mood\n3.",
    "short": "Once",
}
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def prompts(tokenizer) -> dict[str, str]:
    """All prompt texts; the chat is rendered by the model's own template."""
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return PROMPTS | {"chat": chat}


def explain(table: torch.Tensor, ours: list[int], theirs: list[int], step: int) -> str:
    """What the two sides chose at the step at which they part, and whether it was a coin toss."""
    if step >= min(len(ours), len(theirs)):
        return f"{len(ours)} ids instead of {len(theirs)}"
    gap = (table[-1, theirs[step]] - table[-1, ours[step]]).item()
    kind = "near-tie" if gap < NEAR_TIE else "not a tie"
    return f"step {step}: {ours[step]} instead of {theirs[step]}, {gap:.1e} less likely ({kind})"


def compare(cli: Path, source: Path, model, ids: list[int], count: int) -> tuple[pace.Difference, str | None]:
    """Differences on one prompt; the text tells how greedy ids differ, None if they do not."""
    table = log_probabilities(model, ids)
    given = [None] + [table[i, token].item() for i, token in enumerate(ids[1:])]
    gaps = pace.difference(pace.score(cli, source, ids, table.shape[1], "f32"), given, table[-1].tolist())
    theirs, _ = greedy(model, ids, count)
    ours = pace.generate(cli, source, ids, count)
    step = pace.first_difference(ours, theirs)
    if step is None:
        return gaps, None
    return gaps, explain(log_probabilities(model, ids + theirs[:step]), ours, theirs, step)


def compare_source(cli: Path, source: Path, model, tokenizer, count: int) -> bool:
    """Prints the table of one source (GGUF file or directory); whether all of it passes."""
    print(f"{source}\n{'prompt':10} {'tokens':>6} {'tokenised':>9} {'mean |diff|':>12} {'max |diff|':>12}  greedy ids")
    passed = True
    for name, text in prompts(tokenizer).items():
        ids = tokenizer.encode(text, add_special_tokens=False)
        own = pace.run(cli, "score", "--model", str(source), "--text", text, "--dtype", "f32")["tokens"]
        gaps, parted = compare(cli, source, model, ids, count)
        ok = own == ids and gaps.mean <= pace.LIMIT_F32 and parted is None
        passed &= ok
        tokenised = "equal" if own == ids else "DIFFERS"
        row = f"{name:10} {len(ids):6} {tokenised:>9} {gaps.mean:12.2e} {gaps.largest:12.2e}  {parted or 'equal'}"
        print(row + ("" if ok else "   FAILED"), flush=True)
    return passed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC.gguf", help="the default model")
    parser.add_argument("--pace-cli", type=Path, required=True, help="the binary")
    parser.add_argument("--hf", type=Path, required=True, help="directory of the derived checkpoint, made if it is missing")
    parser.add_argument("--new-tokens", type=int, default=32, help="greedy ids per prompt (default: 32)")
    args = parser.parse_args()
    if not (args.hf / "model.safetensors").exists():
        convert(args.source, args.hf)
    model, tokenizer = load(args.hf), AutoTokenizer.from_pretrained(args.hf)
    try:
        results = [
            compare_source(args.pace_cli, source, model, tokenizer, args.new_tokens) for source in (args.source, args.hf)
        ]
    except pace.PaceError as error:
        sys.exit(f"pace-cli: {error}")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
