"""A checkpoint as a folder of safetensors, checked against its config, no weight loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_onnx.export.checkpoint import (
    EMBEDDING,
    LM_HEAD,
    MXFP4_BLOCK,
    ExpertFormat,
    Projection,
    StoredTensor,
    layout,
)
from gptoss_onnx.export.experts import DenseExperts, Mxfp4Experts, UnfusedExperts
from gptoss_onnx.export.hub import local_folder
from gptoss_onnx.export.other_formats import refuse_config, refuse_folder, refuse_names
from gptoss_onnx.export.safetensors_folder import (
    DTYPES,
    TensorView,
    inside,
    read_json,
    read_shards,
    show,
)
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.export.tensor_names import Stored, published_names
from gptoss_onnx.graph_passes.weights import as_float32
from gptoss_onnx.runtimes.errors import UserError

IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # computed from the config, not a weight
_COMPARED_ROWS = 1024


@dataclass(frozen=True)
class SafetensorsCheckpoint:
    """The `Checkpoint` of a folder; `folder` is for messages alone outside this room."""

    folder: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    spec: GptOssSpec
    expert_format: ExpertFormat
    stored: Mapping[str, Stored]

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> SafetensorsCheckpoint:
        """As `open_checkpoint`."""
        folder, name, commit = local_folder(source, revision)
        refuse_folder(folder)
        config = read_json(folder / "config.json", folder)
        refuse_config(config)
        found = read_shards(folder)
        refuse_names(folder, found)
        spec = GptOssSpec.from_config(config)
        named = published_names(folder, found)
        expert_format = _expert_format(folder, named)
        stored = _check_layout(folder, spec, expert_format, named)
        return cls(folder, name, commit, config, spec, expert_format, stored)

    @property
    def place(self) -> str:
        return str(self.folder)

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return {n: view for n, view in self.stored.items() if not isinstance(view, UnfusedExperts)}

    def expert_weight(
        self, layer: int, which: Projection
    ) -> Mxfp4Experts | DenseExperts | UnfusedExperts:
        name = f"model.layers.{layer}.mlp.experts.{which}"
        if self.expert_format == "mxfp4":
            blocks, scales = self.stored[f"{name}_blocks"], self.stored[f"{name}_scales"]
            assert isinstance(blocks, TensorView) and isinstance(scales, TensorView)
            return Mxfp4Experts(blocks, scales)
        view = self.stored[name]
        if isinstance(view, UnfusedExperts):
            return view
        assert isinstance(view, TensorView)
        return DenseExperts(view)

    def text(self, name: str) -> str | None:
        *folders, last = name.split("/")
        folder = self.folder.joinpath(*folders)
        if not (folder / last).is_file():
            return None
        try:
            data = inside(folder, last).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / last}: cannot be read ({error.strerror})") from error
        return data.decode("utf-8", "surrogateescape")

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(p for p in self.folder.iterdir() if p.is_file()):
            if path.suffix in (".safetensors", ".json"):
                with path.open("rb") as stream:
                    digest.update(path.name.encode())
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def _expert_format(folder: Path, found: Mapping[str, Stored]) -> ExpertFormat:
    experts = [name for name in found if ".mlp.experts." in name and not name.endswith("_bias")]
    packed = [name for name in experts if name.endswith(("_blocks", "_scales"))]
    dense = [name for name in experts if name.endswith(("gate_up_proj", "down_proj"))]
    if packed and dense:
        raise UserError(
            f"{folder}: experts are packed ({show(packed[0])}) and dense ({show(dense[0])}); "
            "convert all layers to one format"
        )
    return "mxfp4" if packed else "dense"


def _check_layout(
    folder: Path, spec: GptOssSpec, expert_format: ExpertFormat, found: Mapping[str, Stored]
) -> dict[str, Stored]:
    """The tensors that the spec asks for, all there, and nothing unknown beside them."""
    if expert_format == "mxfp4":
        for size in (spec.hidden_size, spec.intermediate_size):
            if size % MXFP4_BLOCK:
                raise UserError(
                    f"{folder}: MXFP4 experts need sizes in multiples of {MXFP4_BLOCK}, "
                    f"config.json says {size}; use the config these weights came with"
                )
    tensors: dict[str, Stored] = {}
    for name, shape, dtypes in layout(spec, expert_format):
        view = found.get(name)
        if view is None:
            tied = " (or tie_word_embeddings true, where it is the embedding)"
            raise UserError(
                f"{folder}: tensor {name} {list(shape)} is missing; get the whole checkpoint, "
                f"and the config.json it came with{tied if name == LM_HEAD else ''}"
            )
        _check_tensor(view, name, shape, dtypes)
        tensors[name] = view
    known = set(tensors)
    if spec.tie_word_embeddings and LM_HEAD in found:
        _check_tied(folder, found[EMBEDDING], found[LM_HEAD])
        known.add(LM_HEAD)
    unknown = [name for name in found if name not in known and not IGNORED.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{folder}: {show(sorted(unknown))} is no part of the model config.json describes; "
            "use the config.json these weights came with, merge adapters first"
        )
    return tensors


def _check_tensor(view: Stored, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    file = view.file if isinstance(view, TensorView) else view.views[0].file
    if isinstance(view, UnfusedExperts):  # not transposed, as a dense tensor is
        shape = shape[0], shape[2], shape[1]
    if view.dtype not in DTYPES:
        raise UserError(
            f"{file}: {name} has dtype {show(view.dtype)}; convert it to one of {', '.join(DTYPES)}"
        )
    if view.shape != shape or view.dtype not in dtypes:
        raise UserError(
            f"{file}: {name} is {view.dtype} {show(list(view.shape))}, expected "
            f"{'/'.join(dtypes)} {list(shape)}; use the config.json these weights came with"
        )


def _check_tied(folder: Path, embedding: Stored, head: Stored) -> None:
    """transformers 4 would drop another lm_head, transformers 5 would not tie it."""
    assert isinstance(embedding, TensorView) and isinstance(head, TensorView)
    same = head.shape == embedding.shape and head.dtype in DTYPES
    for start in range(0, embedding.shape[0], _COMPARED_ROWS) if same else ():
        ours, theirs = (
            as_float32(v.read(start, start + _COMPARED_ROWS)) for v in (embedding, head)
        )
        same = same and np.array_equal(ours, theirs)
    if not same:
        raise UserError(
            f"{folder}: tie_word_embeddings is true, and {LM_HEAD} is not {EMBEDDING}; "
            f"write false into config.json, or remove {LM_HEAD}, whichever this model is"
        )
