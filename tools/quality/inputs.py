#!/usr/bin/env python3
"""What rounding weights and inputs to 8 bits costs with plain, rotated and smoothed inputs: a simulation in PyTorch.

    python3 tools/quality/inputs.py MODEL [--tokens 4096]

MODEL is a directory in HF's layout (SmolLM2-135M-Instruct, say). It needs torch and transformers. Every linear layer gets its
weights and its inputs rounded to int8, with a scale for each token and output, or for each 64 inputs of them. The table has the mean
KL divergence of the next token's distribution to that of the unrounded model, in f32, over windows of 512 tokens of text.txt from
its start.

Rotated: both are multiplied by a Hadamard matrix in blocks of 64 inputs. Smoothed: inputs are divided, and weights multiplied,
by the root of max|input| / max|weight| of each input (SmoothQuant, arXiv 2211.10438, with alpha 0.5), measured on the end of the text.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
BLOCK = 64
CALIBRATION_WINDOWS = 2


def hadamard(size):
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rounded(x, group):
    """The nearest numbers with 8 bits and a scale for each group of the last dimension."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (torch.round(groups / scale) * scale).reshape(x.shape)


def rotated(x):
    return (x.reshape(*x.shape[:-1], -1, BLOCK) @ hadamard(BLOCK)).reshape(x.shape)


class Rounded(torch.nn.Module):
    """A linear layer that can round its operands, and remembers the largest magnitude of each input while it does not."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.largest, self.how, self.weight = linear, None, None, None

    def prepare(self, how, group):
        self.how, self.group = how, group or self.linear.in_features
        if how is None:
            return
        weight = self.linear.weight.detach()
        if how == "rotated":
            weight = rotated(weight)
        if how == "smoothed":
            scale = (self.largest / weight.abs().amax(0).clamp_min(1e-8)).sqrt()
            self.scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            weight = weight * self.scale
        self.weight = rounded(weight, self.group)

    def forward(self, x):
        if self.how is None:
            largest = x.detach().abs().flatten(0, -2).amax(0)
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
            return self.linear(x)
        if self.how == "rotated":
            x = rotated(x)
        if self.how == "smoothed":
            x = x / self.scale
        return torch.nn.functional.linear(rounded(x, self.group), self.weight, self.linear.bias)


def wrap(model):
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            layers.append(Rounded(module))
            setattr(model.get_submodule(parent), leaf, layers[-1])
    return layers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of text [default: 4096]")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    text = (Path(__file__).parent / "text.txt").read_text()
    ids = AutoTokenizer.from_pretrained(args.model)(text, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, 1, WINDOW)
    calibration, windows = windows[-CALIBRATION_WINDOWS:], windows[: args.tokens // WINDOW]
    layers = wrap(model)
    with torch.no_grad():
        for window in calibration:
            model(window)
        for layer in layers:
            layer.calibrated = layer.largest
        reference = [model(window).logits[0].log_softmax(-1) for window in windows]
        print(f"{len(windows) * WINDOW} tokens\n\n| inputs | a scale for | mean KL |\n|---|---|---:|")
        for group in (None, BLOCK):
            for how in ("plain", "rotated", "smoothed"):
                for layer in layers:
                    layer.largest = layer.calibrated
                    layer.prepare(how, group)
                total = 0.0
                for window, want in zip(windows, reference):
                    got = model(window).logits[0].log_softmax(-1)
                    total += (want.exp() * (want - got)).sum(-1).mean().item()
                scales = "64 inputs" if group else "a token, an output"
                print(f"| {how} | {scales} | {total / len(windows):.5f} |", flush=True)


if __name__ == "__main__":
    main()
