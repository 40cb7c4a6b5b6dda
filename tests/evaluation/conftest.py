"""What a text is evaluated with: the demo's tokenizer, and a cache that is not the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_onnx.runtimes.harmony import Harmony
from gptoss_onnx.runtimes.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def harmony(demo: Path) -> Harmony:
    return Harmony(Tokenizer(demo))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GPTOSS_CACHE", str(folder))
        yield folder
