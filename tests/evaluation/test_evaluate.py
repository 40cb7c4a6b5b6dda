"""`gptoss eval`: a package's figures, refuses what cannot be meant, stays small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss_onnx.cli import main
from gptoss_onnx.evaluation.evaluate import Options, evaluate
from gptoss_onnx.evaluation.gate import Gate, failures
from gptoss_onnx.evaluation.probe import Probe
from gptoss_onnx.evaluation.reference import Reference, portable_graph, reference
from gptoss_onnx.evaluation.scoring import score
from gptoss_onnx.evaluation.statistics import Tokens, metrics, router_agreement
from gptoss_onnx.evaluation.texts import Passage, read_passages
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options as ExportOptions
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import DemoPackage, seal

pytestmark = pytest.mark.slow


def quiet(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Measure:
    """Tokens of any folder of the demo's against one small text."""

    passages: list[Passage]
    expected: Reference

    def tokens(self, folder: Path) -> Tokens:
        return score(Probe.of_package(folder), self.passages, self.expected, quiet)

    def kld(self, folder: Path) -> float:
        return float(self.tokens(folder).kld.mean())


@pytest.fixture(scope="module")
def text(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fortieth conversation: all languages, 6 in all."""
    lines = (demo / "evaluation/held_out.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("text") / "some.jsonl"
    path.write_text("\n".join(lines[::40]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measure(demo: Path, text: Path, harmony: Harmony) -> Iterator[Measure]:
    checkpoint = open_checkpoint(demo)
    passages = read_passages(text, harmony, 4096)
    with portable_graph(checkpoint) as folder:
        yield Measure(passages, reference(checkpoint, passages, lambda: folder, quiet))


@pytest.fixture
def copy(demo_package: DemoPackage, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_package("fp32"), tmp_path / "copy"))


def test_the_fp32_package_is_its_source(measure: Measure, demo_package: DemoPackage) -> None:
    tokens = measure.tokens(demo_package("fp32"))
    assert len(tokens.kld) == sum(passage.tokens for passage in measure.passages)
    assert tokens.kld.mean() < 1e-6
    assert tokens.agree.all()
    assert min(row["mean"] for row in router_agreement(tokens)) > 0.999


def test_fewer_bits_cost_more(measure: Measure, demo_package: DemoPackage) -> None:
    fp32, int8, int4 = (measure.kld(demo_package(p)) for p in ("fp32", "int8", "int4"))
    assert 10 * fp32 < int8 < int4 / 5


def test_the_reference_is_kept(measure: Measure, demo: Path) -> None:
    def never() -> Path:
        raise AssertionError("computed again")

    again = reference(open_checkpoint(demo), measure.passages, never, quiet)
    assert again.folder == measure.expected.folder
    with pytest.raises(AssertionError):
        reference(open_checkpoint(demo), measure.passages[:1], never, quiet)
    assert not list(again.folder.parent.glob(".*"))  # what failed is taken away


@pytest.fixture(scope="module")
def evaluated(demo: Path, demo_package: DemoPackage, text: Path, tmp_path_factory: Any) -> Any:
    """An int4 package after `gptoss eval`, the process's result, and the report's folder."""
    root = tmp_path_factory.mktemp("evaluated")
    package = Path(shutil.copytree(demo_package("int4"), root / "demo-int4"))
    arguments = ["eval", package, "--against", demo, "--text", text, "--limit", 10, "--json"]
    arguments += ["--report", root / "report", "--fail-if", "kld>9", "--fail-if", "top1<99.9%"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return package, result, root / "report"


def test_the_command_writes_all_figures(evaluated: Any, measure: Measure) -> None:
    package, result, report = evaluated
    figures = json.loads(result.stdout)
    mean = metrics(measure.tokens(package))["kld"]["mean"]
    assert figures["all"]["kld"]["mean"] == pytest.approx(mean, rel=1e-3)
    assert set(figures["by_language"]) == {"en", "zh", "code"}
    assert set(figures["by_channel"]) == {"analysis", "final"}
    for groups in (figures["by_language"], figures["by_channel"]):
        assert sum(m["tokens"] for m in groups.values()) == figures["all"]["tokens"]
    assert [row["layer"] for row in figures["router_agreement"]] == list(range(6))
    worst = [token["kld"] for token in figures["worst_tokens"]]
    assert worst == sorted(worst, reverse=True)
    assert worst[0] == figures["all"]["kld"]["max"]
    asked = figures["generation"]
    assert (asked["questions"], asked["parsed"]["reference"]) == (10, 1.0)
    assert asked["exact"]["reference"] >= 0.9
    assert figures["speed"]["decode_tokens_per_second"] > 0
    kept = json.loads((package / "report.json").read_text(encoding="utf-8"))
    assert kept["evaluation"] == figures
    assert json.loads((report / "report.json").read_text(encoding="utf-8")) == figures
    assert (report / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(measure.expected.results.glob("demo-int4-*.json"))


def test_a_condition_that_holds_fails_the_command(evaluated: Any) -> None:
    _, result, _ = evaluated
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "top1 is 0.9" in line and "which is < 0.999" in line
    assert "kld" not in line.split(": ", 2)[-1]


def test_conditions() -> None:
    figures = {"all": {"kld": {"mean": 0.02}, "top1": {"mean": 0.96}}}
    held = {"kld>0.01": 1, "kld>0.02": 0, "kld>=2e-2": 1, "top1<97%": 1, "top1 < .95": 0}
    for condition, count in held.items():
        assert len(failures([Gate.parse(condition)], figures)) == count, condition
    assert failures([Gate.parse("exact<0.9")], figures) == ["exact was not measured"]
    for wrong in ("kld", "speed>3", "kld=3", "kld>1e", "kld>>1", ""):
        with pytest.raises(UserError, match=r"condition|number"):
            Gate.parse(wrong)


def test_packages_of_another_checkpoint(
    demo: Path, demo_package: DemoPackage, tmp_path: Path, copy: Path
) -> None:
    other = open_checkpoint(synthesize(tmp_path / "other", geometry="tiny", tokenizer=None))
    with pytest.raises(UserError, match="was made from demo, not from other"):
        evaluate(demo_package("int4"), other, Options(), quiet)
    named = open_checkpoint((tmp_path / "other").rename(tmp_path / "demo"))
    with pytest.raises(UserError, match="was made from another demo than"):
        evaluate(demo_package("int4"), named, Options(), quiet)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"]["revision"] = "abc123"
    content = {k: v for k, v in manifest.items() if k not in ("format", "files")}
    seal(copy, content)
    with pytest.raises(UserError, match="was made from demo at revision abc123"):
        evaluate(copy, open_checkpoint(demo), Options(), quiet)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"quant": "int3"}, None),  # the recipe names every group
        ({"quant": "int3", "recipe": {}}, "quant is 'int3', which is no preset here"),
        ({"recipe": {"experts": "int3:32"}}, "recipe has 'int3:32' is not a format"),
        ({"recipe": {"experts": "int8:32"}}, "there is no "),
        ({"recipe": {"qkv": "int4:64"}}, "is not in int4:64"),
    ],
    ids=["preset", "preset alone", "format", "other bits", "other blocks"],
)
def test_formats_that_are_not_known_here(
    demo: Path,
    demo_package: DemoPackage,
    tmp_path: Path,
    text: Path,
    changes: dict[str, Any],
    line: str | None,
) -> None:
    """A stranger's package, or a newer one's: it is measured, and what cannot be is said."""
    package = Path(shutil.copytree(demo_package("int4"), tmp_path / "other"))
    manifest = json.loads((package / "manifest.json").read_text())
    content = {k: v for k, v in manifest.items() if k not in ("format", "files")}
    seal(package, {**content, "target": "cpu_next", **changes})
    asked = tmp_path / "none.jsonl"
    lines = (demo / "evaluation/questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked.write_text(lines[0], encoding="utf-8")
    command = ["eval", str(package), "--against", str(demo), "--text", str(text), "--json"]
    command += ["--questions", str(asked)]
    whole = CliRunner().invoke(main, command)
    assert whole.exit_code == 0, whole.output
    assert "recommendation" not in json.loads(whole.stdout)
    if line is None:
        return
    result = CliRunner().invoke(main, [*command, "--sensitivity"])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert line in result.stderr.splitlines()[-1]


def test_a_text_that_is_not_there(demo: Path, demo_package: DemoPackage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give a text"):
        evaluate(demo_package("int4"), open_checkpoint(demo), Options(tmp_path / "no.txt"), quiet)


MEASURED = """
import sys
from pathlib import Path
from gptoss_onnx.evaluation.evaluate import Options, evaluate
from gptoss_onnx.export.checkpoint import open_checkpoint
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
package, checkpoint, *texts = map(Path, sys.argv[1:])
for text in texts:
    evaluate(package, open_checkpoint(str(checkpoint)), Options(text), lambda *_: None)
    print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_memory_does_not_grow_with_the_text(demo: Path, tmp_path: Path, cache: Path) -> None:
    vocab = 16384
    folder = synthesize(tmp_path / "wide", geometry="tiny", layers=1, vocab=vocab, tokenizer=demo)
    package, checkpoint = tmp_path / "package", open_checkpoint(folder)
    made = ExportOptions(get_target("cpu"), Quantization.parse("fp32", ()))
    export(checkpoint, made, package, quiet)
    words = (demo / "evaluation/held_out.jsonl").read_text(encoding="utf-8")
    texts = []
    for name, count in (("short", 1_000), ("long", 6_000)):  # characters
        texts.append(tmp_path / f"{name}.txt")
        texts[-1].write_text(words[:count], encoding="utf-8")
    command = [sys.executable, "-c", MEASURED, package, folder, *texts]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    short, long = map(int, done.stdout.split())
    stored = max(path.stat().st_size for path in cache.glob("reference/*/logits.f32"))
    assert stored > 80 << 20  # what holding one model's logits would add
    assert long - short < stored / 4
    assert long < 2 << 30
