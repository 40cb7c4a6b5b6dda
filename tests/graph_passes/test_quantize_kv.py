"""Float KV cache -> int8: scales, types, what the kernel computes with them, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from gptoss_onnx.cli import main
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.plan import Options, plan
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.lower_attention import LowerAttention
from gptoss_onnx.graph_passes.quantization import FP32, Quantization, uniform
from gptoss_onnx.graph_passes.quantize_kv import QuantizeKv
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target
from tests.graph_passes.conftest import LAYERS, nodes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("keep_sigterm")]
KV_HEADS, DIM = 2, 32
Float = NDArray[np.float32]
KvMax = dict[str, Float]


@pytest.fixture
def kv_max() -> KvMax:
    rng = np.random.default_rng(7)
    names = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    return {name: rng.uniform(1, 9, (KV_HEADS, DIM)).astype(np.float32) for name in names}


@pytest.fixture
def lowered(model: ir.Model) -> ir.Model:
    LowerAttention(uniform("test", FP32), [16, None, 16])(model)
    return model


def scales(model: ir.Model, layer: int) -> tuple[Float, Float]:
    node = nodes(model, "GroupQueryAttention")[layer]
    key, value = (node.inputs[place].const_value.numpy() for place in (12, 13))
    return key, value


def test_nodes_and_types(lowered: ir.Model, kv_max: KvMax) -> None:
    before = [list(node.inputs) for node in nodes(lowered, "GroupQueryAttention")]
    assert QuantizeKv(kv_max)(lowered) == LAYERS
    quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    for node, inputs in zip(nodes(lowered, "GroupQueryAttention"), before, strict=True):
        attributes = {name: a.value for name, a in node.attributes.items()}
        assert attributes.items() >= (quantized | {"kv_cache_bit_width": 8, "do_rotary": 1}).items()
        # Two inputs are new; sinks, lengths and rotary tables stay where they were.
        assert [v for at, v in enumerate(node.inputs) if at not in (12, 13)] == [
            v for at, v in enumerate(inputs) if at not in (12, 13)
        ]
    caches = [
        v
        for v in (*lowered.graph.inputs, *lowered.graph.outputs)
        if str(v.name).startswith(("past", "present"))
    ]
    assert [v.dtype for v in caches] == [ir.DataType.INT8] * 4 * LAYERS
    assert lowered.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_scales_are_the_largest_magnitudes(lowered: ir.Model, kv_max: KvMax) -> None:
    QuantizeKv(kv_max)(lowered)
    for layer in range(LAYERS):
        key, value = scales(lowered, layer)
        assert (key.shape, value.shape) == ((1, KV_HEADS, 1, DIM),) * 2
        assert (key.dtype, value.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(value[0, :, 0], kv_max[f"{layer}.value"] / 127, rtol=1e-6)
        for head in range(KV_HEADS):
            for channel in range(DIM):
                low, high = channel % 16, channel % 16 + 16
                most = kv_max[f"{layer}.key"][head]
                pair = float(np.sqrt(most[low] ** 2 + most[high] ** 2))
                assert key[0, head, 0, channel] == pytest.approx(pair / 127, rel=1e-6)


def test_keys_fit_wherever_rotary_turns_them(lowered: ir.Model, kv_max: KvMax) -> None:
    """Calibration saw the pair (3, 4) as it stands; a quarter turn makes it (-4, 3)."""
    most = np.ones((KV_HEADS, DIM), np.float32)
    most[0, [5, 21]] = 3, 4
    QuantizeKv(kv_max | {"0.key": most, "0.value": most})(lowered)
    key, value = scales(lowered, 0)
    assert key[0, 0, 0, [5, 21]] * 127 == pytest.approx(5)
    assert value[0, 0, 0, [5, 21]] * 127 == pytest.approx([3, 4])


def test_a_silent_channel_keeps_a_step(lowered: ir.Model, kv_max: KvMax) -> None:
    most = np.zeros((KV_HEADS, DIM), np.float32)
    most[1, 3] = 127
    QuantizeKv(kv_max | {"1.value": most})(lowered)
    _, value = scales(lowered, 1)
    assert value.min() == pytest.approx(1 / 127)
    assert value[0, 1, 0, 3] == pytest.approx(1)


@pytest.mark.parametrize("seen", ["nothing", "zeros", "NaN"])
def test_what_calibration_did_not_see(lowered: ir.Model, kv_max: KvMax, seen: str) -> None:
    if seen == "nothing":
        del kv_max["1.value"]
    else:
        kv_max["1.value"] *= 0 if seen == "zeros" else np.nan
    with pytest.raises(UserError, match=r"saw no values of layer 1 .* give --calibrate a text"):
        QuantizeKv(kv_max)(lowered)


def test_the_kernel_keeps_codes_of_these_scales(lowered: ir.Model, kv_max: KvMax) -> None:
    """Its first layer's present is round(float present / scale), saturated."""
    kv_max["0.key"] *= 4
    kv_max["0.value"] *= 0.05  # so that some saturate
    ids = np.random.default_rng(3).integers(0, 512, (1, 12))
    plain = presents(lowered, ids)
    QuantizeKv(kv_max)(lowered)
    found = presents(lowered, ids)
    for part, scale, saturated in zip(
        ("key", "value"), scales(lowered, 0), (False, True), strict=True
    ):
        wanted = plain[f"present.0.{part}"] / scale
        assert (np.abs(wanted) > 128).any() == saturated
        assert np.abs(wanted).max() > 3  # codes that say something
        codes = found[f"present.0.{part}"]
        assert codes.dtype == np.int8
        # A float32 ulp may turn a half the other way: never more than half a code and a little.
        assert np.abs(codes - wanted.clip(-128, 127)).max() < 0.501
        assert np.abs(np.roll(codes, 1, axis=-1) - wanted.clip(-128, 127)).max() > 1


