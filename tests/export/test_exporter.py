"""A package's manifest, what --link shares, and what is left of an export that did not end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gptoss_onnx.evaluation.verify import verify
from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import ROOT

DATA = "model.onnx.data"
ADDED_KB = 300_000  # of memory, by an export of 343 MB, beyond what one of a tiny model takes


def make(
    checkpoint: Path,
    output: Path,
    preset: str = "int4",
    *,
    target: str = "cpu",
    changes: Sequence[str] = (),
    **options: bool,
) -> dict[str, Any]:
    chosen = Options(get_target(target), Quantization.parse(preset, changes), **options)
    return export(open_checkpoint(str(checkpoint)), chosen, output, lambda *_: None)


def logits(package: Path) -> Any:
    return Session(Package.open(package, threads=1)).feed([5, 9, 2]).copy()


@pytest.fixture(scope="module")
def made(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exporter") / "package"
    make(packed, output)
    return output


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """343 MB: 250 MB of experts, and two vocabulary matrices of 47 MB."""
    folder = tmp_path_factory.mktemp("large") / "large"
    return synthesize(folder, geometry="gpt-oss-20b", layers=1, experts=16, vocab=8192)


@pytest.mark.parametrize("windowed", [True, False])
def test_manifest(windowed: bool, packed: Path, made: Path, tmp_path: Path) -> None:
    package = made
    if not windowed:
        package = tmp_path / "full"
        make(packed, package, full_kv=True, all_logits=True)
    manifest = json.loads((package / "manifest.json").read_text())
    others = {path.name: path for path in package.iterdir() if path.name != "manifest.json"}
    assert manifest["files"] == {
        name: {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for name, path in others.items()
    }
    session = onnxruntime.InferenceSession(
        package / "model.onnx", providers=["CPUExecutionProvider"]
    )
    types = {"int64": "tensor(int64)", "float": "tensor(float)"}
    for described, values in (
        (manifest["inputs"], session.get_inputs()),
        (manifest["outputs"], session.get_outputs()),
    ):
        said = [(value["name"], types[value["dtype"]], value["shape"]) for value in described]
        assert said == [(value.name, value.type, value.shape) for value in values]
    past = {value["name"]: value["shape"] for value in manifest["inputs"][2:]}
    assert len(past) == 2 * len(manifest["kv"]["layers"])
    kv = manifest["kv"]
    assert all([s[1], s[3]] == [kv["num_kv_heads"], kv["head_dim"]] for s in past.values())
    assert kv["layers"] == [
        {"window": 16, "windowed": windowed},
        {"window": None, "windowed": False},
    ]
    assert manifest["logits"] == ("last" if windowed else "all")
    # onnxruntime-genai's own buffers span the whole sequence.
    genai = package / "genai_config.json"
    assert genai.exists() is not windowed
    if genai.exists():
        assert json.loads(genai.read_text())["search"]["past_present_share_buffer"] is True
    # Both kinds of KV run past the window.
    ids = np.random.default_rng(0).integers(0, 512, 40).tolist()
    rows = [Session(Package.open(p, threads=1)).feed(ids).copy() for p in (package, made)]
    np.testing.assert_allclose(*rows, rtol=0, atol=1e-4)


def test_linked_experts_are_the_checkpoints_own_bytes(packed: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(packed, tmp_path / "tiny"))
    weights = source / "model.safetensors"
    before = weights.read_bytes()
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    make(source, linked, "mxfp4", link=True)
    said = make(source, linked, "mxfp4", link=True, force=True)  # in place of a linked one
    make(source, copied, "mxfp4")
    assert sorted(os.listdir(tmp_path)) == ["copied", "linked", "tiny"]
    assert (linked / weights.name).samefile(weights)
    tensors = [v.const_value for v in ir.load(linked / "model.onnx").graph.initializers.values()]
    stored = [t for t in tensors if isinstance(t, ir.ExternalTensor)]
    shared = [t for t in stored if t.location == weights.name]
    # Blocks and scales of two projections in two layers; scales of the smaller are embedded.
    matrices = [t for t in stored if ".experts." in str(t.name) and "bias" not in str(t.name)]
    assert len(shared) == 2 * (2 + 1)
    assert {t.name for t in matrices} == {t.name for t in shared}
    size = sum(t.nbytes for t in shared)
    assert said["linked_bytes"] == size
    assert (copied / DATA).stat().st_size - (linked / DATA).stat().st_size >= size
    assert said["written_bytes"] + said["linked_bytes"] == sum(t.nbytes for t in tensors)
    assert weights.read_bytes() == before
    expected = logits(copied)
    shutil.rmtree(source)
    np.testing.assert_array_equal(logits(linked), expected)
    assert json.loads((linked / "manifest.json").read_text())["links"] == [weights.name]
    assert verify(linked, lambda count: None) == []


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "place",
    [
        "gptoss_onnx.export.writer._DataFiles._put",
        "onnx_ir.save",
        "gptoss_onnx.export.exporter.copy_files",
    ],
)
def test_a_full_disk_leaves_what_was_there(
    place: str, packed: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(made, tmp_path / "package"))
    monkeypatch.setattr(place, full)
    with pytest.raises(UserError, match="No space left"):
        make(packed, old, force=True)
    assert os.listdir(tmp_path) == ["package"]
    assert verify(old, lambda count: None) == []


@pytest.mark.parametrize("error", [RuntimeError("any"), KeyboardInterrupt()])
def test_an_exception_while_writing_leaves_nothing(
    error: BaseException, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert len(os.listdir(tmp_path)) == 1  # the folder that is about to go
        raise error

    monkeypatch.setattr("gptoss_onnx.export.writer._DataFiles._put", fail)
    with pytest.raises(type(error)):
        make(packed, tmp_path / "package")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_what_was_there(
    number: signal.Signals, large: Path, made: Path, tmp_path: Path
) -> None:
    """SIGINT of a first export, SIGTERM of one that would replace a package."""
    output = tmp_path / "package"
    if number == signal.SIGTERM:
        shutil.copytree(made, output)
    before = os.listdir(tmp_path)
    command = [
        sys.executable,
        "-m",
        "gptoss_onnx.cli",
        "export",
        str(large),
        "--force",
        "--quant",
        "fp32",
    ]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(f".package.*/{DATA}")):
        assert process.poll() is None and time.monotonic() < end, "it wrote no weights"
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "Error: interrupted; nothing was left behind"
    assert os.listdir(tmp_path) == before
    if before:
        assert verify(output, lambda count: None) == []


@pytest.mark.slow
@pytest.mark.parametrize("target", ["node", "web"])
def test_packages_of_older_runtimes(target: str, packed: Path, made: Path, tmp_path: Path) -> None:
    output = tmp_path / target
    make(packed, output, target=target)
    found, cpu = (json.loads((p / "manifest.json").read_text()) for p in (output, made))
    assert (found["min_runtime"], found["padded_batches"]) == ("1.30", False)
    assert cpu["padded_batches"] is True
    assert found["session"]["providers"] == get_target(target).providers
    windowed = [layer["windowed"] for layer in found["kv"]["layers"]]
    assert windowed == [target == "node", False]
    assert found["weights"]["experts"] == cpu["weights"]["experts"]
    assert verify(output, lambda count: None) == []
    ids = np.random.default_rng(0).integers(0, 512, 40).tolist()
    rows = [Session(Package.open(p, threads=1)).feed(ids).copy() for p in (output, made)]
    # QMoE of 1.30 does not round activations to 8 bits; experts gone wrong are off by 1 and more.
    np.testing.assert_allclose(*rows, rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("target", "change"),
    [("node", "experts=mxfp4"), ("web", "layers.1.experts=mxfp4"), ("web", "experts=fp32")],
)
def test_experts_a_target_has_no_kernel_for(
    target: str, change: str, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{change}: {target} has no such experts; it has int4"):
        make(packed, tmp_path / "no", target=target, changes=[change])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_peak_memory(packed: Path, large: Path, tmp_path: Path) -> None:
    """The same process first exports a tiny model: what torch and others import is not counted."""
    script = (
        "import sys; from gptoss_onnx import export_package;"
        "peak = lambda: next(s for s in open('/proc/self/status') if s.startswith('VmHWM'));"
        "tiny, large, output = sys.argv[1:];"
        "export_package(tiny, output + '-tiny'); print(peak());"
        "export_package(large, output); print(peak())"
    )
    output = tmp_path / "package"
    command = [sys.executable, "-c", script, str(packed), str(large), str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.is_dir()
    before, after = (int(line.split()[1]) for line in done.stdout.splitlines() if line)
    assert after - before < ADDED_KB


@pytest.mark.slow
def test_only_what_the_export_made_is_in_the_manifest(tmp_path: Path, demo: Path) -> None:
    """And all of it: a file that lies there beside is nobody's."""
    strays: list[Path] = []

    def stray(stage: str, done: int, total: int) -> None:
        if stage == "weights" and not strays:
            (folder,) = tmp_path.glob(".package.*")
            strays.append(folder / "notes.txt")
            strays[0].write_text("mine")

    made = Options(get_target("cpu"), Quantization.parse("int4", ()))
    export(open_checkpoint(str(demo)), made, tmp_path / "package", stray)
    there = {path.name for path in (tmp_path / "package").iterdir()}
    listed = set(json.loads((tmp_path / "package" / "manifest.json").read_text())["files"])
    assert strays
    assert there - listed == {"manifest.json", "notes.txt"}
