"""Runs pace-cli and compares its answers with what transformers computed."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIMIT_F32 = 1e-3
LIMIT_BF16_MEAN = 0.03


class PaceError(Exception):
    """pace-cli failed or answered with something else than the JSON object that was asked for."""


@dataclass
class Difference:
    """Absolute differences of log-probabilities, natural logarithm."""

    mean: float
    largest: float


def run(cli: Path, *arguments: str) -> dict:
    """The JSON object that one pace-cli command prints."""
    command = [str(cli), *arguments, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise PaceError(f"exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise PaceError(f"no JSON ({error}): {done.stdout[:200]!r}") from error


def joined(ids: list[int]) -> str:
    """Ids as pace-cli takes them."""
    return ",".join(map(str, ids))


def score(cli: Path, model: Path, ids: list[int], top: int, dtype: str) -> dict:
    """Log-probabilities of the ids and the `top` most likely next ones."""
    return run(cli, "score", "--model", str(model), "--tokens", joined(ids), "--top", str(top), "--dtype", dtype)


def generate(cli: Path, model: Path, ids: list[int], count: int) -> list[int]:
    """`count` greedy ids in f32, no end of sequence."""
    options = ["--max-new-tokens", str(count), "--temperature", "0", "--dtype", "f32", "--ignore-eos"]
    answer = run(cli, "generate", "--model", str(model), "--prompt-tokens", joined(ids), *options)
    return answer["tokens"]


def difference(answer: dict, logprobs: list, next_logprobs: list[float]) -> Difference:
    """Compares a `score` answer over the whole vocabulary; a missing or non-finite value is an error."""
    ours, theirs = answer["logprobs"], logprobs
    if len(ours) != len(theirs) or ours[0] is not None or None in ours[1:]:
        raise PaceError(f"logprobs should be null and {len(theirs) - 1} numbers")
    found = {entry["id"]: entry["logprob"] for entry in answer["next"]}
    if set(found) != set(range(len(next_logprobs))):
        raise PaceError(f"next has {len(found)} of {len(next_logprobs)} ids")
    pairs = list(zip(ours[1:], theirs[1:])) + [(found[i], value) for i, value in enumerate(next_logprobs)]
    gaps = [abs(a - b) for a, b in pairs]
    if any(gap != gap for gap in gaps):
        raise PaceError("a log-probability is not a number")
    return Difference(sum(gaps) / len(gaps), max(gaps))


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """The first step at which two id lists part, None if they are equal."""
    if ours == theirs:
        return None
    return next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
