"""Makes the committed fixtures: tiny random Llama checkpoints and what transformers computes for them.

    python make_fixtures.py [--out DIR] [--only NAME]...
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import torch

from checkpoints import Checkpoint, config_json, draw, write_checkpoint, write_json
from expected import MIN_MARGIN, expected, write_expected
from gguf_files import read_tensors, write_gguf
from quantised import Quantisation, write_weights
from tiny_tokenizer import expected_texts, train, write_tokenizer

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "pace-runtime" / "tests" / "fixtures"
ATTEMPTS = 40

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SAMPLING = {"bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 5], "temperature": 0.7, "top_k": 20, "top_p": 0.9}
GQA = Checkpoint("gqa-tied", "bfloat16", 293, 60, 3, 6, 2, 102, tied=True, tokenizer=True)
ROPE_LLAMA3 = Checkpoint("rope-llama3", "bfloat16", 241, 48, 2, 2, 1, 94, rope=LLAMA3, config_style="v4", tied=True)
QUANTISED = Checkpoint("", "float16", 227, 64, 2, 4, 2, 96, config_style="v4")

FIXTURES = [
    GQA,
    Checkpoint("mha-untied-bias", "float32", 211, 40, 2, 5, 5, 77, attention_bias=True, mlp_bias=True, config_style="v4"),
    Checkpoint("mqa-headdim", "float16", 257, 48, 3, 4, 1, 90, head_dim=18, eps=1e-6),
    Checkpoint("rope-linear", "float32", 229, 44, 2, 2, 1, 83, rope={"rope_type": "linear", "factor": 3.0}, theta=500.0),
    Checkpoint(
        "rope-dynamic", "float32", 223, 40, 2, 4, 2, 75, rope={"rope_type": "dynamic", "factor": 4.0},
        max_positions=32, prompt_lengths=(7, 32, 33, 40),
    ),
    ROPE_LLAMA3,
    Checkpoint("sharded", "bfloat16", 269, 54, 3, 3, 3, 101, shards=4, config_style="v4", generation=SAMPLING),
    Checkpoint(
        "legacy-config", "float32", 205, 42, 2, 3, 3, 71, rope={"rope_type": "linear", "factor": 2.0}, config_style="v4-old",
        generation={"bos_token_id": 1, "eos_token_id": [2, 7]}, generation_trailing_commas=True, eps=1e-6,
    ),
    Checkpoint("act-gelu-tanh", "bfloat16", 201, 40, 2, 4, 2, 70, activation="gelu_pytorch_tanh"),
    Checkpoint("act-gelu", "bfloat16", 203, 40, 2, 4, 2, 70, activation="gelu"),
    Checkpoint("act-relu", "float16", 207, 40, 2, 4, 2, 70, activation="relu", tied=True),
    replace(GQA, name="gguf-bf16", gguf_types=("BF16", "F32", "F16", "BF16", "BF16")),
    Checkpoint(
        "gguf-quant", "float32", 251, 64, 2, 4, 2, 96, gguf_types=("Q8_0", "Q4_0", "Q4_1"), gguf_version=2, gguf_alignment=64,
    ),
    replace(ROPE_LLAMA3, name="gguf-rope-freqs", gguf_types=("BF16",)),
    replace(QUANTISED, name="gptq", quantisation=Quantisation("gptq", 4, 32, True)),
    replace(
        QUANTISED, name="gptq-act-order", quantisation=Quantisation("gptq", 4, 32, False, True, "gptq_v2"),
    ),
    replace(QUANTISED, name="gptq-int8", quantisation=Quantisation("gptq", 8, None, False)),
    replace(QUANTISED, name="awq", attention_bias=True, quantisation=Quantisation("awq", 4, 32, False)),
    replace(QUANTISED, name="w8a8", quantisation=Quantisation("int-quantized", 8, None, True)),
    replace(QUANTISED, name="w4a16", quantisation=Quantisation("pack-quantized", 4, 32, False)),
]


def write_model(spec: Checkpoint, seed: int, directory: Path, scratch: Path) -> Path:
    """Writes the model of one seed; returns the directory from which transformers reads the same weights."""
    tensors = draw(spec, seed)
    tokenizer = train(spec.vocab) if spec.tokenizer else None
    if spec.quantisation is not None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", config_json(spec))
        meant = write_weights(tensors, spec.quantisation, directory, seed)
        meant = {name: values.float().contiguous() for name, values in meant.items()}
        check_stored(spec, tensors, meant)
        write_checkpoint(replace(spec, dtype="float32", quantisation=None), meant, scratch)
        return scratch
    if spec.gguf_types is None:
        write_checkpoint(spec, tensors, directory)
        if tokenizer is not None:
            write_tokenizer(tokenizer, directory)
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    write_gguf(spec, tensors, directory / "model.gguf", tokenizer)
    stored = read_tensors(gguf.GGUFReader(directory / "model.gguf"), spec.heads, spec.kv_heads)
    check_stored(spec, tensors, stored)
    write_checkpoint(replace(spec, dtype="float32"), stored, scratch)
    return scratch


def check_stored(spec: Checkpoint, drawn: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> None:
    """Fails unless the file holds what was drawn, up to the rounding of its tensor types."""
    if set(drawn) != set(stored):
        raise ValueError(f"{spec.name}: tensors {sorted(set(drawn) ^ set(stored))} are on one side only")
    for name, values in drawn.items():
        gap = (stored[name] - values.float()).abs().mean() / values.float().abs().mean()
        rounded = spec.quantisation or any(kind.startswith("Q") for kind in spec.gguf_types)
        limit = 0.2 if rounded else 4e-3
        if gap > limit:
            raise ValueError(f"{spec.name}: {name} is {gap:.2} away from what was drawn")


def make(spec: Checkpoint, seed: int, out: Path) -> dict:
    """Makes one fixture with the first seed from `seed` on whose greedy steps are all clear choices."""
    directory = out / spec.name
    for attempt in range(seed, seed + ATTEMPTS):
        if directory.exists():
            shutil.rmtree(directory)
        with tempfile.TemporaryDirectory() as scratch:
            source = write_model(spec, attempt, directory, Path(scratch))
            result = expected(spec, source, attempt)
        if result["min_margin"] > MIN_MARGIN:
            break
    else:
        raise ValueError(f"{spec.name}: no clear greedy choices with {ATTEMPTS} seeds")
    model = {"name": spec.name, "model": "model.gguf" if spec.gguf_types else ".", "stored": storage(spec)}
    texts = expected_texts(train(spec.vocab)) if spec.tokenizer else {}
    write_expected(directory / "expected.json", model | result | texts)
    return result


def storage(spec: Checkpoint) -> str | tuple[str, ...]:
    """How the matrices are stored, for expected.json."""
    return spec.quantisation.label if spec.quantisation else spec.gguf_types or spec.dtype


def check_llama3_bands(spec: Checkpoint) -> None:
    """Fails unless kept, blended and divided frequencies all occur."""
    low = LLAMA3["original_max_position_embeddings"] / LLAMA3["low_freq_factor"]
    high = LLAMA3["original_max_position_embeddings"] / LLAMA3["high_freq_factor"]
    pairs = torch.arange(0, spec.head_size, 2) / spec.head_size
    wavelengths = 2 * torch.pi * spec.theta**pairs
    bands = torch.bucketize(wavelengths, torch.tensor([high, low]))
    if set(bands.tolist()) != {0, 1, 2}:
        raise ValueError(f"{spec.name}: wavelengths {wavelengths.tolist()} miss a band")


def report(name: str, result: dict, directory: Path) -> None:
    """One line per fixture."""
    size = sum(file.stat().st_size for file in directory.iterdir())
    margin, bf16 = result["min_margin"], result["torch_bf16_mean_abs_diff"]
    print(f"{name:20} seed {result['seed']:4} min margin {margin:.4f}  bf16 mean |diff| {bf16:.4f}  {size / 1024:7.0f} KiB", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the fixtures go (default: the repository's)")
    parser.add_argument("--only", action="append", metavar="NAME", help="make only this fixture; may be repeated")
    args = parser.parse_args()
    check_llama3_bands(ROPE_LLAMA3)
    for spec in FIXTURES:
        if not args.only or spec.name in args.only:
            report(spec.name, make(spec, 1, args.out), args.out / spec.name)


if __name__ == "__main__":
    main()
