"""GGUF files of Llama models: written as llama.cpp's converter lays them out, and read back."""

import math
from itertools import cycle
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

from checkpoints import Checkpoint
from tiny_tokenizer import CHAT_TEMPLATE, SPECIAL, vocabulary

# Not a parameter: what the RoPE frequencies are divided by.
ROPE_FREQS = "rope_freqs.weight"

TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor."""
    if name in TOP_LEVEL:
        return TOP_LEVEL[name]
    match name.split("."):
        case ["blk", layer, part, kind] if part in PER_LAYER:
            return f"model.layers.{layer}.{PER_LAYER[part]}.{kind}"
    raise ValueError(f"tensor {name} has no place in a Llama checkpoint")


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    for ours, theirs in TOP_LEVEL.items():
        if name == theirs:
            return ours
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    part = next(ours for ours, theirs in PER_LAYER.items() if theirs == module)
    return f"blk.{layer}.{part}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders q or k rows from the two halves of each head (HF) to adjacent pairs (GGUF, arch llama)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def split_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rotated_heads(name: str, heads: int, kv_heads: int) -> int | None:
    """How many heads a tensor's rows hold if RoPE turns them, by its GGUF name."""
    if ".attn_q." in name:
        return heads
    return kv_heads if ".attn_k." in name else None


def write_gguf(spec: Checkpoint, tensors: dict[str, torch.Tensor], path: Path, tokenizer=None) -> None:
    """Writes a checkpoint as one GGUF file; matrices take `spec.gguf_types` in turn, vectors are F32."""
    writer = gguf.GGUFWriter(path, "llama")
    if spec.gguf_alignment:
        writer.add_custom_alignment(spec.gguf_alignment)
    write_metadata(writer, spec)
    if tokenizer is not None:
        write_tokenizer_metadata(writer, tokenizer)
    if spec.rope["rope_type"] == "llama3":
        writer.add_tensor(ROPE_FREQS, llama3_factors(spec))
    types = cycle(spec.gguf_types)
    for hf, tensor in tensors.items():
        name, values = gguf_name(hf), tensor.float().numpy()
        heads = rotated_heads(name, spec.heads, spec.kv_heads)
        values = interleave(values, heads) if heads else values
        kind = gguf.GGMLQuantizationType[next(types) if values.ndim == 2 else "F32"]
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    set_version(path, spec.gguf_version)


def write_metadata(writer: gguf.GGUFWriter, spec: Checkpoint) -> None:
    """The `llama.*` keys, as few as the converter writes."""
    writer.add_name(spec.name)
    writer.add_vocab_size(spec.vocab)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(spec.eps)
    writer.add_rope_freq_base(spec.theta)
    writer.add_rope_dimension_count(spec.head_size)
    if spec.head_dim:
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    if spec.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rope["factor"])


def write_tokenizer_metadata(writer: gguf.GGUFWriter, tokenizer) -> None:
    """The `tokenizer.*` keys of a byte-level BPE with SmolLM's pre-tokenizer."""
    tokens, merges = vocabulary(tokenizer)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def llama3_factors(spec: Checkpoint) -> np.ndarray:
    """`rope_freqs.weight`: by what each RoPE frequency is divided (Llama 3.1's blend), [head_dim / 2] f32."""
    rope, size = spec.rope, spec.head_size
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for pair in range(size // 2):
        wavelength = 2 * math.pi * spec.theta ** (2 * pair / size)
        blend = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - blend) / rope["factor"] + blend))
    return np.array(factors, dtype=np.float32)


def set_version(path: Path, version: int) -> None:
    """Overwrites the version after the magic: little-endian v2 and v3 files differ in nothing else."""
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(version.to_bytes(4, "little"))


def read_tensors(reader: gguf.GGUFReader, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """All parameters dequantised to f32 under their Hugging Face names, q and k rows put back in halves."""
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name == ROPE_FREQS:
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        rotated = rotated_heads(tensor.name, heads, kv_heads)
        values = split_halves(values, rotated) if rotated else values
        tensors[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors
