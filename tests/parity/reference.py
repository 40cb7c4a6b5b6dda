"""What graphs are compared with: transformers' GPT-OSS in float32, each row alone and unpadded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from gptoss_onnx.evaluation.graph_runner import GraphRunner
from gptoss_onnx.export.checkpoint import Checkpoint, open_checkpoint
from gptoss_onnx.export.exporter import export, export_portable
from gptoss_onnx.export.plan import Options
from gptoss_onnx.export.spec import FULL, SLIDING, GptOssSpec
from gptoss_onnx.export.synthetic import synthesize
from gptoss_onnx.graph_passes.quantization import Quantization
from gptoss_onnx.runtimes.target import get_target
from tests.parity import transformers_logits
from tests.transformers5 import under_transformers_5

Float = NDArray[np.float32]
STEPS = 20


@dataclass(frozen=True)
class Prompt:
    """A right-padded batch: rows of `lengths` tokens fed in chunks that end at `ends`."""

    lengths: tuple[int, ...]
    ends: tuple[int, ...]
    steps: int = STEPS

    def tokens(self, vocab: int) -> list[NDArray[np.int64]]:
        """Random ids of each row, prompt and decode steps."""
        rng = np.random.default_rng(5)
        return [rng.integers(0, vocab, length + self.steps) for length in self.lengths]


# The short row ends inside the second chunk; its third is padding alone. Both pass the window.
LONG = Prompt(lengths=(320, 150), ends=(120, 220, 320))
SHORT = Prompt(lengths=(30, 14), ends=(12, 20, 30), steps=6)


@dataclass(frozen=True)
class Subject:
    """A random checkpoint and where its graphs go."""

    folder: Path
    prompt: Prompt
    transformers: int = 4

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)

    @property
    def spec(self) -> GptOssSpec:
        return self.checkpoint.spec

    @cached_property
    def tokens(self) -> list[NDArray[np.int64]]:
        return self.prompt.tokens(self.spec.vocab_size)

    @cached_property
    def logits(self) -> list[Float]:
        """The reference's logits [prompt + steps, V] of each row."""
        if self.transformers == 4:
            masks = [_masks(self.spec, len(row)) for row in self.tokens]
            return transformers_logits.logits(self.folder, self.tokens, masks)
        assert not _global_tokens(self.spec)
        out = self.folder / f"transformers-{self.transformers}.npz"
        rows = json.dumps([row.tolist() for row in self.tokens])
        script = Path(transformers_logits.__file__)
        under_transformers_5(script, self.folder, out, given=rows)
        with np.load(out) as found:
            return [found[name] for name in found.files]

    def against(self, transformers: int) -> Subject:
        """The same, compared with that version; graphs are shared."""
        return replace(self, transformers=transformers)

    @cached_property
    def portable(self) -> Path:
        output = self.folder / "portable"
        if not output.exists():
            export_portable(self.checkpoint, output)
        return output / "model.onnx"

    def package(self, preset: str, *changes: str, all_logits: bool = True) -> Path:
        """The graph of a package for the CPU, exported on first use."""
        output = self.folder / "-".join([preset, *changes, "all" if all_logits else "last"])
        if not output.exists():
            quantization = Quantization.parse(preset, changes)
            options = Options(get_target("cpu"), quantization, all_logits=all_logits)
            export(self.checkpoint, options, output, lambda *_: None)
        return output / "model.onnx"

    @property
    def package_windows(self) -> list[int | None]:
        """Rows of each layer's KV cache in a package, None where it grows."""
        layers = self.spec.attention
        return [None if layer.global_tokens else layer.window for layer in layers]

    @property
    def tolerance(self) -> float:
        """Largest |difference| a float32 graph may have, as a share of the largest |logit|.

        A dot product over K in another order differs by about sqrt(K) eps of its terms' size
        (rounding errors add up like a random walk), and about five follow one another in a layer
        (qkv, attention, o, gate_up, down), independent, so that their squares add up. Logits are
        peaked alike whatever the error, so the largest error to the largest logit is the same.
        """
        widest = max(self.spec.hidden_size, self.spec.intermediate_size, self.spec.query_size)
        return math.sqrt(5 * self.spec.num_layers * widest) * float(np.finfo(np.float32).eps)

    def error(self, graph: Path, windows: Sequence[int | None] | None = None) -> float:
        """Largest |difference| of the graph over prefill and decode, to the largest |logit|."""
        runner = GraphRunner(
            graph, windows or [None] * self.spec.num_layers, len(self.tokens), threads=1
        )
        worst = 0.0
        for logits, places in self._feed(runner):
            for row, (start, stop) in enumerate(places):
                ours = logits[row, : stop - start]
                theirs = self.logits[row][start:stop]
                if logits.shape[1] == 1:  # a package's last token alone
                    theirs = theirs[-1:]
                    ours = ours[: len(theirs)]
                difference = np.abs(ours - theirs)
                assert np.isfinite(ours).all()
                worst = max(worst, float(difference.max(initial=0)))
        return worst / max(float(np.abs(row).max()) for row in self.logits)

    def _feed(self, runner: GraphRunner) -> Any:
        """Logits of each feed, with the places [start, stop) of each row's tokens in it."""
        start = 0
        for end in self.prompt.ends:
            places = [(min(start, n), min(end, n)) for n in self.prompt.lengths]
            ids = np.zeros((len(places), end - start), np.int64)
            mask = np.zeros_like(ids)
            for row, (first, last) in enumerate(places):
                ids[row, : last - first] = self.tokens[row][first:last]
                mask[row, : last - first] = 1
            yield runner.feed(ids, mask), places
            start = end
        for step in range(self.prompt.steps):
            places = [(n + step, n + step + 1) for n in self.prompt.lengths]
            ids = np.array([[row[at]] for row, (at, _) in zip(self.tokens, places, strict=True)])
            yield runner.feed(ids), places


def subject(
    folder: Path, prompt: Prompt, config: dict[str, Any] | None = None, **sizes: Any
) -> Subject:
    """A random checkpoint whose config is changed by `config` after it is written."""
    synthesize(folder, geometry="tiny", **sizes)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    return Subject(folder, prompt)


def altered(subject: Subject, graph: Path, change: Any) -> Path:
    """The portable graph with `change(model)` made to its nodes or weights."""
    model = ir.load(subject.portable)
    ir.external_data.load_to_model(model)
    change(model)
    ir.save(model, graph)
    return graph


def _global_tokens(spec: GptOssSpec) -> int:
    return max(layer.global_tokens for layer in spec.attention)


def _masks(spec: GptOssSpec, length: int) -> dict[str, torch.Tensor] | None:
    """Masks of a config with global tokens, which transformers does not know; else its own."""
    if not _global_tokens(spec):
        return None
    query, key = torch.arange(length)[:, None], torch.arange(length)
    causal = key <= query
    sliding = next(layer for layer in spec.attention if layer.window)
    near = (query - key < sliding.window) | (key < sliding.global_tokens)
    seen = {FULL: causal, SLIDING: causal & near}
    lowest = torch.finfo(torch.float32).min
    return {kind: torch.where(m, 0.0, lowest)[None, None] for kind, m in seen.items()}
