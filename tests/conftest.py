"""The demo checkpoint and its packages, each exported once a session when first asked for.

And a cache for evaluations that is not the user's.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.manifest import MANIFEST
from gptoss_onnx.runtimes.package_update import write_manifest
from gptoss_onnx.runtimes.target import get_target
from gptoss_onnx.runtimes.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "demo"
DemoPackage = Callable[..., Path]


def export_demo(output: Path, preset: str = "int4", target: str = "cpu", **options: bool) -> Path:
    """A package of the demo; `options` are those of `gptoss_onnx.export.exporter.Options`."""
    made = Options(get_target(target), Quantization.parse(preset, ()), **options)
    export(open_checkpoint(str(DEMO)), made, output, lambda stage, done, total: None)
    return output


def seal(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Write the manifest, the package's own or `content`, for the files that are there now."""
    known = content or json.loads((folder / MANIFEST).read_text("utf-8"))
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    write_manifest(folder, known, files)
    return folder


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO


@pytest.fixture(scope="session")
def demo_package(tmp_path_factory: pytest.TempPathFactory) -> DemoPackage:
    """The demo's package of a preset; not to be changed: copy it first."""
    made: dict[tuple[str, str, bool], Path] = {}

    def get(preset: str, target: str = "cpu", *, full_kv: bool = False) -> Path:
        key = preset, target, full_kv
        if key not in made:
            folder = tmp_path_factory.mktemp("demo") / f"{preset}{'-full' if full_kv else ''}"
            made[key] = export_demo(folder, preset, target, full_kv=full_kv)
        return made[key]

    return get


@pytest.fixture(scope="session")
def harmony(demo: Path) -> Harmony:
    return Harmony(Tokenizer(demo))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GPTOSS_CACHE", str(folder))
        yield folder


@pytest.fixture
def keep_sigterm() -> Iterator[None]:
    """The command line handles SIGTERM; in this process its handler must not outlive the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
