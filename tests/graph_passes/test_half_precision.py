"""float32 -> float16 and bfloat16: types, numbers, streamed and shared weights, refusals."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.graph_passes.fuse_norms import RMS_NORM, SKIP_RMS_NORM
from gptoss_onnx.graph_passes.half_precision import HalfPrecision
from gptoss_onnx.graph_passes.last_token_logits import LastTokenLogits
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.lower_moe import LowerMoE
from gptoss_onnx.graph_passes.quantization import FP32, INT4, MXFP4, Format, uniform
from gptoss_onnx.graph_passes.quantize_embedding import QuantizeEmbedding
from gptoss_onnx.graph_passes.quantize_kv import QuantizeKv
from gptoss_onnx.graph_passes.quantize_linears import QuantizeLinears
from gptoss_onnx.graph_passes.route_experts import RouteExperts
from gptoss_onnx.graph_passes.step import PassError, rules
from gptoss_onnx.graph_passes.weights import Part, StreamedTensor
from gptoss_onnx.runtimes.errors import UserError
from tests.graph_passes.conftest import LAYERS, nodes

Floats = NDArray[np.float32]
# float16 rounds by at most 2^-11, at random: in each layer two norms, q/k/v, attention, o, two sums
# and the experts. The same for bfloat16's weights alone, at 2^-8.
FLOAT16 = float(np.sqrt(8 * LAYERS)) * 2**-11
HALVES = ("float16", "bfloat16")
Lower = Callable[..., ir.Model]


@pytest.fixture
def lowered(checkpoint: Checkpoint, traced: ir.Model) -> Lower:
    """A graph of float activations on the CPU: without accuracy_level's int8 ones."""

    def lower(form: Format = FP32, *, routed: bool = False) -> ir.Model:
        model = traced.clone()
        bind(model, checkpoint)
        quantization = uniform("test", INT4 if form is MXFP4 else form, experts=form)
        rules(RMS_NORM, SKIP_RMS_NORM)(model)
        LowerAttention(quantization, [None] * LAYERS)(model)
        if routed:
            RouteExperts(quantization)(model)
        else:
            LowerMoE(quantization, accuracy_level=False)(model)
        LastTokenLogits()(model)
        QuantizeLinears(quantization)(model)
        if form is not FP32:
            QuantizeEmbedding(quantization.of("embedding"))(model)
        for node in model.graph.all_nodes():
            node.attributes.pop("accuracy_level", None)
        return model

    return lower


