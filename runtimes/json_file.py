"""JSON files of packages and checkpoints: read as what they may be, anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from gptoss_onnx.runtimes.errors import UserError


def read_json(path: Path, most: int = 64 << 20) -> dict[str, Any]:
    """The object in a JSON file; UserError when it holds none, or more than `most` bytes."""
    try:
        if not path.is_file():  # a pipe would never end
            raise FileNotFoundError(None, "no such file")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > most:
        raise UserError(f"{path}: holds more than {most:,} bytes; this is no such file")
    return parse_json(data, path)


def parse_json(data: str | bytes, where: Path | str) -> dict[str, Any]:
    """The object in a JSON text; UserError names `where` the text is from."""
    try:
        text = data.decode() if isinstance(data, bytes) else data
        content = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise UserError(f"{where}: cannot be read as JSON (nested too deeply)") from None
    except ValueError as error:
        line = str(error).splitlines()[0][:200]
        raise UserError(f"{where}: cannot be read as JSON ({line})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: holds no JSON object")
    return content


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
