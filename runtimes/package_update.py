"""Writing into a package: whole or not at all, on the disk before it has its name."""

from __future__ import annotations

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
    _replace(folder, {MANIFEST: _text(made)})


def update_files(folder: Path | str, texts: Mapping[str, str]) -> None:
    """Write text files of a package, by name, and their hashes into its manifest.

    All of them or, when that fails, none: UserError. Other files of the folder are left alone.
    """
    folder = Path(folder)
    content = read_manifest(folder)
    data = {name: text.encode() for name, text in texts.items()}
    with _staged(folder, data) as staged:
        entries = {
            name: {"size": len(data[name]), "sha256": sha256(path)} for name, path in staged.items()
        }
        made = {**content, "files": dict(sorted({**content["files"], **entries}.items()))}
        check_manifest(made, folder / MANIFEST)
        with _staged(folder, {MANIFEST: _text(made)}) as manifest:
            _rename(folder, {**staged, **manifest})  # the manifest last


def write_report(folder: Path | str, figures: Mapping[str, Any]) -> None:
    """Merge measured `figures` into a package's report.json, and its hash into the manifest."""
    update_files(folder, {REPORT: _text({**read_report(folder), **figures}).decode()})


def read_report(folder: Path | str) -> dict[str, Any]:
    """A package's report.json; empty where there is none."""
    report = Path(folder) / REPORT
    if not report.is_file() or not inside(Path(folder), report):
        return {}
    return read_json(report)


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _replace(folder: Path, data: Mapping[str, bytes]) -> None:
    with _staged(folder, data) as staged:
        _rename(folder, staged)


@contextmanager
def _staged(folder: Path, data: Mapping[str, bytes]) -> Iterator[dict[str, Path]]:
    """Files of new content beside those they will replace: complete, and on the disk.

    Under names nobody can foresee: a stranger's package may have links where one would write.
    """
    made: dict[str, Path] = {}
    try:
        for name, content in data.items():
            descriptor, path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            made[name] = Path(path)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(descriptor)
            made[name].chmod(_mode(folder / name))
        yield made
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing was changed"
        ) from error
    finally:
        for file in made.values():
            file.unlink(missing_ok=True)


def _mode(old: Path) -> int:
    """Permissions of the file that is replaced, or those of a new one; mkstemp's are 0600."""
    if old.is_file():
        return old.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _rename(folder: Path, staged: Mapping[str, Path]) -> None:
    """Give staged files their names; when one cannot have its own, all have their old content."""
    with _kept(folder, staged) as old:
        try:
            for name, path in staged.items():
                os.replace(path, folder / name)
            sync_folder(folder)
        except BaseException:
            for name in staged:
                if name in old:
                    os.replace(old[name], folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            raise


@contextmanager
def _kept(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Copies of the files of these names that there are, links as links, for the time being."""
    with tempfile.TemporaryDirectory(prefix=".old.", dir=folder) as place:
        old = {name: Path(place, name) for name in names if os.path.lexists(folder / name)}
        for name, path in old.items():
            shutil.copy2(folder / name, path, follow_symlinks=False)
        yield old
