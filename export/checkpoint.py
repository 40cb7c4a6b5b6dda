"""Checkpoints as published: a folder or a hub id, checked against its config, no weight loaded.

The safetensors headers are read here, not by the safetensors library: a package may reference a
tensor where it lies in the checkpoint, and the library does not tell offsets.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from export.spec import GptOssSpec
from runtimes.errors import UserError

ExpertFormat = Literal["mxfp4", "dense"]
Projection = Literal["gate_up_proj", "down_proj"]
Shape = tuple[int, ...]
LayoutEntry = tuple[str, Shape, tuple[str, ...]]  # name, shape, allowed dtypes

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
}
FLOATS, BYTES = ("BF16", "F16", "F32"), ("U8",)
MXFP4_BLOCK = 32  # values that share a scale; two to a byte
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Only what an export reads. Subfolders of the hub repositories hold the weights a second time.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "LICENSE*", "USAGE_POLICY*"]
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # computed from the config, not a weight

# Names out of a file are shown quoted and shortened: they may hold newlines, or be megabytes long.
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlist, _REPR.maxother = 120, 4, 60
_show = _REPR.repr
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class TensorView:
    """A tensor where it lies: reading copies the bytes asked for and nothing else.

    Not memory-mapped: pages touched through a map count as resident memory of the process.
    """

    name: str
    dtype: str  # as safetensors writes it: BF16, F16, F32 or U8
    shape: Shape
    file: Path
    offset: int  # bytes from the start of the file
    nbytes: int

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of the first axis; UserError where the file has become shorter."""
        first, last, _ = slice(start, stop).indices(self.shape[0])
        rows = np.empty((max(last - first, 0), *self.shape[1:]), DTYPES[self.dtype])
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        self._fill(rows.reshape(-1).view(np.uint8), first * row_bytes)
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


