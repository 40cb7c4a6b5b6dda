"""ai.gptoss::MoE -> gathered experts: QMoE's bytes, the portable graph's numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.custom_ops import DOMAIN, functions
from gptoss_onnx.graph_passes.expert_weights import packed_experts
from gptoss_onnx.graph_passes.gather_experts import GatherExperts
from gptoss_onnx.graph_passes.quantization import INT4, INT8, Format, uniform
from gptoss_onnx.graph_passes.rounding import SEARCH
from gptoss_onnx.graph_passes.step import initializer
from gptoss_onnx.graph_passes.weight_role import give_roles
from gptoss_onnx.graph_passes.weights import ExpertWeight, FloatWeight

HIDDEN, INNER, EXPERTS, TOP_K = 64, 96, 8, 3
LIMIT, ALPHA = 0.5, 1.702  # a limit that many activations pass
# Two dot products over at most 96 after another, summed in another order: sqrt(2 * 96) eps.
TOLERANCE = 14 * float(np.finfo(np.float32).eps)
Array = NDArray[np.float32]
PREFIX = "model.layers.0.mlp.experts"


class Stored:
    """A tensor in memory, read as one of a checkpoint: rows, or an expert."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = array.shape

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        return self.array[start] if self.array.ndim == 3 else self.array[start:stop]


def weights() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    shapes = {
        "gate_up_proj": (EXPERTS, 2 * INNER, HIDDEN),
        "gate_up_proj_bias": (EXPERTS, 2 * INNER),
        "down_proj": (EXPERTS, HIDDEN, INNER),
        "down_proj_bias": (EXPERTS, HIDDEN),
    }
    return {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def rounded(array: Array, form: Format) -> Array:
    """What codes and scales of an expert projection stand for."""
    pair = packed_experts(expert_weight(array), form, SEARCH)
    codes = pair.packed.numpy()
    if form.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1)
    blocks = codes.reshape(*pair.scales.shape.numpy(), form.block).astype(np.float32)
    zero = 2 ** (form.bits - 1)
    return ((blocks - zero) * pair.scales.numpy()[..., None]).reshape(array.shape)


def expert_weight(array: Array) -> ExpertWeight:
    weight = ExpertWeight(Stored(array), lambda stored: stored)
    weight.name = "of a test"
    return weight


def portable(stored: dict[str, Array]) -> ir.Model:
    """MoE alone, with its function body."""
    size = stored["down_proj"].shape[1]
    hidden = value("hidden", ["batch", "sequence", size])
    logits = value("logits", ["batch", "sequence", EXPERTS])
    graph = ir.Graph([hidden, logits], [], nodes=[], opset_imports={"": 21, DOMAIN: 1})
    inputs = [
        initializer(
            graph,
            f"{PREFIX}.{name}",
            expert_weight(array) if array.ndim == 3 else FloatWeight([Stored(array)]),
        )
        for name, array in stored.items()
    ]
    give_roles(graph)
    out = value("out", ["batch", "sequence", size])
    attributes = {"top_k": TOP_K, "swiglu_limit": LIMIT, "swiglu_alpha": ALPHA}
    graph.append(
        ir.node("MoE", [hidden, logits, *inputs], attributes, domain=DOMAIN, outputs=[out])
    )
    graph.outputs.append(out)
    model = ir.Model(graph, ir_version=10)
    for function in functions():
        model.functions[function.identifier()] = function
    return model


def value(name: str, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def gathered(form: Format) -> ir.Model:
    model = portable(weights())
    assert GatherExperts(uniform("test", form))(model) == 1
    model.opset_imports["com.microsoft"] = 1
    return model


def feeds(batch: int, tokens: int, *, seed: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "hidden": rng.standard_normal((batch, tokens, HIDDEN), np.float32),
        "logits": rng.standard_normal((batch, tokens, EXPERTS), np.float32),
    }


def serialized(model: ir.Model) -> bytes:
    copy = model.clone()
    for value in copy.graph.initializers.values():
        array = value.const_value.numpy()
        value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)
    return bytes(ir.serde.serialize_model(copy).SerializeToString())


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(serialized(model), providers=["CPUExecutionProvider"])


