"""Makes the committed quantised blocks and the numbers that they stand for, as one GGUF file.

    python make_quant_vectors.py [--out FILE]

Each type is a tensor of random bytes whose scales are finite, called `Q4_K`, with its numbers in f32 beside it, called
`Q4_K.expected`. The numbers are what `gguf.quants.dequantize` makes of the blocks; of Q8_K, which that lacks, the scale times
the integers, both widened to f32 first.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "pace-models" / "tests" / "fixtures" / "quantised.gguf"

# Where the scales of a block are.
SCALES = {
    Kind.Q4_0: (0,),
    Kind.Q4_1: (0, 2),
    Kind.Q5_0: (0,),
    Kind.Q5_1: (0, 2),
    Kind.Q8_0: (0,),
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.Q8_K: (0,),
    Kind.IQ4_NL: (0,),
    Kind.MXFP4: (0,),
}
# One kind of scale a block: as weights have them, subnormal in f16, the largest, a negative zero.
CASES = ("ordinary", "subnormal", "largest", "zero")


def scale(case: str, rng: np.random.Generator) -> float:
    """A scale that f16 holds."""
    sign = rng.choice((-1.0, 1.0))
    match case:
        case "ordinary":
            return sign * rng.uniform(1e-3, 1e-1)
        case "subnormal":
            return sign * rng.uniform(1e-7, 5e-5)
        case "largest":
            return sign * 65504.0
    return -0.0


def exponent(case: str, rng: np.random.Generator) -> int:
    """The exponent of a scale of MXFP4: below 2 the scale is subnormal in f32, and above 246 so large that 128 times it leaves f32."""
    match case:
        case "ordinary":
            return rng.integers(100, 130)
        case "subnormal":
            return 1
        case "largest":
            return 246
    return 0


def stored_scale(kind: Kind, case: str, rng: np.random.Generator) -> np.ndarray:
    """A scale in the type that blocks of a kind have."""
    if kind == Kind.MXFP4:
        return np.array([exponent(case, rng)], np.uint8)
    return np.array([scale(case, rng)], np.float32 if kind == Kind.Q8_K else np.float16)


def blocks(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Random bytes, one block a row."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (len(CASES), size), dtype=np.uint8)
    for row, case in zip(rows, CASES):
        for at in SCALES[kind]:
            stored = stored_scale(kind, case, rng).view(np.uint8)
            row[at : at + stored.size] = stored
    return rows


def numbers(kind: Kind, rows: np.ndarray) -> np.ndarray:
    """What the blocks stand for, one block a row."""
    if kind == Kind.Q8_K:
        d = rows[:, :4].copy().view(np.float32)
        return d * rows[:, 4:260].view(np.int8).astype(np.float32)
    return gguf.quants.dequantize(rows, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(out, "none")
    for kind in SCALES:
        rows = blocks(kind, rng)
        expected = numbers(kind, rows)
        assert np.isfinite(expected).all(), kind.name
        writer.add_tensor(kind.name, rows, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.expected", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
