"""A package exists whole or not at all: written under a temporary name, renamed when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from gptoss_onnx.runtimes.durable import sync_folder, sync_tree
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST

SPARE_BYTES = 64 << 20  # for everything that is not a weight


@contextmanager
def staged(output: Path, *, force: bool = False) -> Iterator[Callable[[int], Path]]:
    """Give a function that makes the temporary folder once the bytes to come are known.

    It is renamed to `output` at the end, or removed on any exception. With `force` a package that
    is in the way is replaced, and stays where it is until the new one is complete; a folder that
    is no package never is.
    """
    output = output.absolute()
    check_free(output, force)
    made: list[Path] = []
    parents: list[Path] = []  # folders above that are there for this package alone, deepest first

    def prepare(size: int) -> Path:
        parents.extend(takewhile(lambda folder: not folder.exists(), output.parents))
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if size + SPARE_BYTES > free:
            raise UserError(
                f"{output.parent}: {needed(size + SPARE_BYTES)} are needed, {needed(SPARE_BYTES)} "
                f"of them for all that is no weight, and {available(free)} are free; free space "
                "there or choose another --output"
            )
        made.append(Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)))
        os.chmod(made[0], 0o755)  # mkdtemp's 0700 would outlast the rename
        return made[0]

    try:
        yield prepare
        if made:
            sync_tree(made[0])  # before it has its name: else a power cut leaves half of it there
            _replace(made[0], output)
            sync_folder(output.parent)
            parents.clear()
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); "
            "free space there or choose another --output"
        ) from error
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # somebody else has put something there meanwhile
            for folder in parents:
                folder.rmdir()


def needed(size: int) -> str:
    """Bytes that must be there, rounded up to a tenth of a MB or GB."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    return f"{-(-size * 10 // unit) / 10:.1f} {name}"


def available(size: int) -> str:
    """Bytes that are there, rounded down: so that what is needed never looks the smaller."""
    unit, name = (10**9, "GB") if size >= 10**9 else (10**6, "MB")
    return f"{size * 10 // unit / 10:.1f} {name}"


def check_free(output: Path, force: bool) -> None:
    """UserError where a package may not be written to `output`."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise UserError(f"{output}: a file is in the way; choose another --output")
    if not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output}: is not empty and no package; choose another --output")
    if not force:
        raise UserError(f"{output}: a package is there already; use --force to replace it")


def _replace(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    output.rename(old / output.name)
    try:
        folder.rename(output)
    except OSError:
        (old / output.name).rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
