"""Several filters as one, and those that files ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_onnx.assistant.filters import Filters, PolicyFilter, TermFilter, load_filter
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from tests.assistant.conftest import Says
from tests.assistant.reviewing import reviewed
from tests.runtimes.word_filter import WordFilter

CLEAR = '<|channel|>final<|message|>{"violation": 0}<|return|>'
BROKEN = '<|channel|>final<|message|>{"violation": 1, "rule": "Be nice."}<|return|>'


def test_what_all_clear_is_shown() -> None:
    both = Filters([WordFilter("bomb"), WordFilter("boats")])
    assert not both.slow
    reviewer = both.begin("final")
    assert [reviewer.feed(c).cleared for c in ("b", "o", "a", "!")] == [0, 0, 0, 4]
    assert reviewed(both, "a boat") == ("a boat", None)
    assert reviewed(both, "a bomb") == ("a ", "no bomb")
    assert reviewed(both, "a boats") == ("a ", "no boats")


def test_no_filter(tmp_path: Path) -> None:
    assert load_filter() is None


def test_terms_alone(tmp_path: Path) -> None:
    (tmp_path / "terms").write_text("bomb\n")
    found = load_filter(tmp_path / "terms")
    assert isinstance(found, TermFilter)
    assert reviewed(found, "bomb")[1] == f"{tmp_path / 'terms'}, line 1: bomb"


def test_both(tmp_path: Path, package_folder: Path, says: Says) -> None:
    (tmp_path / "terms").write_text("bomb\n")
    (tmp_path / "policy").write_text("\ufeffBe nice.\n", "utf-8")
    found = load_filter(tmp_path / "terms", package_folder, tmp_path / "policy")
    assert isinstance(found, Filters) and found.slow
    says(CLEAR)
    assert reviewed(found, "Hi") == ("Hi", None)
    says(BROKEN)
    assert reviewed(found, "Hi") == ("", "policy: Be nice.")
    says(CLEAR)
    assert reviewed(found, "a bomb!")[1] == f"{tmp_path / 'terms'}, line 1: bomb"


def test_a_policy_alone(tmp_path: Path, package: Package) -> None:
    (tmp_path / "policy").write_text("Be nice.")
    assert isinstance(load_filter(None, package, tmp_path / "policy"), PolicyFilter)


@pytest.mark.parametrize(
    ("data", "why"), [(b" \n", "the policy is empty"), (b"\xff", "save the file as UTF-8")]
)
def test_a_bad_policy_is_told(tmp_path: Path, package: Package, data: bytes, why: str) -> None:
    (tmp_path / "policy").write_bytes(data)
    with pytest.raises(UserError, match=why):
        load_filter(None, package, tmp_path / "policy")


def test_what_cannot_be_used_is_told(tmp_path: Path, package: Package) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_filter(None, package, tmp_path / "policy")
    with pytest.raises(UserError, match="needs both"):
        load_filter(None, package)
    with pytest.raises(UserError, match="needs both"):
        load_filter(None, None, tmp_path / "policy")
    with pytest.raises(UserError):
        load_filter(None, tmp_path / "no-package", tmp_path)
