"""Quantised checkpoints as GPTQ, AWQ and compressed-tensors write them, rounded to the nearest; needs none of these."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantisation:
    """How the projections of a checkpoint are quantised."""

    # "gptq", "awq", or a format of compressed-tensors: "int-quantized", "pack-quantized".
    method: str
    bits: int
    # Inputs that share a scale; none: all.
    group: int | None
    symmetric: bool
    act_order: bool = False
    # Of GPTQ: "gptq" stores zeros less 1, "gptq_v2" as they are.
    checkpoint_format: str = "gptq"

    @property
    def label(self) -> str:
        """What `stored` says in expected.json."""
        return f"{self.method} int{self.bits}"


@dataclass(frozen=True)
class Matrix:
    """Integers with their scales: codes [out, in], scales and zeros [out, groups], the group of each input."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray

    def dequantised(self) -> torch.Tensor:
        """The weights that the integers stand for, in f32."""
        codes = self.codes.astype(np.float32) - self.zeros[:, self.groups].astype(np.float32)
        return torch.from_numpy(codes * self.scales.astype(np.float32)[:, self.groups])


def input_name(name: str) -> str:
    """What the matrices that multiply the same activations have in common, of each tensor's name."""
    for parts, one in (("q_proj k_proj v_proj", "qkv"), ("gate_proj up_proj", "gate_up")):
        for part in parts.split():
            name = name.replace(part, one)
    return name


def quantise(values: np.ndarray, how: Quantisation, order: np.ndarray) -> Matrix:
    """Rounds a matrix [out, in] to integers. With act-order, groups are cut from its inputs in this order."""
    inputs = values.shape[1]
    group = how.group or inputs
    groups = np.arange(inputs) // group
    if how.act_order:
        groups[order] = np.arange(inputs) // group
    members = [values[:, groups == at] for at in range(inputs // group)]
    low = np.stack([np.minimum(part.min(axis=1), 0) for part in members], axis=1)
    high = np.stack([np.maximum(part.max(axis=1), 0) for part in members], axis=1)
    middle, most = 1 << (how.bits - 1), (1 << how.bits) - 1
    if how.symmetric:
        scales = (np.maximum(high, -low) / (middle - 1)).astype(np.float16)
        zeros = np.full(scales.shape, middle)
    else:
        scales = ((high - low) / most).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, most)
    codes = np.rint(values / scales.astype(np.float32)[:, groups]) + zeros[:, groups]
    return Matrix(np.clip(codes, 0, most).astype(np.uint32), scales, zeros.astype(np.uint32), groups)


def words(numbers: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Packs the last dimension into words of 32 bits, the first of `order` in the low bits."""
    order = order or tuple(range(32 // bits))
    lines = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, len(order))
    packed = np.zeros(lines.shape[:-1], np.uint32)
    for place, at in enumerate(order):
        packed |= lines[..., at] << np.uint32(bits * place)
    return packed.view(np.int32)


def parts(prefix: str, matrix: Matrix, how: Quantisation) -> dict[str, np.ndarray]:
    """The tensors that stand for a matrix."""
    columns = {f"{prefix}.scales": matrix.scales.T}
    match how.method:
        case "gptq":
            less = 1 if how.checkpoint_format == "gptq" else 0
            zeros = (matrix.zeros - np.uint32(less)) & np.uint32((1 << how.bits) - 1)
            return columns | {
                f"{prefix}.qweight": words(matrix.codes, how.bits).T,
                f"{prefix}.qzeros": words(zeros.T, how.bits),
                f"{prefix}.g_idx": matrix.groups.astype(np.int32),
            }
        case "awq":
            return columns | {
                f"{prefix}.qweight": words(matrix.codes.T, 4, AWQ_ORDER),
                f"{prefix}.qzeros": words(matrix.zeros.T, 4, AWQ_ORDER),
            }
        case "int-quantized":
            codes = (matrix.codes.astype(np.int32) - 128).astype(np.int8)
            return {f"{prefix}.weight": codes, f"{prefix}.weight_scale": matrix.scales}
        case "pack-quantized":
            packed = {
                f"{prefix}.weight_packed": words(matrix.codes, how.bits),
                f"{prefix}.weight_scale": matrix.scales,
                f"{prefix}.weight_shape": np.array(matrix.codes.shape, np.int64),
            }
            zeros = {f"{prefix}.weight_zero_point": words(matrix.zeros.T, how.bits).T}
            return packed if how.symmetric else packed | zeros
    raise ValueError(how.method)


def quantization_config(how: Quantisation) -> dict:
    """`quantization_config` in config.json."""
    match how.method:
        case "gptq":
            return {
                "bits": how.bits, "checkpoint_format": how.checkpoint_format, "damp_percent": 0.01,
                "desc_act": how.act_order, "group_size": how.group or -1, "quant_method": "gptq", "sym": how.symmetric,
            }
        case "awq":
            return {
                "bits": how.bits, "group_size": how.group or -1, "modules_to_not_convert": None, "quant_method": "awq",
                "version": "gemm", "zero_point": True,
            }
    strategy = "group" if how.group else "channel"
    weights = {
        "actorder": None, "dynamic": False, "group_size": how.group, "num_bits": how.bits, "observer": "minmax",
        "strategy": strategy, "symmetric": how.symmetric, "type": "int",
    }
    groups = {"group_0": {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}}
    return {
        "config_groups": groups, "format": how.method, "ignore": ["lm_head"], "kv_cache_scheme": None,
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
    }


def write_weights(
    tensors: dict[str, torch.Tensor], how: Quantisation, directory: Path, seed: int
) -> dict[str, torch.Tensor]:
    """Writes model.safetensors with the projections quantised; returns what its tensors stand for."""
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = meant[name] = tensor
            continue
        # GPTQ goes through inputs by their activations, so matrices that have the same ones have one order.
        rng = np.random.default_rng([seed, *input_name(name).encode()])
        matrix = quantise(tensor.float().numpy(), how, rng.permutation(tensor.shape[1]))
        made = parts(name.removesuffix(".weight"), matrix, how)
        stored |= {part: torch.from_numpy(np.ascontiguousarray(value)) for part, value in made.items()}
        meant[name] = matrix.dequantised()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    return meant
