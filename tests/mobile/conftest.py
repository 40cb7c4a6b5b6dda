"""Phone packages of the demo, all with KV scales that one short calibration measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.exporter import export
from gptoss_onnx.export.plan import Options
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.graph_passes.rounding import Rounding
from gptoss_onnx.mobile.packaging import finish, plan_memory
from gptoss_onnx.runtimes.target import Target, get_target
from gptoss_onnx.tuning.calibration import calibrated
from tests.conftest import DEMO
from tests.mobile.kotlin import from_aar
from tests.mobile.tokens import real_size_cases

pytest.register_assert_rewrite("tests.mobile.bringing")
PhonePackage = Callable[..., Path]


@pytest.fixture(scope="session")
def phone_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhonePackage]:
    """What `gptoss export --target` writes; without `finish` where `finished` is False."""
    checkpoint = open_checkpoint(str(DEMO))
    lines = (DEMO / "evaluation" / "calibration.jsonl").read_text("utf-8").splitlines()
    text = tmp_path_factory.mktemp("text") / "calibration.jsonl"
    text.write_text("\n".join(lines[::40]) + "\n", "utf-8")
    with calibrated(text, checkpoint, grams=False, progress=lambda *_: None) as calibration:

        def make(output: Path, target: Target, quant: str = "int4", **options: Any) -> Path:
            finished = options.pop("finished", True)
            made = Options(
                target,
                Quantization.parse(quant, ()),
                Rounding("rtn"),
                kv_max=calibration.statistics.kv_max,
                kv_calibration=calibration.described,
                **options,
            )
            plan = plan_memory(checkpoint.spec, made, "int8")
            ending = finish(made, plan) if finished else None
            export(checkpoint, made, output, lambda *_: None, ending)
            return output

        yield make


@pytest.fixture(scope="session")
def android(phone_package: PhonePackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's finished package: one .ort file."""
    return phone_package(tmp_path_factory.mktemp("phone") / "ort", get_target("android"))


@pytest.fixture(scope="session")
def android_onnx(phone_package: PhonePackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before it is finished: model.onnx and its data."""
    folder = tmp_path_factory.mktemp("phone") / "onnx"
    return phone_package(folder, get_target("android"), finished=False)


@pytest.fixture(scope="session")
def aar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classes of ONNX Runtime for Android."""
    jar = tmp_path_factory.mktemp("aar") / "classes.jar"
    jar.write_bytes(from_aar("classes.jar"))
    return jar


@pytest.fixture(scope="session")
def real_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids of o200k_harmony for its corpus and for two words of a million letters."""
    file = tmp_path_factory.mktemp("tokens") / "cases.json"
    file.write_text(json.dumps(real_size_cases()))
    return file
