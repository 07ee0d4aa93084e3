"""Makes random checkpoints of all kinds, each with expected.json, to try an engine on models that nobody has seen.

    python unseen.py --out DIR --seed 7 --count 20
"""

import argparse
import random
from pathlib import Path

from checkpoints import Checkpoint
from make_fixtures import make, report

GGUF_PLAIN = ("F32", "F16", "BF16")
GGUF_QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "F16")


def random_rope(rng: random.Random) -> tuple[dict, int]:
    """RoPE parameters and a maximum length that goes with them."""
    match rng.choice(["default", "default", "linear", "dynamic", "llama3"]):
        case "linear":
            return {"rope_type": "linear", "factor": rng.choice([1.5, 2.0, 4.0])}, 256
        case "dynamic":
            return {"rope_type": "dynamic", "factor": rng.choice([4.0, 6.0])}, rng.randrange(20, 40)
        case "llama3":
            low, high = rng.choice([(1.0, 4.0), (1.0, 2.0), (0.5, 4.0)])
            original = rng.choice([24, 32, 64])
            factors = {"factor": rng.choice([4.0, 8.0, 32.0]), "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", **factors, "original_max_position_embeddings": original}, 512
    return {"rope_type": "default"}, rng.choice([128, 512, 2048])


def random_heads(rng: random.Random) -> dict:
    """Head counts, head size and hidden size: MHA, GQA or MQA, with or without an explicit head size."""
    kv_heads, group = rng.choice([(1, 1), (1, 4), (1, 3), (2, 2), (2, 3), (3, 1), (3, 2), (5, 1)])
    heads, size = kv_heads * group, 2 * rng.randrange(4, 11)
    explicit = rng.random() < 0.3
    hidden = heads * rng.randrange(max(1, 30 // heads), 72 // heads + 1) if explicit else heads * size
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": size if explicit else None, "hidden": hidden}


def random_gguf(rng: random.Random) -> dict:
    """What makes a checkpoint a GGUF file; quantised ones get row lengths that are multiples of 32."""
    if rng.random() < 0.5:
        return {"gguf_types": tuple(rng.sample(GGUF_PLAIN, 3)), "gguf_version": rng.choice([2, 3])}
    heads, kv_heads = rng.choice([(4, 2), (4, 1), (2, 2)])
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": None, "hidden": 64, "ffn": 32 * rng.randrange(2, 5)}
    return {"gguf_types": tuple(rng.sample(GGUF_QUANTISED, 3)), "gguf_alignment": rng.choice([None, 64]), **shape}


def random_checkpoint(rng: random.Random, name: str) -> Checkpoint:
    """One checkpoint of a random kind."""
    rope, max_positions = random_rope(rng)
    is_gguf = rng.random() < 0.3
    fields = {
        "dtype": rng.choice(["float32", "float16", "bfloat16"]),
        "vocab": rng.randrange(150, 331),
        "layers": rng.randrange(1, 4),
        "ffn": rng.randrange(50, 151),
        "tied": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.4,
        "mlp_bias": rng.random() < 0.3,
        "activation": "silu" if is_gguf else rng.choice(["silu", "silu", "silu", "gelu_pytorch_tanh", "gelu", "relu"]),
        "theta": rng.choice([500.0, 10000.0, 500000.0]),
        "eps": rng.choice([1e-5, 1e-6]),
        "config_style": rng.choice(["v5", "v4"]),
        "shards": rng.choice([1, 1, 2, 5]),
        "prompt_lengths": tuple(sorted(rng.sample(range(1, 90), 3))) if rope["rope_type"] != "dynamic" else (5, max_positions, 45),
        **random_heads(rng),
    }
    if is_gguf:
        # No GGUF key says "dynamic".
        rope = rope if rope["rope_type"] != "dynamic" else {"rope_type": "default"}
        fields |= random_gguf(rng)
    return Checkpoint(name, rope=rope, max_positions=max_positions if rope["rope_type"] != "default" else 512, **fields)


def describe(spec: Checkpoint) -> str:
    """The kind in a few words, for the table."""
    parts = ["gguf " + "/".join(spec.gguf_types) if spec.gguf_types else spec.dtype]
    parts += [f"{spec.heads}:{spec.kv_heads}x{spec.head_size}", spec.rope["rope_type"], spec.activation]
    flags = {"tied": spec.tied, "attention bias": spec.attention_bias, "mlp bias": spec.mlp_bias, "head_dim": spec.head_dim}
    return ", ".join(parts + [flag for flag, on in flags.items() if on])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoints")
    parser.add_argument("--seed", type=int, required=True, help="the same seed makes the same checkpoints")
    parser.add_argument("--count", type=int, default=10, help="how many (default: 10)")
    args = parser.parse_args()
    for index in range(args.count):
        rng = random.Random(f"{args.seed}/{index}")
        spec = random_checkpoint(rng, f"unseen-{args.seed}-{index:03}")
        result = make(spec, rng.randrange(1 << 30), args.out)
        report(spec.name, result, args.out / spec.name)
        print(" " * 20, describe(spec), flush=True)


if __name__ == "__main__":
    main()
