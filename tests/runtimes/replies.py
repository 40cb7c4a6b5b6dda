"""Replies in the format and out of it, each with the messages that it is read as."""

from __future__ import annotations

from typing import Any

from gptoss_onnx.runtimes.harmony import Message

CALL = Message(
    "assistant", '{"city":"巴黎"}', "commentary", "functions.weather", "<|constrain|>json"
)
TOOLS = ("get_weather", "files.read")
LONG = "words without a header " * 20


def reply(content: str, channel: str = "final", **fields: Any) -> Message:
    return Message("assistant", content, channel, **fields)


def call(arguments: str, name: str = "functions.f", **fields: Any) -> Message:
    return reply(arguments, "commentary", recipient=name, **fields)


STOP_IDS = {4000, 4087}  # a package's own: any token, and <|startoftext|>
JSON = {"content_type": "<|constrain|>json"}
FINAL = "<|start|>assistant<|channel|>final<|message|>Hi<|return|>"

REPLIES: dict[str, tuple[str, list[Message]]] = {
    "nothing": ("", []),
    "answer": ("<|channel|>final<|message|>Hi 你好🎉<|return|>", [reply("Hi 你好🎉")]),
    "reasoned answer": (
        f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}",
        [reply("Hm.", "analysis"), reply("Hi")],
    ),
    "cut off": ("<|channel|>final<|message|>Hi", [reply("Hi")]),
    "cut off behind a message": (
        "<|channel|>final<|message|>Hi<|end|><|start|>assistant",
        [reply("Hi")],
    ),
    "a stop of the package's own": ("<|channel|>final<|message|>Hi<|startoftext|>", [reply("Hi")]),
    "its stop behind text in the channel": (
        "<|channel|>Hi there<|startoftext|>",
        [reply("Hi there")],
    ),
    # Calls.
    "recipient in the role": (
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        [call("{}", recipient_in_role=True, **JSON)],
    ),
    "recipient in the channel": (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "no space before the type": (
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "space behind the type's mark": (
        "<|channel|>commentary to=functions.f <|constrain|> json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "plain type": (
        "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
        [call("{}", content_type="json")],
    ),
    "recipient before the channel's name": (
        "<|channel|> to=functions.f commentary<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call without a channel": (
        " to=functions.f<|message|>{}<|call|>",
        [call("{}", recipient_in_role=True)],
    ),
    "call on an unknown channel": (
        "<|channel|>tools to=functions.f<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call on the answer's channel": (
        "<|channel|>final to=functions.f<|message|>{}<|call|>",
        [call("{}")],
    ),
    "call on the reasoning's channel": (
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        [reply("print(1)", "analysis", recipient="python", content_type="code")],
    ),
    "two calls": (
        "<|channel|>commentary to=functions.f<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>commentary to=get_weather"
        '<|message|>{"a": 1}<|call|>',
        [call("{}"), call('{"a": 1}', "get_weather")],
    ),
    "preamble, then a call": (
        "<|channel|>commentary<|message|>Let me check.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f"
        "<|message|>{}<|call|>",
        [reply("Let me check.", "commentary"), call("{}")],
    ),
    "white space around arguments": (
        "<|channel|>commentary to=functions.f<|message|> \n{} <|call|>",
        [call(" \n{} ")],
    ),
    "arguments that are no JSON": (
        "<|channel|>commentary to=functions.f<|message|>city=Ulm<|call|>",
        [call("city=Ulm")],
    ),
    "marks in a recipient": (
        "to=functions.f<|end|><|channel|>commentary<|message|>{}<|call|>",
        [reply("{}", "commentary")],
    ),
    "no arguments": ("<|channel|>commentary to=functions.f<|message|><|call|>", []),
    "blank arguments": ("<|channel|>commentary to=functions.f<|message|> \n<|call|>", []),
    # Meant for nobody else.
    "to the user": ("<|channel|>final to=user<|message|>Hi<|return|>", [reply("Hi")]),
    "to all": ("<|channel|>commentary to=all<|message|>Hi<|end|>", [reply("Hi", "commentary")]),
    "empty recipient": ("<|channel|>final to=<|message|>Hi<|end|>", [reply("Hi")]),
    # Without `to=`.
    "function without to=": (
        "<|channel|>commentary functions.f <|constrain|>json<|message|>{}<|call|>",
        [call("{}", **JSON)],
    ),
    "known tool without to=": (
        "<|channel|>commentary get_weather json<|message|>{}<|call|>",
        [call("{}", "get_weather", content_type="json")],
    ),
    "known tool in its namespace": (
        "<|channel|>commentary functions.files.read<|message|>{}<|call|>",
        [call("{}", "functions.files.read")],
    ),
    "known tool with a dot": (
        "<|channel|>commentary files.read<|message|>{}<|call|>",
        [call("{}", "files.read")],
    ),
    "tool in place of the channel": (
        "<|channel|>get_weather <|constrain|>json<|message|>{}<|call|>",
        [call("{}", "get_weather", **JSON)],
    ),
    "tool in the role, without to=": (
        " functions.f<|channel|>commentary<|message|>{}<|call|>",
        [call("{}")],
    ),
    "tool as the role": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>functions.f<|channel|>commentary<|message|>{}<|call|>",
        [reply("Hm", "analysis"), call("{}")],
    ),
    "unknown tool without to=": (
        "<|channel|>commentary other json<|message|>{}<|call|>",
        [reply("{}", "commentary")],
    ),
    "function without to=, no call": (
        "<|channel|>commentary functions.f is what I use<|message|>Hi<|end|>",
        [reply("Hi", "commentary")],
    ),
    "tool in place of the channel, no call": (
        "<|channel|>get_weather<|message|>Hi<|return|>",
        [reply("Hi")],
    ),
    "function without to=, no arguments": (
        "<|channel|>commentary functions.f<|message|><|call|>",
        [],
    ),
    "JSON answer": (
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>",
        [reply("{}", **JSON)],
    ),
    "JSON commentary": (
        "<|channel|>commentary json<|message|>{}<|call|>",
        [reply("{}", "commentary", content_type="json")],
    ),
    # Without `<|message|>`.
    "arguments in the header": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"c": 1}<|call|>',
        [call('{"c": 1}', **JSON)],
    ),
    "arguments stuck to the recipient": (
        '<|channel|>commentary to=functions.f{"c": {}}<|call|>',
        [call('{"c": {}}')],
    ),
    "arguments in the role": (
        ' to=functions.f {"c": 1}<|call|>',
        [call('{"c": 1}', recipient_in_role=True)],
    ),
    "long arguments in the header": (
        f'<|channel|>commentary to=functions.f json{{"c": "{LONG}"}}<|call|>',
        [call(f'{{"c": "{LONG}"}}', content_type="json")],
    ),
    "arguments in the header, without to=": (
        '<|channel|>commentary get_weather <|constrain|>json{"c": 1}<|call|>',
        [call('{"c": 1}', "get_weather", **JSON)],
    ),
    "long arguments in the header, without to=": (
        f'<|channel|>commentary functions.f{{"c": "{LONG}"}}<|call|>',
        [call(f'{{"c": "{LONG}"}}')],
    ),
    "JSON answer without its mark": (
        '<|channel|>final json{"c": 1}<|return|>',
        [reply('{"c": 1}')],
    ),
    "JSON answer without its mark, of a type": (
        '<|channel|>final <|constrain|>json {"c": 1}<|return|>',
        [reply(' {"c": 1}')],
    ),
    "braces in an answer without its mark": (
        "<|channel|>final functions.f {takes this}<|return|>",
        [reply(" functions.f {takes this}")],
    ),
    "words before arguments in the header": (
        '<|channel|>commentary to=functions.f city={"c": 1}<|call|>',
        [],
    ),
    "code in the header": ("<|channel|>analysis to=python x = {1}<|call|>", []),
    "long code in the header": (f"<|channel|>analysis to=python {LONG}<|call|>", []),
    "call without a message": (" to=functions.f<|channel|>commentary<|call|>", []),
    "only a recipient": ("to=functions.f<|call|>", []),
    "nothing but a channel": ("<|channel|>analysis<|end|>", []),
    "cut off in the channel": ("<|message|>a<|end|><|start|>assistant<|channel|>", [reply("a")]),
    "answer without its mark": ("<|channel|>final Hi there<|return|>", [reply(" Hi there")]),
    "answer in the channel": ("<|channel|>Hi there<|return|>", [reply("Hi there")]),
    "word in the channel": ("<|channel|>Hi<|return|>", [reply("Hi")]),
    "text in the channel, then an answer": (
        f"<|channel|>We need to answer.<|end|>{FINAL}",
        [reply("We need to answer.", "analysis"), reply("Hi")],
    ),
    "text in the channel, then an answer without an end": (
        f"<|channel|>We need the final answer.{FINAL}",
        [reply("We need the final answer.", "analysis"), reply("Hi")],
    ),
    "long text in the channel, then an answer": (
        f"<|channel|>{LONG}<|end|>{FINAL}",
        [reply(LONG, "analysis"), reply("Hi")],
    ),
    "text in the channel, with its mark": (
        f"<|channel|>We need to answer.<|message|>Hm<|end|>{FINAL}",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "text without a channel, then an answer": (
        f"We need to answer.<|end|>{FINAL}",
        [reply("We need to answer.", "analysis"), reply("Hi")],
    ),
    "text in the channel behind an answer": (
        "<|channel|>final<|message|>Hi<|end|><|start|>assistant<|channel|>That was it.<|return|>",
        [reply("Hi"), reply("That was it.", "analysis")],
    ),
    "text in the channel, then a call": (
        "<|channel|>We need a tool.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        [reply("We need a tool.", "analysis"), call("{}")],
    ),
    "text in the channel, cut off": ("<|channel|>We need to", [reply("We need to", "analysis")]),
    "text in the channel that ends as a call": (
        "<|channel|>We need to<|call|>",
        [reply("We need to", "analysis")],
    ),
    # Channels.
    "no channel": ("<|message|>Hi<|return|>", [reply("Hi")]),
    "empty channel": ("<|channel|><|message|>Hi<|return|>", [reply("Hi")]),
    "unknown channel": ("<|channel|>musing<|message|>Hm<|end|>", [reply("Hm", "analysis")]),
    "unknown channel at the end": ("<|channel|>musing<|message|>Hi<|return|>", [reply("Hi")]),
    "unknown channel behind an answer": (
        "<|channel|>final<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>musing<|message|>Hm<|return|>",
        [reply("Hi"), reply("Hm", "analysis")],
    ),
    "unknown channel, cut off": ("<|channel|>musing<|message|>Hm", [reply("Hm", "analysis")]),
    "a channel's name in an unknown one's text, then an answer": (
        f"<|channel|>We need final<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "a channel's name behind an unknown one, then an answer": (
        f"<|channel|>musing commentary<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "a channel's name behind words, without its mark": (
        f" and so analysis<|message|>x<|end|>{FINAL}",
        [reply("x", "analysis"), reply("Hi")],
    ),
    "two channels": (
        "<|channel|>analysis<|channel|>final<|message|>Hi<|end|>",
        [reply("Hi", "analysis")],
    ),
    "words behind the channel": (
        "<|channel|>final I will answer<|message|>Hi<|return|>",
        [reply("Hi")],
    ),
    "two types": (
        "<|channel|>final <|constrain|>json <|constrain|>text<|message|>Hi<|return|>",
        [reply("Hi", **JSON)],
    ),
    "channel without its mark": ("analysis<|message|>Hm<|end|>", [reply("Hm", "analysis")]),
    "role and channel in one": (
        "<|message|>a<|end|><|start|>assistantanalysis<|message|>Hm<|end|>",
        [reply("a"), reply("Hm", "analysis")],
    ),
    "channel amid content": (
        "<|channel|>analysis<|message|>Hm<|channel|>final<|message|>Hi<|return|>",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "start amid content": (
        "<|channel|>analysis<|message|>Hm<|start|>assistant<|channel|>final<|message|>Hi",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "no start": (
        "<|channel|>analysis<|message|>Hm<|end|><|channel|>final<|message|>Hi<|return|>",
        [reply("Hm", "analysis"), reply("Hi")],
    ),
    "message and type amid content": (
        "<|channel|>final<|message|>a<|message|>b<|constrain|>c<|return|>",
        [reply("abc")],
    ),
    # In another's name.
    "another's odd channel amid content": (
        "<|message|>a<|start|>functions.f<|channel|>commentary<|message|>b<|channel|>odd<|message|>c",
        [reply("a"), Message("functions.f", "b", "commentary"), Message("functions.f", "c")],
    ),
    "another's role": (
        "<|message|>a<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>1",
        [reply("a"), Message("functions.f", "1", "commentary", "assistant")],
    ),
    "the user's role": (
        "<|message|>a<|end|><|start|>user<|channel|>final<|message|>Me<|end|><|return|>",
        [reply("a"), Message("user", "Me", "final")],
    ),
    "the user's role without a mark": (
        "<|message|>a<|end|><|start|>user What else?<|end|>",
        [reply("a")],
    ),
    "the user's role, long": (f"<|message|>a<|end|><|start|>user {LONG}<|end|>", [reply("a")]),
    # No header.
    "no header at all": ("Just text.<|return|>", [reply("Just text.")]),
    "no header, cut off": ("Just text.", [reply("Just text.")]),
    "no header behind a start": (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant Hi.<|return|>",
        [reply("Hm", "analysis"), reply(" Hi.")],
    ),
    "a long text without header": (LONG, [reply(LONG)]),
    "reasoning whose header never ends": (
        f"<|channel|>analysis {LONG}<|end|>",
        [reply(f" {LONG}", "analysis")],
    ),
    "a mark in a long text without header": (
        f"{LONG[:99]}<|constrain|>{LONG}",
        [reply(LONG[:99] + LONG)],
    ),
    "type without a channel": ("<|channel|><|constrain|>json<|message|>{}", [reply("{}", **JSON)]),
    "type without a role": (
        "<|message|>a<|end|><|channel|>final json<|message|>{}",
        [reply("a"), reply("{}", content_type="json")],
    ),
    "role twice": ("assistant<|channel|>final<|message|>Hi", [reply("Hi")]),
    "stops only": ("<|end|><|return|><|call|><|start|><|end|><|endoftext|>", []),
    "spaces only": (" \n<|end|>", []),
}
