"""Count the demo checkpoint's exact answers: `python -m demo.training.measure`.

The checkpoint is read back from its files and run by Hugging Face's model, not by the code that
trained it. An answer counts when the final message equals the pair's, character for character.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import torch
from transformers import DynamicCache, GptOssForCausalLM

from demo.training.checkpoint import read_model
from demo.training.dataset import PAIRS
from gptoss_onnx.runtimes.harmony import Harmony, Message, SystemPrompt
from gptoss_onnx.runtimes.reply import read_reply
from gptoss_onnx.runtimes.tokenizer import Tokenizer

DEMO = Path(__file__).parents[1]
SYSTEM = SystemPrompt(date="2026-01-01")
BATCH = 128
MOST_TOKENS = 120


def greedy(
    model: GptOssForCausalLM, prompts: Sequence[list[int]], stops: Iterable[int]
) -> Iterator[tuple[int, list[int]]]:
    """(place of the prompt, its reply up to the stop token).

    The prompts of a batch are equally long, so that none is padded.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        alike[len(prompt)].append(place)
    stop = torch.tensor(sorted(stops))
    for places in alike.values():
        for start in range(0, len(places), BATCH):
            chosen = places[start : start + BATCH]
            ids = torch.tensor([prompts[place] for place in chosen])
            cache = DynamicCache(config=model.config)
            replies: list[list[int]] = [[] for _ in chosen]
            done = torch.zeros(len(chosen), dtype=torch.bool)
            for _ in range(MOST_TOKENS):
                ids = model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                for row, token in enumerate(ids[:, 0].tolist()):
                    if not done[row]:
                        replies[row].append(token)
                done |= torch.isin(ids[:, 0], stop)
                if done.all():
                    break
            yield from zip(chosen, replies, strict=True)


@torch.inference_mode()
def exact_answers(folder: Path) -> dict[str, tuple[int, int]]:
    """(exact, asked) by language and, for every tenth pair, as a conversation's second turn."""
    harmony = Harmony(Tokenizer(folder))
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    asked = [(row["language"], row, [Message("user", row["question"])]) for row in rows]
    # An odd distance: the turn before is about another name, half the time in the other language.
    for row, other in zip(rows[::10], rows[101::10] + rows[1:101:10], strict=True):
        before = [
            Message("user", other["question"]),
            Message("assistant", other["answer"], "final"),
        ]
        asked.append(("second turn", row, [*before, Message("user", row["question"])]))
    prompts = [harmony.render(messages, system=SYSTEM) for _, _, messages in asked]
    counts: dict[str, tuple[int, int]] = {"en": (0, 0), "zh": (0, 0), "second turn": (0, 0)}
    for place, reply in greedy(read_model(folder), prompts, harmony.stop_ids):
        said = read_reply(harmony.tokenizer, reply, "stop").said
        kind, row, _ = asked[place]
        wanted = Message("assistant", row["answer"], "final")
        exact, seen = counts[kind]
        counts[kind] = exact + (said[-1:] == [wanted]), seen + 1
    return counts


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    torch.set_num_threads(threads)
    report()


def report() -> None:
    counts = exact_answers(DEMO)
    (english, asked), (chinese, asked_too) = counts["en"], counts["zh"]
    counts["total"] = english + chinese, asked + asked_too
    for kind, (exact, seen) in counts.items():
        click.echo(f"{kind}: {exact} of {seen} exact, {exact / seen:.2%}")


if __name__ == "__main__":
    main()
