"""Several packages in a folder: which are served, loaded and unloaded."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptoss_onnx.assistant.errors import ApiError
from gptoss_onnx.assistant.models import EngineOptions, Models
from gptoss_onnx.runtimes.errors import UserError
from tests.assistant.asking import CHAT, body
from tests.assistant.conftest import MODEL, Says, Serve


@pytest.fixture
def folder(tmp_path: Path, package_folder: Path) -> Path:
    """Three packages, a damaged one, and what is none."""
    root = tmp_path / "several"
    for name in "abc":
        shutil.copytree(package_folder, root / name)
    shutil.copytree(package_folder, root / "damaged")
    (root / "damaged" / "model.onnx").write_bytes(b"")
    (root / "notes").mkdir()
    (root / "README").write_text("no package")
    return root


def loaded(models: Models) -> list[str]:
    return [model.id for model in models if model.engine is not None]


@contextmanager
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Kept()
    logging.getLogger("gptoss").addHandler(handler)
    yield lines
    logging.getLogger("gptoss").removeHandler(handler)


def test_what_can_be_opened_is_served_and_the_rest_told(folder: Path, serve: Serve) -> None:
    with logged() as lines:
        client = serve(folder)
    assert [line for line in lines if "damaged" in line and "model.onnx" in line]
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == ["a", "b", "c"]
    assert client.get("/v1/models/b").json() == found["data"][1]
    assert found["data"][0]["context_length"] == 2048
    assert found["data"][0]["loaded"] is False
    assert found["data"][0]["object"] == "model"
    assert client.get("/v1/models/damaged").status_code == 404


def test_the_context_is_the_true_one(serve: Serve, says: Says) -> None:
    says("<|channel|>final<|message|>" + "x" * 2000)
    client = serve(context=700)
    model = client.get(f"/v1/models/{MODEL}").json()
    assert model["context_length"] == 700
    usage = client.post(CHAT, json=body()).json()["usage"]
    assert usage["total_tokens"] == 700
    assert serve(context=10**6).get(f"/v1/models/{MODEL}").json()["context_length"] == 2048


def test_a_package_is_known_by_its_folder_and_its_own_name(serve: Serve, says: Says) -> None:
    says("<|channel|>final<|message|>a<|return|>")
    client = serve()
    for name, status in ((MODEL, 200), ("tiny", 200), ("Tiny", 404), ("", 404)):
        answer = client.post(CHAT, json={**body(), "model": name})
        assert answer.status_code == status
    assert len(client.get("/v1/models").json()["data"]) == 1
    assert client.get("/health").json()["loaded"] == [MODEL]


def test_no_package_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Models(tmp_path / "nowhere")
    with pytest.raises(UserError, match="gptoss export"):
        Models(tmp_path)


def test_the_least_recently_used_is_unloaded(folder: Path, serve: Serve, says: Says) -> None:
    says("<|channel|>final<|message|>a<|return|>")
    client = serve(folder, max_loaded=2)
    models = client.service.models  # type: ignore[attr-defined]

    def ask(name: str) -> list[str]:
        assert client.post(CHAT, json={**body(), "model": name}).status_code == 200
        return loaded(models)

    assert [ask(name) for name in "abacab"] == [
        ["a"], ["a", "b"], ["a", "b"], ["a", "c"], ["a", "c"], ["a", "b"]
    ]  # fmt: skip
    text = client.get("/metrics").text
    assert 'gptoss_model_loads_total{model="b"} 2.0' in text
    assert 'gptoss_model_loaded{model="c"} 0.0' in text


def test_one_that_is_answering_is_never_unloaded(folder: Path) -> None:
    async def run() -> None:
        models = Models(folder, EngineOptions(rows=1), max_loaded=1, patience=0.05)
        async with models.lend("a"):
            with pytest.raises(ApiError) as refused:
                async with models.lend("b"):
                    pass
            assert refused.value.status == 503
            assert refused.value.headers["Retry-After"]
            assert loaded(models) == ["a"]
        async with models.lend("b"):
            assert loaded(models) == ["b"]
        await models.close()
        assert loaded(models) == []

    asyncio.run(run())


def test_who_waits_for_room_gets_it(folder: Path) -> None:
    async def run() -> None:
        models = Models(folder, EngineOptions(rows=1), max_loaded=1)

        async def use(name: str) -> str:
            async with models.lend(name) as (model, engine):
                assert engine.package.folder.name == name
                await asyncio.sleep(0.01)
                assert model.engine is engine
            return name

        assert await asyncio.gather(*map(use, "abcabc")) == list("abcabc")
        assert len(loaded(models)) == 1
        await models.close()

    asyncio.run(run())


def test_many_who_ask_load_it_once(folder: Path) -> None:
    async def run() -> None:
        loads: list[str] = []
        models = Models(folder, EngineOptions(rows=1), on_load=loads.append)

        async def use() -> Any:
            async with models.lend("a") as (_, engine):
                return engine

        asked = [asyncio.create_task(use()) for _ in range(5)]
        await asyncio.sleep(0)
        asked[0].cancel()  # who goes away takes nothing from the others
        engines = await asyncio.gather(*asked, return_exceptions=True)
        assert len(set(map(id, engines[1:]))) == 1
        assert loads == ["a"]
        await models.close()

    asyncio.run(run())


def test_one_that_cannot_be_loaded(folder: Path, serve: Serve, says: Says) -> None:
    data = folder / "a" / "tokenizer.json"
    data.write_bytes(b"x" * data.stat().st_size)
    says("<|channel|>final<|message|>a<|return|>")
    client = serve(folder)
    with logged() as lines:
        answer = client.post(CHAT, json={**body(), "model": "a"})
    assert answer.status_code == 503
    assert str(folder) not in answer.text
    assert answer.json()["error"]["code"] == "model_not_loaded"
    assert [line for line in lines if "tokenizer.json" in line]
    assert client.post(CHAT, json={**body(), "model": "b"}).status_code == 200
    assert json.loads(client.get("/health").text)["loaded"] == ["b"]
