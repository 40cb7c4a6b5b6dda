"""Sensitivity finds the harmed weights, assignments keep to budgets, recipes give back packages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from gptoss_onnx.cli import main
from gptoss_onnx.evaluation.recommend import recommend
from gptoss_onnx.evaluation.reference import portable_graph, reference
from gptoss_onnx.evaluation.sensitivity import PackageWeights, sensitivity
from gptoss_onnx.evaluation.texts import read_passages
from gptoss_onnx.evaluation.units import subset, units
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import GRAPH, Options
from gptoss_onnx.graph_passes.quantization import INT4, PRESETS, Format, Quantization
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.target import get_target
from gptoss_onnx.tuning.assign import assign, check_budget, parse_size
from gptoss_onnx.tuning.costs import FORMATS, Choice, Costs
from gptoss_onnx.tuning.recipe import read_recipe
from tests.conftest import DemoPackage

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def measure(demo: Path, harmony: Harmony) -> Iterator[Callable[[Path], Rows]]:
    """Sensitivities of a package of the demo over a few tokens."""
    checkpoint = open_checkpoint(str(demo))
    passages = read_passages(demo / "evaluation" / "held_out.jsonl", harmony, 4096)
    part = subset(passages, 60)
    with portable_graph(checkpoint) as portable:
        expected = reference(checkpoint, part, lambda: portable, quiet)
        yield lambda package: sensitivity(package, portable, part, expected, quiet)


@pytest.fixture(scope="module")
def int4_rows(measure: Callable[[Path], Rows], demo_package: DemoPackage) -> Rows:
    return measure(demo_package("int4"))


def test_every_group_and_layer_is_measured(int4_rows: Rows) -> None:
    names = {row["name"] for row in int4_rows if row["what"] == "group"}
    experts = {"experts gate-up", "experts down"}
    assert names == {"embedding", "qkv", "o", "lm_head", *experts}
    assert [row["name"] for row in int4_rows if row["what"] == "layer"] == list("012345")
    for row in int4_rows:
        assert 0 < row["kld"] < 1 and row["ci"][0] <= row["kld"] <= row["ci"][1]
        embedding = row["name"] == "embedding"  # of a layer's row, its tensors' format
        assert row["format"] == ("int8:64" if embedding else "int4:32")


def test_a_harmed_group_ranks_first(
    measure: Callable[[Path], Rows], demo_package: DemoPackage, tmp_path: Path, int4_rows: Rows
) -> None:
    assert int4_rows[0]["name"] != "o", "the canary must not sing by itself"
    package = shutil.copytree(demo_package("int4"), tmp_path / "harmed")
    model = ir.load(package / GRAPH)
    tensor = model.graph.initializers["model.layers.3.self_attn.o_proj.scales"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    harmed = -tensor.numpy().copy()
    with (package / str(tensor.location)).open("r+b") as data:
        data.seek(tensor.offset or 0)
        data.write(harmed.tobytes())
    rows = measure(package)
    assert rows[0]["name"] == "o"
    layers = {row["name"]: row["kld"] for row in rows if row["what"] == "layer"}
    before = {row["name"]: row["kld"] for row in int4_rows if row["what"] == "layer"}
    assert [name for name in layers if layers[name] != before[name]] == ["3"]


def test_an_int8_kv_cache_is_a_group(
    measure: Callable[[Path], Rows], demo: Path, tmp_path: Path
) -> None:
    checkpoint, costs = open_checkpoint(str(demo)), []
    shape = checkpoint.spec.num_kv_heads, checkpoint.spec.head_dim
    layers = range(checkpoint.spec.num_layers)
    for most in (16.0, 1600.0):  # the second a hundred times too coarse
        kv_max = {
            f"{n}.{part}": np.full(shape, most, np.float32)
            for n in layers
            for part in ("key", "value")
        }
        options = Options(get_target("cpu"), PRESETS["fp32"], kv="int8", kv_max=kv_max)
        package = tmp_path / str(most)
        export(checkpoint, options, package, lambda *_: None)
        rows = {row["name"]: row for row in measure(package)}
        assert rows["qkv"]["kld"] == 0 and rows["KV cache"]["format"] == "int8"
        costs.append(rows["KV cache"]["kld"])
    assert 0 < costs[0] < costs[1] / 20


@pytest.mark.parametrize(
    ("preset", "target"), [("int8", "cpu"), ("mxfp4", "cpu"), ("int8", "directml")]
)
def test_mxfp4_experts_are_exact(
    preset: str, target: str, demo: Path, demo_package: DemoPackage
) -> None:
    """In float16 too, where what they add is kept at a fraction of its size."""
    checkpoint = open_checkpoint(str(demo))
    with portable_graph(checkpoint) as portable:
        values = ir.load(portable / GRAPH).graph.initializers
        weights = PackageWeights(demo_package(preset, target) / GRAPH, portable / GRAPH)
        quantization = PRESETS[preset]
        for unit in units(1):
            for name in unit.weights:
                stream = weights.stream(name, quantization.of(unit.group, unit.layer))
                found = np.concatenate([chunk.reshape(-1) for chunk in stream()])
                tensor = values[name].const_value
                assert tensor is not None
                expected = tensor.numpy().reshape(-1)
                error = np.abs(found - expected).max()
                # 8 bits: half a step of a block's largest weight over 128, and the clipped one.
                assert error <= (0 if unit.group == "experts" else np.abs(expected).max() / 127)


@pytest.fixture
def costs() -> Costs:
    """Twenty units whose costs differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    choices, weights = {}, {}
    for unit in units(6):
        count = int(rng.integers(500, 5000)) * 128
        base = 10.0 ** rng.uniform(-5, -1)
        found = []
        for form in FORMATS:
            size = count * form.bits // 8 + 4 * count // form.block
            found.append(Choice(form, size, base * form.block**0.5 / 16 ** (form.bits // 4)))
        choices[unit.key] = tuple(found)
        weights[unit.key] = count
    return Costs(choices, weights)


def test_budgets_are_met(costs: Costs) -> None:
    before = np.inf
    for bits in np.linspace(4.3, 9.9, 40):
        budget = int(bits * costs.total_weights / 8)
        found = assign(costs, budget, "")
        assert 0.99 * budget <= found.size <= budget
        assert found.kld <= before
        before = found.kld


def test_an_assignment_beats_every_uniform_format_of_its_size(costs: Costs) -> None:
    for form in FORMATS[:4] + FORMATS[5:]:  # int8:16 is all there is of its size
        uniform = [next(c for c in one if c.form == form) for one in costs.choices.values()]
        size = sum(choice.size for choice in uniform)
        # Sizes are rounded up to the steps of the search: a thousandth more must do.
        found = assign(costs, min(int(size * 1.002), _largest(costs)), "")
        assert found.kld <= sum(choice.kld for choice in uniform)


def _largest(costs: Costs) -> int:
    return sum(max(choice.size for choice in one) for one in costs.choices.values())


@pytest.mark.parametrize(("bits", "word"), [(3.0, "small: the least is 4.25"), (12.0, "large")])
def test_budgets_out_of_reach_are_refused(bits: float, word: str, costs: Costs, demo: Path) -> None:
    with pytest.raises(UserError, match=word):
        assign(costs, int(bits * costs.total_weights / 8), "--bits-per-weight")
    with pytest.raises(UserError, match=word):
        check_budget(open_checkpoint(str(demo)), 10**6 if bits < 4 else 10**9, "--size 1MB")


def test_sizes() -> None:
    assert parse_size("12GB") == 12 * 10**9
    assert parse_size("9.5MB") == 9_500_000
    assert parse_size("800000") == 800_000
    for bad in ("", "0", "-3MB", "12XB", "MB"):
        with pytest.raises(UserError, match="write a size"):
            parse_size(bad)


def test_a_recipe_reaches_the_graph_and_gives_the_package_back(demo: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(demo))
    texts = {"embedding": "int8:64", "layers.2.experts": "int8:32", "layers.4.qkv": "int4:16"}
    (tmp_path / "recipe.json").write_text(json.dumps(texts), encoding="utf-8")
    first = tmp_path / "first" / "demo"
    made = Options(get_target("cpu"), read_recipe(tmp_path / "recipe.json", "int4"))
    export(checkpoint, made, first, quiet)
    for path in (first, first / "manifest.json"):
        again = tmp_path / path.name / "demo"
        export(checkpoint, Options(get_target("cpu"), read_recipe(path, "fp32")), again, quiet)
        for file in first.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    nodes = {n.name: n for n in ir.load(first / GRAPH).graph}
    qmoe = [nodes[f"model.layers.{n}.mlp.experts"].attributes for n in range(6)]
    assert [a["expert_weight_bits"].as_int() for a in qmoe] == [4, 4, 8, 4, 4, 4]
    qkv = [nodes[f"model.layers.{n}.self_attn.qkv_proj"].attributes for n in range(6)]
    assert [a["block_size"].as_int() for a in qkv] == [32, 32, 32, 32, 16, 32]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"experts": 4}',
        '{"router": "int8"}',
        '{"quant": [], "recipe": {"experts": "int8"}}',
        '{"quant": "int3", "recipe": {"experts": "int8"}}',
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_what_is_no_recipe_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.json: "):
        read_recipe(tmp_path / "recipe.json", "int4")
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "none.json", "int4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "r.json", "--bits-per-weight", "5"], "give one of them"),
        (["--recipe", "r.json", "--set", "experts=int8"], "give one of them"),
        (["--size", "9MB", "--quant", "int8"], "leave --quant int8 out"),
        (["--bits-per-weight", "3"], "too small: the least is 4.25 bits"),
        (["--size", "1MB"], "too small"),
        (["--size", "90MB"], "too large"),
    ],
)
@pytest.mark.usefixtures("keep_sigterm")
def test_conflicting_options_are_one_line(options: list[str], message: str, demo: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(demo), "--dry-run", *options])
    assert result.exit_code == 1
    assert message in result.output and result.output.count("\n") == 1


def test_recommendation() -> None:
    target = get_target("cpu")
    experts = PRESETS["int4"]
    assert recommend(target, "bfloat16", experts) is None
    assert recommend(target, "mxfp4", PRESETS["mxfp4"]) is None
    slow = target.slow_here("mxfp4") is not None
    first = recommend(target, "mxfp4", experts)
    assert first is not None and first.startswith("int4" if slow else "mxfp4")
    assert "takes 5" in first and "measured" not in first
    results = [
        {"quant": name, "all": {"kld": {"mean": mean}}, "size_bytes": 10**7}
        for name, mean in (("int4", 0.02), ("mxfp4", 0.001))
    ]
    assert "int4 0.02 nats" in str(recommend(target, "mxfp4", experts, results))
    larger = Quantization("int4", {**experts.formats, "experts": Format.parse("int4:64")})
    assert "int4:64 takes 4.5" in str(recommend(target, "mxfp4", larger))
    assert experts.of("experts") == INT4
