"""The command line: what each command prints and where, its exit codes, its one-line errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gptoss_onnx.cli import main
from gptoss_onnx.export.synthetic import synthesize
from tests.conftest import ROOT, DemoPackage

pytestmark = pytest.mark.usefixtures("keep_sigterm")
JOIN = "What does os.path.join do?"
CHANGED = b"!"  # in a copy, at a byte that is another


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    # An exception that nobody caught would be a traceback in a terminal.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def read(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def refusal(*arguments: object) -> str:
    """The one line on stderr of a command that fails; nothing is on stdout."""
    result = run(*arguments, code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def shell(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptoss_onnx.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("cli") / "tiny", geometry="tiny")


@pytest.fixture(scope="module")
def tiny_package(tiny: Path) -> Path:
    """Without a tokenizer."""
    output = tiny.parent / "package"
    run("export", tiny, "--output", output)
    return output


@pytest.fixture
def copy(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "copy"))


@pytest.mark.parametrize("name", main.commands)
def test_help_has_an_example(name: str) -> None:
    assert f"\n  gptoss {name}" in run(name, "--help").stdout
    assert name in run("--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("export",),
        ("export", "demo", "--quant", "int3"),
        ("generate", "somewhere"),
        ("generate", "somewhere", "text", "--max-new-tokens", "0"),
        ("bench", "somewhere", "--new-tokens", "1"),
    ],
)
def test_wrong_use_is_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, code=2)
    assert "Usage: " in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_export_is_what_the_dry_run_said(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "below" / "package"
    said = read("export", tiny, "--output", output, "--dry-run")
    assert not output.parent.exists()
    assert read("export", tiny, "--output", output) == said
    assert said["output"] == str(output)
    assert said["linked_bytes"] == 0 < said["written_bytes"]
    data = (output / "model.onnx.data").stat().st_size + (output / "model.onnx").stat().st_size
    assert said["written_bytes"] < data < said["written_bytes"] + 500_000
    assert os.listdir(output.parent) == ["package"]


def test_the_default_output_names_source_target_and_preset(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = read("export", tiny, "--quant", "int8", "--set", "lm_head=int4:64", "--dry-run")
    assert said["output"] == "build/tiny-cpu-int8"
    assert (said["recipe"]["qkv"], said["recipe"]["lm_head"]) == ("int8:64", "int4:64")
    assert os.listdir(tmp_path) == []


def test_verify_and_inspect(tiny: Path, tiny_package: Path) -> None:
    assert read("verify", tiny_package) == {
        "package": str(tiny_package),
        "verified": True,
        "kernels": "checked",
        "run": "checked",
    }
    found = read("inspect", tiny_package)
    assert (found["target"], found["quant"], found["operators"]["QMoE"]) == ("cpu", "int4", 2)
    assert read("inspect", tiny)["num_experts"] == 4
    assert "num experts" in run("inspect", tiny).stdout


def test_verify_against_the_checkpoint(tiny: Path, copy: Path) -> None:
    figures = read("verify", copy, "--against", tiny)
    assert 0 < figures["mean_kl"] < 1
    assert read("verify", copy)["verified"]  # the report's new hash is in the manifest
    assert "was made from tiny, not from demo" in refusal("verify", copy, "--against", "demo")


def test_generate_answers(demo_package: DemoPackage) -> None:
    package = demo_package("int4")
    assert "pathname components" in run("generate", package, JOIN).stdout
    questions = [JOIN, "What does os.path.basename do?"]
    first, second = read("generate", package, *questions)
    assert "pathname components" in first["text"]
    assert "final component" in second["text"]
    assert {first["finish_reason"], second["finish_reason"]} == {"stop"}
    (cut,) = read("generate", package, JOIN, "--raw", "--max-new-tokens", "2", "--threads", "1")
    assert (cut["finish_reason"], cut["usage"]["new_tokens"]) == ("length", 2)


def test_a_reply_of_reasoning_alone_says_so(demo_package: DemoPackage) -> None:
    package, short = demo_package("int4"), ("--max-new-tokens", "6")
    cut = run("generate", package, JOIN, *short, code=1)
    assert (cut.stdout, cut.stderr) == (
        "\n",
        "[cut while the model was still thinking: raise --max-new-tokens]\n",
    )
    told = run("generate", package, JOIN, *short, "--json", code=1)
    (found,) = json.loads(told.stdout)
    assert (found["text"], found["finish_reason"], found["cut_in"]) == ("", "length", "analysis")
    assert [message["kind"] for message in found["messages"]] == ["analysis"]
    two = run("generate", package, JOIN, JOIN, *short, code=1)
    assert [line.split(":")[0] for line in two.stderr.splitlines()] == ["[answer 1", "[answer 2"]
    talk = shell("chat", package, *short, text=f"{JOIN}\n")
    assert (talk.returncode, talk.stdout) == (0, "\n\n")
    assert talk.stderr == (
        "[cut while the model was still thinking: raise --max-new-tokens"
        " or think less with --reasoning low]\n"
    )


def test_an_answer_cut_short_is_told_and_is_one(demo_package: DemoPackage) -> None:
    package = demo_package("int4")
    (whole,) = read("generate", package, JOIN)
    assert whole["cut_in"] is None
    limit = whole["usage"]["new_tokens"] - 3
    cut = run("generate", package, JOIN, "--max-new-tokens", limit)
    assert cut.stdout.strip()
    assert whole["text"].startswith(cut.stdout.strip())
    assert cut.stderr == "[cut short: raise --max-new-tokens]\n"


def test_sampling_options_reach_the_sampler(demo_package: DemoPackage) -> None:
    package = demo_package("int4")

    def text(seed: int, *options: str) -> str:
        hot = ("--raw", "--temperature", "5", "--max-new-tokens", "8", "--seed", seed, *options)
        return str(run("generate", package, JOIN, *hot).stdout)

    assert text(1) == text(1) != text(2)
    assert text(1, "--top-k", "1") == text(2, "--top-k", "1")


def test_chat_over_a_pipe(demo_package: DemoPackage) -> None:
    lines = f"{JOIN}\nWhat does os.path.basename do?\n"
    done = shell("chat", demo_package("int4"), text=lines)
    first, second = done.stdout.strip().splitlines()
    assert "pathname components" in first
    assert "final component" in second
    assert (done.returncode, done.stderr) == (0, "")


def test_bench_and_targets(demo_package: DemoPackage) -> None:
    sizes = ("--prompt-tokens", "16", "--new-tokens", "4", "--threads", "1")
    figures = read("bench", demo_package("int4"), *sizes)
    assert (figures["prompt_tokens"], figures["new_tokens"], figures["threads"]) == (16, 4, 1)
    (cpu,) = (row for row in read("targets") if row["name"] == "cpu")
    assert any("QMoE" in kernel["operator"] for kernel in cpu["kernels"])
    assert cpu == read("targets", "cpu")
    cpu_table = run("targets", "cpu").stdout
    assert "com.microsoft::QMoE" in cpu_table and "fp32, int8, int4, mxfp4\n" in cpu_table
    shown = run("targets").stdout
    assert all(cell in shown for cell in ("cpu", *cpu["min_runtime"], *cpu["presets"]))


def test_synth(tmp_path: Path) -> None:
    assert run("synth", tmp_path / "new", "--layers", "1").stdout.strip() == str(tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").is_file()
    assert "exists already" in refusal("synth", tmp_path / "new")


@pytest.mark.slow
def test_streams_and_codes_of_the_process(tiny_package: Path) -> None:
    found = shell("inspect", tiny_package, "--json")
    assert json.loads(found.stdout)["quant"] == "int4"
    assert (found.returncode, found.stderr) == (0, "")
    lost = shell("verify", "/nowhere")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr == "Error: /nowhere/manifest.json: no such file; /nowhere is not a package\n"
    assert shell("verify").returncode == 2


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10_000)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (foreign, "model_type is 'llama'"),
        (truncated, "model.safetensors"),
        (pickled, "pytorch_model.bin"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_unusable_checkpoints(
    damage: Callable[[Path], None], named: str, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    damage(folder)
    assert named in refusal("export", folder, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--target", "toaster"), "no target 'toaster'; there are "),
        (("--set", "lm_head"), "'' is not a format"),
        (("--set", "lm_head=int3"), "'int3' is not a format"),
        (("--set", "norms=int8"), "write group=format"),
        (("--set", "qkv=mxfp4"), "only experts can be mxfp4"),
        (("--link",), "it needs --quant mxfp4"),
        (("--revision", "main"), "revision 'main'"),
    ],
)
def test_unusable_options(options: tuple[str, ...], named: str, tiny: Path, tmp_path: Path) -> None:
    assert named in refusal("export", tiny, "--output", tmp_path / "out", *options)
    assert os.listdir(tmp_path) == []


def test_what_can_be_refused_is_before_anything_is_measured(tiny: Path, copy: Path) -> None:
    text = copy.with_name("text.txt")
    text.write_text("What the model will see.")
    measured = ("--calibrate", text, "--output", copy)
    untold = "no tokenizer.json"  # calibration cannot read the text without
    assert untold in refusal("export", tiny, *measured, "--force")
    assert "use --force" in refusal("export", tiny, *measured)
    for unfit in (("--quant", "mxfp4", "--target", "android"), ("--activations", "float16")):
        assert untold not in refusal("export", tiny, *measured, "--force", *unfit)


def test_link_needs_mxfp4_experts_on_the_same_disk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = ("--quant", "mxfp4", "--link", "--output", tmp_path / "out")
    dense = synthesize(tmp_path / "dense", geometry="tiny", format="bf16")
    monkeypatch.setattr("gptoss_onnx.runtimes.target.Target.slow_here", lambda *_: None)
    assert "whose experts are MXFP4" in refusal("export", dense, *linked)

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_disk)
    assert "leave --link out" in refusal("export", tiny, *linked)
    assert os.listdir(tmp_path) == ["dense"]


def test_what_is_in_the_way_stays(tiny: Path, copy: Path, tmp_path: Path) -> None:
    note = tmp_path / "notes" / "note"
    note.parent.mkdir()
    note.write_text("mine")
    for force in ((), ("--force",)):
        out = refusal("export", tiny, "--output", note, *force)
        assert "a file is in the way" in out
        assert "no package" in refusal("export", tiny, "--output", note.parent, *force)
    assert note.read_text() == "mine"
    assert os.listdir(note.parent) == ["note"]
    (copy / "mark").touch()
    assert "use --force" in refusal("export", tiny, "--output", copy)
    assert (copy / "mark").exists()
    run("export", tiny, "--output", copy, "--force", "--quant", "int8")
    assert read("inspect", copy)["quant"] == "int8"
    assert not (copy / "mark").exists()
    assert sorted(os.listdir(tmp_path)) == ["copy", "notes"]


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "config.json"])
def test_verify_names_a_changed_file(name: str, copy: Path) -> None:
    with (copy / name).open("r+b") as file:
        file.seek(100)
        assert file.read(1) != CHANGED
        file.seek(100)
        file.write(CHANGED)
    assert f"{name}: its bytes changed" in refusal("verify", copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.onnx.data").unlink()
    assert "model.onnx.data: missing" in refusal("verify", copy)
    assert "model.onnx.data: missing" in refusal("generate", copy, JOIN)


def test_a_package_that_cannot_answer(tiny_package: Path, demo_package: DemoPackage) -> None:
    assert "no tokenizer.json" in refusal("generate", tiny_package, JOIN)
    long = refusal("generate", demo_package("int4"), "word " * 5000)
    assert "the context holds 4096" in long


def test_greedy_decoding_stays_greedy_with_a_penalty_or_a_seed() -> None:
    from types import SimpleNamespace

    from gptoss_onnx.runtimes.commands import _options
    from gptoss_onnx.runtimes.sampling import Sampling

    own = Sampling(do_sample=False)
    package = SimpleNamespace(sampling_with=lambda **given: replace(own, **given))
    for given, greedy in (
        ({}, True),
        ({"repetition_penalty": 1.01}, True),
        ({"seed": 3}, True),
        ({"repetition_penalty": 1.01, "temperature": 0.5}, False),
        ({"top_p": 0.9}, False),
        ({"top_k": 5}, False),
        ({"min_p": 0.1}, False),
        ({"temperature": 0.0, "top_p": 0.9}, True),
    ):
        assert _options(package, None, **given)["sampling"].greedy is greedy, given
