"""Agents with tools, by OpenAI's client for Python over a socket: what gpt-oss's publishers check.

The model says what a script has; each case is asked by both APIs, streamed and not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gptoss_onnx.runtimes.package import Package
from tests.assistant.agent_cases import CASES, Case, Json
from tests.assistant.conftest import MODEL, Says
from tests.assistant.running import Running, running

THOUGHT = "The tool knows: 我问它。"
CONCLUSION = "Now I know 🎉."
ANSWER = "It is as you hoped: ≥ 3."
# Headers as models write them.
HEADERS = (
    "<|channel|>commentary to={0} <|constrain|>json<|message|>",
    " to={0}<|channel|>commentary <|constrain|>json<|message|>",
    "<|channel|>commentary to={0}<|message|>",
)
MOST_TURNS = 10
_EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def server(package_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(package_folder, tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with OpenAI(base_url=address, api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def prompts(server: Running, package: Package, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that the model gets, marks written out."""
    found: list[str] = []
    submit = server.engine.submit

    def note(request: Any, *others: Any) -> Any:
        found.append(package.tokenizer.show(request.prompt))
        return submit(request, *others)

    monkeypatch.setattr(server.engine, "submit", note)
    return found


def say(says: Says, case: Case, header: str = HEADERS[0]) -> None:
    """A thought and a call, and another thought and an answer."""
    between = "<|end|><|start|>assistant"
    call = header.format(f"functions.{case.tool.name}") + case.written
    says(
        f"<|channel|>analysis<|message|>{THOUGHT}{between}{call}<|call|>",
        f"<|channel|>analysis<|message|>{CONCLUSION}{between}"
        f"<|channel|>final<|message|>{ANSWER}<|return|>",
    )


def called(case: Case, name: str, arguments: str) -> str:
    """What the tool returns for a call that must be the case's."""
    assert name == case.tool.name
    found = json.loads(arguments)
    jsonschema.Draft202012Validator(case.tool.parameters).validate(found)
    assert found == case.arguments
    return case.tool.output


