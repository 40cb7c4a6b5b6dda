"""generation_config.json as people have it: what it may say, what it means, what a fault names."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation_config import check_generation_config, sampling, stop_ids
from gptoss_onnx.runtimes.sampling import Sampling

FILE = "p/generation_config.json"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({}, Sampling(do_sample=False)),
        ({"temperature": 0.5}, Sampling(temperature=0.5, do_sample=False)),
        ({"do_sample": True, "top_k": None}, Sampling()),
        ({"do_sample": True, "top_k": -1}, Sampling()),  # as vLLM writes "off"
        ({"do_sample": True, "top_k": 0}, Sampling()),
        ({"do_sample": True, "top_k": 50.0}, Sampling(top_k=50)),
        ({"do_sample": None, "temperature": None, "top_p": None}, Sampling(do_sample=False)),
        ({"do_sample": True, "temperature": 1, "top_p": 1, "min_p": 0}, Sampling()),
        ({"do_sample": True, "repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
        ({"do_sample": True, "seed": "x", "max_length": -1, "colour": []}, Sampling()),
    ],
)
def test_what_a_file_asks_for(content: dict[str, Any], wanted: Sampling) -> None:
    assert sampling(content, FILE) == wanted
    check_generation_config(content, FILE)


FAULTS = [
    *(("temperature", value) for value in ("0.7", -1, -0.1, True, [], {}, float("inf"), 10**400)),
    *(("top_p", value) for value in (0, 0.0, -0.5, 1.5, "1", False, [0.9])),
    *(("top_k", value) for value in (-2, 1.5, "50", True, [50], -(10**400))),
    *(("min_p", value) for value in (-0.1, 1.1, "0", True)),
    *(("repetition_penalty", value) for value in (0, -1, "1", False, {})),
    *(("do_sample", value) for value in (0, 1, "true", "false", [])),
    *(("eos_token_id", value) for value in ("7", -1, 1.5, True, [], [7, None], [[7]], {}, 2**40)),
]


@pytest.mark.parametrize(("name", "value"), FAULTS)
def test_a_fault_names_file_and_field(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{FILE}: {name} is ") as raised:
        check_generation_config({name: value}, FILE)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(("name", "value"), [f for f in FAULTS if f[0] != "eos_token_id"])
def test_what_is_given_wins(name: str, value: Any) -> None:
    given = {"temperature": 0.3, "top_p": 0.4, "top_k": 5, "min_p": 0.1, "do_sample": True}
    given["repetition_penalty"] = 1.2
    assert getattr(sampling({name: value}, FILE, **{name: given[name]}), name) == given[name]


def test_stop_ids() -> None:
    assert stop_ids({}, FILE) is None
    assert stop_ids({"eos_token_id": None}, FILE) is None
    assert stop_ids({"eos_token_id": 0}, FILE) == {0}
    assert stop_ids({"eos_token_id": [7, 9.0]}, FILE) == {7, 9}


@pytest.mark.parametrize("content", [{}, {"do_sample": False, "temperature": 0.7}])
def test_a_penalty_or_a_seed_leaves_greedy_what_is(content: dict[str, Any]) -> None:
    """As in transformers, where a penalty is no sampling: so for callers of the API too."""
    assert sampling(content, "x", repetition_penalty=1.1, seed=3).greedy
    assert not sampling({**content, "do_sample": True}, "x", repetition_penalty=1.1).greedy
