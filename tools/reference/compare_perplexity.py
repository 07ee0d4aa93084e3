"""Compares the perplexity of `pace-cli score --stride` with HF's recipe for long texts, run with transformers in f32.

    python compare_perplexity.py smollm2-hf article.txt --pace-cli target/release/pace-cli

The recipe cuts the text into overlapping windows; the labels of tokens that an earlier window had are -100, and the mean
loss of a window weighs as many labels as it is a mean of, less the one that the shift of the labels takes away. Exit code 1
unless token ids are equal and the perplexities differ by less than 1e-4 of their value in every setting.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

import pace
from expected import load

LIMIT = 1e-4
IGNORED = -100

# (window, stride): overlaps of a half, of three quarters and none; sizes that divide nothing; a text in one window.
SETTINGS = [(512, 256), (256, 64), (256, 256), (333, 101), (2048, 2048)]


def perplexity(model, ids: list[int], window: int, stride: int) -> float:
    """HF's recipe on one text."""
    total, labels, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        targets = inputs.clone()
        targets[:, : end_before - begin] = IGNORED
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss.item()
        count = int((targets != IGNORED).sum()) - 1
        total += loss * count
        labels += count
        end_before = end
        if end == len(ids):
            break
    return math.exp(total / labels)


def compare(cli: Path, source: Path, model, text: Path, ids: list[int], window: int, stride: int) -> bool:
    """Prints the row of one setting; whether it passes."""
    options = ["--window", str(window), "--stride", str(stride), "--dtype", "f32"]
    answer = pace.run(cli, "score", "--model", str(source), "--file", str(text), *options)
    theirs, ours = perplexity(model, ids, window, stride), answer["perplexity"]
    gap = abs(ours - theirs) / theirs
    passed = answer["tokens"] == ids and gap < LIMIT
    print(f"{window:6} {stride:6} {theirs:14.8f} {ours:14.8f} {gap:10.1e}" + ("" if passed else "   FAILED"), flush=True)
    return passed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("text", type=Path, help="a text of more than a thousand tokens")
    parser.add_argument("--pace-cli", type=Path, required=True, help="the binary")
    args = parser.parse_args()
    model = load(args.model)
    ids = AutoTokenizer.from_pretrained(args.model).encode(args.text.read_text(encoding="utf-8"))
    print(f"{len(ids)} tokens\n{'window':>6} {'stride':>6} {'transformers':>14} {'pace-cli':>14} {'difference':>10}")
    try:
        passed = [compare(args.pace_cli, args.model, model, args.text, ids, *setting) for setting in SETTINGS]
    except pace.PaceError as error:
        sys.exit(f"pace-cli: {error}")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
