"""What requests of one conversation have in common, so that one replica's cache is used."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_TEXT = 256  # characters of a plain prompt, which grows behind them
_IDS = 64  # tokens of one


def conversation_key(body: bytes) -> str:
    """The same for each turn of a conversation, and "" where a body has no beginning to tell."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    beginning = _prompt(content) or _turns(content)
    if not beginning:
        return ""
    return hashlib.sha256(json.dumps(beginning, sort_keys=True).encode()).hexdigest()


def _prompt(content: dict[str, Any]) -> list[Any]:
    prompt = content.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return [prompt[:_TEXT]]
    return prompt[:_IDS] if isinstance(prompt, list) else []


def _turns(content: dict[str, Any]) -> list[Any]:
    """Instructions and all turns up to the user's first."""
    turns = content.get("messages", content.get("input"))
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list):
        return []
    beginning = [content.get("instructions")]
    for turn in turns:
        beginning.append(turn)
        if isinstance(turn, dict) and turn.get("role") == "user":
            break
    return beginning
