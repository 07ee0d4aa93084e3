"""Writes one model of random weights in the formats that the peers read: HF safetensors and GGUF, both bf16.

The shape is Llama-3.2-1B's. Speed depends on the shape alone, so nothing has to be fetched. The files have no tokenizer:
every program is given token ids. Files that are there already are kept.
"""

import argparse
import json
import math
import os
from pathlib import Path

import gguf
import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}


def shapes(config):
    """Tensors by name, in the order of the file."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    out = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        out[layer + "input_layernorm.weight"] = (hidden,)
        out[layer + "self_attn.q_proj.weight"] = (queries, hidden)
        out[layer + "self_attn.k_proj.weight"] = (keys, hidden)
        out[layer + "self_attn.v_proj.weight"] = (keys, hidden)
        out[layer + "self_attn.o_proj.weight"] = (hidden, queries)
        out[layer + "post_attention_layernorm.weight"] = (hidden,)
        out[layer + "mlp.gate_proj.weight"] = (ffn, hidden)
        out[layer + "mlp.up_proj.weight"] = (ffn, hidden)
        out[layer + "mlp.down_proj.weight"] = (hidden, ffn)
    out["model.norm.weight"] = (hidden,)
    return out


def random_bf16(rng, shape):
    """Bits of bf16: normal numbers of a size that keeps activations finite, ones for norms."""
    if len(shape) == 1:
        values = np.ones(shape, dtype=np.float32)
    else:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= 1 / math.sqrt(shape[1])
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path, config, seed):
    """The format is a length, a JSON header and the tensors one after the other."""
    header, offset = {}, 0
    for name, shape in shapes(config).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for shape in shapes(config).values():
            random_bf16(rng, shape).tofile(file)
    os.replace(partial, path)


def read_safetensors(path):
    """Bits of each tensor, mapped."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        start = 8 + length + tensor["data_offsets"][0]
        yield name, np.memmap(path, np.uint16, "r", start, tuple(tensor["shape"]))


def permute(weight, heads):
    """llama.cpp rotates neighbouring dimensions, HF those half a head apart."""
    rows, inputs = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


def write_gguf(path, config, source):
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, bits in read_safetensors(source):
        target = names.get_name(name, try_suffixes=(".weight",))
        if bits.ndim == 1:
            writer.add_tensor(target, (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if name.endswith("q_proj.weight"):
            bits = permute(bits, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            bits = permute(bits, config["num_key_value_heads"])
        data = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def make(folder, layers=None, seed=0):
    """The HF folder and the GGUF file, made if they are missing; `layers` instead of the shape's own number."""
    config = dict(CONFIG)
    if layers is not None:
        config["num_hidden_layers"] = layers
    name = f"llama-1b-{config['num_hidden_layers']}-layers"
    hf, gguf_file = Path(folder) / name, Path(folder) / f"{name}.gguf"
    hf.mkdir(parents=True, exist_ok=True)
    (hf / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = hf / "model.safetensors"
    if not weights.exists():
        write_safetensors(weights, config, seed)
    if not gguf_file.exists():
        write_gguf(gguf_file, config, weights)
    return hf, gguf_file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the files go: 5 GB")
    parser.add_argument("--layers", type=int, help="decoder layers, for a quick check of the scripts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in make(arguments.folder, arguments.layers, arguments.seed):
        print(path)
