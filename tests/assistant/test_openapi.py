"""The OpenAPI document tells what the server does: schemathesis asks all that it allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.errors import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from gptoss_onnx.runtimes import generation
from gptoss_onnx.runtimes.package import Package
from tests.assistant.running import Running, running
from tests.runtimes.scripted import encode

ANSWER = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>1"


@pytest.fixture(scope="module")
def server(
    package_folder: Path, package: Package, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Its model says one short answer, whatever is asked."""
    answer = [*encode(package, ANSWER), package.tokenizer.special("<|return|>")]

    class Scripted:
        def __init__(self, *_: Any) -> None:
            self._tokens = iter(answer)

        def next(self, scores: Any) -> int:
            token = next(self._tokens, answer[-1])
            return token if scores[token] > float("-inf") else int(scores.argmax())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "Sampler", Scripted)
        with running(package_folder, tmp_path_factory.mktemp("data")) as found:
            yield found


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


ENDPOINTS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{id}"),
    ("DELETE", "/v1/responses/{id}"),
    ("GET", "/v1/responses/{id}/input_items"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]


WRONG = [(*endpoint, GenerationMode.NEGATIVE) for endpoint in ENDPOINTS if endpoint[0] == "POST"]
RIGHT = [(*endpoint, GenerationMode.POSITIVE) for endpoint in ENDPOINTS]


@pytest.mark.parametrize(("method", "path", "mode"), [*RIGHT, *WRONG])
def test_every_answer_is_one_that_the_document_has(
    document: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """Statuses, types and shapes; never a 500, and no malformed request taken for a good one."""
    operation, statuses = document[path][method], Counter[int]()

    # No deadline: how long an answer takes is no matter of the document's.
    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: schemathesis.Case) -> None:
        # A schema cannot say which call a tool's result answers: such a request is a 400.
        answer = case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])
        statuses[answer.status_code] += 1

    ask()
    assert method != "POST" or statuses[200 if mode == GenerationMode.POSITIVE else 400], statuses


def test_every_endpoint_is_in_it(server: Running) -> None:
    status, document = server.get("/openapi.json")
    assert status == 200
    told = {
        (m.upper(), path)
        for path, methods in document["paths"].items()
        for m in methods
        if m != "parameters"
    }
    assert told == set(ENDPOINTS)


def test_bounds_are_in_it(server: Running) -> None:
    schemas = server.get("/openapi.json")[1]["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest"):
        n = schemas[name]["properties"]["n"]["anyOf"][0]
        assert n == {"type": "integer", "minimum": 1, "maximum": 128}
    prompt = schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    assert prompt[0] == {"type": "string", "minLength": 1}
    assert prompt[2]["items"] == {"type": "integer", "minimum": 0}


def test_canary_an_answer_beside_the_document_shows(server: Running) -> None:
    """A document that does not know of an answer's status."""
    raw = server.get("/openapi.json")[1]
    for known in (True, False):
        if not known:
            del raw["paths"]["/v1/models/{model}"]["get"]["responses"]["404"]
        schema = schemathesis.openapi.from_dict(raw)
        case = schema["/v1/models/{model}"]["GET"].Case(path_parameters={"model": "none"})
        answer = case.call(base_url=f"http://127.0.0.1:{server.port}")
        if known:
            case.validate_response(answer)
        else:
            with pytest.raises(FailureGroup, match="404"):
                case.validate_response(answer)
