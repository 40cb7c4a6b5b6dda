"""Packages as a model of lm-evaluation-harness: MMLU, C-Eval, HumanEval and the rest.

The harness (0.4.13) finds models in its own table alone, no entry points: `gptoss lm-eval ...` is
its command line with the model `gptoss` added, and importing this module adds it in a program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.texts import SYSTEM
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder, Tokenizer

Scored = tuple[tuple[str, str], list[int], list[int]]  # texts, context ids, continuation ids


@register_model("gptoss")
class GptOssLM(TemplateLM):
    """`--model_args package=DIR,threads=N,max_length=N,max_gen_toks=N`.

    With `--apply_chat_template` contexts are harmony conversations: a generation returns what the
    final channel says, and a continuation is scored as the final message, without reasoning.
    """

    def __init__(
        self,
        package: str,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """The harness always gives the last three: one sequence runs at a time, on the CPU."""
        super().__init__()
        folder = Path(package)
        self._package = Package.open(folder, threads=threads)
        self._probe = Probe.of_package(folder, threads)
        context = self._package.manifest.context_length
        self._session = Session(self._package)
        self.max_length = max_length or context
        if not 1 < self.max_length <= context:
            raise UserError(f"max_length is {max_length}: it must be from 2 to {context}")
        self.max_gen_toks = max_gen_toks
        self._tokens = self._package.tokenizer
        # Ids of each rendered conversation: its text cannot tell harmony's tokens from a user's.
        self._conversations: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self._tokens.special("<|endoftext|>")

    @property
    def tokenizer_name(self) -> str:
        return str(self._package.folder.resolve())

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "harmony" if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation for people to read; without a generation prompt its last stays open."""
        instructions = "\n\n".join(m["content"] for m in chat_history if m["role"] == "system")
        messages = [
            Message(m["role"], m["content"], "final" if m["role"] == "assistant" else None)
            for m in chat_history
            if m["role"] != "system"
        ]
        ids = self._package.harmony.render(
            messages,
            system=SYSTEM,
            instructions=instructions or None,
            reply=add_generation_prompt,
        )
        if not add_generation_prompt:
            ids.pop()  # <|end|>
        text = self._tokens.show(ids)
        self._conversations[text] = ids
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._conversations.get(string) or self._tokens.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        ids = self._conversations.get(context)
        if ids is None:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        opened = self._package.harmony.render([], system=None)
        if ids[-len(opened) :] == opened:  # nothing said yet: the answer is the final message
            special, encode = self._tokens.special, self._tokens.encode
            ids = [*ids, special("<|channel|>"), *encode("final"), special("<|message|>")]
        return ids, self._tokens.encode(continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log probabilities (nats) of each continuation, and whether it is greedy's.

        Contexts are cut on the left to `max_length`; requests that are fed the same ids, as the
        letters of one multiple-choice question, share one run.
        """
        runs: dict[tuple[int, ...], list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, max_length is "
                    f"{self.max_length}: raise it"
                )
            runs.setdefault(tuple([*context, *continuation][:-1][-self.max_length :]), []).append(
                place
            )
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for ids, places in tqdm(runs.items(), "loglikelihood", disable=disable_tqdm):
            longest = max(len(requests[place][2]) for place in places)
            logits = self._last_logits(ids, longest)
            for place in places:
                texts, _, continuation = requests[place]
                if continuation:
                    results[place] = _score(logits[len(logits) - len(continuation) :], continuation)
                self.cache_hook.add_partial("loglikelihood", texts, results[place])
        return results

    def _last_logits(self, ids: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits [count, V] after the last `count` of `ids`; other chunks' are let go."""
        first = len(ids) - count
        kept = [
            chunk.logits[max(first - chunk.start, 0) :]
            for chunk in self._probe.run(ids)
            if chunk.start + len(chunk.logits) > first
        ]
        return np.concatenate(kept)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log probability (nats) of each text, in windows of `max_length` where it is longer."""
        results = []
        for (text,) in [request.args for request in requests]:
            ids = self._tokens.encode(text)
            windows = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, 1)
            rows = [(("", text), *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(rows, disable_tqdm=True)
            results.append(sum(score for score, _ in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Each reply up to the first of its stop strings, which is not part of it."""
        results = []
        for context, arguments in tqdm(
            [request.args for request in requests], "generate", disable=disable_tqdm
        ):
            results.append(self._generate(context, dict(arguments)))
            self.cache_hook.add_partial("generate_until", (context, arguments), results[-1])
        return results

    def _generate(self, context: str, arguments: dict[str, Any]) -> str:
        until = arguments.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        limit = int(arguments.get("max_gen_toks") or self.max_gen_toks)
        if limit >= self.max_length:
            raise UserError(f"max_gen_toks is {limit}, max_length {self.max_length}: lower one")
        ids = (self.tok_encode(context) or [self.eot_token_id])[limit - self.max_length :]
        chat = context in self._conversations
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        values = {name: arguments[name] for name in names if arguments.get(name) is not None}
        sampled = arguments.get("do_sample", values.get("temperature", 0) > 0)
        sampling = Sampling(**values, do_sample=bool(sampled))
        opened = self._package.harmony.render([], system=None)
        # A message that the task began itself is the final one already.
        opens = chat and ids[-len(opened) :] == opened
        said: Reply | _Continued = (
            Reply(self._tokens, stop_ids=self._package.stop_ids)
            if opens
            else _Continued(self._tokens)
        )
        generation = generate(self._session, ids, Options(limit, sampling))
        for token in generation:
            said.feed(token)
            if any(stop in said.text for stop in stops):
                generation.close()
                break
        said.finish(generation.finish_reason or "cancelled")
        places = [said.text.find(stop) for stop in stops if stop in said.text]
        return said.text[: min(places)] if places else said.text


class _Continued:
    """Text that goes on where the prompt ended, fed as a `Reply` is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = ""
        self._decoder = IncrementalDecoder(tokenizer)

    def feed(self, token: int) -> None:
        self.text += self._decoder.feed(token)

    def finish(self, reason: str) -> None:
        self.text += self._decoder.finish()


def _score(logits: Any, continuation: Sequence[int]) -> tuple[float, bool]:
    scores = logits.astype(np.float64)
    highest = scores.max(-1)
    total = highest + np.log(np.exp(scores - highest[:, None]).sum(-1))
    own = scores[np.arange(len(continuation)), list(continuation)]
    return float((own - total).sum()), bool((scores.argmax(-1) == continuation).all())


def run(arguments: Sequence[str]) -> None:
    """lm-evaluation-harness's own command line, which reads `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["gptoss lm-eval", *arguments]
    cli_evaluate()
