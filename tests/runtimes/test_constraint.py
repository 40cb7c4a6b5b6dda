"""A reply that is held to a form: which tokens may come, whatever came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from gptoss_onnx.runtimes.constraint import Form, Mask, Matcher, ReplyConstraint, Vocabulary
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.reply import read_reply
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.runtimes.conftest import VOCAB, write_tokenizer

F, G = "functions.f", "functions.fg"
TO_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm. 你好🎉<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
JSON_FINAL = "<|channel|>final <|constrain|>json<|message|>"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """One token a byte, harmony's, and ids beyond them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Vocabulary(Harmony(Tokenizer(folder)), VOCAB)


class OneOf:
    """A `Matcher` of a few texts."""

    def __init__(self, vocabulary: Vocabulary, texts: Iterable[str]) -> None:
        self._vocabulary = vocabulary
        self._left = [text.encode() for text in texts]

    @property
    def complete(self) -> bool:
        return b"" in self._left

    def mask(self) -> Mask:
        # One token a byte, and its id is the byte.
        return self._vocabulary.only(text[0] for text in self._left if text)

    def accept(self, token: int) -> bool:
        self._left = [text[1:] for text in self._left if text[:1] == bytes([token])]
        return bool(self._left)


def constraint(vocabulary: Vocabulary, form: Form, stop_ids: Iterable[int] = ()) -> ReplyConstraint:
    stops = set(stop_ids) or Harmony(vocabulary.tokenizer).stop_ids
    return ReplyConstraint(vocabulary, form, stops)


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    ids: list[int] = []
    for place, part in enumerate(text.replace("|>", "<|").split("<|")):
        tokenizer = vocabulary.tokenizer
        ids += [tokenizer.special(f"<|{part}|>")] if place % 2 else tokenizer.encode(part)
    return ids


def refused(vocabulary: Vocabulary, held: ReplyConstraint, text: str) -> str | None:
    """What of `text` is left where it leaves the form; None when all of it may come."""
    ids = ids_of(vocabulary, text)
    for place, token in enumerate(ids):
        mask = held.allowed()
        if mask is None:
            raise AssertionError(f"lifted before {vocabulary.tokenizer.show(ids[place:])}")
        assert mask.shape == (vocabulary.size,) and mask.any()
        if not mask[token]:
            return vocabulary.tokenizer.show(ids[place:])
        held.accept(token)
    return None


def forms(vocabulary: Vocabulary) -> dict[str, Form]:
    def make() -> OneOf:
        return OneOf(vocabulary, ("{}", '{"a":1}'))

    return {
        "none": Form(),
        "free": Form({F: None}),
        "strict": Form({F: make, G: None}),
        "answer": Form({}, make),
        "answer or call": Form({F: make}, make),
        "required": Form({F: make, G: make}, must_call=True),
        "named": Form({F: make}, must_call=True, several=False),
        "built in": Form({"python": None, "browser.open": make}, must_call=True),
    }


