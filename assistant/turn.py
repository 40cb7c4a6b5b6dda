"""A checked request in our own terms, whichever API it came by, and the pieces of its answer.

Chat completions, responses and batch files are translations to a `Turn` and from its `Piece`s.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from gptoss_onnx.assistant.choice import AnyChoice, Blocked, Choice, Finished, Piece
from gptoss_onnx.assistant.grammar import Grammars, constraint_for
from gptoss_onnx.runtimes.content_filter import ContentFilter, prompt_texts, review
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation import Options
from gptoss_onnx.runtimes.harmony import Message, SystemPrompt, Tool, ToolNamespace
from gptoss_onnx.runtimes.harmony_tools import tool_names
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.request import Listener, Request

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.constraint import Constraint
    from gptoss_onnx.runtimes.engine import Engine

_DEFAULT_SYSTEM = SystemPrompt()
_DEFAULT_OPTIONS = Options()
_SEEDS = 1 << 64
_LONG = 20_000  # characters of a conversation that are worth a thread to encode
# Seconds between two deliveries, but for an end. Telling a client costs a core as much as a small
# model's token does, and takes it from the next one: the tokens of such models leave in groups.
_PACE = 0.02


@dataclass(frozen=True)
class Named:
    """The one tool that must be called."""

    name: str


@dataclass(frozen=True)
class JsonFormat:
    """The answer is a JSON object, of `schema` where there is one."""

    schema: dict[str, Any] | None = None
    name: str = "json"
    description: str | None = None
    strict: bool = True  # else what cannot be enforced of the schema is passed over

    def text(self) -> str:
        """What the model is told of it, as the format's description has it."""
        about = [f"// {line}" for line in (self.description or "").splitlines()]
        schema = json.dumps(self.schema or {"type": "object"}, ensure_ascii=False)
        return "\n".join(["# Response Formats", "", f"## {self.name}", "", *about, schema])


class TooLong(UserError):
    """The prompt leaves no room for a reply."""


@dataclass(frozen=True)
class Turn:
    """What is asked for. `messages` may end with a tool's results.

    `strict`: names of the tools whose arguments are held to their schema. `stop`: texts that end
    the final message. `n` replies are written at once. `top_logprobs`: None for no log
    probabilities, 0 for the chosen token's alone. `timeout`: seconds until the reply is cut.
    """

    messages: Sequence[Message] = ()
    system: SystemPrompt | None = _DEFAULT_SYSTEM
    instructions: str | None = None
    tools: Sequence[Tool | ToolNamespace] = ()
    strict: frozenset[str] = frozenset()
    tool_choice: Literal["auto", "none", "required"] | Named = "auto"
    parallel_tool_calls: bool = True
    response_format: JsonFormat | None = None
    options: Options = _DEFAULT_OPTIONS
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    timeout: float | None = None

    @cached_property
    def tool_names(self) -> list[str]:
        """What a call may name."""
        return tool_names(self.tools)

    @property
    def developer(self) -> str | None:
        """Instructions, with the form of the answer."""
        if self.response_format is None:
            return self.instructions
        return "\n\n".join(filter(None, (self.instructions, self.response_format.text())))

    def prompt(self, package: Package) -> tuple[list[int], tuple[int, ...]]:
        """Ids, and after how many of them the system and developer messages end."""
        ids = package.harmony.render(
            self.messages,
            # Of today; a conversation that goes on past midnight is prefilled once more.
            system=self.system and self.system.pinned(),
            instructions=self.developer,
            tools=self.tools,
        )
        heads = bool(self.system) + bool(self.developer is not None or self.tools)
        start, place = package.tokenizer.special("<|start|>"), 0
        for _ in range(heads):
            place = ids.index(start, place + 1)
        return ids, (place,) if place else ()

    @property
    def held(self) -> bool:
        """Whether the reply is held to a form."""
        return bool(self.strict or self.response_format or self.tool_choice != "auto")

    def constraint(self, grammars: Grammars) -> Constraint | None:
        """What holds one choice to it; UserError for what cannot be."""
        if not self.held:
            return None
        return constraint_for(
            grammars,
            self.tools,
            strict=self.strict,
            tool_choice=self.tool_choice,
            parallel=self.parallel_tool_calls,
            response_format=self.response_format,
            strict_format=self.response_format is None or self.response_format.strict,
            stop_ids=self.options.stop_ids,
        )

    def options_of(self, choice: int) -> Options:
        """The options of one of `n`: with a seed, each has its own."""
        return with_seed(self.options, choice)


def with_seed(options: Options, choice: int) -> Options:
    """Of several replies to one prompt each has its own seed, counted on from the first's."""
    sampling = options.sampling
    if not choice or sampling is None or sampling.seed is None:
        return options
    return replace(options, sampling=replace(sampling, seed=(sampling.seed + choice) % _SEEDS))


