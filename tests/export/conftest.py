"""Tiny random checkpoints in both layouts; tests that change one get a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_onnx.export.synthetic import synthesize

SHARD_BYTES = 100_000  # three or four shards of the tiny geometry


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXFP4 experts, one file."""
    return synthesize(tmp_path_factory.mktemp("packed") / "tiny", geometry="tiny")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bf16 experts in the transposed layout, one file."""
    return synthesize(tmp_path_factory.mktemp("dense") / "tiny", geometry="tiny", format="bf16")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tensors of `packed` in several shards with their index."""
    folder = tmp_path_factory.mktemp("sharded") / "tiny"
    return synthesize(folder, geometry="tiny", max_shard_bytes=SHARD_BYTES)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a checkpoint to where the test may damage it."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))
