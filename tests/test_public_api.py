"""What `import gptoss_onnx` offers: names that are there, typed, documented; their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import shutil
from pathlib import Path

import pytest

import gptoss_onnx
from tests.conftest import DEMO, ROOT, DemoPackage

WITH_EXAMPLES = ("gptoss_onnx", "gptoss_onnx.exporting", "gptoss_onnx.verifying")


@pytest.mark.parametrize("name", gptoss_onnx.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(gptoss_onnx, name)
    assert isinstance(value, str) or inspect.getdoc(value)
    assert name in dir(gptoss_onnx)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gptoss_onnx.nothing


def test_types_are_for_those_who_check_theirs() -> None:
    assert (ROOT / "gptoss_onnx" / "py.typed").is_file()


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(
    module: str, demo_package: DemoPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_package("int4"), tmp_path / "build" / "demo-cpu-int4")
    (tmp_path / "demo").symlink_to(DEMO)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried >= 2
    assert failed == 0


def test_one_prompt_alone_is_not_taken_letter_by_letter(demo_package: DemoPackage) -> None:
    package = gptoss_onnx.Package.open(demo_package("int4"))
    with pytest.raises(gptoss_onnx.UserError, match="give a list of prompts"):
        gptoss_onnx.answer(package, "What?")
