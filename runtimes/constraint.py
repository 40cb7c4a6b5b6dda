"""What may come next in a reply that is held to a form: harmony's automaton over token ids.

Reasoning is never held to a grammar: one begins behind the header of the answer or of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import CONSTRAIN, FUNCTIONS, Harmony
from gptoss_onnx.runtimes.header import CHANNEL, TEXT_TOOLS

Mask: TypeAlias = NDArray[np.bool_]  # [V]; one that was given away is not to be changed


class FormLost(UserError):
    """The form asks for more than can be followed: what was said so far is not of it."""


class Constraint(Protocol):
    """Follows one reply from behind `<|start|>assistant`."""

    def allowed(self) -> Mask | None:
        """The tokens that may come next, never none; None: any.

        FormLost where nothing can, although the form is not kept yet.
        """

    def accept(self, token: int) -> None:
        """Go on behind `token`, whatever it is."""


class Matcher(Protocol):
    """Follows one message's content."""

    @property
    def complete(self) -> bool:
        """Whether the content may end here."""

    def mask(self) -> Mask:
        """The tokens of text that may come next, in an array of its own; maybe none."""

    def accept(self, token: int) -> bool:
        """Go on behind `token`; False when it cannot, and nothing may come from then on."""


Make: TypeAlias = Callable[[], Matcher]
_Node: TypeAlias = dict[int, Union["_Node", "_Part"]]


@dataclass(frozen=True)
class Form:
    """What a reply is held to.

    `calls`: whom a call may be for (`functions.weather`), each with what makes the matcher of its
    arguments, None where they are any text but blanks. `answer` makes the final message's.
    `must_call`: no answer, and at most one message of reasoning and one preamble before the call.
    `several`: a call may follow another.
    """

    calls: Mapping[str, Make | None] = field(default_factory=dict)
    answer: Make | None = None
    must_call: bool = False
    several: bool = True


class Vocabulary:
    """A tokenizer's tokens as the model of `size` ids has them."""

    def __init__(self, harmony: Harmony, size: int) -> None:
        self.size = size
        self.tokenizer = harmony.tokenizer
        self.end = self.tokenizer.special("<|end|>")
        self.pieces = [self.tokenizer.token_bytes(token) for token in range(size)]
        # Neither special tokens nor the ids that pad a model's vocabulary have any.
        self.text: Mask = np.fromiter(map(bool, self.pieces), np.bool_, size)

    def only(self, tokens: Iterable[int]) -> Mask:
        mask = np.zeros(self.size, np.bool_)
        mask[list(tokens)] = True
        return mask


