"""Checkpoints as published: a folder or a hub id, checked against its config, no weight loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.export.safetensors_folder import (
    Shape,
    TensorView,
    read_json,
    read_shards,
    show,
)
from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.runtimes.errors import UserError

ExpertFormat = Literal["mxfp4", "dense"]
Projection = Literal["gate_up_proj", "down_proj"]
LayoutEntry = tuple[str, Shape, tuple[str, ...]]  # name, shape, allowed dtypes

FLOATS, BYTES = ("BF16", "F16", "F32"), ("U8",)
MXFP4_BLOCK = 32  # values that share a scale; two to a byte
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Only what an export reads. Subfolders of the hub repositories hold the weights a second time.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "LICENSE*", "USAGE_POLICY*"]
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")  # computed from the config, not a weight


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
        config = read_json(folder / "config.json", folder)
        spec = GptOssSpec.from_config(config)
        found = read_shards(folder)
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


def _expert_format(folder: Path, found: Mapping[str, TensorView]) -> ExpertFormat:
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
                f"{view.file}: {name} is {view.dtype} {show(list(view.shape))}, expected "
                f"{'/'.join(dtypes)} {list(shape)}; use the config.json these weights came with"
            )
        tensors[name] = view
    unknown = [name for name in found if name not in tensors and not IGNORED.fullmatch(name)]
    if unknown:
        raise UserError(
            f"{folder}: {show(sorted(unknown))} is no part of the model config.json describes; "
            "use the config.json these weights came with, merge adapters first"
        )
    return tensors
