"""generation_config.json at export: checked before anything is written, no null in what is made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.export.checkpoint import open_checkpoint
from gptoss_onnx.export.genai_config import genai_config
from gptoss_onnx.export.package_files import chat_warning
from gptoss_onnx.exporting import export_package
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.target import get_target
from tests.conftest import DEMO
from tests.export.damage import edit_json
from tests.export.test_checkpoint import Copy


def config_of(folder: Path, stops: tuple[int, ...] = ()) -> dict[str, Any]:
    made = genai_config(open_checkpoint(folder), get_target("cpu"), stops)
    assert "null" not in json.dumps(made)
    return made


def generation(folder: Path, **content: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content))


def test_what_nobody_says_is_left_out(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", lambda c: [c.pop("eos_token_id"), c.pop("pad_token_id")])
    made = config_of(folder)
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & made["model"].keys()
    off = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert off.items() <= made["search"].items()
    assert config_of(folder, (5, 3))["model"]["eos_token_id"] == [3, 5]


def test_nulls_are_as_if_absent(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "temperature", "top_k", "top_p")
    generation(folder, **dict.fromkeys(names), do_sample=None)
    edit_json(folder / "config.json", lambda c: c.update(eos_token_id=7, pad_token_id=None))
    made = config_of(folder, (9,))
    assert made["model"]["eos_token_id"] == [7, 9]  # the config's, and harmony's
    assert not {"bos_token_id", "pad_token_id"} & made["model"].keys()
    edit_json(folder / "config.json", lambda c: c.update(eos_token_id=None))
    assert "eos_token_id" not in config_of(folder)["model"]


def test_what_is_said_is_passed_on(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    generation(folder, eos_token_id=[4, 2], bos_token_id=1, do_sample=True, top_k=-1, top_p=0.9)
    made = config_of(folder, (4, 6))
    assert (made["model"]["eos_token_id"], made["model"]["bos_token_id"]) == ([2, 4, 6], 1)
    assert (made["search"]["top_k"], made["search"]["top_p"]) == (0, 0.9)
    assert made["search"]["do_sample"] is True


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("generation_config.json", {"temperature": "0.7"}, 'temperature is "0.7"'),
        ("generation_config.json", {"top_p": 0}, "top_p is 0"),
        ("generation_config.json", {"top_k": -2}, "top_k is -2"),
        ("generation_config.json", {"eos_token_id": "x"}, 'eos_token_id is "x"'),
        ("config.json", {"eos_token_id": [None]}, "eos_token_id is"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_fault_is_told_at_export(
    name: str, content: dict[str, Any], said: str, dry_run: bool, packed: Path, copy: Copy
) -> None:
    folder = copy(packed)
    edit_json(folder / name, lambda c: c.update(content))
    output = folder.parent / "package"
    with pytest.raises(UserError) as caught:
        export_package(folder, output, dry_run=dry_run, warn=lambda _: None)
    assert f"{name}: {said}" in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(folder.parent) == [folder.name]


def test_a_file_that_is_no_json_is_told(packed: Path, copy: Copy) -> None:
    folder = copy(packed)
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(UserError, match=r"generation_config\.json is not valid JSON"):
        export_package(folder, folder.parent / "package", dry_run=True, warn=lambda _: None)


def test_a_checkpoint_that_will_not_chat_is_warned_of(packed: Path, copy: Copy) -> None:
    warned: list[str] = []
    made = export_package(packed, packed.parent / "no", dry_run=True, warn=warned.append)
    assert len(warned) == 1
    assert "no tokenizer.json" in warned[0] and "will not chat" in warned[0]
    assert made.figures["warnings"] == warned
    folder = copy(packed)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is no chat model's" in (chat_warning(open_checkpoint(folder)) or "")
    assert chat_warning(open_checkpoint(DEMO)) is None
