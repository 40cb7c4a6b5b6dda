"""Conditions on an evaluation's figures, for use in CI: `kld>0.03`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptoss_onnx.runtimes.errors import UserError

FIGURES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "kld": lambda e: e["all"]["kld"]["mean"],
    "kld_p99": lambda e: e["all"]["kld"]["p99"],
    "kld_max": lambda e: e["all"]["kld"]["max"],
    "top1": lambda e: e["all"]["top1"]["mean"],
    "ppl_ratio": lambda e: e["all"]["perplexity"]["ratio"],
    "delta_p": lambda e: e["all"]["delta_p"]["rms"],
    "router_agreement": lambda e: float(np.mean([r["mean"] for r in e["router_agreement"]])),
    "exact": lambda e: e["generation"]["exact"]["package"],
    "flips": lambda e: e["generation"]["flips"]["mean"],
    "parsed": lambda e: e["generation"]["parsed"]["package"],
}
_COMPARE = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Gate:
    """Fails an evaluation when `figure compare limit` holds."""

    figure: str
    compare: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        match = re.fullmatch(r"\s*(\w+(?:\.\w+)?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*(%?)\s*", text)
        if match is None or match[1] not in FIGURES:
            raise UserError(
                f"{text!r} is no condition: write figure>number, as in kld>0.03 or top1<0.95, "
                f"figure one of {', '.join(FIGURES)}"
            )
        try:
            limit = float(match[3])
        except ValueError as error:
            raise UserError(f"{text!r}: {match[3]} is not a number") from error
        return cls(match[1], match[2], limit / 100 if match[4] else limit)

    def problem(self, evaluation: Mapping[str, Any]) -> str | None:
        """Why the evaluation fails here; None when it passes."""
        try:
            value = FIGURES[self.figure](evaluation)
        except KeyError:
            return f"{self.figure} was not measured"
        if not _COMPARE[self.compare](value, self.limit):
            return None
        return f"{self.figure} is {value:.6g}, which is {self.compare} {self.limit:g}"


def failures(gates: Sequence[Gate], evaluation: Mapping[str, Any]) -> list[str]:
    return [why for gate in gates if (why := gate.problem(evaluation))]
