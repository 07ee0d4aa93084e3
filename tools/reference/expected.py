"""What Hugging Face transformers computes for a checkpoint, in f32 on the CPU."""

import json
import random
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, LlamaForCausalLM

NEW_TOKENS = 32
# A smaller distance between the best and the second logit makes a comparison of greedy ids a coin toss.
MIN_MARGIN = 5e-3

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


def load(directory: Path) -> LlamaForCausalLM:
    """The checkpoint with every parameter widened to f32; fails on a missing or superfluous tensor."""
    model, info = LlamaForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in info.items() if value}
    if problems:
        raise ValueError(f"{directory}: transformers reports {problems}")
    return model.eval()


@torch.no_grad()
def log_probabilities(model: LlamaForCausalLM, prompt: list[int]) -> torch.Tensor:
    """[tokens, vocab] f64 log-probabilities after each token of the prompt, from one forward over all of it."""
    logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: list[int], count: int = NEW_TOKENS) -> tuple[list[int], float]:
    """`count` greedy ids by `generate` with its KV cache, no end of sequence, and the smallest top-2 distance."""
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True)
    tokens = out.sequences[0, len(prompt) :].tolist()
    if len(tokens) != count:
        raise ValueError(f"generate stopped after {len(tokens)} of {count} tokens")
    best = torch.stack(out.logits)[:, 0].topk(2, dim=-1).values
    return tokens, (best[:, 0] - best[:, 1]).min().item()


def rope_crossing(spec, prompt: list[int]) -> dict | None:
    """For rope type dynamic: which greedy id is the first from a forward longer than the original maximum."""
    if spec.rope["rope_type"] != "dynamic":
        return None
    step = max(0, spec.max_positions + 1 - len(prompt))
    return {"original_max": spec.max_positions, "first_greedy_step": step if step < NEW_TOKENS else None}


def prompts(spec, seed: int) -> list[list[int]]:
    """Random prompts of the checkpoint's prompt lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(spec.vocab) for _ in range(length)] for length in spec.prompt_lengths]


def rounded(values: torch.Tensor) -> list[float]:
    """Seven decimals: a hundredth of what f32 logits resolve, and a quarter of the digits."""
    return [round(value, 7) for value in values.tolist()]


def case(spec, directory: Path, prompt: list[int]) -> tuple[dict, float, float]:
    """One case of expected.json, its smallest greedy margin, and the mean difference of a bf16 forward.

    Each forward gets a freshly loaded model, because rope type dynamic leaves its frequencies in the module.
    """
    table = log_probabilities(load(directory), prompt)
    given = [table[i, token] for i, token in enumerate(prompt[1:])]
    tokens, margin = greedy(load(directory), prompt)
    value = {
        "prompt": prompt,
        "logprobs": [None] + (rounded(torch.stack(given)) if given else []),
        "next_logprobs": rounded(table[-1]),
        "greedy": tokens,
        "rope_crossing": rope_crossing(spec, prompt),
    }
    low = log_probabilities(parameters_in_bf16(load(directory)), prompt)
    return value, margin, (low - table).abs().mean().item()


def parameters_in_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Rounds each parameter to bf16 and leaves the RoPE frequencies (a buffer) in f32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def expected(spec, directory: Path, seed: int) -> dict:
    """expected.json without its file references; `min_margin` tells whether the seed is usable."""
    cases, margins, bf16 = zip(*(case(spec, directory, prompt) for prompt in prompts(spec, seed)))
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seed": seed,
        "min_margin": min(margins),
        "torch_bf16_mean_abs_diff": sum(bf16) / len(bf16),
        "cases": list(cases),
    }


def write_expected(path: Path, value: dict) -> None:
    """Writes expected.json with one line per case and per text, so that a change shows where it is."""
    lines = []
    for key, field in value.items():
        if key in ("cases", "texts"):
            items = ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in field)
            lines.append(f'  "{key}": [\n    {items}\n  ]')
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(field, ensure_ascii=False)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
