"""The CUDA targets: what their tables refuse, what their graphs look like, the checking script."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_onnx.evaluation.against import compare
from gptoss_onnx.evaluation.verify import not_run, verify
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import GRAPH, Options, plan
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.scale_residual import EXPONENT
from gptoss_onnx.graph_passes.step import PassError
from gptoss_onnx.graph_passes.verify_target import VerifyTarget, refusal
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.target import Target, get_target
from tests.conftest import ROOT, DemoPackage
from tests.targets import cuda_check
from tests.targets.cpu_form import for_cpu
from tests.targets.test_cpu_releases import LOAD, under, unknown

pytestmark = pytest.mark.slow

CUDA, SM70, CPU = (get_target(name) for name in ("cuda", "cuda_sm70", "cpu"))
CHANGES = {"int4": ["embedding=int8:32"]}  # the tiny model's 64 columns
LAYERS = 3
GQA, QMOE = "com.microsoft::GroupQueryAttention", "com.microsoft::QMoE"
FP4 = {"quant_type": "fp4", "expert_weight_bits": 4, "block_size": 32}
INT4 = {"quant_type": "int", "expert_weight_bits": 4, "weights_prepacked": 0}


def node(
    op: str, inputs: int, dtype: str = "FLOAT16", empty: tuple[int, ...] = (), **attributes: object
) -> ir.Node:
    domain, _, name = op.rpartition("::")
    kind = ir.TensorType(ir.DataType[dtype])
    values = [None if n in empty else ir.Value(name=f"v{n}", type=kind) for n in range(inputs)]
    outputs = [ir.Value(name="y", type=kind)]
    return ir.node(name, values, attributes, domain=domain, outputs=outputs)  # type: ignore[arg-type]


REFUSED = {
    # It would silently run on the CPU.
    "float32 QMoE": (CUDA, node(QMOE, 8, "FLOAT", **INT4, block_size=32), "FLOAT is not in its"),
    "newer than 1.31": (
        CUDA,
        node(QMOE, 8, **INT4, block_size=32, swiglu_limit_after_activation=1),
        "attribute swiglu_limit_after_activation is not known there",
    ),
    "query_seqlens": (CUDA, node(GQA, 17, empty=(10,)), "17 inputs where its kernel reads 12"),
    "CPU's fp4": (
        CUDA,
        node(QMOE, 17, **FP4, weights_prepacked=1),
        r"weights_prepacked=1 is not one of \[0\]",
    ),
    "blocks of 16": (CUDA, node(QMOE, 8, **INT4, block_size=16), r"block_size=16 is not one of"),
    "bias and sinks": (CUDA, node(GQA, 12), "input 10 is refused by its kernel"),
    "windowed cache": (
        CUDA,
        node(GQA, 12, empty=(10,), sliding_window_cache=1),
        "attribute sliding_window_cache is not known there",
    ),
    "sinks below 8.0": (SM70, node(GQA, 12, empty=(10,)), "takes every attention sink for 0"),
    "QMoE below 8.0": (SM70, node(QMOE, 8, **INT4, block_size=32), "not for compute capability"),
    "a bias of 1.31": (
        SM70,
        node("com.microsoft::MatMulNBits", 6, empty=(3, 4), N=8, K=32, bits=4, block_size=32),
        "6 inputs where its kernel reads 5",
    ),
    "bfloat16 below 8.0": (SM70, node("MatMul", 2, "BFLOAT16"), "BFLOAT16 is not in its kernel"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    target, refused, why = REFUSED[case]
    graph = ir.Graph([], [], nodes=[refused], opset_imports={"": target.opset})
    with pytest.raises(PassError, match=f" on {target.name}: .*{why}"):
        VerifyTarget(target)(ir.Model(graph, ir_version=10))


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
def test_taken(dtype: str) -> None:
    for taken in (
        node(QMOE, 17, dtype, **FP4),
        node(QMOE, 8, dtype, **INT4, block_size=64),
        node(GQA, 12, dtype, empty=(10,), local_window_size=128),
    ):
        assert refusal(taken, CUDA) is None


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cuda") / "tiny", geometry="tiny", layers=LAYERS)


@pytest.fixture(scope="module")
def tiny(packed: Path) -> Checkpoint:
    return open_checkpoint(packed)


def options(preset: str = "int4", **more: object) -> Options:
    quantization = Quantization.parse(preset, CHANGES.get(preset, ()))
    return Options(CUDA, quantization, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", CUDA.presets)
@pytest.mark.parametrize("activations", CUDA.activations)
def test_graphs_are_ready_for_cuda_graphs(tiny: Checkpoint, preset: str, activations: str) -> None:
    """What is in use is counted on the GPU, from the mask; lengths on the CPU are of shapes alone,
    so that they are the same at every step once mask and cache have their full length."""
    graph = plan(tiny, options(preset, activations=activations)).model.graph
    found = Counter(node.op_type for node in graph.all_nodes())
    assert (found["QMoE"], found["GroupQueryAttention"], found["Slice"]) == (LAYERS, LAYERS, 1)
    assert not {"If", "NonZero", "GatherND", "Max"} & set(found)
    assert found["Shape"] == 1  # total_sequence_length
    half = ir.DataType[activations.upper()]
    types = {v.name: v.dtype for v in (*graph.inputs, *graph.outputs)}
    assert types.pop("logits") == ir.DataType.FLOAT
    assert {types.pop(name) for name in ("input_ids", "attention_mask")} == {ir.DataType.INT64}
    assert set(types.values()) == {half}
    scales = [v for name, v in graph.initializers.items() if name.endswith("_scales")]
    wanted = {half, ir.DataType.FLOAT8E8M0} if preset == "mxfp4" else {half}
    assert {value.dtype for value in scales} == wanted


def test_global_tokens_are_of_standard_operators(tmp_path: Path) -> None:
    """No kernel there takes their bias beside sinks."""
    folder = synthesize(tmp_path / "global", geometry="tiny", layers=2)
    config = json.loads((folder / "config.json").read_text()) | {"num_global_tokens": 4}
    (folder / "config.json").write_text(json.dumps(config))
    made = plan(open_checkpoint(folder), options())
    found = Counter(node.op_type for node in made.model.graph.all_nodes())
    assert (found["GroupQueryAttention"], found["FusedMatMul"], found["QMoE"]) == (0, 2, 2)


def test_link_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(UserError, match="--link: cuda reads MXFP4 experts in another order"):
        plan(tiny, options("mxfp4", link=True))


def test_activations_a_gpu_has_not(tiny: Checkpoint) -> None:
    older = dataclasses.replace(options(), target=SM70, activations="bfloat16")
    with pytest.raises(UserError, match="--activations bfloat16: cuda_sm70 has float16"):
        plan(tiny, older)


@pytest.fixture(scope="module")
def packages(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("packages"), {}
    for target in (CUDA, SM70, CPU):
        made[target.name] = folder / target.name
        chosen = dataclasses.replace(options(), target=target)
        export(tiny, chosen, made[target.name], lambda *_: None)
    return made


def test_manifest(packages: dict[str, Path]) -> None:
    manifest = json.loads((packages["cuda"] / "manifest.json").read_text())
    assert (manifest["activations"], manifest["min_runtime"]) == ("float16", "1.31")
    assert manifest["kv"]["dtype"] == "float16"
    assert manifest["kv"]["in_place"]
    assert manifest["session"] == {
        "providers": ["CUDAExecutionProvider"],
        "provider_options": {"arena_extend_strategy": "kSameAsRequested"},
        "config": {"session.use_device_allocator_for_initializers": "1"},
    }
    assert not json.loads((packages["cuda_sm70"] / "manifest.json").read_text())["kv"]["in_place"]


def test_genai_is_told_the_device(packages: dict[str, Path]) -> None:
    # 1.26 sums squares in float16 unless it is told not to.
    strict = {"enable_skip_layer_norm_strict_mode": "1"}
    for name, share, options in (("cuda", True, {}), ("cuda_sm70", False, strict)):
        genai = json.loads((packages[name] / "genai_config.json").read_text())
        (provider,) = genai["model"]["decoder"]["session_options"]["provider_options"]
        assert provider == {"cuda": {"arena_extend_strategy": "kSameAsRequested", **options}}
        assert genai["search"]["past_present_share_buffer"] is share


@pytest.mark.parametrize(("target", "release"), [(CUDA, "1.31.0"), (SM70, "1.26.0")])
def test_the_oldest_release_knows_all(
    packages: dict[str, Path], target: Target, release: str
) -> None:
    """Its schemas, which every build of a release shares, and its loader on the CPU."""
    known = under(release, ROOT / "tests" / "targets" / "schemas.py")
    assert known.returncode == 0, known.stderr
    assert unknown(target, json.loads(known.stdout)) == []
    loaded = under(release, "-c", LOAD, packages[target.name] / GRAPH)
    assert loaded.returncode == 0, loaded.stderr


def test_canary_an_older_release_does_not() -> None:
    known = json.loads(under("1.26.0", ROOT / "tests" / "targets" / "schemas.py").stdout)
    assert any(line.startswith("QMoE") for line in unknown(CUDA, known))


def check(package: Path, *arguments: object, provider: str = "CPUExecutionProvider") -> int:
    return cuda_check.main([str(package), "--provider", provider, *map(str, arguments)])


@pytest.mark.parametrize("name", ["cuda", "cuda_sm70"])
def test_the_checks_pass(
    packages: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU provider, whose float16 kernels or casts stand in for the GPU's."""
    assert check(packages[name]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split(":")[0].split(maxsplit=1)[1]: line.split()[0] for line in lines}
    fixed = "ok" if name == "cuda" else "--"
    assert words == {
        "placement": "ok", "chunks": "ok", "cache": "--", "fixed shapes": fixed,
        "captured graph": "--", "speed": "--",
    }  # fmt: skip


