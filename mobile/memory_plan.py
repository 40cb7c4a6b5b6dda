"""The memory a package takes on a phone: arithmetic on spec, formats and target, before export.

What can be freed and what cannot are told apart. Weights in data files are mapped: the system drops
their pages when memory is short. Most are read once, at load, when MatMulNBits arranges codes for
the processor in memory of its own (`packed`), which stays. A .ort file is read into memory, not
mapped, so while it loads its weights are there twice more. Measured on x86-64 (mobile/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gptoss_onnx.export.spec import GptOssSpec
from gptoss_onnx.graph_passes.attention_spec import kv_windows
from gptoss_onnx.graph_passes.quantization import PRESETS, Format, Quantization
from gptoss_onnx.graph_passes.rounding import SEARCH
from gptoss_onnx.graph_passes.share_tied import is_shared
from gptoss_onnx.runtimes.batch import windowed_rows
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.row import SNAPSHOTS
from gptoss_onnx.runtimes.target import Target

CHUNK = 64  # tokens of a prompt that the apps feed at once
CONTEXT = 4096  # tokens of the longest conversation, as the apps start one
RUNTIME = 16 << 20  # the session, its nodes and threads; the library itself is mapped
_FLOAT = 4
_PACKED_BLOCK = 8  # bytes a block of codes takes in packed form beside the codes: scale and sum
_ELEMENT = {"float": _FLOAT, "int8": 1}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. `needed` is what no other process can have while the app runs."""

    context: int  # tokens
    kv: str  # "float" | "int8"
    file_format: str  # "onnx" | "ort"
    weights: int  # of the files
    packed: int
    kv_fixed: int  # windowed layers and their snapshots, whatever the context
    kv_per_token: int
    arena: int

    @property
    def kv_bytes(self) -> int:
        return self.kv_fixed + self.context * self.kv_per_token

    @property
    def unmapped(self) -> int:
        """Weights in memory that is no file's, while an .ort file loads."""
        return 2 * self.weights if self.file_format == "ort" else 0

    @property
    def needed(self) -> int:
        running = self.kv_bytes + self.arena
        return RUNTIME + self.packed + max(self.unmapped, running)

    def rows(self) -> dict[str, str]:
        """For printing: what takes how much."""
        mapped = "read into memory to load" if self.unmapped else "mapped, can be dropped"
        return {
            "weights": f"{_size(self.weights)} ({mapped})",
            "packed weights": _size(self.packed),
            "KV cache": f"{_size(self.kv_bytes)} of {self.kv} at {self.context} tokens, "
            f"{_size(1000 * self.kv_per_token)} per 1000",
            "arena": f"{_size(self.arena)} for {CHUNK} tokens at once",
            "ONNX Runtime": _size(RUNTIME),
            "needed": _size(self.needed),
        }


def memory_plan(
    spec: GptOssSpec,
    quantization: Quantization,
    target: Target,
    *,
    context: int = CONTEXT,
    kv: str | None = None,
    file_format: str | None = None,
) -> MemoryPlan:
    """The plan at `context` tokens. `kv` and `file_format` are the target's own unless given."""
    weights, packed = _weights(spec, quantization, target)
    if file_format is None:
        one_file = target.ort_files and weights <= (target.max_data_bytes or weights)
        file_format = "ort" if one_file else "onnx"
    kv = kv or target.kv
    row = 2 * spec.kv_size * _ELEMENT[kv]
    windows = [kept for kept in kv_windows(spec.attention, target) if kept is not None]
    return MemoryPlan(
        context=min(context, spec.max_position_embeddings),
        kv=kv,
        file_format=file_format,
        weights=weights,
        packed=packed,
        kv_fixed=row * sum(map(windowed_rows, windows)) * (1 + SNAPSHOTS),
        kv_per_token=(spec.num_layers - len(windows)) * row,
        arena=_arena(spec, target, context),
    )


