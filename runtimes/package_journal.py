"""An update of a package's reports: all of its files or none, even if it is killed half-way.

What is new is complete in a folder, JOURNAL, before a rename puts that folder into the package:
there the update has happened. Its files then take their names, one by one. Meanwhile the manifest
vouches for none of them (a first manifest leaves them out, the last one has them), so the package
is right for every reader at every moment. Who opens or updates it next goes on where it was cut
short. A stranger's package may bring such a folder: nothing but reports is taken from one, as the
manifest that stands there has them, and nothing from a link.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptoss_onnx.runtimes.durable import sync_folder
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import MANIFEST, read_manifest
from gptoss_onnx.runtimes.package_files import sha256

JOURNAL = ".gptoss-update"
REPORTS = frozenset({"report.json", "report.html", "README.md"})  # what no application reads
WITHOUT = "manifest.without.json"  # the manifest while its reports take their names


def without(manifest: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The manifest, which does not vouch for `names`."""
    files = {name: entry for name, entry in manifest["files"].items() if name not in names}
    return {**manifest, "files": files}


def move(folder: Path) -> None:
    """Give what is in the journal its names, the manifest's last. What is gone was moved before."""
    journal = folder / JOURNAL
    with suppress(FileNotFoundError):  # another process goes on with it too, and was quicker
        left = sorted(set(os.listdir(journal)) & REPORTS)
        for source, name in ((WITHOUT, MANIFEST), *((n, n) for n in left)):
            with suppress(FileNotFoundError):
                os.replace(journal / source, folder / name)
        sync_folder(folder)
        os.replace(journal / MANIFEST, folder / MANIFEST)
    sync_folder(folder)
    with suppress(FileNotFoundError):
        journal.rmdir()


def finish(folder: Path) -> None:
    """Go on with an update that was cut short, if there is one and the folder can be written."""
    with suppress(OSError, UserError):
        if os.path.lexists(folder / JOURNAL) and _is_ours(folder):
            move(folder)


def clear(folder: Path) -> None:
    """Remove what is left of updates that did not happen."""
    for path in folder.glob(f"{JOURNAL}*"):
        remove(path)


def remove(path: Path) -> None:
    """A file, a link or a folder, whether it is there or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Whether a journal is what an update of this package's reports leaves, and no more."""
    journal = folder / JOURNAL
    if not stat.S_ISDIR(journal.lstat().st_mode):
        return False
    names = set(os.listdir(journal))
    if not names:
        return True
    if not all(stat.S_ISREG((journal / name).lstat().st_mode) for name in names):
        return False
    reports = names - {MANIFEST, WITHOUT}
    if MANIFEST not in names or not reports <= REPORTS:
        return False
    new, present = read_manifest(journal), read_manifest(folder)
    if without(new, set(REPORTS)) != without(present, set(REPORTS)):
        return False
    if WITHOUT in names:
        bare = read_manifest(journal, WITHOUT)
        if not reports.isdisjoint(bare["files"]) or bare != without(
            new, set(REPORTS) - bare["files"].keys()
        ):
            return False
    return all(
        new["files"].get(name)
        == {"size": (journal / name).stat().st_size, "sha256": sha256(journal / name)}
        for name in reports
    )
