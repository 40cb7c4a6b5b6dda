"""Targets are files that are there; a kernel's table says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

import runtimes.targets
from runtimes.errors import UserError
from runtimes.target import Kernel, describe, get_target, load_targets

NEW = """
from dataclasses import replace
from runtimes.targets.cpu import TARGET as CPU
TARGET = replace(CPU, name="probe", description="a probe")
"""


def test_each_file_is_a_target_of_its_name() -> None:
    files = {f.stem for f in Path(runtimes.targets.__path__[0]).glob("[!_]*.py")}
    targets = load_targets()
    assert set(targets) == files >= {"cpu"}
    assert all(target.name == name for name, target in targets.items())
    assert get_target("cpu") is targets["cpu"]


def test_a_new_file_is_a_new_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text(NEW)
    monkeypatch.setattr(runtimes.targets, "__path__", [*runtimes.targets.__path__, str(tmp_path)])
    assert get_target("probe").description == "a probe"
    assert "probe" in load_targets()


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"^no target 'tpu'; there are .*cpu") as caught:
        get_target("tpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", load_targets())
def test_described(name: str) -> None:
    target = get_target(name)
    row = describe(target)
    assert (row["name"], row["provider"]) == (name, target.providers)
    assert row["presets"] == list(target.presets)
    assert "kernels" not in row
    listed = describe(target, kernels=True)["kernels"]
    assert len(listed) == len(target.kernels)


def test_described_kernels_name_their_domain_and_types() -> None:
    listed = describe(get_target("cpu"), kernels=True)["kernels"]
    assert "ai.onnx::MatMul float" in listed
    assert "com.microsoft::GatherBlockQuantized float/uint8" in listed


def test_a_target_without_an_operator_says_so() -> None:
    cpu = get_target("cpu")
    assert cpu.refusal("", "MatMul", {}, 2) is None
    assert cpu.refusal("com.microsoft", "MatMul", {}, 2) == "MatMul on cpu: no kernel"
    why = "MatMul on cpu: attribute alpha is not known there"
    assert cpu.refusal("", "MatMul", {"alpha": 1}, 2) == why


def test_a_kernel_knows_its_attributes_values_and_inputs() -> None:
    kernel = Kernel(frozenset({"FLOAT"}), {"bits": frozenset({8, 4}), "N": None}, inputs=3)
    assert kernel.refusal({"bits": 4, "N": 7}, 3) is None
    assert kernel.refusal({"bits": 2}, 3) == "bits=2 is not one of [4, 8]"
    assert kernel.refusal({"K": 1}, 3) == "attribute K is not known there"
    assert kernel.refusal({}, 4) == "4 inputs where its kernel reads 3"
