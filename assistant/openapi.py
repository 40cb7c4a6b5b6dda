"""The server's OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gptoss_onnx.assistant import chat_completions, completions, responses
from gptoss_onnx.assistant.chat_request import ChatRequest
from gptoss_onnx.assistant.completions import CompletionRequest
from gptoss_onnx.assistant.response_request import ResponseRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "context_length", "loaded"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "context_length": {"type": "integer"},
        "loaded": {"type": "boolean"},
    },
}
# Path of a POST to its body, and to what its answer has at least.
Posts = dict[str, tuple[type[BaseModel], Sequence[str]]]
POSTS: Posts = {
    chat_completions.ENDPOINT: (ChatRequest, ("id", "object", "created", "model", "choices")),
    completions.ENDPOINT: (CompletionRequest, ("id", "object", "created", "model", "choices")),
    responses.ENDPOINT: (ResponseRequest, ("id", "object", "created_at", "model", "output")),
}


def document(models: Sequence[str]) -> dict[str, Any]:
    """For a server of `models`."""
    bodies = [(body, "validation") for body, _ in POSTS.values()]
    _, shared = models_json_schema(
        bodies,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    for content in shared["$defs"].values():
        if "model" in content.get("properties", {}):
            content["properties"]["model"]["enum"] = list(models)
    paths = {path: {"post": _post(path, *POSTS[path])} for path in POSTS}
    components = {**shared["$defs"], "Error": _ERROR, "Model": _MODEL}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gptoss serve", "version": version("gptoss-onnx")},
        "paths": {**_gets(models), **_stored(), **paths},
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _post(path: str, body: type[BaseModel], has: Sequence[str]) -> dict[str, Any]:
    answer = {"type": "object", "required": list(has)}
    events: dict[str, Any] = {"text/event-stream": {}}  # 3.1 has no words for a stream's items
    return {
        "summary": path,
        "description": body.__doc__ or "",
        "requestBody": {"required": True, "content": _json(_ref(body.__name__))},
        "responses": {
            "200": {"description": "The answer.", "content": {**_json(answer), **events}},
            **_failures(400, 404, 408, 413, 429, 503),
        },
    }


def _gets(models: Sequence[str]) -> dict[str, Any]:
    listed = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _ref("Model")},
        },
    }
    health = {"type": "object", "required": ["status", "loaded"]}
    name = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(models)}}
    return {
        "/v1/models": _get("What is served.", _json(listed)),
        "/v1/models/{model}": _get("One of them.", _json(_ref("Model")), 404, parameters=[name]),
        "/health": _get("Whether requests are answered.", _json(health), 503),
        "/metrics": _get("Figures for Prometheus.", {"text/plain": {"schema": {"type": "string"}}}),
        "/openapi.json": _get("This document.", _json({"type": "object"})),
    }


def _stored() -> dict[str, Any]:
    one = responses.ENDPOINT + "/{id}"
    named = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    page = {
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
        "order": {"enum": ["asc", "desc"]},
        "after": {"type": "string"},
    }
    asked = [{"name": name, "in": "query", "schema": schema} for name, schema in page.items()]
    response = _json({"type": "object", "required": list(POSTS[responses.ENDPOINT][1])})
    gone = _json({"type": "object", "required": ["id", "object", "deleted"]})
    listed = _json({"type": "object", "required": ["object", "data", "has_more"]})
    get = _get("A response that was stored.", response, 400, 404, 503)["get"]
    delete = _get("It is stored no longer.", gone, 404, 503)["get"]
    items = _get("What it answered.", listed, 400, 404, 503, parameters=[named, *asked])
    return {
        one: {"get": get, "delete": delete, "parameters": [named]},
        f"{one}/input_items": items,
    }


def _get(about: str, content: dict[str, Any], *failures: int, **others: Any) -> dict[str, Any]:
    responses = {"200": {"description": about, "content": content}, **_failures(*failures)}
    return {"get": {"summary": about, "responses": responses, **others}}


def _failures(*statuses: int) -> dict[str, Any]:
    shown = {"description": "Why not.", "content": _json(_ref("Error"))}
    return {str(status): shown for status in (*statuses, 401, 403, 421)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
