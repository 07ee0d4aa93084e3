"""One test of PyTorch with transformers: `torch_peer.py MODEL N_PROMPT N_GEN DEPTH BATCH THREADS`, JSON on stdout."""

import json
import sys
import time

import torch
import transformers


def forward(model, ids, cache):
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def measure(model, n_prompt, n_gen, depth, batch):
    """Tokens per second of the whole batch, after `depth` tokens."""
    vocab = model.config.vocab_size
    ids = lambda n: torch.randint(0, vocab, (batch, n))
    cache = transformers.DynamicCache(config=model.config)
    if depth > 0:
        forward(model, ids(depth), cache)
    prompt, token = ids(max(n_prompt, 1)), None
    start = time.perf_counter()
    if n_prompt > 0:
        token = forward(model, prompt, cache).logits[:, -1:].argmax(-1)
    for _ in range(n_gen):
        token = forward(model, prompt if token is None else token, cache).logits[:, -1:].argmax(-1)
    return batch * (n_prompt + n_gen) / (time.perf_counter() - start)


def main():
    path, (n_prompt, n_gen, depth, batch, threads) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        # What is not counted: a short prompt and a few tokens, so that everything has been built.
        measure(model, 0 if n_prompt == 0 else min(n_prompt, 512), min(n_gen, 2), min(depth, 16), batch)
        rate = measure(model, n_prompt, n_gen, depth, batch)
    print(json.dumps({"tokens_per_second": rate}))


main()