@dataclass
class Answer:
    """A turn under way: iterate over it once, for lists of what came since the last.

    Each choice ends with its `Finished`. Leaving the iteration cancels what is left, as does
    `cancel`, at once and from any thread.
    """

    choices: Sequence[AnyChoice]
    prompt_tokens: int
    _wake: Listener
    _news: asyncio.Event
    _over: asyncio.Event  # a choice is, since the last delivery
    _pause: Callable[[], None]
    finished: list[Finished] = field(default_factory=list)

    def cancel(self) -> None:
        for choice in self.choices:
            choice.cancel()
        self._wake(True)

    async def __aiter__(self) -> AsyncIterator[list[Piece | Finished]]:
        open_choices = list(self.choices)
        told = -_PACE
        try:
            while open_choices:
                await self._news.wait()
                if (early := told + _PACE - time.monotonic()) > 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(early):
                            await self._over.wait()
                self._pause()
                pieces: list[Piece | Finished] = []
                for choice in open_choices:
                    if choice.slow:  # a filter that takes its time
                        pieces += await asyncio.to_thread(choice.take)
                    else:
                        pieces += choice.take()
                open_choices = [choice for choice in open_choices if choice.finished is None]
                self.finished += [piece for piece in pieces if isinstance(piece, Finished)]
                if pieces:
                    told = time.monotonic()
                    yield pieces
        finally:
            if open_choices:
                self.cancel()


async def start(
    engine: Engine,
    turn: Turn,
    grammars: Grammars | None = None,
    content_filter: ContentFilter | None = None,
) -> Answer:
    """Begin to answer `turn`; of a prompt that a filter blocks, the answer is finished already.

    `grammars` are the package's, kept from turn to turn: those of a schema take time to make.
    UserError for a turn that cannot be: TooLong, and the engine's QueueFull, among them.
    """
    deadline = deadline_in(turn.timeout)
    package = engine.package
    size = sum(len(message.content) for message in turn.messages) + len(turn.instructions or "")
    if size > _LONG:
        ids, marks = await asyncio.to_thread(turn.prompt, package)
    else:
        ids, marks = turn.prompt(package)
    check_length(engine, ids)
    if content_filter is not None:
        texts = prompt_texts(turn.messages, turn.developer, turn.tools)
        rule = await asyncio.to_thread(review, content_filter, "prompt", texts)
        if rule is not None:
            return blocked(turn.n, rule, len(ids))
    grammars = grammars or Grammars(package)
    # A large vocabulary takes a second the first time.
    constraints = [await asyncio.to_thread(turn.constraint, grammars)] if turn.held else [None]
    constraints += [turn.constraint(grammars) for _ in range(turn.n - 1)]

    def choice(place: int, wake: Listener) -> Choice:
        request = Request(
            ids,
            turn.options_of(place),
            marks,
            constraint=constraints[place],
            top_logprobs=turn.top_logprobs,
            deadline=deadline,
        )
        return Choice(place, engine.submit(request, wake), package, turn, content_filter)

    return begin([partial(choice, place) for place in range(turn.n)], len(ids))


def blocked(count: int, rule: str, prompt_tokens: int) -> Answer:
    """The answer to a prompt that a filter's `rule` forbids: `count` choices that are over."""
    made = [partial(Blocked, i, rule, 0 if i else prompt_tokens) for i in range(count)]
    return begin(made, prompt_tokens)


def begin(choices: Sequence[Callable[[Listener], AnyChoice]], prompt: int) -> Answer:
    """Each of `choices` is called with what it is to tell news by: all are submitted, or none."""
    loop, news, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    woken = False

    def wake(over: bool) -> None:  # on the engine's thread
        nonlocal woken
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            if over:
                loop.call_soon_threadsafe(ended.set)
            if not woken:  # else whoever was woken will find this too
                woken = True
                loop.call_soon_threadsafe(news.set)

    def pause() -> None:  # before what came is taken, so that nothing waits unnoticed
        nonlocal woken
        news.clear()
        ended.clear()
        woken = False

    begun: list[AnyChoice] = []
    try:
        for choice in choices:
            begun.append(choice(wake))
    except BaseException:
        for other in begun:
            other.cancel()
        raise
    wake(True)  # what ended before it began wakes nobody
    return Answer(begun, prompt, wake, news, ended, pause)


def check_length(engine: Engine, ids: Sequence[int]) -> None:
    """TooLong where no token of a reply fits behind the prompt."""
    room = engine.max_length
    if len(ids) >= room:
        raise TooLong(
            f"the prompt has {len(ids)} tokens, and the context of this model holds {room}, with "
            f"at least one for the reply: shorten the prompt by {len(ids) - room + 1} or more"
        )


def deadline_in(seconds: float | None) -> float | None:
    """As an engine takes it."""
    return None if seconds is None else time.monotonic() + seconds
