"""A conversation in the harmony format: turns, tool calls, and the KV cache kept between them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from gptoss_onnx.runtimes.content_filter import ContentFilter, message_text, prompt_texts, review
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options, Usage, generate
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt, Tool, ToolNamespace, called_name
from gptoss_onnx.runtimes.harmony_tools import tool_names
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import Reply, ToolCall
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.stream_parser import Event

_DEFAULT_SYSTEM = SystemPrompt()


class Chat:
    """One conversation. `messages` is its history and may be replaced between turns.

    A turn that was cancelled, cut at its length limit or abandoned keeps what a reader saw: its
    final and commentary text so far. Its reasoning and tool calls are dropped, so the next turn
    starts from a conversation the model knows the form of. When a turn fails with an exception, or
    a content filter blocks its prompt, the history is as it was before that turn.

    One turn at a time: RuntimeError for a second one. `cancel` may be called from any thread.
    """

    def __init__(
        self,
        package: Package,
        *,
        system: SystemPrompt | None = _DEFAULT_SYSTEM,
        instructions: str | None = None,
        tools: Sequence[Tool | ToolNamespace] = (),
        auto_drop_analysis: bool = True,
        session: Session | None = None,
        content_filter: ContentFilter | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `generation.Options`; `session` shares the KV cache of another.

        `auto_drop_analysis`: the model is not shown its reasoning of answered turns, as it was
        trained. The date of today is that of the first, or midnight would cost the KV cache.
        `content_filter` reviews what is new in each prompt, and every reply.
        """
        self.package = package
        self.system = system and system.pinned()
        self.auto_drop_analysis = auto_drop_analysis
        self.instructions = instructions
        self.tools = tuple(tools)
        self.session = session or Session(package)
        self.options = Options(**{"stop_ids": package.stop_ids, **options})
        self.messages: list[Message] = []
        self._filter = content_filter
        self._cleared: set[str] = set()  # texts of prompts and replies
        self.reply = self._new_reply(self.options)
        self.usage = Usage()
        self._lock = threading.Lock()
        # Held by each turn that was made and has not ended; a dropped one takes its own along.
        self._unfinished: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._turns = threading.Lock()

    def send(self, text: str, **options: Any) -> Iterator[Event]:
        """Say `text` and stream the reply; the turn begins when the iterator is first asked."""
        return self.send_messages([Message("user", text)], **options)

    def send_messages(self, messages: Sequence[Message], **options: Any) -> Iterator[Event]:
        """Add `messages` and stream the reply; `options` hold for this turn only.

        Afterwards `reply`, `finish_reason`, `tool_calls` and `usage` say how it ended. The turn
        begins when the iterator is first asked; `cancel` ends it from here on.
        """
        cancel = threading.Event()
        with self._turns:
            self._unfinished.add(cancel)
        return self._turn(messages, replace(self.options, **options), cancel)

    def _turn(
        self, messages: Sequence[Message], options: Options, cancel: threading.Event
    ) -> Iterator[Event]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this chat is answering already: finish that or cancel it first")
        before = list(self.messages)
        try:
            self.messages = [*before, *messages]
            if (rule := self._forbidden()) is not None:
                self.messages = before
                self.reply, self.usage = self._new_reply(options), Usage()
                self.reply.block(rule)
                return
            yield from self._reply(options, cancel)
        except Exception:
            self.messages = before
            raise
        finally:
            with self._turns:
                self._unfinished.discard(cancel)
            self._lock.release()

    def resume(self, **options: Any) -> Iterator[Event]:
        """Stream what the model says to the tool results added since its call."""
        return self.send_messages((), **options)

    @property
    def finish_reason(self) -> str | None:
        """Why the last reply ended: `stop`, `length`, `cancelled`, `tool_call`, `content_filter`.

        A content filter's rule against it, or against its prompt, is `reply.blocked`.
        """
        return self.reply.finish_reason

    @property
    def tool_calls(self) -> list[ToolCall]:
        """What the last reply asks for."""
        return self.reply.calls

    def add_tool_result(self, name: str, text: str) -> None:
        """Answer the tool call of that name, as the model wrote it or without `functions.`"""
        channels = {call.name: call.channel for call in self.tool_calls}
        called = called_name(name, channels)
        if called is None:
            asked = ", ".join(channels) or "no tool"
            raise UserError(f"a result of {name} was not asked for: the model called {asked}")
        self.messages.append(Message(called, text, channels[called], "assistant"))

    def answer_calls(self, run: Callable[[ToolCall], str]) -> None:
        """Answer every tool call with what `run` says to it; then `resume`.

        A call whose arguments are no JSON object is not run: the model is told so.
        """
        for call in self.tool_calls:
            self.add_tool_result(call.name, call.error or run(call))

    def cancel(self) -> None:
        """End, soon, what `send` returned and has not ended, begun or not; never a later turn."""
        with self._turns:
            for cancel in self._unfinished:
                cancel.set()

    def _forbidden(self) -> str | None:
        """The filter's rule against what is new in the conversation."""
        if self._filter is None:
            return None
        texts = prompt_texts(self.messages, self.instructions, self.tools)
        new = [text for text in texts if text not in self._cleared]
        rule = review(self._filter, "prompt", new)
        if rule is None:
            self._cleared.update(new)
        return rule

    def _reply(self, options: Options, cancel: threading.Event) -> Iterator[Event]:
        reply = self.reply = self._new_reply(options)
        prompt = self.package.harmony.render(
            self.messages,
            system=self.system,
            instructions=self.instructions,
            tools=self.tools,
            auto_drop_analysis=self.auto_drop_analysis,
        )
        # Reuses the KV cache up to where this prompt differs: behind `<|start|>assistant` of the
        # last turn, whose reasoning is gone now. `generate` took a snapshot just there.
        generation = generate(self.session, prompt, options, cancel)
        try:
            for token in generation:
                yield from reply.feed(token)
                if reply.blocked is not None:
                    break
            yield from reply.finish(generation.finish_reason or "cancelled")
        finally:
            # Also when the caller stopped listening: what was said is kept.
            generation.close()
            reply.finish(generation.finish_reason or "cancelled")
            self.usage = generation.usage
            self.messages += reply.messages
            if self._filter is not None:
                self._cleared.update(map(message_text, reply.messages))

    def _new_reply(self, options: Options) -> Reply:
        tools = tool_names(self.tools)
        stop_ids = options.stop_ids or self.package.stop_ids
        return Reply(self.package.tokenizer, tools, stop_ids, self._filter)