def computed(model: ir.Model, given: dict[str, Array]) -> Array:
    (out,) = session(model).run(None, given)
    return np.asarray(out)


def expected(form: Format, given: dict[str, Array]) -> Array:
    stored = weights()
    for name in ("gate_up_proj", "down_proj"):
        stored[name] = rounded(stored[name], form)
    return computed(portable(stored), given)


def difference(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("form", [INT4, INT8], ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 2), (2, 1), (1, 7), (2, 33)])
def test_numbers_are_the_portable_graphs(form: Format, batch: int, tokens: int) -> None:
    given = feeds(batch, tokens)
    assert difference(computed(gathered(form), given), expected(form, given)) <= TOLERANCE


@pytest.mark.parametrize("favourites", [[0, 1, 2], [5, 6, 7], [0, 3, 7]])
def test_tokens_that_all_choose_the_same_experts(favourites: list[int]) -> None:
    """The fewest experts, the fullest blocks, the most blocks that nobody needs."""
    given = feeds(1, 21)
    given["logits"][..., favourites] += 10
    assert difference(computed(gathered(INT4), given), expected(INT4, given)) <= TOLERANCE


def test_equal_logits() -> None:
    """Ties between experts fall as TopK has them, once."""
    given = feeds(1, 9)
    given["logits"][:] = 1
    assert difference(computed(gathered(INT4), given), expected(INT4, given)) <= TOLERANCE


def test_weights_are_qmoes_bytes_and_stored_once() -> None:
    model = portable(weights())
    GatherExperts(uniform("test", INT4))(model)
    stored = model.graph.initializers
    for name in ("gate_up_proj", "down_proj"):
        source = expert_weight(weights()[name])
        source.name = f"{PREFIX}.{name}"
        pair = packed_experts(source, INT4, SEARCH)
        for key, wanted in ((f"{name}_int4", pair.packed), (f"{name}_scales", pair.scales)):
            kept = stored[f"{PREFIX}.{key}"].const_value
            assert kept.nbytes == wanted.nbytes
            np.testing.assert_array_equal(kept.numpy().reshape(-1), wanted.numpy().reshape(-1))
        assert f"{PREFIX}.{name}" not in stored
    codes = [v for v in stored.values() if v.dtype == ir.DataType.UINT8]
    assert len(codes) == 2


def test_no_tensor_is_empty() -> None:
    """Not even where an expert gets no token: DirectML takes no tensor of size zero."""
    model = gathered(INT4)
    assert all(value.const_value.size for value in model.graph.initializers.values())
    given = feeds(1, 5)
    given["logits"][..., :TOP_K] += 10
    sizes = [array.size for array in every_value(model, given)]
    assert len(sizes) > 200
    assert min(sizes) > 0


def test_shapes_follow_from_the_number_of_tokens_alone() -> None:
    """However tokens are routed: a runtime that compiles for shapes compiles once."""
    shapes = []
    for favourites in ([0, 1, 2], [7, 3, 0], []):
        given = feeds(1, 21)
        given["logits"][..., favourites] += 10
        shapes.append([array.shape for array in every_value(gathered(INT4), given)])
    assert shapes[0] == shapes[1] == shapes[2]


MEASURED = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
rng = np.random.default_rng(0)
hidden, experts = (value.shape[2] for value in session.get_inputs())
def run(tokens):
    session.run(None, {
        "hidden": rng.standard_normal((1, tokens, hidden), np.float32),
        "logits": rng.standard_normal((1, tokens, experts), np.float32),
    })