CALLS = (
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.f json<|message|>",
    "<|channel|>commentary to=functions.f<|message|>",
    " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.f<|channel|>commentary<|constrain|>json<|message|>",
    " to=functions.f<|channel|>commentary json<|message|>",
    " to=functions.f<|channel|>commentary<|message|>",
)
MAY: list[tuple[str, str]] = [
    ("none", f"{THOUGHT}{THOUGHT}{PREAMBLE}{FINAL}Hi 你好🎉<|return|>"),
    ("none", f"{FINAL}Hi<|end|><|return|>"),
    ("none", f"{FINAL}<|endoftext|>"),
    ("none", "<|channel|>commentary<|message|>That is all.<|return|>"),
    ("free", f"{TO_F}city=Ulm<|call|>"),
    ("free", f"{THOUGHT}{FINAL}Hi<|return|>"),
    ("strict", f"{THOUGHT}{TO_F}" + '{"a":1}<|call|>'),
    ("strict", "<|channel|>commentary to=functions.fg<|message|>city=Ulm<|call|>"),
    ("strict", f"{FINAL}Hi<|return|>"),
    ("answer", f"{THOUGHT}{THOUGHT}{PREAMBLE}{JSON_FINAL}" + "{}<|return|>"),
    ("answer", f"{FINAL}" + '{"a":1}<|end|><|endoftext|>'),
    ("answer", "<|channel|>final json<|message|>{}<|return|>"),
    ("answer or call", f"{THOUGHT}{TO_F}" + "{}<|call|>"),
    ("required", f"{THOUGHT}{PREAMBLE}{TO_F}" + "{}<|call|>"),
    (
        "required",
        f"{PREAMBLE}{THOUGHT}{TO_F}" + "{}<|end|><|start|>assistant" + TO_F + "{}<|call|>",
    ),
    ("required", f"{TO_F}" + "{}<|end|><|call|>"),
    *(("named", header + "{}<|call|>") for header in CALLS),
    ("built in", "<|channel|>analysis to=python code<|message|>print(1)<|call|>"),
    ("built in", " to=browser.open<|channel|>analysis<|constrain|>json<|message|>{}<|call|>"),
]
# What of the reply may not come.
MAY_NOT: list[tuple[str, str, str]] = [
    ("none", f"{THOUGHT}", TO_F.removeprefix("<|channel|>commentary")),
    ("none", "", " to=functions.f"),
    ("none", "", "<|return|>"),
    ("none", f"{FINAL}Hi", "<|call|>"),
    ("none", f"{FINAL}Hi", "<|channel|>"),
    ("none", f"{FINAL}Hi", "<|start|>"),
    ("none", f"{FINAL}Hi<|end|>", "<|start|>"),
    ("none", f"{FINAL}Hi", "<|startoftext|>"),
    ("free", TO_F, "<|call|>"),
    ("free", TO_F + " \n", "<|end|>"),
    ("strict", TO_F, "city=Ulm<|call|>"),
    ("strict", TO_F, "<|call|>"),
    ("strict", TO_F + "{", "<|call|>"),
    ("strict", TO_F + "{}", "<|return|>"),
    ("strict", TO_F + "{}", " "),
    ("strict", "<|channel|>commentary to=functions.", "x<|message|>"),
    ("answer", "<|channel|>analysis<|message|>Hm.", "<|return|>"),
    ("answer", "<|channel|>commentary<|message|>Hm.", "<|return|>"),
    ("answer", "<|channel|>commentary", " to=functions.f<|message|>"),
    ("answer", FINAL, "Hi"),
    ("answer", FINAL, "<|return|>"),
    ("answer", FINAL, "<|end|>"),
    ("answer", FINAL + '{"a":1}', "}"),
    ("required", "<|channel|>", "final<|message|>"),
    ("required", "<|channel|>analysis<|message|>Hm.", "<|return|>"),
    ("required", "<|channel|>analysis<|message|>Hm.", "<|call|>"),
    ("required", f"{THOUGHT}<|channel|>", "analysis<|message|>"),
    ("required", f"{THOUGHT}{PREAMBLE}<|channel|>commentary", "<|message|>"),
    ("required", TO_F + "{}<|end|><|start|>assistant<|channel|>", "analysis<|message|>"),
    ("named", "<|channel|>commentary to=functions.f", "g<|message|>"),
    ("named", TO_F + "{}", "<|end|>"),
    ("named", "<|channel|>analysis<|message|>Hm.<|end|>", "<|channel|>"),
    ("named", "<|channel|>analysis<|message|>Hm.<|end|><|start|>", "user"),
    ("built in", "<|channel|>analysis to=python code<|message|>x", "<|return|>"),
    ("built in", "<|channel|>analysis to=python code<|message|>", "<|call|>"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text"), MAY)
def test_what_may_come(vocabulary: Vocabulary, form: str, text: str) -> None:
    held = constraint(vocabulary, forms(vocabulary)[form])
    assert refused(vocabulary, held, text) is None
    assert held.allowed() is None  # the reply is over


@pytest.mark.parametrize(("form", "before", "text"), MAY_NOT)
def test_what_may_not_come(vocabulary: Vocabulary, form: str, before: str, text: str) -> None:
    held = constraint(vocabulary, forms(vocabulary)[form])
    assert refused(vocabulary, held, before + text) == text
    held.accept(ids_of(vocabulary, text)[0])  # a sampler that was scripted
    assert held.allowed() is None


def test_content_is_free_but_for_marks(vocabulary: Vocabulary) -> None:
    special = vocabulary.tokenizer.special
    held = constraint(vocabulary, forms(vocabulary)["required"])
    assert refused(vocabulary, held, "<|channel|>analysis<|message|>Hm") is None
    mask = held.allowed()
    assert mask is not None
    assert mask[:256].all()
    assert np.flatnonzero(mask[256:]).tolist() == [special("<|end|>") - 256]
    held.accept(ord("."))
    assert held.allowed() is mask  # made once
    held = constraint(vocabulary, forms(vocabulary)["none"])
    assert refused(vocabulary, held, "<|channel|>analysis<|message|>Hm") is None
    mask = held.allowed()
    assert mask is not None
    names = ("endoftext", "return", "end")
    assert np.flatnonzero(mask[256:]).tolist() == [special(f"<|{n}|>") - 256 for n in names]


def somewhere(vocabulary: Vocabulary, form: str, seed: int) -> ReplyConstraint:
    """At some place within the form, at its beginning, or behind its end."""
    chance = np.random.default_rng(seed)
    held = constraint(vocabulary, forms(vocabulary)[form])
    for _ in range(int(chance.integers(60))):
        mask = held.allowed()
        if mask is None:
            break
        held.accept(int(chance.choice(np.flatnonzero(mask))))
    return held


@pytest.mark.parametrize("form", ["none", "free", "answer", "required", "built in"])
def test_no_token_is_an_error(vocabulary: Vocabulary, form: str) -> None:
    for seed in range(60):
        for token in (seed * 4, -1, -VOCAB, VOCAB, 1 << 40, -(1 << 70), 257, 258, 262):
            held = somewhere(vocabulary, form, seed)
            for _ in range(2):
                held.accept(token)
                mask = held.allowed()
                assert mask is None or mask.any()


@pytest.mark.parametrize(
    "form", ["none", "strict", "answer", "answer or call", "required", "named"]
)
def test_a_random_model_keeps_the_form(vocabulary: Vocabulary, form: str) -> None:
    tokenizer, wanted = vocabulary.tokenizer, forms(vocabulary)[form]
    stops = Harmony(tokenizer).stop_ids
    for seed in range(40):
        random = np.random.default_rng(seed)
        held, ids = constraint(vocabulary, wanted), [0]
        bonus = np.where(vocabulary.text, 0.0, 3.0)
        while ids[-1] not in stops:
            mask = held.allowed()
            assert mask is not None and len(ids) < 3000
            logits = np.where(mask, random.gumbel(size=VOCAB) + bonus, -np.inf)
            ids.append(int(logits.argmax()))
            held.accept(ids[-1])
        reply = read_reply(tokenizer, ids[1:], "stop", ["f", "fg"])
        answers = [m for m in reply.said if m.channel == "final"]
        assert len(answers) <= 1 and not (answers and reply.calls)
        for call in reply.calls:
            make = wanted.calls[call.name]
            assert make is None or call.arguments in ("{}", '{"a":1}')
        if wanted.answer:
            assert reply.calls or answers[0].content in ("{}", '{"a":1}')
        if wanted.must_call:
            assert reply.calls and len(reply.said) <= 2 + len(reply.calls)
        if not wanted.several:
            assert len(reply.calls) == 1


def test_a_stop_of_the_packages_own(vocabulary: Vocabulary) -> None:
    """Any token can be one: it ends the reply only where the form may end."""
    stop = ord("x")
    held = constraint(vocabulary, forms(vocabulary)["answer"], [stop])
    assert refused(vocabulary, held, "<|channel|>analysis<|message|>Hx") == "x"
    held = constraint(vocabulary, forms(vocabulary)["answer"], [stop])
    assert refused(vocabulary, held, f"{FINAL}" + "{}x") is None
    held = constraint(vocabulary, forms(vocabulary)["required"], [stop])
    assert refused(vocabulary, held, f"{TO_F}" + "{}x") is None


def test_where_a_message_ends_the_reply_nothing_comes_before_what_is_asked(
    vocabulary: Vocabulary,
) -> None:
    end = vocabulary.tokenizer.special("<|end|>")
    for form in ("answer", "required"):
        held = constraint(vocabulary, forms(vocabulary)[form], [end])
        assert refused(vocabulary, held, THOUGHT) is not None
    held = constraint(vocabulary, forms(vocabulary)["none"], [end])
    assert refused(vocabulary, held, "<|channel|>analysis<|message|>Hm<|end|>") is None


class GivesUp(OneOf):
    """A `Matcher` that cannot go on behind a token it let through."""

    def accept(self, token: int) -> bool:
        self._left = []
        return False


@pytest.mark.parametrize("matcher", [lambda v: OneOf(v, ()), lambda v: GivesUp(v, ("{}",))])
def test_a_matcher_that_gives_up_is_an_error(
    vocabulary: Vocabulary, matcher: Callable[[Vocabulary], Matcher]
) -> None:
    held = constraint(vocabulary, Form({}, lambda: matcher(vocabulary)))
    assert refused(vocabulary, held, FINAL) is None
    if matcher(vocabulary).mask().any():
        assert refused(vocabulary, held, "{") is None
    for _ in range(2):
        with pytest.raises(UserError, match="make it simpler"):
            held.allowed()
    held.accept(ord("x"))
    held.accept(257)
    assert held.allowed() is None


def test_every_reply_has_a_matcher_of_its_own(vocabulary: Vocabulary) -> None:
    form = forms(vocabulary)["required"]
    two = TO_F + '{"a":1}<|end|><|start|>assistant' + TO_F + '{"a":1}<|call|>'
    for _ in range(2):
        assert refused(vocabulary, constraint(vocabulary, form), two) is None


def test_a_tokenizer_without_the_marks_of_calls(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    text = text.replace("<|constrain|>", "<|x|>").replace("<|call|>", "<|y|>")
    (tmp_path / "tokenizer.json").write_text(text)
    vocabulary = Vocabulary(Harmony(Tokenizer(tmp_path)), VOCAB)
    held = constraint(vocabulary, forms(vocabulary)["named"])
    text = "<|channel|>commentary to=functions.f json<|message|>{}<|return|>"
    assert refused(vocabulary, held, text) is None
