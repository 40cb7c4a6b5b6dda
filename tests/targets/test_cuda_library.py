"""The CUDA targets' tables against the registrations of the shipped libraries."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gptoss_onnx.runtimes.target import Kernel, Target, get_target
from tests.targets.cuda_library import KERNELS, RELEASES, element_types, wrong

LISTED = json.loads(KERNELS.read_text())
CUDA = get_target("cuda")


@pytest.mark.parametrize("name", RELEASES)
def test_the_table_is_the_librarys(name: str) -> None:
    target, release = get_target(name), RELEASES[name]
    assert release.startswith(f"{target.min_runtime}.")
    assert wrong(target, LISTED[release]) == []


def promising(domain: str, op: str, *dtypes: str, opset: int = 21) -> Target:
    return dataclasses.replace(CUDA, kernels={(domain, op): Kernel(frozenset(dtypes))}, opset=opset)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (promising("com.microsoft", "QMoE", "FLOAT"), "QMoE: no kernel for FLOAT"),
        (promising("", "CumSum", "BFLOAT16"), "CumSum: no kernel for BFLOAT16"),
        (promising("", "ReduceSum", "FLOAT", opset=12), None),
        (promising("", "Compress", "FLOAT"), "Compress: no kernel of version 11"),
    ],
)
def test_canary_what_the_library_has_not(target: Target, problem: str | None) -> None:
    assert wrong(target, LISTED["1.31.1"]) == ([problem] if problem else [])


def test_canary_an_open_registration_is_of_its_first_version_only() -> None:
    """`Equal` is registered from 13 on, and ONNX has a newer one since 19."""
    older, newer = (promising("", "Equal", "FLOAT", opset=opset) for opset in (18, 19))
    assert wrong(older, LISTED["1.26.0"]) == []
    assert wrong(newer, LISTED["1.26.0"]) == ["Equal: no kernel of version 19"]


def test_scales_and_statistics_are_not_computed_in() -> None:
    half, scales = ["tensor(float16)"], ["tensor(float)", "tensor(uint8)"]
    assert element_types({"T1": scales, "T": half}) == {"FLOAT16", "UINT8"}
