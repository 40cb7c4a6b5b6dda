"""Writing into a package: whole or not at all, on the disk before it has its name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.durable import sync_folder
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.json_file import read_json
from gptoss_onnx.runtimes.manifest import FORMAT, MANIFEST, check_manifest, read_manifest
from gptoss_onnx.runtimes.package_files import Progress, inside, sha256
from gptoss_onnx.runtimes.package_journal import (
    JOURNAL,
    REPORTS,
    WITHOUT,
    clear,
    finish,
    move,
    remove,
    without,
)

REPORT = "report.json"


def write_manifest(
    folder: Path | str,
    content: Mapping[str, Any],
    files: Iterable[str],
    hashed: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `content` with the size and SHA-256 of `files`, names in `folder`, as its manifest.

    `hashed` holds the SHA-256 of files that were hashed as they were written, by name: they are
    not read again. UserError for what would be no valid manifest.
    """
    folder, hashed = Path(folder), hashed or {}
    entries = {
        name: {
            "size": (folder / name).stat().st_size,
            "sha256": hashed.get(name) or sha256(folder / name, progress),
        }
        for name in sorted(set(files) - {MANIFEST})
    }
    made = {"format": FORMAT, **content, "files": entries}
    check_manifest(made, folder / MANIFEST)
    _replace(folder, MANIFEST, _text(made))


def update_files(folder: Path | str, texts: Mapping[str, str]) -> None:
    """Write reports of a package, by name, and their hashes into its manifest.

    All of them or, when that fails, none: UserError. When the process is killed, who opens or
    updates the package next finishes it, or nothing happened. Other files are left alone.
    """
    folder = Path(folder)
    if others := set(texts) - REPORTS:
        raise ValueError(f"{', '.join(sorted(others))}: reports alone are updated")
    finish(folder)
    content = read_manifest(folder)
    data = {name: text.encode() for name, text in texts.items()}
    entries = {
        name: {"size": len(new), "sha256": hashlib.sha256(new).hexdigest()}
        for name, new in data.items()
    }
    made = {**content, "files": dict(sorted({**content["files"], **entries}.items()))}
    check_manifest(made, folder / MANIFEST)
    with _changing(folder):
        clear(folder)
        with _kept(folder, [*texts, MANIFEST]) as old:
            staged = {WITHOUT: _text(without(content, set(texts))), **data, MANIFEST: _text(made)}
            place = Path(tempfile.mkdtemp(prefix=f"{JOURNAL}.", dir=folder))
            try:
                for name, new in staged.items():
                    mode = _mode(folder / (MANIFEST if name == WITHOUT else name))
                    _write(place / name, new, mode)
                sync_folder(place)
                os.replace(place, folder / JOURNAL)
                sync_folder(folder)
                move(folder)
            except BaseException:
                remove(place)
                remove(folder / JOURNAL)
                _restore(folder, [*texts, MANIFEST], old)
                raise


def write_report(folder: Path | str, figures: Mapping[str, Any]) -> None:
    """Merge measured `figures` into a package's report.json, and its hash into the manifest."""
    update_files(folder, {REPORT: _text({**read_report(folder), **figures}).decode()})


def read_report(folder: Path | str) -> dict[str, Any]:
    """A package's report.json; empty where there is none."""
    finish(Path(folder))
    report = Path(folder) / REPORT
    if not report.is_file() or not inside(Path(folder), report):
        return {}
    return read_json(report)


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Under a name nobody can foresee until it is complete and on the disk.

    A stranger's package may have links where one would write.
    """
    with _changing(folder), _kept(folder, [name]) as old:
        descriptor, made = tempfile.mkstemp(prefix=f"{JOURNAL}.", dir=folder)
        os.close(descriptor)
        path = Path(made)
        try:
            _write(path, content, _mode(folder / name))
            os.replace(path, folder / name)
            sync_folder(folder)
        except BaseException:
            remove(path)
            _restore(folder, [name], old)
            raise


def _write(path: Path, content: bytes, mode: int) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(mode)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing was changed"
        ) from error


def _mode(old: Path) -> int:
    """Permissions of the file that is replaced, or those of a new one; mkstemp's are 0600."""
    if old.is_file():
        return old.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _restore(folder: Path, names: Iterable[str], old: Mapping[str, Path]) -> None:
    for name in names:
        if name in old:
            os.replace(old[name], folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


@contextmanager
def _kept(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Copies of the files of these names that there are, links as links, for the time being."""
    prefix = f"{JOURNAL}.old."
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=folder, ignore_cleanup_errors=True
    ) as place:
        old = {name: Path(place, name) for name in names if os.path.lexists(folder / name)}
        for name, path in old.items():
            shutil.copy2(folder / name, path, follow_symlinks=False)
        yield old
