"""The main job, top to bottom: checkpoint -> portable graph -> target graph -> package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.binding import bind
from export.checkpoint import Checkpoint
from export.genai_config import genai_config
from export.linking import link_files
from export.model_card import model_card, unmeasured_page
from export.package_files import copy_files, write_json
from export.staging import staged
from export.tokenizer_graph import tokenizer_graph
from export.trace import trace
from export.writer import EMBEDDED_BYTES, DataWriter
from graph_passes.pipeline import lower, recipe
from graph_passes.quantization import Quantization
from graph_passes.rounding import SEARCH, Rounding
from graph_passes.weights import StreamedTensor
from runtimes.errors import UserError
from runtimes.package import write_manifest
from runtimes.target import Target

GRAPH = "model.onnx"
Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all


@dataclass(frozen=True)
class Options:
    """What to make of a checkpoint."""

    target: Target
    quantization: Quantization
    rounding: Rounding = SEARCH
    calibration: Mapping[str, Any] | None = None  # what the rounding's statistics are of
    link: bool = False  # refer to MXFP4 experts inside the checkpoint's files
    force: bool = False  # replace a package that is in the way
    all_logits: bool = False  # logits of every token, not only the last
    kv: str = "float32"  # element type of the KV cache
    kv_max: Mapping[str, Any] | None = None  # what the scales of int8 come from (`QuantizeKv`)
    kv_calibration: Mapping[str, Any] | None = None  # what `kv_max` is of
    full_kv: bool = False  # sliding layers keep the whole sequence: for callers that concatenate

    @property
    def windowed_kv(self) -> bool:
        return self.target.windowed_kv and not self.full_kv


@dataclass(frozen=True)
class Plan:
    """A target graph bound to weights nobody has read yet."""

    checkpoint: Checkpoint
    options: Options
    model: ir.Model
    linked: frozenset[Path]  # files of the checkpoint that the package refers to

    @property
    def tensors(self) -> list[ir.TensorProtocol]:
        values = self.model.graph.initializers.values()
        return [value.const_value for value in values if value.const_value is not None]

    def is_linked(self, tensor: ir.TensorProtocol) -> bool:
        origin = tensor.origin if isinstance(tensor, StreamedTensor) else None
        linked = origin is not None and origin.file in self.linked
        return linked and tensor.nbytes >= EMBEDDED_BYTES

    @property
    def written_bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors if not self.is_linked(t))


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Trace and lower; no weight is read and nothing is written."""
    target, quantization = options.target, options.quantization
    if quantization.name not in target.presets:
        raise UserError(
            f"{target.name} has no preset {quantization.name}; it has {', '.join(target.presets)}"
        )
    for key, form in quantization.formats.items():
        if key.endswith("experts") and form.kind != "int" and str(form) not in target.presets:
            raise UserError(
                f"{key}={form}: {target.name} has no such experts; it has int4 and int8, and int8 "
                "holds MXFP4 exactly"
            )
    if options.link and (quantization.of("experts").kind, checkpoint.expert_format) != (
        "mxfp4",
        "mxfp4",
    ):
        raise UserError(
            "--link refers to MXFP4 experts inside the checkpoint: it needs --quant mxfp4 and a "
            "checkpoint whose experts are MXFP4; leave it out to copy"
        )
    if options.kv not in target.kv_dtypes:
        raise UserError(
            f"--kv {options.kv}: attention on {target.name} has no such KV cache; it has "
            f"{', '.join(target.kv_dtypes)}"
        )
    if options.kv == "int8" and options.kv_max is None:
        raise UserError(
            "--kv int8 needs the sizes of keys and values: give --calibrate FILE, a text like "
            "those the model will see"
        )
    model = trace(checkpoint.spec)
    bind(model, checkpoint)
    steps = recipe(
        checkpoint.spec,
        target,
        quantization,
        options.rounding,
        windowed_kv=options.windowed_kv,
        all_logits=options.all_logits,
        kv_max=options.kv_max if options.kv == "int8" else None,
    )
    lower(model, steps, target)
    made = Plan(checkpoint, options, model, frozenset())
    if options.link:
        origins = (t.origin for t in made.tensors if isinstance(t, StreamedTensor))
        made = Plan(checkpoint, options, model, frozenset(o.file for o in origins if o))
    return made


def export(
    checkpoint: Checkpoint, options: Options, output: Path, progress: Progress
) -> dict[str, Any]:
    """Write the package of `checkpoint` to the folder `output`; it is there whole or not at all."""
    with staged(output, force=options.force) as prepare:
        made = plan(checkpoint, options)
        figures = summary(made)  # before writing: then the streams are gone
        folder = prepare(made.written_bytes)
        write_package(made, folder, output.name, progress)
    return figures


