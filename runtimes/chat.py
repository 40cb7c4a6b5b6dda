"""A conversation in the harmony format: turns, tool calls, and the KV cache kept between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import FinishReason, Generation, Options, Usage, generate
from gptoss_onnx.runtimes.harmony import Event, Message, StreamParser, SystemPrompt, Tool
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session

_DEFAULT_SYSTEM = SystemPrompt()


@dataclass(frozen=True)
class ToolCall:
    """What the model asked for: `name` as `functions.weather`, `arguments` as it wrote them."""

    name: str
    arguments: str  # meant to be JSON; only a model wrote it, so parse it with care


class Chat:
    """One conversation. `messages` is its history and may be replaced between turns.

    A turn that was cancelled, cut at its length limit or abandoned keeps what a reader saw: its
    final and commentary text so far. Its reasoning and tool calls are dropped, so the next turn
    starts from a conversation the model knows the form of. When a turn fails with an exception,
    the history is as it was before that turn.

    One turn at a time: RuntimeError for a second one. `cancel` may be called from any thread.
    """

    def __init__(
        self,
        package: Package,
        *,
        system: SystemPrompt | None = _DEFAULT_SYSTEM,
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        session: Session | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `generation.Options`; `session` shares the KV cache of another."""
        self.package = package
        self.system = system
        self.instructions = instructions
        self.tools = tuple(tools)
        self.session = session or Session(package)
        self.options = Options(**{"stop_ids": package.harmony.stop_ids, **options})
        self.messages: list[Message] = []
        self.finish_reason: FinishReason | Literal["tool_call"] | None = None
        self.tool_calls: list[ToolCall] = []
        self.usage = Usage()
        self._lock = threading.Lock()
        self._cancel = threading.Event()

    def send(self, text: str, **options: Any) -> Iterator[Event]:
        """Say `text` and stream the reply; the turn begins when the iterator is first asked."""
        return self.send_messages([Message("user", text)], **options)

    def send_messages(self, messages: Sequence[Message], **options: Any) -> Iterator[Event]:
        """Add `messages` and stream the reply; `options` hold for this turn only.

        Afterwards `finish_reason`, `tool_calls` and `usage` say how it ended.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this chat is answering already: finish that or cancel it first")
        before = list(self.messages)
        try:
            self.messages = [*before, *messages]
            yield from self._reply(replace(self.options, **options))
        except Exception:
            self.messages = before
            raise
        finally:
            self._lock.release()

    def resume(self, **options: Any) -> Iterator[Event]:
        """Stream what the model says to the tool results added since its call."""
        return self.send_messages((), **options)

    def add_tool_result(self, name: str, text: str) -> None:
        """Answer the tool call of that name (`functions.weather`, or `weather` for short)."""
        full = name if "." in name else f"functions.{name}"
        if full not in [call.name for call in self.tool_calls]:
            asked = ", ".join(call.name for call in self.tool_calls) or "no tool"
            raise UserError(f"a result of {full} was not asked for: the model called {asked}")
        self.messages.append(Message(full, text, "commentary", "assistant"))

    def cancel(self) -> None:
        """End the turn that is under way, soon; without effect when there is none."""
        self._cancel.set()

    def _reply(self, options: Options) -> Iterator[Event]:
        self._cancel = threading.Event()
        self.finish_reason, self.tool_calls = None, []
        prompt = self.package.harmony.render(
            self.messages, system=self.system, instructions=self.instructions, tools=self.tools
        )
        parser = StreamParser(self.package.tokenizer)
        # Reuses the KV cache up to where this prompt differs: behind `<|start|>assistant` of the
        # last turn, whose reasoning is gone now. `generate` took a snapshot just there.
        generation = generate(self.session, prompt, options, self._cancel)
        try:
            for token in generation:
                yield from parser.feed(token)
            yield from parser.finish()
        finally:
            # Also when the caller stopped listening: what was said is kept.
            generation.close()
            parser.finish()
            self._record(parser.messages, generation)

    def _record(self, said: Sequence[Message], generation: Generation) -> None:
        self.usage, self.finish_reason = generation.usage, generation.finish_reason
        complete = generation.finish_reason == "stop"
        for message in said:
            # A model that left the format may speak for others: that is no part of the history.
            if message.role != "assistant":
                continue
            call = message.recipient not in (None, "all", "assistant")
            if call and complete:
                self.tool_calls.append(ToolCall(str(message.recipient), message.content))
                self.finish_reason = "tool_call"
            if complete or not (call or message.channel == "analysis"):
                self.messages.append(message)
