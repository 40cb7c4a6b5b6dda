"""Export GPT-OSS checkpoints to ONNX packages, and run them.

>>> from gptoss_onnx import Chat, Package
>>> chat = Chat(Package.open("build/demo-cpu-int4"))
>>> print("".join(e.text for e in chat.send("What does os.path.join do?") if e.channel == "final"))
Join two or more pathname components, inserting '/' as needed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.answer import answer
    from gptoss_onnx.runtimes.chat import Chat
    from gptoss_onnx.runtimes.errors import UserError
    from gptoss_onnx.runtimes.package import Package

__all__ = ["Chat", "Package", "UserError", "__version__", "answer"]
__version__ = version("gptoss-onnx")

# Loaded when asked for: an import costs nothing that is not used.
_HOMES = {
    "Chat": "gptoss_onnx.runtimes.chat",
    "Package": "gptoss_onnx.runtimes.package",
    "UserError": "gptoss_onnx.runtimes.errors",
    "answer": "gptoss_onnx.runtimes.answer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
