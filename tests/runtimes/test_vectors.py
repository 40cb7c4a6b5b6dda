"""The Python runtime passes the vectors that every other language's runtime is tested with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptoss_onnx.runtimes.package import Package
from tests.conftest import DemoPackage
from tests.vectors import make


def read(name: str) -> dict[str, Any]:
    path = make.FOLDER / name
    # Small enough to read, and to be shipped with a test.
    assert path.stat().st_size < 300_000
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", make.FILES)
def test_what_the_runtime_does_is_what_the_file_says(name: str) -> None:
    assert json.loads(json.dumps(make.FILES[name]())) == read(name)


@pytest.mark.parametrize("preset", ["fp32", "int4"])
def test_the_demos_greedy_answers(demo_package: DemoPackage, preset: str) -> None:
    found = make.answers(Package.open(demo_package(preset)))
    assert json.loads(json.dumps(found)) == read("answers.json")