@dataclass(frozen=True)
class Mxfp4Experts:
    """One projection of all experts of a layer, packed: value = E2M1[code] * 2^(scale - 127)."""

    blocks: TensorView  # U8 [E, N, K/32, 16], two codes to a byte, the low nibble first
    scales: TensorView  # U8 [E, N, K/32]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K): experts, output features, input features."""
        experts, rows, groups = self.scales.shape
        return experts, rows, groups * MXFP4_BLOCK

    def read(self, expert: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Blocks [N, K/32, 16] and scales [N, K/32] of one expert, as stored."""
        return (self.blocks.read(expert, expert + 1)[0], self.scales.read(expert, expert + 1)[0])


@dataclass(frozen=True)
class DenseExperts:
    """One projection of all experts of a layer, in floats and transposed on disk."""

    view: TensorView  # [E, K, N]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, N, K): experts, output features, input features."""
        experts, columns, rows = self.view.shape
        return experts, rows, columns

    def read(self, expert: int) -> NDArray[np.float32]:
        """The weight of one expert, float32 [N, K], contiguous."""
        stored = self.view.read(expert, expert + 1)[0]  # [K, N]
        return np.ascontiguousarray(stored.T, np.float32)


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-OSS checkpoint in which every tensor the config asks for is there and fits."""

    path: Path
    name: str  # the last part of the folder's or the repository's name
    revision: str | None  # the hub's commit
    config: dict[str, Any]
    spec: GptOssSpec
    expert_format: ExpertFormat
    tensors: Mapping[str, TensorView]

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> Checkpoint:
        """Open a folder, or download `owner/name` from the hub at `revision` (cached).

        Raises UserError, one line, for anything that is missing, damaged or does not fit.
        """
        folder = Path(os.path.abspath(source))
        name, commit = folder.name, None
        if os.path.isdir(folder):  # Path.is_dir raises where a parent is locked
            if revision is not None:
                raise UserError(f"{folder}: a folder has no revision {revision!r}; leave it out")
        elif os.path.exists(folder):
            raise UserError(f"{folder} is a file; give the folder that holds it")
        elif HUB_ID.fullmatch(str(source)):
            folder = _download(str(source), revision)
            name, commit = str(source).split("/")[1], folder.name
        else:
            raise UserError(f"{folder}: no such folder; give a checkpoint's folder or owner/name")
        config = _read_json(folder / "config.json", folder)
        spec = GptOssSpec.from_config(config)
        found = _read_shards(folder)
        expert_format = _expert_format(folder, found)
        tensors = _check_layout(folder, spec, expert_format, found)
        return cls(folder, name, commit, config, spec, expert_format, tensors)

    def expert_weight(self, layer: int, which: Projection) -> Mxfp4Experts | DenseExperts:
        """The expert weights of a layer, still on disk; `which` is gate_up_proj or down_proj."""
        name = f"model.layers.{layer}.mlp.experts.{which}"
        if self.expert_format == "mxfp4":
            return Mxfp4Experts(self.tensors[f"{name}_blocks"], self.tensors[f"{name}_scales"])
        return DenseExperts(self.tensors[name])


def layout(spec: GptOssSpec, expert_format: ExpertFormat) -> Iterator[LayoutEntry]:
    """Every tensor of a checkpoint as published: its name, shape and allowed dtypes."""
    hidden, inner, experts = spec.hidden_size, spec.intermediate_size, spec.num_experts
    table = (spec.vocab_size, hidden)
    yield "model.embed_tokens.weight", table, FLOATS
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,), FLOATS
        yield f"{prefix}self_attn.sinks", (spec.num_heads,), FLOATS
        for which, rows, columns in (
            ("self_attn.q_proj", spec.query_size, hidden),
            ("self_attn.k_proj", spec.kv_size, hidden),
            ("self_attn.v_proj", spec.kv_size, hidden),
            ("self_attn.o_proj", hidden, spec.query_size),
            ("mlp.router", experts, hidden),
        ):
            yield f"{prefix}{which}.weight", (rows, columns), FLOATS
            yield f"{prefix}{which}.bias", (rows,), FLOATS
        yield f"{prefix}post_attention_layernorm.weight", (hidden,), FLOATS
        for which, rows, columns in (
            ("mlp.experts.gate_up_proj", 2 * inner, hidden),
            ("mlp.experts.down_proj", hidden, inner),
        ):
            yield f"{prefix}{which}_bias", (experts, rows), FLOATS
            if expert_format == "mxfp4":
                groups = (experts, rows, columns // MXFP4_BLOCK)
                yield f"{prefix}{which}_blocks", (*groups, MXFP4_BLOCK // 2), BYTES
                yield f"{prefix}{which}_scales", groups, BYTES
            else:
                yield f"{prefix}{which}", (experts, columns, rows), FLOATS
    yield "model.norm.weight", (hidden,), FLOATS
    if not spec.tie_word_embeddings:
        yield "lm_head.weight", table, FLOATS


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


def _read_json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        return _parse_object(_inside(folder, file.name).read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {file.name}; give the folder of a whole checkpoint"
        ) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {AGAIN}") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); {AGAIN}") from error


def _parse_object(text: bytes) -> dict[str, Any]:
    """A JSON object; ValueError on anything else and on a key given twice, at any depth."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            ((doubled, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {_show(doubled)} twice")
        return parsed

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("not an object")
    return parsed


def _inside(folder: Path, name: str) -> Path:
    """folder/name, refused where it is not a plain file of this folder."""
    # Both separators on every system: a checkpoint made here may be opened on Windows.
    if not re.fullmatch(r"[^/\\:\0]+", name) or name in (".", ".."):
        raise UserError(
            f"{folder / INDEX_FILE}: {_show(name)} is not a file name in this folder; {AGAIN}"
        )
    root = Path(os.path.realpath(folder))  # Path.resolve raises on a link to itself
    target = Path(os.path.realpath(folder / name))
    # The hub's cache links snapshots/<commit>/<file> to blobs/<hash>.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if target.parent not in (root, blobs):
        raise UserError(f"{folder / name}: links out of its folder; copy the file itself here")
    return folder / name