def logits(model: ir.Model) -> Floats:
    """After 5 tokens that follow 24 of random KV; the model's weights are read here."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    model.opset_imports["com.microsoft"] = 1
    model.functions.clear()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    rng = np.random.default_rng(3)
    feeds = {
        "input_ids": rng.integers(0, 512, (1, 5)),
        "attention_mask": np.ones((1, 29), np.int64),
    }
    for value in session.get_inputs()[2:]:
        past = rng.standard_normal((1, value.shape[1], 24, value.shape[3]), np.float32)
        feeds[value.name] = past.astype(np.float16 if "16" in value.type else np.float32)
    return session.run(["logits"], feeds)[0]


def difference(ours: Floats, theirs: Floats) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def widened(model: ir.Model) -> ir.Model:
    """Half values as float32, for nodes that the CPU provider has no half kernels for.

    What is checked then are the bytes of the weights and the types around them.
    """
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for value in values(model):
        if value.dtype in halves:
            if value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32))
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph.all_nodes():
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            del node.attributes["value"]
    return model


def values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    made = [value for node in graph.all_nodes() for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("form", [FP32, INT4, MXFP4], ids=str)
def test_types(lowered: Lower, form: Format, dtype: str) -> None:
    model = lowered(form)
    before = {value.name for value in values(model) if value.dtype == ir.DataType.FLOAT}
    assert HalfPrecision(dtype)(model) == 1
    kept = {v.name: v.dtype for v in values(model) if v.dtype == ir.DataType.FLOAT}
    assert set(kept) == {"logits"} | ({"experts.global_scale"} if form is MXFP4 else set())
    half = ir.DataType[dtype.upper()]
    changed = {value.name for value in values(model) if value.dtype == half}
    assert changed == before - set(kept) | {f"logits.{dtype}"}
    ports = [*model.graph.inputs, *model.graph.outputs]
    assert [v.dtype for v in ports if ".key" in v.name or ".value" in v.name] == 4 * LAYERS * [half]
    assert next(v for v in model.graph.outputs if v.name == "logits").shape[1] == 1


@pytest.mark.parametrize("form", [FP32, INT4, MXFP4], ids=str)
def test_float16_numbers(lowered: Lower, form: Format) -> None:
    model = lowered(form)
    HalfPrecision("float16")(model)
    assert difference(logits(model), logits(lowered(form))) <= FLOAT16


@pytest.mark.parametrize("form", [FP32, INT4, MXFP4], ids=str)
def test_bfloat16_weights(lowered: Lower, form: Format) -> None:
    model = lowered(form)
    HalfPrecision("bfloat16")(model)
    assert difference(logits(widened(model)), logits(lowered(form))) <= 8 * FLOAT16


@pytest.mark.parametrize("lost", ["scales", "sinks", "bias"])
def test_canary_a_lost_weight_shows(lowered: Lower, lost: str) -> None:
    model = lowered(INT4)
    HalfPrecision("float16")(model)
    names = {
        "scales": "model.layers.1.mlp.experts.down_proj_scales",
        "sinks": "model.layers.1.self_attn.sinks",
        "bias": "model.layers.1.mlp.experts.gate_up_proj_bias",
    }
    value = model.graph.initializers[names[lost]]
    value.const_value = ir.Tensor(np.zeros(value.const_value.shape.numpy(), np.float16))
    assert difference(logits(model), logits(lowered(INT4))) > 4 * FLOAT16


def test_branches_and_parts(lowered: Lower) -> None:
    """Experts behind an If: their nodes are half too, and parts stay slices of one stream."""
    model = lowered(INT4, routed=True)
    HalfPrecision("float16")(model)
    assert {v.name for v in values(model) if v.dtype == ir.DataType.FLOAT} == {"logits"}
    parts = [v.const_value for v in model.graph.initializers.values() if "scales" in v.name]
    experts = [tensor for tensor in parts if isinstance(tensor, Part)]
    assert {tensor.dtype for tensor in parts} == {ir.DataType.FLOAT16}
    assert len({id(tensor.whole) for tensor in experts}) == 2 * LAYERS < len(experts)
    assert difference(logits(widened(model)), logits(lowered(INT4, routed=True))) <= FLOAT16


@pytest.mark.parametrize("routed", [False, True])
def test_weights_that_stay_float32(lowered: Lower, routed: bool) -> None:
    model = lowered(INT4, routed=routed)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert HalfPrecision("float16", cast_weights=True)(model) == 1
    for name, value in model.graph.initializers.items():
        assert value.const_value is before[name] or value.const_value.size == 1
        readers = {user.op_type for user, _ in value.uses()}
        assert value.dtype != ir.DataType.FLOAT or readers == {"Cast"}
    after = [value for node in model.graph.all_nodes() for value in node.outputs]
    assert {v.name for v in after if v.dtype == ir.DataType.FLOAT} == {"logits"}


def test_casting_at_load_gives_the_same_numbers(lowered: Lower) -> None:
    shared, converted = lowered(INT4), lowered(INT4)
    HalfPrecision("float16", cast_weights=True)(shared)
    HalfPrecision("float16")(converted)
    np.testing.assert_array_equal(logits(shared), logits(converted))


def test_int8_kv_keeps_its_scales(lowered: Lower) -> None:
    model = lowered()
    names = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    QuantizeKv({name: np.ones((2, 32), np.float32) for name in names})(model)
    HalfPrecision("float16")(model)
    for node in nodes(model, "GroupQueryAttention"):
        assert [node.inputs[at].dtype.name for at in (0, 3, 7, 11, 12, 13)] == [
            *("FLOAT16", "INT8", "FLOAT16", "FLOAT16", "FLOAT", "FLOAT")
        ]


def stream(array: Floats, pieces: int) -> StreamedTensor:
    return StreamedTensor(
        lambda: iter(np.array_split(array, pieces)), ir.DataType.FLOAT, array.shape
    )


def graph_of(weight: ir.TensorProtocol, op: str = "Add", uses: tuple[int, ...] = (1,)) -> ir.Model:
    """x (float32) and a weight at the places `uses` of an operator that gives the logits."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([8, 4]))
    w = ir.Value(name="w", type=ir.TensorType(weight.dtype), const_value=weight, shape=weight.shape)
    inputs = [x, *[w if place in uses else None for place in range(1, max(uses) + 1)]]
    node = ir.node(op, inputs)
    out = node.outputs[0]
    out.name, out.type, out.shape = "logits", ir.TensorType(ir.DataType.FLOAT), x.shape
    graph = ir.Graph([x], [out], nodes=[node], initializers=[w], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_stream_stays_a_stream(dtype: str) -> None:
    array = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    model = graph_of(stream(array, 4))
    HalfPrecision(dtype)(model)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, StreamedTensor)
    assert [chunk.shape for chunk in tensor.chunks()] == [(2, 4)] * 4
    np.testing.assert_array_equal(tensor.numpy(), array.astype(tensor.dtype.numpy()))


