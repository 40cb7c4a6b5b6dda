"""A folder of safetensors: headers checked against the files, tensors read where they lie.

The headers are read here, not by the safetensors library: a package may reference a tensor where
it lies in the checkpoint, and the library does not tell offsets.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.runtimes.errors import UserError

Shape = tuple[int, ...]

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
}
# Other tools' codes and counters: known so that what wrote them can be told, and not read.
OTHERS = {"BOOL": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8, "F64": 8}
OTHERS |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

# Names out of a file are shown quoted and shortened: they may hold newlines, or be megabytes long.
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlist, _REPR.maxother = 120, 4, 60
show = _REPR.repr
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class TensorView:
    """A tensor where it lies: reading copies the bytes asked for and nothing else.

    Floats are looked at as they are read: a NaN would be a traceback in one rounding, and a
    package that answers nonsense after another.

    Not memory-mapped: pages touched through a map count as resident memory of the process.
    """

    name: str
    dtype: str  # as safetensors writes it: BF16, F16, F32 or U8
    shape: Shape
    file: Path
    offset: int  # bytes from the start of the file
    nbytes: int

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of the first axis.

        UserError where the file has become shorter and where a number is not finite.
        """
        first, last, _ = slice(start, stop).indices(self.shape[0])
        rows = np.empty((max(last - first, 0), *self.shape[1:]), DTYPES[self.dtype])
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        self._fill(rows.reshape(-1).view(np.uint8), first * row_bytes)
        if not _finite(rows, self.dtype):
            bad = next(
                row for row in range(len(rows)) if not _finite(rows[row : row + 1], self.dtype)
            )
            raise UserError(
                f"{self.file}: {self.name} holds NaN or infinity in row {first + bad}; get a sound "
                "checkpoint"
            )
        return rows

    def chunks(self, max_bytes: int = 1 << 24) -> Iterator[NDArray[np.uint8]]:
        """The raw bytes in file order, at most `max_bytes` at a time."""
        for start in range(0, self.nbytes, max_bytes):
            chunk = np.empty(min(max_bytes, self.nbytes - start), np.uint8)
            self._fill(chunk, start)
            yield chunk

    def _fill(self, out: NDArray[np.uint8], start: int) -> None:
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset + start)
                done = 0
                while done < out.size:  # one call reads 2 GiB at most
                    count = file.readinto(out.data[done:])
                    if not count:
                        raise OSError("the file ends early")
                    done += count
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.file}: cannot read {self.name} ({reason}); {AGAIN}") from error


# Bits of the exponent, all of them set in NaN and infinity, and the integers that hold them.
_EXPONENTS = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}


def _finite(values: NDArray[Any], dtype: str) -> bool:
    """By the bits: bfloat16 has no fast isfinite."""
    if dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[dtype]
    bits = values.reshape(-1).view(kind)
    return not ((bits & kind(exponent)) == kind(exponent)).any()


def read_json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        return parse_object(inside(folder, file.name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {file.name}; give the folder of a whole checkpoint"
        ) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {AGAIN}") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); {AGAIN}") from error


def parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object; ValueError on anything else and on a key given twice, at any depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            ((doubled, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {show(doubled)} twice")
        return parsed

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("not an object")
    return parsed


def inside(folder: Path, name: str) -> Path:
    """folder/name, refused where it is not a plain file of this folder."""
    # Both separators on every system: a checkpoint made here may be opened on Windows.
    if not re.fullmatch(r"[^/\\:\0]+", name) or name in (".", ".."):
        raise UserError(
            f"{folder / INDEX_FILE}: {show(name)} is not a file name in this folder; {AGAIN}"
        )
    root = Path(os.path.realpath(folder))  # Path.resolve raises on a link to itself
    target = Path(os.path.realpath(folder / name))
    # The hub's cache links snapshots/<commit>/<file> to blobs/<hash>.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if target.parent not in (root, blobs):
        raise UserError(f"{folder / name}: links out of its folder; copy the file itself here")
    return folder / name


def read_shards(folder: Path) -> dict[str, TensorView]:
    """The tensors of model.safetensors, or of the shards that the index names."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise UserError(f"{folder}: holds {SINGLE_FILE} and {INDEX_FILE}; remove the stale one")
    if single.exists():
        return _read_header(inside(folder, SINGLE_FILE))
    if not index.exists():
        raise UserError(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; {AGAIN}")
    listed = read_json(index, folder).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{index}: weight_map does not map tensors to files; {AGAIN}")
    found: dict[str, TensorView] = {}
    for shard in sorted(set(listed.values())):
        file = inside(folder, shard)
        if not file.is_file():
            raise UserError(f"{folder}: shard {show(shard)} is missing; {AGAIN}")
        views = _read_header(file)
        if doubled := sorted(views.keys() & found.keys()):
            other = found[doubled[0]].file.name
            raise UserError(f"{file}: {show(doubled)} also in {other}; {AGAIN}")
        found |= views
    for name, view in found.items():
        if listed.get(name) != view.file.name:
            raise UserError(f"{index}: does not list {show(name)} of {view.file.name}; {AGAIN}")
    if absent := sorted(listed.keys() - found.keys()):
        raise UserError(f"{folder / listed[absent[0]]}: lacks {show(absent)}; {AGAIN}")
    return found


def _read_header(file: Path) -> dict[str, TensorView]:
    """Parse a safetensors header; UserError where it and the file do not fit exactly."""

    def damaged(what: str) -> UserError:
        return UserError(f"{file}: {what}; {AGAIN}")

    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > MAX_HEADER_BYTES:  # a git-lfs pointer, a web page
                raise damaged("not a safetensors file")
            if 8 + length > size:
                raise damaged(f"truncated within its header ({size} bytes)")
            header = parse_object(stream.read(length))
    except OSError as error:
        raise damaged(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise damaged(f"its header is not valid JSON ({error})") from error
    header.pop("__metadata__", None)
    data = 8 + length
    views = []
    for name, entry in header.items():
        view = _parse_entry(file, data, name, entry)
        if view is None:
            raise damaged(f"the header's entry of {show(name)} is wrong: {show(entry)}")
        views.append(view)
    end = data
    for view in sorted(views, key=lambda view: (view.offset, view.nbytes)):
        if view.offset != end:
            what = "overlaps the tensor before it" if view.offset < end else "follows a gap"
            raise damaged(f"{show(view.name)} {what}")
        end += view.nbytes
    if size < end:
        raise damaged(f"truncated: {size} of {end} bytes")
    if size > end:
        raise damaged(f"{size - end} bytes more than its header describes")
    return {view.name: view for view in views}


def _parse_entry(file: Path, data: int, name: str, entry: Any) -> TensorView | None:
    """The view that a header's entry describes, None where it contradicts itself."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            return None
    if not isinstance(dtype, str) or len(offsets) != 2:
        return None
    if dtype not in DTYPES and dtype not in OTHERS:
        raise UserError(
            f"{file}: {show(name)} has dtype {show(dtype)}; convert it to one of "
            f"{', '.join(DTYPES)}"
        )
    nbytes = math.prod(shape) * (OTHERS.get(dtype) or DTYPES[dtype].itemsize)
    if offsets[1] - offsets[0] != nbytes:
        return None
    return TensorView(name, dtype, tuple(shape), file, data + offsets[0], nbytes)
