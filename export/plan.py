"""What an export will write: a target's graphs bound to weights nobody has read yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.package_files import json_of
from gptoss_onnx.export.trace import trace
from gptoss_onnx.export.writer import EMBEDDED_BYTES, identity
from gptoss_onnx.graph_passes.attention_spec import is_fused, kv_windows
from gptoss_onnx.graph_passes.pipeline import lower, recipe
from gptoss_onnx.graph_passes.quantization import Quantization, read_key
from gptoss_onnx.graph_passes.rounding import SEARCH, Rounding
from gptoss_onnx.graph_passes.weight_role import known_role
from gptoss_onnx.graph_passes.weights import Part, StreamedTensor
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.generation_config import (
    GENERATION_CONFIG,
    check_generation_config,
    stop_ids,
)
from gptoss_onnx.runtimes.target import Target

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Options:
    """What to make of a checkpoint."""

    target: Target
    quantization: Quantization
    rounding: Rounding = SEARCH
    calibration: Mapping[str, Any] | None = None  # what the rounding's statistics are of
    also: tuple[Target, ...] = ()  # targets with graphs of their own over the same weights
    activations: str | None = None  # element type the graphs compute in; None: the target's own
    link: bool = False  # refer to MXFP4 experts inside the checkpoint's files
    force: bool = False  # replace a package that is in the way
    all_logits: bool = False  # logits of every token, not only the last
    kv: str | None = None  # KV cache: "float", "int8"; None: the target's own
    kv_max: Mapping[str, Any] | None = None  # what the scales of int8 come from (`QuantizeKv`)
    kv_calibration: Mapping[str, Any] | None = None  # what `kv_max` is of
    tokenizer_graph: bool = (
        False  # the tokenizer as graphs of onnxruntime-extensions beside its files
    )
    full_kv: bool = False  # sliding layers keep the whole sequence: for callers that concatenate

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.target, *self.also)

    @property
    def wants_int8_kv(self) -> bool:
        return any((self.kv or target.kv) == "int8" for target in self.targets)

    def kv_dtype(self, target: Target, activations: str) -> str:
        """Element type of the KV cache of one graph."""
        if self.kv is None and target.kv == "int8" and self.kv_max is None:
            return activations  # a default that nothing was measured for
        return "int8" if (self.kv or target.kv) == "int8" else activations


@dataclass(frozen=True)
class PlannedGraph:
    """One graph of a package, and what it is for."""

    file: str
    target: Target
    activations: str  # element type
    kv_windows: tuple[int | None, ...]  # tokens a layer's KV cache keeps; None: all
    model: ir.Model

    @property
    def requires(self) -> list[str]:
        """What a device must have to run it."""
        feature = self.target.device_features.get(self.activations)
        return [feature] if feature else []


@dataclass(frozen=True)
class Plan:
    """The graphs of a package; weights that several of them read are written once."""

    checkpoint: Checkpoint
    options: Options
    graphs: tuple[PlannedGraph, ...]
    linked: frozenset[Path] = frozenset()  # files of the checkpoint that the package refers to

    @property
    def model(self) -> ir.Model:
        """The first graph, which the package's general files describe."""
        return self.graphs[0].model

    @property
    def tensors(self) -> list[ir.TensorProtocol]:
        """Every weight of the package once; parts of a tensor are that tensor."""
        found: dict[object, ir.TensorProtocol] = {}
        for tensor in self._all():
            stored = tensor.whole if isinstance(tensor, Part) else tensor
            found.setdefault(identity(stored), stored)
        return list(found.values())

    def _all(self) -> Iterator[ir.TensorProtocol]:
        for graph in self.graphs:
            for value in graph.model.graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value

    def is_linked(self, tensor: ir.TensorProtocol) -> bool:
        origin = tensor.origin if isinstance(tensor, StreamedTensor) else None
        linked = origin is not None and origin.file in self.linked
        return linked and tensor.nbytes >= EMBEDDED_BYTES

    @property
    def written_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors if not self.is_linked(t))

    @property
    def max_data_bytes(self) -> int | None:
        """The largest data file that every target's loader takes."""
        return min(
            (t.max_data_bytes for t in self.options.targets if t.max_data_bytes), default=None
        )


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Trace and lower; no weight is read and nothing is written."""
    check(checkpoint, options, kv_scales=options.kv_max is not None)
    kinds = [(t, a) for t in options.targets for a in _activations(options, t)]
    floats = {activations for _, activations in kinds}
    portable = trace(checkpoint.spec)
    graphs: list[PlannedGraph] = []
    for target, activations in kinds:
        model = portable.clone()
        windows = kv_windows(checkpoint.spec.attention, target, full=options.full_kv)
        bind(model, checkpoint)
        steps = recipe(
            checkpoint.spec,
            target,
            options.quantization,
            options.rounding,
            kv_windows=windows,
            # Only there is an index beyond its table an error.
            refuse_holes=options.full_kv and target.provider == "CPUExecutionProvider",
            all_logits=options.all_logits,
            kv_max=options.kv_max if options.kv_dtype(target, activations) == "int8" else None,
            activations=activations,
            # Weights that another graph reads as float32 are stored so, for both.
            cast_weights="float32" in floats,
            scale_residual="float16" in floats,
            unit_scale=any(target.unit_scale for target in options.targets),
        )
        lower(model, steps, target)
        file = GRAPH if not graphs else _file(target, activations)
        graphs.append(PlannedGraph(file, target, activations, windows, model))
    made = Plan(checkpoint, options, tuple(graphs))
    if options.link:
        origins = (t.origin for t in made.tensors if isinstance(t, StreamedTensor))
        made = Plan(checkpoint, options, made.graphs, frozenset(o.file for o in origins if o))
    return made


def _activations(options: Options, target: Target) -> tuple[str, ...]:
    """Element types that a target gets a graph for."""
    if options.activations:
        return (options.activations,)
    return target.activations if target.device_features else target.activations[:1]


def _file(target: Target, activations: str) -> str:
    kind = "" if activations == target.activations[0] else f".{activations}"
    return f"model.{target.name}{kind}.onnx"


def check(checkpoint: Checkpoint, options: Options, *, kv_scales: bool) -> None:
    """UserError where a target cannot be given what the options ask for.

    `kv_scales` is whether the sizes of keys and values are known, or will be.
    """
    check_generation_config(
        json_of(checkpoint, GENERATION_CONFIG), f"{checkpoint.place}/{GENERATION_CONFIG}"
    )
    stop_ids(checkpoint.config, f"{checkpoint.place}/config.json")
    for target in options.targets:
        _check(checkpoint, options, target)
    if options.kv == "int8" and not kv_scales:
        raise UserError(
            "--kv int8 needs the sizes of keys and values: give --calibrate FILE, a text like "
            "those the model will see"
        )


def _check(checkpoint: Checkpoint, options: Options, target: Target) -> None:
    quantization = options.quantization
    if quantization.name not in target.presets:
        raise UserError(
            f"{target.name} has no preset {quantization.name}; it has {', '.join(target.presets)}"
        )
    for key, form in quantization.formats.items():
        group, _ = read_key(key) or (key, None)
        if group == "experts" and form.kind != "int" and str(form) not in target.presets:
            raise UserError(
                f"{key}={form}: {target.name} has no such experts; it has int4 and int8, and int8 "
                "holds MXFP4 exactly"
            )
    if options.activations not in (None, *target.activations):
        raise UserError(
            f"--activations {options.activations}: {target.name} has "
            f"{', '.join(target.activations)}"
        )
    if options.link and (quantization.of("experts").kind, checkpoint.expert_format) != (
        "mxfp4",
        "mxfp4",
    ):
        raise UserError(
            "--link refers to MXFP4 experts inside the checkpoint: it needs --quant mxfp4 and a "
            "checkpoint whose experts are MXFP4; leave it out to copy"
        )
    if options.link and target.fp4_by_column:
        raise UserError(
            f"--link: {target.name} reads MXFP4 experts in another order than checkpoints store "
            "them; leave it out"
        )
    if options.kv == "int8" and not target.int8_kv:
        raise UserError(f"--kv int8: attention on {target.name} has no such KV cache; leave it out")
    if options.kv == "int8" and not is_fused(checkpoint.spec.attention, target):
        raise UserError(
            f"--kv int8: attention with global tokens is of standard operators on {target.name}, "
            "which have no such KV cache; leave it out"
        )


def summary(made: Plan) -> dict[str, Any]:
    """What a plan writes, in figures."""
    return {
        "source": made.checkpoint.name,
        "target": ",".join(target.name for target in made.options.targets),
        "recipe": made.options.quantization.describe(),
        "graphs": [f"{graph.target.name} in {graph.activations}" for graph in made.graphs],
        "written_bytes": made.written_bytes,
        "linked_bytes": sum(t.nbytes for t in made.tensors) - made.written_bytes,
        "weights": weight_bytes(made),
    }


_READ_AS = {"embedding": "embedding", "rope": "embedding", "experts": "experts"}


def weight_bytes(made: Plan) -> dict[str, int]:
    """Bytes by how a token reads them: one row of the embedding, its experts, all of the rest."""
    groups = Counter(embedding=0, experts=0, dense=0)
    for tensor in made.tensors:
        role = known_role(tensor)  # constants have none
        groups[_READ_AS.get(role.group, "dense") if role else "dense"] += tensor.nbytes
    spec = made.checkpoint.spec
    return dict(groups) | {
        "num_experts": spec.num_experts,
        "experts_per_token": spec.experts_per_token,
    }