@pytest.fixture(scope="module")
def demo_cuda(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "cuda"
    export(
        open_checkpoint(str(demo)), Options(CUDA, Quantization.parse("int4")), folder,
        lambda *_: None,
    )  # fmt: skip
    return folder


def test_answers_are_compared(
    demo_cuda: Path, demo_package: DemoPackage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two questions; all twenty were run once: 694 tokens, all alike, for both CUDA targets."""
    assert check(demo_cuda, "--against", demo_package("int4"), "--questions", 2) == 0
    assert "ok      answers: " in capsys.readouterr().out


def damaged(package: Path, folder: Path, change: str) -> Path:
    """The package with one fault in its graph."""
    folder.mkdir()
    for file in package.iterdir():
        (folder / file.name).hardlink_to(file)
    model = ir.load(package / GRAPH)
    for node in model.graph:
        if node.op_type == "GroupQueryAttention" and change == "window":
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", 3)
        if node.op_type == "Slice" and change == "slot":
            for name, at in (("last_token.first", 0), ("last_token.end", 1)):
                bound = model.graph.initializers[name]
                bound.const_value = ir.Tensor(np.array([at]), name=name)
    (folder / GRAPH).unlink()
    ir.save(model, folder / GRAPH)
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["files"][GRAPH]["size"] = (folder / GRAPH).stat().st_size
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_canary_logits_of_another_slot_show(
    packages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(damaged(packages["cuda"], tmp_path / "damaged", "slot")) == 1
    assert "FAILED  chunks" in capsys.readouterr().out


def test_canary_another_window_shows(
    demo_cuda: Path,
    demo_package: DemoPackage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fault that every way of feeding shares: only the other package tells."""
    wrong = damaged(demo_cuda, tmp_path / "damaged", "window")
    assert check(wrong, "--against", demo_package("int4"), "--questions", 2) == 1
    assert "FAILED  answers" in capsys.readouterr().out


def test_canary_nodes_elsewhere_show(packages: dict[str, Path]) -> None:
    """The assignment of a run on the CPU, judged as one that was to be on the GPU."""
    package = Package.open(packages["cuda"], providers=["CPUExecutionProvider"])
    recording = dataclasses.replace(package.manifest, session=cuda_check._recording(package))
    graph = Package(package.folder, recording, providers=["CPUExecutionProvider"]).graph
    nodes = [
        (part.ep_name, node.domain, node.op_type)
        for part in graph.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    found = cuda_check.judged(nodes, "CUDAExecutionProvider")
    assert not found.right
    assert "GroupQueryAttention" in found.found
    lengths = [entry for entry in nodes if entry[2] in ("Shape", "Cast")]
    assert cuda_check.judged(lengths, "CUDAExecutionProvider").right


def test_no_gpu_is_one_line(packages: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert check(packages["cuda"], provider="CUDAExecutionProvider") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "cuda_check: this needs onnxruntime-gpu and an NVIDIA GPU: onnxruntime "
    )
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def mxfp4(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mxfp4") / "package"
    export(tiny, options("mxfp4"), folder, lambda *_: None)
    return folder


def test_verify_says_what_did_not_run(packages: dict[str, Path], mxfp4: Path, packed: Path) -> None:
    """float16 runs on the CPU; codes by column are read by no kernel there."""
    for folder, missing in (
        (packages["cuda"], {}),
        (packages["cuda_sm70"], {}),
        (mxfp4, {GRAPH: "CUDAExecutionProvider"}),
    ):
        assert verify(folder, lambda count: None) == []
        assert not_run(folder) == missing
    with pytest.raises(UserError, match="can be compared where there is CUDAExecutionProvider"):
        compare(mxfp4, str(packed))


def test_mxfp4_from_the_bytes_written(tiny: Checkpoint, mxfp4: Path) -> None:
    """The codes in the package's file, turned back, are the checkpoint's, and so are the exponents
    but for the residual stream's scale."""
    model = for_cpu(ir.load(mxfp4 / GRAPH))
    experts = [node for node in model.graph if node.op_type == "QMoE"]
    for layer, node in enumerate(experts):
        for which, place, shift in (("gate_up_proj", 2, 0), ("down_proj", 5, EXPONENT)):
            source = tiny.expert_weight(layer, which)
            codes, exponents = (
                value.const_value.numpy().view(np.uint8).reshape(-1)
                for value in node.inputs[place : place + 2]
            )
            np.testing.assert_array_equal(codes, source.blocks.read().reshape(-1))
            expected = source.scales.read().reshape(-1).astype(int) + shift
            np.testing.assert_array_equal(exponents, expected)
