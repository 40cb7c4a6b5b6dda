"""Sessions are left as session.json says, and go on as one that was never anywhere else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gptoss_onnx.runtimes.batch import Batch
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session
from tests.conftest import DemoPackage
from tests.vectors import make
from tests.vectors import session as cases

VECTORS = json.loads((make.FOLDER / "session.json").read_text("utf-8"))
# MatMulNBits rounds activations, so chunks of another size differ by up to 0.05 in logits with a
# standard deviation of 3. With a wrong row of a window some differ by more than 1.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def package(demo_package: DemoPackage) -> Package:
    return Package.open(demo_package("int4"), threads=1)


def fresh(package: Package, ids: list[int]) -> np.ndarray:
    return Session(package, max_length=max(len(ids), 2)).feed(ids)


@pytest.mark.slow
def test_the_file_is_what_the_runtime_does(package: Package) -> None:
    assert json.loads(json.dumps(cases.session_vectors(package))) == VECTORS


@pytest.mark.parametrize("case", VECTORS["sessions"], ids=lambda case: case["name"])
def test_a_session_goes_on_as_a_fresh_one(package: Package, case: dict[str, Any]) -> None:
    session = Session(package, max_length=case["max_length"])
    for step in case["steps"]:
        logits = cases.perform(session, step)
        kept = cases.tokens(step["left"]["kept"])
        assert list(session.tokens) == kept, step
        assert session.evicted == step["left"]["evicted"], step
        if step["do"] == "feed":
            assert np.abs(logits - fresh(package, kept)).max() < TOLERANCE, step


@pytest.mark.parametrize("case", VECTORS["batches"], ids=lambda case: case["name"])
def test_rows_of_a_batch_go_on_as_fresh_ones(package: Package, case: dict[str, Any]) -> None:
    rows: list[list[int]] = [[] for _ in case["steps"][0]["left"]]
    batch = Batch(package, len(rows))
    for step in case["steps"]:
        logits = cases.perform_batch(batch, step)
        for row, left in enumerate(step["left"]):
            if step["do"] == "feed":
                fed = cases.tokens(step["rows"][row])
                rows[row] += fed
                if fed:
                    difference = np.abs(logits[row] - fresh(package, rows[row])).max()
                    assert difference < TOLERANCE, step
            del rows[row][left:]
            assert len(rows[row]) == left
