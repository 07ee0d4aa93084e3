"""Tiny random Llama checkpoints: their shapes, their weights, and the files as Hugging Face tools write them."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from quantised import Quantisation, quantization_config

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Standard deviation of the logits. Larger values make bf16 comparisons meaningless, smaller ones make ties.
LOGIT_SPREAD = 1.6


@dataclass(frozen=True)
class Checkpoint:
    """One model to make: shape, storage and the style of its configuration files."""

    name: str
    dtype: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    # None: hidden / heads, and config.json does not say it unless transformers 5 would.
    head_dim: int | None = None
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    # `rope_type` and its parameters, without `rope_theta`.
    rope: dict = field(default_factory=lambda: {"rope_type": "default"})
    theta: float = 10000.0
    max_positions: int = 512
    eps: float = 1e-5
    # "v5": `rope_parameters`; "v4": `rope_theta` and `rope_scaling`; "v4-old": as v4 with `type`, and no key that
    # the first Llama configurations did not have.
    config_style: str = "v5"
    shards: int = 1
    generation: dict | None = None
    generation_trailing_commas: bool = False
    tokenizer: bool = False
    # GGUF tensor types, given to the matrices in turn; None: a Hugging Face directory.
    gguf_types: tuple[str, ...] | None = None
    gguf_version: int = 3
    gguf_alignment: int | None = None
    # How the projections are quantised; None: not at all.
    quantisation: Quantisation | None = None
    prompt_lengths: tuple[int, ...] = (1, 7, 40)

    @property
    def head_size(self) -> int:
        """Dimensions of one head."""
        return self.head_dim or self.hidden // self.heads


def draw(spec: Checkpoint, seed: int) -> dict[str, torch.Tensor]:
    """Random parameters under their Hugging Face names, each rounded to the stored dtype on its own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * std + mean
        return values.to(DTYPES[spec.dtype]).contiguous()

    head_std = LOGIT_SPREAD / math.sqrt(spec.hidden)
    embed_std = head_std if spec.tied else 1.0
    tensors = {"model.embed_tokens.weight": normal(spec.vocab, spec.hidden, std=embed_std)}
    for layer in range(spec.layers):
        tensors |= draw_layer(spec, f"model.layers.{layer}.", normal)
    tensors["model.norm.weight"] = normal(spec.hidden, std=0.3, mean=1.0)
    if not spec.tied:
        tensors["lm_head.weight"] = normal(spec.vocab, spec.hidden, std=head_std)
    return tensors


def draw_layer(spec: Checkpoint, prefix: str, normal) -> dict[str, torch.Tensor]:
    """The parameters of one decoder layer."""
    q_rows, kv_rows = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    attention = {"q": (q_rows, spec.hidden), "k": (kv_rows, spec.hidden), "v": (kv_rows, spec.hidden), "o": (spec.hidden, q_rows)}
    mlp = {"gate": (spec.ffn, spec.hidden), "up": (spec.ffn, spec.hidden), "down": (spec.hidden, spec.ffn)}
    tensors = {}
    for block, shapes, bias in (("self_attn", attention, spec.attention_bias), ("mlp", mlp, spec.mlp_bias)):
        for short, (rows, columns) in shapes.items():
            name = f"{prefix}{block}.{short}_proj."
            tensors[name + "weight"] = normal(rows, columns, std=1.2 / math.sqrt(columns))
            if bias:
                tensors[name + "bias"] = normal(rows, std=0.3)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}{norm}.weight"] = normal(spec.hidden, std=0.3, mean=1.0)
    return tensors


def config_json(spec: Checkpoint) -> dict:
    """`config.json` in the chosen style."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": spec.activation,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "max_position_embeddings": spec.max_positions,
        "model_type": "llama",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "rms_norm_eps": spec.eps,
        "tie_word_embeddings": spec.tied,
        "use_cache": True,
        "vocab_size": spec.vocab,
    }
    if spec.config_style != "v4-old":
        config |= {"attention_bias": spec.attention_bias, "mlp_bias": spec.mlp_bias, "num_key_value_heads": spec.kv_heads}
    if spec.head_dim or spec.config_style == "v5":
        config["head_dim"] = spec.head_size
    if spec.quantisation is not None:
        config["quantization_config"] = quantization_config(spec.quantisation)
    return config | rope_json(spec)


def rope_json(spec: Checkpoint) -> dict:
    """The fields of `config.json` whose names differ between transformers 4 and 5."""
    if spec.config_style == "v5":
        return {"dtype": spec.dtype, "rope_parameters": {**spec.rope, "rope_theta": spec.theta}}
    scaling = None if spec.rope["rope_type"] == "default" else dict(spec.rope)
    if scaling and spec.config_style == "v4-old":
        scaling = {"type": scaling.pop("rope_type"), **scaling}
    return {"torch_dtype": spec.dtype, "rope_theta": spec.theta, "rope_scaling": scaling}


def write_checkpoint(spec: Checkpoint, tensors: dict[str, torch.Tensor], directory: Path) -> None:
    """Writes a Hugging Face directory: configuration, weights (sharded if asked), generation configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config_json(spec))
    if spec.shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        write_shards(tensors, spec.shards, directory)
    if spec.generation is not None:
        text = json.dumps(spec.generation, indent=2)
        if spec.generation_trailing_commas:
            text = text.replace("\n}", ",\n}").replace("\n  ]", ",\n  ]")
        (directory / "generation_config.json").write_text(text + "\n")


def write_shards(tensors: dict[str, torch.Tensor], count: int, directory: Path) -> None:
    """Writes the tensors over `count` files and the index that names each one's file."""
    names = list(tensors)
    size = math.ceil(len(names) / count)
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[shard * size : (shard + 1) * size]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path: Path, value: dict) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
