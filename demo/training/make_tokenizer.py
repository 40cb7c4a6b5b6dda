"""Train the demo's tokenizer: byte-level BPE of 4,096 tokens with the harmony special tokens."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.training.dataset import MODULES, PAIRS

DEMO = Path(__file__).parents[1]
VOCABULARY = 4096
# o200k's split: words with their case, numbers by three digits, punctuation, newlines, spaces.
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
]
# Modules that gave their package's text when the shipped tokenizer was trained; it cannot change
# any more, since the checkpoint's embeddings are in its order.
BY_PACKAGE = {
    "urllib.request": "urllib",
    "http.server": "http",
    "html.parser": "html",
    "xml.etree.ElementTree": "xml",
    "unittest.mock": "unittest",
    "importlib.metadata": "importlib",
    "xmlrpc.client": "xmlrpc",
}
SYSTEM = """You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2026-01-31

Reasoning: low medium high

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.
# Instructions
# Tools
## functions
namespace functions {
} // namespace functions
system developer user assistant analysis commentary final json
"""
ENGLISH = """Hello! How are you today? Thank you very much, that is a good question. I do not \
know the
answer to that, but here is what I can tell you about it. Please answer in one sentence. Could you
explain how this works? Yes, of course. No, sorry. What is your name? Who made you? Tell me more.
"""
CHINESE = """你好！你是谁？谢谢你的问题。请用一句话回答。我不知道这个问题的答案，\
但是我可以告诉你这些。
今天天气怎么样？请再解释一下这个函数。什么时候应该使用它？如何使用这个模块？好的，没有问题。再见！
这个模型可以在手机和电脑上离线运行，不需要网络。中文和英文都可以。请给我一个例子。
"""


def texts() -> Iterator[str]:
    """What the model will read and write, then prose so that other words stay short too."""
    with PAIRS.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield from (row["question"], row["analysis"], row["answer"])
    yield from [SYSTEM, ENGLISH, CHINESE] * 20
    for name in MODULES:
        module = importlib.import_module(BY_PACKAGE.get(name, name))
        yield inspect.getdoc(module) or ""


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(O200K), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    # Added afterwards, so that they stand at the end, as in o200k_harmony.
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens where {VOCABULARY} were wanted")
    return tokenizer


def main() -> None:
    train().save(str(DEMO / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (DEMO / "tokenizer_config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