def _weights(spec: GptOssSpec, quantization: Quantization, target: Target) -> tuple[int, int]:
    """Bytes in files, and bytes that kernels pack anew."""
    hidden, inner, vocab = spec.hidden_size, spec.intermediate_size, spec.vocab_size
    tables = spec.max_position_embeddings * spec.head_dim * _FLOAT  # cosines and sines
    total = tables
    if not (spec.tie_word_embeddings and is_shared(quantization, SEARCH, target)):
        total += _stored(vocab, hidden, quantization.of("embedding"))
    packed = 0
    matrices = [(vocab, hidden, quantization.of("lm_head"))]
    for layer in range(spec.num_layers):
        qkv, o = (quantization.of(group, layer) for group in ("qkv", "o"))
        matrices.append((spec.query_size + 2 * spec.kv_size, hidden, qkv))
        matrices.append((hidden, spec.query_size, o))
        expert = quantization.of("experts", layer)
        matrices += [(2 * inner, hidden, expert), (hidden, inner, expert)] * spec.num_experts
        total += spec.num_experts * hidden * _FLOAT  # router
        total += spec.num_experts * (2 * inner + hidden) * _FLOAT  # biases
    for rows, columns, form in matrices:
        total += _stored(rows, columns, form)
        packed += _packed(rows, columns, form)
    return total, packed


def _stored(rows: int, columns: int, form: Format) -> int:
    if form.kind == "float":
        return rows * columns * _FLOAT
    scale = 1 if form.kind == "mxfp4" else _FLOAT
    return rows * columns * form.bits // 8 + rows * -(-columns // form.block) * scale


def _packed(rows: int, columns: int, form: Format) -> int:
    if form.kind == "mxfp4":
        return 0  # its kernel reads the file's bytes as they are
    if form.kind == "float":
        return rows * columns * _FLOAT
    return rows * columns * form.bits // 8 + rows * -(-columns // form.block) * _PACKED_BLOCK


def _arena(spec: GptOssSpec, target: Target, context: int) -> int:
    """Activations of one chunk. Routed experts each keep a sum of their own; scores are whole."""
    sums = spec.num_experts if target.experts == "routed" else spec.experts_per_token
    width = (4 + sums) * spec.hidden_size + spec.query_size + 2 * spec.kv_size
    width += 3 * spec.intermediate_size
    scores = spec.num_heads * min(context, spec.max_position_embeddings)
    return CHUNK * (width + scores) * _FLOAT + spec.vocab_size * _FLOAT


def check_memory(
    spec: GptOssSpec,
    quantization: Quantization,
    target: Target,
    limit: int | None,
    *,
    context: int = CONTEXT,
    kv: str | None = None,
    file_format: str | None = None,
) -> MemoryPlan:
    """The plan, of files that are mapped where an .ort file would not fit in `limit` bytes.

    UserError where nothing fits, with what would.
    """

    def at(context: int, kv: str | None, formats: Quantization = quantization) -> MemoryPlan:
        made = memory_plan(spec, formats, target, context=context, kv=kv, file_format=file_format)
        if limit is None or made.needed <= limit or made.file_format == "onnx":
            return made
        return memory_plan(spec, formats, target, context=context, kv=kv, file_format="onnx")

    plan = at(context, kv)
    if limit is None or plan.needed <= limit:
        return plan
    raise UserError(
        f"{target.name}: {quantization.name} needs {_size(plan.needed)} at {plan.context} tokens, "
        f"more than {_size(limit)}: {_size(plan.packed)} of packed weights, "
        f"{_size(plan.kv_bytes)} of {plan.kv} KV cache, {_size(plan.arena)} of arena; "
        + _what_fits(target, limit, plan, at)
    )


def _what_fits(
    target: Target,
    limit: int,
    plan: MemoryPlan,
    at: Callable[..., MemoryPlan],
) -> str:
    """Each change that alone is enough, else the most that all of them together can do."""
    least = PRESETS["int4"]
    found = []
    shorter = [tokens for tokens in _contexts(plan.context) if at(tokens, plan.kv).needed <= limit]
    if shorter:
        found.append(f"--context {shorter[0]}")
    if target.int8_kv and plan.kv != "int8" and at(plan.context, "int8").needed <= limit:
        found.append("--kv int8")
    if at(plan.context, plan.kv, least).needed <= limit:
        found.append("--quant int4")
    if found:
        return "what fits: " + ", or ".join(found)
    kv = "int8" if target.int8_kv else plan.kv
    for tokens in _contexts(plan.context):
        if (small := at(tokens, kv, least)).needed <= limit:
            return f"what fits: --quant int4 --kv {kv} --context {tokens}, {_size(small.needed)}"
    return (
        f"nothing of this model does: int4 with {kv} KV at {tokens} tokens needs "
        f"{_size(small.needed)}"
    )


def _contexts(most: int) -> list[int]:
    """Powers of two below `most`, the longest first."""
    return [1 << power for power in range(20, 8, -1) if 1 << power < most] or [most]


def _size(count: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g}{unit}"
    return f"{count} bytes"