class _Anything:
    """A matcher of any text but blanks, as without arguments there is no call (`stream_parser`)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.complete = False

    def mask(self) -> Mask:
        return self._vocabulary.text.copy()

    def accept(self, token: int) -> bool:
        self.complete = self.complete or bool(self._vocabulary.pieces[token].strip())
        return True


@dataclass(frozen=True)
class _Part:
    """A kind of message: what makes its matcher, and the marks that may end it."""

    kind: str
    make: Make | None
    ends: frozenset[int]


class ReplyConstraint:
    """A `Constraint` to a `Form`. A token that may not come lifts it: no reply is an error.

    A matcher that gives up is one: the answer would not be what was asked for. `stop_ids` are those
    that the reply ends with.
    """

    def __init__(self, vocabulary: Vocabulary, form: Form, stop_ids: Collection[int]) -> None:
        self._vocabulary, self._form = vocabulary, form
        self._stop_ids = frozenset(stop_ids)
        special = vocabulary.tokenizer.special
        self._end = vocabulary.end
        self._start = [special("<|start|>"), *vocabulary.tokenizer.encode("assistant")]
        self._talk, self._calls = self._headers()
        self._spent: set[str] = set()  # kinds of messages that may not come again
        self._nodes = self._next()  # of the headers that may still be meant
        self._stops: frozenset[int] = frozenset()  # that may come in place of a header
        self._part: _Part | None = None  # whose content this is
        self._matcher: Matcher | None = None
        self._mask: Mask | None = None
        self._lifted = False

    def allowed(self) -> Mask | None:
        if self._mask is None and not self._lifted:
            mask = self._allowed()
            if mask.any():
                self._mask = mask
            elif self._part is None:  # the reply is over
                self._lift()
            else:
                raise FormLost("the schema is too much to follow any further: make it simpler")
        return self._mask

    def accept(self, token: int) -> None:
        if self._lifted:
            return
        if self._part is None:
            self._accept_in_header(token)
        else:
            self._accept_in_content(self._part, token)

    def _allowed(self) -> Mask:
        if self._part is None:
            return self._vocabulary.only({*self._stops, *(t for node in self._nodes for t in node)})
        complete = self._matcher is None or self._matcher.complete
        mask = self._vocabulary.text.copy() if self._matcher is None else self._matcher.mask()
        mask[list(self._stop_ids)] = False  # a package's own may be any token
        if complete:
            mask[list(self._part.ends)] = True
        return mask

    def _accept_in_header(self, token: int) -> None:
        found = [node[token] for node in self._nodes if token in node]
        part = next((entry for entry in found if isinstance(entry, _Part)), None)
        self._nodes = [entry for entry in found if isinstance(entry, dict)]
        self._stops, self._mask = frozenset(), None
        if part is not None:
            self._part, self._matcher = part, part.make() if part.make else None

    def _accept_in_content(self, part: _Part, token: int) -> None:
        complete = self._matcher is None or self._matcher.complete
        if token == self._end and token in part.ends and complete:
            self._close(part)
        elif token in self._stop_ids or not self._is_text(token):
            self._lift()
        elif self._matcher is not None:
            may = self._mask is not None and self._mask[token]
            self._mask = None
            if not self._matcher.accept(token) and not may:  # else it gave up: `allowed` tells
                self._lift()

    def _is_text(self, token: int) -> bool:
        return 0 <= token < self._vocabulary.size and bool(self._vocabulary.text[token])

    def _close(self, part: _Part) -> None:
        """The message is over, the reply maybe."""
        self._part = self._matcher = self._mask = None
        if part.kind in self._talk and part.kind != "final":
            if self._form.must_call:
                self._spent.add(part.kind)
            self._nodes = self._next()
        else:
            self._nodes = [self._calls] if part.kind == "call" else []
            self._stops = part.ends - {self._end}
        for token in reversed(self._start):
            self._nodes = [{token: node} for node in self._nodes]

    def _lift(self) -> None:
        self._lifted, self._mask = True, None

    def _next(self) -> list[_Node]:
        """The headers of all that may come next."""
        talk = [node for kind, node in self._talk.items() if kind not in self._spent]
        return [*talk, self._calls]

    def _headers(self) -> tuple[dict[str, _Node], _Node]:
        """Those of messages to read, by kind, and those of calls."""
        form, tokenizer, stops = self._form, self._vocabulary.tokenizer, self._stop_ids
        call = {tokenizer.special(m) for m in ("<|call|>",) if tokenizer.has_special(m)}
        answer_ends = (stops - call or stops) | {self._end}
        obliged = form.must_call or form.answer is not None
        # Where <|end|> is a stop of the package's own, nothing could follow reasoning.
        parts = [] if obliged and self._end in stops else ["analysis", "commentary"]
        talk_ends = frozenset({self._end}) if obliged else answer_ends
        found = {kind: _Part(kind, None, talk_ends) for kind in parts}
        if not form.must_call:
            found["final"] = _Part("final", form.answer, answer_ends)
        headers = _Headers(self._vocabulary)
        talk = {
            kind: _trie((ids, part) for ids in headers.talk(kind)) for kind, part in found.items()
        }
        call_ends = (stops & call or stops) | ({self._end} if form.several else set())
        calls = _trie(
            (ids, _Part("call", make or (lambda: _Anything(self._vocabulary)), call_ends))
            for recipient, make in form.calls.items()
            for ids in headers.call(recipient)
        )
        return talk, calls


def _trie(entries: Iterable[tuple[list[int], _Part]]) -> _Node:
    """Entries as a tree of their ids. All end with `<|message|>`, so none begins another."""
    root: _Node = {}
    for ids, part in entries:
        node = root
        for token in ids[:-1]:
            inner = node.setdefault(token, {})
            assert isinstance(inner, dict)
            node = inner
        node[ids[-1]] = part
    return root


class _Headers:
    """Headers as models write them, behind `<|start|>assistant`, as ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokenizer = vocabulary.tokenizer
        self._encode = tokenizer.encode
        self._channel, self._message = tokenizer.special(CHANNEL), tokenizer.special("<|message|>")
        self._json = [[], self._encode(" json")]
        if tokenizer.has_special(CONSTRAIN):
            marked = [tokenizer.special(CONSTRAIN), *self._encode("json")]
            self._json += [marked, [*self._encode(" "), *marked]]

    def talk(self, channel: str) -> Iterator[list[int]]:
        for content_type in self._json if channel == "final" else [[]]:
            yield [self._channel, *self._encode(channel), *content_type, self._message]

    def call(self, recipient: str) -> Iterator[list[int]]:
        to = self._encode(f" to={recipient}")
        # Built-in tools are called while reasoning.
        channels = (
            ("commentary",) if recipient.startswith(FUNCTIONS) else ("commentary", "analysis")
        )
        types = [[], self._encode(" code")] if recipient in TEXT_TOOLS else self._json
        for name in channels:
            channel = [self._channel, *self._encode(name)]
            for content_type in types:
                yield [*channel, *to, *content_type, self._message]
                yield [*to, *channel, *content_type, self._message]
