"""A checkpoint's folder: one that is there, or a repository of the hub, downloaded and cached."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gptoss_onnx.runtimes.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Only what an export reads. Subfolders of the hub repositories hold the weights a second time.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "LICENSE*", "USAGE_POLICY*"]


def local_folder(source: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """The folder of `source`, a folder or `owner/name` at `revision`; its name; the hub's commit.

    Raises UserError, one line, where there is none.
    """
    folder = Path(os.path.abspath(source))
    if os.path.isdir(folder):  # Path.is_dir raises where a parent is locked
        if revision is not None:
            raise UserError(f"{folder}: a folder has no revision {revision!r}; leave it out")
        return folder, folder.name, None
    if os.path.exists(folder):
        raise UserError(f"{folder} is a file; give the folder that holds it")
    if not HUB_ID.fullmatch(str(source)):
        raise UserError(f"{folder}: no such folder; give a checkpoint's folder or owner/name")
    folder = _download(str(source), revision)
    return folder, str(source).split("/")[1], folder.name


def _download(repository: str, revision: str | None) -> Path:
    import huggingface_hub  # here, since it takes half a second and a folder needs none of it
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=HUB_PATTERNS,
                ignore_patterns=["*/*"],
            )
        )
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repository}: the hub has no revision {revision!r}; give a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:  # gated repositories too
        raise UserError(
            f"{repository}: no such folder, and no repository you may read on the hub; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{repository}: no such folder, not in the hub's cache, and the hub cannot be reached; "
            "connect (and unset HF_HUB_OFFLINE), or give a checkpoint's folder"
        ) from error
    except Exception as error:  # requests', httpx's or the file system's, by the hub's version
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{repository}: the download failed ({type(error).__name__}: {reason}); "
            "check the connection and the disk, and run it again to go on"
        ) from error