def presents(model: ir.Model, ids: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Outputs for `ids` after an empty cache; of caches the rows of `ids` alone."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    copy.opset_imports["com.microsoft"] = 1
    proto = ir.serde.serialize_model(copy).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in session.get_inputs()[2:]:
        # A window's rows for a layer that keeps only them; the others have nothing yet.
        rows = 16 if value.shape[2] == "window" else 0
        dtype = np.int8 if value.type == "tensor(int8)" else np.float32
        feeds[value.name] = np.zeros((1, KV_HEADS, rows, DIM), dtype)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    return {name: v[:, :, : ids.shape[1]] if v.ndim == 4 else v for name, v in found.items()}


def test_a_target_whose_attention_has_no_int8(checkpoint: Checkpoint, kv_max: KvMax) -> None:
    options = Options(
        get_target("directml"), Quantization.parse("int4", ()), kv="int8", kv_max=kv_max
    )
    with pytest.raises(
        UserError, match=r"^--kv int8: attention on directml has no such KV cache; leave it out$"
    ):
        plan(checkpoint, options)


@pytest.fixture(scope="module")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can encode a text and has none of its own."""
    made = tmp_path_factory.mktemp("kv") / "tiny"
    return synthesize(made, geometry="tiny", vocab=4096, tokenizer=demo)


def test_without_a_text_there_are_no_scales(folder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "package")
    result = CliRunner().invoke(main, ["export", str(folder), "--output", output, "--kv", "int8"])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "int8" in line]
    assert "--kv int8 needs the sizes of keys and values: give --calibrate FILE" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["by --calibrate", "beside the checkpoint"])
def test_the_command_scales_by_a_text(folder: Path, tmp_path: Path, given: str) -> None:
    text, output = tmp_path / "calibration.jsonl", tmp_path / "package"
    text.write_text(json.dumps({"text": "Where is the nearest station? " * 20}), "utf-8")
    arguments = [str(folder), "--output", str(output), "--kv", "int8", "--quant", "fp32"]
    if given == "by --calibrate":
        arguments += ["--calibrate", str(text), "--method", "search"]
    else:
        beside = folder / "evaluation"
        beside.mkdir()
        text.rename(beside / text.name)
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 0, result.output
    kv = json.loads((output / "manifest.json").read_text("utf-8"))["kv"]
    assert kv["dtype"] == "int8"
    assert kv["scales"]["per"] == "channel"
    assert kv["scales"]["calibration"]["text"] == "calibration.jsonl"
    assert kv["scales"]["calibration"]["tokens"] > 100
