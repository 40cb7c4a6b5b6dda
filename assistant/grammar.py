"""JSON schemas as grammars of a package's tokens; what a request holds a reply to."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from gptoss_onnx.assistant.schema_depth import check_size, on_a_deep_stack
from gptoss_onnx.runtimes.constraint import (
    Constraint,
    Form,
    Make,
    Mask,
    ReplyConstraint,
    Vocabulary,
)
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Tool, ToolNamespace
from gptoss_onnx.runtimes.harmony_tools import FUNCTION_NAMESPACE, in_namespaces
from gptoss_onnx.runtimes.header import TEXT_TOOLS
from gptoss_onnx.runtimes.package import Package

if TYPE_CHECKING:
    from gptoss_onnx.assistant.turn import JsonFormat, Named

# A space, or a line and its indentation: a model may write JSON as it is used to, and never end
# up in white space.
_WHITE_SPACE = r"( |\n[ \t]{0,32})"
_KEPT = 16  # schemas, each up to 140 MB
_USES = 100  # of one that is kept: its automaton grows with what is written, up to a limit
# Twice what 128 KB of names and values take; the default lets a pattern compile for seconds.
_LIMITS = LLParserLimits(initial_lexer_fuel=200_000)
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_Key: TypeAlias = tuple[str, bool]  # a schema's text, strict


class Grammars:
    """The grammars of one package. The first costs a second where the vocabulary is large."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._lock = threading.Lock()
        self._loaded: tuple[Vocabulary, LLTokenizer] | None = None
        self._compiled: OrderedDict[_Key, tuple[LLMatcher, int]] = OrderedDict()  # with its uses

    @property
    def vocabulary(self) -> Vocabulary:
        return self._load()[0]

    def json_object(self) -> Make:
        """What makes matchers of any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Any, what: str = "the schema", *, strict: bool = True) -> Make:
        """What makes matchers of JSON that `schema` describes.

        Properties come in the schema's order. Unless `strict`, keywords that cannot be enforced are
        passed over. UserError, which begins with `what`, for a schema that cannot be held to.
        """
        if not isinstance(schema, Mapping):
            raise UserError(f"{what} is no JSON schema: give an object")
        try:
            # Options of llguidance's own in it could bring endless white space back.
            text = json.dumps({k: v for k, v in schema.items() if k != "x-guidance"})
        except (TypeError, ValueError, RecursionError):
            raise UserError(f"{what} is no JSON, or nested too deeply: make it simpler") from None
        key = text, strict
        compiled = self._known(key)
        if compiled is None:
            check_size(schema, len(text), what)
            compiled = on_a_deep_stack(partial(self._compile, key, what))
        give_up = partial(self._forget, key, compiled)
        return partial(JsonMatcher, compiled, self.vocabulary, give_up)

    def _known(self, key: _Key) -> LLMatcher | None:
        with self._lock:
            compiled, uses = self._compiled.pop(key, (None, 0))
            if compiled is not None and uses < _USES:
                self._compiled[key] = compiled, uses + 1
            return compiled

    def _forget(self, key: _Key, compiled: LLMatcher) -> None:
        """Its copies share its automaton, and that is full."""
        with self._lock:
            if self._compiled.get(key, (None, 0))[0] is compiled:
                del self._compiled[key]

    def _compile(self, key: _Key, what: str) -> LLMatcher:
        text, strict = key
        tokenizer = self._load()[1]
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                text,
                overrides={
                    "whitespace_pattern": _WHITE_SPACE,
                    "lenient": not strict,
                },
            )
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
            matcher.compute_bitmask()  # tells of a schema that nothing can be of
            problem = matcher.get_error().partition("<state>")[0]
        except ValueError as error:
            problem = str(error)
        if problem:
            line = " ".join(problem.split())
            line = line if len(line) <= 200 else f"{line[:197]}..."
            or_else = ", or leave strict out" if strict else ""
            raise UserError(f"{what} cannot be enforced: {line}; change it{or_else}")
        with self._lock:
            self._compiled[key] = matcher, 1
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _load(self) -> tuple[Vocabulary, LLTokenizer]:
        harmony = self.package.harmony
        with self._lock:
            if self._loaded is None:
                vocabulary = Vocabulary(harmony, self.package.manifest.vocab_size)
                self._loaded = vocabulary, LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)))
            return self._loaded


class _Tokens:
    """A vocabulary as llguidance asks for one."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = vocabulary.tokenizer
        self.eos_token_id = vocabulary.end
        self.tokens = vocabulary.pieces
        self.special_token_ids: list[int] = []  # they have no text, and are never allowed
        self._bytes = {piece[0]: i for i, piece in enumerate(self.tokens) if len(piece) == 1}

    def __call__(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)
        except UserError:  # its pattern cannot split it; an error would be one of llguidance's own
            return [self._bytes[byte] for byte in text.encode() if byte in self._bytes]