def summary(made: Plan) -> dict[str, Any]:
    """What a plan writes, in figures."""
    return {
        "source": made.checkpoint.name,
        "target": made.options.target.name,
        "recipe": made.options.quantization.describe(),
        "written_bytes": made.written_bytes,
        "linked_bytes": sum(t.nbytes for t in made.tensors) - made.written_bytes,
        "weights": _weight_bytes(made),
    }


def export_portable(checkpoint: Checkpoint, output: Path) -> Path:
    """The portable graph with float32 weights: the oracle that every package is checked with."""
    model = trace(checkpoint.spec)
    bind(model, checkpoint)
    output.mkdir(parents=True)
    DataWriter(output, f"{GRAPH}.data").write(model.graph)
    ir.save(model, output / GRAPH)
    return output


def write_package(made: Plan, folder: Path, name: str, progress: Progress) -> None:
    """Every file of a package, its manifest last."""
    checkpoint, options = made.checkpoint, made.options
    links = link_files(made.linked, folder)
    total = sum(t.nbytes for t in made.tensors)
    with _counted(progress, "weights", total) as count:
        writer = DataWriter(folder, f"{GRAPH}.data", options.target.max_data_bytes, links, count)
        writer.write(made.model.graph)
    ir.save(made.model, folder / GRAPH)
    copy_files(checkpoint.path, folder)
    tokenizer = tokenizer_graph(checkpoint.path, folder)
    manifest = _manifest(made, name, tokenizer, sorted(links.values()))
    write_json(folder / "genai_config.json", genai_config(checkpoint, options.windowed_kv))
    write_json(folder / "report.json", {"parity": "not measured", "evaluation": "not measured"})
    (folder / "report.html").write_text(unmeasured_page(manifest), encoding="utf-8")
    (folder / "README.md").write_text(model_card(made, manifest), encoding="utf-8")
    linked_bytes = sum((folder / link).stat().st_size for link in links.values())
    with _counted(progress, "hashing", linked_bytes) as count:
        write_manifest(folder, manifest, writer.sha256, count)


@contextmanager
def _counted(progress: Progress, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, max(total, done))

    yield count


def _manifest(made: Plan, name: str, tokenizer: dict[str, Any], links: list[str]) -> dict[str, Any]:
    checkpoint, options, spec = made.checkpoint, made.options, made.checkpoint.spec
    graph = made.model.graph
    layers = [
        {
            "window": spec.sliding_window if sliding else None,
            "windowed": sliding and options.windowed_kv and not spec.num_global_tokens,
        }
        for sliding in map(spec.is_sliding, range(spec.num_layers))
    ]
    return {
        "name": name,
        "source": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "expert_format": checkpoint.expert_format,
        },
        "target": options.target.name,
        "quant": options.quantization.name,
        "recipe": options.quantization.describe(),
        "rounding": {"method": options.rounding.method, "calibration": options.calibration},
        "min_runtime": options.target.min_runtime,
        "graph": GRAPH,
        "inputs": [_described(value) for value in graph.inputs],
        "outputs": [_described(value) for value in graph.outputs],
        "logits": "all" if options.all_logits else "last",
        "padded_batches": options.target.padded_batches,
        "context_length": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "kv": {
            "dtype": options.kv,
            "scales": _kv_scales(options),
            "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "layers": layers,
        },
        "weights": _weight_bytes(made),
        "tokenizer": tokenizer,
        "links": links,
        "session": {
            "providers": options.target.providers,
            "config": dict(options.target.session_config),
        },
        "versions": {p: version(p) for p in ("onnx", "onnx-ir", "onnxruntime", "torch")},
    }


def _kv_scales(options: Options) -> dict[str, Any] | None:
    """How int8 codes of the KV cache are scaled; None of floats."""
    if options.kv == "float32":
        return None
    return {"per": "channel", "from": "largest magnitude", "calibration": options.kv_calibration}


def _weight_bytes(made: Plan) -> dict[str, int]:
    """Bytes by how a token reads them: one row of the embedding, its experts, all of the rest."""
    groups = {"embedding": 0, "experts": 0, "dense": 0}
    for tensor in made.tensors:
        name = str(tensor.name)
        lookup = "embed_tokens" in name or name in ("cos_cache", "sin_cache")
        groups["embedding" if lookup else "experts" if ".experts." in name else "dense"] += (
            tensor.nbytes
        )
    spec = made.checkpoint.spec
    return groups | {
        "num_experts": spec.num_experts,
        "experts_per_token": spec.experts_per_token,
    }


def _described(value: ir.Value) -> dict[str, Any]:
    shape = [d if isinstance(d, int) else str(d) for d in value.shape or ()]
    return {
        "name": value.name,
        "dtype": value.dtype.name.lower() if value.dtype else None,
        "shape": shape,
    }
