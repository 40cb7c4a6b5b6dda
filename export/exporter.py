"""The main job, top to bottom: checkpoint -> portable graph -> target graphs -> package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gptoss_onnx.export.binding import bind
from gptoss_onnx.export.checkpoint import EMBEDDING, LM_HEAD, Checkpoint
from gptoss_onnx.export.experts import check_packed
from gptoss_onnx.export.genai_config import GENAI_CONFIG, genai_config
from gptoss_onnx.export.linking import link_files
from gptoss_onnx.export.manifest import manifest
from gptoss_onnx.export.model_card import model_card, unmeasured_page
from gptoss_onnx.export.package_files import copy_files, load_harmony, write_json
from gptoss_onnx.export.plan import GRAPH, Options, Plan, plan, summary
from gptoss_onnx.export.staging import staged
from gptoss_onnx.export.tokenizer_graph import FILES_ALONE, tokenizer_graph
from gptoss_onnx.export.trace import trace
from gptoss_onnx.export.writer import DataWriter
from gptoss_onnx.graph_passes.weights import StreamedTensor, View
from gptoss_onnx.graph_passes.weights_into_branches import weights_into_branches
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package_update import write_manifest

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all
# Changes a package that is complete but for its manifest: told the folder and the manifest, it
# gives the names of the files it made.
Finish = Callable[[Path, dict[str, Any]], Iterable[str]]


def export(
    checkpoint: Checkpoint,
    options: Options,
    output: Path,
    progress: Progress,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """Write the package of `checkpoint` to the folder `output`; it is there whole or not at all."""
    with staged(output, force=options.force) as prepare:
        made = plan(checkpoint, options)
        figures = summary(made)  # before writing: then the streams are gone
        folder = prepare(made.written_bytes)
        write_package(made, folder, output.name, progress, finish)
    return figures


def export_portable(checkpoint: Checkpoint, output: Path) -> Path:
    """The portable graph with float32 weights: the oracle that every package is checked with."""
    model = trace(checkpoint.spec)
    bind(model, checkpoint)
    if checkpoint.spec.tie_word_embeddings:
        table, head = (model.graph.initializers[name] for name in (EMBEDDING, LM_HEAD))
        assert isinstance(table.const_value, StreamedTensor)
        head.const_value = View(table.const_value, table.const_value.shape.numpy())
        head.const_value.name = LM_HEAD
    output.mkdir(parents=True)
    DataWriter(output, f"{GRAPH}.data").write(model.graph)
    ir.save(model, output / GRAPH)
    return output


def write_package(
    made: Plan, folder: Path, name: str, progress: Progress, finish: Finish | None = None
) -> None:
    """Every file of a package, its manifest last."""
    checkpoint, options = made.checkpoint, made.options
    if made.linked:  # nobody else reads what is linked
        check_packed(checkpoint)
    links = link_files(made.linked, folder)
    copied = copy_files(checkpoint, folder)
    tokenizer = tokenizer_graph(folder, folder) if options.tokenizer_graph else FILES_ALONE
    content = manifest(made, name, tokenizer, sorted(links.values()))
    card = model_card(made, content)
    total = sum(t.nbytes for t in made.tensors)
    with _counted(progress, "weights", total) as count:
        writer = DataWriter(folder, f"{GRAPH}.data", made.max_data_bytes, links, count)
        writer.write(*(graph.model.graph for graph in made.graphs))
    for graph in made.graphs:
        if graph.target.weights_in_branches:
            weights_into_branches(graph.model)
        ir.save(graph.model, folder / graph.file)
    if not any(made.graphs[0].kv_windows):
        stops = _stops(checkpoint)
        write_json(folder / GENAI_CONFIG, genai_config(checkpoint, options.target, stops))
    write_json(folder / "report.json", {"parity": "not measured", "evaluation": "not measured"})
    (folder / "report.html").write_text(unmeasured_page(content), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    names = {*copied, *links.values(), *writer.sha256}
    names |= {graph.file for graph in made.graphs}
    names |= {str(tokenizer[part]) for part in ("graph", "detokenizer") if part in tokenizer}
    names |= {GENAI_CONFIG, "report.json", "report.html", "README.md"}
    if finish is not None:
        names |= set(finish(folder, content))
    linked_bytes = sum((folder / link).stat().st_size for link in links.values())
    with _counted(progress, "hashing", linked_bytes) as count:
        there = (name for name in names if (folder / name).is_file())  # finishing takes some away
        write_manifest(folder, content, there, writer.sha256, count)


def _stops(checkpoint: Checkpoint) -> frozenset[int]:
    """Harmony's stop tokens, where the tokenizer has them."""
    try:
        return load_harmony(checkpoint).stop_ids
    except UserError:
        return frozenset()


@contextmanager
def _counted(progress: Progress, stage: str, total: int) -> Iterator[Callable[[int], None]]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, max(total, done))

    yield count
