"""Bytes and names on the disk itself, so that a power cut leaves what was or what is to be."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync_tree(folder: Path) -> None:
    """Every file below `folder` and every name there."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            _sync(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """The names in `folder`, where the system lets a folder be opened."""
    with suppress(PermissionError):  # Windows does not
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
