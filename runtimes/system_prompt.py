"""Harmony's system message: what the model is told about itself, the day and its built-in tools."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptoss_onnx.runtimes.harmony_tools import ToolNamespace, in_namespaces, render_tools

CHANNELS = ("analysis", "commentary", "final")
TODAY = "today"


@dataclass(frozen=True)
class SystemPrompt:
    """What the system message says; None leaves that line out.

    `date` is ISO 8601, or `TODAY`. `tools` are built in ones (`BROWSER_TOOL`, `PYTHON_TOOL`):
    those of an application stand in the developer message.
    """

    identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    knowledge_cutoff: str | None = "2024-06"
    date: str | None = TODAY
    reasoning: str | None = "medium"
    tools: Sequence[ToolNamespace] = ()
    channels: Sequence[str] = CHANNELS

    def text(self, *, has_functions: bool = False) -> str:
        """The message; `has_functions` when the developer message declares functions."""
        top = [self.identity] if self.identity is not None else []
        if self.knowledge_cutoff is not None:
            top.append(f"Knowledge cutoff: {self.knowledge_cutoff}")
        if self.date is not None:
            top.append(f"Current date: {self.pinned().date}")
        sections = ["\n".join(top)] if top else []
        if self.reasoning is not None:
            sections.append(f"Reasoning: {self.reasoning}")
        if self.tools:
            sections.append(render_tools(in_namespaces(self.tools)))
        if self.channels:
            channels = ", ".join(self.channels)
            must = f"# Valid channels: {channels}. Channel must be included for every message."
            calls = "\nCalls to these tools must go to the commentary channel: 'functions'."
            sections.append(must + calls if has_functions else must)
        return "\n\n".join(sections)

    def pinned(self) -> SystemPrompt:
        """With the date of now, for a conversation that lasts past midnight."""
        if self.date != TODAY:
            return self
        return replace(self, date=datetime.date.today().isoformat())
