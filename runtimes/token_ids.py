"""Token ids that come from outside, held to the vocabulary before anything is computed of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gptoss_onnx.runtimes.errors import UserError


def check_ids(ids: Iterable[object], vocab_size: int, what: str) -> None:
    """UserError for the first of `ids` that is no whole number below `vocab_size`.

    A graph would fail on it in the middle of a run, or take it for another token.
    """
    for position, token in enumerate(ids):
        whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not whole or not 0 <= int(token) < vocab_size:  # type: ignore[call-overload]
            raise UserError(
                f"{what} have {token!r} at position {position}: the vocabulary has {vocab_size} "
                f"tokens, ids from 0 to {vocab_size - 1}"
            )
