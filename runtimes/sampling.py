"""Choosing the next token from logits: filters in Hugging Face's order, a portable generator."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: all of it, so the defaults sample from the model's own distribution.

    `Package.sampling_with(repetition_penalty=1.1)` changes the package's own instead: where that
    is greedy, a penalty leaves it so, as in transformers.

    `temperature` 0 or `do_sample` False is greedy; `top_k` 0 or -1, `top_p` 1, `min_p` 0 and
    `repetition_penalty` 1 are off; `seed` None is a new one each time. UserError for a value of
    another type or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    do_sample: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        def require(name: str, right: bool, wanted: str) -> None:
            if not right:
                raise UserError(f"{name} is {getattr(self, name)}: it must be {wanted}")

        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            require(name, isinstance(value, Real) and not isinstance(value, bool), "a number")
        right_seed = self.seed is None or (_whole(self.seed) and 0 <= self.seed <= _MASK)
        require("temperature", 0 <= self.temperature < math.inf, "0 or more")
        require(
            "top_k", _whole(self.top_k) and self.top_k >= -1, "a whole number; 0 and -1 are off"
        )
        require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        require("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0")
        require("do_sample", isinstance(self.do_sample, bool), "true or false")
        require("seed", right_seed, "a whole number from 0 to 2^64 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or not self.do_sample


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class SplitMix64:
    """Steele, Lea and Flood's SplitMix64: a 64-bit counter and a mixing function.

    Chosen because every language repeats it in five lines of unsigned 64-bit arithmetic. Seed 0
    gives e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed

    def next(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def uniform(self) -> float:
        """A double in [0, 1): the upper 53 of 64 bits, times 2^-53."""
        return (self.next() >> 11) * 2.0**-53


class Sampler:
    """Draws one sequence's tokens. To be repeated in any language, id for id:

    Everything is float64. Scores are the logits, with those of tokens seen in prompt or reply
    divided by the penalty (multiplied when negative). Greedy takes the highest, the lower id of
    two equals. Otherwise the tokens are put in order, highest score first, lower id first of two
    equals, and weigh exp((score - highest) / temperature). Then, as transformers does:
    top_k keeps scores >= the k-th; top_p keeps a token while those before it weigh less than
    top_p of the total; min_p keeps weights >= min_p. Of what is kept, one uniform number u chooses
    the first token at which the running total exceeds u times the kept total.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._options = sampling
        # Without a seed, one nobody can guess: a reply should not tell when it was made.
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._random = SplitMix64(seed)
        self._penalized = sampling.repetition_penalty != 1
        self._seen = set(prompt) if self._penalized else set()

    def next(self, logits: NDArray[np.float32]) -> int:
        """The token that follows; logits [V] are left as they are. ValueError for NaN logits."""
        scores = self._penalize(logits) if self._penalized else logits
        highest = int(scores.argmax())
        if not np.isfinite(scores[highest]):
            raise ValueError(
                f"the model's logits are broken: token {highest} has {scores[highest]}"
            )
        token = highest if self._options.greedy else self._draw(scores)
        if self._penalized:
            self._seen.add(token)
        return token

    def _penalize(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = logits.astype(np.float64)
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        before = scores[seen]
        penalty = self._options.repetition_penalty
        scores[seen] = np.where(before < 0, before * penalty, before / penalty)
        return scores

    def _draw(self, scores: NDArray[Any]) -> int:
        options, u = self._options, self._random.uniform()
        highest = float(scores.max())
        pool = np.arange(len(scores))
        if 0 < options.top_k < len(scores):
            pool = _at_least_kth(scores, options.top_k)
            scores = scores[pool]
        total = float(np.sum(_weights(scores, highest, options.temperature)))
        filtered = options.top_p < 1 or options.min_p > 0
        # The tokens that matter are few: put no more in order than the choice depends on.
        count = 256
        while True:
            everything = count >= len(scores)
            top = np.arange(len(scores)) if everything else _at_least_kth(scores, count)
            top = top[np.lexsort((top, -scores[top]))]
            weights = _weights(scores[top], highest, options.temperature)
            running = np.cumsum(weights)
            kept = self._kept(weights, running, total)
            # The kept total is known without a filter, or when the cut lies inside `top`.
            target = u * (running[kept - 1] if filtered or everything else total)
            if everything or (kept < len(top) if filtered else running[-1] > target):
                # u is at most 1 - 2^-53, so the target is below the kept total, rounded too.
                return int(pool[top[np.searchsorted(running, target, side="right")]])
            count *= 16

    def _kept(self, weights: NDArray[Any], running: NDArray[Any], total: float) -> int:
        """How many of the ordered tokens top_p and min_p leave: never none."""
        before = np.concatenate([[0.0], running[:-1]])
        kept = len(weights)
        if self._options.top_p < 1:
            kept = int(np.searchsorted(before, self._options.top_p * total, side="left"))
        if self._options.min_p > 0:
            # The highest weighs 1, so min_p times the highest probability is weight min_p.
            kept = min(kept, int(np.count_nonzero(weights >= self._options.min_p)))
        return kept


def _at_least_kth(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Places of the scores that are at least the k-th highest: more than k when some are equal."""
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= kth)


def _weights(scores: NDArray[Any], highest: float, temperature: float) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp((scores.astype(np.float64) - highest) / temperature)
    return weights
