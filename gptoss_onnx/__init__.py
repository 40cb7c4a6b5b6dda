"""Export GPT-OSS checkpoints to ONNX packages, and run them.

>>> from gptoss_onnx import Chat, Package
>>> package = Package.open("build/demo-cpu-int4")
>>> chat = Chat(package)
>>> print("".join(e.text for e in chat.send("What does os.path.join do?") if e.channel == "final"))
Join two or more pathname components, inserting '/' as needed.

`answer` generates without a conversation, `export_package` makes a package of a checkpoint and
`verify_package` checks one; these two need what the extra `export` installs.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_onnx.exporting import Exported, export_package
    from gptoss_onnx.runtimes.answer import answer
    from gptoss_onnx.runtimes.chat import Chat
    from gptoss_onnx.runtimes.errors import UserError
    from gptoss_onnx.runtimes.generation import Options
    from gptoss_onnx.runtimes.harmony import Message
    from gptoss_onnx.runtimes.harmony_tools import BROWSER_TOOL, PYTHON_TOOL, Tool, ToolNamespace
    from gptoss_onnx.runtimes.package import Package
    from gptoss_onnx.runtimes.sampling import Sampling
    from gptoss_onnx.runtimes.stream_parser import Event
    from gptoss_onnx.runtimes.system_prompt import SystemPrompt
    from gptoss_onnx.verifying import Verified, verify_package

# From 1.29 on ONNX Runtime reports its use to its maker, unless it is told not to: as it is
# imported it opens a database in the user's cache, notes the process, and uploads that later.
if os.environ.setdefault("ORT_DISABLE_TELEMETRY", "") == "":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if "onnxruntime" in sys.modules:
        sys.modules["onnxruntime"].disable_telemetry_events()
        warnings.warn(
            "onnxruntime was imported before gptoss_onnx and may have noted this process for its "
            "maker; import gptoss_onnx first, or set ORT_DISABLE_TELEMETRY=1",
            stacklevel=2,
        )

# Loaded when asked for: an import costs nothing that is not used, and torch is an export's alone.
_HOMES = {
    "exporting": ("Exported", "export_package"),
    "runtimes.answer": ("answer",),
    "runtimes.chat": ("Chat",),
    "runtimes.errors": ("UserError",),
    "runtimes.generation": ("Options",),
    "runtimes.harmony": ("Message",),
    "runtimes.harmony_tools": ("BROWSER_TOOL", "PYTHON_TOOL", "Tool", "ToolNamespace"),
    "runtimes.package": ("Package",),
    "runtimes.sampling": ("Sampling",),
    "runtimes.stream_parser": ("Event",),
    "runtimes.system_prompt": ("SystemPrompt",),
    "verifying": ("Verified", "verify_package"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BROWSER_TOOL",
    "PYTHON_TOOL",
    "Chat",
    "Event",
    "Exported",
    "Message",
    "Options",
    "Package",
    "Sampling",
    "SystemPrompt",
    "Tool",
    "ToolNamespace",
    "UserError",
    "Verified",
    "__version__",
    "answer",
    "export_package",
    "verify_package",
]
__version__ = version("gptoss-onnx")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
