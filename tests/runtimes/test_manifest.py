"""manifest.json is data of a stranger: what is taken, refused and chosen is the shared vectors'."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.graph_choice import Runtime, choose
from gptoss_onnx.runtimes.json_file import parse_json
from gptoss_onnx.runtimes.manifest import MANIFEST, Manifest, check_manifest, schema
from gptoss_onnx.runtimes.package_files import read_files
from gptoss_onnx.runtimes.schema import CHECKED, fault
from gptoss_onnx.runtimes.target import load_targets
from tests.conftest import ROOT

VECTORS: dict[str, Any] = json.loads((ROOT / "tests/vectors/manifest.json").read_text("utf-8"))
ORACLE = jsonschema.Draft202012Validator(schema())
CASES = VECTORS["manifests"]


def changed(case: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(VECTORS[case["of"]])
    for change in case["changes"]:
        *path, last = change["at"]
        place = content
        for part in path:
            place = place[part]
        if "value" in change:
            place[last] = change["value"]
        else:
            del place[last]
    return content


def refusal(content: dict[str, Any]) -> str | None:
    said = None
    try:
        check_manifest(content, "p/manifest.json")
    except UserError as error:
        said = str(error)
    assert said is None or (len(said.splitlines()) == 1 and len(said) < 400)
    return said


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_manifests(case: dict[str, Any]) -> None:
    content = changed(case)
    said = refusal(content)
    if case["refused"] is None:
        assert said is None
    else:
        assert said is not None and said.startswith("p/manifest.json: ") and case["refused"] in said
    # The few keywords mean here what they mean to a library.
    assert ORACLE.is_valid(content) is (fault(content, schema(), schema()) is None)


def test_accepted_manifests_are_read(tmp_path: Path) -> None:
    for case in CASES:
        if case["refused"] is None:
            (tmp_path / MANIFEST).write_text(json.dumps(changed(case)), encoding="utf-8")
            assert Manifest.load(tmp_path).vocab_size == 4096


@pytest.mark.parametrize("case", VECTORS["texts"], ids=lambda case: case["name"])
def test_texts_that_are_no_manifest(case: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^p/manifest\.json: ") as raised:
        check_manifest(parse_json(case["text"] * case["times"], "p/manifest.json"), "p")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", VECTORS["paths"]["good"])
def test_names_of_files(name: str) -> None:
    single = VECTORS["single"]
    files = {**single["files"], name: {"size": 1, "sha256": "0" * 64}}
    assert refusal({**single, "files": files, "links": [name]}) is None


@pytest.mark.parametrize("name", VECTORS["paths"]["bad"], ids=ascii)
def test_names_that_are_none(name: str) -> None:
    single = VECTORS["single"]
    files = {**single["files"], name: {"size": 1, "sha256": "0" * 64}}
    assert "files" in str(refusal({**single, "files": files}))
    assert "links" in str(refusal({**single, "links": [name]}))
    assert "graph" in str(refusal({**single, "files": files, "graph": name}))


@pytest.mark.parametrize("case", VECTORS["choice"], ids=lambda case: case["name"])
def test_which_graph_runs(case: dict[str, Any]) -> None:
    runtime = Runtime(**{**case["runtime"], "features": frozenset(case["runtime"]["features"])})
    entries = [VECTORS["graphs"][name] for name in case["graphs"]]
    if case["chosen"] is not None:
        assert choose(entries, runtime)["graph"] == case["chosen"]
        return
    with pytest.raises(UserError) as raised:
        choose(entries, runtime)
    assert all(word in str(raised.value) for word in case["names"])


@pytest.mark.parametrize("case", VECTORS["reads"], ids=lambda case: case["name"])
def test_which_files_are_read(case: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(changed(case)))
    assert read_files(Manifest.load(tmp_path, case["graph"])) == case["files"]


def test_the_schema_uses_no_keyword_that_is_not_checked() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    said = {"$schema", "title", "description", "$defs"}

    def walk(part: Any) -> None:
        assert set(part) <= CHECKED | said, part
        # A pattern's title is how a message says it, and a search must not stop at a line feed.
        assert "pattern" not in part or ("title" in part and "$" not in part["pattern"])
        for name in ("properties", "$defs"):
            for inner in part.get(name, {}).values():
                walk(inner)
        for name in ("items", "propertyNames", "additionalProperties"):
            if isinstance(part.get(name), dict):
                walk(part[name])
        for inner in part.get("allOf", ()):
            walk(inner)

    walk(schema())


def test_what_targets_write_is_in_the_schema() -> None:
    """A new target's settings must be added there, or its own packages are refused."""
    session = schema()["$defs"]["session"]
    for target in load_targets().values():
        for made in (target, *target.older):
            wrote = {
                "providers": made.providers,
                "provider_options": dict(made.provider_options),
                "config": dict(made.session_config),
            }
            assert fault(wrote, session, schema(), "session") is None


def test_a_field_with_an_odd_name_is_one_line() -> None:
    session = {**VECTORS["single"]["session"], "a\nb\u2028c\x1b[2J": 1}
    said = refusal({**VECTORS["single"], "session": session})
    assert said is not None and len(said.splitlines()) == 1 and "\x1b" not in said


def test_a_graphs_entry_names_no_other_files_than_those_checked(tmp_path: Path) -> None:
    content = copy.deepcopy(VECTORS["several"])
    content["graphs"][2] |= {"files": {"../evil": {"size": 1, "sha256": ""}}, "name": 7}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    loaded = Manifest.load(tmp_path, "model.node.onnx")
    assert set(loaded.files) == set(content["files"])
    assert loaded.name == content["name"]
