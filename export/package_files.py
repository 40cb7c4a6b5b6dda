"""The files of a checkpoint that a package carries along as they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.safetensors_folder import parse_object
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.tokenizer import Tokenizer

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "USAGE_POLICY",
)


def copy_files(checkpoint: Checkpoint, folder: Path, names: Iterable[str] = COPIED) -> list[str]:
    """Copy what is there, give its names; a checkpoint may have no tokenizer and no licence."""
    copied = []
    for name in names:
        if (text := checkpoint.text(name)) is not None:
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
            copied.append(name)
    return copied


def load_harmony(checkpoint: Checkpoint) -> Harmony:
    """The chat format in the checkpoint's own tokens; UserError where it has none of them."""
    name = "tokenizer.json"
    with tempfile.TemporaryDirectory(prefix="gptoss.") as folder:
        copy_files(checkpoint, Path(folder), (name,))
        try:
            return Harmony(Tokenizer(folder))
        except FileNotFoundError as error:
            raise UserError(
                f"{checkpoint.place}: no {name}; get the one these weights came with"
            ) from error
        except Exception as error:  # tokenizers' own are of no narrower kind
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(folder, "")
            raise UserError(
                f"{checkpoint.place}: {name} is no chat model's ({reason}); get the one these "
                "weights came with"
            ) from error


def chat_warning(checkpoint: Checkpoint) -> str | None:
    """Why a package of the checkpoint will not chat, None where it will."""
    try:
        load_harmony(checkpoint)
    except UserError as error:
        return f"{error}: the package will run, and will not chat"
    return None


def json_of(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty where there is no file."""
    if (text := checkpoint.text(name)) is None:
        return {}
    try:
        return parse_object(text.encode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise UserError(f"{checkpoint.place}: {name} is not valid JSON ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
