"""A package's manifest: read, written, held against the bytes of the files it names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import onnxruntime

from gptoss_onnx.runtimes.errors import UserError

FORMAT = 1
MANIFEST, REPORT = "manifest.json", "report.json"
_BLOCK = 1 << 20

Progress = Callable[[int], None]  # called with the number of bytes read since the last call


@dataclass(frozen=True)
class KvLayer:
    """One layer's KV cache. `window` is the attention's reach in tokens, None for all of them."""

    window: int | None
    windowed: bool  # the buffer holds about a window of tokens instead of all of them


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
    """`manifest.json`, parsed. The README of a package explains the fields to its readers."""

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
    session: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str, graph: str | None = None) -> Manifest:
        """Read `folder`/manifest.json; UserError when this runtime cannot run what it says.

        Of a package's graphs it describes the file `graph`, else the first that can run here.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise UserError(f"{path}: no such file; {folder} is not a package")
        content = read_json(path)
        if content.get("format") != FORMAT:
            raise UserError(
                f"{path}: format {content.get('format')!r} is not known; this version reads "
                f"format {FORMAT}: update it or export the package again"
            )
        try:
            manifest = cls(**_parse({**content, **_chosen(content, graph)}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: not a valid manifest ({what})") from error
        if _version(onnxruntime.__version__) < _version(manifest.min_runtime):
            raise UserError(
                f"{folder}: needs onnxruntime {manifest.min_runtime} or newer, this is "
                f"{onnxruntime.__version__}; update it with pip install -U onnxruntime"
            )
        return manifest


def graph_files(folder: Path | str) -> list[str]:
    """Names of a package's graphs, the one that its general fields describe first."""
    content = read_json(Path(folder) / MANIFEST)
    return [entry["graph"] for entry in content.get("graphs") or [content]]


def _chosen(content: Mapping[str, Any], graph: str | None) -> Mapping[str, Any]:
    """What the manifest says of `graph`, else of the first one that fits this machine."""
    entries = content.get("graphs") or []
    if graph is not None:
        return next((entry for entry in entries if entry["graph"] == graph), {})
    here, available = _version(onnxruntime.__version__), onnxruntime.get_available_providers()

    def fits(entry: Mapping[str, Any]) -> bool:
        new_enough = here >= _version(entry["min_runtime"])
        return (
            new_enough and not entry["requires"] and entry["session"]["providers"][0] in available
        )

    return next(filter(fits, entries), {})


def _parse(content: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments; fields of later minor revisions are passed over."""
    known = {name.name for name in fields(Manifest)}
    values = {name: value for name, value in content.items() if name in known}
    kv = content["kv"]
    values["kv"] = KvLayout(
        dtype=str(kv["dtype"]),
        num_kv_heads=int(kv["num_kv_heads"]),
        head_dim=int(kv["head_dim"]),
        in_place=bool(kv.get("in_place", True)),
        layers=tuple(KvLayer(entry["window"], bool(entry["windowed"])) for entry in kv["layers"]),
    )
    if any(layer.windowed and not layer.window for layer in values["kv"].layers):
        raise ValueError("a windowed KV layer has no window")
    values["files"] = {
        name: FileEntry(int(entry["size"]), str(entry["sha256"]))
        for name, entry in content["files"].items()
    }
    for name in (content["graph"], *values["files"]):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name} lies outside the package")
    for name in ("context_length", "vocab_size"):
        values[name] = int(content[name])
    if content["logits"] not in ("last", "all"):
        raise ValueError(f"logits {content['logits']!r} is neither 'last' nor 'all'")
    return values


def _version(text: str) -> tuple[int, ...]:
    """Leading numbers of a version: 1.32.0.dev1 is (1, 32, 0)."""
    parts = text.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def read_json(path: Path) -> dict[str, Any]:
    """A file of a package; UserError when it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def write_manifest(
    folder: Path | str,
    content: Mapping[str, Any],
    hashed: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `content` with the size and SHA-256 of every file below `folder` as its manifest.

    `hashed` holds the SHA-256 of files that were hashed as they were written, by relative path:
    they are not read again.
    """
    folder, hashed = Path(folder), hashed or {}
    partial = folder / f".{MANIFEST}.partial"
    files = {}
    for path in sorted(folder.rglob("*")):  # links to files are files
        if path.is_file() and path not in (folder / MANIFEST, partial):
            name = path.relative_to(folder).as_posix()
            sha256 = hashed.get(name) or _sha256(path, progress)
            files[name] = {"size": path.stat().st_size, "sha256": sha256}
    text = json.dumps({"format": FORMAT, **content, "files": files}, indent=2, ensure_ascii=False)
    # A reader sees the old manifest or the new one, never half of one.
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def update_files(folder: Path | str, texts: Mapping[str, str]) -> None:
    """Write text files of a package, by name, and their hashes into its manifest."""
    folder = Path(folder)
    content = read_json(folder / MANIFEST)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    known = {n: entry["sha256"] for n, entry in content["files"].items() if n not in texts}
    write_manifest(folder, content, known)


def write_report(folder: Path | str, figures: Mapping[str, Any]) -> None:
    """Merge measured `figures` into a package's report.json, and its hash into the manifest."""
    report = Path(folder) / REPORT
    merged = {**(read_json(report) if report.exists() else {}), **figures}
    update_files(folder, {REPORT: json.dumps(merged, indent=2, ensure_ascii=False) + "\n"})


def _sha256(path: Path, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def check_files(folder: Path | str, progress: Progress | None = None) -> list[str]:
    """What is wrong with the files of a package, one line each; empty when every byte is right."""
    folder, manifest = Path(folder), Manifest.load(folder)
    problems = [*check_sizes(folder, manifest), *_check_graphs(folder, manifest)]
    wrong = {problem.split(":")[0] for problem in problems}
    for name, entry in manifest.files.items():
        if name not in wrong and _sha256(folder / name, progress) != entry.sha256:
            problems.append(f"{name}: its bytes changed: the SHA-256 is not the manifest's")
    return problems


def check_sizes(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files by their sizes alone: no byte is read."""
    problems = []
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            link = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
            problems.append(f"{name}: missing{link}")
        elif path.stat().st_size != entry.size:
            problems.append(f"{name}: {path.stat().st_size} bytes instead of {entry.size}")
    if manifest.graph not in manifest.files:
        problems.append(f"{manifest.graph}: the graph is not among the manifest's files")
    return problems


def _check_graphs(folder: Path, manifest: Manifest) -> list[str]:
    others = [name for name in graph_files(folder) if name not in (manifest.graph, *manifest.files)]
    return [f"{name}: the graph is not among the manifest's files" for name in others]
