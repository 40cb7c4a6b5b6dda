"""Checkpoint files inside a package without a copy.

ONNX Runtime refuses external data outside the model's folder, symbolic links followed, so a
linked package holds hard links: the same bytes under a second name, as long as either exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gptoss_onnx.runtimes.errors import UserError


def link_files(files: Iterable[Path], folder: Path) -> dict[Path, str]:
    """Hard-link each file into `folder`; gives its name there."""
    links: dict[Path, str] = {}
    for file in sorted(files):
        try:
            os.link(file.resolve(), folder / file.name)
        except OSError as error:
            raise UserError(
                f"{file}: cannot be linked into {folder.parent} ({error.strerror}); --link needs "
                "--output on the checkpoint's own disk: choose one there or leave --link out"
            ) from error
        links[file] = file.name
    return links
