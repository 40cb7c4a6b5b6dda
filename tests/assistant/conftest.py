"""A server in this process whose model says what a script has; its logits are still computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from gptoss_onnx.assistant.app import make_app
from gptoss_onnx.assistant.security import Rules
from gptoss_onnx.assistant.service import Service
from gptoss_onnx.assistant.serving import make_service
from gptoss_onnx.assistant.users import Users
from gptoss_onnx.runtimes import generation
from gptoss_onnx.runtimes.package import Package
from tests.runtimes.conftest import TinyModel, write_package
from tests.runtimes.scripted import encode

MODEL = "tiny-model"
Says = Callable[..., None]
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def package_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write to it."""
    return write_package(tmp_path_factory.mktemp("packages") / MODEL, TinyModel.random())


@pytest.fixture(scope="session")
def package(package_folder: Path) -> Package:
    return Package.open(package_folder)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, package: Package) -> Says:
    """says(*texts): what the model answers to one request after the other, the last ever after.

    Marks are written out. Behind a text's end comes a stop token. In the place of a token that a
    constraint forbids comes one that ends what was begun, else the first that is no blank. (The
    likeliest is another on every processor: the model is random.)
    """
    end, call, message_end = map(package.tokenizer.special, ("<|return|>", "<|call|>", "<|end|>"))
    wanted = -np.arange(package.manifest.vocab_size, dtype=np.float32)
    wanted[[ord(blank) for blank in " \t\n\r"]] -= wanted.size
    wanted[[end, call, message_end, *map(ord, '}]"')]] = np.arange(6, 0, -1)
    scripts: list[list[int]] = []

    class Scripted:
        def __init__(self, *_: Any) -> None:
            self._tokens = list(scripts.pop(0) if len(scripts) > 1 else scripts[0])

        def next(self, scores: NDArray[np.float32]) -> int:
            token = self._tokens.pop(0) if self._tokens else end
            may = np.isfinite(scores)
            return token if may[token] else int(np.where(may, wanted, -np.inf).argmax())

    def script(*texts: str) -> None:
        scripts[:] = [encode(package, text) for text in texts]

    monkeypatch.setattr(generation, "Sampler", Scripted)
    return script


@pytest.fixture
def serve(package_folder: Path, tmp_path: Path) -> Iterator[Serve]:
    """serve(folder, rules=..., users=..., **options): a client of a server of its own.

    Its `service` is the server's.
    """
    with ExitStack() as stack:

        def start(
            folder: Path = package_folder,
            *,
            rules: Rules | None = None,
            users: Users | None = None,
            **options: Any,
        ) -> TestClient:
            service: Service = make_service(package=folder, data=tmp_path / "data", **options)
            app = make_app(service, rules, users)
            client = stack.enter_context(TestClient(app, base_url="http://localhost:8080"))
            client.service = service  # type: ignore[attr-defined]
            return client

        yield start


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()
