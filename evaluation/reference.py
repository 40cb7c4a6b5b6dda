"""What the full-precision portable graph says about a text, kept on disk for the next package.

logits.f32 holds one row of float32 logits for each token that counts, routes.u16 the experts that
every layer chose there. A folder is named by a hash of everything it was computed from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_onnx.evaluation.probe import Chunk, Probe
from gptoss_onnx.evaluation.texts import Passage
from gptoss_onnx.export.checkpoint import Checkpoint
from gptoss_onnx.export.exporter import export_portable
from gptoss_onnx.export.staging import available, needed
from gptoss_onnx.runtimes.errors import UserError

FORMAT = "1"  # change it with what is stored or how it is computed
Progress = Callable[[str, int, int], None]  # stage, done, in all


def cache_root() -> Path:
    """`GPTOSS_CACHE`, else ~/.cache/gptoss-onnx."""
    return Path(os.environ.get("GPTOSS_CACHE") or Path.home() / ".cache" / "gptoss-onnx")


@contextmanager
def portable_graph(checkpoint: Checkpoint) -> Iterator[Path]:
    """The portable graph in float32, there for as long as it is used."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".portable.", dir=root) as scratch:
        yield export_portable(checkpoint, Path(scratch) / "portable")


@dataclass(frozen=True)
class Reference:
    """The reference of one checkpoint over one text."""

    folder: Path
    vocab_size: int
    layers: int
    top_k: int

    def logits(self, rows: slice) -> NDArray[np.float32]:
        """[n, V] of the tokens `rows`."""
        return self._read("logits.f32", np.float32, rows, (self.vocab_size,))

    def routes(self, rows: slice) -> NDArray[np.uint16]:
        """[n, L, k] of the tokens `rows`, sorted."""
        return self._read("routes.u16", np.uint16, rows, (self.layers, self.top_k))

    def _read(self, name: str, dtype: Any, rows: slice, shape: tuple[int, ...]) -> NDArray[Any]:
        # Read, not mapped: mapped pages would count as this process's memory.
        width, count = math.prod(shape), rows.stop - rows.start
        offset = rows.start * width * np.dtype(dtype).itemsize
        with (self.folder / name).open("rb") as stream:
            stream.seek(offset)
            return np.fromfile(stream, dtype, count * width).reshape(count, *shape)

    @property
    def results(self) -> Path:
        """Where the figures of the packages measured against it are kept."""
        return self.folder / "results"


def reference(
    checkpoint: Checkpoint,
    passages: Sequence[Passage],
    portable: Callable[[], Path],
    progress: Progress,
    threads: int | None = None,
) -> Reference:
    """The checkpoint's reference over `passages`, from the cache or computed into it.

    `portable` gives the folder of the portable graph; it is asked only where it is needed.
    UserError where its logits do not fit on the disk.
    """
    spec = checkpoint.spec
    inputs = [FORMAT, checkpoint.fingerprint(), [[p.ids, _spans(p)] for p in passages]]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    folder = cache_root() / "reference" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_free(folder.parent, sum(p.tokens for p in passages) * spec.vocab_size * 4)
        partial = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=folder.parent))
        try:
            probe = Probe.of_portable(portable(), threads)
            _compute(probe, passages, spec, partial, progress)
            (partial / "results").mkdir()
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # another evaluation was quicker
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Reference(folder, spec.vocab_size, spec.num_layers, spec.experts_per_token)


def _check_free(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: the reference's logits take {needed(size)} and {available(free)} "
            "are free; evaluate on less text or set GPTOSS_CACHE to another disk"
        )


def _spans(passage: Passage) -> list[list[Any]]:
    return [[span.start, span.stop, span.channel] for span in passage.spans]


def _compute(
    probe: Probe, passages: Sequence[Passage], spec: Any, folder: Path, progress: Progress
) -> None:
    total, done = sum(len(passage.ids) for passage in passages), 0
    with (folder / "logits.f32").open("wb") as logits, (folder / "routes.u16").open("wb") as routes:
        for passage in passages:
            for chunk in probe.run(passage.ids):
                rows = predicting(passage, chunk) - chunk.start
                logits.write(np.ascontiguousarray(chunk.logits[rows]).data)
                routes.write(chosen(chunk.routers[:, rows], spec.experts_per_token).data)
                done += len(chunk.logits)
                progress("reference", done, total)


def predicting(passage: Passage, chunk: Chunk) -> NDArray[np.int64]:
    """Positions in `chunk` whose next token counts."""
    stop = chunk.start + len(chunk.logits)
    spans = [range(max(s.start - 1, chunk.start), min(s.stop - 1, stop)) for s in passage.spans]
    return np.array([position for span in spans for position in span], np.int64)


def chosen(routers: NDArray[np.float32], top_k: int) -> NDArray[np.uint16]:
    """Sorted experts [n, L, k] of router logits [L, n, E]; the lower index wins a tie."""
    best = np.argsort(-routers, axis=-1, kind="stable")[..., :top_k]
    return np.ascontiguousarray(np.sort(best, axis=-1).swapaxes(0, 1).astype(np.uint16))
