"""Random checkpoints of three geometries, each with its reference logits and graphs, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptoss_onnx.export.spec import FULL, SLIDING
from tests.parity.reference import LONG, SHORT, Subject, subject

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 128,
}
PLAIN = {"rope_type": "default"}
GEOMETRIES: dict[str, dict[str, Any]] = {
    # Square experts, so that transposed ones would load.
    "published": {
        "layers": 4,
        "hidden": 128,
        "intermediate": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "sliding_window": 64,
    },
    # Without `truncate`, which then is true, as in checkpoints of before that key.
    "dense": {
        "format": "bf16",
        "layers": 2,
        "hidden": 96,
        "intermediate": 64,
        "heads": 8,
        "kv_heads": 1,
        "sliding_window": 128,
        "config": {"rope_scaling": YARN},
    },
    "eight experts": {
        "layers": 3,
        "experts": 8,
        "hidden": 64,
        "intermediate": 96,
        "sliding_window": 31,
        "config": {"layer_types": [FULL, SLIDING, SLIDING], "rope_scaling": PLAIN},
    },
}
# What transformers 4 has as constants and transformers 5 reads.
SWIGLU = {"swiglu_alpha": 1.2, "swiglu_limit": 0.8}
Maker = Callable[[str], Subject]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices of 128 x 128: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """The subject of a geometry by name."""
    made: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in made:
            folder: Path = tmp_path_factory.mktemp(name.replace(" ", "-")) / "checkpoint"
            made[name] = subject(folder, LONG, **GEOMETRIES[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def published(make: Maker) -> Subject:
    return make("published")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """For kernels that are slow: every expert is chosen, so that no rounding changes the choice."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    return subject(folder, SHORT, experts=2, experts_per_token=2)


@pytest.fixture(scope="session")
def other_swiglu(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Experts with another gain and limit; every one is chosen."""
    folder = tmp_path_factory.mktemp("swiglu") / "checkpoint"
    return subject(folder, SHORT, SWIGLU, experts=2, experts_per_token=2).against(5)


@pytest.fixture(scope="session")
def with_globals(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A window and four global tokens, which every sliding layer always sees."""
    folder = tmp_path_factory.mktemp("globals") / "checkpoint"
    return subject(folder, LONG, {"num_global_tokens": 4})
