"""generation_config.json as people have it: how a model wants its tokens chosen, where it stops.

One rule for exports, which check the file before anything is written, and for packages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.sampling import Sampling
from gptoss_onnx.runtimes.schema import shown

GENERATION_CONFIG = "generation_config.json"
_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a number, 0 or more", lambda value: value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "min_p": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "repetition_penalty": ("a number above 0", lambda value: value > 0),
}


def check_generation_config(content: Mapping[str, Any], where: Path | str) -> None:
    """UserError names `where` and the field that no runtime can follow."""
    sampling(content, where)
    stop_ids(content, where)


def sampling(content: Mapping[str, Any], where: Path | str, **given: Any) -> Sampling:
    """The sampling a generation_config.json asks for, greedy unless it says `do_sample`.

    What is `given` wins, and then the file's word for it is not looked at. null is as if absent; a
    filter that the file does not name is off: its author sampled without it. `top_k` -1 is off, as
    vLLM, SGLang and others have it. UserError names `where` and the field.
    """
    values = {name: value for name, value in content.items() if value is not None}
    found: dict[str, Any] = {"do_sample": False}
    for name, (wanted, right) in _NUMBERS.items():
        if name in values and name not in given:
            value = values[name]
            if not _number(value) or not right(value):
                raise _refusal(where, name, value, wanted)
            found[name] = float(value)
    if "top_k" in values and "top_k" not in given:
        value = values["top_k"]
        if not _whole(value) or value < -1:
            raise _refusal(where, "top_k", value, "a whole number; 0 and -1 are off")
        found["top_k"] = max(int(value), 0)
    if "do_sample" in values and "do_sample" not in given:
        if not isinstance(values["do_sample"], bool):
            raise _refusal(where, "do_sample", values["do_sample"], "true or false")
        found["do_sample"] = values["do_sample"]
    return Sampling(**{**found, **given})


def stop_ids(content: Mapping[str, Any], where: Path | str) -> frozenset[int] | None:
    """`eos_token_id`, one id or several; None where it is absent or null. UserError as above."""
    ids = content.get("eos_token_id")
    if ids is None:
        return None
    found = ids if isinstance(ids, list) else [ids]
    if not found or not all(_whole(token) and 0 <= token < 1 << 31 for token in found):
        raise _refusal(where, "eos_token_id", ids, "a token's id or a list of them")
    return frozenset(int(token) for token in found)


def _refusal(where: Path | str, name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{where}: {name} is {shown(value)}: it must be {wanted}; correct it there")


def _number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # an integer of JSON has no end


def _whole(value: Any) -> bool:
    return _number(value) and value == int(value)
