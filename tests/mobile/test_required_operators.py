"""required_operators.config lists the graph's operators, all of them and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from gptoss_onnx.mobile.required_operators import write_required_operators
from gptoss_onnx.runtimes.ort_file import ort_nodes
from gptoss_onnx.runtimes.target import get_target


def listed(config: Path) -> set[tuple[str, str]]:
    """(domain, operator) of a configuration, types left out."""
    found = set()
    for line in config.read_text().splitlines():
        if line.startswith("#"):
            continue
        domain, _, operators = line.split(";")
        depth, name = 0, ""
        for char in operators + ",":
            depth += (char == "{") - (char == "}")
            if char == "," and not depth:
                found.add((domain, name.split("{")[0]))
                name = ""
            else:
                name += char
    return found


def operators(graph: Path) -> set[tuple[str, str]]:
    nodes = ir.load(graph).graph.all_nodes()
    return {(node.domain or "ai.onnx", node.op_type) for node in nodes}


def test_it_lists_the_operators_that_the_package_runs(android: Path, android_onnx: Path) -> None:
    with ort_nodes(android / "model.ort") as nodes:
        runs = {(node.domain or "ai.onnx", node.op_type) for node in nodes}
    found = listed(android / "required_operators.config")
    assert found == runs
    assert found - operators(android_onnx / "model.onnx") == set()


def test_one_operator_more_in_the_graph_is_one_more_in_the_list(
    android_onnx: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(android_onnx, tmp_path / "package")
    model = ir.load(folder / "model.onnx")
    logits = model.graph.outputs[0]
    less = ir.node("Less", [logits, logits])
    chosen = ir.Value(name="chosen", type=logits.type, shape=logits.shape)
    where = ir.node("Where", [less.outputs[0], logits, logits], outputs=[chosen])
    model.graph.extend([less, where])
    model.graph.outputs.append(chosen)
    ir.save(model, folder / "model.onnx")
    before = listed(_config(android_onnx, tmp_path / "before"))
    after = listed(_config(folder, tmp_path / "after"))
    assert after - before == {("ai.onnx", "Less"), ("ai.onnx", "Where")}


def _config(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    return write_required_operators(copy / "model.onnx", get_target("android"))


def test_types_are_listed(android: Path) -> None:
    text = (android / "required_operators.config").read_text()
    assert 'Softmax{"inputs": {"0": ["float"]}}' in text and "/tmp" not in text