run(2)
before = peak()
run(int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_memory_does_not_grow_with_tokens_times_expert_weights(tmp_path: Path) -> None:
    """256 tokens against 2: copies of each token's three experts would be 300 MB of codes."""
    tokens = 256
    rng = np.random.default_rng(1)
    wide = {  # experts that weigh much more than rows
        name: np.resize(rng.standard_normal(4096, np.float32), shape)
        for name, shape in (
            ("gate_up_proj", (EXPERTS, 2 * 512, 512)),
            ("gate_up_proj_bias", (EXPERTS, 2 * 512)),
            ("down_proj", (EXPERTS, 512, 512)),
            ("down_proj_bias", (EXPERTS, 512)),
        )
    }
    model = portable(wide)
    GatherExperts(uniform("test", INT4))(model)
    model.opset_imports["com.microsoft"] = 1
    (tmp_path / "model.onnx").write_bytes(serialized(model))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "model.onnx"), str(tokens)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    codes = tokens * TOP_K * 3 * 512 * 512 // 2
    rows = 2 * tokens * TOP_K * 4 * (3 * 2 * 512 + 4 * 512)  # gate and up, and what becomes of them
    assert grown < rows < codes / 8


def branch(model: ir.Model, name: str) -> ir.Graph:
    (choice,) = (node for node in model.graph if node.op_type == "If")
    graph = choice.attributes[f"{name}_branch"].as_graph()
    assert isinstance(graph, ir.Graph)
    return graph


def every_value(model: ir.Model, given: dict[str, Array]) -> list[Array]:
    """What the nodes of the branch for many tokens compute, run in their If's place."""
    graph, blocks = model.graph, branch(model, "else")
    (choice,) = (node for node in graph if node.op_type == "If")
    nodes, total = list(blocks), blocks.outputs[0]
    blocks.outputs.clear()
    blocks.remove(nodes)
    graph.insert_before(choice, nodes)
    choice.outputs[0].replace_all_uses_with(total)
    graph.remove(choice, safe=True)
    graph.outputs[:] = [value for node in nodes for value in node.outputs]
    return [np.asarray(array) for array in session(model).run(None, given)]


def damaged_gate_and_up(model: ir.Model) -> None:
    for name in ("then", "else"):
        splits = (node for node in branch(model, name) if node.op_type == "Split")
        gate, up = next(node.outputs for node in splits if len(node.outputs) == 2)
        uses = [(list(v.uses()), w) for v, w in ((gate, up), (up, gate))]
        for places, other in uses:
            for node, place in places:
                node.replace_input_with(place, other)


def damaged_expert(model: ir.Model) -> None:
    """The first block computes with another's expert."""
    for name, other in (("then", 1), ("else", 4)):
        for node in branch(model, name):
            if str(node.outputs[0].name).endswith(".0.expert"):
                node.replace_input_with(1, model.graph.initializers[f"constant.scalar_{other}"])


def damaged_bias(model: ir.Model) -> None:
    value = model.graph.initializers[f"{PREFIX}.down_proj_bias"]
    value.const_value = ir.Tensor(np.zeros((EXPERTS, HIDDEN), np.float32), name=value.name)


def damaged_limit(model: ir.Model) -> None:
    for sign in ("", "-"):
        value = model.graph.initializers[f"constant.scalar_{sign}{LIMIT}"]
        value.const_value = ir.Tensor(2 * value.const_value.numpy(), name=value.name)


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(
    "damage", [damaged_gate_and_up, damaged_expert, damaged_bias, damaged_limit]
)
def test_canary(damage: Callable[[ir.Model], None], tokens: int) -> None:
    given = feeds(1, tokens)
    model = gathered(INT4)
    damage(model)
    assert difference(computed(model, given), expected(INT4, given)) > 100 * TOLERANCE


@pytest.mark.parametrize("step", ["block_begin", "pair_position"])
def test_canary_an_index_one_off(step: str) -> None:
    given = feeds(1, 17)
    model = gathered(INT4)
    blocks = branch(model, "else")
    (node,) = (n for n in blocks if str(n.outputs[0].name).endswith(f".plan.{step}"))
    users = list(node.outputs[0].uses())
    less = ir.node("Sub", [node.outputs[0], model.graph.initializers["constant.1"]])
    less.outputs[0].name = "one_less"
    for user, place in users:
        user.replace_input_with(place, less.outputs[0])
    blocks.insert_after(node, less)
    assert difference(computed(model, given), expected(INT4, given)) > 100 * TOLERANCE
