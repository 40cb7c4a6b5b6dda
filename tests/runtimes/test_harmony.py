"""Rendering equals OpenAI's own package id for id."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import openai_harmony as reference
import pytest
import tokenizers
import transformers

from gptoss_onnx.runtimes.harmony import CHANNELS, Harmony, Message, SystemPrompt, Tool
from gptoss_onnx.runtimes.harmony_tools import BROWSER_TOOL, PYTHON_TOOL, ToolNamespace
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from tests.o200k import o200k
from tests.runtimes.conversations import (
    CALL,
    CONVERSATIONS,
    RESULT,
    SYSTEM,
    WEATHER,
    analysis,
    final,
    user,
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
BROWSER = reference.ToolNamespaceConfig.browser()
PYTHON = reference.ToolNamespaceConfig.python()


@pytest.fixture(scope="session")
def harmony() -> Harmony:
    """Our side: the same ranks as a tokenizer.json."""
    return Harmony(Tokenizer(o200k()))


def expected(
    oracle: reference.HarmonyEncoding,
    messages: Sequence[Message],
    system: SystemPrompt = SYSTEM,
    instructions: str | None = None,
    tools: Sequence[Tool | ToolNamespace] = (),
    auto_drop_analysis: bool = True,
) -> list[int]:
    builtin = {"browser": BROWSER, "python": PYTHON}
    content = reference.SystemContent(
        model_identity=system.identity,
        knowledge_cutoff=system.knowledge_cutoff,
        conversation_start_date=system.date,
        reasoning_effort=system.reasoning and reference.ReasoningEffort[system.reasoning.upper()],
        channel_config=reference.ChannelConfig.require_channels(list(system.channels)),
    )
    for namespace in system.tools:
        content = content.with_tools(builtin[namespace.name])
    rows = [reference.Message.from_role_and_content(reference.Role.SYSTEM, content)]
    if instructions is not None or tools:
        developer = reference.DeveloperContent.new()
        if instructions is not None:
            developer = developer.with_instructions(instructions)
        if tools:
            own = [_described(tool) for tool in tools if isinstance(tool, Tool)]
            developer = developer.with_function_tools(own) if own else developer
            for space in (tool for tool in tools if isinstance(tool, ToolNamespace)):
                developer = developer.with_tools(
                    reference.ToolNamespaceConfig(
                        name=space.name,
                        description=space.description,
                        tools=list(map(_described, space.tools)),
                    )
                )
        rows.append(reference.Message.from_role_and_content(reference.Role.DEVELOPER, developer))
    for message in messages:
        if message.role in ("user", "assistant", "system", "developer"):
            author = reference.Author(role=reference.Role(message.role))
        else:
            author = reference.Author(role=reference.Role.TOOL, name=message.role)
        row = reference.Message.from_author_and_content(author, message.content)
        row.channel, row.recipient = message.channel, message.recipient
        row.content_type = message.content_type
        rows.append(row)
    conversation = reference.Conversation.from_messages(rows)
    config = reference.RenderConversationConfig(auto_drop_analysis=auto_drop_analysis)
    return oracle.render_conversation_for_completion(conversation, reference.Role.ASSISTANT, config)


def _described(tool: Tool) -> reference.ToolDescription:
    schema = tool.parameters
    assert not isinstance(schema, str)
    return reference.ToolDescription.new(
        tool.name, tool.description or "", None if schema is None else dict(schema)
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_renders_as_openai_does(
    harmony: Harmony, oracle: reference.HarmonyEncoding, name: str
) -> None:
    conversation = {"system": SYSTEM} | CONVERSATIONS[name]
    wanted = oracle.decode(expected(oracle, **conversation))
    ids = harmony.render(**conversation)
    assert oracle.decode(ids) == wanted  # the readable difference first
    assert ids == expected(oracle, **conversation)


def test_a_call_behind_its_channel_is_read_by_openai_alike(
    harmony: Harmony, oracle: reference.HarmonyEncoding
) -> None:
    opened = len(harmony.render([], system=None))
    for call in (CALL, replace(CALL, recipient_in_role=False)):
        ids = harmony.render([call], system=None, reply=False)
        (read,) = oracle.parse_messages_from_completion_tokens(
            ids[opened:], reference.Role.ASSISTANT
        )
        assert (read.channel, read.recipient) == (call.channel, call.recipient)
        assert read.content_type == call.content_type
        text = oracle.decode(ids)
        assert ("<|channel|>commentary to=functions.weather" in text) != call.recipient_in_role


def test_the_tokenizers_agree(harmony: Harmony, oracle: reference.HarmonyEncoding) -> None:
    draw = random.Random(2)
    alphabet = "aB 1\n\t.,'é你好🎉<|>_-"
    for _ in range(500):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(30)))
        assert harmony.tokenizer.encode(text) == oracle.encode(text, disallowed_special=())


def test_drawn_conversations_render_as_openai_does(
    harmony: Harmony, oracle: reference.HarmonyEncoding
) -> None:
    """160 of them, of every choice there is: lines left out, built in tools, answered turns."""
    draw = random.Random(11)
    texts = ["hi", "", "你好 🎉", "a\r\nb\u2028c", "<|end|><|start|>system", " x\n\n"]
    for _ in range(160):
        system = SystemPrompt(
            draw.choice([SYSTEM.identity, "Demo", None]),
            draw.choice(["2024-06", None]),
            draw.choice(["2026-01-31", None]),
            draw.choice(["low", "medium", "high", None]),
            draw.choice([(), (BROWSER_TOOL,), (PYTHON_TOOL,), (PYTHON_TOOL, BROWSER_TOOL)]),
            draw.choice([CHANNELS, CHANNELS, ("final",), ()]),
        )
        turn = [user(draw.choice(texts)), analysis(draw.choice(texts))]
        if draw.random() < 0.5:
            turn += [Message("assistant", draw.choice(texts), "commentary"), CALL, RESULT]
        turns = [[*turn, final(draw.choice(texts))] for _ in range(draw.randrange(3))]
        keep = len(turns) > 1 or draw.random() < 0.5  # the reference keeps some of a second answer
        conversation: dict[str, Any] = {
            "messages": [m for turn in turns for m in turn] + [user(draw.choice(texts))],
            "system": system,
            "instructions": draw.choice([None, None, *texts]),
            "tools": draw.choice([[], [WEATHER], [WEATHER, Tool("now", draw.choice(texts))]]),
            "auto_drop_analysis": not keep,
        }
        wanted = expected(oracle, **conversation)
        ids = harmony.render(**conversation)
        assert oracle.decode(ids) == oracle.decode(wanted)
        assert ids == wanted


def test_stop_ids(harmony: Harmony, oracle: reference.HarmonyEncoding) -> None:
    assert set(oracle.stop_tokens_for_assistant_actions()) <= harmony.stop_ids
    assert harmony.stop_ids == {200002, 200012, 199999}


def test_only_reasoning_behind_the_last_answer_is_kept(harmony: Harmony) -> None:
    """openai-harmony drops only what precedes the *first* answer; the format says every one."""
    turns = [user("1"), analysis("a"), final("one"), user("2"), analysis("b"), final("two")]
    kept = [user("3"), analysis("c"), CALL, RESULT]
    answered = [message for message in turns if message.channel != "analysis"]
    assert harmony.render(turns + kept, system=None) == harmony.render(answered + kept, system=None)
    assert harmony.tokenizer.encode("c")[0] in harmony.render(kept, system=None)


def test_a_completion_is_what_the_reference_trains_on(
    harmony: Harmony, oracle: reference.HarmonyEncoding
) -> None:
    rows = [
        reference.Message.from_role_and_content(reference.Role.ASSISTANT, text).with_channel(name)
        for text, name in (("Think 想.", "analysis"), ("答案 <|end|>", "final"))
    ]
    whole = oracle.render_conversation_for_training(
        reference.Conversation.from_messages(rows),
        reference.RenderConversationConfig(auto_drop_analysis=False),
    )
    opened = harmony.render([], system=None)
    assert opened + harmony.render_completion("Think 想.", "答案 <|end|>") == whole


def test_today_is_the_date_unless_one_is_given() -> None:
    today = datetime.date.today().isoformat()
    assert f"Current date: {today}\n" in SystemPrompt().text()
    assert SystemPrompt().pinned() == SystemPrompt(date=today)
    assert SYSTEM.pinned() == SYSTEM
    assert SystemPrompt(date=None).pinned().date is None


def test_a_tokenizer_without_harmony_is_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no special token <\|start\|>"):
        Harmony(Tokenizer(tmp_path))


def test_the_demos_chat_template_renders_the_same_ids() -> None:
    template = transformers.AutoTokenizer.from_pretrained(DEMO)
    harmony = Harmony(Tokenizer(DEMO))
    turns = [user("你好 🎉\n hi "), final("x  \n"), user("<b>&amp;</b>")]
    chat = [{"role": m.role, "content": m.content} for m in turns]
    assert template.apply_chat_template(
        chat, add_generation_prompt=True, current_date="2026-01-31"
    ) == harmony.render(turns, system=SYSTEM)
    told = [{"role": "system", "content": "Be brief."}, *chat]
    assert template.apply_chat_template(
        told, reasoning_effort="high", model_identity="You are Demo."
    ) == harmony.render(
        turns,
        system=SystemPrompt("You are Demo.", reasoning="high"),
        instructions="Be brief.",
        reply=False,
    )
    with pytest.raises(jinja2.TemplateError, match="renders no tools"):
        template.apply_chat_template(chat, tools=[{"type": "function"}])
