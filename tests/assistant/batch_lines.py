"""Lines of batch files, and a command of its own process that answers them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.assistant.asking import CHAT, body

COMMAND = "from gptoss_onnx.assistant.batch_command import batch; batch()"


def request(custom_id: str, text: str = "Hi?", **others: Any) -> dict[str, Any]:
    return line(custom_id, CHAT, body(text, **{"temperature": 0, "max_tokens": 8, **others}))


def line(custom_id: Any, url: str, content: Any, method: str = "POST") -> dict[str, Any]:
    return {"custom_id": custom_id, "method": method, "url": url, "body": content}


def write(path: Path, lines: Iterable[Any]) -> Path:
    """Each a line of JSON, or a text as it stands."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    """Every line is whole, and an answer."""
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    found = [json.loads(text) for text in data.split(b"\n")[:-1]]
    for answer in found:
        assert answer.keys() == {"id", "custom_id", "response", "error"}
        assert answer["id"].startswith("batch_req_")
        assert (answer["response"] is None) != (answer["error"] is None)
    return found


def by_id(path: Path) -> dict[str, dict[str, Any]]:
    """Answers by custom_id, each of which is there once."""
    found = answers(path)
    named = {answer["custom_id"]: answer for answer in found}
    assert len(named) == len(found)
    return named


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
