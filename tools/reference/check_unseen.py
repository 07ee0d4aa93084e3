"""Runs pace-cli on every checkpoint under a directory and compares it with the expected.json that lies beside each.

    python check_unseen.py DIR --pace-cli target/release/pace-cli

Exit code 1 unless every f32 log-probability is within 1e-3, all greedy ids are equal, and the mean difference in bf16 is
below 0.03.
"""

import argparse
import json
import sys
from pathlib import Path

import pace


def check_case(cli: Path, model: Path, case: dict) -> dict:
    """Differences of one prompt."""
    prompt, vocab = case["prompt"], len(case["next_logprobs"])
    f32 = pace.difference(pace.score(cli, model, prompt, vocab, "f32"), case["logprobs"], case["next_logprobs"])
    bf16 = pace.difference(pace.score(cli, model, prompt, vocab, "bf16"), case["logprobs"], case["next_logprobs"])
    tokens = pace.generate(cli, model, prompt, len(case["greedy"]))
    return {"f32": f32.largest, "bf16": bf16.mean, "parts_at": pace.first_difference(tokens, case["greedy"])}


def check(cli: Path, directory: Path) -> tuple[bool, str]:
    """Whether one checkpoint passes, and its row of the table without the name."""
    expected = json.loads((directory / "expected.json").read_text())
    try:
        results = [check_case(cli, directory / expected["model"], case) for case in expected["cases"]]
    except pace.PaceError as error:
        return False, f"error: {error}"
    f32, bf16 = max(r["f32"] for r in results), sum(r["bf16"] for r in results) / len(results)
    parted = [f"prompt {i} at step {r['parts_at']}" for i, r in enumerate(results) if r["parts_at"] is not None]
    ok = f32 <= pace.LIMIT_F32 and bf16 < pace.LIMIT_BF16_MEAN and not parted
    return ok, f"{f32:10.2e} {bf16:10.4f}  {'; '.join(parted) or 'equal'}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds checkpoints with expected.json (the fixtures, too)")
    parser.add_argument("--pace-cli", type=Path, required=True, help="the binary")
    args = parser.parse_args()
    found = sorted(path.parent for path in args.directory.glob("*/expected.json"))
    if not found:
        sys.exit(f"{args.directory}: no */expected.json")
    failed = 0
    print(f"{'checkpoint':22} {'f32 max':>10} {'bf16 mean':>10}  greedy ids")
    for directory in found:
        ok, row = check(args.pace_cli, directory)
        failed += not ok
        print(f"{directory.name:22} {row}{'' if ok else '   FAILED'}", flush=True)
    print(f"{len(found) - failed} of {len(found)} passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