def _read_shards(folder: Path) -> dict[str, TensorView]:
    """The tensors of model.safetensors, or of the shards that the index names."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.exists() and index.exists():
        raise UserError(f"{folder}: holds {SINGLE_FILE} and {INDEX_FILE}; remove the stale one")
    if single.exists():
        return _read_header(_inside(folder, SINGLE_FILE))
    if not index.exists():
        _refuse_without_safetensors(folder)
    listed = _read_json(index, folder).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{index}: weight_map does not map tensors to files; {AGAIN}")
    found: dict[str, TensorView] = {}
    for shard in sorted(set(listed.values())):
        file = _inside(folder, shard)
        if not file.is_file():
            raise UserError(f"{folder}: shard {_show(shard)} is missing; {AGAIN}")
        views = _read_header(file)
        if doubled := sorted(views.keys() & found.keys()):
            other = found[doubled[0]].file.name
            raise UserError(f"{file}: {_show(doubled)} also in {other}; {AGAIN}")
        found |= views
    for name, view in found.items():
        if listed.get(name) != view.file.name:
            raise UserError(f"{index}: does not list {_show(name)} of {view.file.name}; {AGAIN}")
    if absent := sorted(listed.keys() - found.keys()):
        raise UserError(f"{folder / listed[absent[0]]}: lacks {_show(absent)}; {AGAIN}")
    return found


def _refuse_without_safetensors(folder: Path) -> NoReturn:
    pickles = [file.name for kind in ("bin", "pt", "pth") for file in folder.glob(f"*.{kind}")]
    if pickles:
        raise UserError(
            f"{folder}: only pickled weights ({_show(sorted(pickles)[0])}), which can run code "
            "when loaded; convert them to safetensors where that does no harm, or get a release "
            "in safetensors"
        )
    raise UserError(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; {AGAIN}")


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
            header = _parse_object(stream.read(length))
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
            raise damaged(f"the header's entry of {_show(name)} is wrong: {_show(entry)}")
        views.append(view)
    end = data
    for view in sorted(views, key=lambda view: (view.offset, view.nbytes)):
        if view.offset != end:
            what = "overlaps the tensor before it" if view.offset < end else "follows a gap"
            raise damaged(f"{_show(view.name)} {what}")
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
    if dtype not in DTYPES:
        raise UserError(
            f"{file}: {_show(name)} has dtype {_show(dtype)}; convert it to one of "
            f"{', '.join(DTYPES)}"
        )
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        return None
    return TensorView(name, dtype, tuple(shape), file, data + offsets[0], nbytes)


def _expert_format(folder: Path, found: Mapping[str, TensorView]) -> ExpertFormat:
    experts = [name for name in found if ".mlp.experts." in name and not name.endswith("_bias")]
    packed = [name for name in experts if name.endswith(("_blocks", "_scales"))]
    dense = [name for name in experts if name.endswith(("gate_up_proj", "down_proj"))]
    if packed and dense:
        raise UserError(
            f"{folder}: experts are packed ({_show(packed[0])}) and dense ({_show(dense[0])}); "
            "convert all layers to one format"
        )
    return "mxfp4" if packed else "dense"


def _check_layout(
    folder: Path, spec: GptOssSpec, expert_format: ExpertFormat, found: Mapping[str, TensorView]
) -> dict[str, TensorView]:
    """The tensors that the spec asks for, all there, and nothing unknown beside them."""
    if expert_format == "mxfp4":
        for size in (spec.hidden_size, spec.intermediate_size):
            if size % MXFP4_BLOCK:
                raise UserError(
                    f"{folder}: MXFP4 experts need sizes in multiples of {MXFP4_BLOCK}, "
                    f"config.json says {size}; use the config these weights came with"
                )
    tensors: dict[str, TensorView] = {}
    for name, shape, dtypes in layout(spec, expert_format):
        view = found.get(name)
        if view is None:
            raise UserError(
                f"{folder}: tensor {name} {list(shape)} is missing; get the whole checkpoint, "
                "and the config.json it came with"
            )
        if view.shape != shape or view.dtype not in dtypes:
            raise UserError(
                f"{view.file}: {name} is {view.dtype} {_show(list(view.shape))}, expected "
                f"{'/'.join(dtypes)} {list(shape)}; use the config.json these weights came with"
            )
        tensors[name] = view
    unknown = [name for name in found if name not in tensors and not IGNORED.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{folder}: {_show(sorted(unknown))} is no part of the model config.json describes; "
            "use the config.json these weights came with, merge adapters first"
        )
    return tensors
