"""The portable graph: its two ops, its names, and that no weight is in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from gptoss_onnx.export.checkpoint import layout, open_checkpoint
from gptoss_onnx.export.custom_ops import DOMAIN
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.export.trace import trace

LAYERS = 2  # of the tiny geometry
PUBLISHED = """
import json, math, time
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.export.synthetic import GEOMETRIES, HARMONY_IDS, _config
from gptoss_onnx.export.trace import trace
from gptoss_onnx.runtimes.bench import memory

tiny, published = (_config(GEOMETRIES[n], "mxfp4", HARMONY_IDS) for n in ("tiny", "gpt-oss-20b"))
trace(GptOssSpec.from_config(tiny))  # imports what torch imports late: its build decides the size
before = memory()[0]
start = time.process_time()
graph = trace(GptOssSpec.from_config(published)).graph
print(json.dumps({
    "seconds": time.process_time() - start,
    "added_mb": (memory()[0] - before) / 2**20,
    "moe": sum(node.op_type == "MoE" for node in graph),
    "parameters": sum(math.prod(v.shape) for v in graph.initializers.values()),
}))
"""


@pytest.fixture(scope="module")
def spec(packed: Path) -> GptOssSpec:
    return open_checkpoint(packed).spec


@pytest.fixture(scope="module")
def model(spec: GptOssSpec) -> ir.Model:
    return trace(spec)


def test_two_ops_of_our_own_once_a_layer(model: ir.Model) -> None:
    own = Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    assert own == {"WindowedAttention": LAYERS, "MoE": LAYERS}
    assert {node.domain for node in model.graph} == {"", DOMAIN}
    assert {(f.domain, f.name) for f in model.functions.values()} == {(DOMAIN, op) for op in own}
    assert model.opset_imports == {"": 21, DOMAIN: 1}


def test_nothing_of_this_machine_is_in_it(model: ir.Model) -> None:
    """torch notes the source line of each operator, with the path of this checkout."""
    bare = model.clone()
    for value in bare.graph.initializers.values():
        value.const_value = None
    written = ir.serde.serialize_model(bare).SerializeToString()
    assert os.fsencode(Path(__file__).parents[2]) not in written
    assert b"stack_trace" not in written


def test_standard_ops_are_counted(model: ir.Model) -> None:
    norms, linears = 2 * LAYERS + 1, 5 * LAYERS + 1
    found = Counter(node.op_type for node in model.graph)
    assert found["Gather"] == 1
    assert found["ReduceMean"] == found["Pow"] == found["Sqrt"] == norms
    assert found["MatMul"] == found["Transpose"] == linears
    # biases, epsilons, residual sums
    assert found["Add"] == linears - 1 + norms + 2 * LAYERS


def test_attributes_are_the_specs(model: ir.Model, spec: GptOssSpec) -> None:
    attention = [node for node in model.graph if node.op_type == "WindowedAttention"]
    assert [node.attributes.get_int("window") for node in attention] == [16, 0]
    for node in attention:
        names = ("num_heads", "kv_num_heads", "head_dim", "num_global_tokens")
        assert [node.attributes.get_int(name) for name in names] == [4, 2, 32, 0]
    for node in (node for node in model.graph if node.op_type == "MoE"):
        assert node.attributes.get_int("top_k") == spec.experts_per_token
        assert node.attributes.get_float("swiglu_limit") == spec.swiglu_limit
        assert node.attributes.get_float("swiglu_alpha") == pytest.approx(1.702)


def test_inputs_and_outputs_have_the_fields_names(model: ir.Model) -> None:
    described = {
        str(v.name): (v.dtype, [str(d) for d in v.shape])
        for v in (*model.graph.inputs, *model.graph.outputs)
    }
    expected = {
        "input_ids": (ir.DataType.INT64, ["batch", "sequence"]),
        "attention_mask": (ir.DataType.INT64, ["batch", "total"]),
        "logits": (ir.DataType.FLOAT, ["batch", "sequence", "512"]),
    }
    for layer in range(LAYERS):
        for part in ("key", "value"):
            past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            expected[past] = (ir.DataType.FLOAT, ["batch", "2", "past", "32"])
            expected[present] = (ir.DataType.FLOAT, ["batch", "2", "total", "32"])
    assert described == expected
    assert [str(v.name) for v in model.graph.inputs[:4]] == [
        "input_ids",
        "attention_mask",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]


def test_weights_have_the_checkpoints_names_and_no_value(model: ir.Model, spec: GptOssSpec) -> None:
    """All of the layout, the rotary tables, and constants of a few bytes."""
    stored = model.graph.initializers
    weights = {name: tuple(v.shape) for name, v in stored.items() if v.const_value is None}
    constants = [v.const_value for v in stored.values() if v.const_value is not None]
    assert sum(constant.nbytes for constant in constants) < 1024
    expected = {}
    for name, shape, _ in layout(spec, "dense"):
        is_expert = name.endswith(("gate_up_proj", "down_proj"))
        expected[name] = (shape[0], shape[2], shape[1]) if is_expert else shape  # as MXFP4's
    for table in ("cos_cache", "sin_cache"):
        expected[table] = (spec.max_position_embeddings, spec.head_dim // 2)
    assert weights == expected


@pytest.mark.slow
def test_the_published_geometry_is_traced_in_little_memory() -> None:
    """24 layers of 20.9 billion parameters, beyond what a trace of a tiny model takes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PUBLISHED],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["moe"] == 24
    assert measured["parameters"] > 20.9e9
    assert measured["added_mb"] < 100  # its weights are 84 GB
    assert measured["seconds"] < 60
