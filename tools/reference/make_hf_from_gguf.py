"""Turns a GGUF file of a Llama model into a Hugging Face directory with the same (dequantised) weights.

    python make_hf_from_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2-hf --dtype f32
"""

import argparse
from pathlib import Path

import gguf
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from checkpoints import DTYPES, write_json
from gguf_files import ROPE_FREQS, read_tensors
from tiny_tokenizer import smollm_pre_tokenizer

DTYPE_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class Metadata:
    """The key-value pairs of a GGUF file."""

    def __init__(self, reader: gguf.GGUFReader):
        """Reads from an open file; values are decoded when asked for."""
        self.fields = reader.fields

    def get(self, key: str, default=None):
        """The value under `key`, or `default`."""
        return self.fields[key].contents() if key in self.fields else default

    def require(self, key: str):
        """The value under `key`; its absence is an error."""
        if key not in self.fields:
            raise ValueError(f"the GGUF file has no {key}")
        return self.fields[key].contents()


def config_from(meta: Metadata, names: set[str], vocab: int, dtype: str) -> dict:
    """config.json as transformers 5 writes it."""
    if meta.require("general.architecture") != "llama":
        raise ValueError(f"architecture {meta.require('general.architecture')} is not llama")
    heads, hidden = meta.require("llama.attention.head_count"), meta.require("llama.embedding_length")
    rope = {"rope_type": "default", "rope_theta": meta.get("llama.rope.freq_base", 10000.0)}
    scaling = meta.get("llama.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": meta.require("llama.rope.scaling.factor")}
    elif scaling != "none":
        raise ValueError(f"llama.rope.scaling.type {scaling} is not supported")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "dtype": dtype,
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "head_dim": meta.get("llama.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta.require("llama.feed_forward_length"),
        "max_position_embeddings": meta.require("llama.context_length"),
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in names,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": meta.require("llama.block_count"),
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "rms_norm_eps": round(meta.require("llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_parameters": rope,
        "tie_word_embeddings": "lm_head.weight" not in names,
        "vocab_size": vocab,
    }


def tokenizer_from(meta: Metadata) -> Tokenizer:
    """The byte-level BPE that the metadata describes."""
    kind, pre = meta.require("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
        raise ValueError(f"tokenizer {kind} with pre-tokenizer {pre} is not supported")
    tokens = meta.require("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in meta.require("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = smollm_pre_tokenizer() if pre == "smollm" else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta.require("tokenizer.ggml.token_type")
    special = [t for t, k in zip(tokens, kinds) if k == gguf.TokenType.CONTROL]
    added = [t for t, k in zip(tokens, kinds) if k == gguf.TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in added])
    return tokenizer


def write_tokenizer(meta: Metadata, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer_from(meta).save(str(directory / "tokenizer.json"))
    tokens = meta.require("tokenizer.ggml.tokens")
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in ids.items()}
    config = {f"{name}_token": tokens[i] for name, i in found.items() if i is not None}
    config |= {"add_bos_token": meta.get("tokenizer.ggml.add_bos_token", False), "tokenizer_class": "PreTrainedTokenizerFast"}
    template = meta.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    write_json(directory / "tokenizer_config.json", config)


def convert(source: Path, directory: Path, dtype: str = "float32") -> None:
    """Writes `source` as a Hugging Face directory with weights stored as `dtype`."""
    reader = gguf.GGUFReader(source)
    meta = Metadata(reader)
    if any(tensor.name == ROPE_FREQS for tensor in reader.tensors):
        raise ValueError(f"{source}: {ROPE_FREQS} does not tell the rope_parameters that config.json would need")
    heads = meta.require("llama.attention.head_count")
    tensors = read_tensors(reader, heads, meta.get("llama.attention.head_count_kv", heads))
    vocab = tensors["model.embed_tokens.weight"].shape[0]
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config_from(meta, set(tensors), vocab, dtype))
    stored = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    values = {key: meta.get(f"tokenizer.ggml.{name}_token_id") for key, name in ends.items()}
    write_json(directory / "generation_config.json", {key: value for key, value in values.items() if value is not None})
    if meta.get("tokenizer.ggml.model") is not None:
        write_tokenizer(meta, directory)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC.gguf")
    parser.add_argument("directory", type=Path, metavar="DST")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="f32", help="how the weights are stored (default: f32)")
    args = parser.parse_args()
    convert(args.source, args.directory, DTYPE_NAMES[args.dtype])


if __name__ == "__main__":
    main()