def test_bfloat16_rounds_to_even() -> None:
    bits = np.random.default_rng(1).integers(0, 0x7F00, 4096).astype(np.uint32) << 16
    array = (bits + np.arange(4096, dtype=np.uint32) % 3 * 0x8000 // 2).view(np.float32)
    model = graph_of(stream(array.reshape(-1, 4), 1))
    HalfPrecision("bfloat16")(model)
    ours = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(ours, array.reshape(-1, 4).astype(ml_dtypes.bfloat16))


def test_a_weight_beyond_float16_is_refused() -> None:
    array = np.full((8, 4), 7e4, np.float32)
    model = graph_of(stream(array, 2))
    HalfPrecision("float16")(model)
    with pytest.raises(UserError, match=r"w: holds 7e\+04.*--activations bfloat16"):
        model.graph.initializers["w"].const_value.numpy()
    model = graph_of(stream(array, 2))
    HalfPrecision("bfloat16")(model)
    assert np.isfinite(model.graph.initializers["w"].const_value.numpy().astype(np.float32)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_constant_is_clamped(dtype: str) -> None:
    """A mask's lowest number stays one: an infinity less an infinity is none."""
    model = graph_of(ir.Tensor(np.float32(-3e38).reshape(1)))
    HalfPrecision(dtype)(model)
    number = float(model.graph.initializers["w"].const_value.numpy()[0])
    assert number == (-65504.0 if dtype == "float16" else pytest.approx(-3e38, rel=2**-8))


@pytest.mark.parametrize(
    ("op", "attributes", "wanted"),
    [
        ("ConstantOfShape", {}, 0.0),  # its own default is a float32 zero
        ("ConstantOfShape", {"value": ir.Tensor(np.full(1, 2.5, np.float32))}, 2.5),
        ("Constant", {"value": ir.Tensor(np.float32(-1e9))}, -65504.0),
        ("Constant", {"value_float": 1.5}, 1.5),
    ],
)
def test_constants_are_halves(op: str, attributes: dict[str, object], wanted: float) -> None:
    model = graph_of(stream(np.ones((8, 4), np.float32), 1))
    add = model.graph.node(0)
    inputs = [add.inputs[0]] if op == "ConstantOfShape" else []
    made = ir.node(op, inputs, attributes)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(add, made)
    HalfPrecision("float16")(model)
    value = made.attributes["value"].as_tensor()
    assert (value.dtype, float(value.numpy().reshape(()))) == (ir.DataType.FLOAT16, wanted)
    assert set(made.attributes) == {"value"}
    assert made.outputs[0].dtype == ir.DataType.FLOAT16


def test_integer_constants_stay() -> None:
    model = graph_of(stream(np.ones((8, 4), np.float32), 1))
    made = ir.node("Constant", [], {"value_ints": [1, 2]})
    model.graph.insert_before(model.graph.node(0), made)
    HalfPrecision("float16")(model)
    assert set(made.attributes) == {"value_ints"}


def test_a_weight_of_two_types_is_refused() -> None:
    model = graph_of(stream(np.ones((8, 4), np.float32), 1), "QMoE", (3, 15))
    with pytest.raises(PassError, match="w: read as float32 by one operator, as half by another"):
        HalfPrecision("float16")(model)
