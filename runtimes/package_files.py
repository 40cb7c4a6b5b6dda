"""The files of a package held to its manifest: that they are there, inside it, and as they were."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from gptoss_onnx.runtimes.manifest import Manifest, graph_files

Progress = Callable[[int], None]  # called with the number of bytes read since the last call
_BLOCK = 1 << 20
_DATA = re.compile(r"\.onnx\.data(?:\.[0-9]+)?")  # how the exporter calls what graphs refer to
_TEXTS = frozenset({"config.json", "generation_config.json", "tokenizer.json"})


def read_files(manifest: Manifest) -> list[str]:
    """Names of the files that an application reads: they gate loading, reports do not."""
    wanted = {manifest.graph, *_TEXTS}
    if manifest.graph.endswith(".onnx"):
        wanted |= set(manifest.links)
        wanted |= {name for name in manifest.files if _is_data(name)}
    return sorted(wanted & set(manifest.files))


def _is_data(name: str) -> bool:
    found = _DATA.search(name)
    return found is not None and found.end() == len(name)


def check_sizes(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with files by their sizes alone: no byte is read. None for all of them."""
    return [
        f"{name}: {why}"
        for name in (manifest.files if names is None else names)
        if (why := _wrong(folder, name, manifest.files[name].size))
    ]


def check_files(folder: Path | str, progress: Progress | None = None) -> list[str]:
    """What is wrong with the files of a package, one line each; empty when every byte is right."""
    folder, manifest = Path(folder), Manifest.load(folder, graph_files(folder)[0])
    problems = []
    for name, entry in manifest.files.items():
        if why := _wrong(folder, name, entry.size):
            problems.append(f"{name}: {why}")
        elif sha256(folder / name, progress) != entry.sha256:
            problems.append(f"{name}: its bytes changed: the SHA-256 is not the manifest's")
    return problems


def inside(folder: Path, file: Path) -> bool:
    """Whether `file`, links followed, lies in `folder`, or where a hub's cache keeps its files."""
    real = file.resolve()
    homes = [folder.resolve()]
    # huggingface_hub: snapshots/REVISION/NAME is a link to blobs/HASH of the same repository.
    homes += [p.parent / "blobs" for p in homes[0].parents if p.name == "snapshots"]
    return any(real.is_relative_to(home) for home in homes)


def sha256(file: Path, progress: Progress | None = None) -> str:
    """In hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def _wrong(folder: Path, name: str, size: int) -> str | None:
    path = folder / name
    if not path.is_file():
        return "missing" + (f" (a link to {os.readlink(path)})" if path.is_symlink() else "")
    if not inside(folder, path):
        return "a link out of the package; copy the package with its files (cp -rL)"
    found = path.stat().st_size
    return None if found == size else f"{found} bytes instead of {size}"