class Chat:
    """An agent on /v1/chat/completions."""

    def __init__(self, client: OpenAI, case: Case, stream: bool) -> None:
        self._ask = self._streamed if stream else self._whole
        self._client, self._case = client, case
        self.answers: list[ChatCompletion] = []

    def run(self) -> str:
        messages: list[Any] = [{"role": "user", "content": self._case.question}]
        tools = [{"type": "function", "function": self._case.tool.function}]
        for _ in range(MOST_TURNS):
            answer = self._ask(model=MODEL, messages=messages, tools=tools)
            self.answers.append(ChatCompletion.model_validate(answer.to_dict()))
            (choice,) = answer.choices
            messages.append(choice.message.to_dict())
            if not choice.message.tool_calls:
                assert choice.finish_reason == "stop"
                return str(choice.message.content)
            assert choice.finish_reason == "tool_calls"
            for call in choice.message.tool_calls:
                assert call.type == "function"
                output = called(self._case, call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
        raise AssertionError("it never answers")

    def _whole(self, **asked: Any) -> ChatCompletion:
        return self._client.chat.completions.create(**asked)

    def _streamed(self, **asked: Any) -> ChatCompletion:
        """Put together by the client's own helper; it must know every chunk."""
        thought = ""
        options = {"include_usage": True}
        with self._client.chat.completions.stream(**asked, stream_options=options) as stream:
            for event in stream:
                if event.type == "chunk":
                    chunk = ChatCompletionChunk.model_validate(event.chunk.to_dict())
                    for choice in chunk.choices:
                        thought += getattr(choice.delta, "reasoning", None) or ""
            answer = stream.get_final_completion()
        assert thought == answer.choices[0].message.to_dict()["reasoning"]
        return answer


class Responses:
    """An agent on /v1/responses; `stored`: what was said before is the server's to know."""

    def __init__(self, client: OpenAI, case: Case, stream: bool, *, stored: bool = False) -> None:
        self._ask = self._streamed if stream else self._whole
        self._client, self._case, self._stored = client, case, stored
        self.answers: list[Response] = []

    def run(self) -> str:
        said: list[Any] = [{"role": "user", "content": self._case.question}]
        asked: Json = {
            "model": MODEL,
            "tools": [{"type": "function", **self._case.tool.function}],
            "store": self._stored,
        }
        for _ in range(MOST_TURNS):
            answer = self._ask(input=said, **asked)
            assert answer.status == "completed"
            self.answers.append(Response.model_validate(answer.to_dict()))
            if self._stored:
                asked["previous_response_id"], said = answer.id, []
            said += [] if self._stored else [item.to_dict() for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            if not calls:
                return answer.output_text
            for call in calls:
                output = called(self._case, call.name, call.arguments)
                known = {"type": "function_call_output", "call_id": call.call_id}
                said.append({**known, "output": output})
        raise AssertionError("it never answers")

    def _whole(self, **asked: Any) -> Response:
        return self._client.responses.create(**asked)

    def _streamed(self, **asked: Any) -> Response:
        events = list(self._client.responses.create(**asked, stream=True))
        for event in events:
            _EVENTS.validate_python(event.to_dict())
        kinds = [event.type for event in events]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert kinds[-1] == "response.completed" and kinds.count("response.completed") == 1
        answer: Response = events[-1].response  # type: ignore[union-attr]
        (thought,) = (item for item in answer.output if item.type == "reasoning")
        deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
        (done,) = (e.text for e in events if e.type == "response.reasoning_text.done")
        assert "".join(deltas) == done == thought.content[0].text  # type: ignore[index]
        assert all(deltas)
        arguments = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        calls = [item for item in answer.output if item.type == "function_call"]
        assert "".join(arguments) == "".join(call.arguments for call in calls)
        return answer


every_case = pytest.mark.parametrize("place", range(len(CASES)))
both_ways = pytest.mark.parametrize("stream", [False, True])


def told_of_it(prompts: list[str], case: Case, header: str) -> None:
    """The second prompt has the thought and the call as they were written, and what came of it."""
    first, second = prompts
    assert case.question in first and f"type {case.tool.name} = " in first
    behind = second.removeprefix(first.removesuffix("<|start|>assistant"))
    assert behind != second
    name = f"functions.{case.tool.name}"
    thought, call, result, opened = behind.split("<|start|>")[1:]
    assert thought == f"assistant<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    assert call == f"assistant{header.format(name)}{case.written}<|call|>"
    assert result.startswith(name) and result.endswith(f"<|message|>{case.tool.output}<|end|>")
    assert opened == "assistant"


@both_ways
@every_case
def test_chat_completions(
    place: int, stream: bool, client: OpenAI, says: Says, prompts: list[str]
) -> None:
    case, header = CASES[place], HEADERS[place % len(HEADERS)]
    say(says, case, header)
    agent = Chat(client, case, stream)
    assert agent.run() == ANSWER
    told_of_it(prompts, case, header)
    first, second = (answer.choices[0].message for answer in agent.answers)
    assert first.to_dict()["reasoning"] == THOUGHT and not first.content
    assert second.to_dict()["reasoning"] == CONCLUSION
    for answer in agent.answers:
        assert answer.object == "chat.completion" and answer.model == MODEL and answer.usage
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.refusal is None
        details = answer.usage.completion_tokens_details
        assert details and 0 < (details.reasoning_tokens or 0) < answer.usage.completion_tokens


@both_ways
@every_case
def test_responses(
    place: int, stream: bool, client: OpenAI, says: Says, prompts: list[str]
) -> None:
    case, header = CASES[place], HEADERS[place % len(HEADERS)]
    say(says, case, header)
    agent = Responses(client, case, stream, stored=place % 2 == 1)
    assert agent.run() == ANSWER
    told_of_it(prompts, case, header)
    kinds = [[item.type for item in answer.output] for answer in agent.answers]
    assert kinds == [["reasoning", "function_call"], ["reasoning", "message"]]
    for answer, text in zip(agent.answers, (THOUGHT, CONCLUSION), strict=True):
        assert answer.object == "response" and answer.model == MODEL and answer.usage
        thought = answer.output[0].to_dict()["content"]
        assert thought == [{"type": "reasoning_text", "text": text}]
        thoughts = answer.usage.output_tokens_details.reasoning_tokens
        assert 0 < thoughts < answer.usage.output_tokens


@both_ways
@pytest.mark.parametrize("api", [Chat, Responses])
def test_a_wrong_call_is_found(
    api: type[Chat] | type[Responses], stream: bool, client: OpenAI, says: Says
) -> None:
    """The check itself: what the cases compare can differ."""
    case = CASES[-1]
    wrong = (Case(case.tool, case.question, {"place": "Oslo"}), CASES[0])
    for other in wrong:
        say(says, other)
        with pytest.raises((AssertionError, jsonschema.ValidationError)):
            api(client, case, stream).run()
