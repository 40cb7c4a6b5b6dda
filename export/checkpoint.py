"""What an export needs of a checkpoint, whatever it is stored in.

A checkpoint has every tensor that `layout` lists, in the published names and shapes, however its
own files name and split them. A new format is a new implementation, chosen in `open_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.weights import ExpertSource, TensorSource

ExpertFormat = Literal["mxfp4", "dense"]
Projection = Literal["gate_up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = ("gate_up_proj", "down_proj")
LayoutEntry = tuple[str, tuple[int, ...], tuple[str, ...]]  # name, shape, allowed dtypes

FLOATS, BYTES = ("BF16", "F16", "F32"), ("U8",)
MXFP4_BLOCK = 32  # values that share a scale; two to a byte
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


class StoredTensor(TensorSource, Protocol):
    """A tensor that can be read by rows, and what it takes on the disk."""

    @property
    def dtype(self) -> str: ...  # as safetensors writes it: BF16, F16, F32 or U8
    @property
    def nbytes(self) -> int: ...


class Checkpoint(Protocol):
    """A GPT-OSS checkpoint in which every tensor the config asks for is there and fits.

    Nothing is read before it is asked for. Reading raises UserError, one line that names the
    tensor, for a file that has changed and for values that are no finite numbers.
    """

    @property
    def name(self) -> str: ...  # the last part of the folder's or the repository's name
    @property
    def revision(self) -> str | None: ...  # the hub's commit
    @property
    def place(self) -> str: ...  # where it is, for messages
    @property
    def config(self) -> Mapping[str, Any]: ...  # config.json
    @property
    def spec(self) -> GptOssSpec: ...
    @property
    def expert_format(self) -> ExpertFormat: ...
    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor of `layout` but dense experts, by its published name."""
        ...

    def expert_weight(self, layer: int, which: Projection) -> ExpertSource:
        """The expert weights of a layer, still on disk; `which` is gate_up_proj or down_proj."""
        ...

    def text(self, name: str) -> str | None:
        """What a file beside the weights says, as tokenizer.json; None where there is none.

        Bytes that are no UTF-8 come as surrogates ("surrogateescape").
        """
        ...

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration and the weights."""
        ...


def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a folder, or download `owner/name` from the hub at `revision` (cached).

    Raises UserError, one line, for anything that is missing, damaged or does not fit.
    """
    from gptoss_onnx.export.safetensors_checkpoint import SafetensorsCheckpoint

    return SafetensorsCheckpoint.open(source, revision)


def layout(spec: GptOssSpec, expert_format: ExpertFormat) -> Iterator[LayoutEntry]:
    """Every tensor of a checkpoint as published: its name, shape and allowed dtypes."""
    hidden, inner, experts = spec.hidden_size, spec.intermediate_size, spec.num_experts
    table = (spec.vocab_size, hidden)
    yield EMBEDDING, table, FLOATS
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
        yield LM_HEAD, table, FLOATS
