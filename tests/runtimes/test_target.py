"""Targets are files that are there; a kernel's table says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_onnx.runtimes import targets as targets_folder
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import Kernel, get_target, load_targets
from gptoss_onnx.runtimes.target_rows import describe, kernel_rows

NEW = """
from dataclasses import replace
from gptoss_onnx.runtimes.targets.cpu import TARGET as CPU
TARGET = replace(CPU, name="probe", description="a probe")
"""


def test_each_file_is_a_target_of_its_name() -> None:
    files = {f.stem for f in Path(targets_folder.__path__[0]).glob("[!_]*.py")}
    targets = load_targets()
    assert set(targets) == files >= {"cpu"}
    assert all(target.name == name for name, target in targets.items())
    assert get_target("cpu") is targets["cpu"]


def test_a_new_file_is_a_new_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text(NEW)
    monkeypatch.setattr(targets_folder, "__path__", [*targets_folder.__path__, str(tmp_path)])
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
    assert row["operators"] == len(kernel_rows(target)) == len(target.kernels)


def test_described_kernels_name_their_domain_types_and_attributes() -> None:
    listed = {row["operator"]: row for row in kernel_rows(get_target("cpu"))}
    assert listed["ai.onnx::MatMul"]["types"] == "float"
    gather = listed["com.microsoft::GatherBlockQuantized"]
    assert gather["types"] == "float/uint8"
    assert gather["attributes"].startswith("bits=4|8, block_size=16|32|64|128|256")


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