class JsonMatcher:
    """A `Matcher` of JSON, at its beginning; `give_up` is called where a limit ends it."""

    def __init__(
        self, compiled: LLMatcher, vocabulary: Vocabulary, give_up: Callable[[], None]
    ) -> None:
        self._matcher = compiled.deep_copy()
        self._size, self._end = vocabulary.size, vocabulary.end
        self._give_up = give_up

    @property
    def complete(self) -> bool:
        return self._matcher.is_accepting()

    def mask(self) -> Mask:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._give_up()
        if self._matcher.is_stopped():
            return np.zeros(self._size, np.bool_)
        mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
        mask[self._end] = False  # its word for complete
        return mask

    def accept(self, token: int) -> bool:
        return self._matcher.consume_token(token)


def constraint_for(
    grammars: Grammars,
    tools: Sequence[Tool | ToolNamespace] = (),
    *,
    strict: Collection[str] = (),
    tool_choice: Literal["auto", "none", "required"] | Named = "auto",
    parallel: bool = True,
    response_format: JsonFormat | None = None,
    strict_format: bool = True,
    stop_ids: Collection[int] | None = None,
) -> Constraint | None:
    """What holds one reply to what is asked for; None where nothing is.

    `strict`: names of the tools whose arguments are held to their schema. `stop_ids` None are the
    package's. UserError for what cannot be.
    """
    named = None if isinstance(tool_choice, str) else tool_choice.name
    must_call = tool_choice == "required" or named is not None
    answer = None
    if response_format is not None:
        schema = response_format.schema
        answer = (
            grammars.json_object()
            if schema is None
            else grammars.json_schema(schema, "response_format: its schema", strict=strict_format)
        )
    called: dict[str, tuple[str, Tool | None]] = {}  # by recipient: the name, its parameters'
    for space in in_namespaces(tools) if tool_choice != "none" else ():
        own = space.name == FUNCTION_NAMESPACE
        for tool in space.tools:
            recipient = f"{space.name}.{tool.name}"
            called[recipient] = (tool.name if own else recipient, tool)
        if not space.tools:
            called[space.name] = (space.name, None)
    if named is not None:
        called = {to: entry for to, entry in called.items() if entry[0] == named}
    if must_call and not called:
        raise UserError(f"tool_choice: there is no tool {named or 'to call'} among the tools")
    calls = {
        recipient: None
        if recipient in TEXT_TOOLS
        else _arguments(grammars, name, tool, name in strict, must_call)
        for recipient, (name, tool) in called.items()
    }
    asked = (must_call, answer, tools if tool_choice == "none" else None, *calls.values())
    if not any(asked):
        return None
    form = Form(calls, answer, must_call, parallel)
    return ReplyConstraint(
        grammars.vocabulary, form, grammars.package.stop_ids if stop_ids is None else stop_ids
    )


def _arguments(
    grammars: Grammars, name: str, tool: Tool | None, strict: bool, must_call: bool
) -> Make | None:
    """What makes the matcher of a call's arguments; None where they are free."""
    if tool is None or not strict:
        return grammars.json_object() if must_call else None
    where = f"tool {name}: its parameters' schema"
    schema: Any = tool.parameters
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is no JSON") from None
    if schema is None:
        schema = _NO_ARGUMENTS
    if isinstance(schema, Mapping) and "$ref" not in schema:
        kinds = schema.get("type", "object")
        if kinds != "object" and (not isinstance(kinds, list) or "object" not in kinds):
            raise UserError(f"{where} is of no object, as a call's arguments must be")
        schema = {**schema, "type": "object"}
    return grammars.json_schema(schema, where)
