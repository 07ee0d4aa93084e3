"""A byte-level BPE tokenizer of a few hundred entries, as a Hugging Face directory and as GGUF metadata."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from checkpoints import write_json

SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>", "<|user|>", "<pad>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The river rose in the night and the bridge was closed before the first train of the morning.",
    "When the water went down again, they found that the old stones had moved less than the new ones.",
    "for i in range(10): total = total + values[i]",
]
TEXTS = [
    "The bridge was closed.",
    "In 2024 there were 1234567 stones, not 12.",
    "naïve café 東京 🙂",
    "  two  spaces\n\tand a tab  ",
    "<|im_start|>user\nthe train<|im_end|>\n",
    "it's they'll I'VE x==1;",
    "",
]
CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "What closed in 1999?"}]


def smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Each digit on its own, then GPT-2's byte-level split."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def train(vocab_size: int) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` entries, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = smollm_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} entries, not {vocab_size}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "bos_token": "<|im_start|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }
    write_json(directory / "tokenizer_config.json", config)


def expected_texts(tokenizer: Tokenizer) -> dict:
    """The ids that transformers gives for some texts and for a chat."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)
    texts = [{"text": text, "tokens": fast.encode(text, add_special_tokens=False)} for text in TEXTS]
    rendered = fast.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    chat = {"messages": CHAT, "text": rendered, "tokens": fast.encode(rendered, add_special_tokens=False)}
    return {"texts": texts, "chat": chat}


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in the order of their ids, and the merges in the order of their rank."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    return [token for token, _ in tokens], [tuple(merge) for merge in model["merges"]]
