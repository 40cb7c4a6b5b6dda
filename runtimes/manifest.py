"""A package's manifest: read as a stranger's, held to its schema, one of its graphs chosen."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.graph_choice import Runtime, choose
from gptoss_onnx.runtimes.json_file import read_json
from gptoss_onnx.runtimes.schema import fault

FORMAT = 1
MANIFEST = "manifest.json"
_MOST_BYTES = 16 << 20  # of a manifest: the published models' have 30 kB


@dataclass(frozen=True)
class KvLayer:
    """One layer's KV cache. `window` is the attention's reach in tokens, None for all of them."""

    window: int | None
    windowed: bool  # the buffer holds about a window of tokens instead of all of them

    @property
    def kept(self) -> int | None:
        """Tokens that the buffer must keep; None for all of the sequence."""
        return self.window if self.windowed else None


@dataclass(frozen=True)
class KvLayout:
    dtype: str
    num_kv_heads: int
    head_dim: int
    layers: tuple[KvLayer, ...]
    in_place: bool = True  # past and present are one buffer, else each run makes the present anew


@dataclass(frozen=True)
class FileEntry:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, parsed. manifest.schema.json says what each field may be."""

    name: str
    target: str
    quant: str
    min_runtime: str
    graph: str
    logits: str  # "last" (the last valid token's) or "all"
    context_length: int
    vocab_size: int
    kv: KvLayout
    files: Mapping[str, FileEntry]
    session: Mapping[str, Any]
    # Whether rows of a batch may get different numbers of tokens at once.
    padded_batches: bool = True
    activations: str = "float32"  # element type the graph computes in
    requires: Collection[str] = ()  # what a device must have to run the graph
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)  # group of tensors to format
    rounding: Mapping[str, Any] = field(default_factory=dict)  # how codes were chosen
    weights: Mapping[str, int] = field(default_factory=dict)  # bytes by how a token reads them
    links: Collection[str] = ()  # files that are a checkpoint's own, under a second name
    versions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str, graph: str | None = None) -> Manifest:
        """Read `folder`/manifest.json; UserError when this runtime cannot run what it says.

        Of a package's graphs it describes the file `graph`, else the one to run here; where none
        can for want of a device, the first: such a package can still be looked at.
        """
        path = Path(folder) / MANIFEST
        content = read_manifest(folder)
        entry, here = _entry(content, graph, path), Runtime.here()
        if old := here.too_old(entry):
            raise UserError(f"{folder}: {old}")
        # Of the entry what is a graph's, so that it cannot name other files than those checked.
        own = schema()["$defs"]["graph"]["properties"]
        return _parsed({**content, **{name: entry[name] for name in own if name in entry}})


@cache
def schema() -> Mapping[str, Any]:
    """manifest.schema.json."""
    text = Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8")
    content: Mapping[str, Any] = json.loads(text)
    return content


def read_manifest(folder: Path | str, name: str = MANIFEST) -> dict[str, Any]:
    """A package's manifest as it stands; UserError when it is no valid one."""
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"{path}: no such file; {folder} is not a package")
    content = read_json(path, _MOST_BYTES)
    check_manifest(content, path)
    return content


def check_manifest(content: Mapping[str, Any], where: Path | str) -> None:
    """UserError names the first field that no runtime takes, of a manifest that is at `where`."""
    known = content.get("format")
    if known != FORMAT or isinstance(known, bool):
        raise UserError(
            f"{where}: format {json.dumps(known)[:40]} is not known; this version reads "
            f"format {FORMAT}: update it or export the package again"
        )
    if found := fault(content, schema(), schema()) or _contradiction(content):
        raise UserError(f"{where}: {found}; the package is damaged or not to be trusted")


def _contradiction(content: Mapping[str, Any]) -> str | None:
    """The first field that another one contradicts, in words."""
    listed = [(f"graphs[{i}].", entry) for i, entry in enumerate(content.get("graphs", ()))]
    names: set[str] = set()
    for where, entry in [("", content), *listed]:
        name = entry["graph"]
        if name not in content["files"]:
            return f"{where}graph is {name}: it must be among the files"
        if where and name in names:
            return f"{where}graph is {name}: it must be another than those before it"
        if where:
            names.add(name)
        for place, layer in enumerate(entry["kv"]["layers"]):
            if layer["windowed"] and layer["window"] is None:
                return f"{where}kv.layers[{place}].window is null: a windowed layer must have one"
    return None


def graph_entries(content: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a valid manifest says of each graph, the one its general fields describe first."""
    return content.get("graphs") or [content]


def graph_files(folder: Path | str) -> list[str]:
    """Names of a package's graphs, the one that its general fields describe first."""
    return [entry["graph"] for entry in graph_entries(read_manifest(folder))]


def _entry(content: Mapping[str, Any], graph: str | None, path: Path) -> Mapping[str, Any]:
    entries = graph_entries(content)
    if graph is not None:
        for entry in entries:
            if entry["graph"] == graph:
                return entry
        names = ", ".join(entry["graph"] for entry in entries)
        raise UserError(f"{path}: no graph {graph!r}; there is {names}")
    try:
        return choose(entries, Runtime.here())
    except UserError:
        return entries[0]


def _parsed(content: Mapping[str, Any]) -> Manifest:
    """From a valid manifest; fields of later minor revisions are passed over."""
    known = {name.name for name in fields(Manifest)}
    values = {name: value for name, value in content.items() if name in known}
    kv = content["kv"]
    layers = tuple(
        KvLayer(None if entry["window"] is None else int(entry["window"]), entry["windowed"])
        for entry in kv["layers"]
    )
    values["kv"] = KvLayout(
        kv["dtype"], int(kv["num_kv_heads"]), int(kv["head_dim"]), layers, kv.get("in_place", True)
    )
    values["files"] = {
        name: FileEntry(int(entry["size"]), entry["sha256"])
        for name, entry in content["files"].items()
    }
    for name in ("context_length", "vocab_size"):  # JSON may write them as 4096.0
        values[name] = int(content[name])
    return Manifest(**values)
