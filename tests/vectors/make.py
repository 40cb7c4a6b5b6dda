"""Write the shared test vectors: what every language's runtime must do, as this one does it.

    python -m tests.vectors.make

Inputs and outputs are plain JSON, so a runtime in another language reads the files and needs no
Python. tests/vectors/README.md says what each field means.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.generation import Options, generate
from gptoss_onnx.runtimes.harmony import Harmony, Message, SystemPrompt
from gptoss_onnx.runtimes.harmony_tools import (
    BROWSER_TOOL,
    PYTHON_TOOL,
    ToolNamespace,
    in_namespaces,
    render_tools,
)
from gptoss_onnx.runtimes.json_values import dump, read_json
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.reply import ToolCall, read_reply
from gptoss_onnx.runtimes.sampling import Sampler, Sampling, SplitMix64
from gptoss_onnx.runtimes.session import Session
from gptoss_onnx.runtimes.stream_parser import Event, StreamParser
from gptoss_onnx.runtimes.tokenizer import Tokenizer
from gptoss_onnx.runtimes.tool_schema import typescript
from tests.runtimes.conversations import CONVERSATIONS, OTHERS
from tests.runtimes.replies import LONG, REPLIES, STOP_IDS, TOOLS
from tests.runtimes.schemas import NUMBERS, make_schema
from tests.runtimes.test_reply import ARGUMENTS, FOLLOWED
from tests.runtimes.test_stream_parser import encode, random_reply
from tests.runtimes.test_tokenizer import TEXTS
from tests.runtimes.tool_cases import REFUSED, SYSTEMS, make_system, make_tool
from tests.runtimes.tool_cases import TOOLS as TOOL_CASES
from tests.vectors.session import session_vectors
from tests.vectors.tokenizer_files import pieces, tokenizer_files

FOLDER = Path(__file__).parent
DEMO = FOLDER.parents[1] / "demo"
DATE = "2026-01-01"
Json = dict[str, Any]

MORE_TEXTS = [
    "Hello world. HELLO World hElLo wORLD iPhone ReLU",
    "I'm you're WE'VE he'll She'd it's IT'S 't d'être rock'n'roll",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F ½ ② Ⅷ ٣٤٥",
    "a/b//c;\n//d\r\n\r\n/e\n \n  f   \n\n",
    "tab\tand\vvertical\fform\x1cfile\x1funit\x85next\u2028line\u2029paragraph",
    "spaces\u00a0\u1680\u2003\u202f\u205f\u3000here  and\ufeff \ufeffmarks\u200b\u200d \u2060",
    "!\x85! .\ufeff. \x1c!\u2028?",
    "end in space ",
    "   ",
    "\n",
    "\u00e9 e\u0301 \u1e9b\u0323 ﬁ ǅ ʰ ª ª\u0300",
    "日本語のテキスト、한국어 텍스트, Привет мир, مرحبا, שלום, नमस्ते, ไทย",
    "print(f'{x!r:>10}')  # ->   [1, 2]\n\tdef f(a, *, b=None) -> dict[str, int]: ...",
    "os.path.join(os.sep, 'a') == '/a'",
    "𝒳𝓎 𐐀𐐨 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ©️ ☃",
    "<|start|", "<|start|><|start|>", "x<|channel|>y", "<|reserved_200000|>",
    "a" * 300, "ab " * 100, "!" * 70, "\ufffd?",
]  # fmt: skip

SAMPLINGS: list[Json] = [
    {"do_sample": False},
    {"temperature": 0},
    {"repetition_penalty": 1.3, "do_sample": False},
    {},
    {"temperature": 0.7},
    {"temperature": 3.0, "seed": 2**64 - 1},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40, "temperature": 0.8, "top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 1.5},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.9, "top_k": 50, "temperature": 1.2, "repetition_penalty": 1.1},
    {"repetition_penalty": 0.8},
]

# Asked in one conversation each, the last with an earlier turn and instructions.
QUESTIONS = [
    "What does os.path.join do?",
    "os.path.join 是做什么的？",
    "What does os.listdir do?",
    "What does json.loads do?",
    "json.dumps 是做什么的？",
    "What does math.sqrt do?",
    "shutil.copy 是做什么的？",
    "What does random.choice do?",
    "What does time.sleep do?",
    "os.mkdir 是做什么的？",
]


def tokenization() -> Json:
    tokenizer = Tokenizer(DEMO)
    draw = random.Random(5)
    streams = [tokenizer.encode("naïve 你好 👩‍👩‍👧‍👦 🎉"), [*range(4080, 4100), -1, 5000]]
    streams.append(tokenizer.encode("\ufeffa byte order mark is a character"))
    # Bytes in any order: most are no UTF-8.
    streams += [[draw.randrange(256) for _ in range(40)] for _ in range(12)]
    return {
        "tokenizer": "demo/tokenizer.json",
        "encode": [{"text": t, "ids": tokenizer.encode(t)} for t in [*TEXTS, *MORE_TEXTS]],
        "decode": [
            {"ids": ids, "text": tokenizer.decode(ids), "pieces": pieces(tokenizer, ids)}
            for ids in streams
        ],
    }


def harmony() -> Json:
    render = Harmony(Tokenizer(DEMO)).render
    cases = []
    for name, given in (CONVERSATIONS | OTHERS).items():
        arguments = {"system": SystemPrompt(date=DATE), **given}
        tools = [_in_text(tool) for tool in given.get("tools", ())]
        arguments["tools"] = tools
        for reply in (True, False) if name in ("question", "call") else (True,):
            ids = render(**arguments, reply=reply)
            cases.append({
                "name": name,
                "messages": [_message(m) for m in arguments["messages"]],
                "system": asdict(arguments["system"]),
                "instructions": arguments.get("instructions"),
                "tools": [asdict(tool) for tool in tools],
                "auto_drop_analysis": arguments.get("auto_drop_analysis", True),
                "reply": reply,
                "ids": ids,
            })  # fmt: skip
    cases.append({
        "name": "no system message",
        "messages": [{"role": "user", "content": "hi"}], "system": None, "instructions": None,
        "tools": [], "auto_drop_analysis": True, "reply": True,
        "ids": render([Message("user", "hi")], system=None),
    })  # fmt: skip
    return {"tokenizer": "demo/tokenizer.json", "render": cases}


def _in_text(tool: Any) -> Any:
    """With its schema as text: many languages cannot tell 1.0 from 1, some sort keys."""
    if isinstance(tool, ToolNamespace):
        return replace(tool, tools=list(map(_in_text, tool.tools)))
    schema = tool.parameters
    return replace(tool, parameters=None if schema is None else json.dumps(schema))


def _message(message: Message) -> Json:
    return {key: value for key, value in asdict(message).items() if value not in (None, False)}


def tools() -> Json:
    draw = random.Random(12)
    schemas = [make_schema(draw) for _ in range(320)]
    return {
        "declared": [
            {"name": name, "tools": given, "text": _declared(given)}
            for name, given in TOOL_CASES.items()
        ],
        "refused": [{"name": name, "tools": given} for name, given in REFUSED.items()],
        "systems": [
            {"name": name, **given, "text": _system(given)} for name, given in SYSTEMS.items()
        ],
        "types": [{"schema": s, "type": typescript(read_json(s, "schema"))} for s in schemas],
        "numbers": [{"number": n, "text": dump(read_json(n, "number"))} for n in NUMBERS],
    }


def _declared(given: Sequence[Json]) -> str:
    return render_tools(in_namespaces(list(map(make_tool, given))))


def _system(given: Json) -> str:
    system = make_system(given, [BROWSER_TOOL, PYTHON_TOOL])
    return system.text(has_functions=given.get("has_functions", False))


def stream_parse() -> Json:
    tokenizer = Tokenizer(DEMO)
    texts = {name: text for name, (text, _) in REPLIES.items()}
    texts["words next to a channel's name"] = "<|channel|>final你好" + LONG
    texts["emoji without a header"] = "🎉" * 270
    texts["odd white space in a header"] = (
        "<|channel|>final\u3000to=functions.f\x1fjson\ufeff<|message|>x"
    )
    cases = []
    for name, text in texts.items():
        for by_byte in (False, True) if len(text) < len(LONG) else (False,):
            ids = encode(tokenizer, text, by_byte=by_byte)
            case = _parsed(tokenizer, f"{name}, by byte" if by_byte else name, ids)
            # Every point at which the stream may end.
            if len(ids) <= 60 and not by_byte:
                case["cuts"] = [
                    _parsed(tokenizer, "", ids[:n])["messages"] for n in range(len(ids))
                ]
            cases.append(case)
    spelled = tokenizer.encode("<|channel|>analysis<|message|>Hm <|end|>")
    cases.append(_parsed(tokenizer, "marks in letters", spelled))
    stopped = [*encode(tokenizer, "<|channel|>final<|message|>Hi"), min(STOP_IDS)]
    cases.append(_parsed(tokenizer, "any token as a stop", stopped))
    draw = random.Random(4)
    for number in range(60):
        cases.append(_parsed(tokenizer, f"random {number}", random_reply(tokenizer, draw)))
    return {
        "tokenizer": "demo/tokenizer.json",
        "tools": list(TOOLS),
        "stop_ids": sorted(STOP_IDS),
        "replies": cases,
    }


def _parsed(tokenizer: Tokenizer, name: str, ids: list[int]) -> Json:
    parser = StreamParser(tokenizer, TOOLS, STOP_IDS)
    events = [[_event(e) for e in parser.feed(token)] for token in ids]
    events.append([_event(e) for e in parser.finish()])
    found = [_message(message) for message in parser.messages]
    return {"name": name, "ids": ids, "events": events, "messages": found}


def _event(event: Event) -> list[Any]:
    called = [] if event.recipient is None else [event.recipient]
    return [event.kind, event.text, event.message, *called]


def reply() -> Json:
    """Replies in a conversation: what is kept of them, and what the model is shown next."""
    tokenizer = Tokenizer(DEMO)
    harmony = Harmony(tokenizer)
    cases = []
    for name, (text, reason, behind) in FOLLOWED.items():
        ids = encode(tokenizer, text)
        found = read_reply(tokenizer, ids, reason, TOOLS, STOP_IDS)
        messages = [Message("user", "Weather?"), *found.messages, *behind]
        next_ids = harmony.render(messages, system=None)
        cases.append({
            "name": name,
            "ids": ids,
            "reason": reason,
            "text": found.text,
            "finish_reason": found.finish_reason,
            "cut_in": found.cut_in,
            "messages": [_message(m) for m in found.messages],
            "calls": [_call(call) for call in found.calls],
            "then": [_message(m) for m in behind],
            "next": tokenizer.show(next_ids),
            "next_ids": next_ids,
        })  # fmt: skip
    return {
        "tokenizer": "demo/tokenizer.json",
        "tools": list(TOOLS),
        "stop_ids": sorted(STOP_IDS),
        "replies": cases,
        "arguments": [
            {"name": name, "text": text, "good": ToolCall(name, text).error is None}
            for name, text in ARGUMENTS
        ],
    }


def _call(call: ToolCall) -> Json:
    return asdict(call) | {"error": call.error}


def sampling() -> Json:
    generators = []
    for seed in (0, 1, 1234567, 2**63 + 5, 2**64 - 1):
        bits, uniform = SplitMix64(seed), SplitMix64(seed)
        generators.append({
            "seed": str(seed),
            "next": [f"{bits.next():016x}" for _ in range(4)],
            "uniform": [uniform.uniform() for _ in range(4)],
        })  # fmt: skip
    draws = []
    for size, seed, scale in ((40, 3, 8.0), (4096, 4, 12.0), (20000, 5, 4.0)):
        for settings in SAMPLINGS:
            draws.append(_draws({"size": size, "seed": str(seed), "scale": scale}, settings))
    for values in ([1.0, 2.0, 2.0, 2.0, 0.5], [0.0] * 8, [-3.0, -1.0, -1.0, -2.0]):
        for settings in SAMPLINGS:
            draws.append(_draws({"values": values}, settings))
    return {"splitmix64": generators, "draws": draws}


def _draws(logits: Json, settings: Json) -> Json:
    chosen = {"seed": 42, **settings}
    sampler = Sampler(Sampling(**chosen), [1, 2])
    scores = make_logits(logits)
    tokens = [sampler.next(scores) for _ in range(12)]
    shown = {**chosen, "seed": str(chosen["seed"])}
    return {"logits": logits, "sampling": shown, "prompt": [1, 2], "tokens": tokens}


def make_logits(given: Json) -> NDArray[np.float32]:
    """`values`, or `size` draws of SplitMix64: multiples of 2^-8, so some are equal."""
    if "values" in given:
        return np.array(given["values"], np.float32)
    random_bits = SplitMix64(int(given["seed"]))
    scale = given["scale"]
    draws = [random_bits.uniform() for _ in range(given["size"])]
    return np.array([np.floor(u * scale * 256) / 256 for u in draws], np.float32)


def answers(package: Package) -> Json:
    """Greedy replies: the same for every quantization that keeps the demo's answers."""
    conversations: list[Json] = [{"messages": [Message("user", q)]} for q in QUESTIONS]
    conversations.append({
        "messages": [
            Message("user", QUESTIONS[3]),
            Message("assistant", "Look up json.loads.", "analysis"),
            Message("assistant", "Deserialize a JSON document.", "final"),
            Message("user", QUESTIONS[0]),
        ],
        "instructions": "Answer briefly.",
    })  # fmt: skip
    # Short enough for a GPU that is computed in software.
    conversations.append({"messages": [Message("user", QUESTIONS[5])], "system": None})
    session, cases = Session(package), []
    for given in conversations:
        prompt = package.harmony.render(**{"system": SystemPrompt(date=DATE), **given})
        reply = list(generate(session, prompt, Options(stop_ids=package.harmony.stop_ids)))
        parsed = _parsed(package.tokenizer, "", reply)
        cases.append({
            "messages": [_message(m) for m in given["messages"]],
            "instructions": given.get("instructions"),
            "date": None if "system" in given else DATE,
            "prompt": prompt,
            "reply": reply,
            "said": parsed["messages"],
        })  # fmt: skip
    return {"checkpoint": "demo", "answers": cases}


FILES: dict[str, Callable[[], Json]] = {
    "tokenization.json": tokenization,
    "tokenizer_files.json": tokenizer_files,
    "harmony.json": harmony,
    "tools.json": tools,
    "stream_parse.json": stream_parse,
    "reply.json": reply,
    "sampling.json": sampling,
}


# What takes a package of the demo.
OF_A_PACKAGE: dict[str, Callable[[Package], Json]] = {
    "answers.json": answers,
    "session.json": session_vectors,
}


def text(content: Json) -> str:
    """JSON with a case a line, so that a change shows in a diff."""
    fields = []
    for key, value in content.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, ensure_ascii=True) for row in value)
            fields.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            fields.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def main() -> None:
    from tests.conftest import export_demo

    for name, make in FILES.items():
        (FOLDER / name).write_text(text(make()), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        package = Package.open(export_demo(Path(folder) / "demo"))
        for name, of in OF_A_PACKAGE.items():
            (FOLDER / name).write_text(text(of(package)), encoding="utf-8")


if __name__ == "__main__":
    main()
